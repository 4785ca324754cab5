"""Walks along leaves and across them: vector fields on a leaf, integrated by diffrax.

Time counts steps. The state carries what was seen at the current point (logits, velocity, the row
space of the contrast Jacobian), so that one Jacobian a step gives the velocity, the measurements
kept in the path, the stopping rules and the correction back onto the leaf.
"""

from typing import Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from foliax._inputs import (
    Model,
    as_point,
    as_tangent,
    check_choice,
    check_count,
    check_positive,
    dot,
    logits_struct,
    working_dtype,
)
from foliax._level_set import free_direction, onto_level_set
from foliax.domain import Box, check_box
from foliax.foliation import RowSpace, contrast_jacobian
from foliax.likelihood import Categorical, Likelihood
from foliax.path import Path, Status

__all__ = ["drift", "walk"]

Along = Literal["leaf", "kernel"]
Scheme = Literal["exact", "published"]

_RUNNING = -1.0
_MOST_STEPS = 80_000  # beyond, diffrax would round the last step of float32 time away


class _Plan(eqx.Module):
    """What a compiled walk depends on besides arrays."""

    toward: bool = eqx.field(static=True)
    along: str = eqx.field(static=True)
    published: bool = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    save_every: int = eqx.field(static=True)


class _Scene(eqx.Module):
    """Everything that stays fixed during one walk; points are flat, in the working dtype."""

    model: Any
    likelihood: Any
    box: Box | None
    start: Float[Array, " n"]
    goal: Float[Array, " n"]  # the target, or the direction
    start_logits: Float[Array, " c"]
    step: Float[Array, ""]
    arrival: Float[Array, ""]
    stall: Float[Array, ""]
    plan: _Plan
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)  # the caller's, in which the model is called

    def shaped(self, x: Float[Array, " n"]) -> Float[Array, "..."]:
        return x.astype(self.dtype).reshape(self.shape)

    def direction(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        return self.goal - x if self.plan.toward else self.goal

    def defect(self, logits: Float[Array, " c"]) -> Float[Array, " r"]:
        contrasts = self.likelihood.contrasts(logits)
        return dot(contrasts, logits - self.start_logits)


class _State(eqx.Module):
    """The point, what is seen from it, and the story so far. All floats: diffrax integrates it."""

    x: Float[Array, " n"]
    logits: Float[Array, " c"]
    space: RowSpace
    velocity: Float[Array, " n"]  # per step
    tangent_fraction: Float[Array, ""]
    distance: Float[Array, ""]
    off_leaf: Float[Array, ""]
    best: Float[Array, " n"]
    least: Float[Array, ""]
    num_steps: Float[Array, ""]
    status: Float[Array, ""]


def walk(
    model: Model,
    x: ArrayLike,
    target: ArrayLike,
    *,
    along: Along = "leaf",
    box: Box | None = None,
    step: float | Array = 0.1,
    max_steps: int = 5000,
    save_every: int = 50,
    arrival: float | Array = 1.0,
    stall: float | Array = 0.01,
    scheme: Scheme = "exact",
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),  # noqa: B008
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
        box: The pixel bounds, in the units of x; None for none.
        step: Length of a step, > 0, in the units of x.
        max_steps: Steps at most, ≤ 80,000; sets the shape of the result.
        save_every: A point is kept every so many steps.
        arrival: Distance to the target at which the walk has arrived, ≥ 0.
        stall: Tangent fraction ‖P d‖/‖d‖ below which "exact" has stalled.
        scheme: "exact" or "published".
        adjoint: How diffrax differentiates the walk: the default serves `jax.grad`,
            `diffrax.ForwardMode()` serves `jax.jvp`. (That of an exact kernel walk is the
            derivative of its chord corrections, right to about 1e-3.)
        likelihood: The output distribution.

    Returns:
        A `Path`, with a `Status`: arrived, stalled, out_of_steps, boundary or invalid.

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
    return _run(
        model, x, target, likelihood, box, step, arrival, stall, adjoint,
        goal_name="target", toward=True, along=along, scheme=scheme,
        max_steps=max_steps, save_every=save_every,
    )  # fmt: skip


def drift(
    model: Model,
    x: ArrayLike,
    direction: ArrayLike,
    *,
    along: Along = "leaf",
    box: Box | None = None,
    step: float | Array = 0.1,
    max_steps: int = 1000,
    save_every: int = 50,
    scheme: Scheme = "exact",
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),  # noqa: B008
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
        box: The pixel bounds, in the units of x; None for none.
        step: Length of a step, > 0, in the units of x.
        max_steps: How many steps, ≤ 80,000; sets the shape of the result.
        save_every: A point is kept every so many steps.
        scheme: "exact" or "published".
        adjoint: How diffrax differentiates the walk: the default serves `jax.grad`,
            `diffrax.ForwardMode()` serves `jax.jvp`. (That of an exact kernel walk is the
            derivative of its chord corrections, right to about 1e-3.)
        likelihood: The output distribution.

    Returns:
        A `Path`, with a `Status`: completed, stalled (v has no part to follow), boundary (the box
        leaves none) or invalid.

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
        model, x, direction, likelihood, box, step, 0.0, 0.0, adjoint,
        goal_name="direction", toward=False, along=along, scheme=scheme,
        max_steps=max_steps, save_every=save_every,
    )  # fmt: skip


def _run(
    model: Model,
    x: ArrayLike,
    goal: ArrayLike,
    likelihood: Likelihood,
    box: Box | None,
    step: Any,
    arrival: Any,
    stall: Any,
    adjoint: diffrax.AbstractAdjoint,
    *,
    goal_name: str,
    toward: bool,
    along: str,
    scheme: str,
    max_steps: int,
    save_every: int,
) -> Path:
    """Check the arguments, flatten them, and integrate."""
    check_choice(along, name="along", choices=("leaf", "kernel"))
    check_choice(scheme, name="scheme", choices=("exact", "published"))
    check_positive(step, name="step")
    check_count(max_steps, name="max_steps")
    check_count(save_every, name="save_every")
    if max_steps > _MOST_STEPS:
        raise ValueError(f"max_steps must be at most {_MOST_STEPS}, got {max_steps}; chain walks")
    x = as_point(x)
    goal = as_tangent(goal, x, name=goal_name)
    check_box(box, x)
    logits = logits_struct(model, x, likelihood)

    dtype = working_dtype(x, logits)
    flat_box = None
    if box is not None:
        flat_box = jax.tree.map(lambda b: jnp.broadcast_to(b, x.shape).ravel().astype(dtype), box)
    step, arrival, stall = (jnp.asarray(number, dtype) for number in (step, arrival, stall))
    plan = _Plan(toward, along, scheme == "published", max_steps, save_every)
    goal = goal.astype(dtype).ravel()
    return _integrate(model, likelihood, flat_box, x, goal, step, arrival, stall, adjoint, plan)


@eqx.filter_jit
def _integrate(model, likelihood, box, x, goal, step, arrival, stall, adjoint, plan) -> Path:
    """Integrate one walk: compiled once per model structure, shapes and plan."""
    dtype = goal.dtype
    start = x.ravel().astype(dtype)
    scene = _Scene(
        model, likelihood, box, start, goal, model(x).astype(dtype),
        step, arrival, stall, plan, x.shape, x.dtype,
    )  # fmt: skip
    first = _first(scene)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(_rate),
        _LeafStepper(),
        t0=jnp.zeros((), dtype),
        t1=jnp.asarray(plan.max_steps, dtype),
        dt0=jnp.ones((), dtype),
        y0=first,
        args=scene,
        saveat=diffrax.SaveAt(
            subs={
                "rows": diffrax.SubSaveAt(t0=True, steps=plan.save_every, fn=_row),
                "end": diffrax.SubSaveAt(t1=True, fn=_whole),
            }
        ),
        event=diffrax.Event(_has_ended),
        adjoint=adjoint,
        max_steps=plan.max_steps,
        throw=False,
    )
    kept: Any = solution.ys
    return _path(scene, jax.tree.map(lambda leaf: leaf[0], kept["end"]), kept["rows"])


class _LeafStepper(diffrax.AbstractSolver):
    """Euler's step of `_State`, then the box or the level set, then a look around."""

    term_structure = diffrax.AbstractTerm
    interpolation_cls = diffrax.LocalLinearInterpolation

    def order(self, terms):
        del terms
        return 1

    def init(self, terms, t0, t1, y0, args):
        del terms, t0, t1, y0, args

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        del solver_state, made_jump
        moved = y0.x + terms.contr(t0, t1) * terms.vf(t0, y0, args).x
        y1 = _look(args, _corrected(args, y0, moved), y0)
        return y1, None, {"y0": y0, "y1": y1}, None, diffrax.RESULTS.successful


def _rate(t: Any, state: _State, scene: _Scene) -> _State:
    """Return d(state)/dt: only the point moves by itself."""
    del t, scene
    still = jax.tree.map(jnp.zeros_like, eqx.filter(state, eqx.is_inexact_array))
    still = eqx.combine(still, state)
    return eqx.tree_at(lambda s: s.x, still, state.velocity)


def _corrected(scene: _Scene, state: _State, moved: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return the point after the box and the level set have had their say."""
    plan, box = scene.plan, scene.box
    if plan.published:
        return moved if box is None else box.clip(moved)
    if plan.along == "leaf":
        return moved

    def defect(x: Array) -> Array:
        return scene.defect(scene.model(scene.shaped(x)).astype(x.dtype))

    return onto_level_set(state.space, defect, moved, box)


def _look(scene: _Scene, x: Float[Array, " n"], before: _State) -> _State:
    """Return the state at x, one step after `before`; `before` itself if it had ended."""
    after = _measure(scene, x, before)
    finite = jnp.isfinite(after.distance) & jnp.all(jnp.isfinite(after.logits))
    finite &= jnp.all(jnp.isfinite(after.velocity))
    ended = before.status != _RUNNING
    fallen = eqx.tree_at(lambda s: s.status, before, jnp.full_like(before.status, Status.invalid))
    kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), after, fallen)
    return jax.tree.map(lambda a, b: jnp.where(ended, a, b), before, kept)


def _first(scene: _Scene) -> _State:
    """Return the state at the start."""
    x, zero = scene.start, jnp.zeros((), scene.start.dtype)
    num_rows = scene.likelihood.contrasts(scene.start_logits).shape[0]
    m = min(num_rows, x.size)
    nothing = RowSpace(
        jnp.zeros((m, x.size), x.dtype), jnp.zeros((m, num_rows), x.dtype), jnp.zeros(m, bool)
    )
    blank = _State(
        x=x, logits=scene.start_logits, space=nothing, velocity=jnp.zeros_like(x),
        tangent_fraction=zero, distance=zero, off_leaf=zero, best=x, least=zero + jnp.inf,
        num_steps=zero - 1, status=zero + _RUNNING,
    )  # fmt: skip
    state = _look(scene, x, blank)
    return eqx.tree_at(lambda s: s.num_steps, state, zero)


def _measure(scene: _Scene, x: Float[Array, " n"], before: _State) -> _State:
    """Look at the model at x: one Jacobian."""
    plan = scene.plan
    logits, k = contrast_jacobian(scene.model, scene.shaped(x), scene.likelihood, None)
    logits, k = logits.astype(x.dtype), k.astype(x.dtype)
    space = RowSpace.of(k)
    direction = scene.direction(x)
    along = _along(scene, space, k, x, direction)
    length, whole = _norm(along), _norm(direction)
    fraction = length / jnp.where(whole > 0, whole, 1)
    distance = whole if plan.toward else _norm(x - scene.start)
    moved = x - before.x
    state = _State(
        x=x,
        logits=logits,
        space=space,
        velocity=along * _speed(scene, length),
        tangent_fraction=fraction,
        distance=distance,
        off_leaf=before.off_leaf
        + _norm(moved - dot(dot(before.space.basis, moved), before.space.basis)),
        best=jnp.where(distance < before.least, x, before.best) if plan.toward else x,
        least=jnp.minimum(distance, before.least),
        num_steps=before.num_steps + 1,
        status=before.status,
    )
    return eqx.tree_at(lambda s: s.status, state, _verdict(scene, state))


def _along(scene: _Scene, space: RowSpace, k: Array, x: Array, direction: Array) -> Array:
    """Return the part of the direction that the walk may follow."""
    if scene.plan.along == "leaf":
        return space.project_through(k, direction)
    if scene.plan.published:
        return direction - space.project_through(k, direction)
    return free_direction(space.through(k), direction, x, scene.box)


def _speed(scene: _Scene, length: Float[Array, ""]) -> Float[Array, ""]:
    """Return what makes the velocity one step long; toward a target, no longer than ‖P d‖."""
    unit = scene.step / jnp.where(length > 0, length, 1)
    if scene.plan.toward and not scene.plan.published:
        return jnp.minimum(unit, 1)
    return unit


def _verdict(scene: _Scene, state: _State) -> Float[Array, ""]:
    """Return the status at a point: an end, or running."""
    plan = scene.plan
    code = jnp.full_like(state.status, _RUNNING)
    # Rounding of a projection leaves eps of a vector: no direction to follow.
    nothing = state.tangent_fraction <= 16 * jnp.finfo(state.x.dtype).eps
    constrained = plan.along == "kernel" and not plan.published and scene.box is not None
    if not plan.toward:
        return jnp.where(nothing, Status.boundary if constrained else Status.stalled, code)
    if not plan.published:
        code = jnp.where(state.tangent_fraction < scene.stall, Status.stalled, code)
    return jnp.where(state.distance <= scene.arrival, Status.arrived, code).astype(code.dtype)


def _has_ended(t: Any, state: _State, scene: _Scene, **_: Any) -> Array:
    """Tell diffrax to stop."""
    del t, scene
    return state.status != _RUNNING


def _whole(t: Any, state: _State, scene: _Scene) -> _State:
    """Keep the last state entire."""
    del t, scene
    return state


def _row(t: Any, state: _State, scene: _Scene) -> dict[str, Array]:
    """Return what a path keeps of a state."""
    del t
    probabilities = scene.likelihood.probabilities
    box = scene.box
    if scene.plan.along == "kernel":
        defect = jnp.max(jnp.abs(scene.defect(state.logits)))
    else:
        defect = state.off_leaf
    return {
        "points": state.x.reshape(scene.shape),
        "steps": state.num_steps,
        "logits": state.logits,
        "distance": state.distance,
        "tangent_fraction": state.tangent_fraction,
        "drift": jnp.max(jnp.abs(probabilities(state.logits) - probabilities(scene.start_logits))),
        "dimension": jnp.sum(state.space.mask, dtype=state.x.dtype),
        "box_excess": jnp.zeros_like(state.distance) if box is None else box.excess(state.x),
        "leaf_defect": defect,
    }


def _path(scene: _Scene, last: _State, rows: dict[str, Array]) -> Path:
    """Fill the rows past the end and name the end."""
    plan = scene.plan
    num_rows = 1 + plan.max_steps // plan.save_every
    saved = jnp.arange(num_rows) * plan.save_every <= last.num_steps
    final = _row(0.0, last, scene)

    def filled(kept: Array, end: Array) -> Array:
        mask = saved.reshape(-1, *(1,) * end.ndim)
        return jnp.where(mask, kept[:num_rows], end)

    table = jax.tree.map(filled, rows, final)
    for name in ("steps", "dimension"):
        table[name] = table[name].astype(jnp.int32)
    ran_out = Status.out_of_steps if plan.toward else Status.completed
    status = jnp.where(last.status == _RUNNING, ran_out, last.status).astype(jnp.int32)
    return Path(
        **table,
        end=last.x.reshape(scene.shape),
        best=last.best.reshape(scene.shape),
        num_steps=last.num_steps.astype(jnp.int32),
        status=status,
    )


def _norm(v: Float[Array, " n"]) -> Float[Array, ""]:
    """Return ‖v‖, with gradient zero at v = 0."""
    square = jnp.sum(v**2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
