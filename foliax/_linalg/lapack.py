"""Decompositions by LAPACK, on CPUs one matrix at a time.

jaxlib hands a batch of LAPACK calls to the threads of the very pool that it runs in, and waits for
them. Two batches that do not depend on each other may so take all threads of a small pool, and each
waits for ever (observed on two cores, beside convolutions). Matrices here are small, and a loop
over them costs next to nothing beside the Jacobians that they come from.

A loop has no reverse derivative, and the stock rules of derivatives decompose in batches again: the
rules here are the same formulas, written in products of what was decomposed one by one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

_HIGHEST = jax.lax.Precision.HIGHEST


def _dot(*factors: Array) -> Array:
    product = factors[0]
    for factor in factors[1:]:
        product = jnp.matmul(product, factor, precision=_HIGHEST)
    return product


def _one_by_one(stock: Callable[..., Any]) -> Any:
    """Return a decomposition whose batch is a loop on CPUs; it needs a `defjvp`."""
    alone = jax.custom_batching.sequential_vmap(stock)

    @jax.custom_jvp
    def decomposed(*args: Array) -> Any:
        return alone(*args) if jax.default_backend() == "cpu" else stock(*args)

    return decomposed


_qr = _one_by_one(lambda a: tuple(jnp.linalg.qr(a)))
_triangle = _one_by_one(lambda a: jnp.linalg.qr(a, mode="r"))
_svd = _one_by_one(lambda a: tuple(jnp.linalg.svd(a, full_matrices=False)))
_values = _one_by_one(lambda a: jnp.linalg.svd(a, compute_uv=False))
_eigh = _one_by_one(lambda a: tuple(jnp.linalg.eigh(a)))
_inverse = _one_by_one(jnp.linalg.inv)
_inverse_upper = _one_by_one(lambda r: solve_triangular(r, jnp.eye(len(r), dtype=r.dtype)))
_solve = _one_by_one(jnp.linalg.solve)
_inverse_cholesky = _one_by_one(
    lambda a: solve_triangular(jnp.linalg.cholesky(a), jnp.eye(len(a), dtype=a.dtype), lower=True)
)


def qr(a: Float[Array, "n r"]) -> tuple[Float[Array, "n m"], Float[Array, "m r"]]:
    """Return Q and R, m = min(n, r)."""
    return _qr(a)


def triangle(a: Float[Array, "n r"]) -> Float[Array, "m r"]:
    """Return R of QR alone."""
    return _triangle(a)


def svd(
    a: Float[Array, "n r"],
) -> tuple[Float[Array, "n m"], Float[Array, " m"], Float[Array, "m r"]]:
    """Return U, the singular values from the largest on, and Vᵀ."""
    return _svd(a)


def values(a: Float[Array, "n r"]) -> Float[Array, " m"]:
    """Return the singular values, from the largest on."""
    return _values(a)


def thin_svd(
    a: Float[Array, "n r"],
) -> tuple[Float[Array, "n m"], Float[Array, " m"], Float[Array, "m r"]]:
    """Return the SVD of a tall matrix through its triangle; differentiable at any rank."""
    return _thin_svd(a)


def thin_values(a: Float[Array, "n r"]) -> Float[Array, " m"]:
    """Return the singular values of a tall matrix through its triangle, as `thin_svd`."""
    return _thin_values(a)


def eigh(a: Float[Array, "n n"]) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """Return the eigenvalues of a symmetric matrix, from the least on, and its eigenvectors."""
    return _eigh(a)


def solve(a: Float[Array, "n n"], b: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return a⁻¹ b."""
    return _solve(a, b)


def inverse_upper(r: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Return R⁻¹ of an upper triangle."""
    return _inverse_upper(r)


def inverse_cholesky(a: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Return L⁻¹ with L Lᵀ = a; not finite where there is none."""
    return _inverse_cholesky(a)


def pinv(a: Float[Array, "n r"]) -> Float[Array, "r n"]:
    """Return the pseudo-inverse; singular values up to 10 max(n, r) eps of the largest are zero."""
    return _pinv(a)


# --- derivatives -------------------------------------------------------------------------------


@_qr.defjvp
def _(primals: Any, tangents: Any) -> Any:
    """Differentiate A = Q R: dQ = Q Ω + (1 − Q Qᵀ) dA R⁻¹ with Ω antisymmetric."""
    (a,), (da,) = primals, tangents
    q, r = _qr(a)
    size = len(r)
    scaled = _dot(da[:, :size], _inverse_upper(r[:, :size]))
    inner = _dot(q.T, scaled)
    lower = jnp.tril(inner, -1)
    turn = lower - lower.T
    dq = scaled - _dot(q, inner - turn)
    return (q, r), (dq, _dot(q.T, da) - _dot(turn, r))


@_triangle.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (_, r), (_, dr) = jax.jvp(_qr, primals, tangents)
    return r, dr


@_svd.defjvp
def _(primals: Any, tangents: Any) -> Any:
    u, s, vt = _svd(*primals)
    return (u, s, vt), _svd_tangents(u, s, vt, *tangents)


def _svd_tangents(u: Array, s: Array, vt: Array, da: Array) -> tuple[Array, Array, Array]:
    """Differentiate A = U diag(s) Vᵀ.

    Where values meet, their vectors have no derivative within the space that they span, and take
    none here: what does not depend on their choice there has the right one all the same.
    """
    inner = _dot(u.T, da, vt.T)
    over = _over((s + s[:, None]) * (s - s[:, None]))
    du = _dot(u, over * (inner * s + (inner * s).T))
    dv = _dot(vt.T, over * (s[:, None] * inner + (s[:, None] * inner).T))
    rows, columns = da.shape
    if rows > columns:
        outer = _dot(da, vt.T)
        du = du + (outer - _dot(u, u.T, outer)) * _over(s)
    if columns > rows:
        outer = _dot(da.T, u)
        dv = dv + (outer - _dot(vt.T, vt, outer)) * _over(s)
    return du, jnp.diagonal(inner), dv.T


def _over(gaps: Array) -> Array:
    """Return 1 / gaps, and 0 where there is none."""
    return jnp.where(gaps == 0, 0, 1 / jnp.where(gaps == 0, 1, gaps))


@_values.defjvp
def _(primals: Any, tangents: Any) -> Any:
    u, _, vt = _svd(*primals)
    return _values(*primals), jnp.sum(u * _dot(tangents[0], vt.T), axis=0)


@jax.custom_jvp
def _thin_svd(a: Float[Array, "n r"]) -> Any:
    q, r = _qr(a)
    u, s, vt = _svd(r)
    return _dot(q, u), s, vt


@_thin_svd.defjvp
def _(primals: Any, tangents: Any) -> Any:
    u, s, vt = _thin_svd(*primals)
    return (u, s, vt), _svd_tangents(u, s, vt, *tangents)


@jax.custom_jvp
def _thin_values(a: Float[Array, "n r"]) -> Any:
    return _values(_triangle(a))


@_thin_values.defjvp
def _(primals: Any, tangents: Any) -> Any:
    u, _, vt = _thin_svd(*primals)
    return _thin_values(*primals), jnp.sum(u * _dot(tangents[0], vt.T), axis=0)


@_eigh.defjvp
def _(primals: Any, tangents: Any) -> Any:
    """Differentiate A V = V diag(w); where values meet as `_svd_tangents`."""
    (a,), (da,) = primals, tangents
    w, v = _eigh(a)
    inner = _dot(v.T, (da + da.T) / 2, v)
    return (w, v), (jnp.diagonal(inner), _dot(v, _over(w - w[:, None]) * inner))


@_inverse.defjvp
def _(primals: Any, tangents: Any) -> Any:
    found = _inverse(*primals)
    return found, -_dot(found, tangents[0], found)


@_inverse_upper.defjvp
def _(primals: Any, tangents: Any) -> Any:
    found = _inverse_upper(*primals)
    return found, -_dot(found, jnp.triu(tangents[0]), found)


@_solve.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (a, b), (da, db) = primals, tangents
    found = _solve(a, b)
    return found, _dot(_inverse(a), db - _dot(da, found))


@_inverse_cholesky.defjvp
def _(primals: Any, tangents: Any) -> Any:
    """Differentiate M = L⁻¹: dM = −Φ(M dA Mᵀ) M, Φ the lower triangle with half its diagonal."""
    (a,), (da,) = primals, tangents
    found = _inverse_cholesky(a)
    inner = _dot(found, (da + da.T) / 2, found.T)
    return found, -_dot(jnp.tril(inner) - jnp.diag(jnp.diagonal(inner) / 2), found)


@jax.custom_jvp
def _pinv(a: Float[Array, "n r"]) -> Float[Array, "r n"]:
    u, s, vt = _svd(a)
    kept = s > 10 * max(a.shape) * jnp.finfo(a.dtype).eps * jnp.max(s)
    return _dot(vt.T * jnp.where(kept, 1 / jnp.where(kept, s, 1), 0), u.T)


@_pinv.defjvp
def _(primals: Any, tangents: Any) -> Any:
    """Differentiate at constant rank, with P the pseudo-inverse.

    dP = −P dA P + P Pᵀ dAᵀ (1 − A P) + (1 − P A) dAᵀ Pᵀ P.

    Source: Golub & Pereyra 1973, SIAM Journal on Numerical Analysis 10(2).
    """
    (a,), (da,) = primals, tangents
    p = _pinv(a)
    left = _dot(p, p.T, da.T)
    right = _dot(da.T, p.T, p)
    inner = -_dot(p, da, p)
    return p, inner + left - _dot(left, a, p) + right - _dot(p, a, right)
