"""The row space of a wide matrix: an orthonormal basis, and projections on it.

A matrix that is well conditioned, as the contrast Jacobian of a trained network is at most points,
is orthonormalised through its Gram matrix; what is not, or has dependent rows, through QR and SVD,
which cost about ten times as much on a small network.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float

from foliax._linalg import lapack
from foliax._linalg.products import dot, norm
from foliax._linalg.rank import counted

_CERTAIN = 8  # a number counts as nonzero at this many times its rounding error
_UNROLLED = 16  # rows up to which elimination is written out: one loop of LAPACK calls is slower


class RowSpace(eqx.Module):
    """The row space of a wide matrix K.

    Attributes:
        basis: B, (m, n): orthonormal rows, masked ones zero.
        inverse: (m, r), with inverse K = B: so K u = c means B u = inverse c.
        mask: (m,), false where a direction is numerically dependent.
        size: ‖K‖.
    """

    basis: Float[Array, "m n"]
    inverse: Float[Array, "m r"]
    mask: Bool[Array, " m"]
    size: Float[Array, ""]

    @classmethod
    def of(cls, k: Float[Array, "r n"], rtol: float | None = None) -> "RowSpace":
        """Decompose K; a gradient in K flows only through `project_through`.

        With an `rtol` by SVD always: nearly dependent rows may then count as such.
        """
        k = lax.stop_gradient(k)
        if rtol is not None or k.shape[0] > k.shape[1]:
            basis, inverse, mask = _by_svd(k, rtol)
        else:
            basis, inverse, mask = _decomposed(k)
        return cls(basis, inverse, mask, norm(k))

    def project(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        """Project v orthogonally on the row space, K being constant."""
        return dot(dot(self.basis, v), self.basis)

    def project_through(self, k: Float[Array, "r n"], v: Float[Array, " n"]) -> Float[Array, " n"]:
        """Project v as `project` does, with derivatives in K too (at constant rank)."""
        return _project(self.basis, self.inverse, k, v)

    def rounding(self) -> Float[Array, " m"]:
        """Return how far each row of the basis may reach out of the row space, for rounding alone.

        That is eps × its condition, ‖inverse_i‖ ‖K‖: a singular vector of K is that well
        determined, and no better, as K itself is rounded.
        """
        condition = norm(self.inverse, axis=1) * self.size
        return jnp.finfo(self.basis.dtype).eps * jnp.maximum(condition, 1)

    def holds_part(self, v: Float[Array, " n"]) -> Bool[Array, ""]:
        """Return whether the projection of v is more than rounding, in some row of the basis."""
        noise = _CERTAIN * self.rounding() * norm(v)
        return ~jnp.all(jnp.abs(dot(self.basis, v)) <= noise)

    def misses_part(self, v: Float[Array, " n"], rest: Float[Array, " n"]) -> Bool[Array, ""]:
        """Return whether `rest`, what the projection leaves of v, is more than rounding."""
        eps = jnp.finfo(v.dtype).eps
        noise = norm(self.rounding() * dot(self.basis, v)) + eps * norm(v)
        return ~(norm(rest) <= _CERTAIN * noise)

    def through(self, k: Float[Array, "r n"]) -> "RowSpace":
        """Return the same row space with a basis that is differentiable in K.

        `inverse` K equals the basis, and spans the row space of K also where K moves on; the
        singular vectors themselves have no derivative where singular values meet.
        """
        moving = dot(self.inverse, k)
        moved = self.basis + (moving - lax.stop_gradient(moving))
        return RowSpace(moved, self.inverse, self.mask, self.size)

    def moving(self, k: Float[Array, "r n"]) -> "RowSpace":
        """Return the same row space, whose projector has two derivatives in K (at constant rank).

        As `through`, with the basis kept orthonormal while K moves: each round of
        B ↦ (3 − B Bᵀ) B / 2 squares the error.
        """
        inverse = self.inverse
        for _ in range(2):
            basis = dot(inverse, k)
            inverse = 1.5 * inverse - 0.5 * dot(dot(basis, basis.T), inverse)
        basis = dot(inverse, k)
        basis = self.basis + (basis - lax.stop_gradient(basis))
        inverse = self.inverse + (inverse - lax.stop_gradient(inverse))
        return RowSpace(basis, inverse, self.mask, self.size)


def least_norm(basis: Float[Array, "m n"], c: Float[Array, " m"]) -> Float[Array, " n"]:
    """Return the least u with basis u = c, or the nearest to it where the rows are dependent."""
    return _spread(inverse_factor(basis), basis, c)


def orthogonal_part(basis: Float[Array, "m n"], v: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return the part of v that is orthogonal to rows that need not be orthonormal."""
    half = inverse_factor(basis)
    for _ in range(2):  # the second round removes the rounding of the first
        v = v - _spread(half, basis, dot(basis, v))
    return v


def inverse_factor(
    basis: Float[Array, "m n"], ridge: float | Float[Array, ""] = 0
) -> Float[Array, "m m"]:
    """Return M with M (B Bᵀ + ridge) Mᵀ = 1; some ridge there is always, for dependent rows."""
    eye = jnp.eye(len(basis), dtype=basis.dtype)
    return _inverse_cholesky(dot(basis, basis.T) + (ridge + jnp.finfo(basis.dtype).eps) * eye)


def _spread(half: Float[Array, "m m"], basis: Array, c: Float[Array, " m"]) -> Float[Array, " n"]:
    return dot(dot(half.T, dot(half, c)), basis)


@jax.custom_jvp
def _project(
    basis: Float[Array, "m n"],
    inverse: Float[Array, "m r"],
    k: Float[Array, "r n"],
    v: Float[Array, " n"],
) -> Float[Array, " n"]:
    del inverse, k
    return dot(dot(basis, v), basis)


@_project.defjvp
def _project_jvp(primals, tangents):
    """Differentiate Bᵀ (B Bᵀ)⁻¹ B v, which stays the projection when B is no more orthonormal."""
    basis, inverse, k, v = primals

    def project(k: Array, v: Array) -> Array:
        moving = basis + (dot(inverse, k) - lax.stop_gradient(dot(inverse, k)))
        return least_norm(moving, dot(moving, v))

    _, tangent = jax.jvp(project, (k, v), tangents[2:])
    return _project(*primals), tangent


# --- decompositions ----------------------------------------------------------------------------

Parts = tuple[Float[Array, "m n"], Float[Array, "m r"], Bool[Array, " m"]]


@custom_vmap
def _decomposed(k: Float[Array, "r n"]) -> Parts:
    parts, good = _by_gram(k)
    return lax.cond(good, lambda: parts, lambda: _by_svd(k))


@_decomposed.def_vmap
def _many_decomposed(axis_size: int, mapped: list[bool], ks: Float[Array, "b r n"]):
    """Branch once for the batch: under vmap, cond becomes select and both branches run."""
    del axis_size, mapped  # the only argument is mapped, or there were no rule to ask for
    parts, good = jax.vmap(_by_gram)(ks)
    found = lax.cond(jnp.all(good), lambda: parts, lambda: jax.vmap(_by_svd)(ks))
    return found, (True, True, True)


def _by_gram(k: Float[Array, "r n"]) -> tuple[Parts, Bool[Array, ""]]:
    """Orthonormalise by Cholesky, then once more toward the nearest orthonormal rows.

    The second step squares the error of the first, e ↦ ¾ e²: it is good where e² is below the
    resolution, and then no singular value is below the fourth root of the resolution.
    """
    gram = dot(k, k.T)
    inverse = _inverse_cholesky(gram)
    basis = dot(inverse, k)
    overlap = dot(basis, basis.T)
    eye = jnp.eye(len(k), dtype=k.dtype)
    nearer = 1.5 * eye - 0.5 * overlap
    eps = jnp.finfo(k.dtype).eps
    # Compared one by one: a maximum over NaN need not be NaN in a compiled program.
    good = jnp.all(jnp.abs(overlap - eye) <= jnp.sqrt(eps))
    return (dot(nearer, basis), dot(nearer, inverse), jnp.ones(len(k), bool)), good


def _inverse_cholesky(gram: Float[Array, "r r"]) -> Float[Array, "r r"]:
    """Return L⁻¹ with L Lᵀ = gram; not finite where there is none."""
    size = len(gram)
    if size > _UNROLLED:
        return lapack.inverse_cholesky(gram)
    eye = jnp.eye(size, dtype=gram.dtype)
    # Elimination below the diagonal turns (gram | 1) into (diag(d) Lᵀ… | M), L⁻¹ = d^(−½) M.
    rows = jnp.concatenate([gram, eye], axis=1)
    for i in range(size - 1):
        factors = jnp.where(jnp.arange(size) > i, rows[:, i] / rows[i, i], 0)
        rows = rows - factors[:, None] * rows[i]
    return rows[:, size:] * lax.rsqrt(jnp.diagonal(rows))[:, None]


def _by_svd(k: Float[Array, "r n"], rtol: float | None = None) -> Parts:
    """Orthonormalise through QR and the SVD of the triangle.

    Unpivoted QR alone would keep spurious directions for dependent rows, and a full frame for
    K = 0; here they are masked.
    """
    q, r = lapack.qr(k.T)
    u, s, vt = lapack.svd(r)
    mask = counted(s, num_rows=k.shape[0], rtol=rtol)
    # A NaN is not a zero direction: it must not be masked.
    keep = (mask | ~jnp.all(jnp.isfinite(k)))[:, None]
    basis = jnp.where(keep, dot(q, u).T, 0)
    inverse = jnp.where(keep, vt / jnp.where(mask, s, 1)[:, None], 0)
    return basis, inverse, mask
