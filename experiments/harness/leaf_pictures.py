"""Pictures of populations of walks toward targets: strips, a GIF, distances."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness.common import caption, captions, live_rows, pick, predict
from foliax import viz


def draw(
    model: Any,
    dataset: Any,
    paths: Any,
    targets: Any,
    shown: tuple[int, int],
    stem: Path,
    config: Any,
) -> None:
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
        kept = _telling_rows(path, config.frames)
        label, p = predict(model, targets[index : index + 1])
        shown_images, shown_texts = padded(path, kept, config.frames, names)
        images += [*shown_images, targets[index]]
        texts += [*shown_texts, caption("target", label[0], p[0], names)]
        labels.append(name)
    pixels = dataset.to_pixels(np.asarray(images))
    viz.strip(pixels, texts, stem.with_suffix(".png"), row_labels=labels)
    path = pick(paths["exact"], median)
    rows = live_rows(path, 40)
    pixels = dataset.to_pixels(path.points[rows])
    viz.gif(pixels, captions(path, rows, names), stem.with_suffix(".gif"))


def padded(
    path: Any, rows: list[int], count: int, names: Sequence[str]
) -> tuple[list[Any], list[str]]:
    """Return `count` images of a path and their captions, with gaps where it has fewer rows."""
    gaps = count - len(rows)
    blank = np.full_like(path.points[0], np.nan)
    return [*path.points[rows], *[blank] * gaps], [*captions(path, rows, names), *[""] * gaps]


def _telling_rows(path: Any, count: int) -> list[int]:
    """Return at most `count` rows: evenly as long as the path comes nearer, and the last.

    A published walk dithers at its foot for most of its steps, all of which look alike.
    """
    rows = live_rows(path)
    near = path.distance <= path.distance.min() + 0.01 * np.ptp(path.distance)
    progress = [row for row in rows[:-1] if row <= int(near.argmax())]
    if len(progress) > count - 1:
        spread = np.round(np.linspace(0, len(progress) - 1, count - 1)).astype(int)
        progress = [progress[i] for i in spread]
    return progress + rows[-1:]


def draw_distances(paths: Any, start: Any, file: Path, config: Any) -> None:
    """Draw distance against step, and the share of pairs below each residual."""
    lines, ranks = [], []
    for scheme, path in paths.items():
        steps = np.arange(path.distance.shape[1]) * config.save_every
        low, middle, high = np.quantile(path.distance / start[:, None], (0.25, 0.5, 0.75), axis=0)
        lines.append(viz.Curve(scheme, steps, middle, low, high))
        least = np.sort(path.distance.min(axis=1) / start)
        share = (np.arange(len(least)) + 1) / len(least)
        ranks.append(viz.Curve(scheme, least, share))
    needed = np.sort(config.arrival / start)
    ranks.append(viz.Curve("needed to arrive", needed, share, reference=True))
    many = len(start) > 1
    title = "Distance to the target" + (", median and quartiles" if many else "")
    panels = [viz.Panel(title, "step", "distance / start distance", lines, y_range=(0, 1.05))]
    if many:
        x_label, y_label = "least distance / start distance", "share of pairs at or below"
        panels.append(viz.Panel("Where the walks end", x_label, y_label, ranks, y_range=(0, 1.03)))
    viz.curves(panels, file)
