"""The flows of `foliax.apps.denoise`: toward a noisy image, along the leaves of clean ones."""

from typing import Any, NamedTuple

from jaxtyping import Array, ArrayLike, Float, Int

from foliax._core.checks import as_point, check_positive
from foliax._core.documented import documented
from foliax._core.from_starts import from_starts
from foliax._core.types import Count, Model
from foliax._linalg.products import norm
from foliax.flow.path import Status
from foliax.flow.walk import walk


class Projected(NamedTuple):
    """Where the flows toward x ended, one from each of k references.

    Attributes:
        points: (k, *x.shape) the closest points, or where a flow stopped before.
        distances: (k,) of x from them, Euclidean, input units.
        dimension: (k,) int32, of D at the end of each flow.
        status: (k,) a `foliax.Status`: stalled (the closest point), arrived (stopped at `level`),
            out_of_steps or invalid (a reference or x is not finite).
        num_steps: (k,) int32.
    """

    points: Float[Array, "k ..."]
    distances: Float[Array, " k"]
    dimension: Int[Array, " k"]
    status: Status
    num_steps: Int[Array, " k"]


@documented
def project(
    model: Model,
    x: ArrayLike,
    references: ArrayLike,
    *,
    level: float | Array = 0.0,
    step: float | Array = 0.1,
    max_steps: Count = 1000,
    stall: float | Array = 1e-5,
) -> Projected:
    """Project x on the leaf through each reference, as `foliax.closest` does, or stop before.

    A flow to the closest point follows the noise of x in D as well as the image. `level` stops it
    as soon as ‖x − point‖ ≤ level, within one step: with level = σ √n, the length of noise of
    deviation σ, that is the discrepancy principle. It acts only where a leaf comes so near.

    Costs one Jacobian a step, for each reference.

    Args:
        x: The noisy image, in the model's (normalised) units.
        references: (k, *x.shape) points of the leaves.
        level: Distance at which to stop, ≥ 0, in the units of x; 0 for the closest point.
        step: Length of a step, > 0.
        max_steps: Steps at most: the simplest early stop.
        stall: Tangent fraction below which a flow has stalled.

    Returns:
        `Projected`.

    Raises:
        ValueError: For arguments that shapes, dtypes or concrete values show to be wrong.

    Source: Grementieri & Fioresi 2022, section 4, for walks on the leaf; Morozov, On the solution
        of functional equations by the method of regularization, 1966, for the discrepancy.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> found = project(model, jnp.array([3.0, 4.0]), jnp.zeros((1, 2)))
        >>> found.points.round(2).tolist(), found.distances.round(2).tolist()
        ([[3.0, 0.0]], [4.0])
    """
    x = as_point(x)
    references = as_references(references, x)
    options = _checked(level, step, stall) | {"max_steps": max_steps}
    return from_starts(lambda start: _flow(model, x, start, **options), references)


def _flow(
    model: Model, x: Array, start: Array, *, level: Any, step: Any, stall: Any, max_steps: int
) -> Projected:
    """Flow from one reference toward x."""
    path = walk(
        model, start, x, step=step, max_steps=max_steps, save_every=max_steps,
        arrival=level, stall=stall,
    )  # fmt: skip
    away = norm(x - path.best)
    return Projected(path.best, away, path.dimension[-1], path.status, path.num_steps)


def _checked(level: Any, step: Any, stall: Any) -> dict[str, Any]:
    check_positive(level, name="level", or_zero=True)
    check_positive(step, name="step")
    check_positive(stall, name="stall", or_zero=True)
    return {"level": level, "step": step, "stall": stall}


def as_references(references: ArrayLike, x: Array) -> Array:
    """Return references stacked along axis 0, or say how they differ from x."""
    references = as_point(references, name="references")
    if references.ndim < 1 or references.shape[1:] != x.shape:
        raise ValueError(
            f"references must have shape (k, *x.shape) with x of shape {x.shape}, got "
            f"{references.shape}; stack them along axis 0, one as reference[None]"
        )
    return references
