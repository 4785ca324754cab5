"""Ways to integrate a walk, and what each spends: Jacobians, steps tried, seconds."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import numpy as np


class Method(NamedTuple):
    """A way to integrate.

    Attributes:
        label: In tables and pictures.
        options: What `foliax.drifts` or `foliax.walks` is told.
        each: Jacobians a step.
        counter: Counts the steps tried, where some may be rejected.
    """

    label: str
    options: dict[str, Any]
    each: int
    counter: "Counter | None" = None

    def jacobians(self, path: Any) -> float:
        """Return the mean over images of the Jacobians spent since the last call."""
        tried = self.counter.take() if self.counter else np.sum(path.num_steps)
        return float(1 + self.each * tried / len(path.num_steps))


class Counter:
    """Counts from inside a compiled program."""

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self) -> None:
        """Count one."""
        self._seen += 1

    def take(self) -> int:
        """Return the count, and begin anew."""
        jax.effects_barrier()
        seen, self._seen = self._seen, 0
        return seen


class _Counted(diffrax.AbstractWrappedSolver):
    """A solver that counts its steps, those that a controller rejects too."""

    solver: diffrax.AbstractSolver
    counter: Callable[[], None] = eqx.field(static=True)

    @property
    def term_structure(self):
        return self.solver.term_structure

    @property
    def interpolation_cls(self):
        return self.solver.interpolation_cls

    def order(self, terms):
        return self.solver.order(terms)

    def error_order(self, terms):
        return self.solver.error_order(terms)

    def init(self, terms, t0, t1, y0, args):
        return self.solver.init(terms, t0, t1, y0, args)

    def func(self, terms, t0, y0, args):
        return self.solver.func(terms, t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        jax.debug.callback(self.counter)
        return self.solver.step(terms, t0, t1, y0, args, solver_state, made_jump)


def adaptive(tolerance: float) -> tuple[dict[str, Any], Counter]:
    """Return the options of adaptive Tsit5, and what counts its steps."""
    counter = Counter()
    controller = diffrax.PIDController(rtol=tolerance, atol=tolerance)
    return {"solver": _Counted(diffrax.Tsit5(), counter), "controller": controller}, counter


# Of s stages: s Jacobians for the step, one to look around at its end.
HEUN, TSIT5 = 3, 8


def compiled(many: Callable, model: Any, xs: Any, goals: Any, box: Any, **options: Any) -> Any:
    """Compile `foliax.drifts` or `foliax.walks` for arguments like these."""

    def program(model: Any, xs: Any, goals: Any, box: Any) -> Any:
        return many(model, xs, goals, box=box, **options)

    return eqx.filter_jit(program).lower(model, xs, goals, box).compile()


def timed(program: Any, *arguments: Any) -> tuple[Any, float]:
    """Run to the end; return the paths, and the seconds."""
    start = time.perf_counter()
    path = jax.block_until_ready(program(*arguments))
    return jax.tree.map(np.asarray, path), time.perf_counter() - start


def joined(parts: list[Any]) -> Any:
    """Return the paths of several populations as one."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
