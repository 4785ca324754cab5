"""What keeps p along a kernel leaf, and what it costs: schemes, solvers and tolerances compared.

    python -m experiments.drift --out out/drift
    python -m experiments.drift --dataset fashion_mnist --weights cnn.npz --images 12

drifts test images along the kernel and walks them toward others along the leaf, and counts what
each integrator keeps of p, how far it comes and how many Jacobians it spends. Writes `drift.png`,
`results.json` and `run.json`, with the times. What was found is in the README of the experiments.

Jacobians are counted: one at the start and one a step with Euler, s + 1 a step with s stages, and
those of rejected steps.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from tqdm import tqdm

import foliax
from experiments.drift.integrators import Method, compiled, kernel_methods, target_methods, timed
from experiments.harness.command import Run, script
from experiments.harness.files import provenance, write_json
from experiments.harness.networks import load
from experiments.harness.populations import endings, norms
from foliax import viz

KEPT = (1e-4, 1e-3)  # changes of p that are counted as none
_ROWS = 50  # points kept of a path
_JACOBIANS = 1000  # what every walk toward a target may spend


@dataclass(frozen=True)
class Config(Run):
    """What to measure, and where to write."""

    dataset: Literal["digits", "fashion_mnist"] = "digits"  # Whose test images move
    checkpoint: Path | None = None  # Folder of a training to take the network from
    # PyTorch weights of the papers' network, .npz or .pt, in place of a checkpoint. With neither,
    # digits take the network that comes with foliax.
    weights: Path | None = None
    out: Path = Path("out/drift")  # Output folder
    images: int = 32  # Test images, from the first; rounded down to a multiple of `rounds`
    steps: int = 1000  # Steps along the kernel; the slides take 1000
    step: float = 0.1  # Length of a step, normalised units
    # The images are cut into so many parts; schemes take turns on each, and the median of the
    # ratios of times is reported, as other work on the machine comes and goes.
    rounds: int = 4

    def effective(self) -> "Config":
        """Return what is run: itself, or a smaller one."""
        if not self.quick:
            return self
        return replace(self, images=min(self.images, 4), steps=min(self.steps, 200), rounds=2)


# --- along the kernel --------------------------------------------------------------------------


def kernel(
    model: Any, box: Any, xs: np.ndarray, config: Config, bar: Any
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Drift every image by every method; return numbers, times and paths, each by method."""
    methods = kernel_methods(quick=config.quick)
    directions = np.asarray(jax.random.normal(jax.random.key(config.seed), xs.shape, xs.dtype))
    cut = (np.split(each, config.rounds) for each in (xs, directions))
    parts: list[tuple[Any, Any]] = list(zip(*cut, strict=True))
    shared: dict[str, Any] = {
        "along": "kernel", "step": config.step, "max_steps": config.steps,
        "save_every": max(1, config.steps // _ROWS), "block": 1,
    }  # fmt: skip
    programs = {}
    for name, method in methods.items():
        bar.set_description(f"compile {method.label}")
        options = shared | method.options
        programs[name] = compiled(foliax.drift, model, *parts[0], box, **options)
        bar.update()
    runs: dict[str, list[tuple[Any, float]]] = {name: [] for name in methods}
    for part in parts:
        for name, method in methods.items():
            bar.set_description(method.label)
            runs[name].append(timed(programs[name], model, *part, box))
            bar.update()
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
    steps = {
        name: np.array([np.maximum(1, np.mean(path.num_attempts)) for path, _ in each])
        for name, each in runs.items()
    }
    per_step = {
        name: spent[name] / steps[name] / [len(path.num_steps) for path, _ in each]
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


# --- toward a target ---------------------------------------------------------------------------


def toward(model: Any, xs: np.ndarray, config: Config, bar: Any) -> dict[str, Any]:
    """Walk along the leaf toward the next image, every method with the same Jacobians to spend.

    A solver of more stages takes fewer and longer steps: the path may be as long for all.
    """
    targets, budget = np.roll(xs, 1, axis=0), min(_JACOBIANS, config.steps)
    start = norms(xs - targets)
    found = {}
    for name, method in target_methods(quick=config.quick).items():
        bar.set_description(method.label)
        options = {
            "along": "leaf", "arrival": 0.0, "block": 1, "step": config.step * method.each,
            "max_steps": budget // method.each, "save_every": budget // method.each,
        }  # fmt: skip
        options |= method.options
        program = compiled(foliax.walk, model, xs, targets, None, **options)
        path, _ = timed(program, model, xs, targets, None)
        spent, left = method.jacobians(path), path.distance[:, -1] / start
        found[name] = {
            "label": method.label,
            "residual": np.median(left),
            "tangent_fraction": np.median(path.tangent_fraction[:, -1]),
            "jacobians": spent,
            "approach_per_1000_jacobians": np.median(1 - left) * 1000 / spent,
            "steps": np.median(path.num_steps),
            "ended": endings(path),
        }
        bar.update()
    return found


# --- all ---------------------------------------------------------------------------------------


def run(config: Config) -> dict[str, Any]:
    """Measure, write `results.json`, `run.json` and the picture, print the tables."""
    config = config.effective()
    if not 1 <= config.rounds <= config.images:
        raise ValueError(
            f"images must be at least rounds, got images={config.images}, rounds={config.rounds}"
        )
    model, dataset, origin = load(
        config.dataset, checkpoint=config.checkpoint, weights=config.weights
    )
    xs = dataset.test_x[: config.images // config.rounds * config.rounds]
    methods = (kernel_methods(quick=config.quick), target_methods(quick=config.quick))
    start = time.perf_counter()
    with tqdm(total=(1 + config.rounds) * len(methods[0]) + len(methods[1])) as bar:
        numbers, seconds, paths = kernel(model, dataset.box, xs, config, bar)
        targets = toward(model, xs, config, bar)
    results = {
        "dataset": config.dataset,
        "network": origin,
        "images": len(xs),
        "max_steps": config.steps,
        "step": config.step,
        "kernel": numbers,
        "toward_target": targets,
    }
    draw(paths, numbers, config.out / "drift.png")
    write_json(config.out / "results.json", results)
    spent = {"all": round(time.perf_counter() - start, 3)}
    timing = {"timing": {"kernel": seconds}}
    write_json(config.out / "run.json", provenance(config.seed, spent) | timing)
    say(results, seconds)
    return results


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


def say(results: dict[str, Any], times: dict[str, Any]) -> None:
    """Print the tables."""
    print(f"\nAlong the kernel: {results['images']} images, {results['max_steps']} steps")
    columns = ("median", "90 %", "largest", "distance", "steps", "Jacobians", "t/step", "t/image")
    _print_row("", *columns)
    for name, row in results["kernel"].items():
        ratios = (times[name][f"per_{each}_to_published"] for each in ("step", "image"))
        rest = (row[key] for key in ("distance", "steps", "jacobians"))
        _print_row(row["label"], *row["drift"].values(), *rest, *ratios)
    print("\nToward a target, along the leaf")
    _print_row("", "residual", "tangent", "Jacobians", "per 1000", "stalled")
    keys = ("residual", "tangent_fraction", "jacobians", "approach_per_1000_jacobians")
    for row in results["toward_target"].values():
        _print_row(row["label"], *(row[key] for key in keys), row["ended"]["stalled"])


def _print_row(label: str, *cells: str | float) -> None:
    texts = (cell if isinstance(cell, str) else f"{cell:.3g}" for cell in cells)
    print(f"{label:36}" + " ".join(f"{text:>9}" for text in texts))


if __name__ == "__main__":
    script(Config, run, name="drift", description=__doc__)
