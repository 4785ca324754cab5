"""S7: noisy images are joined along a noisy leaf.

    python -m experiments.noise_leaf --start 3 --end 17 --out out/noise_leaf
    python -m experiments.noise_leaf --checkpoint out/train --epoch 2 --pairs 100

drifts images along the kernel until they are noisy, walks from there on the leaf toward another
noisy image and toward a clean one, with the exact and the published scheme, and writes the strip,
the level of noise along the walks, `results.json`, `paths.json` (every path point by point),
`run.json` and `report.html`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments import data_leaf
from experiments.harness import command, noise
from experiments.harness.pictures import caption, padded, quartile_curve
from experiments.harness.populations import live_rows, norms, pick, predict, quartiles, records
from experiments.harness.report import FAILS, HOLDS, IN_PART, percent, rows_of, section
from experiments.harness.study import ARRIVAL, Kind, Study, WalkCommand, places
from experiments.noise_level import calibrated
from foliax import viz

_TARGETS: tuple[Kind, ...] = ("noisy", "clean")
_FRAMES = 7  # pictures in a row of the strip, without start and target


def run(study: Study, out: Path) -> dict[str, Any]:
    """Make images noisy along the kernel, then walk on the leaf of each; return the section."""
    steps, estimator = study.sizes.noise_steps, noise.estimator(study.dataset.shape)
    along = {kind: _along(study, kind) for kind in _TARGETS}
    starts, targets = study.pair("noisy")
    residuals = norms(targets - study.leaf("exact", "noisy").best) / norms(targets - starts)
    shown = int(np.argsort(residuals, kind="stable")[len(starts) // 2])
    numbers: dict[str, Any] = {
        "num_pairs": len(starts),
        "noise_steps": steps,
        "estimator": estimator,
        "shown_pair": shown,
    }
    numbers |= {kind: _measure(study, kind, **along[kind]) for kind in _TARGETS}
    _draw(study, shown, out / "noise_leaf.png")
    _draw_levels(study, along, out / "noise_leaf_level.png")
    return section(
        title="Noisy images are joined along a noisy leaf",
        claim="We can connect a noisy datum with any other datum with the same level of noise.",
        verdict=_verdict(numbers),
        numbers=numbers,
        pictures={
            "noise_leaf.png": (
                f"A test image, its leaf walk after {steps} steps along the kernel, and the "
                "target, noisy above and clean below; the pair with the median residual."
            ),
            "noise_leaf_level.png": (
                f"Mean level of noise ({estimator}, calibrated), and the kernel component from the "
                "clean image, along the leaf walks from the noisy images."
            ),
        },
        columns=("", "toward noisy", "toward clean"),
        rows=rows_of(_TARGETS, _ROWS),
    )


def _along(study: Study, kind: Kind) -> dict[str, np.ndarray]:
    """Return, along paths, the mean level of noise and its kernel components from clean images."""
    (clean, _), data, path = study.pair(), study.dataset, study.leaf("exact", kind)
    calibration = calibrated(study)
    base = calibration.sigma(noise.whole_readings(data.to_pixels(clean)).mean())
    readings = noise.path_readings(path, data, whole=True).mean(axis=0)
    parts = noise.kernel_parts(study.model, clean, path.points)
    return {"level": calibration.sigma(readings) - base, "parts": noise.rms(parts, data.std)}


def _measure(study: Study, kind: Kind, level: np.ndarray, parts: np.ndarray) -> dict[str, Any]:
    """Return how the walks toward one kind of target ended, and how noisy they were."""
    published = data_leaf.measure(study, "published", kind)
    return data_leaf.measure(study, "exact", kind) | {
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


def _draw(study: Study, shown: int, file: Path) -> None:
    images, texts, names = [], [], study.dataset.class_names
    for kind in _TARGETS:
        path = pick(study.leaf("exact", kind), shown)
        ends = np.stack([study.pair()[0][shown], study.pair(kind)[1][shown]])
        between, lines = padded(path, live_rows(path, _FRAMES), _FRAMES, names)
        images += [ends[0], *between, ends[1]]
        (first, last), (p, q) = predict(study.model, ends)
        texts += [caption("clean image", first, p, names), *lines]
        texts.append(caption(f"{kind} target", last, q, names))
    pixels = study.dataset.to_pixels(np.asarray(images))
    viz.strip(pixels, texts, file, row_labels=[f"toward the\n{kind} target" for kind in _TARGETS])


def _draw_levels(study: Study, along: Any, file: Path) -> None:
    longest = max(int(study.leaf("exact", kind).num_steps.max()) for kind in _TARGETS)
    save_every = study.sizes.save_every
    steps = np.arange(1 + longest // save_every) * save_every
    levels, parts = [], []
    for kind in _TARGETS:
        levels.append(viz.Curve(f"toward {kind}", steps, along[kind]["level"][: len(steps)]))
        parts.append(quartile_curve(f"toward {kind}", steps, along[kind]["parts"][:, : len(steps)]))
    start = np.full(len(steps), along["noisy"]["level"][0])
    levels.append(viz.Curve("at the start", steps, start, reference=True))
    viz.curves(
        [
            viz.Panel(title, "step", label, lines, y_range=(0, None))
            for title, label, lines in (
                ("Equivalent noise", "added noise (pixel range)", levels),
                ("Kernel component from the clean image", "rms (pixel range)", parts),
            )
        ],
        file,
    )


def _verdict(numbers: dict[str, Any]) -> tuple[str, str]:
    exact, published = numbers["noisy"], numbers["noisy"]["published"]
    level, arrived = exact["level"], exact["ended"]["arrived"]
    kept = max(level["largest"] - level["start"], level["start"] - level["least"]) <= noise.SAME
    text = (
        f"After {numbers['noise_steps']} kernel steps, images read like clean ones with white "
        f"noise of {level['start']:.3g} of the pixel range. Toward another noisy image the level "
        f"stays between {level['least']:.3g} and {level['largest']:.3g}; toward a clean one it "
        f"ends at {numbers['clean']['level']['end']:.3g}. Of {numbers['num_pairs']} noisy pairs, "
        f"{percent(arrived)} arrive within {ARRIVAL:g}, and a median of "
        f"{percent(exact['residual']['median'])} of the start distance remains (published: "
        f"{percent(exact['arrived_published'])} and {percent(published['residual']['median'])}). "
        f"The level is {'kept' if kept else 'not kept'} to {noise.SAME:g}."
    )
    if kept and arrived >= 0.99:
        return HOLDS, text
    return (IN_PART if kept or arrived > 0.01 else FAILS), text


_ROWS = (
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


@dataclass(frozen=True)
class Command(WalkCommand):
    """Which network, which pairs, how noisy, and how far they are walked."""

    # How noisy the images are made, root mean square in pixel units; about, as the pixel box holds
    # some of it back.
    noise: float = 0.2


def noise_steps(dataset: Any, level: float, *, step: float, save_every: int) -> int:
    """Return how many kernel steps add so much noise, where the pixel box does not hold them up."""
    length = level * math.sqrt(math.prod(dataset.shape)) / float(np.mean(dataset.std))
    return save_every * max(1, round(length / step / save_every))


def measure_command(options: Command) -> command.Found:
    """Walk the noisy pairs of a command."""
    loaded = options.load()
    steps = noise_steps(
        loaded.dataset, options.noise, step=options.step, save_every=options.save_every
    )
    study = Study(loaded.model, loaded.dataset, options.sizes(noise_steps=steps))
    starts, ends = places(study.dataset, study.sizes)
    found = run(study, options.out)
    walks = {
        f"toward {kind}, {scheme}": path
        for kind in _TARGETS
        for scheme, path in study.leaves(kind).items()
    }
    return command.Found(loaded, {"S7": found}, {"S7": records(walks, study.dataset, starts, ends)})


if __name__ == "__main__":
    command.main(Command, measure_command, name="noise_leaf", description=__doc__)
