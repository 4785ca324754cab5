"""Pictures of paths: captions, strips, GIFs, and curves of a population."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.populations import live_rows, pick, predict
from foliax import viz

_FRAMES = 8  # pictures in a row of a strip, without the target


def caption(iteration: int | str, label: Any, probability: float, names: Sequence[str]) -> str:
    """Return the slides' caption: iteration, predicted label, its probability."""
    head = iteration if isinstance(iteration, str) else f"iteration {iteration}"
    return f"{head}\nlabel {names[int(label)]}\np = {float(probability):.4f}"


def captions(path: Any, rows: Any, names: Sequence[str]) -> list[str]:
    """Return captions for rows of one path, from the logits it kept."""
    p = np.asarray(jax.nn.softmax(jnp.asarray(path.logits)[np.asarray(rows)]))
    steps = path.steps[np.asarray(rows)]
    return [caption(int(s), q.argmax(), q.max(), names) for s, q in zip(steps, p, strict=True)]


def padded(
    path: Any, rows: list[int], count: int, names: Sequence[str]
) -> tuple[list[Any], list[str]]:
    """Return `count` images of a path and their captions, with gaps where it has fewer rows."""
    gaps = count - len(rows)
    blank = np.full_like(path.points[0], np.nan)
    return [*path.points[rows], *[blank] * gaps], [*captions(path, rows, names), *[""] * gaps]


def animate(dataset: Any, path: Any, file: Path) -> None:
    """Write a GIF of one path."""
    rows = live_rows(path, 40)
    texts = captions(path, rows, dataset.class_names)
    viz.gif(dataset.to_pixels(path.points[rows]), texts, file)


def quartile_curve(label: str, x: Any, values: Any, *, least: float = -np.inf) -> viz.Curve:
    """Return the median over the first axis, with quartiles; none below `least`."""
    middle, low, high = np.maximum(np.nanquantile(values, (0.5, 0.25, 0.75), axis=0), least)
    return viz.Curve(label, x, middle, low, high)


def draw_walks(model: Any, dataset: Any, paths: Any, targets: Any, shown: Any, stem: Path) -> None:
    """Draw the strip of the median and the best pair, and a GIF of the median pair."""
    median, best = shown
    names = dataset.class_names
    images, texts, labels = [], [], []
    rows = [
        ("exact", median, "median pair\nexact"),
        ("published", median, "median pair\npublished"),
        ("exact", best, "best pair\nexact"),
    ]
    if len(targets) == 1:
        rows = [(scheme, 0, scheme) for scheme in paths]
    for scheme, index, name in rows:
        path = pick(paths[scheme], index)
        (label,), (p,) = predict(model, targets[index : index + 1])
        between, lines = padded(path, _approaching_rows(path), _FRAMES, names)
        images += [*between, targets[index]]
        texts += [*lines, caption("target", label, p, names)]
        labels.append(name)
    pixels = dataset.to_pixels(np.asarray(images))
    viz.strip(pixels, texts, stem.with_suffix(".png"), row_labels=labels)
    animate(dataset, pick(paths["exact"], median), stem.with_suffix(".gif"))


def _approaching_rows(path: Any) -> list[int]:
    """Return at most `_FRAMES` rows: evenly as long as the path comes nearer, and the last.

    A published walk dithers at its closest point for most of its steps, all of which look alike.
    """
    rows = live_rows(path)
    near = path.distance <= path.distance.min() + 0.01 * np.ptp(path.distance)
    progress = [row for row in rows[:-1] if row <= int(near.argmax())]
    if len(progress) > _FRAMES - 1:
        spread = np.round(np.linspace(0, len(progress) - 1, _FRAMES - 1)).astype(int)
        progress = [progress[i] for i in spread]
    return progress + rows[-1:]


def draw_distances(paths: Any, start: Any, file: Path, *, save_every: int, arrival: float) -> None:
    """Draw distance against step, and the share of pairs below each residual."""
    lines, ranks = [], []
    share = (np.arange(len(start)) + 1) / len(start)
    for scheme, path in paths.items():
        steps = np.arange(path.distance.shape[1]) * save_every
        lines.append(quartile_curve(scheme, steps, path.distance / start[:, None]))
        ranks.append(viz.Curve(scheme, np.sort(path.distance.min(axis=1) / start), share))
    needed = np.sort(arrival / start)
    ranks.append(viz.Curve("needed to arrive", needed, share, reference=True))
    many = len(start) > 1
    title = "Distance to the target" + (", median and quartiles" if many else "")
    panels = [viz.Panel(title, "step", "distance / start distance", lines, y_range=(0, 1.05))]
    if many:
        x_label, y_label = "least distance / start distance", "share of pairs at or below"
        panels.append(viz.Panel("Where the walks end", x_label, y_label, ranks, y_range=(0, 1.03)))
    viz.curves(panels, file)
