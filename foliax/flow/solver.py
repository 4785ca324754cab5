"""One walk as an ODE for diffrax: what a state carries, how it steps, when it ends.

Time counts steps. The state carries what was seen at the current point (logits, velocity, the row
space of the contrast Jacobian), so that with Euler one Jacobian a step gives the velocity, the
measurements kept in the path, the stopping rules and the correction back onto the leaf.
"""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from foliax._core.compile import compiled
from foliax._core.jacobian import as_time, contrast_jacobian
from foliax._linalg.products import dot, norm
from foliax._linalg.row_space import RowSpace
from foliax.flow.box import Box
from foliax.flow.flat import Flat
from foliax.flow.level_set import free_direction, onto_level_set, resolution
from foliax.flow.path import Code, Path, as_status
from foliax.likelihood import contrast_change, logit_change

_RUNNING = -1.0
_THIN = 10  # D is thin where a random direction has less than 1 / _THIN of its length in it
_REVERSAL = 0.9  # cosine, negative: a step back along the last one
_NUMBERS = (
    "steps", "distance", "tangent_fraction", "probability_change", "dimension", "box_excess",
    "leaf_defect",
)  # fmt: skip


class Plan(eqx.Module):
    """What a compiled walk depends on besides arrays."""

    toward: bool = eqx.field(static=True)
    along: str = eqx.field(static=True)
    published: bool = eqx.field(static=True)
    gradient: bool = eqx.field(static=True)  # speed ‖P d‖ instead of 1
    kicks: int = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    save_every: int = eqx.field(static=True)


class Scene(Flat):
    """Everything that stays fixed during one walk."""

    likelihood: Any
    box: Box | None
    start: Float[Array, " n"]
    goal: Float[Array, " n"]  # the target, or the direction
    start_logits: Any  # (C,), once the integration has begun
    contrasts: Any  # (r, C), those of the start: on a walk the same classes can occur
    step: Float[Array, ""]
    arrival: Float[Array, ""]
    stall: Float[Array, ""]
    kick: Float[Array, ""]
    key: Array | None
    plan: Plan

    def direction(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """Return what is projected at x."""
        return self.goal - x if self.plan.toward else self.goal

    def resolution(self) -> Float[Array, ""]:
        """Return how finely the contrasts of this model's logits resolve."""
        return resolution(self.likelihood, self.start_logits, self.dtype)

    def defect(self, logits: Float[Array, " c"]) -> Float[Array, " r"]:
        """Return the change of what a kernel leaf conserves."""
        return contrast_change(self.likelihood, self.start_logits, logits)


class Integrator(NamedTuple):
    """What diffrax integrates with."""

    solver: diffrax.AbstractSolver
    controller: diffrax.AbstractStepSizeController
    adjoint: diffrax.AbstractAdjoint
    progress_meter: diffrax.AbstractProgressMeter


class _State(eqx.Module):
    """The point, what is seen from it, and the story so far. All floats: diffrax integrates it."""

    x: Float[Array, " n"]
    logits: Float[Array, " c"]
    space: RowSpace
    velocity: Float[Array, " n"]  # per step
    pace: Float[Array, ""]  # ‖velocity‖, but for a random displacement's
    tangent_fraction: Float[Array, ""]
    distance: Float[Array, ""]
    moved: Float[Array, ""]  # by the last step
    off_leaf: Float[Array, ""]
    best: Float[Array, " n"]
    least: Float[Array, ""]
    num_steps: Float[Array, ""]
    kicks_left: Float[Array, ""]
    status: Float[Array, ""]


@compiled
def integrate(scene: Scene, integrator: Integrator) -> Path:
    """Integrate one walk: compiled once per model structure, shapes and plan."""
    plan, dtype = scene.plan, scene.start.dtype
    logits = scene.logits(scene.start)
    known = (logits, scene.likelihood.contrasts(logits))
    scene = eqx.tree_at(
        lambda s: (s.start_logits, s.contrasts), scene, known, is_leaf=lambda leaf: leaf is None
    )
    first = _first(scene)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(_rate),
        LeafStepper(integrator.solver),
        t0=as_time(0, dtype),
        t1=as_time(plan.max_steps, dtype),
        dt0=as_time(1, dtype),
        y0=first,
        args=scene,
        saveat=diffrax.SaveAt(
            subs={
                "rows": diffrax.SubSaveAt(t0=True, steps=plan.save_every, fn=_row),
                "end": diffrax.SubSaveAt(t1=True, fn=_whole),
            }
        ),
        stepsize_controller=_on_points(integrator.controller),
        event=diffrax.Event(_has_ended),
        adjoint=integrator.adjoint,
        progress_meter=integrator.progress_meter,
        max_steps=plan.max_steps,
        throw=False,
    )
    kept: Any = solution.ys
    last = jax.tree.map(lambda leaf: leaf[0], kept["end"])
    # Only a drift that diffrax followed to the end of its time has run all its steps.
    whole = solution.result == diffrax.RESULTS.successful
    ran_out = jnp.where(whole & (not plan.toward), Code.completed, Code.out_of_steps)
    return _path(scene, last, kept["rows"], ran_out, solution.stats["num_steps"])


class LeafStepper(diffrax.AbstractSolver):
    """A diffrax solver's step of the point, projected onto the box or the level set.

    The point moves by the wrapped solver; each accepted state is corrected and looked at anew, so
    a solver that would reuse its last stage (FSAL) is told that the point has jumped.
    """

    solver: diffrax.AbstractSolver
    term_structure = diffrax.AbstractTerm
    interpolation_cls = diffrax.LocalLinearInterpolation

    def order(self, terms):
        """Return the order of the wrapped solver."""
        return self.solver.order(terms)

    def error_order(self, terms):
        """Return the order of the wrapped solver's error estimate."""
        return self.solver.error_order(terms)

    def init(self, terms, t0, t1, y0, args):
        """Keep no state between steps: the point jumps."""
        del terms, t0, t1, y0, args

    def func(self, terms, t0, y0, args):
        """Return the vector field."""
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """Step, correct, and re-evaluate the model."""
        del terms, solver_state, made_jump
        moved, error, result = self._move(t0, t1, y0, args)
        y1 = _look(args, _corrected(args, y0, moved), y0)
        if error is not None:
            error = eqx.tree_at(lambda s: s.x, _still(y0), error)
        return y1, error, {"y0": y0, "y1": y1}, None, result

    def _move(self, t0, t1, y0, scene):
        if type(self.solver) is diffrax.Euler:  # its one stage is the velocity seen already
            return y0.x + (t1 - t0) * y0.velocity, None, diffrax.RESULTS.successful

        def rate(t: Any, x: Array, args: Any) -> Array:
            del t, args
            return _heading(scene, x, *_seen(scene, x)[1:]).velocity

        term = diffrax.ODETerm(rate)
        state = self.solver.init(term, t0, t1, y0.x, None)
        moved, error, _, _, result = self.solver.step(term, t0, t1, y0.x, None, state, True)
        return moved, error, result


def _on_points(controller: Any) -> Any:
    """Let an adaptive controller measure errors on the point alone."""
    if not hasattr(controller, "norm"):
        return controller
    norm = controller.norm
    return eqx.tree_at(lambda c: c.norm, controller, lambda error: norm(error.x))


def _rate(t: Any, state: _State, scene: Scene) -> _State:
    """Return d(state)/dt: only the point moves by itself."""
    del t, scene
    return eqx.tree_at(lambda s: s.x, _still(state), state.velocity)


def _still(state: _State) -> _State:
    """Return a rate, or an error, of zero."""
    still = jax.tree.map(jnp.zeros_like, eqx.filter(state, eqx.is_inexact_array))
    return eqx.combine(still, state)


def _corrected(scene: Scene, state: _State, moved: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return the point projected onto the box and the level set."""
    plan, box = scene.plan, scene.box
    if plan.published:
        return moved if box is None else box.clip(moved)
    if plan.along == "leaf":
        return moved

    def defect(x: Array) -> Array:
        return scene.defect(scene.logits(x))

    return onto_level_set(state.space, defect, state.x, moved, box, scene.resolution())


def _look(scene: Scene, x: Float[Array, " n"], before: _State) -> _State:
    """Return the state at x, one step after `before`; `before` itself if it had ended."""
    after = _measure(scene, x, before)
    gone = logit_change(scene.likelihood, scene.start_logits, after.logits)
    finite = jnp.isfinite(after.distance) & jnp.all(jnp.isfinite(gone))
    finite &= jnp.all(jnp.isfinite(after.velocity))
    first, ended = before.num_steps < 0, before.status != _RUNNING
    # The last finite point stays; at the start there is none, and what was seen is shown.
    kept = jax.tree.map(lambda a, b: jnp.where(finite | first, a, b), after, before)
    status = jnp.where(finite, after.status, Code.invalid).astype(after.status.dtype)
    kept = eqx.tree_at(lambda s: s.status, kept, status)
    return jax.tree.map(lambda a, b: jnp.where(ended, a, b), before, kept)


def _first(scene: Scene) -> _State:
    """Return the state at the start."""
    x, zero = scene.start, jnp.zeros((), scene.start.dtype)
    num_rows = len(scene.contrasts)
    m = min(num_rows, x.size)
    nothing = RowSpace(
        jnp.zeros((m, x.size), x.dtype),
        jnp.zeros((m, num_rows), x.dtype),
        jnp.zeros(m, bool),
        zero,
    )
    blank = _State(
        x=x, logits=scene.start_logits, space=nothing, velocity=jnp.zeros_like(x),
        pace=zero, tangent_fraction=zero, distance=zero, moved=zero, off_leaf=zero, best=x,
        least=zero + jnp.inf, kicks_left=zero + scene.plan.kicks,
        num_steps=zero - 1, status=zero + _RUNNING,
    )  # fmt: skip
    state = _look(scene, x, blank)
    status = state.status
    if scene.box is not None:
        misplaced = (status != Code.invalid) & ~scene.box.holds(x)
        status = jnp.where(misplaced, Code.outside, status).astype(status.dtype)
    return eqx.tree_at(lambda s: (s.num_steps, s.status), state, (zero, status))


def _measure(scene: Scene, x: Float[Array, " n"], before: _State) -> _State:
    """Look at the model at x: one Jacobian."""
    plan = scene.plan
    logits, k, space = _seen(scene, x)
    heading = _heading(scene, x, k, space)
    distance = heading.whole if plan.toward else norm(x - scene.start)
    moved = x - before.x
    # Near the foot distances agree to rounding while points still move: the later one is meant.
    nearest = distance <= before.least * (1 + 8 * jnp.finfo(x.dtype).eps)
    state = _State(
        x=x,
        logits=logits,
        space=space,
        velocity=heading.velocity,
        pace=heading.pace,
        tangent_fraction=heading.tangent_fraction,
        distance=distance,
        moved=norm(moved),
        off_leaf=before.off_leaf + norm(moved - before.space.project(moved)),
        best=jnp.where(nearest, x, before.best) if plan.toward else x,
        least=jnp.minimum(distance, before.least),
        num_steps=before.num_steps + 1,
        kicks_left=before.kicks_left,
        status=before.status,
    )
    # A velocity that has turned (nearly) round.
    turned = dot(state.velocity, before.velocity) < -_REVERSAL * state.pace * before.pace
    verdict = _verdict(scene, state, heading.followable, turned)
    state = eqx.tree_at(lambda s: s.status, state, verdict)
    return _kicked(scene, state) if plan.kicks else state


def _seen(scene: Scene, x: Float[Array, " n"]) -> tuple[Array, Array, RowSpace]:
    """Return logits, contrast Jacobian and its row space at x."""
    logits, k = contrast_jacobian(
        scene.model, scene.shaped(x), scene.likelihood, contrasts=scene.contrasts
    )
    logits, k = logits.astype(x.dtype), k.astype(x.dtype)
    return logits, k, RowSpace.of(k)


class _Heading(NamedTuple):
    """Where a walk goes on from a point."""

    velocity: Float[Array, " n"]  # per step
    pace: Float[Array, ""]  # its length
    tangent_fraction: Float[Array, ""]
    whole: Float[Array, ""]  # length of the direction that is projected
    followable: Bool[Array, ""]


def _heading(scene: Scene, x: Array, k: Array, space: RowSpace) -> _Heading:
    """Project the direction at x and scale it to a step."""
    plan = scene.plan
    direction = scene.direction(x)
    if plan.along == "leaf":
        along = space.project_through(k, direction)
        followable = space.holds_part(direction)
    else:
        if plan.published:
            along = direction - space.project_through(k, direction)
        else:
            along = free_direction(space.through(k), direction, x, scene.box)
        followable = space.misses_part(direction, along)
    length, whole = norm(along), norm(direction)
    unit = scene.step / jnp.where(length > 0, length, 1)
    if plan.gradient:
        speed = scene.step
    elif plan.toward and not plan.published:
        speed = jnp.minimum(unit, 1)  # no farther than the foot
    else:
        speed = unit
    fraction = length / jnp.where(whole > 0, whole, 1)
    return _Heading(along * speed, length * speed, fraction, whole, followable)


def _verdict(scene: Scene, state: _State, followable: Array, turned: Array) -> Float[Array, ""]:
    """Return the status at a point: an end, or running."""
    plan, box = scene.plan, scene.box
    code = jnp.full_like(state.status, _RUNNING)
    if plan.published:
        arrived = plan.toward & (state.distance <= scene.arrival)
        return jnp.where(arrived, Code.arrived, code).astype(code.dtype)
    # What rounding leaves of a vector is no direction to follow. A velocity that turns round has
    # passed the point where there is none.
    ended = ~followable
    if not plan.kicks:
        ended |= turned
    end = Code.stalled
    if plan.along == "kernel":  # or no step, however short, stayed on the level set
        ended |= (state.num_steps > 0) & (state.moved <= 0)
        if box is not None:
            touches = jnp.any((state.x <= box.lower) | (state.x >= box.upper))
            end = jnp.where(touches, Code.boundary, Code.stalled)
    code = jnp.where(ended, end, code)
    if plan.toward:
        code = jnp.where(_at_foot(scene, state), Code.stalled, code)
        code = jnp.where(state.distance <= scene.arrival, Code.arrived, code)
    return code.astype(state.status.dtype)


def _at_foot(scene: Scene, state: _State) -> Bool[Array, ""]:
    """Tell whether D, or ker G, holds too little of the direction to go on.

    A random direction has √(d/n) of its length in a space of d dimensions: where that is small, so
    is what counts as little. Nor has a walk stalled while a whole step is left to the foot.
    """
    n = state.x.size
    d = jnp.sum(state.space.mask, dtype=state.x.dtype)
    d = d if scene.plan.along == "leaf" else n - d
    little = scene.stall * jnp.minimum(1, _THIN * jnp.sqrt(d / n))
    stalled = state.tangent_fraction < little
    if not scene.plan.gradient:
        stalled &= state.tangent_fraction * state.distance <= scene.step
    return stalled


def _kicked(scene: Scene, state: _State) -> _State:
    """Send a stalled walk on, by a random displacement inside D, while it has kicks left."""
    assert scene.key is not None
    again = (state.status == Code.stalled) & (state.kicks_left > 0)
    key = jax.random.fold_in(scene.key, state.kicks_left.astype(jnp.int32))
    random = state.space.project(jax.random.normal(key, state.x.shape, state.x.dtype))
    length = norm(random)
    kick = random * scene.kick / jnp.where(length > 0, length, 1)
    sent = (kick, state.kicks_left - 1, jnp.full_like(state.status, _RUNNING))
    kept = (state.velocity, state.kicks_left, state.status)
    chosen = jax.tree.map(lambda a, b: jnp.where(again, a, b), sent, kept)
    return eqx.tree_at(lambda s: (s.velocity, s.kicks_left, s.status), state, chosen)


def _has_ended(t: Any, state: _State, scene: Scene, **_: Any) -> Array:
    """Tell diffrax to stop."""
    del t, scene
    return state.status != _RUNNING


def _whole(t: Any, state: _State, scene: Scene) -> _State:
    """Keep the last state entire."""
    del t, scene
    return state


def _row(t: Any, state: _State, scene: Scene) -> dict[str, Array]:
    """Return what a path keeps of a state; the single numbers are packed, in `_NUMBERS`' order."""
    del t
    box, probabilities = scene.box, scene.likelihood.probabilities
    p = probabilities(state.logits)
    change = p - probabilities(scene.start_logits)
    defect = state.off_leaf
    if scene.plan.along == "kernel":
        defect = jnp.max(jnp.abs(scene.defect(state.logits)))
    numbers = {
        "steps": state.num_steps,
        "distance": state.distance,
        "tangent_fraction": state.tangent_fraction,
        "probability_change": jnp.max(jnp.abs(change)),
        "dimension": jnp.sum(state.space.mask, dtype=state.x.dtype),
        "box_excess": jnp.zeros_like(state.distance) if box is None else box.excess(state.x),
        "leaf_defect": defect,
    }
    packed = jnp.stack([numbers[name] for name in _NUMBERS])
    return {"points": state.x, "logits": state.logits, "probabilities": p, "numbers": packed}


def _path(
    scene: Scene, last: _State, rows: dict[str, Array], ran_out: Array, num_attempts: Array
) -> Path:
    """Fill the rows past the end and name the end; `ran_out` names that of one still running."""
    plan = scene.plan
    num_rows = 1 + plan.max_steps // plan.save_every
    saved = (jnp.arange(num_rows) * plan.save_every <= last.num_steps)[:, None]
    final = _row(0.0, last, scene)
    table = {name: jnp.where(saved, rows[name][:num_rows], final[name]) for name in final}
    numbers = dict(zip(_NUMBERS, table["numbers"].T, strict=True))
    for name in ("steps", "dimension"):
        numbers[name] = numbers[name].astype(jnp.int32)
    status = jnp.where(last.status == _RUNNING, ran_out, last.status)
    return Path(
        points=table["points"].reshape(num_rows, *scene.shape),
        logits=table["logits"],
        probabilities=table["probabilities"],
        **numbers,
        end=last.x.reshape(scene.shape),
        best=last.best.reshape(scene.shape),
        num_steps=last.num_steps.astype(jnp.int32),
        num_attempts=jnp.asarray(num_attempts, jnp.int32),
        status=as_status(status),
    )
