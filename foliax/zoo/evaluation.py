"""How good a network is, and its trace and rank of G, over many images in blocks of one size."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._backend.rewrite import logits_of
from foliax.batch import sharding
from foliax.data_matrix import spectrum
from foliax.zoo.train_step import cross_entropy

_PREDICT_BLOCK = 256
_OBSERVE_NUMBERS = 2**16  # of the factors in memory at once, which bounds the block
_OBSERVE_BLOCKS = (8, 64)  # the smallest and the largest: beyond, nothing is gained


def accuracy(
    model: Callable, images: ArrayLike, labels: ArrayLike, *, mesh: Mesh | None = None
) -> float:
    """Return the share of images whose greatest logit is that of the label.

    Args:
        model: A pytree callable on one input (wrap a plain function in `jax.tree_util.Partial`).
        images: (N, H, W, channels), normalised.
        labels: (N,) integers.
        mesh: Devices that share the images, see `foliax.sharding`; None for one.

    Returns:
        A number in [0, 1].

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> identity = jax.tree_util.Partial(lambda x: x)
        >>> accuracy(identity, jnp.array([[1.0, 0.0], [2.0, 3.0]]), jnp.array([0, 0]))
        0.5
    """
    predicted = in_blocks(_predict, model, _PREDICT_BLOCK, np.asarray(images), mesh=mesh)
    return float(np.mean(predicted == np.asarray(labels)))


def observe(
    model: Callable,
    images: Float[np.ndarray, "N ..."],
    labels: Int[np.ndarray, " N"],
    *,
    mesh: Mesh | None = None,
) -> tuple[Float[np.ndarray, " N"], Int[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Return trace and rank of G(x, w), and the loss, at every image."""
    logits = jax.eval_shape(model, images[0])
    least, most = _OBSERVE_BLOCKS
    block = _OBSERVE_NUMBERS // (math.prod(images.shape[1:]) * len(logits))
    return in_blocks(_observe, model, min(max(block, least), most), images, labels, mesh=mesh)


def in_blocks(
    function: Callable, model: Callable, block: int, *arrays: np.ndarray, mesh: Mesh | None
) -> Any:
    """Apply a compiled function block by block, all of one size so that it compiles once.

    Args:
        function: Of the model and stacked inputs, to results row by row.
        model: The model.
        block: The most rows at once, of each device.
        *arrays: Of one length N, not 0.
        mesh: The devices; None for one.

    Returns:
        What the function returns for N rows, as NumPy's.
    """
    run = partial(function, model)
    if mesh is not None:
        run, block = partial(sharding.spread, function, model, mesh=mesh), block * mesh.size
    results = [sharding.gather(run(*parts)) for parts in _blocks(block, *arrays)]
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *results)
    return jax.tree.map(lambda values: values[: len(arrays[0])], joined)


def _blocks(block: int, *arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    num = len(arrays[0])
    count = -(-num // block)
    # The last block is filled up from the start again; `in_blocks` cuts the surplus off.
    for index in np.resize(np.arange(num), (count, -(-num // count))):
        yield tuple(array[index] for array in arrays)


@jax.jit
def _observe(model: Callable, images: Array, labels: Array) -> tuple[Array, Array, Array]:
    def one(x: Array, y: Array) -> tuple[Array, Array, Array]:
        found = spectrum(model, x)
        return found.trace, found.rank, cross_entropy(logits_of(model, x), y)

    return jax.vmap(one)(images, labels)


@jax.jit
def _predict(model: Callable, images: Array) -> Int[Array, " b"]:
    return jnp.argmax(jax.vmap(partial(logits_of, model))(images), axis=-1)
