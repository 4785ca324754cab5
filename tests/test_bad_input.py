"""The table of `bad_input_cases`, and that no public function is missing from it."""

import inspect
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import foliax
from foliax import equivariance, fisher, leaf, sharding
from foliax.apps import attack, denoise, explain, generate, ood, transfer
from foliax.flow import brownian as stochastic
from foliax.flow.path import Code, as_code, as_status
from tests.bad_input_cases import CASES, floats

MODULES = {
    "leaf": leaf,
    "equivariance": equivariance,
    "fisher": fisher,
    "sharding": sharding,
    "denoise": denoise,
    "explain": explain,
    "generate": generate,
    "ood": ood,
    "attack": attack,
    "transfer": transfer,
}
ENDED_WELL = (Code.arrived, Code.completed, Code.stalled, Code.out_of_steps)


def name_of(case):
    return f"{case.name}-{case.functions[0]}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_bad_input(case):
    if isinstance(case.expected, str):
        with pytest.raises(ValueError, match=f"(?s){case.expected}"):
            case.call()
        return
    result = case.call()
    case.expected(result)
    for walk in walks_in(result):
        nothing_silent(walk)


def walks_in(result):
    """Return every part of a result that says how it ended."""
    is_walk = lambda part: hasattr(part, "status")  # noqa: E731
    return [part for part in jax.tree.leaves(result, is_leaf=is_walk) if is_walk(part)]


def nothing_silent(walk):
    """Where a status says that all is well, no number is NaN."""
    codes = np.asarray(as_code(walk.status))
    for place in np.ndindex(codes.shape):
        if int(codes[place]) in ENDED_WELL:
            numbers = floats(jax.tree.map(lambda leaf: row_of(leaf, walk, place), walk))  # noqa: B023
            assert not any(np.isnan(number).any() for number in numbers), walk


def row_of(leaf, walk, place):
    """Return what belongs to one lane of many, where a field has an axis for the lanes."""
    leaf, lanes = np.asarray(leaf), as_code(walk.status).shape
    return leaf[place] if lanes and leaf.shape[: len(lanes)] == lanes else leaf


def public_functions():
    """Return all public functions, by the names that the table uses."""
    names = [name for name, value in vars(foliax).items() if inspect.isfunction(value)]
    for prefix, module in MODULES.items():
        names += [
            f"{prefix}.{name}"
            for name in module.__all__
            if inspect.isfunction(getattr(module, name))
        ]
    return {name for name in names if not name.startswith("_")}


def test_every_public_function_is_in_the_table():
    told = {name for case in CASES for name in case.functions}
    assert not public_functions() - told
    classes = {"Box", "Bernoulli", "Gaussian"}  # what they refuse is said by their own functions
    assert not told - public_functions() - classes
    assert "brownian" in stochastic.__all__


def test_the_check_for_silent_nan_can_fail():
    walk = SimpleNamespace(status=as_status(np.array([Code.arrived])), end=np.array([[np.nan]]))
    jax.tree_util.register_pytree_node(
        SimpleNamespace,
        lambda walk: (tuple(vars(walk).values()), tuple(vars(walk))),
        lambda names, values: SimpleNamespace(**dict(zip(names, values, strict=True))),
    )
    with pytest.raises(AssertionError):
        nothing_silent(walk)
