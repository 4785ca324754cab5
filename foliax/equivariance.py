"""Does the geometry move with the input: how far a model is from G(gx) = g G(x) gᵀ.

Where the logits are invariant under an isometry g of input space, G(gx) = dg G(x) dgᵀ, and g maps
leaves to leaves. Averaging logits over a finite group of isometries makes any model invariant.

    from foliax import equivariance
    equivariance.defect(model, x, equivariance.mirror).matrix         # > 0 for most networks
    invariant = equivariance.averaged(model, equivariance.MIRRORS)
    equivariance.defect(invariant, x, equivariance.mirror).matrix     # rounding
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from foliax._backend.rewrite import logits_of, precision_of
from foliax._core.checks import as_point
from foliax._core.compile import compiled
from foliax._core.documented import documented
from foliax._core.jacobian import contrast_jacobian
from foliax._core.likelihood import Likelihood
from foliax._core.types import Chunk, Model
from foliax._linalg import lapack
from foliax._linalg.products import dot, norm
from foliax._linalg.row_space import RowSpace
from foliax.data_matrix import factor
from foliax.likelihood import Categorical

__all__ = [
    "MIRRORS",
    "QUARTER_TURNS",
    "SYMMETRIES",
    "Averaged",
    "Defect",
    "averaged",
    "defect",
    "identity",
    "mirror",
    "quarter_turn",
]

Transformation = Callable[[Array], Array]


def identity(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x."""
    return x


def mirror(x: Float[Array, "h w ..."]) -> Float[Array, "h w ..."]:
    """Return an image with left and right exchanged."""
    return jnp.flip(x, axis=1)


def quarter_turn(x: Float[Array, "h w ..."]) -> Float[Array, "w h ..."]:
    """Return an image turned by 90° to the left."""
    return jnp.rot90(x)


def _half_turn(x: Array) -> Array:
    return jnp.rot90(x, 2)


def _turn_right(x: Array) -> Array:
    return jnp.rot90(x, 3)


def _mirrored(turn: Transformation) -> Transformation:
    return lambda x: mirror(turn(x))


MIRRORS: Final = (identity, mirror)
QUARTER_TURNS: Final = (identity, quarter_turn, _half_turn, _turn_right)
SYMMETRIES: Final = QUARTER_TURNS + tuple(map(_mirrored, QUARTER_TURNS))


class Defect(NamedTuple):
    """How far the geometry at gx is from that at x, moved by dg. All are 0 for an invariant model.

    Attributes:
        matrix: ‖G(gx) − dg G(x) dgᵀ‖ / max(‖G(gx)‖, ‖G(x)‖), Frobenius norms; 0 where both are 0.
        leaf: ‖P(gx) − dg P(x) dgᵀ‖ / √(dim D(gx) + dim D(x)), P the projectors on D: in [0, 1],
            1 where the two are orthogonal.
        probabilities: Largest |p_i(gx) − p_i(x)|.
        stretch: Largest relative change by dg of the length of a frame vector of D(x): rounding for
            an isometry, and the others mean little where it is not.
    """

    matrix: Float[Array, ""]
    leaf: Float[Array, ""]
    probabilities: Float[Array, ""]
    stretch: Float[Array, ""]


class Averaged(eqx.Module):
    """A model whose logits are the mean over transformed inputs; invariant where these are a group.

    Attributes:
        model: Callable pytree from one input to C logits.
        transformations: Functions from an input to one of its shape.
    """

    model: Any
    transformations: tuple[Transformation, ...] = eqx.field(static=True)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, " c"]:
        """Return the mean logits of one input."""
        return jnp.mean(jnp.stack([self.model(g(x)) for g in self.transformations]), axis=0)


@documented
def averaged(model: Model, transformations: Sequence[Transformation]) -> Averaged:
    """Return the model that averages its logits over a group of transformations.

    Args:
        transformations: All elements of a finite group: `MIRRORS`, `QUARTER_TURNS`, `SYMMETRIES`
            (both), or functions of yours. One compiled program serves all models that are averaged
            over the same functions.

    Returns:
        A callable pytree like the model.

    Raises:
        ValueError: If there are no transformations.

    Example:
        >>> import jax.numpy as jnp
        >>> from foliax import equivariance
        >>> model = equivariance.averaged(lambda x: x[0, :2, 0], equivariance.MIRRORS)
        >>> x = jnp.arange(4.0).reshape(2, 2, 1)
        >>> model(x).tolist(), model(equivariance.mirror(x)).tolist()
        ([0.5, 0.5], [0.5, 0.5])
    """
    if not transformations:
        raise ValueError(
            "transformations must be the elements of a group, got none; identity is one"
        )
    return Averaged(model, tuple(transformations))


@compiled
def defect(
    model: Model, x: ArrayLike, transformation: Transformation,
    *, likelihood: Likelihood = Categorical(), chunk: Chunk = None,
) -> Defect:  # fmt: skip
    """Return how far G, D and p at gx are from those at x, moved by g.

    From the factors alone, without an n × n matrix: the difference of AᵀA and BᵀB has the Frobenius
    norm of R S Rᵀ, R the triangle of [Aᵀ Bᵀ] and S = diag(1, −1), which does not cancel.

    Args:
        transformation: g, an isometry: a differentiable function from an input to one of its
            shape, e.g. `mirror`, `quarter_turn` (of a square image) or lambda x: 1 - x.

    Returns:
        `Defect(matrix, leaf, probabilities, stretch)`, scalars.

    Raises:
        ValueError: If g changes the shape of x; or as `foliax.factor`.

    Source: Bronstein et al., *Geometric deep learning*, 2021, for invariance and its averages.

    Example:
        >>> import jax
        >>> import foliax
        >>> from foliax import equivariance, zoo
        >>> model, x = zoo.load("digits_mlp"), zoo.load_digits().test_x[0]
        >>> f"{equivariance.defect(model, x, equivariance.mirror).leaf:.1f}"
        '0.9'
        >>> symmetric = equivariance.averaged(model, equivariance.SYMMETRIES)
        >>> bool(equivariance.defect(symmetric, x, equivariance.quarter_turn).leaf < 1e-4)
        True
    """
    x = as_point(x)
    with precision_of(model):
        moved = _checked(transformation, x)
    options: dict[str, Any] = {"likelihood": likelihood, "chunk": chunk}
    here, there = (factor(model, at, **options) for at in (x, moved))
    space, target = (_space(model, at, **options) for at in (x, moved))
    # Rows of A and of the frame are tangent vectors: dg moves them, in their own precision.
    with precision_of(model):
        linear = jax.linearize(transformation, x.astype(here.dtype))[1]

    def push(rows: Float[Array, "r ..."]) -> Float[Array, "r n"]:
        return jax.vmap(linear)(rows).reshape(len(rows), -1)

    turned = push(here.reshape(-1, *x.shape))
    carried = push(space.basis.reshape(-1, *x.shape))
    sizes = [norm(dot(a, a.T)) for a in (turned, there)]
    dimensions = jnp.sum(space.mask) + jnp.sum(target.mask)
    leaf = _difference(carried, target.basis)
    p, q = (likelihood.probabilities(logits_of(model, at).astype(here.dtype)) for at in (x, moved))
    change = jnp.abs(p - q)
    lengths = norm(carried, axis=1)
    lengths = jnp.where(space.mask | jnp.isnan(lengths), lengths, 1)
    return Defect(
        _ratio(_difference(turned, there), jnp.maximum(*sizes)),
        _ratio(leaf, jnp.sqrt(dimensions.astype(leaf.dtype))),
        change[jnp.argmax(change)],  # of equal ones the first: a maximum divides by their number
        jnp.max(jnp.abs(lengths - 1)),
    )


def _space(model: Model, x: Array, likelihood: Likelihood, chunk: Chunk) -> RowSpace:
    _, k = contrast_jacobian(model, x, likelihood, chunk)
    return RowSpace.of(k).moving(k)


def _checked(transformation: Transformation, x: Float[Array, "..."]) -> Float[Array, "..."]:
    if not callable(transformation):
        raise ValueError(
            "transformation must be a function from an input to one of its shape, as "
            f"equivariance.mirror, got {type(transformation).__name__}"
        )
    moved = as_point(transformation(x), name="transformation(x)")
    if moved.shape != x.shape:
        raise ValueError(
            f"transformation must keep the shape of x, {x.shape}, got {moved.shape}; a quarter "
            "turn needs a square image"
        )
    return moved


def _difference(a: Float[Array, "r n"], b: Float[Array, "r n"]) -> Float[Array, ""]:
    """Return ‖AᵀA − BᵀB‖ in the Frobenius norm."""
    signs = np.concatenate([np.ones(len(a)), -np.ones(len(b))])
    return _signed_norm(jnp.concatenate([a, b]), jnp.asarray(signs, a.dtype))


@jax.custom_jvp
def _signed_norm(rows: Float[Array, "s n"], signs: Float[Array, " s"]) -> Float[Array, ""]:
    """Return ‖XᵀSX‖ of the rows X, S = diag(signs), from the triangle of X."""
    triangle = lapack.triangle(rows.T)
    return norm(dot(triangle * signs, triangle.T))


@_signed_norm.defjvp
def _(primals: Any, tangents: Any) -> Any:
    """Differentiate: d‖M‖ = 2 ⟨S X M, dX⟩ / ‖M‖, and 0 at M = 0; X may have any rank."""
    rows, signs = primals
    q, triangle = lapack.qr(rows.T)
    middle = dot(triangle * signs, triangle.T)
    size = norm(middle)
    slope = signs[:, None] * dot(dot(triangle.T, middle), q.T)
    return size, 2 * jnp.sum(slope * tangents[0]) / jnp.where(size == 0, 1, size)


def _ratio(a: Float[Array, ""], b: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where((a == 0) & (b == 0), 0, a / jnp.where(b == 0, 1, b))  # a NaN propagates
