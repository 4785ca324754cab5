"""The distribution D = (ker G)^⊥ and its complement: frames, dimensions, projections.

D_x = span{∇log p_i} is the row space of the centred logit Jacobian K = H J, H the Helmert
contrasts. K does not contain p: a softmax that is one-hot to rounding kills G numerically, not D.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from foliax._inputs import (
    as_point,
    as_tangent,
    check_chunk,
    dot,
    pull_rows,
    pullback,
)
from foliax._types import Count, Model
from foliax.data_matrix import count_rank, counted, singular_values
from foliax.likelihood import Categorical, Likelihood

__all__ = ["Frame", "RowSpace", "dimension", "frame", "project_kernel", "project_leaf"]


class Frame(NamedTuple):
    """An orthonormal frame of D at one point.

    Attributes:
        vectors: (m, *x.shape) with m = min(n, C − 1); rows that the mask drops are zero.
        mask: (m,), true for the directions that are numerically there.
    """

    vectors: Float[Array, "m ..."]
    mask: Bool[Array, " m"]


class RowSpace(eqx.Module):
    """The row space of a wide matrix K = V diag(s) B, from QR and the SVD of the triangle.

    Unpivoted QR alone would keep spurious directions for dependent rows, and a whole frame for
    K = 0; here they are masked.

    Attributes:
        basis: B, (m, n): orthonormal rows, masked ones zero.
        inverse: diag(1/s) Vᵀ, (m, r): K u = c means B u = inverse c.
        mask: (m,).
    """

    basis: Float[Array, "m n"]
    inverse: Float[Array, "m r"]
    mask: Bool[Array, " m"]

    @classmethod
    def of(cls, k: Float[Array, "r n"], rtol: float | None = None) -> "RowSpace":
        """Decompose K; a gradient in K flows only through `project_through`."""
        k = lax.stop_gradient(k)
        q, r = jnp.linalg.qr(k.T)
        u, s, vt = jnp.linalg.svd(r, full_matrices=False)
        mask = counted(s, num_rows=k.shape[0], rtol=rtol)
        # A NaN is no dead direction: it must not be masked away.
        keep = (mask | ~jnp.all(jnp.isfinite(k)))[:, None]
        basis = jnp.where(keep, dot(q, u).T, 0)
        inverse = jnp.where(keep, vt / jnp.where(mask, s, 1)[:, None], 0)
        return cls(basis, inverse, mask)

    def project(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        """Project v orthogonally on the row space, K being held fixed."""
        return dot(dot(self.basis, v), self.basis)

    def project_through(self, k: Float[Array, "r n"], v: Float[Array, " n"]) -> Float[Array, " n"]:
        """Project v as `project` does, with derivatives in K too (at constant rank)."""
        return _project(self.basis, self.inverse, k, v)

    def through(self, k: Float[Array, "r n"]) -> "RowSpace":
        """Return the same row space with a basis that is differentiable in K.

        `inverse` K equals the basis, and spans the row space of K also where K moves on; the
        singular vectors themselves have no derivative where singular values meet.
        """
        moving = dot(self.inverse, k)
        return RowSpace(self.basis + (moving - lax.stop_gradient(moving)), self.inverse, self.mask)


def least_norm(basis: Float[Array, "m n"], c: Float[Array, " m"]) -> Float[Array, " n"]:
    """Return the least u with basis u = c, or the nearest to it where the rows are dependent."""
    ridge = jnp.finfo(basis.dtype).eps * jnp.eye(basis.shape[0], dtype=basis.dtype)
    gram = cho_factor(dot(basis, basis.T) + ridge)
    return dot(cho_solve(gram, c), basis)


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
        moving = RowSpace(basis, inverse, jnp.ones(len(basis), bool)).through(k).basis
        return least_norm(moving, dot(moving, v))

    _, tangent = jax.jvp(project, (k, v), tangents[2:])
    return _project(*primals), tangent


def contrast_jacobian(
    model: Model, x: Float[Array, "..."], likelihood: Likelihood, chunk: Count | None = None
) -> tuple[Float[Array, " c"], Float[Array, "r n"]]:
    """Return the logits and K = H J at x, from one forward and C − 1 reverse passes."""
    logits, pull = pullback(model, x, likelihood)
    return logits, pull_rows(pull, likelihood.contrasts(logits), chunk)


def frame(
    model: Model,
    x: ArrayLike,
    *,
    rtol: float | None = None,
    likelihood: Likelihood = Categorical(),  # noqa: B008
    chunk: Count | None = None,
) -> Frame:
    """Return an orthonormal frame of D = (ker G)^⊥ = span{∇log p_i} at x.

    Found from the centred logit Jacobian, so it does not fade when the softmax saturates. The
    frame is one among its rotations and may jump with x; `project_leaf` does not.

    Args:
        model: Callable pytree from one input to C logits.
        x: One input, in the model's units.
        rtol: As in `dimension`.
        likelihood: The output distribution.
        chunk: How many rows are pulled back at once; None for all.

    Returns:
        `Frame(vectors, mask)`: (m, *x.shape) and (m,), m = min(n, C − 1).

    Raises:
        ValueError: If x is not floating point, or the model does not map x to a vector of logits.

    Source: Grementieri & Fioresi 2022, Theorem 3.6: D is the distribution of the data leaves.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> f = foliax.frame(lambda x: jnp.stack([x[0], 2 * x[0], 0 * x[0]]), jnp.zeros(2))
        >>> f.mask.tolist(), jnp.abs(f.vectors).tolist()
        ([True, False], [[1.0, 0.0], [0.0, 0.0]])
    """
    check_chunk(chunk)
    x = as_point(x)
    _, k = contrast_jacobian(model, x, likelihood, chunk)
    space = RowSpace.of(k, rtol)
    return Frame(space.basis.reshape(-1, *x.shape), space.mask)


def dimension(
    model: Model,
    x: ArrayLike,
    *,
    rtol: float | None = None,
    likelihood: Likelihood = Categorical(),  # noqa: B008
    chunk: Count | None = None,
) -> Int[Array, ""]:
    """Return dim D: the number of singular values of H J with s² > rtol · s_1².

    Counts directions of D regardless of saturation; `foliax.rank` counts what G still sees.

    Args:
        model: Callable pytree from one input to C logits.
        x: One input, in the model's units.
        rtol: Least squared singular value that counts; None for (10 · C · eps)².
        likelihood: The output distribution.
        chunk: How many rows are pulled back at once; None for all.

    Returns:
        An int32 scalar, ≤ min(n, C − 1); −1 where the Jacobian is not finite.

    Raises:
        ValueError: As `frame`.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> confident = lambda x: jnp.stack([x[0] + 500.0, x[1], 0 * x[0]])
        >>> int(foliax.dimension(confident, jnp.zeros(784)))
        2
    """
    check_chunk(chunk)
    _, k = contrast_jacobian(model, as_point(x), likelihood, chunk)
    return count_rank(singular_values(k), num_rows=k.shape[0], rtol=rtol)


def project_leaf(
    model: Model,
    x: ArrayLike,
    v: ArrayLike,
    *,
    likelihood: Likelihood = Categorical(),  # noqa: B008
    chunk: Count | None = None,
) -> Float[Array, "..."]:
    """Return the orthogonal projection of v on D: the part tangent to the data leaf through x.

    Args:
        model: Callable pytree from one input to C logits.
        x: One input, in the model's units.
        v: A tangent vector of x's shape.
        likelihood: The output distribution.
        chunk: How many rows are pulled back at once; None for all.

    Returns:
        P_D v, of x's shape; differentiable in x (at constant rank) and v.

    Raises:
        ValueError: As `frame`; or if v has another shape than x.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> tangent = foliax.project_leaf(model, jnp.zeros(2), jnp.array([3.0, 4.0]))
        >>> [f"{abs(v):.3f}" for v in tangent]
        ['3.000', '0.000']
    """
    check_chunk(chunk)
    x = as_point(x)
    v = as_tangent(v, x, name="v")
    _, k = contrast_jacobian(model, x, likelihood, chunk)
    flat = v.ravel().astype(k.dtype)
    return RowSpace.of(k).project_through(k, flat).reshape(x.shape)


def project_kernel(
    model: Model,
    x: ArrayLike,
    v: ArrayLike,
    *,
    likelihood: Likelihood = Categorical(),  # noqa: B008
    chunk: Count | None = None,
) -> Float[Array, "..."]:
    """Return the orthogonal projection of v on ker G: the part along which p does not change.

    Args:
        model: Callable pytree from one input to C logits.
        x: One input, in the model's units.
        v: A tangent vector of x's shape.
        likelihood: The output distribution.
        chunk: How many rows are pulled back at once; None for all.

    Returns:
        v − P_D v, of x's shape.

    Raises:
        ValueError: As `project_leaf`.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> normal = foliax.project_kernel(model, jnp.zeros(2), jnp.array([3.0, 4.0]))
        >>> [f"{abs(v):.3f}" for v in normal]
        ['0.000', '4.000']
    """
    tangent = project_leaf(model, x, v, likelihood=likelihood, chunk=chunk)
    return jnp.asarray(v, dtype=tangent.dtype) - tangent
