"""A walk on a leaf toward a target that keeps the probability of a label."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._core.checks import as_point, as_tangent, check_count, check_positive
from foliax._core.documented import documented
from foliax._core.types import Count, Model
from foliax._linalg.products import dot, norm
from foliax.apps.generate.scene import (
    LIKELIHOOD,
    Motion,
    Scene,
    begin,
    capped,
    make_scene,
    validated,
)
from foliax.flow.path import Code

_LIFTS = 4  # ways to come back over the threshold that are tried at each length of a step
_ATTEMPTS = 6 * _LIFTS  # down to 1/32 of the step
_DECREASE = 0.1  # of the squared step, by which the squared distance must fall
_RUNNING = -1


class _Limits(NamedTuple):
    """Options of an `approach` that are numbers."""

    step: Float[Array, ""]
    arrival: Float[Array, ""]
    stall: Float[Array, ""]


class _Walk(NamedTuple):
    """Where an `approach` is."""

    x: Float[Array, " n"]
    p: Float[Array, ""]
    least: Float[Array, ""]
    accepted: Int[Array, ""]
    refused: Int[Array, ""]
    status: Int[Array, ""]


@documented
def approach(
    model: Model,
    x: ArrayLike,
    target: ArrayLike,
    *,
    label: int | ArrayLike | None = None,
    threshold: float | Array = 0.5,
    step: float | Array = 0.1,
    max_steps: Count = 1000,
    save_every: Count = 50,
    arrival: float | Array = 1e-6,
    stall: float | Array = 1e-5,
) -> Motion:
    """Walk on the leaf of x toward a target, inside {p_label ≥ threshold}.

    A step goes along P_D (target − x), `step` long and no farther than the closest point. Where to
    first order it would take log p_label below the threshold, it is the nearest step in D that does
    not; where it still does, it is lifted along the gradient of log p_label, then shortened, until
    p_label is above it and the distance to the target has fallen. The distance falls with every
    step, so the walk cannot oscillate. One Jacobian a step.

    Args:
        x: The start, in the model's (normalised) units.
        target: Where to go, of x's shape.
        label: The class whose probability is kept; None for the one predicted at x.
        threshold: Least p_label, in [0, 1); 0 for no constraint.
        step: Length of a step at most, > 0, in the units of x.
        max_steps: Steps at most.
        save_every: A point is kept every so many steps.
        arrival: Distance to the target at which the walk has arrived, ≥ 0.
        stall: Tangent fraction below which the walk has stalled: how far P_D (target − x) leads
            within the threshold, over ‖target − x‖.

    Returns:
        A `Motion`, with the distance to the target.

    Raises:
        ValueError: For arguments that shapes, dtypes or concrete values show to be wrong.

    Source: Grementieri & Fioresi 2022, section 4, for the walk; the threshold is new here.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> found = approach(model, jnp.array([1.0, 0.0]), jnp.array([-3.0, 4.0]), threshold=0.5)
        >>> [f"{v:.3f}" for v in found.end], bool(found.status == foliax.Status.boundary)
        (['0.000', '0.000'], True)
    """
    check_positive(step, name="step")
    check_count(max_steps, name="max_steps")
    check_count(save_every, name="save_every")
    check_positive(arrival, name="arrival", or_zero=True)
    check_positive(stall, name="stall", or_zero=True)
    scene = make_scene(model, x, label, threshold, None, "leaf")
    goal = as_tangent(target, as_point(x), name="target").ravel().astype(scene.start.dtype)
    limits = _Limits(*(jnp.asarray(value, goal.dtype) for value in (step, arrival, stall)))
    return _approached(scene, goal, limits, max_steps, save_every)


@eqx.filter_jit
def _approached(
    scene: Scene, target: Array, limits: _Limits, max_steps: int, save_every: int
) -> Motion:
    inside, p_start = begin(scene)
    rows, start = jnp.arange(1 + max_steps // save_every), scene.start
    zero = jnp.zeros((), jnp.int32)
    status = jnp.where(inside, _RUNNING, Code.boundary).astype(jnp.int32)
    walk = _Walk(start, p_start, p_start, zero, zero, status)
    kept = (jnp.tile(start, (len(rows), 1)), jnp.full(len(rows), p_start))

    def more(carry: tuple) -> Array:
        walk, _ = carry
        return (walk.status == _RUNNING) & (walk.accepted < max_steps)

    def move(carry: tuple) -> tuple:
        walk, (points, p_label) = carry
        walk = _approach_step(scene, walk, target, limits)
        here = rows * save_every == walk.accepted
        points = jnp.where(here[:, None], walk.x, points)
        return walk, (points, jnp.where(here, walk.p, p_label))

    walk, (points, p_label) = lax.while_loop(more, move, (walk, kept))
    past = rows * save_every > walk.accepted
    points = jnp.where(past[:, None], walk.x, points)
    status = jnp.where(walk.status == _RUNNING, Code.out_of_steps, walk.status)
    return Motion(
        points.reshape(-1, *scene.shape),
        jnp.where(past, walk.p, p_label),
        norm(target - points, axis=1),
        walk.x.reshape(scene.shape),
        walk.least,
        walk.accepted,
        walk.refused,
        validated(status, p_start + jnp.sum(target)),
    )


def _approach_step(scene: Scene, walk: _Walk, target: Array, limits: _Limits) -> _Walk:
    """Take one step, or say why there is none."""
    away = target - walk.x
    distance = norm(away)
    logits, k, space = scene.evaluated(walk.x)
    gradient = dot(_log_slope(logits, scene.label), k)
    square = jnp.sum(gradient**2)
    slope = gradient / jnp.where(square > 0, square, 1)  # raises log p_label by 1, to first order
    room = jnp.log(scene.threshold) - jax.nn.log_softmax(logits)[scene.label]

    def allowed(move: Array) -> tuple[Array, Array]:
        """Return the nearest move in D that keeps log p_label to first order."""
        short = room - dot(gradient, move)  # of the threshold; −inf without one
        return move + slope * jnp.where(short > 0, short, 0), short > 0

    projected = space.project(away)
    wish, bound = allowed(capped(projected, limits.step))
    # Relative to the remaining distance, not to a step, which is short where the target is far.
    left, _ = allowed(projected)
    wish = capped(wish, limits.step)
    tried, moved, p, found = _attempts(scene, walk.x, wish, slope, target, distance)
    arrived, at_foot = distance <= limits.arrival, norm(left) <= limits.stall * distance
    ended = arrived | at_foot | ~found
    end = jnp.where(bound, Code.boundary, Code.stalled)
    end = jnp.where(arrived, Code.arrived, end)
    return _Walk(
        jnp.where(ended, walk.x, moved),
        jnp.where(ended, walk.p, p),
        jnp.where(ended, walk.least, jnp.minimum(walk.least, p)),
        walk.accepted + ~ended,
        walk.refused + jnp.where(arrived | at_foot, 0, tried - found),
        jnp.where(ended, end, walk.status).astype(jnp.int32),
    )


def _attempts(
    scene: Scene, x: Array, wish: Array, slope: Array, target: Array, distance: Array
) -> tuple[Array, Array, Array, Array]:
    """Try the step, lifted more and more, then shortened; return how often, and what was found."""

    def attempt(carry: tuple) -> tuple:
        index, *_ = carry
        # No lift, then once, twice and four times what would do if log p were linear.
        factor = jnp.asarray([0.0, 1.0, 2.0, 4.0], x.dtype)[index % _LIFTS]
        moved = x + 0.5 ** (index // _LIFTS).astype(x.dtype) * wish
        lack = jnp.maximum(jnp.log(scene.threshold) - jnp.log(scene.p_label(moved)), 0)
        moved = moved + slope * factor * jnp.where(jnp.isfinite(lack), lack, 0)
        p, length = scene.p_label(moved), norm(moved - x)
        nearer = norm(target - moved) ** 2 <= distance**2 - _DECREASE * length**2
        return index + 1, moved, p, (p >= scene.threshold) & nearer & (length > 0)

    first = (jnp.zeros((), jnp.int32), x, jnp.zeros((), x.dtype), jnp.zeros((), bool))
    return lax.while_loop(lambda carry: ~carry[3] & (carry[0] < _ATTEMPTS), attempt, first)


def _log_slope(logits: Float[Array, " c"], label: Int[Array, ""]) -> Float[Array, " r"]:
    """Return u with ∇log p_label = u K: the slope of log p_label in the contrasts."""
    slope = jax.nn.one_hot(label, logits.size, dtype=logits.dtype) - jax.nn.softmax(logits)
    return dot(LIKELIHOOD.contrasts(logits), slope)
