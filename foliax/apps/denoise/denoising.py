"""From projections on leaves to one denoised image."""

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._core.checks import as_point, as_tangent, check_choice, check_finite, check_positive
from foliax._core.documented import documented
from foliax._core.types import Count, Model
from foliax.apps.denoise.projection import Projected, as_references, project
from foliax.apps.denoise.references import squares
from foliax.flow.path import Status
from foliax.foliation import project_leaf

if TYPE_CHECKING:
    Weights = Literal["best", "mean", "weighted"]
    At = Literal["x", "clean"]
else:  # checked by hand, see `foliax._core.types`
    Weights = At = Any


class Denoised(NamedTuple):
    """A denoised image, and what it was made of.

    Attributes:
        image: Of x's shape.
        feet: (k, *x.shape) the points of `Projected`, shrunk toward the references where `noise`
            was given.
        distances: (k,) those of `Projected`.
        weights: (k,) of each in the image; they sum to 1, and are 0 where a flow was invalid.
        status: (k,) as in `Projected`. Where all are invalid the image is x.
    """

    image: Float[Array, "..."]
    feet: Float[Array, "k ..."]
    distances: Float[Array, " k"]
    weights: Float[Array, " k"]
    status: Status


def combine(
    x: ArrayLike,
    references: ArrayLike,
    projected: Projected,
    *,
    by: Weights = "mean",
    bandwidth: float | Array | None = None,
    noise: float | Array | None = None,
    along: float | Array = 1.0,
    across: float | Array = 0.0,
) -> Denoised:
    """Make one image of the projections p_i of x on the leaves through the references r_i.

        image = Σ w_i (r_i + along (p_i − r_i) + across (x − p_i))

    So `along` = 1, `across` = 0 gives the projections, 0 and 0 the references alone, and two equal
    numbers a blend of references and x that does not depend on the leaf.

    Of noise with deviation σ, d σ² is expected in D, of dimension d, and the projections have
    followed it. Given σ, each p_i is first shrunk to r_i + c (p_i − r_i) with
    c = max(0, 1 − (d − 2) σ² / ‖p_i − r_i‖²): the positive-part James-Stein estimate in D.

    Args:
        x: The noisy image.
        references: (k, *x.shape) points of the leaves.
        projected: What `project` returned for them.
        by: The weights. "best" takes the nearest projection alone, "mean" all equally, and
            "weighted" by exp(−‖x − r_i‖² / 2 bandwidth²): by the distance of the reference, since
            that of the projection falls as the flow fits the noise.
        bandwidth: For "weighted", in the units of x, > 0.
        noise: The deviation σ of the noise in the units of x, > 0; None for no shrinkage.
        along: The share of the displacement from reference to projection that is taken.
        across: The share of the remaining displacement x − p_i that is added.

    Returns:
        `Denoised`.

    Raises:
        ValueError: If shapes do not fit, or "weighted" has no bandwidth.

    Source: James & Stein, Estimation with quadratic loss, 1961.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> x, references = jnp.array([3.0, 4.0]), jnp.array([[0.0, 0.0], [0.0, 1.0]])
        >>> found = combine(x, references, project(model, x, references), along=0.5)
        >>> found.image.round(2).tolist()
        [1.5, 0.5]
    """
    check_choice(by, name="by", choices=("best", "mean", "weighted"))
    x = as_point(x)
    references = as_references(references, x)
    as_tangent(projected.points, references, name="projected.points")
    if by == "weighted":
        if bandwidth is None:
            raise ValueError("by='weighted' needs bandwidth=, a distance in the units of x")
        check_positive(bandwidth, name="bandwidth")
    check_finite(along, name="along")
    check_finite(across, name="across")
    feet = projected.points
    if noise is not None:
        check_positive(noise, name="noise")
        moved = jax.vmap(partial(_shrunk, noise=noise))(feet - references, projected.dimension)
        feet = references + moved
    valid = projected.status != Status.invalid
    weights = _weights(x, references, projected.distances, valid, by, bandwidth)
    parts = references + along * (feet - references) + across * (x - feet)
    shaped = weights.reshape(-1, *(1,) * x.ndim)
    image = jnp.sum(jnp.where(shaped > 0, shaped * parts, 0), axis=0)
    return Denoised(
        jnp.where(jnp.any(valid), image, x).astype(feet.dtype),
        feet,
        projected.distances,
        weights,
        projected.status,
    )


@documented
def denoise(
    model: Model,
    x: ArrayLike,
    references: ArrayLike,
    *,
    by: Weights = "mean",
    bandwidth: float | Array | None = None,
    noise: float | Array | None = None,
    along: float | Array = 1.0,
    across: float | Array = 0.0,
    level: float | Array = 0.0,
    step: float | Array = 0.1,
    max_steps: Count = 1000,
    stall: float | Array = 1e-5,
) -> Denoised:
    """Denoise x: project it on the leaves through the references, and combine the projections.

    Args:
        x: The noisy image, in the model's (normalised) units.
        references: (k, *x.shape) clean images, as `nearest` chooses them.
        by: As in `combine`.
        bandwidth: As in `combine`.
        noise: As in `combine`.
        along: As in `combine`.
        across: As in `combine`.
        level: As in `project`.
        step: As in `project`.
        max_steps: As in `project`.
        stall: As in `project`.

    Returns:
        `Denoised`.

    Raises:
        ValueError: As `project` and `combine`.

    Source: the slides' closing proposal, "project a noisy data point on the data leaf to perform
        denoising".

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> found = denoise(model, jnp.array([3.0, 4.0]), jnp.array([[0.0, 0.0], [0.0, 1.0]]))
        >>> found.image.round(2).tolist(), found.distances.round(2).tolist()
        ([3.0, 0.5], [4.0, 3.0])
    """
    projected = project(
        model, x, references, level=level, step=step, max_steps=max_steps, stall=stall
    )
    return combine(
        x, references, projected,
        by=by, bandwidth=bandwidth, noise=noise, along=along, across=across,
    )  # fmt: skip


@documented
def exchange_kernel(
    model: Model, x: ArrayLike, clean: ArrayLike, *, at: At = "x"
) -> Float[Array, "..."]:
    """Keep the leaf component of x and take its kernel component from a clean image.

        x − P_ker (x − clean) = clean + P_D (x − clean)

    One projection in place of a flow: D is that of one point, so it costs one Jacobian.

    Args:
        x: The noisy image, in the model's (normalised) units.
        clean: A clean image like it, such as the mean of its nearest clean images.
        at: Where D is taken, "x" or "clean".

    Returns:
        The image, of x's shape.

    Raises:
        ValueError: If the shapes differ, or as `foliax.project_leaf`.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> [f"{v:.3f}" for v in exchange_kernel(model, jnp.array([3.0, 4.0]), jnp.zeros(2))]
        ['3.000', '0.000']
    """
    check_choice(at, name="at", choices=("x", "clean"))
    x = as_point(x)
    clean = as_tangent(clean, x, name="clean")
    return clean + project_leaf(model, x if at == "x" else clean, x - clean)


def _weights(
    x: Array, references: Array, distances: Array, valid: Array, by: str, bandwidth: Any
) -> Float[Array, " k"]:
    if by == "best":
        chosen = jnp.argmin(jnp.where(valid, distances, jnp.inf))
        return jnp.where(jnp.any(valid), jnp.arange(len(valid)) == chosen, 0).astype(
            distances.dtype
        )
    score = jnp.zeros(len(valid), distances.dtype)
    if by == "weighted":
        away = jnp.where(valid, squares(x, references), jnp.inf)
        # Less the nearest, which weighs most, and divided twice: a small square would underflow.
        score = -(away - jnp.min(away)) / bandwidth / bandwidth / 2
        score = score.astype(distances.dtype)
    # The softmax of minus infinity alone is not a number.
    score = jnp.where(valid, score, -jnp.inf)
    return jnp.where(jnp.any(valid), jax.nn.softmax(jnp.where(jnp.any(valid), score, 0)), 0)


def _shrunk(
    moved: Float[Array, "..."], dimension: Int[Array, ""], noise: Any
) -> Float[Array, "..."]:
    """Return the positive-part James-Stein estimate of a displacement measured with noise."""
    square = jnp.sum(moved**2)
    fitted = jnp.maximum(dimension - 2, 0) * jnp.asarray(noise, moved.dtype) ** 2
    return moved * jnp.maximum(0, 1 - fitted / jnp.where(square > 0, square, 1))
