"""What a walk carries from point to point, how it is measured there, and when it ends.

One Jacobian at a point gives the velocity, the measurements kept in the path, the stopping rules
and the correction back onto the leaf. `solver` integrates it.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from foliax._linalg.products import dot, norm
from foliax._linalg.row_space import RowSpace
from foliax.flow.level_set import free_direction, onto_level_set
from foliax.flow.path import Code, Path, as_status
from foliax.flow.scene import Scene
from foliax.likelihood import logit_change

RUNNING = -1.0
_THIN = 10  # D is thin where a random direction has less than 1 / _THIN of its length in it
_REVERSAL = 0.9  # cosine, negative: a step back along the last one
_NUMBERS = (
    "steps", "distance", "tangent_fraction", "probability_change", "dimension", "box_excess",
    "leaf_defect",
)  # fmt: skip


class State(eqx.Module):
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


def corrected(scene: Scene, state: State, moved: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return the point projected onto the box and the level set."""
    plan, box = scene.plan, scene.box
    if plan.published:
        return moved if box is None else box.clip(moved)
    if plan.along == "leaf":
        return moved

    def defect(x: Array) -> Array:
        return scene.defect(scene.logits(x))

    return onto_level_set(state.space, defect, state.x, moved, box, scene.resolution())


def evaluate(scene: Scene, x: Float[Array, " n"], before: State) -> State:
    """Return the state at x, one step after `before`; its last finite point where x has none."""
    after = _measured(scene, x, before)
    change = logit_change(scene.likelihood, scene.start_logits, after.logits)
    finite = jnp.isfinite(after.distance) & jnp.all(jnp.isfinite(change))
    finite &= jnp.all(jnp.isfinite(after.velocity))
    first = before.num_steps < 0
    # At the start there is no finite point to stay at, and what was found is shown.
    kept = jax.tree.map(lambda a, b: jnp.where(finite | first, a, b), after, before)
    status = jnp.where(first & scene.misplaced, Code.outside, after.status)
    status = jnp.where(finite, status, Code.invalid).astype(after.status.dtype)
    return eqx.tree_at(lambda s: s.status, kept, status)


def unmeasured(scene: Scene) -> State:
    """Return the state before the start, from which `evaluate` makes the first one."""
    x, zero = scene.start, jnp.zeros((), scene.start.dtype)
    num_rows = len(scene.contrasts)
    m = min(num_rows, x.size)
    nothing = RowSpace(
        jnp.zeros((m, x.size), x.dtype),
        jnp.zeros((m, num_rows), x.dtype),
        jnp.zeros(m, bool),
        zero,
    )
    return State(
        x=x, logits=scene.start_logits, space=nothing, velocity=jnp.zeros_like(x),
        pace=zero, tangent_fraction=zero, distance=zero, moved=zero, off_leaf=zero, best=x,
        least=zero + jnp.inf, kicks_left=zero + scene.plan.kicks,
        num_steps=zero - 1, status=zero + RUNNING,
    )  # fmt: skip


def _measured(scene: Scene, x: Float[Array, " n"], before: State) -> State:
    """Return the state at x, finite or not: one Jacobian."""
    plan = scene.plan
    logits, k, space = scene.linearised(x)
    heading = heading_at(scene, x, k, space)
    distance = heading.whole if plan.toward else norm(x - scene.start)
    moved = x - before.x
    # Near the foot distances agree to rounding while points still move: the later one is meant.
    nearest = distance <= before.least * (1 + 8 * jnp.finfo(x.dtype).eps)
    state = State(
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


class Heading(NamedTuple):
    """Where a walk goes on from a point."""

    velocity: Float[Array, " n"]  # per step
    pace: Float[Array, ""]  # its length
    tangent_fraction: Float[Array, ""]
    whole: Float[Array, ""]  # length of the direction that is projected
    followable: Bool[Array, ""]


def heading_at(scene: Scene, x: Array, k: Array, space: RowSpace) -> Heading:
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
            along = free_direction(space, k, direction, x, scene.box)
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
    return Heading(along * speed, length * speed, fraction, whole, followable)


def _verdict(scene: Scene, state: State, followable: Array, turned: Array) -> Float[Array, ""]:
    """Return the status at a point: an end, or running."""
    plan, box = scene.plan, scene.box
    code = jnp.full_like(state.status, RUNNING)
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


def _at_foot(scene: Scene, state: State) -> Bool[Array, ""]:
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


def _kicked(scene: Scene, state: State) -> State:
    """Send a stalled walk on, by a random displacement inside D, while it has kicks left."""
    assert scene.key is not None
    again = (state.status == Code.stalled) & (state.kicks_left > 0)
    key = jax.random.fold_in(scene.key, state.kicks_left.astype(jnp.int32))
    random = state.space.project(jax.random.normal(key, state.x.shape, state.x.dtype))
    length = norm(random)
    kick = random * scene.kick / jnp.where(length > 0, length, 1)
    sent = (kick, state.kicks_left - 1, jnp.full_like(state.status, RUNNING))
    kept = (state.velocity, state.kicks_left, state.status)
    chosen = jax.tree.map(lambda a, b: jnp.where(again, a, b), sent, kept)
    return eqx.tree_at(lambda s: (s.velocity, s.kicks_left, s.status), state, chosen)


def row(scene: Scene, state: State) -> dict[str, Array]:
    """Return what a path keeps of a state; the single numbers are packed, in `_NUMBERS`' order."""
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


def path(
    scene: Scene, last: State, rows: dict[str, Array], status: Array, num_attempts: Array
) -> Path:
    """Return the path of these rows, the last state and the status' code, in the input's shape."""
    numbers = dict(zip(_NUMBERS, rows["numbers"].T, strict=True))
    for name in ("steps", "dimension"):
        numbers[name] = numbers[name].astype(jnp.int32)
    return Path(
        points=rows["points"].reshape(-1, *scene.shape),
        logits=rows["logits"],
        probabilities=rows["probabilities"],
        **numbers,
        end=last.x.reshape(scene.shape),
        best=last.best.reshape(scene.shape),
        num_steps=last.num_steps.astype(jnp.int32),
        num_attempts=jnp.asarray(num_attempts, jnp.int32),
        status=as_status(status),
    )
