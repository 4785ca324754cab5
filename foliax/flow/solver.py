"""How a walk is integrated: by a loop of Euler steps, or by diffrax with any solver of its own.

Time counts steps. Both routes share `state`, what is measured at a point and what a step does: the
loop compiles in a third of the time, and diffrax brings every other solver, controller, adjoint
and progress meter.
"""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from foliax._core.compile import compiled
from foliax._core.jacobian import as_time
from foliax.flow.path import Code, Path
from foliax.flow.scene import Scene
from foliax.flow.state import (
    RUNNING,
    State,
    corrected,
    evaluate,
    heading_at,
    path,
    row,
    unmeasured,
)

_CHECKPOINTS = 50  # states kept for a reverse derivative: optimal up to 1,325 steps between rows


class Integrator(NamedTuple):
    """What diffrax integrates with."""

    solver: diffrax.AbstractSolver
    controller: diffrax.AbstractStepSizeController
    adjoint: diffrax.AbstractAdjoint
    progress_meter: diffrax.AbstractProgressMeter
    max_steps: int
    save_every: int

    def is_plain(self) -> bool:
        """Tell whether this is Euler with constant steps, and nothing that only diffrax has."""
        return (
            type(self.solver) is diffrax.Euler
            and type(self.controller) is diffrax.ConstantStepSize
            and type(self.adjoint) is diffrax.RecursiveCheckpointAdjoint
            and self.adjoint.checkpoints is None
            and type(self.progress_meter) is diffrax.NoProgressMeter
        )


@compiled
def integrate(scene: Scene, integrator: Integrator | None) -> Path:
    """Integrate one walk, by Euler's method where no integrator is given."""
    scene = scene.begun()
    return _by_euler(scene) if integrator is None else _by_diffrax(scene, integrator)


def _by_euler(scene: Scene) -> Path:
    """Integrate by Euler steps: one Jacobian a step, in a program that holds it once."""

    def advance(state: State) -> State:
        moved = corrected(scene, state, state.x + state.velocity)
        # Before the start the step has no length, and only evaluates.
        return evaluate(scene, jnp.where(state.num_steps < 0, state.x, moved), state)

    @jax.checkpoint
    def advance_to(state: State, num_steps: Float[Array, ""]) -> tuple[State, dict[str, Array]]:
        state = eqxi.while_loop(
            lambda state: (state.status == RUNNING) & (state.num_steps < num_steps),
            advance,
            state,
            kind="checkpointed",  # reverse mode can cross it
            checkpoints=_CHECKPOINTS,
        )
        return state, row(scene, state)

    num_rows = scene.plan.rows
    kept_at = jnp.arange(num_rows + 1) * scene.save_every  # and one more, for the steps after it
    last, rows = lax.scan(advance_to, unmeasured(scene), jnp.minimum(kept_at, scene.max_steps))
    rows = jax.tree.map(lambda leaf: leaf[:num_rows], rows)
    ran_out = Code.out_of_steps if scene.plan.toward else Code.completed
    status = jnp.where(last.status == RUNNING, ran_out, last.status)
    return path(scene, last, rows, status, last.num_steps)


def _by_diffrax(scene: Scene, integrator: Integrator) -> Path:
    """Integrate as an ODE whose state carries what was found at the current point."""
    dtype, num_rows = scene.start.dtype, scene.plan.rows
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(_rate),
        LeafStepper(integrator.solver),
        t0=as_time(0, dtype),
        t1=as_time(integrator.max_steps, dtype),
        dt0=as_time(1, dtype),
        y0=evaluate(scene, scene.start, unmeasured(scene)),
        args=scene,
        saveat=diffrax.SaveAt(
            subs={
                "rows": diffrax.SubSaveAt(t0=True, steps=integrator.save_every, fn=_row),
                "end": diffrax.SubSaveAt(t1=True, fn=_entire),
            }
        ),
        stepsize_controller=_on_points(integrator.controller),
        event=diffrax.Event(_has_ended),
        adjoint=integrator.adjoint,
        progress_meter=integrator.progress_meter,
        max_steps=integrator.max_steps,
        throw=False,
    )
    kept: Any = solution.ys
    last = jax.tree.map(lambda leaf: leaf[0], kept["end"])
    saved = (jnp.arange(num_rows) * scene.save_every <= last.num_steps)[:, None]
    rows = {
        name: jnp.where(saved, kept["rows"][name][:num_rows], final)
        for name, final in row(scene, last).items()
    }
    # Only a drift that diffrax followed to the end of its time has run all its steps.
    completed = (solution.result == diffrax.RESULTS.successful) & (not scene.plan.toward)
    ran_out = jnp.where(completed, Code.completed, Code.out_of_steps)
    status = jnp.where(last.status == RUNNING, ran_out, last.status)
    return path(scene, last, rows, status, solution.stats["num_steps"])


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
        y1 = evaluate(args, corrected(args, y0, moved), y0)
        # Under vmap a lane that has ended steps on with the others.
        y1 = jax.tree.map(lambda a, b: jnp.where(y0.status == RUNNING, a, b), y1, y0)
        if error is not None:
            error = eqx.tree_at(lambda s: s.x, _still(y0), error)
        return y1, error, {"y0": y0, "y1": y1}, None, result

    def _move(self, t0, t1, y0, scene):
        if type(self.solver) is diffrax.Euler:  # its one stage is the velocity seen already
            return y0.x + (t1 - t0) * y0.velocity, None, diffrax.RESULTS.successful

        def rate(t: Any, x: Array, args: Any) -> Array:
            del t, args
            return heading_at(scene, x, *scene.linearised(x)[1:]).velocity

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


def _rate(t: Any, state: State, scene: Scene) -> State:
    """Return d(state)/dt: only the point moves by itself."""
    del t, scene
    return eqx.tree_at(lambda s: s.x, _still(state), state.velocity)


def _still(state: State) -> State:
    """Return a rate, or an error, of zero."""
    still = jax.tree.map(jnp.zeros_like, eqx.filter(state, eqx.is_inexact_array))
    return eqx.combine(still, state)


def _has_ended(t: Any, state: State, scene: Scene, **_: Any) -> Array:
    """Tell diffrax to stop."""
    del t, scene
    return state.status != RUNNING


def _entire(t: Any, state: State, scene: Scene) -> State:
    """Keep the last state entire."""
    del t, scene
    return state


def _row(t: Any, state: State, scene: Scene) -> dict[str, Array]:
    """Keep a row of the path."""
    del t
    return row(scene, state)
