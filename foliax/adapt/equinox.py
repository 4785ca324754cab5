"""Equinox: a module, with its state where it has one."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax

from foliax._core.fixed import Fixed
from foliax.adapt.function import evaluation, takes
from foliax.adapt.network import Change, Network, part_of, resolved, with_array


class Equinox(Network):
    """A module in inference mode.

    Attributes:
        arrays: Its arrays, in its structure.
        fixed: Its state or None, and the key it gets where it takes one.
        rest: All else of it.
        options: Names and values that are given by name.
    """

    arrays: Any
    fixed: Fixed
    rest: Any = eqx.field(static=True)
    options: tuple[tuple[str, Any], ...] = eqx.field(static=True)

    def call(self, x: Any) -> Any:
        """Return the output, without the new state."""
        module: Any = eqx.combine(self.arrays, self.rest)
        state, key = self.fixed.value
        options = dict(self.options)
        if takes(module, "key"):
            options["key"] = key
        if state is None:
            return module(x, **options)
        return module(x, state=state, **options)[0]

    @contextmanager
    def changed(self, layer: str, change: Change) -> Iterator[Network]:
        """Put a layer in a wrapper that changes what it returns."""
        module: Any = eqx.combine(self.arrays, self.rest)
        parent, last = resolved(module, layer, _names(module))

        def where(tree: Any) -> Any:
            for part in layer.split("."):
                tree = part_of(tree, part)
            return tree

        module = eqx.tree_at(where, module, _Changed(part_of(parent, last), change))
        yield _Open(module, self)


class _Changed(eqx.Module):
    """A layer whose output is changed."""

    layer: Any
    change: Change

    def __call__(self, *args: Any, **options: Any) -> Any:
        return with_array(self.layer(*args, **options), self.change)


class _Open(Network):
    """A module as it is, called as a network is."""

    module: Any
    like: Equinox

    def call(self, x: Any) -> Any:
        arrays, rest = eqx.partition(self.module, eqx.is_array)
        like = self.like
        return Equinox(arrays, like.fixed, rest, like.options).call(x)


def bind(module: Any, weights: tuple[Any, ...], options: Mapping[str, Any], key: Any) -> Equinox:
    """Put a module in inference mode, unless a key asks for its dropout, and bind its state."""
    if len(weights) > 1:
        raise ValueError(
            f"model, an Equinox {type(module).__name__}, may have a state, got {len(weights)} "
            "arguments after it; call adapt(model) or adapt(model, state)"
        )
    if key is None:
        module = eqx.nn.inference_mode(module)
    if not weights and _is_stateful(module):
        raise ValueError(
            f"model, an Equinox {type(module).__name__}, needs its state; call "
            "adapt(model, state) with both that eqx.nn.make_with_state returned"
        )
    arrays, rest = eqx.partition(module, eqx.is_array)
    flags = tuple(sorted((evaluation(type(module).__call__) | dict(options)).items()))
    return Equinox(arrays, Fixed((weights[0] if weights else None, key)), rest, flags)


def _is_stateful(module: Any) -> bool:
    def is_index(part: Any) -> bool:
        return isinstance(part, eqx.nn.StateIndex)

    return any(map(is_index, jax.tree.leaves(module, is_leaf=is_index)))


def _names(module: Any, prefix: str = "") -> list[str]:
    """Return the names of all layers, "layers.0"."""
    if isinstance(module, eqx.Module):
        parts = [(field.name, getattr(module, field.name)) for field in dataclasses.fields(module)]
    elif isinstance(module, list | tuple):
        parts = [(str(number), part) for number, part in enumerate(module)]
    else:
        return []
    names = []
    for name, part in parts:
        if isinstance(part, eqx.Module) and callable(part):
            names.append(prefix + name)
        names += _names(part, f"{prefix}{name}.")
    return names
