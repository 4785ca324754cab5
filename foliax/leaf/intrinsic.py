"""Connection and curvature of a leaf in G's metric.

Two routes that share no formula lead to the same curvature. Gauss: the image of the leaf under 2 √p
lies in the sphere of radius 2, K = 1/4 + (⟨II(X, X), II(Y, Y)⟩ − |II(X, Y)|²) / area², where II is
how it bends inside the sphere. Koszul: Christoffel symbols and their derivatives on a chart. The
chart is the affine plane x + D. Near x it is transverse to the kernel leaves, along which p does
not change, so it carries the metric of the leaf, and D need not be integrable for it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from foliax._backend.rewrite import precision_of
from foliax._core.checks import as_point, as_tangent, check_choice
from foliax._core.compile import compiled
from foliax._core.jacobian import num_rows
from foliax._core.likelihood import Likelihood
from foliax._core.types import Model
from foliax._linalg.products import dot, norm
from foliax.leaf.image import (
    CurvatureMethod,
    Image,
    along,
    centred,
    check_categorical,
    image,
    pushed,
)
from foliax.likelihood import Categorical


class Sectional(NamedTuple):
    """The sectional curvature of one plane.

    Attributes:
        value: K, in G's metric (a pure number: lengths are in √nats); 0 where it is not defined.
        defined: Whether the plane is one: v and w are independent in D, in G's metric.
        dimension: dim D; −1 for NaN. Where it is C − 1, K = 1/4.
    """

    value: Float[Array, ""]
    defined: Bool[Array, ""]
    dimension: Int[Array, ""]


class Curvature(NamedTuple):
    """All sectional curvatures in the planes of the eigenvectors of G at one point.

    Attributes:
        sectional: (m, m), m = min(n, C − 1): K of the plane of the i-th and the j-th eigenvector of
            G, in descending order; 0 on the diagonal, and where a direction is missing.
        mean: Mean of K over all planes, whatever the frame: scalar curvature / (d (d − 1)).
        defined: Whether d = dim D ≥ 2 and G has full rank on D; where not, everything is 0.
        dimension: d = dim D; −1 for NaN. Where it is C − 1, every K = 1/4.
    """

    sectional: Float[Array, "m m"]
    mean: Float[Array, ""]
    defined: Bool[Array, ""]
    dimension: Int[Array, ""]


@compiled
def sectional(
    model: Model, x: ArrayLike, v: ArrayLike, w: ArrayLike, *, method: CurvatureMethod = "gauss",
    likelihood: Likelihood = Categorical(),
) -> Sectional:  # fmt: skip
    """Return the sectional curvature, in G's metric, of the plane in D that v and w span.

    It is that of the leaf through x, and of all others that D may have there: of the image of a
    neighbourhood of x in the simplex. Where rank G = C − 1 it is 1/4 for every network, whatever
    it has learnt; elsewhere the rank has to be constant near x.

    - `"gauss"` (the default): from second derivatives of the logits along v and w. Exact to
      rounding squared at full rank, where nothing is left that could bend.
    - `"koszul"`: from the Christoffel symbols of the metric on x + D, three derivatives of the
      logits and about m² forward passes. An independent check, in float64; any likelihood.

    Args:
        model: Callable pytree from one input to C logits, twice (three times) differentiable at x.
        v: A vector of x's shape; its part in D counts.
        w: Another.
        method: "gauss" or "koszul".
        likelihood: The output distribution; "gauss" needs a `Categorical`.

    Returns:
        `Sectional(value, defined, dimension)`.

    Raises:
        ValueError: If min(n, C − 1) < 2 (a curve has no curvature of its own), or as
            `foliax.project_leaf`.

    Source: do Carmo, *Riemannian geometry*, chapter 6, theorem 2.5 (Gauss), chapter 4 (Koszul). The
    published code of Tron et al., arXiv 2409.12057, has two terms of Koszul's formula exchanged.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax.leaf.metric
        >>> model = lambda x: jnp.stack([x[0], x[1] * x[0], jnp.sin(x[1])])
        >>> v, w = jnp.eye(2)
        >>> f"{foliax.leaf.sectional(model, jnp.ones(2), v, w).value:.4f}"
        '0.2500'
    """
    check_choice(method, name="method", choices=("gauss", "koszul"))
    if method == "gauss":
        check_categorical(likelihood, 'method="gauss"')
    x = as_point(x)
    v, w = as_tangent(v, x, name="v"), as_tangent(w, x, name="w")
    _check_planes(model, x, likelihood)
    at = image(model, x, likelihood)
    flat = [t.ravel().astype(at.frame.dtype) for t in (v, w)]
    plane, defined = _orthonormal(at, *map(at.space.project, flat))
    for t in flat:  # the rounding error of a vector in ker G spans no plane
        defined &= at.space.holds_part(t)
    if method == "gauss":
        value = _by_gauss(model, x, at, plane)
    else:
        value = _by_koszul(model, x, at, plane, likelihood)
    defined &= jnp.isfinite(value)
    return Sectional(jnp.where(defined, value, 0), defined, at.dimension)


@compiled
def curvature(model: Model, x: ArrayLike) -> Curvature:
    """Return the curvatures of the leaf in the planes of the eigenvectors of G, and their mean.

    By Gauss' equation, from the Hessian of the logits along D: about m² forward passes. Beyond
    what is said of `sectional`: near a corner of the simplex the metric shrinks like the
    probability that is left, so that where rank G < C − 1, K − 1/4 tends to grow like
    1 / (1 − max p); compare K · (1 − max p) between images of unlike confidence.

    Args:
        model: Callable pytree from one input to C logits, twice differentiable at x.

    Returns:
        `Curvature(sectional, mean, defined, dimension)`.

    Raises:
        ValueError: As `sectional`.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax.leaf.metric
        >>> independent = lambda x: jnp.stack([0 * x[0], x[0], x[1], x[0] + x[1]])  # 2 × 2 classes
        >>> found = foliax.leaf.curvature(independent, jnp.ones(2))
        >>> f"{abs(found.mean):.4f}", int(found.dimension)
        ('0.0000', 2)
    """
    x, likelihood = as_point(x), Categorical()
    _check_planes(model, x, likelihood)
    at = image(model, x, likelihood)
    form = at.normal(_second(model, x, at, at.frame, likelihood))
    bends = jnp.einsum("iia,jja->ij", form, form, precision="highest")
    values = 0.25 + bends - jnp.sum(form**2, axis=-1)
    pairs = at.mask[:, None] & at.mask & ~jnp.eye(len(at.mask), dtype=bool)
    finite = jnp.all(jnp.isfinite(jnp.where(pairs, values, 0)))
    defined = at.full_rank & finite & (at.dimension >= 2)
    values = jnp.where(pairs & defined, values, 0)
    mean = jnp.sum(values) / jnp.maximum(jnp.sum(pairs), 1)
    return Curvature(values, mean, defined, at.dimension)


@compiled
def connection(
    model: Model, x: ArrayLike, v: ArrayLike, field: Any, *, likelihood: Likelihood = Categorical()
) -> Float[Array, "..."]:
    """Return ∇_v W, the Levi-Civita derivative of a vector field on the leaf, in G's metric.

    From its definition, Koszul's formula

        2⟨∇_V W, Z⟩ = V⟨W, Z⟩ + W⟨V, Z⟩ − Z⟨V, W⟩ + ⟨[V, W], Z⟩ − ⟨[V, Z], W⟩ − ⟨[W, Z], V⟩

    with V and Z constant in the chart x + D. Parts in ker G have no length and do not count.

    Args:
        model: Callable pytree from one input to C logits, twice differentiable at x.
        v: The direction of the derivative, of x's shape; its part in D counts.
        field: W, a function from x to a vector of its shape, differentiable at x.

    Returns:
        The vector in D, of x's shape. Directions of zero length in G, in the working precision,
        are left out of it; it is 0 where G is.

    Raises:
        ValueError: As `foliax.project_leaf`.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax.leaf.metric
        >>> binary = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> at, e = jnp.ones(1), jnp.ones(1)
        >>> speed = lambda x: 1 / jnp.sqrt(jnp.diagonal(foliax.matrix(binary, x)))
        >>> f"{abs(foliax.leaf.connection(binary, at, e, speed)[0]):.6f}"  # of a unit field: none
        '0.000000'
    """
    x = as_point(x)
    v = as_tangent(v, x, name="v")
    if not callable(field):
        raise ValueError(
            "field must be a function from a point to a vector of its shape, got "
            f"{type(field).__name__}; of one vector v, lambda y: v"
        )
    at = image(model, x, likelihood)
    dtype = at.frame.dtype
    direction = at.space.project(v.ravel().astype(dtype))
    with precision_of(model):
        moved: Any
        moved, change = jax.jvp(field, (x,), (direction.reshape(x.shape).astype(x.dtype),))
    w = as_tangent(moved, x, name="field(x)")
    symbols = _christoffel(model, x, at, likelihood)
    coordinates = at.coordinates(change.ravel().astype(dtype)) + jnp.einsum(
        "ijk,i,j->k",
        symbols,
        at.coordinates(direction),
        at.coordinates(w.ravel().astype(dtype)),
        precision="highest",
    )
    return dot(coordinates, at.frame).reshape(x.shape)


def _check_planes(model: Model, x: Array, likelihood: Likelihood) -> None:
    most = min(x.size, num_rows(model, x, likelihood))
    if most < 2:
        raise ValueError(
            "sectional curvature needs a leaf of dimension >= 2, got min(n, C - 1) = "
            f"{most} (n = {x.size}); a curve has none, see second_fundamental_form for how it "
            "bends in input space"
        )


def _orthonormal(
    at: Image, v: Float[Array, " n"], w: Float[Array, " n"]
) -> tuple[Float[Array, "2 n"], Bool[Array, ""]]:
    """Return G-orthonormal vectors that span the plane of v and w, and whether it is one."""

    def unit(v: Array) -> tuple[Array, Array]:
        euclidean = norm(v)
        v = v / jnp.where(euclidean > 0, euclidean, 1)
        size = norm(at.push(v))
        return v / jnp.where(size > 0, size, 1), size

    def orthogonal(w: Array) -> Array:
        return w - dot(at.push(w), at.push(first)) * first

    first, size = unit(v)
    second, other = unit(w)
    rest = orthogonal(second)
    # Both have unit length in G's metric: what is left of the second is the sine of their angle.
    sine = norm(at.push(rest))
    second, _ = unit(orthogonal(unit(rest)[0]))  # once more, for the rounding of the first
    least = 100 * jnp.finfo(v.dtype).eps
    defined = (size > 0) & (other > 0) & (sine > least) & at.full_rank
    return jnp.stack([first, second]), defined


def _second(
    model: Model, x: Array, at: Image, vectors: Float[Array, "v n"], likelihood: Likelihood
) -> Float[Array, "v v r"]:
    """Return the second derivatives of x ↦ 2 √p in the sphere, in the coordinates of Lᵀ.

    d²u_i = √p_i (s̈_i + ½ ȧ_i ḃ_i − the mean of both), ȧ and ḃ being the derivatives of log p: half
    way between the derivatives of log p and of p, as the Levi-Civita connection is.
    """
    start = x.ravel().astype(vectors.dtype)

    def first(z: Array) -> Array:
        return pushed(model, x, start + dot(z, vectors), vectors, likelihood)[1]

    zero = jnp.zeros(len(vectors), vectors.dtype)
    hessian = jax.jacfwd(first)(zero)
    slopes = centred(likelihood.probabilities(at.logits), first(zero))
    bent = hessian + slopes[:, :, None] * slopes[:, None, :] / 2
    contrasts = likelihood.contrasts(at.logits)
    return jnp.einsum("rk,kc,cij->ijr", at.isometry, contrasts, bent, precision="highest")


def _by_gauss(model: Model, x: Array, at: Image, plane: Float[Array, "2 n"]) -> Float[Array, ""]:
    form = at.normal(_second(model, x, at, plane, Categorical()))
    return 0.25 + dot(form[0, 0], form[1, 1]) - jnp.sum(form[0, 1] ** 2)


# --- Koszul ------------------------------------------------------------------------------------


def _metric(model: Model, x: Array, at: Image, likelihood: Likelihood) -> Any:
    """Return the metric on the chart z ↦ x + Σ z_k f_k, as a function of z: the identity at 0."""
    start = x.ravel().astype(at.frame.dtype)

    def metric(z: Float[Array, " m"]) -> Float[Array, "m m"]:
        logits, slopes = pushed(model, x, start + dot(z, at.frame), at.frame, likelihood)
        weights, rows = likelihood.factor(logits)
        a = weights[:, None] * dot(rows, slopes)
        return dot(a.T, a)

    return metric


def _lowered(slopes: Float[Array, "m m m"]) -> Float[Array, "m m m"]:
    """Return Γ_ij,k = ½ (∂_i g_jk + ∂_j g_ik − ∂_k g_ij) from slopes[i, j, k] = ∂_k g_ij."""
    return (jnp.einsum("jki->ijk", slopes) + jnp.einsum("ikj->ijk", slopes) - slopes) / 2


def _christoffel(
    model: Model, x: Array, at: Image, likelihood: Likelihood
) -> Float[Array, "m m m"]:
    """Return Γ_ij^k in the G-orthonormal frame, where upper and lower indices agree."""
    zero = jnp.zeros(len(at.mask), at.frame.dtype)
    return _lowered(jax.jacfwd(_metric(model, x, at, likelihood))(zero))


def _by_koszul(
    model: Model, x: Array, at: Image, plane: Float[Array, "2 n"], likelihood: Likelihood
) -> Float[Array, ""]:
    """Return K = ∂_X∂_Y g_XY − ½ ∂_X² g_YY − ½ ∂_Y² g_XX + |Γ_XY|² − ⟨Γ_XX, Γ_YY⟩."""
    metric = _metric(model, x, at, likelihood)
    a, b = (at.coordinates(v) for v in plane)
    zero = jnp.zeros_like(a)

    def second(u: Array, v: Array, i: Array, j: Array) -> Array:
        return along(lambda z: along(lambda z: dot(i, dot(metric(z), j)), z, u), zero, v)

    symbols = _lowered(jax.jacfwd(metric)(zero))
    xx, xy, yy = (
        jnp.einsum("ijk,i,j->k", symbols, u, v, precision="highest")
        for u, v in ((a, a), (a, b), (b, b))
    )
    bends = second(a, b, a, b) - (second(a, a, b, b) + second(b, b, a, a)) / 2
    return bends + dot(xy, xy) - dot(xx, yy)
