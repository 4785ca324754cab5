"""Horizontal lifts where rank G = C − 1: curves of p, such as great circles, lifted along D.

The curve is known in closed form. What is integrated is only the lift x' = (H J)⁺ d(H log p)/dt,
which stays in D, and every step is brought back to the prescribed p.
"""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from foliax._core.jacobian import as_time, contrast_jacobian
from foliax._core.types import Model
from foliax._linalg.products import dot
from foliax._linalg.row_space import RowSpace, least_norm
from foliax.flow.flat import Corrected, Flat
from foliax.flow.level_set import chord_iterations
from foliax.flow.path import Code, Status, as_status
from foliax.leaf.image import along, flat_logits
from foliax.leaf.sphere import Circle
from foliax.likelihood import Categorical, contrast_change, included, is_valid

_CATEGORICAL = Categorical()
_CORRECTIONS = 8  # forward passes at most after a step
_LOST = 1e-2  # a step that ends farther than this from the prescribed logits has failed


class Geodesic(NamedTuple):
    """A geodesic of a leaf, parametrised by t in [0, 1] at constant speed in G's metric.

    Attributes:
        points: (num_steps + 1, *x.shape); past a premature end the last good point.
        times: (num_steps + 1,) the t of each. On the sphere they stand closer toward an end where
            probabilities are small, so that no step changes the logits by much.
        end: (*x.shape) the last good point.
        velocity: (*x.shape) the initial velocity dx/dt, in D.
        length: The length in G's metric, in √nats, up to t = 1 or the boundary; of a path that
            stalled, that of the entire arc, of which it covered only a part.
        defect: (num_steps + 1,) how far it is from a geodesic: on the sphere, largest difference of
            the contrasts of log p from those of the circle; by the connection, relative change of
            the speed.
        num_steps: Steps taken.
        status: A `Status`: arrived or completed; boundary (the great circle leaves the simplex,
            shortly before which the path ends); stalled (the leaf does not reach these
            probabilities: rank G falls below C − 1, or the logits cannot follow; by the connection,
            the speed is not kept, or no shot met the target); invalid (NaN).
    """

    points: Float[Array, "rows ..."]
    times: Float[Array, " rows"]
    end: Float[Array, "..."]
    velocity: Float[Array, "..."]
    length: Float[Array, ""]
    defect: Float[Array, " rows"]
    num_steps: Int[Array, ""]
    status: Status


class LiftScene(Flat):
    """Arguments of the lift: model, curve, and the logits at the start."""

    # Its `offsets(τ)` are the logits at τ in [0, 1] less those at the start, up to a constant.
    curve: Any
    start_logits: Array
    num_steps: int = eqx.field(static=True)

    def space(self, x: Float[Array, " n"]) -> tuple[Array, RowSpace]:
        """Return the logits and D at x, differentiable in x."""
        logits, k = contrast_jacobian(self.model, self.shaped(x), _CATEGORICAL)
        return logits, RowSpace.of(k).through(k)

    def prescribed(self, step: Any) -> Float[Array, " k"]:
        """Return the change of contrasts of log p that the curve prescribes after the steps."""
        offsets = self.curve.offsets(step / self.num_steps)
        return dot(_CATEGORICAL.contrasts(self.start_logits), offsets)

    def defect(self, x: Float[Array, " n"], step: Any) -> Float[Array, " k"]:
        """Return how far the contrasts of the logits at x are from those prescribed."""
        change = contrast_change(_CATEGORICAL, self.start_logits, self.logits(x))
        return change - self.prescribed(step)

    def resolution(self, step: Any) -> Float[Array, ""]:
        """Return how finely the contrasts resolve."""
        start = dot(
            _CATEGORICAL.contrasts(self.start_logits), included(_CATEGORICAL, self.start_logits)
        )
        size = jnp.max(jnp.abs(start + self.prescribed(step)))
        return 4 * jnp.finfo(size.dtype).eps * (1 + size)

    def full_rank(self, space: RowSpace) -> Bool[Array, ""]:
        """Return whether D has a direction for every class that can occur, but one."""
        dimension = jnp.sum(_CATEGORICAL.possible(self.start_logits), dtype=jnp.int32) - 1
        return jnp.sum(space.mask, dtype=jnp.int32) == dimension


class LiftState(NamedTuple):
    """A flat point, how far its contrasts are from those prescribed, and 1 once it is lost."""

    x: Array
    defect: Array
    lost: Array


def _least_norm(space: RowSpace, c: Float[Array, " k"]) -> Float[Array, " n"]:
    """Return the u in D with K u = c: (H J)⁺ c."""
    return least_norm(space.basis, dot(space.inverse, c))


def _lift_field(step: Any, state: LiftState, scene: LiftScene) -> LiftState:
    _, space = scene.space(state.x)
    velocity = along(scene.prescribed, jnp.asarray(step, state.x.dtype), jnp.ones_like(state.lost))
    zero = jnp.zeros_like(state.lost)
    return LiftState(_least_norm(space, velocity), zero, zero)


def _back(scene: LiftScene, step: Any, before: LiftState, after: LiftState) -> LiftState:
    """Return the end of a step, corrected by chord iterations, or undone if they diverge."""
    _, space = scene.space(after.x)
    best, least = chord_iterations(
        lambda x, d: x - _least_norm(space, d),
        lambda x: scene.defect(x, step),
        after.x,
        scene.resolution(step),
        _CORRECTIONS,
    )
    found = scene.full_rank(space) & jnp.all(jnp.isfinite(best)) & (least <= _LOST)
    lost = jnp.where(found, 0, 1).astype(before.lost.dtype)
    return LiftState(jnp.where(found, best, before.x), jnp.where(found, least, before.defect), lost)


def lifted(
    model: Model, x: Array, circle: Circle, num_steps: int, solver: Any, done: Code
) -> Geodesic:
    """Return the horizontal lift of an arc of a great circle, with `done` for its status."""
    logits, dtype = flat_logits(model, x)(x.ravel()), circle.change.dtype
    scene = LiftScene(model, x.shape, x.dtype, circle, logits.astype(dtype), num_steps)
    flat = x.ravel().astype(dtype)
    _, space = scene.space(flat)
    zero = jnp.zeros((), dtype)
    begun = jnp.where(scene.full_rank(space), zero, 1)
    states, steps = run_lift(LiftState(flat, zero, begun), scene, solver)
    rows = jnp.arange(num_steps + 1, dtype=dtype) / num_steps
    rate = along(scene.prescribed, zero, jnp.ones_like(zero)) * num_steps
    # Of the lift, dx/dτ; dt/dτ at the start turns it into the velocity.
    speed = along(circle.time, zero, jnp.ones_like(zero))
    velocity = _least_norm(space, rate / speed)
    status = jnp.where(circle.left, Code.boundary, done)
    status = jnp.where(states.lost[-1] > 0, Code.stalled, status)
    finite = is_valid(_CATEGORICAL, logits) & jnp.isfinite(circle.angle)
    return result(
        x, states.x, circle.time(rows), velocity, circle.length, states.defect, steps,
        jnp.where(finite & jnp.all(jnp.isfinite(flat)), status, Code.invalid),
    )  # fmt: skip


def run_lift(start: LiftState, scene: LiftScene, solver: Any) -> tuple[LiftState, Array]:
    """Integrate the lift of a curve, each step brought back to the prescribed p."""
    corrected = Corrected(solver, _back)
    return run(_lift_field, corrected, start, scene, scene.num_steps, _is_lost)


def _is_lost(t: Any, y: LiftState, args: Any, **kwargs: Any) -> Array:
    del t, args, kwargs
    return y.lost > 0


def run(
    field: Any, solver: Any, start: Any, scene: Any, num_steps: int, event: Any
) -> tuple[Any, Array]:
    """Integrate over `num_steps` equal steps, and return all states and how many were reached."""
    dtype = jax.tree.leaves(start)[0].dtype
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        t0=as_time(0, dtype),
        t1=as_time(num_steps, dtype),
        dt0=as_time(1, dtype),
        y0=start,
        args=scene,
        saveat=diffrax.SaveAt(
            subs=[diffrax.SubSaveAt(t0=True, steps=1), diffrax.SubSaveAt(t1=True)]
        ),
        event=diffrax.Event(event),
        adjoint=diffrax.DirectAdjoint(),
        max_steps=num_steps,
        throw=False,
    )
    kept: Any = solution.ys
    steps = jnp.asarray(solution.stats["num_accepted_steps"], jnp.int32)
    reached = jnp.arange(num_steps + 1) <= steps

    def filled(rows: Array, end: Array) -> Array:
        shown = reached.reshape(-1, *[1] * (rows.ndim - 1))
        return jnp.where(shown, rows[: num_steps + 1], end)

    return jax.tree.map(filled, kept[0], kept[1]), steps


def result(
    x: Array, points: Float[Array, "rows n"], times: Float[Array, " rows"],
    velocity: Float[Array, " n"], length: Array, defect: Array, steps: Array, status: Array,
) -> Geodesic:  # fmt: skip
    """Put a result together, from flat points."""
    return Geodesic(
        points.reshape(-1, *x.shape), times, points[-1].reshape(x.shape),
        velocity.reshape(x.shape), length, defect, steps, as_status(status),
    )  # fmt: skip
