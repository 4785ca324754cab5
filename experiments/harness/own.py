"""A user's own data and network, in place of those with a name."""

import importlib
import types
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.tree_util import Partial

import foliax
from foliax import zoo


def data_of(dataset: str | None, data: Path | None) -> str | zoo.Dataset | None:
    """Return the user's own data where a file or folder is given, and else the name.

    Raises:
        ValueError: If both are given, or the file does not hold what it should.
        FileNotFoundError: If there is none.
    """
    if data is None:
        return dataset
    if dataset is not None:
        raise ValueError(f"--dataset {dataset} and --data {data} name two data sets; give one")
    return zoo.load_files(data)


def as_dataset(dataset: str | zoo.Dataset) -> zoo.Dataset:
    """Return a data set, given it or its name."""
    return zoo.load_dataset(dataset) if isinstance(dataset, str) else dataset


def load_model(place: str, dataset: zoo.Dataset) -> Any:
    """Return the network that a function of the user makes, checked on the data.

    Args:
        place: "module:function"; the module is found as `import` finds it, from the folder where
            Python was started. The function takes nothing, and returns anything `foliax.adapt`
            takes.
        dataset: What it is to classify.

    Raises:
        ValueError: If there is no such function, or what it returns is no classifier of the data.
    """
    model = _adapted(_function(place)(), place)
    x = dataset.test_x[0]
    try:
        jax.eval_shape(partial(foliax.trace, model), x)  # which says what is wrong
        num_logits = jax.eval_shape(model, x).shape[0]
    except Exception as error:  # each library has its own
        raise ValueError(
            f"{place} returns a model that does not take the inputs of {dataset.name}, of shape "
            f"{x.shape}: {error}"
        ) from error
    if num_logits != dataset.num_classes:
        raise ValueError(
            f"{place} returns a model of {num_logits} classes, and {dataset.name} has "
            f"{dataset.num_classes}"
        )
    return model


def _function(place: str) -> Any:
    """Find the function that a place names."""
    module, _, name = place.partition(":")
    if not (module and name):
        raise ValueError(f"model must be module:function, as my_net:load, got {place!r}")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name not in (module, module.partition(".")[0]):
            raise  # its own import fails
        raise ValueError(
            f"model names the module {module!r}, which is not found; start Python in its folder, "
            "or put that on PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise ValueError(f"model names {place!r}, and {module} has no {name!r}") from error
    if not callable(found):
        raise ValueError(f"{place} must be a function, got a {type(found).__name__}")
    return found


def _adapted(model: Any, place: str) -> Any:
    """Return the model as a pytree that takes one input."""
    if isinstance(model, types.FunctionType):
        model = Partial(model)
    try:
        return foliax.adapt(model)
    except ValueError as error:
        raise ValueError(f"{place} returns no usable model: {error}") from error
