"""Pictures of inputs with two coordinates: fields, curves and points in the plane."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from foliax.viz.style import INK, PALETTE, PAPER, SOFT, in_rows, legend

__all__ = ["Family", "Plane", "plane", "tinted"]

_TINT = 0.6  # how much of its colour a certain class shows
_DEPTHS = LinearSegmentedColormap.from_list("depths", ["#00304d", PALETTE[0], "#9cc3dd", PAPER])
_SIDE, _GAP, _FOOT, _BAR = 3.1, 0.26, 0.36, 0.75  # inches


@dataclass(frozen=True)
class Family:
    """Curves of one kind.

    Attributes:
        label: What the legend says.
        lines: Curves, each (points, 2); a row that is not a number ends a piece.
        color: Of all of them.
        width: In points.
    """

    label: str
    lines: Sequence[Any]
    color: str = INK
    width: int | float = 0.8


@dataclass(frozen=True)
class Plane:
    """One panel.

    Attributes:
        title: Set above it, on the left.
        extent: (least x, largest x, least y, largest y).
        field: (H, W, 3) colours, e.g. of `tinted`, or (H, W) numbers, which get a colour bar;
            row 0 lies at the least y.
        families: Curves, drawn in this order.
        zero: (H, W) numbers; the curve where they change sign is drawn. None for none.
        zero_label: What the legend says of that curve.
        points: (N, 2) points drawn small: the data.
        labels: (N,) their classes, or None.
        marks: (N, 2) points marked by rings.
        marks_label: What the legend says of them.
        field_label: Of the colour bar.
    """

    title: str
    extent: tuple[int | float, int | float, int | float, int | float]
    field: Any
    families: Sequence[Family] = ()
    zero: Any = None
    zero_label: str = ""
    points: Any = None
    labels: Any = None
    marks: Any = None
    marks_label: str = ""
    field_label: str = ""


def tinted(probabilities: Any) -> np.ndarray:
    """Return colours that mix a tint for each class, as the probabilities say.

    Args:
        probabilities: (..., C), with C at most the colours of `PALETTE`.

    Returns:
        (..., 3) in [0, 1].

    Raises:
        ValueError: If there are more classes than colours.

    Example:
        >>> bool(np.allclose(tinted([0.5, 0.5]), (tinted([1, 0]) + tinted([0, 1])) / 2))
        True
    """
    p = np.asarray(probabilities, dtype=float)
    if p.shape[-1] > len(PALETTE):
        raise ValueError(f"probabilities must have at most {len(PALETTE)} classes, got {p.shape}")
    colors = np.array([to_rgb(color) for color in PALETTE[: p.shape[-1]]])
    tints = _TINT * colors + (1 - _TINT) * np.array(to_rgb(PAPER))
    return np.clip(p @ tints, 0, 1)


def plane(
    panels: Plane | Sequence[Plane],
    path: str | os.PathLike,
    *,
    columns: int = 3,
    title: str | None = None,
) -> Path:
    """Draw panels in rows; what the panels of a row have in common is explained below it.

    Args:
        panels: One panel, or several.
        path: The PNG to write.
        columns: Panels in a row.
        title: A line above all.

    Returns:
        The path written.

    Raises:
        ValueError: If there is no panel, or columns is not positive.

    Example:
        >>> import tempfile
        >>> panel = Plane("p", (-1, 1, -1, 1), tinted(np.full((4, 4, 2), 0.5)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plane(panel, f"{folder}/plane.png").name
        'plane.png'
    """
    panels = [panels] if isinstance(panels, Plane) else list(panels)
    return in_rows(
        panels, path, _draw_row, columns=columns, title=title, side=_SIDE, below=_FOOT, bar=_BAR
    )


def _draw_row(drawn: Figure, panels: Sequence[Plane], base: float) -> None:
    """Draw a row of panels, `base` inches above the lower edge, its colour bar and its legend."""
    width, height = drawn.get_size_inches()
    side = _SIDE - _GAP
    shades = [np.asarray(p.field, dtype=float) for p in panels if np.ndim(p.field) == 2]
    limits = None
    if shades:
        limits = (min(map(np.nanmin, shades)), max(map(np.nanmax, shades)))
    handles: dict[str, Any] = {}
    image = None
    for i, panel in enumerate(panels):
        at = ((0.3 + i * _SIDE) / width, (base + 0.02) / height, side / width, side / height)
        axes = drawn.add_axes(at)
        shown = _draw_panel(axes, panel, limits, handles)
        image = shown if np.ndim(panel.field) == 2 else image
    if image is not None:
        left = 0.3 + (len(panels) - 1) * _SIDE + side + 0.12
        at = (left / width, (base + 0.02) / height, 0.12 / width, side / height)
        label = next(p.field_label for p in panels if np.ndim(p.field) == 2)
        bar = drawn.colorbar(image, cax=drawn.add_axes(at), label=label)
        bar.outline.set_visible(False)
    legend(drawn, handles, base - 0.06)


def _draw_panel(axes: Axes, panel: Plane, limits: Any, handles: dict[str, Any]) -> Any:
    """Draw one panel, and note what its legend needs."""
    style: dict[str, Any] = {"origin": "lower", "extent": panel.extent, "interpolation": "bilinear"}
    if np.ndim(panel.field) == 2:
        style |= {"cmap": _DEPTHS, "vmin": limits[0], "vmax": limits[1]}
    image = axes.imshow(panel.field, **style)
    for family in panel.families:
        lines = [np.asarray(line, dtype=float) for line in family.lines]
        axes.add_collection(LineCollection(lines, colors=family.color, linewidths=family.width))
        handles[family.label] = _line(family.color, 1.6 * family.width)
    if panel.zero is not None and np.nanmin(panel.zero) < 0 < np.nanmax(panel.zero):
        left, right, bottom, top = panel.extent
        height, width = np.shape(panel.zero)
        x, y = np.linspace(left, right, width), np.linspace(bottom, top, height)
        axes.contour(x, y, panel.zero, levels=[0], colors=[PALETTE[1]], linewidths=1.6)
        handles[panel.zero_label] = _line(PALETTE[1], 1.6)
    _draw_points(axes, panel, handles)
    axes.set(title=panel.title, xlim=panel.extent[:2], ylim=panel.extent[2:], xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=SOFT, linewidth=0.6)
    return image


def _draw_points(axes: Axes, panel: Plane, handles: dict[str, Any]) -> None:
    if panel.points is not None:
        points = np.asarray(panel.points)
        labels = np.zeros(len(points), int) if panel.labels is None else np.asarray(panel.labels)
        colors = [PALETTE[label % len(PALETTE)] for label in labels]
        axes.scatter(*points.T, s=7, c=colors, linewidths=0.3, edgecolors=PAPER, zorder=3)
    if panel.marks is not None and len(panel.marks):
        style: dict[str, Any] = {"marker": "o", "color": PALETTE[1], "mfc": "none", "ls": "none"}
        style |= {"ms": 9, "mew": 1.8}
        axes.plot(*np.asarray(panel.marks).T, zorder=4, **style)
        handles[panel.marks_label] = Line2D([], [], **style)


def _line(color: str, width: float) -> Line2D:
    edge = withStroke(linewidth=width + 1.4, foreground=SOFT)  # white shows on the ground
    return Line2D([], [], color=color, linewidth=width, path_effects=[edge])
