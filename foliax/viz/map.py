"""The map of a leaf: a grid of images, framed in the colour of their label."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from foliax.viz.images import as_pictures, show, write
from foliax.viz.style import CLASSES, INK, PAPER, SOFT, figure

__all__ = ["leaf_map"]

# In inches: a cell of the map, the frame of its image, what is left for the axes and the legend.
_CELL, _FRAME = 0.74, 0.065
_LEFT, _BELOW, _HEAD, _LEGEND = 0.42, 0.42, 0.4, 1.55
_FAINT = 0.25  # of its colour, what the frame of the least certain image shows


def leaf_map(
    images: Any,
    labels: Any,
    probabilities: Any,
    path: str | os.PathLike,
    *,
    class_names: Sequence[str],
    x_label: str = "",
    y_label: str = "",
    title: str | None = None,
    mark: tuple[int, int] | None = None,
) -> Path:
    """Draw a grid of images, each framed in the colour of its label, strong where it is certain.

    A line separates neighbours of different labels, and every region has its number in the legend
    written on it, so that the map can be read without its colours too.

    Args:
        images: (rows, columns, H, W) or (rows, columns, H, W, 1 or 3) in pixel units [0, 1]; row 0
            is drawn at the top.
        labels: (rows, columns) predicted labels.
        probabilities: (rows, columns) their probabilities.
        path: The PNG to write.
        class_names: Names by label.
        x_label: Name of the direction to the right.
        y_label: Name of the direction upwards.
        title: A line above the map.
        mark: (row, column) of an image to mark, such as the start; None for none.

    Returns:
        The path written.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> images, labels = np.zeros((2, 3, 8, 8)), np.arange(6).reshape(2, 3) % 2
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = f"{folder}/map.png"
        ...     leaf_map(images, labels, np.ones((2, 3)), file, class_names=("a", "b")).name
        'map.png'
    """
    labels, certain = np.asarray(labels), np.asarray(probabilities, dtype=float)
    shape = np.shape(images)
    if len(shape) < 4 or labels.shape != shape[:2] or certain.shape != shape[:2]:
        raise ValueError(
            "images must be (rows, columns, H, W, …) and labels and probabilities (rows, columns), "
            f"got shapes {shape}, {labels.shape} and {certain.shape}"
        )
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(
            f"labels must lie in 0 … {len(class_names) - 1}, the class_names, "
            f"got {labels.min()} … {labels.max()}"
        )
    rows, columns = labels.shape
    pictures = as_pictures(np.reshape(images, (-1, *shape[2:])))
    width = _LEFT + columns * _CELL + _LEGEND
    height = _HEAD + rows * _CELL + _BELOW
    with figure(path, width, height) as drawn:
        for i, picture in enumerate(pictures):
            row, column = divmod(i, columns)
            x, top = _LEFT + column * _CELL, height - _HEAD - row * _CELL
            _frame(drawn, x, top, _tint(int(labels[row, column]), float(certain[row, column])))
            show(drawn, picture, x + _FRAME, top - _FRAME, _CELL - 2 * _FRAME)
        _draw_borders(drawn, labels, height)
        for row, column in _regions(labels):
            x, top = _LEFT + column * _CELL, height - _HEAD - row * _CELL
            _number(drawn, x + 0.13, top - 0.13, int(labels[row, column]))
        if mark is not None:
            _mark(drawn, _LEFT + mark[1] * _CELL, height - _HEAD - mark[0] * _CELL)
        _write_names(drawn, x_label, y_label, title, columns, rows)
        _draw_legend(drawn, labels, class_names, _LEFT + columns * _CELL, height)
    return Path(path)


def _tint(label: int, certain: int | float) -> Any:
    """Return the colour of a label, mixed with the ground where it is not certain."""
    strength = _FAINT + (1 - _FAINT) * float(np.clip(certain, 0, 1))
    color, ground = np.array(to_rgb(CLASSES[label % len(CLASSES)])), np.array(to_rgb(PAPER))
    return tuple(strength * color + (1 - strength) * ground)


def _patch(drawn: Figure, x: float, y: float, width: float, height: float, **style: Any) -> None:
    """Draw a rectangle whose lower left corner is at (x, y), all in inches."""
    across, up = drawn.get_size_inches()
    place = (x / across, y / up)
    patch = Rectangle(
        place, width / across, height / up, transform=drawn.transFigure, figure=drawn, **style
    )
    drawn.add_artist(patch)


def _frame(drawn: Figure, x: float, top: float, color: Any) -> None:
    gap = 0.012
    _patch(drawn, x + gap, top - _CELL + gap, _CELL - 2 * gap, _CELL - 2 * gap,
           fc=color, lw=0, zorder=-1)  # fmt: skip


def _draw_borders(drawn: Figure, labels: np.ndarray, height: float) -> None:
    """Draw a line between neighbours of different labels."""
    thick = 0.022
    style: dict[str, Any] = {"fc": INK, "lw": 0, "zorder": 5}
    for row, column in np.argwhere(labels[:, 1:] != labels[:, :-1]):
        x, top = _LEFT + (column + 1) * _CELL, height - _HEAD - row * _CELL
        _patch(drawn, x - thick / 2, top - _CELL - thick / 2, thick, _CELL + thick, **style)
    for row, column in np.argwhere(labels[1:] != labels[:-1]):
        x, top = _LEFT + column * _CELL, height - _HEAD - (row + 1) * _CELL
        _patch(drawn, x - thick / 2, top - thick / 2, _CELL + thick, thick, **style)


def _regions(labels: np.ndarray) -> list[tuple[int, int]]:
    """Return the first place, row by row, of every connected region of one label."""
    seen, found = np.zeros(labels.shape, bool), []
    for row, column in np.ndindex(labels.shape):
        if seen[row, column]:
            continue
        found.append((row, column))
        stack = [(row, column)]
        while stack:
            at = stack.pop()
            if seen[at] or labels[at] != labels[row, column]:
                continue
            seen[at] = True
            around = ((at[0] + i, at[1] + j) for i, j in ((0, 1), (1, 0), (0, -1), (-1, 0)))
            stack += [
                (i, j) for i, j in around if 0 <= i < labels.shape[0] and 0 <= j < labels.shape[1]
            ]
    return found


def _number(drawn: Figure, x: float, y: float, label: int) -> None:
    box = {"boxstyle": "circle,pad=0.22", "fc": PAPER, "ec": INK, "lw": 0.8}
    style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "zorder": 7, "bbox": box}
    write(drawn, x, y, str(label), fontsize=7, fontweight="bold", **style)


def _mark(drawn: Figure, x: float, top: float) -> None:
    _patch(drawn, x, top - _CELL, _CELL, _CELL, fill=False, ec=PAPER, lw=5.5, zorder=6)
    _patch(drawn, x, top - _CELL, _CELL, _CELL, fill=False, ec=INK, lw=3.2, zorder=6)


def _write_names(
    drawn: Figure, x_label: str, y_label: str, title: str | None, columns: int, rows: int
) -> None:
    _, height = drawn.get_size_inches()
    middle = _LEFT + columns * _CELL / 2
    if title:
        write(drawn, _LEFT, height - 0.25, title, fontsize=10)
    if x_label:
        write(drawn, middle, 0.16, f"{x_label} →", fontsize=9, ha="center")
    if y_label:
        up = _BELOW + rows * _CELL / 2
        write(drawn, 0.16, up, f"{y_label} →", fontsize=9, rotation=90, ha="center", va="center")


def _draw_legend(
    drawn: Figure, labels: np.ndarray, names: Sequence[str], x: float, height: float
) -> None:
    """List the labels that occur, the most frequent first."""
    there, counts = np.unique(labels, return_counts=True)
    top = height - _HEAD - 0.1
    for i, label in enumerate(there[np.argsort(-counts, kind="stable")]):
        y = top - 0.25 * i
        _patch(drawn, x + 0.2, y - 0.06, 0.14, 0.14, fc=_tint(int(label), 1.0), lw=0)
        name = str(names[label])
        text = name if name == str(label) else f"{label}  {name}"
        write(drawn, x + 0.42, y + 0.01, text, fontsize=8.5, va="center")
    y = top - 0.25 * len(there) - 0.1
    text = "strong frame:\nhigh probability"
    write(drawn, x + 0.2, y, text, fontsize=7.2, color=SOFT, va="top", linespacing=1.3)
