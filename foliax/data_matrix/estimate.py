"""G by sampling and by Krylov spaces: for networks too large for C − 1 reverse passes."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from foliax._core.checks import as_point, check_chunk, check_count, check_key
from foliax._core.compile import compiled
from foliax._core.jacobian import logits_struct, pull_rows, pullback, pushforward, working_dtype
from foliax._core.likelihood import Likelihood
from foliax._core.no_derivative import refused
from foliax._core.types import Chunk, Count, Model
from foliax._linalg import lapack
from foliax._linalg.products import dot, norm
from foliax.likelihood import Categorical

__all__ = ["Estimate", "trace_estimate"]


class Estimate(NamedTuple):
    """A sampled number.

    Attributes:
        value: The mean over the samples, unbiased.
        standard_error: Its estimated standard deviation.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]


@compiled
def trace_estimate(
    model: Model, x: ArrayLike, key: PRNGKeyArray | Array, *, num_samples: Count = 32,
    likelihood: Likelihood = Categorical(), chunk: Chunk = None,
) -> Estimate:  # fmt: skip
    """Estimate trace G(x, w) from random combinations of the rows of the factor.

    trace G = E ‖Aᵀz‖² for random signs z (Hutchinson): one reverse pass a sample, whatever C is.

    Args:
        key: A `jax.random` key.
        num_samples: How many, ≥ 2.
        chunk: How many samples are pulled back at once; None for all.

    Returns:
        `Estimate(value, standard_error)`.

    Raises:
        ValueError: If x or the model's output is not what it should be, or num_samples < 2.

    Source: Hutchinson 1989.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> estimate = foliax.trace_estimate(model, jnp.zeros(1), jax.random.key(0))
        >>> float(estimate.value), float(estimate.standard_error)
        (0.25, 0.0)
    """
    check_count(num_samples, name="num_samples")
    if num_samples < 2:
        raise ValueError("num_samples must be at least 2: one sample has no standard error")
    check_chunk(chunk)
    check_key(key)
    logits, pull = pullback(model, as_point(x), likelihood)
    weights, rows = likelihood.factor(logits)
    signs = jax.random.rademacher(key, (num_samples, weights.size), dtype=logits.dtype)
    gradients = pull_rows(pull, dot(signs * weights, rows), chunk)
    samples = jnp.sum(gradients**2, axis=1)
    mean = jnp.mean(samples)
    error = norm(samples - mean) / math.sqrt(num_samples * (num_samples - 1))
    return Estimate(mean, error)


@eqx.filter_custom_jvp
def lanczos(
    model: Model, x: Float[Array, "..."], k: int, num_iterations: int, likelihood: Likelihood
) -> tuple[Float[Array, " k"], Float[Array, "k n"]]:
    """Return the k leading eigenpairs of G from `num_iterations` products G v.

    Lanczos with full reorthogonalisation, in num_iterations × n numbers of memory. The start is
    G times a fixed pseudo-random vector: ker G, most of the space, stays out of the Krylov space.
    """
    from matfree import decomp

    push, back = _products(model, x, likelihood)
    dtype = working_dtype(x, logits_struct(model, x, likelihood))

    def product(v: Array) -> Array:
        return back(push(v))

    seed, jitter_seed = jax.random.split(jax.random.key(0))
    start = product(jax.random.normal(seed, (x.size,), dtype))
    scale = jnp.max(jnp.abs(start))
    scale = jnp.where(scale > 0, scale, 1)
    start = jnp.where(jnp.any(start != 0), start / scale, 1)  # its norm would underflow
    # Where rank G < num_iterations the Krylov space is exhausted early and Lanczos divides by
    # zero. A diagonal at rounding level keeps it going, and as much of a start outside of what G
    # spans, for an eigenvector along one axis; eigenvalues due to them alone are set to zero.
    floor = 4 * jnp.finfo(start.dtype).eps
    jitter = floor * jax.random.uniform(jitter_seed, start.shape, start.dtype)
    start = start + jitter
    tridiagonalise = decomp.tridiag_sym(num_iterations, custom_vjp=False)
    with jax.default_matmul_precision("highest"):  # its own products; the model's keep theirs
        basis, h, *_ = tridiagonalise(lambda v: product(v) / scale + jitter * v, start)
    values, vectors = lapack.eigh(jnp.asarray(h))  # in the Krylov basis
    leading = jnp.argsort(-values)[:k]
    values = values[leading]
    return jnp.where(values <= 4 * floor, 0, scale * values), dot(
        vectors[:, leading].T, jnp.asarray(basis)
    )


@lanczos.def_jvp
def _(primals: Any, tangents: Any) -> Any:
    """Differentiate λ = ‖Lᵀ J v‖² at fixed v, an eigenvector: to first order it moves nothing.

    The iterations themselves are not differentiated: they divide by what may vanish.
    """
    model, x, k, num_iterations, likelihood = primals
    values, vectors = lanczos(model, x, k, num_iterations, likelihood)
    fixed = refused(vectors, 'the gradient of foliax.eigh(…, method="lanczos")')

    parts = tuple(part for place, part in enumerate(primals) if place not in (2, 3))
    changes = tuple(part for place, part in enumerate(tangents) if place not in (2, 3))
    moving = jax.tree.map(
        lambda change, part: None if change is None else part,
        changes, parts, is_leaf=lambda leaf: leaf is None,
    )  # fmt: skip

    def squared(moving: Any) -> Float[Array, " k"]:
        push, _ = _products(*eqx.combine(moving, parts))
        return jnp.sum(jax.vmap(push)(fixed) ** 2, axis=1)

    _, change = jax.jvp(squared, (moving,), (changes,))
    return (values, vectors), (change, jnp.broadcast_to(jnp.nan * jnp.sum(change), vectors.shape))


def _products(
    model: Model, x: Float[Array, "..."], likelihood: Likelihood
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Return v ↦ Lᵀ J v and its transpose: G v is one after the other."""
    logits, pull = pullback(model, x, likelihood)
    weights, rows = likelihood.factor(logits)

    def push(v: Float[Array, " n"]) -> Float[Array, " r"]:
        return weights * dot(rows, pushforward(pull, logits, v))

    def back(u: Float[Array, " r"]) -> Float[Array, " n"]:
        return pull(dot(weights * u, rows))

    return push, back
