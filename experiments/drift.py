"""What keeps p along a kernel leaf, and what it costs: schemes, solvers and tolerances compared.

    python -m experiments.drift --out out/drift
    python -m experiments.drift --dataset fashion_mnist --weights cnn.npz --images 12

drifts test images along the kernel and walks them toward others along the leaf, and counts what
each integrator keeps of p, how far it comes and how many Jacobians it spends. Writes `drift.png`,
`table.md`, `results.json` and `run.json`, with the times. What was found is in the README of the
experiments.

Jacobians are counted: one at the start and one a step with Euler, s + 1 a step with s stages, and
those of rejected steps.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import numpy as np

import foliax
from experiments.harness.command import Network, script
from experiments.harness.populations import endings, norms
from experiments.harness.report import look_up, markdown_table, write_numbers
from experiments.harness.run import Stages
from foliax import viz

KEPT = (1e-4, 1e-3)  # changes of p that are counted as none
HEUN, TSIT5 = 3, 8  # Jacobians a step: of s stages, s for it and one for the model at its end
_TOLERANCES = (1e-3, 1e-2)  # rtol = atol of the adaptive runs
_ROWS = 50  # points kept of a path
_JACOBIANS = 1000  # what every walk toward a target may spend


@dataclass(frozen=True)
class Config(Network):
    """What to measure, and where to write."""

    images: int = 32  # Test images, from the first; rounded down to a multiple of `rounds`
    steps: int = 1000  # Steps along the kernel; the slides take 1000
    step: float = 0.1  # Length of a step, normalised units
    # The images are cut into so many parts; schemes take turns on each, and the median of the
    # ratios of times is reported, as other work on the machine comes and goes.
    rounds: int = 4


class Method(NamedTuple):
    """A way to integrate: its label, options of `foliax.drift` or `walk`, Jacobians a step."""

    label: str
    options: dict[str, Any]
    each: int = 1

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
        "published": Method("published Euler", {"scheme": "published"}),
        "euler": Method("exact Euler", {}),
    }
    adaptive = {f"adaptive_{each:g}": _adaptive("exact", each) for each in _TOLERANCES}
    if quick:
        return found | {name: adaptive[name] for name in list(adaptive)[:1]}
    found["heun"] = Method("exact Heun", {"solver": diffrax.Heun()}, HEUN)
    found["tsit5"] = Method("exact Tsit5", {"solver": diffrax.Tsit5()}, TSIT5)
    return found | adaptive


def target_methods(*, quick: bool) -> dict[str, Method]:
    """Return the ways to walk toward a target."""
    found = {}
    for speed in ("unit", "gradient"):
        heun = {"speed": speed, "solver": diffrax.Heun()}
        found[f"{speed}_euler"] = Method(f"{speed} speed, Euler", {"speed": speed})
        found[f"{speed}_heun"] = Method(f"{speed} speed, Heun", heun, HEUN)
        found[f"{speed}_adaptive"] = _adaptive(f"{speed} speed,", _TOLERANCES[1], speed=speed)
    return {"unit_euler": found["unit_euler"]} if quick else found


def compiled(fn: Callable, model: Any, xs: Any, goals: Any, box: Any, **options: Any) -> Any:
    """Compile `foliax.map` of `drift` or `walk`; the program returns paths and seconds."""

    def program(model: Any, xs: Any, goals: Any, box: Any) -> Any:
        return foliax.map(fn, model, xs, goals, box=box, block=1, **options)

    ready = eqx.filter_jit(program).lower(model, xs, goals, box).compile()

    def timed(*arguments: Any) -> tuple[Any, float]:
        start = time.perf_counter()
        path = jax.block_until_ready(ready(*arguments))
        return jax.tree.map(np.asarray, path), time.perf_counter() - start

    return timed


def kernel(
    model: Any, box: Any, xs: np.ndarray, config: Config, stages: Stages
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Drift every image by every method; return numbers, times and paths, each by method."""
    methods = kernel_methods(quick=config.quick)
    directions = np.asarray(jax.random.normal(jax.random.key(config.seed), xs.shape, xs.dtype))
    cut = (np.split(each, config.rounds) for each in (xs, directions))
    parts: list[tuple[Any, Any]] = list(zip(*cut, strict=True))
    every = max(1, config.steps // _ROWS)
    programs = {
        name: stages.run(
            f"compile {method.label}", compiled, foliax.drift, model, *parts[0], box,
            along="kernel", step=config.step, max_steps=config.steps, save_every=every,
            **method.options,
        )
        for name, method in methods.items()
    }  # fmt: skip
    runs: dict[str, list[tuple[Any, float]]] = {name: [] for name in methods}
    for part in parts:
        for name, method in methods.items():
            runs[name].append(stages.run(method.label, programs[name], model, *part, box))
    paths = {
        name: jax.tree.map(lambda *leaves: np.concatenate(leaves), *(path for path, _ in found))
        for name, found in runs.items()
    }
    numbers = {name: measure(paths[name], method) for name, method in methods.items()}
    return numbers, times(runs), paths


def measure(path: Any, method: Method) -> dict[str, Any]:
    """Return what a population of drifts kept of p, how far it came, and what it spent."""
    worst = path.probability_change.max(axis=1)
    median, most, largest = np.quantile(worst, (0.5, 0.9, 1))
    return {
        "label": method.label,
        "drift": {"median": median, "90%": most, "largest": largest},
        "within": {f"{kept:g}": np.mean(worst <= kept) for kept in KEPT},
        "distance": np.median(path.distance.max(axis=1)),
        "box_excess": path.box_excess.max(),
        "steps": np.median(path.num_steps),
        "jacobians": method.jacobians(path),
        "ended": endings(path),
    }


def times(runs: dict[str, list[tuple[Any, float]]]) -> dict[str, Any]:
    """Return milliseconds a step, and ratios to the published scheme, run next to it."""
    spent = {name: np.array([seconds for _, seconds in each]) for name, each in runs.items()}
    per_step = {
        name: spent[name] / [np.maximum(path.num_attempts, 1).sum() for path, _ in each]
        for name, each in runs.items()
    }
    return {
        name: {
            "ms_per_step": 1e3 * float(np.median(per_step[name])),
            "per_step_to_published": float(np.median(per_step[name] / per_step["published"])),
            "per_image_to_published": float(np.median(spent[name] / spent["published"])),
        }
        for name in runs
    }


def toward(model: Any, xs: np.ndarray, config: Config, stages: Stages) -> dict[str, Any]:
    """Walk along the leaf toward the next image, every method with the same Jacobians to spend.

    A solver of more stages takes fewer and longer steps: the path may be as long for all.
    """
    targets, budget = np.roll(xs, 1, axis=0), min(_JACOBIANS, config.steps)
    start, found = norms(xs - targets), {}
    for name, method in target_methods(quick=config.quick).items():
        steps = budget // method.each
        program = stages.run(
            f"compile {method.label}", compiled, foliax.walk, model, xs, targets, None,
            along="leaf", arrival=0.0, step=config.step * method.each, max_steps=steps,
            save_every=steps, **method.options,
        )  # fmt: skip
        path, _ = stages.run(method.label, program, model, xs, targets, None)
        spent, remaining = method.jacobians(path), path.distance[:, -1] / start
        found[name] = {
            "label": method.label,
            "residual": np.median(remaining),
            "tangent_fraction": np.median(path.tangent_fraction[:, -1]),
            "jacobians": spent,
            "approach_per_1000_jacobians": np.median(1 - remaining) * 1000 / spent,
            "steps": np.median(path.num_steps),
            "ended": endings(path),
        }
    return found


def run(config: Config) -> dict[str, Any]:
    """Measure, write `results.json`, `run.json`, the tables and the picture."""
    config = config.at_most(images=4, steps=200, rounds=2)
    if not 1 <= config.rounds <= config.images:
        raise ValueError(
            f"images must be at least rounds, got images={config.images}, rounds={config.rounds}"
        )
    model, dataset, origin = config.load()
    xs = dataset.test_x[: config.images // config.rounds * config.rounds]
    drifts, walks = (each(quick=config.quick) for each in (kernel_methods, target_methods))
    stages = Stages("drift", (1 + config.rounds) * len(drifts) + 2 * len(walks))
    numbers, spent, paths = kernel(model, dataset.box, xs, config, stages)
    results = {
        "dataset": dataset.name,
        "network": origin,
        "images": len(xs),
        "max_steps": config.steps,
        "step": config.step,
        "kernel": numbers,
        "toward_target": toward(model, xs, config, stages),
    }
    draw(paths, numbers, config.out / "drift.png")
    return write_numbers(
        config.out, results, seed=config.seed, seconds=stages.seconds,
        table=tables(results, spent), timing={"kernel": spent},
    )  # fmt: skip


def draw(paths: dict[str, Any], numbers: dict[str, Any], path: Path) -> None:
    """Draw drift of p and distance against the step, for the methods whose steps are equal."""
    drifts, distances = [], []
    floor = float(np.finfo(np.float32).eps) / 4  # a logarithmic axis has no zero
    for name, found in paths.items():
        if name.startswith("adaptive"):
            continue
        label, steps = numbers[name]["label"], found.steps.max(axis=0)
        low, middle, high = np.quantile(
            np.maximum(found.probability_change, floor), (0.1, 0.5, 0.9), axis=0
        )
        drifts.append(viz.Curve(label, steps[1:], middle[1:], low[1:], high[1:]))
        distances.append(viz.Curve(label, steps, np.median(found.distance, axis=0)))
    title = "Drift of p along the kernel (median; 10 to 90 %)"
    panels = [
        viz.Panel(title, "step", "max |p - p(start)|", drifts, log=True),
        viz.Panel("Distance from the start (median)", "step", "normalised units", distances),
    ]
    viz.curves(panels, path)


def tables(results: dict[str, Any], times: dict[str, Any]) -> str:
    """Return what was kept and spent along the kernel, and toward a target."""
    along = {
        "drift of p, median": "drift.median", "90 %": "drift.90%", "largest": "drift.largest",
        "distance": "distance", "steps": "steps", "Jacobians": "jacobians",
        "time a step": "per_step_to_published", "time an image": "per_image_to_published",
    }  # fmt: skip
    to_target = {
        "residual": "residual", "tangent fraction": "tangent_fraction", "Jacobians": "jacobians",
        "approach per 1000": "approach_per_1000_jacobians", "stalled": "ended.stalled",
    }  # fmt: skip
    kernel = {name: row | times[name] for name, row in results["kernel"].items()}
    return (
        f"Along the kernel: {results['images']} images, {results['max_steps']} steps; times over "
        f"those of the published scheme.\n\n{_table(kernel, along)}\n\n"
        f"Toward a target, along the leaf.\n\n{_table(results['toward_target'], to_target)}"
    )


def _table(rows: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    cells = ([row["label"], *(f"{look_up(row, path):.3g}" for path in columns.values())]
             for row in rows.values())  # fmt: skip
    return markdown_table([["", *columns], *cells])


if __name__ == "__main__":
    script(Config, run, name="drift", description=__doc__)
