"""Which arrays of a model are its weights, and the tangent vectors shaped like them."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from foliax._backend.rewrite import WithOptions
from foliax._core.compile import Captured
from foliax._core.fixed import Fixed
from foliax._core.types import Model


def split(model: Any) -> tuple[PyTree, Callable[[PyTree], Any]]:
    """Return the weights of a model, and what makes the model again from such weights.

    Of an NNX module they are its `nnx.Param` state, BatchNorm statistics being none; of any other
    pytree its inexact arrays, with None in the place of all else. What a function captures is
    none: a caller could not write a vector of its shape.
    """
    if isinstance(model, WithOptions):
        weights, inside = split(model.model)
        return weights, lambda given: replace(model, model=inside(given))
    nnx = _nnx()
    if nnx is not None and isinstance(model, nnx.Module):
        graph, weights, rest = nnx.split(model, nnx.Param, ...)
        return weights, lambda given: nnx.merge(graph, given, rest)
    leaves, treedef = jax.tree.flatten(model, is_leaf=_is_unit)
    chosen = [_is_weight(leaf) for leaf in leaves]
    pairs = list(zip(leaves, chosen, strict=True))
    weights = treedef.unflatten(leaf if own else None for leaf, own in pairs)
    rest = [None if own else leaf for leaf, own in pairs]  # keeps no weights alive

    def rebuild(given: PyTree) -> Any:
        new = iter(jax.tree.leaves(given, is_leaf=_is_variable))
        return treedef.unflatten(
            next(new) if own else leaf for leaf, own in zip(rest, chosen, strict=True)
        )

    return weights, rebuild


def split_model(model: Model) -> tuple[PyTree, Callable[[PyTree], Model]]:
    """Return `split` of a model that has weights, or say that it has none."""
    weights, rebuild = split(model)
    leaves = jax.tree.leaves(weights)
    if not leaves:
        raise ValueError(
            "model must hold weights, floating-point arrays in its pytree, got "
            f"none in {_kind(model)}; pass the module itself, or "
            "jax.tree_util.Partial(apply, params) for a function of (params, x)"
        )
    if not all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves):
        raise ValueError("the weights of model must be real numbers, got complex ones")
    return weights, rebuild


def as_tangent(given: PyTree, weights: PyTree, *, name: str) -> PyTree:
    """Return a vector in the structure of the weights, or say how it differs from them."""
    places = _places(weights)
    if _places(given) != places:
        given = split(given)[0]  # a whole model
    found = _places(given)
    if found != places:
        raise ValueError(
            f"{name} must be a pytree like the weights of model, with arrays at "
            f"{', '.join(places)}, got {', '.join(found) or 'none'}"
        )
    for what, of in (("shapes", jnp.shape), ("dtypes", lambda leaf: jnp.result_type(leaf).name)):
        ours, theirs = ([of(leaf) for leaf in jax.tree.leaves(tree)] for tree in (weights, given))
        if ours != theirs:
            raise ValueError(
                f"{name} must have the {what} of the weights of model, {ours}, got {theirs}"
            )
    return like(weights, given)


def like(tree: PyTree, given: PyTree) -> PyTree:
    """Return the leaves of one pytree in the structure of another."""
    return jax.tree.unflatten(jax.tree.structure(tree), jax.tree.leaves(given))


def _nnx() -> Any:
    """Return `flax.nnx` where something has imported it: else nothing is of it."""
    return sys.modules.get("flax.nnx")


def _is_variable(node: Any) -> bool:
    nnx = _nnx()
    return nnx is not None and isinstance(node, nnx.Variable)


def _is_unit(node: Any) -> bool:
    """Return whether a part of a model is weights, or is none, as a whole."""
    return isinstance(node, Captured | Fixed) or _is_variable(node)


def _is_weight(leaf: Any) -> bool:
    if isinstance(leaf, Captured | Fixed):
        return False
    if _is_variable(leaf):
        return isinstance(leaf, _nnx().Param) and all(map(_is_weight, jax.tree.leaves(leaf)))
    return isinstance(leaf, Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _places(tree: PyTree) -> list[str]:
    """Return where the arrays of a pytree stand, an NNX variable being one."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable)
    return [jax.tree_util.keystr(path) for path, _ in found]


def _kind(model: Any) -> str:
    if isinstance(model, Captured):
        return "a plain function (what it captures does not count)"
    return f"a {type(model).__name__}"
