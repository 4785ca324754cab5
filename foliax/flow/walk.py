"""Walks along leaves and across them: toward a target, along a direction, to the foot.

Everything here takes one start and is integrated by diffrax (see `_stepper`); `walks` and `drifts`
take many, in one compiled program.
"""

from functools import partial
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._core.compile import compiled
from foliax._core.inputs import (
    as_point,
    as_tangent,
    check_choice,
    check_count,
    check_key,
    check_positive,
    logits_struct,
    norm,
    working_dtype,
)
from foliax._core.types import Along, Count, Model, Scheme, Speed
from foliax.flow.box import Box, check_box, check_inside
from foliax.flow.path import Path
from foliax.flow.solver import Integrator, Plan, Scene, integrate
from foliax.foliation import project_leaf
from foliax.likelihood import Categorical, Likelihood

__all__ = ["Foot", "drift", "drifts", "foot", "walk", "walks"]

_MOST_STEPS = 80_000  # beyond, diffrax would round the last step of float32 time away


class Foot(NamedTuple):
    """The end of the gradient flow of ½‖x − target‖² on a leaf.

    Attributes:
        point: The nearest point met, of x's shape.
        distance: Its Euclidean distance to the target: an upper bound of the leaf's.
        status: A `Status`: stalled (the foot), arrived, out_of_steps or invalid.
        num_steps: Steps of the best flow.
        spread: Largest less smallest distance over the restarts; 0 without.
    """

    point: Float[Array, "..."]
    distance: Float[Array, ""]
    status: Int[Array, ""]
    num_steps: Int[Array, ""]
    spread: Float[Array, ""]


def walk(
    model: Model,
    x: ArrayLike,
    target: ArrayLike,
    *,
    along: Along = "leaf",
    box: Any = None,  # a Box
    step: float | Array = 0.1,
    max_steps: Count = 5000,
    save_every: Count = 50,
    arrival: float | Array = 1.0,
    stall: float | Array = 0.01,
    scheme: Scheme = "exact",
    speed: Speed = "unit",
    kicks: Count = 0,
    kick: float | Array = 1.0,
    key: Array | None = None,
    solver: diffrax.AbstractSolver = diffrax.Euler(),  # noqa: B008
    controller: diffrax.AbstractStepSizeController = diffrax.ConstantStepSize(),  # noqa: B008
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),  # noqa: B008
    progress_meter: diffrax.AbstractProgressMeter = diffrax.NoProgressMeter(),  # noqa: B008
    likelihood: Likelihood = Categorical(),  # noqa: B008
) -> Path:
    """Walk from x toward a target without leaving the leaf: x' = P(target − x).

    The speed is one `step` of input length a step. `"exact"` shortens the step to ‖P d‖ near the
    foot of the perpendicular, where it stalls; along the leaf it is not held in the box (D has no
    room for that: the path reports `box_excess`), along the kernel it keeps p and stays inside.
    `"published"` is the scheme of the paper to the letter: unit-speed Euler, clipped to the box,
    until it arrives or runs out of steps. Costs one Jacobian a step.

    Args:
        model: Callable pytree from one input to C logits.
        x: The start, in the model's (normalised) units.
        target: Where to go, of x's shape.
        along: "leaf" for D, "kernel" for ker G.
        box: The pixel bounds, in the units of x, which x must respect (the target need not); None
            for none.
        step: Length of a step, > 0, in the units of x.
        max_steps: Steps at most, ≤ 80,000; sets the shape of the result.
        save_every: A point is kept every so many steps.
        arrival: Distance to the target at which the walk has arrived, ≥ 0.
        stall: Tangent fraction ‖P d‖/‖d‖ below which "exact" has stalled, once the foot is within
            a step. Where D is a thin slice, √(d/n) < 0.1 for d = dim D (the fraction of a random
            direction), it is scaled by 10 √(d/n): 9 dimensions of 150,528 hold 0.008 of one.
        scheme: "exact" or "published".
        speed: "unit", or "gradient" for x' = P d, a step being `step` of its time.
        kicks: How often a stalled walk is sent on by a random displacement inside D.
        kick: Length of such a displacement, > 0.
        key: A `jax.random` key, needed where kicks > 0.
        solver: A diffrax solver. Euler needs one Jacobian a step, one of s stages s + 1.
        controller: A diffrax step-size controller; adaptive ones need a solver with an error
            estimate, and change what a "step" is. A rejected step counts against `max_steps`.
        adjoint: How diffrax differentiates the walk: the default serves `jax.grad`,
            `diffrax.ForwardMode()` serves `jax.jvp`. (That of an exact kernel walk is the
            derivative of its chord corrections, whose Jacobian is a step old: approximate, to
            5e-3 to 2e-2 of the gradient's length on small tanh networks.)
        progress_meter: A diffrax progress meter, as `diffrax.TqdmProgressMeter()`.
        likelihood: The output distribution.

    Returns:
        A `Path`, with a `Status`: arrived, stalled, out_of_steps, boundary or invalid; outside,
            where x lies outside the box and is traced (a concrete one is a ValueError).

    Raises:
        ValueError: For arguments that shapes, dtypes or concrete values show to be wrong.

    Source: Grementieri & Fioresi 2022, section 4 ("published").

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> path = foliax.walk(model, jnp.zeros(2), jnp.array([3.0, 4.0]), arrival=0.1)
        >>> foliax.Status(int(path.status)).name, [f"{v:.3f}" for v in path.end]
        ('stalled', ['3.000', '0.000'])
    """
    check_choice(speed, name="speed", choices=("unit", "gradient"))
    check_positive(arrival, name="arrival", or_zero=True)
    check_positive(stall, name="stall", or_zero=True)
    _check_kicks(kicks, kick, key)
    return _run(
        model, x, target, likelihood, box, step, arrival, stall, kick, key,
        Integrator(solver, controller, adjoint, progress_meter), goal_name="target",
        plan=Plan(True, along, scheme == "published", speed == "gradient", kicks,
                  max_steps, save_every), scheme=scheme,
    )  # fmt: skip


def drift(
    model: Model,
    x: ArrayLike,
    direction: ArrayLike,
    *,
    along: Along = "leaf",
    box: Any = None,  # a Box
    step: float | Array = 0.1,
    max_steps: Count = 1000,
    save_every: Count = 50,
    scheme: Scheme = "exact",
    solver: diffrax.AbstractSolver = diffrax.Euler(),  # noqa: B008
    controller: diffrax.AbstractStepSizeController = diffrax.ConstantStepSize(),  # noqa: B008
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),  # noqa: B008
    progress_meter: diffrax.AbstractProgressMeter = diffrax.NoProgressMeter(),  # noqa: B008
    likelihood: Likelihood = Categorical(),  # noqa: B008
) -> Path:
    """Drift from x along the projection of a constant ambient direction: x' = P v / ‖P v‖.

    Along the kernel p is conserved. `"exact"` keeps it: it moves along ker G with the active
    pixel bounds held, then corrects back onto the level set of p. `"published"` steps and clips,
    and leaves the level set.

    Args:
        model: Callable pytree from one input to C logits.
        x: The start, in the model's (normalised) units.
        direction: The ambient direction v, of x's shape; its length does not matter.
        along: "leaf" for D, "kernel" for ker G.
        box: The pixel bounds, in the units of x, which x must respect (the target need not); None
            for none.
        step: Length of a step, > 0, in the units of x.
        max_steps: How many steps, ≤ 80,000; sets the shape of the result.
        save_every: A point is kept every so many steps.
        scheme: "exact" or "published".
        solver: A diffrax solver. Euler needs one Jacobian a step, one of s stages s + 1.
        controller: A diffrax step-size controller; adaptive ones need a solver with an error
            estimate, and change what a "step" is. A rejected step counts against `max_steps`.
        adjoint: How diffrax differentiates the walk: the default serves `jax.grad`,
            `diffrax.ForwardMode()` serves `jax.jvp`. (That of an exact kernel walk is the
            derivative of its chord corrections, whose Jacobian is a step old: approximate, to
            5e-3 to 2e-2 of the gradient's length on small tanh networks.)
        progress_meter: A diffrax progress meter, as `diffrax.TqdmProgressMeter()`.
        likelihood: The output distribution.

    Returns:
        A `Path`, with a `Status`: completed, stalled (v has no part to follow), boundary (the box
        leaves none), out_of_steps (an adaptive controller rejected too many), invalid, or
            outside, as in `walk`.

    Raises:
        ValueError: For arguments that shapes, dtypes or concrete values show to be wrong.

    Source: Grementieri & Fioresi 2022, section 4 ("published").

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> path = foliax.drift(model, jnp.zeros(2), jnp.ones(2), along="kernel", max_steps=50)
        >>> [f"{v:.3f}" for v in path.end], float(path.drift[-1])
        (['0.000', '5.000'], 0.0)
    """
    return _run(
        model, x, direction, likelihood, box, step, 0.0, 0.0, 1.0, None,
        Integrator(solver, controller, adjoint, progress_meter), goal_name="direction",
        plan=Plan(False, along, scheme == "published", False, 0, max_steps, save_every),
        scheme=scheme,
    )  # fmt: skip


def foot(
    model: Model,
    x: ArrayLike,
    start: ArrayLike,
    *,
    step: float | Array = 0.1,
    max_steps: Count = 1000,
    stall: float | Array = 1e-5,
    restarts: Count = 0,
    spread: float | Array = 1.0,
    key: Array | None = None,
    likelihood: Likelihood = Categorical(),  # noqa: B008
) -> Foot:
    """Project x on the leaf through `start`: the end of the flow of ½‖· − x‖² from there.

    The foot depends on the start (D jumps at the faces of a ReLU network, and need not be
    integrable), so the distance is an upper bound of that to the leaf; restarts from displaced
    starts say how sharp it is.

    Args:
        model: Callable pytree from one input to C logits.
        x: The point to project, in the model's (normalised) units.
        start: A point of the leaf, of x's shape.
        step: Length of a step, > 0.
        max_steps: Steps at most.
        stall: Tangent fraction at which the foot is reached, as in `walk`.
        restarts: Further flows, from the start moved by a random step along the leaf.
        spread: Length of that step, > 0.
        key: A `jax.random` key, needed where restarts > 0.
        likelihood: The output distribution.

    Returns:
        `Foot(point, distance, status, num_steps, spread)` of the flow that came nearest.

    Raises:
        ValueError: For arguments that shapes, dtypes or concrete values show to be wrong.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> found = foliax.foot(model, jnp.array([3.0, 4.0]), jnp.zeros(2))
        >>> [f"{v:.2f}" for v in found.point], f"{found.distance:.2f}"
        (['3.00', '0.00'], '4.00')
    """
    _check_kicks(restarts, spread, key, count="restarts", length="spread")
    key = jax.random.key(0) if key is None else key
    x = as_point(x)
    start = as_tangent(start, x, name="start")
    starts = start[None]
    if restarts:
        noise = jax.random.normal(key, (restarts, *start.shape), start.dtype)
        along = jax.vmap(partial(project_leaf, likelihood=likelihood), (None, None, 0))(
            model, start, noise
        )
        length = norm(along.reshape(restarts, -1), axis=1)
        scale = spread / jnp.where(length > 0, length, 1)
        moved = start + along * scale.reshape(-1, *(1,) * start.ndim)
        starts = jnp.concatenate([starts, moved.astype(start.dtype)])

    def flow(one: Array) -> Path:
        return walk(
            model, one, x, step=step, max_steps=max_steps, save_every=max_steps,
            arrival=0.0, stall=stall, likelihood=likelihood,
        )  # fmt: skip

    paths = jax.vmap(flow)(starts)
    away = (paths.best - x).reshape(len(starts), -1)
    distances = norm(away, axis=1)
    best = jnp.argmin(distances)
    return Foot(
        paths.best[best],
        distances[best],
        paths.status[best],
        paths.num_steps[best],
        jnp.max(distances) - jnp.min(distances),
    )


def walks(
    model: Model, xs: ArrayLike, targets: ArrayLike, *, block: Count = 4, **options: Any
) -> Path:
    """Walk many starts toward their targets, in one compiled program.

    Works through blocks of `block` lanes. A block steps until its slowest walk has ended, so that
    small blocks waste least where walks differ; `jax.vmap` of `walk` is one block of all.

    Args:
        model: Callable pytree from one input to C logits.
        xs: Starts, stacked along axis 0.
        targets: Targets, stacked alike.
        block: Walks in a block, ≥ 1.
        **options: Those of `walk`, shared by all; a key is split, so that each walk has its own.

    Returns:
        A `Path` whose every field has a leading axis.

    Raises:
        ValueError: As `walk`; or if xs and targets are not stacked alike.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> paths = foliax.walks(model, jnp.zeros((3, 2)), jnp.ones((3, 2)), max_steps=50)
        >>> paths.points.shape
        (3, 2, 2)
    """
    return _many(walk, model, xs, targets, block, "targets", options)


def drifts(
    model: Model, xs: ArrayLike, directions: ArrayLike, *, block: Count = 4, **options: Any
) -> Path:
    """Drift from many starts, in one compiled program; see `walks`.

    Args:
        model: Callable pytree from one input to C logits.
        xs: Starts, stacked along axis 0.
        directions: Ambient directions, stacked alike.
        block: Drifts in a block, ≥ 1.
        **options: Those of `drift`, shared by all.

    Returns:
        A `Path` whose every field has a leading axis.

    Raises:
        ValueError: As `drift`; or if xs and directions are not stacked alike.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> paths = foliax.drifts(model, jnp.zeros((3, 2)), jnp.ones((3, 2)), max_steps=50)
        >>> paths.end.shape
        (3, 2)
    """
    return _many(drift, model, xs, directions, block, "directions", options)


def _many(
    one: Any, model: Model, xs: Any, goals: Any, block: int, name: str, options: dict[str, Any]
) -> Path:
    check_count(block, name="block")
    xs, goals = as_point(xs, name="xs"), as_point(goals, name=name)
    if xs.ndim < 2 or xs.shape != goals.shape:
        raise ValueError(
            f"xs and {name} must be stacked alike along axis 0, got {xs.shape} and {goals.shape}"
        )
    if options.get("box") is not None:
        check_box(options["box"], xs[0], name="xs[0]")
        check_inside(options["box"], xs, name="xs")
    own = {}
    if options.get("key") is not None:
        check_key(options["key"])
        own["key"] = jax.random.split(options["key"], len(xs))
    return _mapped(one, model, xs, goals, own, block, options)


@compiled
def _mapped(
    one: Any, model: Model, xs: Array, goals: Array, own: dict[str, Array], block: int, options: Any
) -> Path:
    def lane(each: tuple[Array, Array, dict[str, Array]]) -> Path:
        x, goal, mine = each
        return one(model, x, goal, **{**options, **mine})

    if block == 1:  # without vmap only one branch of a conditional runs
        return lax.map(lane, (xs, goals, own))
    return lax.map(lane, (xs, goals, own), batch_size=block)


def _run(
    model: Model,
    x: ArrayLike,
    goal: ArrayLike,
    likelihood: Likelihood,
    box: Box | None,
    step: Any,
    arrival: Any,
    stall: Any,
    kick: Any,
    key: Array | None,
    integrator: Integrator,
    *,
    goal_name: str,
    scheme: str,
    plan: Plan,
) -> Path:
    """Check the arguments, flatten them, and integrate."""
    check_choice(plan.along, name="along", choices=("leaf", "kernel"))
    check_choice(scheme, name="scheme", choices=("exact", "published"))
    check_positive(step, name="step")
    check_count(plan.max_steps, name="max_steps")
    check_count(plan.save_every, name="save_every")
    if plan.max_steps > _MOST_STEPS:
        raise ValueError(
            f"max_steps must be at most {_MOST_STEPS}, got {plan.max_steps}; chain walks"
        )
    x = as_point(x)
    goal = as_tangent(goal, x, name=goal_name)
    check_box(box, x)
    dtype = working_dtype(x, logits_struct(model, x, likelihood))

    def flat(array: Array) -> Array:
        return jnp.broadcast_to(array, x.shape).ravel().astype(dtype)

    scene = Scene(
        model=model,
        likelihood=likelihood,
        box=jax.tree.map(flat, box),
        start=flat(x),
        goal=flat(goal),
        start_logits=None,
        step=jnp.asarray(step, dtype),
        arrival=jnp.asarray(arrival, dtype),
        stall=jnp.asarray(stall, dtype),
        kick=jnp.asarray(kick, dtype),
        key=key,
        plan=plan,
        shape=x.shape,
        dtype=x.dtype,
    )
    return integrate(scene, integrator)


def _check_kicks(
    number: int, size: Any, key: Array | None, *, count: str = "kicks", length: str = "kick"
) -> None:
    check_count(number, name=count, least=0)
    check_positive(size, name=length)
    if number and key is None:
        raise ValueError(f"{count}={number} needs a key, e.g. key=jax.random.key(0)")
    if number:
        check_key(key)
