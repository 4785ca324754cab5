"""The closest point of a leaf: the end of the gradient flow of the distance."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._core.checks import (
    as_point,
    as_tangent,
    check_choice,
    check_count,
    check_key,
    check_positive,
)
from foliax._core.compile import compiled
from foliax._core.likelihood import Likelihood
from foliax._core.types import Along, Count, Model
from foliax._linalg.products import norm
from foliax.flow.box import Box, check_box
from foliax.flow.path import Code, Status, as_code, as_status
from foliax.flow.walk import drift, walk
from foliax.likelihood import Categorical

__all__ = ["Closest", "closest"]

_STRIDES = 8  # steps in which a restart is moved away from the start


class Closest(NamedTuple):
    """The closest point to a target that was found on a leaf.

    Attributes:
        point: Of x's shape.
        distance: Its Euclidean distance to the target: an upper bound of the leaf's.
        status: A `Status`: stalled (at the closest point), boundary (there, against the box),
            arrived, out_of_steps, invalid, or outside, as in `walk`.
        num_steps: Steps of the flow that found it.
        spread: Largest less smallest distance over the restarts; 0 without.
    """

    point: Float[Array, "..."]
    distance: Float[Array, ""]
    status: Status
    num_steps: Int[Array, ""]
    spread: Float[Array, ""]


def closest(
    model: Model,
    start: ArrayLike,
    target: ArrayLike,
    *,
    along: Along = "leaf",
    box: Any = None,  # a Box
    step: float | Array = 0.1,
    max_steps: Count = 1000,
    stall: float | Array = 1e-5,
    restarts: Count = 0,
    spread: float | Array = 1.0,
    key: Array | None = None,
    likelihood: Likelihood = Categorical(),  # noqa: B008
) -> Closest:
    """Return the closest point to the target on the leaf through `start`, locally.

    It is the end of the gradient flow of ½‖· − target‖² from `start`: the orthogonal projection of
    the target on the leaf. It depends on the start (D jumps at the faces of a ReLU network, and
    need not be integrable), so the distance is an upper bound of that to the leaf; restarts from
    displaced starts say how sharp it is.

    Args:
        model: Callable pytree from one input to C logits.
        start: A point of the leaf, in the model's (normalised) units.
        target: The point to come close to, of the same shape.
        along: "leaf" for the data leaf, "kernel" for the level set of p.
        box: The pixel bounds, as in `walk`.
        step: Length of a step, > 0, in the units of x.
        max_steps: Steps at most.
        stall: Tangent fraction at which the closest point is reached, as in `walk`.
        restarts: Further flows, each from the end of a `drift` in a random direction.
        spread: Length of that drift, > 0.
        key: A `jax.random` key, needed where restarts > 0.
        likelihood: The output distribution.

    Returns:
        `Closest(point, distance, status, num_steps, spread)` of the flow that came nearest.

    Raises:
        ValueError: For arguments that shapes, dtypes or concrete values show to be wrong.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> found = foliax.closest(model, jnp.zeros(2), jnp.array([3.0, 4.0]))
        >>> [f"{v:.2f}" for v in found.point], f"{found.distance:.2f}"
        (['3.00', '0.00'], '4.00')
    """
    check_choice(along, name="along", choices=("leaf", "kernel"))
    check_count(restarts, name="restarts", least=0)
    check_positive(spread, name="spread")
    if restarts and key is None:
        raise ValueError(f"restarts={restarts} needs a key, e.g. key=jax.random.key(0)")
    if key is not None:
        check_key(key)
    start = as_point(start, name="start")
    target = as_tangent(target, start, name="target")
    check_box(box, start, name="start")
    flow = partial(
        walk, along=along, step=step, max_steps=max_steps, save_every=max_steps, arrival=0.0,
        stall=stall, likelihood=likelihood,
    )  # fmt: skip
    if not restarts or key is None:
        path = flow(model, start, target, box=box)
        return Closest(
            path.best,
            norm(path.best - target),
            path.status,
            path.num_steps,
            jnp.zeros_like(path.distance[0]),
        )
    return _best_of(flow, model, start, target, box, spread, key, restarts)


@compiled
def _best_of(
    flow: Any, model: Model, start: Array, target: Array, box: Box | None,
    spread: float | Array, key: Array, restarts: int,
) -> Closest:  # fmt: skip
    """Run the flow from the start and from displaced ones, one after the other."""
    shared = {name: flow.keywords[name] for name in ("along", "likelihood")}
    # The kernel has room for the box. A leaf has not, and clipped starts would lie off it.
    held = box if shared["along"] == "kernel" else None

    def displaced(key: Array) -> Array:
        direction = jax.random.normal(key, start.shape, start.dtype)
        return drift(
            model, start, direction, box=held, step=spread / _STRIDES, max_steps=_STRIDES,
            save_every=_STRIDES, **shared,
        ).end  # fmt: skip

    moved = lax.map(displaced, jax.random.split(key, restarts))
    starts = jnp.concatenate([start[None], moved])
    paths = lax.map(lambda one: flow(model, one, target, box=held), starts)
    distances = jax.vmap(lambda point: norm(point - target))(paths.best)
    best = jnp.argmin(distances)
    path = jax.tree.map(lambda leaf: leaf[best], paths)
    gap = jnp.max(distances) - jnp.min(distances)
    status = path.status
    if box is not None and held is None:
        status = as_status(jnp.where(box.holds(start), as_code(status), Code.outside))
    return Closest(path.best, distances[best], status, path.num_steps, gap)
