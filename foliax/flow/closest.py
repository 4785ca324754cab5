"""The closest point of a leaf: along the leaf by a flow, along the kernel by `nearest`."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._backend.rewrite import logits_of
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
from foliax.flow.nearest import Nearest, nearest
from foliax.flow.path import Code, Status, as_code, as_status
from foliax.flow.scene import Plan, Scene, make_scene
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
        probability_change: max|p − p(start)| at the point; along the kernel 0 up to rounding.
        defect: How far the point has left its leaf, as `Path.leaf_defect`.
        optimality: First-order optimality: the length of the projected gradient of ½ distance², the
            active bounds respected; 0 at a closest point of a smooth model, to rounding.
        active_bounds: () int32, how many entries lie on a bound of the box; 0 without one.
    """

    point: Float[Array, "..."]
    distance: Float[Array, ""]
    status: Status
    num_steps: Int[Array, ""]
    spread: Float[Array, ""]
    probability_change: Float[Array, ""]
    defect: Float[Array, ""]
    optimality: Float[Array, ""]
    active_bounds: Int[Array, ""]


def closest(
    model: Model,
    start: ArrayLike,
    target: ArrayLike,
    *,
    along: Along = "leaf",
    box: Any = None,  # a Box
    free: ArrayLike | None = None,
    step: float | Array | None = None,
    max_steps: Count | None = None,
    stall: float | Array = 1e-5,
    restarts: Count = 0,
    spread: float | Array = 1.0,
    key: Array | None = None,
    likelihood: Likelihood = Categorical(),
) -> Closest:
    """Return the closest point to the target on the leaf through `start`, locally.

    Along the leaf it is the end of the gradient flow of ½‖· − target‖² from `start`. It depends on
    the start (D jumps at the faces of a ReLU network, and need not be integrable), so the distance
    is an upper bound of that to the leaf; restarts from displaced starts say how sharp it is.

    Along the kernel it is the nearest point of the level set of p, inside the box: an image that
    looks like the target and has the probabilities of the start, a *metamer*. It is found by
    sequential quadratic steps, once from the start and once from the target pulled onto the level
    set, of which the nearer one is returned.

    Args:
        model: Callable pytree from one input to C logits.
        start: A point of the leaf, in the model's (normalised) units.
        target: The point to come close to, of the same shape.
        along: "leaf" for the data leaf, "kernel" for the level set of p.
        box: The pixel bounds, as in `walk`.
        free: A boolean mask of the entries that may move, as in `walk`.
        step: Length of a step, > 0: along the leaf in the units of x (None for 0.1), along the
            kernel that of the longest, as a share of the way to the target (None for 0.15).
        max_steps: Steps at most; None for 1000 along the leaf, and along the kernel for 60 (from
            either side), over which the longest step shrinks.
        stall: Along the leaf the tangent fraction, as in `walk`, along the kernel the optimality
            as a share of the distance, at which the closest point is reached.
        restarts: Further searches, each from the end of a `drift` in a random direction.
        spread: Length of that drift, > 0.
        key: A `jax.random` key, needed where restarts > 0.
        likelihood: The output distribution.

    Returns:
        A `Closest`: the point that came nearest, and how well it is certified. Along the kernel its
            status is arrived where `optimality` says so, else stalled, or boundary where there is
            a box: a crease of a ReLU network, or too few steps.

    Raises:
        ValueError: For arguments that shapes, dtypes or concrete values show to be wrong.

    Source: metamers: Feather et al. 2019, NeurIPS; invariance-based adversarial examples: Jacobsen
    et al. 2019, ICLR. The method: Nocedal & Wright, Numerical Optimization, chapter 18.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> start, target = jnp.zeros(2), jnp.array([3.0, 4.0])
        >>> found = foliax.closest(model, start, target)
        >>> [f"{v:.2f}" for v in found.point], f"{found.distance:.2f}"
        (['3.00', '0.00'], '4.00')
        >>> found = foliax.closest(model, start, target, along="kernel")
        >>> [f"{v:.2f}" for v in found.point], bool(found.status == foliax.Status.arrived)
        (['0.00', '4.00'], True)
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
    step_default, max_steps_default = (0.1, 1000) if along == "leaf" else (0.15, 60)
    search = partial(
        _along_leaf if along == "leaf" else _along_kernel,
        free=free,
        step=step_default if step is None else step,
        max_steps=max_steps_default if max_steps is None else max_steps,
        stall=stall,
        likelihood=likelihood,
    )
    if not restarts or key is None:
        return search(model, start, target, box)
    return _best_of(search, model, start, target, box, spread, key, restarts)


def _along_leaf(
    model: Model, start: Array, target: Array, box: Box | None, *, max_steps: int, likelihood: Any,
    **options: Any,
) -> Closest:  # fmt: skip
    """Follow the gradient flow to its end."""
    path = walk(
        model, start, target, box=box, max_steps=max_steps, save_every=max_steps, arrival=0.0,
        likelihood=likelihood, **options,
    )  # fmt: skip
    left = path.tangent_fraction[-1] * path.distance[-1]
    return certified(
        model, likelihood, start, target, box, path.best, path.status, path.num_steps,
        path.leaf_defect[-1], left,
    )  # fmt: skip


def _along_kernel(
    model: Model, start: Array, target: Array, box: Box | None, *, free: Any, step: Any,
    max_steps: int, stall: Any, likelihood: Any,
) -> Closest:  # fmt: skip
    """Find the nearest point of the level set."""
    check_count(max_steps, name="max_steps")
    scene = make_scene(
        model, start, target, likelihood, box, free,
        Plan(True, "kernel", False, True, 0, 1), start_name="start",
        max_steps=max_steps, save_every=1, step=step, arrival=0.0, stall=stall, kick=1.0,
    )  # fmt: skip
    found = _nearest(scene)
    return certified(
        model, likelihood, start, target, box, found.best.reshape(start.shape),
        as_status(found.status), found.num_steps.astype(jnp.int32), found.defect,
        found.optimality,
    )  # fmt: skip


@compiled
def _nearest(scene: Scene) -> Nearest:
    return nearest(scene.begun())


@compiled
def certified(
    model: Model, likelihood: Any, start: Array, target: Array, box: Box | None, point: Array,
    status: Any, num_steps: Array, defect: Array, optimality: Array,
) -> Closest:  # fmt: skip
    """Measure what a search found."""

    def p(x: Array) -> Array:
        return likelihood.probabilities(logits_of(model, x.astype(start.dtype)))

    touches = jnp.zeros((), bool) if box is None else (point <= box.lower) | (point >= box.upper)
    return Closest(
        point=point,
        distance=norm(point - target),
        status=status,
        num_steps=num_steps,
        spread=jnp.zeros_like(optimality),
        probability_change=jnp.max(jnp.abs(p(point) - p(start))),
        defect=defect,
        optimality=optimality,
        active_bounds=jnp.sum(touches, dtype=jnp.int32),
    )


@compiled
def _best_of(
    search: Any, model: Model, start: Array, target: Array, box: Box | None,
    spread: float | Array, key: Array, restarts: int,
) -> Closest:  # fmt: skip
    """Search from the start and from displaced ones, one after the other."""
    along = "kernel" if search.func is _along_kernel else "leaf"
    # The kernel has room for the box. A leaf has not, and clipped starts would lie off it.
    held = box if along == "kernel" else None

    def displaced(key: Array) -> Array:
        direction = jax.random.normal(key, start.shape, start.dtype)
        return drift(
            model, start, direction, along=along, box=held, free=search.keywords["free"],
            step=spread / _STRIDES, max_steps=_STRIDES, save_every=_STRIDES,
            likelihood=search.keywords["likelihood"],
        ).end.astype(start.dtype)  # fmt: skip

    moved = lax.map(displaced, jax.random.split(key, restarts))
    starts = jnp.concatenate([start[None], moved])
    found = lax.map(lambda one: search(model, one, target, held), starts)
    best = jnp.argmin(found.distance)
    gap = jnp.max(found.distance) - jnp.min(found.distance)
    found = jax.tree.map(lambda leaf: leaf[best], found)._replace(spread=gap)
    if box is not None and held is None:
        status = jnp.where(box.holds(start), as_code(found.status), Code.outside)
        found = found._replace(status=as_status(status))
    return found
