"""The mean of G over data, from one Jacobian an input and without n × n numbers.

The factors of all inputs, stacked and divided by √N, are a factor of the mean. What is kept of them
is a sketch of few rows: each block of inputs is joined to it, and the leading singular pairs stay.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._core.checks import as_num_pairs, as_point, check_chunk, check_count
from foliax._core.compile import compiled
from foliax._core.likelihood import Likelihood
from foliax._core.no_derivative import refused
from foliax._core.types import Chunk, Count, Model
from foliax._linalg import lapack
from foliax.data_matrix.matrix import factor
from foliax.likelihood import Categorical

__all__ = ["Average", "average"]


class Average(NamedTuple):
    """The mean of G over inputs, by its leading eigenpairs.

    Attributes:
        trace: Its trace, in nats per squared unit of x; exact.
        values: (k,) eigenvalues, descending. Each is below that of the mean, by `error` at most.
        vectors: (k, *x.shape), orthonormal.
        error: What the rows left out could add to an eigenvalue; 0 where `size` held all.
        num_inputs: N.
    """

    trace: Float[Array, ""]
    values: Float[Array, " k"]
    vectors: Float[Array, "k ..."]
    error: Float[Array, ""]
    num_inputs: Int[Array, ""]


class _Sketch(NamedTuple):
    rows: Float[Array, "s n"]  # of a factor of the sum of G
    trace: Float[Array, ""]
    error: Float[Array, ""]


@compiled
def average(
    model: Model, xs: ArrayLike, k: Count | None = None, *, size: Count | None = None,
    start: Average | None = None, block: Count = 32, likelihood: Likelihood = Categorical(),
    chunk: Chunk = None,
) -> Average:  # fmt: skip
    """Return the mean of G over inputs, by its leading eigenpairs.

    Ḡ = (1/N) Σ G(x_i, w): the directions to which the model reacts over all data. It is an average
    gradient outer product (AGOP) of the logits, weighted by the softmax. Unlike one G it has rank
    n in general. A block of inputs at a time, its factors join a sketch of `size` rows, of which
    the leading singular pairs stay; what is left out bounds the error (a mean of rank `size` or
    less is kept to rounding). A data set in parts goes through `start`, part by part. Derivatives
    are a TypeError: average `foliax.eigh` of single inputs instead.

    Args:
        xs: (N, *shape of one input), N ≥ 1, in the model's (normalised) units.
        k: How many pairs, 1 ≤ k ≤ size; None for all of the sketch.
        size: Rows of the sketch, up to n; None for 2 k + 50 (without k for 200), n at most.
        start: What was returned for the inputs before these, with all of its sketch (k None).
        block: How many inputs at once: memory is block · (C − 1) + size rows of n numbers, and the
            fewer blocks, the smaller the error.

    Returns:
        An `Average` over these inputs and those before.

    Raises:
        ValueError: If xs is not a stack of inputs, or k, size or block is out of range.

    Source: Radhakrishnan et al., *Mechanism for feature learning in neural networks and
    backpropagation-free machine learning models*, Science 2024 (AGOP); Liberty, *Simple and
    deterministic matrix sketching*, KDD 2013.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0] * x[1], 0 * x[0]])
        >>> mean = foliax.average(model, jnp.array([[2.0, 0.0], [0.0, 1.0]]))
        >>> float(mean.trace), mean.values.tolist()  # of diag(0, 1) and diag(1/4, 0)
        (0.625, [0.5, 0.125])
    """
    check_chunk(chunk)
    check_count(block, name="block")
    xs = _stacked(xs)
    n = xs[0].size
    if size is not None:
        check_count(size, name="size")
    size = min(n, size or (200 if k is None else 2 * k + 50))
    k = as_num_pairs(k, size, of="size")
    sketch, before = _begun(model, xs, start, size, likelihood)

    def join(sketch: _Sketch, part: tuple[Array, Array]) -> tuple[_Sketch, None]:
        inputs, counted = part
        factors = jax.vmap(lambda x: factor(model, x, likelihood=likelihood, chunk=chunk))(inputs)
        added = jnp.where(counted[:, None, None], factors, 0).reshape(-1, n)
        return _joined(sketch, added), None

    count, block = len(xs), min(block, len(xs))
    blocks = -(-count // block)
    places = jnp.arange(blocks * block).reshape(blocks, block)
    parts = xs[jnp.minimum(places, count - 1)], places < count
    sketch, _ = lax.scan(join, sketch, parts)
    return _result(sketch, before + count, k, xs.shape[1:])


def _stacked(xs: ArrayLike) -> Float[Array, "N ..."]:
    xs = jnp.asarray(xs)
    if xs.ndim < 1 or not len(xs):
        raise ValueError(
            "xs must be a stack of at least one input, (N, *shape of one input), got shape "
            f"{xs.shape}"
        )
    as_point(xs[0], name="xs")
    return xs


def _begun(
    model: Model, xs: Array, start: Average | None, size: int, likelihood: Likelihood
) -> tuple[_Sketch, Array]:
    """Return the sketch of what came before, and of how many inputs it is."""
    dtype = jax.eval_shape(lambda x: factor(model, x, likelihood=likelihood), xs[0]).dtype
    zero = jnp.zeros((), dtype)
    if start is None:
        return _Sketch(jnp.zeros((size, xs[0].size), dtype), zero, zero), jnp.zeros((), jnp.int32)
    shape = (size, *xs.shape[1:])
    if start.vectors.shape != shape:
        raise ValueError(
            f"start must hold all {size} pairs of its sketch, vectors of shape {shape}, got "
            f"{start.vectors.shape}; call average with k=None and the same size"
        )
    count = start.num_inputs.astype(dtype)
    scale = jnp.sqrt(start.values * count)[:, None]
    rows = scale * start.vectors.reshape(size, -1)
    return _Sketch(rows, start.trace * count, start.error * count), start.num_inputs


def _joined(sketch: _Sketch, added: Float[Array, "r n"]) -> _Sketch:
    """Return the leading singular pairs of both, as many as the sketch has rows."""
    size = len(sketch.rows)
    both = jnp.concatenate([sketch.rows, refused(added, "foliax.average")])
    u, s, _ = lapack.thin_svd(both.T)
    left_out = s[size] ** 2 if len(s) > size else jnp.zeros_like(sketch.error)
    return _Sketch(
        s[:size, None] * u[:, :size].T, sketch.trace + jnp.sum(added**2), sketch.error + left_out
    )


def _result(sketch: _Sketch, count: Array, k: int, shape: tuple[int, ...]) -> Average:
    """Return the eigenpairs of the mean: the rows are orthogonal, the longest first."""
    u, s, _ = lapack.thin_svd(sketch.rows.T)
    vectors = u[:, :k].T.reshape(k, *shape)
    total = count.astype(s.dtype)
    return Average(sketch.trace / total, s[:k] ** 2 / total, vectors, sketch.error / total, count)
