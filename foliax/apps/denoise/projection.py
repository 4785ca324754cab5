"""The flows of `foliax.apps.denoise`: toward a noisy image, along the leaves of clean ones."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._core.checks import as_point, check_count, check_positive
from foliax._core.types import Count, Model
from foliax._linalg.products import norm
from foliax.apps.denoise.references import as_stack
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
        model: Callable pytree from one input to C logits.
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
    return jax.vmap(lambda start: _flow(model, x, start, **options))(references)


def project_many(
    model: Model,
    xs: ArrayLike,
    references: ArrayLike,
    *,
    block: Count = 4,
    level: float | Array = 0.0,
    step: float | Array = 0.1,
    max_steps: Count = 1000,
    stall: float | Array = 1e-5,
) -> Projected:
    """Project many images, each on the leaves of its own references, in one compiled program.

    Args:
        model: As in `project`.
        xs: (N, *shape) noisy images.
        references: (N, k, *shape) points of the leaves for each.
        block: Flows that run at once; they step until the slowest has ended. 1 is the fastest on a
            CPU, the number of all flows on an accelerator.
        level: As in `project`, shared by all.
        step: As in `project`.
        max_steps: As in `project`.
        stall: As in `project`.

    Returns:
        `Projected`, with a leading axis of N in every field.

    Raises:
        ValueError: As `project`; or if xs and references are not stacked alike.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> model = jax.tree_util.Partial(lambda x: jnp.stack([x[0], 0 * x[0]]))
        >>> project_many(model, jnp.ones((3, 2)), jnp.zeros((3, 2, 2))).points.shape
        (3, 2, 2)
    """
    check_count(block, name="block")
    xs, references = _as_pairs(xs, references)
    # Arrays, so that another level does not compile again.
    numbers = jax.tree.map(jnp.asarray, _checked(level, step, stall))
    return _projected(model, xs, references, numbers, max_steps, block)


@eqx.filter_jit
def _projected(
    model: Model, xs: Array, references: Array, numbers: Any, max_steps: int, block: int
) -> Projected:
    count, k = references.shape[:2]
    pairs = (jnp.repeat(xs, k, axis=0), references.reshape(-1, *xs.shape[1:]))

    def one(pair: tuple[Array, Array]) -> Projected:
        return _flow(model, *pair, **numbers, max_steps=max_steps)

    # Blocks of one without vmap: under vmap, cond becomes select and both branches run.
    ends = lax.map(one, pairs) if block == 1 else lax.map(one, pairs, batch_size=block)
    return jax.tree.map(lambda leaf: leaf.reshape(count, k, *leaf.shape[1:]), ends)


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


def _as_pairs(xs: ArrayLike, references: ArrayLike) -> tuple[Array, Array]:
    xs = as_stack(xs, "xs")
    references = as_point(references, name="references")
    if references.ndim < 2 or references.shape[:1] + references.shape[2:] != xs.shape:
        raise ValueError(
            f"references must have shape (N, k, *shape) with xs of shape {xs.shape}, got "
            f"{references.shape}; take images[choose(xs, images, k)]"
        )
    return xs, references
