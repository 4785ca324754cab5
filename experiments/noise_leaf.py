"""S7: noisy images are joined along a noisy leaf.

    python -m experiments.noise_leaf --start 3 --end 17 --out out/noise_leaf
    python -m experiments.noise_leaf --checkpoint out/train --epoch 2 --pairs 100

drifts images along the kernel until they are noisy, walks from there on the leaf toward another
noisy image and toward a clean one, with the exact and the published scheme, and writes the strip,
the level of noise along the walks, `results.json`, `paths.json` (every path point by point),
`run.json` and `report.html`.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import data_leaf, kernel, noise_level
from experiments.harness import command as _command
from experiments.harness import noise as _noise
from experiments.harness.common import (
    FAILS,
    HOLDS,
    IN_PART,
    caption,
    live_rows,
    norms,
    percent,
    pick,
    predict,
    quartiles,
)
from experiments.harness.leaf_pictures import padded
from experiments.harness.population import records
from experiments.harness.report import section
from foliax import viz

TARGETS = ("noisy", "clean")


@dataclass(frozen=True)
class Config:
    """How noisy, and what counts as the same level.

    Attributes:
        noise_steps: Kernel steps that make the noisy images.
        same: Largest change of the level that still counts as none, pixel range.
        frames: Pictures in a row of the strip, without start and target.
    """

    noise_steps: int = 40
    same: float = _noise.SAME
    frames: int = 7


class Walked(NamedTuple):
    """Leaf walks from noisy images.

    Attributes:
        clean: The images before they were made noisy.
        starts: The noisy images.
        targets: Noisy and clean ones.
        paths: By target and scheme, what `data_leaf.walk_pairs` gave.
    """

    clean: np.ndarray
    starts: np.ndarray
    targets: dict[str, np.ndarray]
    paths: dict[str, dict[str, Any]]


def walk(
    model: Any,
    dataset: Any,
    config: Config,
    leaf: data_leaf.Config,
    drift: kernel.Config,
    *,
    noisy: Any = None,
) -> Walked:
    """Make the images of all pairs noisy along the kernel, then walk on the leaf of each.

    Args:
        model: The classifier.
        dataset: Its data.
        config: How noisy.
        leaf: Which pairs are walked.
        drift: How the kernel paths run.
        noisy: The exact paths of `kernel.drift_images` from the starts, to spare drifting again.

    Returns:
        The walks.

    Raises:
        ValueError: If no point is kept at the step at which images are noisy enough.
    """
    row, beyond = divmod(config.noise_steps, drift.save_every)
    if beyond or config.noise_steps > drift.max_steps:
        raise ValueError(
            f"noise_steps must be a multiple of save_every = {drift.save_every}, at most "
            f"{drift.max_steps}, got {config.noise_steps}"
        )
    clean, others = data_leaf.pairs(dataset, leaf)
    short = replace(drift, max_steps=config.noise_steps)
    if noisy is None:
        noisy = kernel.drift_images(model, dataset, clean, short, schemes=("exact",))["exact"]
    # Another image's noise is drawn in another direction.
    other = replace(short, seed=drift.seed + 1)
    far = kernel.drift_images(model, dataset, others, other, schemes=("exact",))["exact"]
    starts, targets = noisy.points[:, row], {"noisy": far.points[:, row], "clean": others}
    paths = {
        name: data_leaf.walk_pairs(model, dataset, starts, t, leaf) for name, t in targets.items()
    }
    return Walked(clean, starts, targets, paths)


def run(
    model: Any,
    dataset: Any,
    out: Path,
    config: Config,
    leaf: data_leaf.Config,
    level: noise_level.Config,
    drift: kernel.Config,
    *,
    noisy: Any = None,
    walked: Walked | None = None,
) -> dict[str, Any]:
    """Make images noisy along the kernel, then walk on the leaf of each.

    Args:
        model: The classifier.
        dataset: Its data.
        out: Folder for the pictures.
        config: How noisy.
        leaf: Which pairs are walked.
        level: How noise is read.
        drift: How the kernel paths run.
        noisy: The exact paths of `kernel.drift_images` from the starts, to spare drifting again.
        walked: What `walk` gave, to spare walking again.

    Returns:
        The section of the report; see `_report.section`.
    """
    walked = walked or walk(model, dataset, config, leaf, drift, noisy=noisy)
    clean, starts, targets, paths = walked
    calibration = _noise.calibrate(dataset, level.seed, len(dataset.test_x), level.sigmas)
    along = {
        name: _levels(model, dataset, clean, paths[name]["exact"], calibration) for name in TARGETS
    }
    numbers: dict[str, Any] = {
        "num_pairs": len(clean),
        "noise_steps": config.noise_steps,
        "estimator": _noise.estimator(dataset.shape),
    }
    numbers |= {
        name: _measure(model, paths[name], along[name], starts, targets[name], dataset)
        for name in TARGETS
    }
    residuals = norms(targets["noisy"] - paths["noisy"]["exact"].best)
    order = np.argsort(residuals / norms(targets["noisy"] - starts), kind="stable")
    shown = int(order[len(order) // 2])
    numbers["shown_pair"] = shown
    _draw(model, dataset, clean, targets, paths, shown, out / "noise_leaf.png", config)
    _draw_levels(paths, along, out / "noise_leaf_level.png", leaf)
    return section(
        title="Noisy images are joined along a noisy leaf",
        claim="We can connect a noisy datum with any other datum with the same level of noise.",
        verdict=_judge(numbers, config, leaf),
        numbers=numbers,
        pictures=[
            (
                "noise_leaf.png",
                f"A test image, the same after {config.noise_steps} steps along the kernel, its "
                "leaf walk, and the target, noisy in the first row and clean in the second; the "
                "pair with the median residual toward the noisy target.",
            ),
            (
                "noise_leaf_level.png",
                f"Mean level of noise ({numbers['estimator']}, calibrated), and the kernel "
                "component seen from the clean image, along the leaf walks from the noisy images.",
            ),
        ],
        columns=("", "toward noisy", "toward clean"),
        rows=_rows(),
    )


def _levels(
    model: Any, dataset: Any, clean: Any, path: Any, calibration: Any
) -> dict[str, np.ndarray]:
    """Return, along paths, the mean level of noise and its kernel components from clean images."""
    base = calibration.sigma(_noise.whole_readings(dataset.to_pixels(clean)).mean())
    readings = _noise.path_readings(path, dataset, whole=True).mean(axis=0)
    parts = _noise.kernel_parts(model, clean, path.points)
    return {"level": calibration.sigma(readings) - base, "parts": _noise.rms(parts, dataset.std)}


def _measure(
    model: Any, paths: Any, along: Any, starts: Any, targets: Any, dataset: Any
) -> dict[str, Any]:
    """Return how the walks toward one kind of target ended, and how noisy they were."""
    level, parts = along["level"], along["parts"]
    published = data_leaf.measure(model, paths["published"], starts, targets, dataset)
    return data_leaf.measure(model, paths["exact"], starts, targets, dataset) | {
        "level": {
            "start": level[0],
            "end": level[-1],
            "largest": level.max(),
            "least": level.min(),
        },
        "kernel_component": {"start": quartiles(parts[:, 0]), "end": quartiles(parts[:, -1])},
        "arrived_published": published["ended"]["arrived"],
        "published": published,
    }


def _draw(
    model: Any,
    dataset: Any,
    clean: Any,
    targets: Any,
    paths: Any,
    shown: int,
    file: Path,
    config: Config,
) -> None:
    images, texts = [], []
    for name in TARGETS:
        path = pick(paths[name]["exact"], shown)
        rows = live_rows(path, config.frames)
        ends = np.stack([clean[shown], targets[name][shown]])
        between, told = padded(path, rows, config.frames, dataset.class_names)
        images += [ends[0], *between, ends[1]]
        first, last = (
            caption(where, label, p, dataset.class_names)
            for where, label, p in zip(
                ("clean image", f"{name} target"), *predict(model, ends), strict=True
            )
        )
        texts += [first, *told, last]
    labels = [f"toward the\n{name} target" for name in TARGETS]
    viz.strip(dataset.to_pixels(np.asarray(images)), texts, file, row_labels=labels)


def _draw_levels(paths: Any, along: Any, file: Path, leaf: Any) -> None:
    longest = max(int(paths[name]["exact"].num_steps.max()) for name in TARGETS)
    steps = np.arange(1 + longest // leaf.save_every) * leaf.save_every
    levels, parts = [], []
    for name in TARGETS:
        level, part = along[name]["level"][: len(steps)], along[name]["parts"][:, : len(steps)]
        levels.append(viz.Curve(f"toward {name}", steps, level))
        middle, low, high = np.quantile(part, (0.5, 0.25, 0.75), axis=0)
        parts.append(viz.Curve(f"toward {name}", steps, middle, low, high))
    start = np.full(len(steps), along["noisy"]["level"][0])
    levels.append(viz.Curve("at the start", steps, start, reference=True))
    viz.curves(
        [
            viz.Panel(
                "Equivalent noise", "step", "added noise (pixel range)", levels, y_range=(0, None)
            ),
            viz.Panel(
                "Kernel component from the clean image",
                "step",
                "rms (pixel range)",
                parts,
                y_range=(0, None),
            ),
        ],
        file,
    )


def _judge(numbers: dict[str, Any], config: Config, leaf: Any) -> tuple[str, str]:
    noisy, level = numbers["noisy"], numbers["noisy"]["level"]
    change = max(level["largest"] - level["start"], level["start"] - level["least"])
    arrived = noisy["ended"]["arrived"]
    part = noisy["kernel_component"]
    told = (
        f"After {numbers['noise_steps']} kernel steps, images read like clean ones with white "
        f"noise of {level['start']:.3g} of the pixel range. Walking on from there toward another "
        f"noisy image, the level stays between {level['least']:.3g} and {level['largest']:.3g} "
        f"(the kernel component from the clean image goes from {part['start']['median']:.3g} to "
        f"{part['end']['median']:.3g}); toward a clean image, it ends at "
        f"{numbers['clean']['level']['end']:.3g}. Of {numbers['num_pairs']} noisy pairs, "
        f"{percent(arrived)} arrive within {leaf.arrival:g} (published: "
        f"{percent(noisy['arrived_published'])}); the median residual is "
        f"{percent(noisy['residual']['median'])} of the start distance (published: "
        f"{percent(noisy['published']['residual']['median'])}). Walk by walk, the estimate stays "
        f"within {noisy['noise']['same']:g} of that of the start in "
        f"{percent(noisy['noise_of_whole']['share_kept'])} (published: "
        f"{percent(noisy['published']['noise_of_whole']['share_kept'])}). "
    )
    kept = change <= config.same
    told += f"The level is {'kept' if kept else 'not kept'} to {config.same:g}."
    if kept and arrived >= 0.99:
        return HOLDS, told
    if kept or arrived > 0.01:
        return IN_PART, told
    return FAILS, told


def _rows() -> list[tuple[str, ...]]:
    quoted = (
        ("share arrived (exact)", "ended.arrived"),
        ("share arrived (published)", "arrived_published"),
        ("share stalled", "ended.stalled"),
        ("residual / start distance, median (exact)", "residual.median"),
        ("residual / start distance, median (published)", "published.residual.median"),
        ("share whose noise stays the same (exact)", "noise_of_whole.share_kept"),
        ("share whose noise stays the same (published)", "published.noise_of_whole.share_kept"),
        ("share with the target's label", "label_of_target_reached"),
        ("level of noise at the start", "level.start"),
        ("level of noise at the end", "level.end"),
        ("kernel component at the start, median", "kernel_component.start.median"),
        ("kernel component at the end, median", "kernel_component.end.median"),
    )
    return [(label, *(f"{name}.{path}" for name in TARGETS)) for label, path in quoted]


@dataclass(frozen=True)
class Command(_command.PairCommand):
    """Which network, which pairs, how noisy, and how far they are walked.

    Attributes:
        noise: How noisy the images are made, root mean square in pixel units; about, as the pixel
            box holds some of it back.
        steps: Steps at most on the leaf.
        step: Length of a step, normalised units.
        save_every: Steps between the points kept.
    """

    noise: float = 0.2
    steps: int = 1000
    step: float = 0.1
    save_every: int = 10
    out: Path = Path("out/noise_leaf")


def noise_steps(dataset: Any, noise: float, *, step: float, save_every: int) -> int:
    """Return how many kernel steps add so much noise, where the pixel box does not hold them up."""
    length = noise * math.sqrt(math.prod(dataset.shape)) / float(np.mean(dataset.std))
    return save_every * max(1, round(length / step / save_every))


def measure_command(command: Command) -> _command.Found:
    """Walk the noisy pairs of a command."""
    loaded = command.load()
    model, dataset = loaded.model, loaded.dataset
    size: dict[str, Any] = {"step": command.step, "save_every": command.save_every}
    config = Config(noise_steps=noise_steps(dataset, command.noise, **size))
    leaf = data_leaf.Config(
        num_pairs=command.pairs, start=command.start, end=command.end, seed=command.seed,
        max_steps=min(command.steps, 60) if command.quick else command.steps, **size,
    )  # fmt: skip
    drift = kernel.Config(max_steps=config.noise_steps, seed=command.seed, **size)
    walked = walk(model, dataset, config, leaf, drift)
    level = noise_level.Config(seed=command.seed)
    found = run(model, dataset, command.out, config, leaf, level, drift, walked=walked)
    starts, ends = data_leaf.places(dataset, leaf)
    walks = {
        f"toward {name}, {scheme}": path
        for name, schemes in walked.paths.items()
        for scheme, path in schemes.items()
    }
    return _command.Found(loaded, {"S7": found}, {"S7": records(walks, dataset, starts, ends)})


if __name__ == "__main__":
    _command.main(Command, measure_command, name="noise_leaf", description=__doc__)
