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
from experiments.harness import command as _command
from experiments.harness import noise as _noise
from experiments.harness.common import (
    captions,
    check_rows,
    drifts,
    live_rows,
    outcome,
    percent,
    pick,
    predict,
    quartiles,
)
from experiments.harness.population import box_excess, records, statistics
from experiments.harness.report import section
from foliax import viz

SCHEMES = ("exact", "published")


@dataclass(frozen=True)
class Config:
    """Which images drift, and how far.

    Attributes:
        num_images: Test images, from the first, where none are given.
        step: Length of a step, normalised units.
        max_steps: Steps; the slides take 1000.
        save_every: Steps between the points kept.
        show_every: Steps between the pictures of the strip; a multiple of `save_every`.
        shown_label: The strip shows the first image with this predicted label (the slides: 2).
        conserved: Largest change of a probability that still counts as none.
        seed: Draws the directions.
    """

    num_images: int = 64
    step: float = 0.1
    max_steps: int = 1000
    save_every: int = 5
    show_every: int = 125
    shown_label: int = 2
    conserved: float = 1e-3
    seed: int = 0

    def __post_init__(self):
        check_rows(self.max_steps, self.save_every)


def drift_images(
    model: Any, dataset: Any, xs: Any, config: Config, *, schemes: tuple[str, ...] = SCHEMES
) -> dict[str, Any]:
    """Drift every image along the kernel, each in a fixed random direction of its own."""
    directions = jax.random.normal(jax.random.key(config.seed), xs.shape, xs.dtype)
    return {
        scheme: drifts(
            model, xs, directions, dataset.box, scheme=scheme, along="kernel",
            step=config.step, max_steps=config.max_steps, save_every=config.save_every,
        )
        for scheme in schemes
    }  # fmt: skip


def measure(path: Any, labels: Any, dataset: Any) -> dict[str, Any]:
    """Return what a population of kernel drifts kept and what it lost."""
    p = np.asarray(jax.nn.softmax(jnp.asarray(path.logits)))
    kept = p.argmax(axis=-1) == np.asarray(labels)[:, None]
    return statistics(path, dataset) | {
        "steps_of_stopped": quartiles(path.num_steps[path.status == foliax.Status.boundary]),
        "settled_at_step": quartiles(_settled(path)),
        "drift_of_p_at_end": quartiles(path.drift[:, -1]),
        "label_kept": float(kept.all(axis=1).mean()),
        "label_kept_at_end": float(kept[:, -1].mean()),
        "probability_at_start": quartiles(p[:, 0].max(axis=-1)),
        "probability_at_end": quartiles(p[:, -1].max(axis=-1)),
        "added_rms_pixels": quartiles(
            _noise.rms(path.points[:, -1] - path.points[:, 0], dataset.std)
        ),
        "box_excess_pixels": quartiles(box_excess(path, dataset)),
        "leaf_defect": quartiles(path.leaf_defect.max(axis=1)),
    }


def _settled(path: Any) -> np.ndarray:
    """Return the first step kept at which a path is within 1 % of its greatest distance."""
    near = path.distance >= 0.99 * path.distance.max(axis=1, keepdims=True)
    return np.take_along_axis(path.steps, near.argmax(axis=1)[:, None], axis=1)[:, 0]


def run(
    model: Any,
    dataset: Any,
    out: Path,
    config: Config,
    *,
    xs: Any = None,
    paths: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Drift a population along the kernel; draw the strip of the slides.

    Args:
        model: The classifier.
        dataset: Its data.
        out: Folder for the pictures.
        config: Which images drift, and how far.
        xs: Images to start from; None for the first test images.
        paths: What `drift_images` gave for them, to spare drifting again.

    Returns:
        The section of the report; see `_report.section`.
    """
    xs = np.asarray(dataset.test_x[: config.num_images] if xs is None else xs)
    paths = paths or drift_images(model, dataset, xs, config)
    labels = np.asarray(predict(model, xs)[0])
    shown = int(np.argmax(labels == config.shown_label))  # the first image, where none has it
    numbers: dict[str, Any] = {s: measure(p, labels, dataset) for s, p in paths.items()}
    exact, published = (paths[scheme].drift.max(axis=1) for scheme in SCHEMES)
    numbers |= {
        "num_images": len(exact),
        "max_steps": config.max_steps,
        "conserved_share": float(np.mean(exact <= config.conserved)),
        "conserved_share_published": float(np.mean(published <= config.conserved)),
        "exact_drifts_less": float(np.mean(exact <= published)),
        "shown_image": shown,
        "strip": _strip_numbers(paths, shown, config),
    }
    _draw(dataset, paths, shown, out, config)
    return section(
        title="Moving away from the leaf adds noise, the label stays",
        claim="When moving away from a given data leaf, noise is added, but the accuracy is high.",
        verdict=_judge(numbers),
        numbers=numbers,
        pictures=[
            (
                "kernel.png",
                f"{_which(labels, shown, config, dataset.class_names)} drifts along the kernel of "
                "G in a fixed random direction. A path that the pixel box has stopped keeps its "
                "last iteration.",
            ),
            ("kernel.gif", "The same drift, exact scheme."),
            (
                "kernel_drift.png",
                "Largest change of a probability against the start, and the distance drifted, "
                "over the population: median and quartiles.",
            ),
        ],
        columns=("", *SCHEMES),
        rows=_rows(),
    )


def _which(labels: np.ndarray, shown: int, config: Config, names: Any) -> str:
    """Name the image of the strip."""
    name = names[int(labels[shown])]
    if len(labels) == 1:
        return f"The image, labelled {name},"
    if labels[shown] == config.shown_label:
        return f"The first image labelled {name}"
    return f"The first image, labelled {name},"


def _shown(config: Config) -> np.ndarray:
    """Return the rows of a path that the strip shows."""
    if config.show_every % config.save_every:
        raise ValueError(
            f"show_every must be a multiple of save_every = {config.save_every}, "
            f"got {config.show_every}"
        )
    steps = np.arange(1 + config.max_steps // config.save_every) * config.save_every
    return np.flatnonzero(steps % config.show_every == 0)


def _strip_numbers(paths: dict[str, Any], shown: int, config: Config) -> dict[str, Any]:
    rows = _shown(config)
    found = {}
    for scheme, path in paths.items():
        p = np.asarray(jax.nn.softmax(jnp.asarray(path.logits[shown, rows])))
        found[scheme] = {
            "iteration": path.steps[shown, rows],
            "label": p.argmax(axis=-1),
            "probability": p.max(axis=-1),
        }
    return found


def _draw(dataset: Any, paths: dict[str, Any], shown: int, out: Path, config: Config) -> None:
    rows = _shown(config)
    images, texts = [], []
    for scheme in SCHEMES:
        path = pick(paths[scheme], shown)
        images += list(path.points[rows])
        texts += captions(path, rows.tolist(), dataset.class_names)
    pixels = dataset.to_pixels(np.asarray(images))
    viz.strip(pixels, texts, out / "kernel.png", row_labels=SCHEMES)
    path = pick(paths["exact"], shown)
    rows = live_rows(path, 40)
    texts = captions(path, rows, dataset.class_names)
    viz.gif(dataset.to_pixels(path.points[rows]), texts, out / "kernel.gif", fps=8)
    changes, distances = [], []
    for scheme in SCHEMES:
        steps = np.arange(paths[scheme].drift.shape[1]) * config.save_every
        floor = np.finfo(np.float32).eps  # a logarithmic axis has no zero
        low, middle, high = np.quantile(paths[scheme].drift, (0.25, 0.5, 0.75), axis=0)
        changes.append(
            viz.Curve(scheme, steps[1:], *(np.maximum(v, floor)[1:] for v in (middle, low, high)))
        )
        low, middle, high = np.quantile(paths[scheme].distance, (0.25, 0.5, 0.75), axis=0)
        distances.append(viz.Curve(scheme, steps, middle, low, high))
    viz.curves(
        [
            viz.Panel("Drift of p", "step", "max |p - p(start)|", changes, log=True),
            viz.Panel("Distance from the start", "step", "distance (normalised units)", distances),
        ],
        out / "kernel_drift.png",
    )  # fmt: skip


def _judge(numbers: dict[str, Any]) -> tuple[str, str]:
    exact, published = numbers["exact"], numbers["published"]
    share = exact["label_kept"]
    count = numbers["num_images"]
    told = (
        f"Of {count} image{'s' * (count > 1)}, {percent(share)} keep their label along the whole "
        f"path with the exact scheme and {percent(published['label_kept'])} with the published "
        f"one. The probabilities move by at most {exact['drift_of_p']['largest']:.2g} (median "
        f"{exact['drift_of_p']['median']:.2g}) with the exact scheme, by "
        f"{published['drift_of_p']['largest']:.2g} (median "
        f"{published['drift_of_p']['median']:.2g}) with the published one. The paths add a median "
        f"of {exact['added_rms_pixels']['median']:.2g} of the pixel range per pixel (root mean "
        f"square), and the estimate of noise goes from {exact['noise']['start']['median']:.2g} to "
        f"{exact['noise']['end']['median']:.2g} (published: "
        f"{published['noise']['end']['median']:.2g}); within the pixel box they come no further "
        f"after a median of {exact['settled_at_step']['median']:.0f} steps (exact) and "
        f"{published['settled_at_step']['median']:.0f} steps (published). "
    )
    if share > published["label_kept"]:
        told += "What loses labels is the published step (Euler, then clipped), not the kernel."
    return outcome(share), told.strip()


def _rows() -> list[tuple[str, ...]]:
    quoted = (
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
    return [(label, *(f"{scheme}.{path}" for scheme in SCHEMES)) for label, path in quoted]


@dataclass(frozen=True)
class Command(_command.Command):
    """Which network, which images, and how far they drift.

    Attributes:
        steps: Steps; the slides take 1000.
        step: Length of a step, normalised units.
        save_every: Steps between the points kept.
        show_every: Steps between the pictures of the strip; a multiple of `save_every`.
        shown_label: Of several images, the strip shows the first with this predicted label.
    """

    steps: int = 1000
    step: float = 0.1
    save_every: int = 5
    show_every: int = 125
    shown_label: int = 2
    out: Path = Path("out/kernel")

    def config(self) -> Config:
        """Return what `run` takes."""
        return Config(
            num_images=self.pairs,
            step=self.step,
            max_steps=min(self.steps, 2 * self.show_every) if self.quick else self.steps,
            save_every=self.save_every,
            show_every=self.show_every,
            shown_label=self.shown_label,
            seed=self.seed,
        )


def measure_command(command: Command) -> _command.Found:
    """Drift the images of a command."""
    loaded, config = command.load(), command.config()
    _shown(config)  # refused before anything drifts
    model, dataset = loaded.model, loaded.dataset
    starts = command.starts(len(dataset.test_x))
    xs = dataset.test_x[starts]
    paths = drift_images(model, dataset, xs, config)
    found = run(model, dataset, command.out, config, xs=xs, paths=paths)
    return _command.Found(loaded, {"S6": found}, {"S6": records(paths, dataset, starts)})


if __name__ == "__main__":
    _command.main(Command, measure_command, name="kernel", description=__doc__)
