"""S6: moving away from the data leaf, along the kernel of G, adds noise and keeps the label.

    python -m experiments.kernel --start 3 --out out/kernel
    python -m experiments.kernel --checkpoint out/train --epoch 2 --images 100

drifts with the exact and the published scheme, and writes the strip of the slides (iterations 0,
125, …, 1000 with label and probability), a GIF, the drift of p, `results.json`, `paths.json`
(every path point by point), `run.json` and `report.html`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import foliax
from experiments.harness import command, noise
from experiments.harness.pictures import animate, captions, quartile_curve
from experiments.harness.populations import pick, predict, quartiles, records, statistics
from experiments.harness.report import outcome, percent, rows_of, section
from experiments.harness.study import SCHEMES, Sizes, Study
from foliax import viz

_SHOWN_LABEL = 2  # the strip shows the first image with this predicted label, as the slides do
_SHOWN = 9  # pictures of the strip: with 1000 steps, one every 125
_QUICK = 250  # steps of a quick look
_CONSERVED = 1e-3  # largest change of a probability that still counts as none


def measure(study: Study, scheme: str) -> dict[str, Any]:
    """Return what a population of kernel drifts kept and what it lost; computed once."""
    return study.once(("drifts", scheme), lambda: _measure(study, study.drift(scheme)))


def _measure(study: Study, path: Any) -> dict[str, Any]:
    labels = predict(study.model, study.origins())[0]
    p = np.asarray(jax.nn.softmax(jnp.asarray(path.logits)))
    kept = p.argmax(axis=-1) == np.asarray(labels)[:, None]
    # The first step kept at which a path is within 1 % of its greatest distance.
    near = path.distance >= 0.99 * path.distance.max(axis=1, keepdims=True)
    settled = np.take_along_axis(path.steps, near.argmax(axis=1)[:, None], axis=1)
    added = noise.rms(path.points[:, -1] - path.points[:, 0], study.dataset.std)
    return statistics(path, study.dataset) | {
        "steps_of_stopped": quartiles(path.num_steps[path.status == foliax.Status.boundary]),
        "settled_at_step": quartiles(settled),
        "drift_of_p_at_end": quartiles(path.probability_change[:, -1]),
        "label_kept": float(kept.all(axis=1).mean()),
        "label_kept_at_end": float(kept[:, -1].mean()),
        "probability_at_start": quartiles(p[:, 0].max(axis=-1)),
        "probability_at_end": quartiles(p[:, -1].max(axis=-1)),
        "added_rms_pixels": quartiles(added),
        "leaf_defect": quartiles(path.leaf_defect.max(axis=1)),
    }


def run(study: Study, out: Path) -> dict[str, Any]:
    """Drift a population along the kernel, draw the strip of the slides; return the section."""
    last = study.sizes.drift_steps // study.sizes.save_every
    rows = np.unique(np.linspace(0, last, _SHOWN).astype(int))
    paths, names = study.drifted(), study.dataset.class_names
    labels = np.asarray(predict(study.model, study.origins())[0])
    shown = int(np.argmax(labels == _SHOWN_LABEL))  # the first image, where none has it
    exact, published = (paths[scheme].probability_change.max(axis=1) for scheme in SCHEMES)
    numbers: dict[str, Any] = {scheme: measure(study, scheme) for scheme in SCHEMES}
    numbers |= {
        "num_images": len(exact),
        "max_steps": study.sizes.drift_steps,
        "conserved_share": float(np.mean(exact <= _CONSERVED)),
        "conserved_share_published": float(np.mean(published <= _CONSERVED)),
        "exact_drifts_less": float(np.mean(exact <= published)),
        "shown_image": shown,
        "strip": {scheme: _strip(pick(path, shown), rows) for scheme, path in paths.items()},
    }
    _draw(study, pick(paths["exact"], shown), pick(paths["published"], shown), rows, out)
    return section(
        title="Moving away from the leaf adds noise, the label stays",
        claim="When moving away from a given data leaf, noise is added, but the accuracy is high.",
        verdict=_verdict(numbers),
        numbers=numbers,
        pictures={
            "kernel.png": (
                f"An image labelled {names[int(labels[shown])]} drifts along the kernel of G in a "
                "fixed random direction; the last images repeat where the pixel box stops it."
            ),
            "kernel.gif": "The same drift, exact scheme.",
            "kernel_drift.png": (
                "Largest change of a probability, and distance from the start: median, quartiles."
            ),
        },
        columns=("", *SCHEMES),
        rows=rows_of(SCHEMES, _ROWS),
    )


def _strip(path: Any, rows: np.ndarray) -> dict[str, Any]:
    p = np.asarray(jax.nn.softmax(jnp.asarray(path.logits[rows])))
    return {"iteration": path.steps[rows], "label": p.argmax(-1), "probability": p.max(-1)}


def _draw(study: Study, exact: Any, published: Any, rows: np.ndarray, out: Path) -> None:
    data = study.dataset
    pixels = data.to_pixels(np.concatenate([path.points[rows] for path in (exact, published)]))
    texts = [text for path in (exact, published) for text in captions(path, rows, data.class_names)]
    viz.strip(pixels, texts, out / "kernel.png", row_labels=SCHEMES)
    animate(data, exact, out / "kernel.gif")
    changes, distances = [], []
    for scheme, path in study.drifted().items():
        steps = np.arange(path.probability_change.shape[1]) * study.sizes.save_every
        floor = float(np.finfo(np.float32).eps)  # a logarithmic axis has no zero
        changes.append(
            quartile_curve(scheme, steps[1:], path.probability_change[:, 1:], least=floor)
        )
        distances.append(quartile_curve(scheme, steps, path.distance))
    viz.curves(
        [
            viz.Panel("Drift of p", "step", "max |p - p(start)|", changes, log=True),
            viz.Panel("Distance from the start", "step", "distance (normalised units)", distances),
        ],
        out / "kernel_drift.png",
    )  # fmt: skip


def _verdict(numbers: dict[str, Any]) -> tuple[str, str]:
    exact, published = numbers["exact"], numbers["published"]
    kept, changes, noisy = (
        (exact[name], published[name]) for name in ("label_kept", "drift_of_p", "noise")
    )
    text = (
        f"Of {numbers['num_images']} images, {percent(kept[0])} keep their label along the whole "
        f"path with the exact scheme, {percent(kept[1])} with the published one. The probabilities "
        f"move by at most {changes[0]['largest']:.2g} and {changes[1]['largest']:.2g}, while the "
        f"estimate of noise goes from {noisy[0]['start']['median']:.2g} to "
        f"{noisy[0]['end']['median']:.2g} and {noisy[1]['end']['median']:.2g} of the pixel range."
    )
    if kept[0] > kept[1]:
        text += " What loses labels is the published step (Euler, then clipped), not the kernel."
    return outcome(kept[0]), text


_ROWS = (
    ("share that keeps its label throughout", "label_kept"),
    ("drift of p, median", "drift_of_p.median"),
    ("drift of p, largest", "drift_of_p.largest"),
    ("probability at the start, median", "probability_at_start.median"),
    ("probability at the end, median", "probability_at_end.median"),
    ("steps, median", "steps.median"),
    ("no further after step, median", "settled_at_step.median"),
    ("share stopped by the pixel box", "ended.boundary"),
    ("estimated noise at the start, median", "noise.start.median"),
    ("estimated noise at the end, median", "noise.end.median"),
    ("added per pixel (rms, pixel range), median", "added_rms_pixels.median"),
    ("excess over the pixel box, largest", "box_excess_pixels.largest"),
)


@dataclass(frozen=True)
class Command(command.Command):
    """Which network, which images, and how far they drift."""

    steps: int = 1000  # Steps; the slides take 1000
    step: float = 0.1  # Length of a step, normalised units
    save_every: int = 5  # Steps between the points kept


def measure_command(options: Command) -> command.Found:
    """Drift the images of a command."""
    steps = min(options.steps, _QUICK) if options.quick else options.steps
    sizes = Sizes(
        pairs=options.pairs, step=options.step, steps=steps, drift_steps=steps, noise_steps=0,
        save_every=options.save_every, seed=options.seed,
    )  # fmt: skip
    loaded = options.load()
    starts = options.starts(len(loaded.dataset.test_x))
    study = Study(loaded.model, loaded.dataset, sizes, starts)
    found = run(study, options.out)
    paths = records(study.drifted(), study.dataset, starts)
    return command.Found(loaded, {"S6": found}, {"S6": paths})


if __name__ == "__main__":
    command.main(Command, measure_command, name="kernel", description=__doc__)
