"""The local data matrix G(x, w): the Fisher information with data in the place of parameters.

    G = Σ_i p_i ∇log p_i ∇log p_iᵀ = Jᵀ S J = AᵀA,   J = ∂s/∂x (C × n),   S = diag p − p pᵀ

Everything here goes through the factor A = Lᵀ J with S = L Lᵀ (C − 1 rows of n numbers), or, in
`matvec` and `quadratic`, through products with J alone. Only `matrix` forms n × n.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from foliax._backend.rewrite import logits_of
from foliax._core.checks import (
    as_num_pairs,
    as_point,
    as_tangent,
    check_choice,
    check_chunk,
    check_count,
    check_positive,
)
from foliax._core.compile import compiled
from foliax._core.documented import documented
from foliax._core.jacobian import contrast_jacobian, num_rows, pull_rows, pullback, pushforward
from foliax._core.likelihood import Likelihood
from foliax._core.no_derivative import refused, refused_in_reverse
from foliax._core.types import Chunk, Count, EighMethod, Model
from foliax._linalg import lapack
from foliax._linalg.products import dot
from foliax._linalg.rank import count_rank, singular_values
from foliax.data_matrix.estimate import lanczos
from foliax.likelihood import Categorical, logit_change


class Eigen(NamedTuple):
    """The leading eigenpairs of G, or of F.

    Attributes:
        values: (k,), descending.
        vectors: (k, *x.shape), orthonormal; of F a pytree like the weights, k of each.
    """

    values: Float[Array, " k"]
    vectors: PyTree[Float[Array, "k ..."]]


class Spectrum(NamedTuple):
    """What the eigenvalues of G say at one point.

    Attributes:
        trace: Their sum, in nats per squared unit of x.
        rank: How many count, ≤ C − 1; −1 where the Jacobian is not finite.
        dimension: dim D: how many directions the logits have, saturated or not.
        eigenvalues: (m,), descending, m = min(n, C − 1).
    """

    trace: Float[Array, ""]
    rank: Int[Array, ""]
    dimension: Int[Array, ""]
    eigenvalues: Float[Array, " m"]


@compiled
def factor(
    model: Model, x: ArrayLike, *, likelihood: Likelihood = Categorical(), chunk: Chunk = None
) -> Float[Array, "r n"]:
    """Return A, of C − 1 rows, with G(x, w) = AᵀA.

    Row k is √(p_k t_{k+1} / t_k) (∇s_k − Σ_{j>k} (p_j / t_{k+1}) ∇s_j), with t_k = p_k + … + p_C:
    class k against the mean of the classes after it. Costs one forward pass and C − 1 reverse
    passes; memory is that of `chunk` reverse passes and of the result.

    Args:
        model: Callable pytree from one input to C logits (or log-probabilities).
        x: One input of any shape with n entries, in the model's (normalised) units.

    Returns:
        (C − 1, n), in the larger dtype of x and the logits, at least float32.

    Raises:
        ValueError: If x is not floating point, or the model does not map x to a vector of logits.

    Source: Grementieri & Fioresi 2022, eq. (2) for G; the factor is the stick-breaking one.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> A = foliax.factor(lambda x: jnp.stack([x[0], x[1], 0 * x[0]]), jnp.zeros(2))
        >>> [f"{g:.4f}" for g in (A.T @ A).ravel()]
        ['0.2222', '-0.1111', '-0.1111', '0.2222']
    """
    check_chunk(chunk)
    logits, pull = pullback(model, as_point(x), likelihood)
    weights, rows = likelihood.factor(logits)
    return weights[:, None] * pull_rows(pull, rows, chunk)


@compiled
def matrix(
    model: Model, x: ArrayLike, *, likelihood: Likelihood = Categorical(), chunk: Chunk = None
) -> Float[Array, "n n"]:
    """Return G(x, w) as a dense matrix; the only function that allocates n × n.

    Args:
        x: One input with n entries, in the model's units.

    Returns:
        (n, n), symmetric and positive semidefinite, of rank ≤ C − 1; the axes run over x.ravel().

    Raises:
        ValueError: As `factor`.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> foliax.matrix(lambda x: jnp.stack([x[0], 0 * x[0]]), jnp.zeros(1)).tolist()
        [[0.25]]
    """
    a = factor(model, x, likelihood=likelihood, chunk=chunk)
    return dot(a.T, a)


@compiled
def matvec(
    model: Model, x: ArrayLike, v: ArrayLike, *, likelihood: Likelihood = Categorical()
) -> Float[Array, "..."]:
    """Return G(x, w) v without forming G or its factor.

    G v = Jᵀ L Lᵀ (J v): one forward pass, one product with J and one with Jᵀ, whatever C is.

    Returns:
        G v, of x's shape.

    Raises:
        ValueError: As `factor`; or if v has another shape than x.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> foliax.matvec(model, jnp.zeros(1), jnp.ones(1)).tolist()
        [0.25]
    """
    x = as_point(x)
    v = as_tangent(v, x, name="v")
    logits, pull = pullback(model, x, likelihood)
    weights, rows = likelihood.factor(logits)
    image = weights * dot(rows, pushforward(pull, logits, v.ravel().astype(logits.dtype)))
    return pull(dot(weights * image, rows)).reshape(x.shape)


@documented
def solve(
    model: Model, x: ArrayLike, v: ArrayLike, damping: float | Array,
    *, likelihood: Likelihood = Categorical(), chunk: Chunk = None,
) -> Float[Array, "..."]:  # fmt: skip
    """Return (G(x, w) + damping)⁻¹ v without forming G.

    With the singular values σ_k of the factor and their directions u_k in input space it is
    Σ_k u_k (u_k·v) / (σ_k² + damping) + v_⊥ / damping, v_⊥ the part of v in the kernel. Of all
    moves δ with v·δ = 1 a multiple of it has the least ½ δᵀGδ + ½ damping ‖δ‖²: with v the gradient
    of one logit, it raises that logit and changes the prediction least. Costs a factor and the
    decomposition of its triangle.

    Args:
        damping: Added to the diagonal, > 0, in nats per squared unit of x, as the trace is.

    Returns:
        A vector of x's shape.

    Raises:
        ValueError: As `matvec`; or if damping is not > 0.

    Source: the damped natural direction of Amari 1998, with G in the place of F.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> foliax.solve(model, jnp.zeros(2), jnp.ones(2), 0.25).tolist()
        [2.0, 4.0]
    """
    check_positive(damping, name="damping")
    check_chunk(chunk)
    x = as_point(x)
    return _solve(model, x, as_tangent(v, x, name="v"), damping, likelihood, chunk)


@compiled
def _solve(
    model: Model, x: Array, v: Array, damping: float | Array, likelihood: Likelihood, chunk: Chunk
) -> Float[Array, "..."]:
    a = factor(model, x, likelihood=likelihood, chunk=chunk)
    damping, across = jnp.asarray(damping, a.dtype), v.ravel().astype(a.dtype)
    u, s, _ = lapack.thin_svd(a.T)
    coordinates = dot(u.T, across)
    across = across - dot(u, coordinates)
    across = across - dot(u, dot(u.T, across))  # what the first pass left by rounding
    return (dot(u, coordinates / (s**2 + damping)) + across / damping).reshape(x.shape)


@compiled
def trace(
    model: Model, x: ArrayLike, *, likelihood: Likelihood = Categorical(), chunk: Chunk = None
) -> Float[Array, ""]:
    """Return trace G(x, w) = ‖A‖²_F, in nats per squared input unit.

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: As `factor`.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> float(foliax.trace(lambda x: jnp.stack([x[0], 0 * x[0]]), jnp.zeros(1)))
        0.25
    """
    return jnp.sum(factor(model, x, likelihood=likelihood, chunk=chunk) ** 2)


@compiled
def eigh(
    model: Model, x: ArrayLike, k: Count | None = None, *, method: EighMethod = "factor",
    num_iterations: Count | None = None, likelihood: Likelihood = Categorical(),
    chunk: Chunk = None,
) -> Eigen:  # fmt: skip
    """Return the leading eigenpairs of G(x, w).

    G has at most m = min(n, C − 1) non-zero eigenvalues.

    - `"factor"` (exact; needs m · n numbers): squares of the singular values of A, by QR and the
      SVD of the small triangle. Small ones keep their digits: A Aᵀ would square the condition
      number.
    - `"lanczos"` (needs num_iterations · n numbers): from products G v alone. Right to about eps
      of the largest eigenvalue once num_iterations is well above k, and blind to the multiplicity
      of a repeated one.

    The values have first derivatives by both. Where some meet, the derivative of their sum is
    right, and that of each alone is the one along the eigenvector found, vᵀ(∂G)v; at an eigenvalue
    0 it is 0. By "factor", simple positive ones have second derivatives as well. The vectors have
    none, as they turn at once where values meet: a gradient of theirs is a TypeError, a JVP NaN;
    `project_leaf` has both.

    Args:
        method: "factor" where A fits in memory, "lanczos" where it does not.
        num_iterations: Products G v for "lanczos", k ≤ num_iterations ≤ m; None for 2 k + 20.

    Returns:
        `Eigen(values, vectors)`: (k,) descending and (k, *x.shape) orthonormal, also where
        values vanish.

    Raises:
        ValueError: As `factor`; or if method, k or num_iterations is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> pairs = foliax.eigh(lambda x: jnp.stack([x[0], 0 * x[0]]), jnp.zeros(2))
        >>> pairs.values.tolist(), jnp.abs(pairs.vectors).tolist()
        ([0.25], [[1.0, 0.0]])
    """
    check_choice(method, name="method", choices=("factor", "lanczos"))
    x = as_point(x)
    most = min(x.size, num_rows(model, x, likelihood))
    k = as_num_pairs(k, most, of="min(n, C - 1)")
    if method == "lanczos":
        steps = min(2 * k + 20, most) if num_iterations is None else num_iterations
        check_count(steps, name="num_iterations")
        if not k <= steps <= most:
            raise ValueError(
                f"num_iterations must lie between k = {k} and min(n, C - 1) = {most}, got {steps}"
            )
        values, vectors = lanczos(model, x, k, steps, likelihood)
    else:
        a = factor(model, x, likelihood=likelihood, chunk=chunk)
        u, s, _ = lapack.thin_svd(a.T)
        values, vectors = s[:k] ** 2, u[:, :k].T
    vectors = refused_in_reverse(vectors, "foliax.eigh(…).vectors")
    return Eigen(values, vectors.reshape(k, *x.shape))


@compiled
def rank(
    model: Model, x: ArrayLike, *, rtol: float | None = None,
    likelihood: Likelihood = Categorical(), chunk: Chunk = None,
) -> Int[Array, ""]:  # fmt: skip
    """Return the numerical rank of G(x, w): #{k : λ_k > rtol · λ_1}.

    Counts what G sees in the working precision: a saturated softmax lowers it although the
    distribution D keeps its dimension (for that, see `foliax.dimension`). As of all counts, its
    derivative is a TypeError.

    Args:
        rtol: Least eigenvalue that counts, relative to the greatest; None for (10 · C · eps)²,
            eps of the working dtype: a singular value of the factor counts above 10 · C · eps.

    Returns:
        An int32 scalar, ≤ C − 1 by shape; 0 for G = 0, −1 where the factor is not finite.

    Raises:
        ValueError: As `factor`.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> int(foliax.rank(lambda x: jnp.stack([x[0], x[1], 0 * x[0]]), jnp.zeros(784)))
        2
    """
    a = refused(factor(model, x, likelihood=likelihood, chunk=chunk), "foliax.rank")
    return count_rank(singular_values(a), num_rows=a.shape[0], rtol=rtol)


@compiled
def spectrum(
    model: Model, x: ArrayLike, *, rtol: float | None = None,
    likelihood: Likelihood = Categorical(), chunk: Chunk = None,
) -> Spectrum:  # fmt: skip
    """Return trace, rank and eigenvalues of G, and dim D, from one Jacobian.

    The logit contrasts are differentiated once, K = H J. The factor is a combination of them,
    A = (Lᵀ H⁺) K, as the rows of Lᵀ are contrasts themselves.

    Args:
        rtol: As in `rank` and `foliax.dimension`.

    Returns:
        `Spectrum(trace, rank, dimension, eigenvalues)`. Trace and eigenvalues have derivatives; to
        them rank and dimension are constants.

    Raises:
        ValueError: As `factor`.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> found = foliax.spectrum(lambda x: jnp.stack([x[0], x[1], 0 * x[0]]), jnp.zeros(784))
        >>> int(found.rank), int(found.dimension), [f"{value:.3f}" for value in found.eigenvalues]
        (2, 2, ['0.333', '0.111'])
    """
    check_chunk(chunk)
    logits, k = contrast_jacobian(model, as_point(x), likelihood, chunk)
    contrasts = likelihood.contrasts(logits)  # orthogonal rows
    squares = jnp.sum(contrasts**2, axis=1)
    weights, rows = likelihood.factor(logits)
    mix = weights[:, None] * dot(rows, contrasts.T) / jnp.where(squares > 0, squares, 1)
    a = dot(mix, k)
    values, size = singular_values(a), len(k)
    return Spectrum(
        jnp.sum(a**2),
        count_rank(values, num_rows=size, rtol=rtol),
        count_rank(singular_values(k), num_rows=size, rtol=rtol),
        values**2,
    )


@compiled
def kl(
    model: Model, x: ArrayLike, delta: ArrayLike, *, likelihood: Likelihood = Categorical()
) -> Float[Array, ""]:
    """Return KL(p(·|x + δ) ‖ p(·|x)), in nats, summed without cancellation.

    Equals ½ δᵀGδ + O(‖δ‖³) (`quadratic`); the slides leave out the ½.

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: As `matvec`.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> round(float(foliax.kl(model, jnp.zeros(1), jnp.full(1, 0.1))), 6)
        0.001248
    """
    x = as_point(x)
    delta = as_tangent(delta, x, name="delta")
    logits, _ = pullback(model, x, likelihood)
    moved = logits_of(model, x + delta.astype(x.dtype)).astype(logits.dtype)
    return likelihood.kl(logits, logit_change(likelihood, logits, moved))


@compiled
def quadratic(
    model: Model, x: ArrayLike, delta: ArrayLike, *, likelihood: Likelihood = Categorical()
) -> Float[Array, ""]:
    """Return ½ δᵀ G(x, w) δ, the second-order term of `kl`.

    Returns:
        A scalar ≥ 0, in nats.

    Raises:
        ValueError: As `matvec`.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> round(float(foliax.quadratic(model, jnp.zeros(1), jnp.full(1, 0.1))), 6)
        0.00125
    """
    x = as_point(x)
    delta = as_tangent(delta, x, name="delta")
    logits, pull = pullback(model, x, likelihood)
    weights, rows = likelihood.factor(logits)
    image = weights * dot(rows, pushforward(pull, logits, delta.ravel().astype(logits.dtype)))
    return jnp.sum(image**2) / 2
