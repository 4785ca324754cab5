"""What keeps p along a kernel leaf, and what it costs: schemes, solvers and tolerances compared.

    python -m experiments.drift --out out/drift
    python -m experiments.drift --dataset fashion_mnist --weights cnn.npz --images 12

What pays. Along the kernel, Euler with the exact scheme: on 32 digits, 1000 steps of 0.1, it moves
p by 7e-6 (median) and 3e-5 at worst, where the published step moves it by 0.66 and 0.92. On 100
Fashion-MNIST images and a convolutional network it moves p by 8e-7 and 1.9e-6 at worst, where the
published step moves it by 0.56 and 0.97, and ends farther away (41.9 for 41.3, medians); the box
ends 11 of the 100 before the last step, none before the 725th. A better
solver adds nothing, because each step ends with a correction back onto the level set, which sets
the drift of p whatever the solver: Heun and Tsit5 spend three and seven times the Jacobians for the
same drift and the same distance. Adaptive Tsit5 does not pay there either: the direction jumps
where a pixel meets its bound, and 8×8 digits are soon held by their box. At a tolerance of 1e-2 it
spends 1.4 times Euler's Jacobians and ends at the same place, at 1e-3 as many as with constant
steps. It pays while the way is free: over the first 150 steps of two Fashion-MNIST images (a
convolutional network), 1e-3 takes 97 Jacobians for Euler's 151, as far and as exactly, in half the
time.

Toward a target the walk ends at the foot of the perpendicular, after some fifty Jacobians. Euler is
there first; speed="gradient" needs somewhat fewer Jacobians than "unit" (50 for 56 on digits, 34
for 60 on Fashion-MNIST). Adaptive Tsit5 needs more than twice as many on digits, and the distance
left differs by about 0.02 of that at the start.

The exact step costs more than the published one by what holding and correcting needs: little
beside the Jacobian of a convolutional network; on a small dense one 1.2 times the whole over the
first 200 steps, 3.4 times over 1000, most of them spent against the box (on a busy machine).
Jacobians are counted: one at the start and one a step with Euler, s + 1 a step with s stages, and
those of rejected steps.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import diffrax
import jax
import numpy as np
import tyro
from tqdm import tqdm

import foliax
from experiments.drift.integrators import HEUN, TSIT5, Method, adaptive, compiled, joined, timed
from experiments.harness.common import endings, load, provenance, write_json
from experiments.harness.run import running
from foliax import viz, zoo

KEPT = (1e-4, 1e-3)  # changes of p that are counted as none
_ROWS = 50  # points kept of a path
_JACOBIANS = 1000  # what every walk toward a target may spend


@dataclass(frozen=True)
class Config:
    """What to measure, and where to write.

    Attributes:
        dataset: Whose test images move.
        checkpoint: Folder of a training to take the network from.
        weights: PyTorch weights of the papers' network, .npz or .pt, in place of a checkpoint.
            With neither, digits take the network that comes with foliax.
        out: Output folder.
        images: Test images, from the first; rounded down to a multiple of `rounds`.
        steps: Steps along the kernel; the slides take 1000.
        step: Length of a step, normalised units.
        methods: Which schemes drift along the kernel: "published", "euler", "heun", "tsit5",
            "adaptive_0.01", …; all where none is named. The first two always run.
        tolerances: rtol = atol of the adaptive runs.
        walks: Walks on digits, in the comparison of block sizes; 0 leaves it out.
        blocks: The block sizes.
        rounds: The images are cut into so many parts; schemes take turns on each, and the median
            of the ratios of times is reported, as other work on the machine comes and goes.
        seed: Draws the directions.
        quick: A few images, few steps, and the solvers that differ most.
    """

    dataset: Literal["digits", "fashion_mnist"] = "digits"
    checkpoint: Path | None = None
    weights: Path | None = None
    out: Path = Path("out/drift")
    images: int = 32
    steps: int = 1000
    step: float = 0.1
    methods: tuple[str, ...] = ()
    tolerances: tuple[float, ...] = (1e-2, 1e-3)
    walks: int = 256
    blocks: tuple[int, ...] = (1, 4, 16, 256)
    rounds: int = 4
    seed: int = 0
    quick: bool = False

    def effective(self) -> "Config":
        """Return what is run: itself, or a smaller one."""
        if not self.quick:
            return self
        return replace(
            self, images=min(self.images, 4), steps=min(self.steps, 200), tolerances=(1e-3,),
            walks=min(self.walks, 32), blocks=(1, 16), rounds=2,
        )  # fmt: skip


def methods(config: Config) -> dict[str, Method]:
    """Return the ways to drift along the kernel."""
    found = {
        "published": Method("published Euler", {"scheme": "published"}, 1),
        "euler": Method("exact Euler", {}, 1),
    }
    if not config.quick:
        found["heun"] = Method("exact Heun", {"solver": diffrax.Heun()}, HEUN)
        found["tsit5"] = Method("exact Tsit5", {"solver": diffrax.Tsit5()}, TSIT5)
    for tolerance in config.tolerances:
        label = f"exact Tsit5, adaptive {tolerance:g}"
        found[f"adaptive_{tolerance:g}"] = Method(label, adaptive(tolerance), TSIT5)
    if unknown := set(config.methods) - set(found):
        raise ValueError(f"methods must be among {', '.join(found)}, got {sorted(unknown)}")
    wanted = {"published", "euler", *(config.methods or found)}  # those two are what is compared
    return {name: way for name, way in found.items() if name in wanted}


# --- along the kernel --------------------------------------------------------------------------


def kernel(
    model: Any, dataset: Any, config: Config, bar: Any
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Drift every image by every method.

    Returns:
        What was measured, the times, and the paths, each by method.
    """
    ways, box = methods(config), dataset.box
    count = config.images // config.rounds * config.rounds
    xs = dataset.test_x[:count]
    directions = np.asarray(jax.random.normal(jax.random.key(config.seed), xs.shape, xs.dtype))
    cut = (np.split(array, config.rounds) for array in (xs, directions))
    parts: list[tuple[Any, Any]] = list(zip(*cut, strict=True))
    shared: dict[str, Any] = {
        "along": "kernel", "step": config.step, "max_steps": config.steps,
        "save_every": max(1, config.steps // _ROWS), "block": 1,
    }  # fmt: skip
    programs = {}
    for name, way in ways.items():
        bar.set_description(f"compile {way.label}")
        options = shared | way.options
        programs[name] = compiled(foliax.drifts, model, *parts[0], box, **options)
        bar.update()
    found: dict[str, list[tuple[Any, float, float]]] = {name: [] for name in ways}
    for part in parts:
        for name, way in ways.items():
            bar.set_description(way.label)
            path, seconds = timed(programs[name], model, *part, box)
            found[name].append((path, seconds, way.jacobians(path)))
            bar.update()
    paths = {name: joined([path for path, _, _ in runs]) for name, runs in found.items()}
    numbers = {
        name: measure(paths[name], float(np.mean([spent for _, _, spent in found[name]])))
        | {"label": way.label}
        for name, way in ways.items()
    }
    return numbers, times(found, ways), paths


def measure(path: Any, jacobians: float) -> dict[str, Any]:
    """Return what a population of drifts kept of p, how far it came, and what it spent."""
    worst = path.drift.max(axis=1)
    median, most, largest = np.quantile(worst, (0.5, 0.9, 1))
    return {
        "drift": {"median": median, "90%": most, "largest": largest},
        "within": {f"{kept:g}": np.mean(worst <= kept) for kept in KEPT},
        "distance": np.median(path.distance.max(axis=1)),
        "box_excess": path.box_excess.max(),
        "steps": np.median(path.num_steps),
        "jacobians": jacobians,
        "ended": endings(path),
    }


def times(found: dict[str, Any], ways: dict[str, Method]) -> dict[str, Any]:
    """Return seconds a step, and ratios to the published scheme, run next to it."""
    tables = {}
    for name, runs in found.items():
        tried = [max(1.0, (spent - 1) / ways[name].each) for _, _, spent in runs]
        images = [len(path.num_steps) for path, _, _ in runs]
        each = [s / n / t for (_, s, _), n, t in zip(runs, images, tried, strict=True)]
        tables[name] = (np.array(each), np.array([seconds for _, seconds, _ in runs]))
    steps, whole = tables["published"]
    return {
        name: {
            "ms_per_step": 1e3 * float(np.median(each)),
            "per_step_to_published": float(np.median(each / steps)),
            "per_image_to_published": float(np.median(seconds / whole)),
        }
        for name, (each, seconds) in tables.items()
    }


# --- toward a target ---------------------------------------------------------------------------


def toward(model: Any, dataset: Any, config: Config, bar: Any) -> dict[str, Any]:
    """Walk along the leaf toward the next image, every method with the same Jacobians to spend.

    A solver of more stages takes fewer and longer steps: the path may be as long for all.
    """
    count = config.images // config.rounds * config.rounds
    xs, targets = dataset.test_x[:count], np.roll(dataset.test_x[:count], 1, axis=0)
    start = np.linalg.norm((xs - targets).reshape(count, -1), axis=1)
    budget = min(_JACOBIANS, config.steps)
    found = {}
    for name, way in target_methods(config).items():
        bar.set_description(way.label)
        options = {
            "along": "leaf", "arrival": 0.0, "block": 1, "step": config.step * way.each,
            "max_steps": budget // way.each, "save_every": budget // way.each,
        }  # fmt: skip
        program = compiled(foliax.walks, model, xs, targets, None, **options, **way.options)
        path, _ = timed(program, model, xs, targets, None)
        spent, left = way.jacobians(path), path.distance[:, -1] / start
        found[name] = {
            "label": way.label,
            "residual": np.median(left),
            "tangent_fraction": np.median(path.tangent_fraction[:, -1]),
            "jacobians": spent,
            "approach_per_1000_jacobians": np.median(1 - left) * 1000 / spent,
            "steps": np.median(path.num_steps),
            "ended": endings(path),
        }
        bar.update()
    return found


def target_methods(config: Config) -> dict[str, Method]:
    """Return the ways to walk toward a target."""
    found = {}
    for speed in ("unit",) if config.quick else ("unit", "gradient"):
        options: dict[str, Any] = {"speed": speed}
        found[f"{speed}_euler"] = Method(f"{speed} speed, Euler", options, 1)
        if config.quick:
            continue
        heun = options | {"solver": diffrax.Heun()}
        found[f"{speed}_heun"] = Method(f"{speed} speed, Heun", heun, HEUN)
        label = f"{speed} speed, Tsit5, adaptive {config.tolerances[0]:g}"
        tsit5 = options | adaptive(config.tolerances[0])
        found[f"{speed}_adaptive"] = Method(label, tsit5, TSIT5)
    return found


# --- blocks ------------------------------------------------------------------------------------


def by_block(config: Config, bar: Any) -> tuple[dict[str, Any], dict[str, float]]:
    """Walk many pairs of digits at several block sizes: steps needed, steps run, and seconds."""
    if not config.walks:
        return {}, {}
    model, dataset = zoo.load("digits_mlp"), zoo.load_dataset("digits")
    xs = dataset.test_x[: config.walks]
    targets = np.roll(xs, 1, axis=0)
    numbers: dict[str, Any] = {"walks": len(xs), "max_steps": config.steps}
    seconds = {}
    for block in config.blocks:
        bar.set_description(f"{len(xs)} walks in blocks of {block}")
        options = {"block": block, "max_steps": config.steps, "save_every": config.steps}
        program = compiled(foliax.walks, model, xs, targets, None, **options)
        runs = [timed(program, model, xs, targets, None) for _ in range(3)]
        steps = runs[0][0].num_steps
        numbers |= {"steps_needed": steps.sum(), "longest": steps.max()}
        numbers[f"steps_run_{block}"] = steps_run(steps, block)
        seconds[str(block)] = min(second for _, second in runs)
        bar.update()
    return numbers, seconds


def steps_run(steps: np.ndarray, block: int) -> int:
    """Return the steps of all lanes when each block goes on until its slowest walk has ended."""
    blocks = [steps[i : i + block] for i in range(0, len(steps), block)]
    return sum(int(lanes.max()) * len(lanes) for lanes in blocks)


# --- the whole ---------------------------------------------------------------------------------


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
    blocks = len(config.blocks) if config.walks else 0
    total = (1 + config.rounds) * len(methods(config)) + len(target_methods(config)) + blocks
    start = time.perf_counter()
    with tqdm(total=total) as bar:
        numbers, seconds, paths = kernel(model, dataset, config, bar)
        targets = toward(model, dataset, config, bar)
        block_steps, block_seconds = by_block(config, bar)
    results = {
        "dataset": config.dataset,
        "network": origin,
        "images": len(paths["euler"].num_steps),
        "max_steps": config.steps,
        "step": config.step,
        "kernel": numbers,
        "toward_target": targets,
        "blocks": block_steps,
    }
    draw(paths, numbers, config.out / "drift.png")
    write_json(config.out / "results.json", results)
    spent = {"all": round(time.perf_counter() - start, 3)}
    timing = {"kernel": seconds, "blocks": block_seconds}
    write_json(config.out / "run.json", provenance(config.seed, spent) | {"timing": timing})
    print("\n".join(tables(results, timing)))
    return results | {"timing": timing}


def draw(paths: dict[str, Any], numbers: dict[str, Any], path: Path) -> None:
    """Draw drift of p and distance against the step, for the methods whose steps are equal."""
    drifts, distances = [], []
    for name, found in paths.items():
        if name.startswith("adaptive"):
            continue
        steps = found.steps.max(axis=0)
        floor = float(np.finfo(np.float32).eps) / 4  # a logarithmic axis has no zero
        low, middle, high = np.quantile(np.maximum(found.drift, floor), (0.1, 0.5, 0.9), axis=0)
        label = numbers[name]["label"]
        drifts.append(viz.Curve(label, steps[1:], middle[1:], low[1:], high[1:]))
        distances.append(viz.Curve(label, steps, np.median(found.distance, axis=0)))
    title = "Drift of p along the kernel (median; 10 to 90 %)"
    viz.curves(
        [
            viz.Panel(title, "step", "max |p - p(start)|", drifts, log=True),
            viz.Panel("Distance from the start (median)", "step", "normalised units", distances),
        ],
        path,
    )


def tables(results: dict[str, Any], timing: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of what is printed."""
    yield f"\nAlong the kernel: {results['images']} images, {results['max_steps']} steps"
    yield (
        f"{'':30} {'median':>9} {'90 %':>9} {'largest':>9} {'<=1e-4':>7} {'<=1e-3':>7} "
        f"{'distance':>9} {'steps':>6} {'Jacobians':>9} {'t/step':>7} {'t/image':>7}"
    )
    for name, row in results["kernel"].items():
        drift, seconds = row["drift"], timing["kernel"][name]
        yield (
            f"{row['label']:30} {drift['median']:9.2g} {drift['90%']:9.2g} "
            f"{drift['largest']:9.2g} "
            + " ".join(f"{row['within'][f'{kept:g}']:7.3f}" for kept in KEPT)
            + f" {row['distance']:9.2f} {row['steps']:6.0f} {row['jacobians']:9.0f} "
            f"{seconds['per_step_to_published']:7.2f} {seconds['per_image_to_published']:7.2f}"
        )
    yield f"\nToward a target, along the leaf\n{'':36} {'residual':>9} {'tangent':>9} " + (
        f"{'Jacobians':>9} {'approach/1000':>13} {'stalled':>8}"
    )
    for row in results["toward_target"].values():
        yield (
            f"{row['label']:36} {row['residual']:9.3f} {row['tangent_fraction']:9.2g} "
            f"{row['jacobians']:9.0f} {row['approach_per_1000_jacobians']:13.2f} "
            f"{row['ended']['stalled']:8.2f}"
        )
    blocks = results["blocks"]
    if blocks:
        yield f"\n{blocks['walks']} walks on digits, {blocks['steps_needed']} steps needed"
    for block, seconds in timing["blocks"].items():
        ran, needed = int(blocks[f"steps_run_{block}"]), int(blocks["steps_needed"])
        yield (
            f"blocks of {block:>3}: {seconds:7.3f} s, {ran} lanes x steps, "
            f"{1e6 * seconds / needed:.1f} us a step needed, {1e6 * seconds / ran:.1f} run"
        )


def main() -> None:
    """Run from the command line."""
    config = tyro.cli(Config, prog="python -m experiments.drift", description=__doc__)
    with running("drift", config.out):
        run(config)


if __name__ == "__main__":
    main()
