"""How the leaf bends in input space: the second fundamental form of D in the Euclidean metric.

For u, v in D, II(u, v) = P_ker (D_u V), V being any extension of v inside D. With V = K(y)ᵀc, K the
Jacobian of the logit contrasts and c constant, that is the part in ker G of the Hessian of c · H s
applied to u. No p enters: saturation changes nothing. II is symmetric exactly where D is
integrable; II(u, v) − II(v, u) is the part of a Lie bracket outside D.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._core.checks import as_point, as_tangent, check_chunk
from foliax._core.compile import compiled
from foliax._core.jacobian import contrast_jacobian
from foliax._core.likelihood import Likelihood
from foliax._core.types import Chunk, Model
from foliax._linalg import lapack
from foliax._linalg.products import dot, norm
from foliax._linalg.row_space import RowSpace
from foliax.leaf.image import dimension_of
from foliax.likelihood import Categorical


class Extrinsic(NamedTuple):
    """How D bends in input space at one point, in units of 1 / input length.

    Attributes:
        norm: Length √(Σ_ij |S_ij|²) of the symmetric part of II over an orthonormal frame of D.
        twist: The same of its antisymmetric part, ½ |brackets outside D|: 0 where D is integrable.
        mean: (*x.shape) the mean-curvature vector Σ_i II(e_i, e_i) / dim D, in ker G.
        dimension: dim D; all else is 0 where it is 0, and NaN where it is −1: x or J is NaN.
    """

    norm: Float[Array, ""]
    twist: Float[Array, ""]
    mean: Float[Array, "..."]
    dimension: Int[Array, ""]


class Principal(NamedTuple):
    """Principal curvatures of D along one normal, with their directions.

    Attributes:
        values: (m,) in units of 1 / input length, by descending size; m = min(n, C − 1).
        directions: (m, *x.shape) orthonormal, in D; zero where D has no further direction.
    """

    values: Float[Array, " m"]
    directions: Float[Array, "m ..."]


@compiled
def second_fundamental_form(
    model: Model, x: ArrayLike, u: ArrayLike, v: ArrayLike,
    *, likelihood: Likelihood = Categorical(),
) -> Float[Array, "..."]:  # fmt: skip
    """Return II(u, v) = P_ker (D_u V): how V = v, kept inside D, turns out of it along u.

    In the Euclidean metric of input space. For a unit vector u of a curve on the leaf, |II(u, u)|
    is the least curvature that the curve can have there. Zero inside a linear region of a ReLU
    network, and where D is all of input space.

    Args:
        model: Callable pytree from one input to C logits, twice differentiable at x.
        u: A vector of x's shape; its part in D counts.
        v: Another.

    Returns:
        A vector in ker G, of x's shape; symmetric in u and v where D is integrable.

    Raises:
        ValueError: As `foliax.project_leaf`.

    Source: do Carmo, *Riemannian geometry*, chapter 6; for a distribution Reinhart, *Differential
    geometry of foliations*.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax.leaf.metric
        >>> angle = lambda x: jnp.stack([jnp.arctan2(x[1], x[0]), 0 * x[0]])  # leaves are circles
        >>> x, u = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
        >>> [f"{v + 0:.3f}" for v in foliax.leaf.second_fundamental_form(angle, x, u, u)]
        ['-0.500', '0.000']
    """
    x = as_point(x)
    u, v = as_tangent(u, x, name="u"), as_tangent(v, x, name="v")
    k, space = _space(model, x, likelihood)
    u, v = (space.project(t.ravel().astype(k.dtype)) for t in (u, v))
    turned = dot(dot(space.inverse, _change(model, x, likelihood, u)).T, dot(space.basis, v))
    return (turned - space.project(turned)).reshape(x.shape)


@compiled
def extrinsic(
    model: Model, x: ArrayLike, *, likelihood: Likelihood = Categorical(), chunk: Chunk = None
) -> Extrinsic:
    """Return how strongly the leaf bends in input space, and whether it is one at all.

    The full second fundamental form is computed, m² vectors of n numbers, at the cost of m
    derivatives of the Jacobian; m = min(n, C − 1).

    Args:
        model: Callable pytree from one input to C logits, twice differentiable at x.
        chunk: For how many frame vectors the Jacobian is differentiated at once; None for all.

    Returns:
        `Extrinsic(norm, twist, mean, dimension)`. A sphere of radius R and dimension d has norm
        √d / R, twist 0 and a mean of length 1 / R that points to its centre.

    Raises:
        ValueError: As `foliax.project_leaf`; or for a bad chunk.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax.leaf.metric
        >>> angle = lambda x: jnp.stack([jnp.arctan2(x[1], x[0]), 0 * x[0]])
        >>> found = foliax.leaf.extrinsic(angle, jnp.array([0.0, 4.0]))
        >>> f"{found.norm:.3f}", f"{found.twist:.3f}"
        ('0.250', '0.000')
    """
    check_chunk(chunk)
    x = as_point(x)
    form, space = _form(model, x, likelihood, chunk)
    dimension = dimension_of(space)
    even, odd = (form + form.swapaxes(0, 1)) / 2, (form - form.swapaxes(0, 1)) / 2
    mean = jnp.einsum("iin->n", form) / jnp.maximum(dimension, 1)
    return Extrinsic(norm(even), norm(odd), mean.reshape(x.shape), dimension)


@compiled
def principal_curvatures(
    model: Model, x: ArrayLike, normal: ArrayLike, *, likelihood: Likelihood = Categorical(),
    chunk: Chunk = None,
) -> Principal:  # fmt: skip
    """Return the eigenvalues of u, v ↦ ⟨II(u, v), ν⟩ on D, ν the unit normal along `normal`.

    Of the symmetric part, where D is not integrable.

    Args:
        model: Callable pytree from one input to C logits, twice differentiable at x.
        normal: A vector of x's shape; its part in ker G, scaled to length 1, is ν. Where that part
            is only rounding all values are 0.
        chunk: As in `extrinsic`.

    Returns:
        `Principal(values, directions)`.

    Raises:
        ValueError: As `extrinsic`; or if normal has another shape than x.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax.leaf.metric
        >>> angle = lambda x: jnp.stack([jnp.arctan2(x[1], x[0]), 0 * x[0]])
        >>> x = jnp.array([2.0, 0.0])
        >>> f"{foliax.leaf.principal_curvatures(angle, x, -x).values[0]:.3f}"
        '0.500'
    """
    check_chunk(chunk)
    x = as_point(x)
    normal = as_tangent(normal, x, name="normal")
    form, space = _form(model, x, likelihood, chunk)
    flat = normal.ravel().astype(form.dtype)
    across = flat - space.project(flat)
    there = space.misses_part(flat, across)
    unit = jnp.where(there, across / jnp.where(there, norm(across), 1), 0)
    shape_operator = dot(form, unit)
    shape_operator = (shape_operator + shape_operator.T) / 2
    # Missing directions come last, and are not mixed with those of curvature 0.
    beyond = 1 + 2 * jnp.sum(jnp.abs(shape_operator))
    apart = jnp.diag(jnp.where(space.mask, 0, beyond))
    values, vectors = lapack.eigh(shape_operator + apart)
    kept = (jnp.arange(values.size) < jnp.sum(space.mask)) | jnp.isnan(values)
    values = jnp.where(kept, values, 0)
    order = jnp.argsort(-jnp.abs(values), stable=True)
    directions = dot(vectors[:, order].T, space.basis)
    return Principal(values[order], directions.reshape(-1, *x.shape))


def _space(model: Model, x: Array, likelihood: Likelihood) -> tuple[Float[Array, "r n"], RowSpace]:
    _, k = contrast_jacobian(model, x, likelihood)
    return k, RowSpace.of(k).moving(k)


def _change(
    model: Model, x: Float[Array, "..."], likelihood: Likelihood, u: Float[Array, " n"]
) -> Float[Array, "r n"]:
    """Return D_u K: row i is the Hessian of the i-th contrast of the logits, applied to u."""

    def jacobian(y: Array) -> Array:
        return contrast_jacobian(model, y, likelihood)[1]

    return jax.jvp(jacobian, (x,), (u.reshape(x.shape).astype(x.dtype),))[1]


def _form(
    model: Model, x: Float[Array, "..."], likelihood: Likelihood, chunk: Chunk
) -> tuple[Float[Array, "m m n"], RowSpace]:
    """Return II(e_i, e_j) for the orthonormal basis of D; zero for masked rows."""
    _, space = _space(model, x, likelihood)

    def turned(u: Float[Array, " n"]) -> Float[Array, "m n"]:
        rows = dot(space.inverse, _change(model, x, likelihood, u))
        return rows - dot(dot(rows, space.basis.T), space.basis)

    return lax.map(turned, space.basis, batch_size=chunk or len(space.basis)), space
