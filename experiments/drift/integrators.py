"""Ways to integrate a walk, and what each spends: Jacobians, steps tried, seconds."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import numpy as np

import foliax

# Jacobians a step: of s stages, s for the step and one to evaluate the model at its end.
HEUN, TSIT5 = 3, 8
_TOLERANCES = (1e-2, 1e-3)  # rtol = atol of the adaptive runs


class Method(NamedTuple):
    """A way to integrate: its label, options of `foliax.drift` or `walk`, Jacobians a step."""

    label: str
    options: dict[str, Any]
    each: int

    def jacobians(self, path: Any) -> float:
        """Return the mean over images of the Jacobians spent, in rejected steps too."""
        return float(1 + self.each * np.mean(path.num_attempts))


def _adaptive(label: str, tolerance: float, **options: Any) -> Method:
    controller = diffrax.PIDController(rtol=tolerance, atol=tolerance)
    options |= {"solver": diffrax.Tsit5(), "controller": controller}
    return Method(f"{label} Tsit5, adaptive {tolerance:g}", options, TSIT5)


def kernel_methods(*, quick: bool) -> dict[str, Method]:
    """Return the ways to drift along the kernel."""
    found = {
        "published": Method("published Euler", {"scheme": "published"}, 1),
        "euler": Method("exact Euler", {}, 1),
    }
    if not quick:
        found["heun"] = Method("exact Heun", {"solver": diffrax.Heun()}, HEUN)
        found["tsit5"] = Method("exact Tsit5", {"solver": diffrax.Tsit5()}, TSIT5)
    tolerances = _TOLERANCES[1:] if quick else _TOLERANCES
    return found | {f"adaptive_{each:g}": _adaptive("exact", each) for each in tolerances}


def target_methods(*, quick: bool) -> dict[str, Method]:
    """Return the ways to walk toward a target."""
    if quick:
        return {"unit_euler": Method("unit speed, Euler", {"speed": "unit"}, 1)}
    found = {}
    for speed in ("unit", "gradient"):
        heun = {"speed": speed, "solver": diffrax.Heun()}
        found[f"{speed}_euler"] = Method(f"{speed} speed, Euler", {"speed": speed}, 1)
        found[f"{speed}_heun"] = Method(f"{speed} speed, Heun", heun, HEUN)
        found[f"{speed}_adaptive"] = _adaptive(f"{speed} speed,", _TOLERANCES[0], speed=speed)
    return found


def compiled(fn: Callable, model: Any, xs: Any, goals: Any, box: Any, **options: Any) -> Any:
    """Compile `foliax.map` of `drift` or `walk` for arguments like these."""

    def program(model: Any, xs: Any, goals: Any, box: Any) -> Any:
        return foliax.map(fn, model, xs, goals, box=box, **options)

    return eqx.filter_jit(program).lower(model, xs, goals, box).compile()


def timed(program: Any, *arguments: Any) -> tuple[Any, float]:
    """Run to the end; return the paths, and the seconds."""
    start = time.perf_counter()
    path = jax.block_until_ready(program(*arguments))
    return jax.tree.map(np.asarray, path), time.perf_counter() - start
