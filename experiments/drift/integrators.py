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
    """

    label: str
    options: dict[str, Any]
    each: int

    def jacobians(self, path: Any) -> float:
        """Return the mean over images of the Jacobians spent, in rejected steps too."""
        return float(1 + self.each * np.mean(path.num_attempts))


def adaptive(tolerance: float) -> dict[str, Any]:
    """Return the options of adaptive Tsit5."""
    controller = diffrax.PIDController(rtol=tolerance, atol=tolerance)
    return {"solver": diffrax.Tsit5(), "controller": controller}


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
