"""Pictures of inputs with three coordinates: curves, surfaces and points in a cube.

Everything is projected here and painted piece by piece from back to front, so that a curve passes
behind a surface and in front of another curve as it should; the axes of `mplot3d` sort whole
collections, and draw no two widths in one. What is far fades into the ground, and a curve that
passes in front of another has a margin in the colour of the ground.
"""

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from foliax.viz.style import INK, PALETTE, PAPER, SOFT, in_rows, legend

__all__ = ["Sheet", "Space", "Strands", "space"]

_SIDE, _GAP, _FOOT, _BAR = 3.7, 0.3, 0.66, 0.75  # inches
_SCALE = LinearSegmentedColormap.from_list("amounts", ["#d3dbe0", "#e9a66f", PALETTE[1], "#4a1d00"])
_EYE = 9.0  # distance of the eye from the middle; this and all lengths below in half sides
_NEAR, _FAR, _FADE = -1.15, 1.25, 0.72  # depths between which things fade, and how much of it
_BEHIND, _BEFORE = 0.07, 0.02  # a margin lies behind its curve, a curve before its surface
_DOT = 0.018  # radius of a datum
_LIGHT = np.array([0.25, -0.45, 0.85]) / np.linalg.norm([0.25, -0.45, 0.85])
_SHADOW = 0.38  # how much darker a surface is that the light grazes
_CUBE = "#b9bdbf"


@dataclass(frozen=True)
class Strands:
    """Curves of one kind, cut where they leave the cube.

    Attributes:
        label: What the legend says; "" for nothing.
        lines: Curves, each (points, 3).
        colors: One colour for all, or for each curve one (3,) or one a point, (points, 3).
        width: In points, in the middle of the cube.
        margin: Ground on both sides together, in points; 0 for curves that lie on a surface.
    """

    label: str
    lines: Sequence[Any]
    colors: Any = INK
    width: int | float = 1.5
    margin: int | float = 1.7


@dataclass(frozen=True)
class Sheet:
    """A surface of flat pieces.

    Attributes:
        label: What the legend says; "" for nothing.
        corners: (V, 3) points.
        pieces: (F, m) which corners each piece has, m ≥ 3.
        color: One colour, or (F,) numbers, which get a colour bar.
        alpha: 0 for clear, 1 for opaque.
    """

    label: str
    corners: Any
    pieces: Any
    color: Any = PALETTE[0]
    alpha: int | float = 0.5


@dataclass(frozen=True)
class Space:
    """One panel: a cube about the origin.

    Attributes:
        title: Set above it, on the left.
        edge: Half the side of the cube.
        strands: Curves.
        sheets: Surfaces.
        points: (N, 3) points drawn small: the data.
        labels: (N,) their classes, or None.
        marks: (N, 3) points marked by rings.
        marks_label: What the legend says of them.
        marks_size: Diameter of the rings, in points.
        note: Set below the cube.
        field_label: Of the colour bar.
    """

    title: str
    edge: int | float
    strands: Sequence[Strands] = ()
    sheets: Sequence[Sheet] = ()
    points: Any = None
    labels: Any = None
    marks: Any = None
    marks_label: str = ""
    marks_size: int | float = 7
    note: str = ""
    field_label: str = ""


def space(
    panels: Space | Sequence[Space],
    path: str | os.PathLike,
    *,
    columns: int = 3,
    title: str | None = None,
    elevation: int | float = 24,
    azimuth: int | float = -62,
) -> Path:
    """Draw panels in rows, all from the same viewpoint.

    What the panels of a row have in common is explained below it.

    Args:
        panels: One panel, or several.
        path: The PNG to write.
        columns: Panels in a row.
        title: A line above all.
        elevation: Of the eye above the plane of the first two coordinates, in degrees.
        azimuth: Of the eye about the third axis, in degrees from the first.

    Returns:
        The path written.

    Raises:
        ValueError: If there is no panel, or columns is not positive.

    Example:
        >>> import tempfile
        >>> turn = np.linspace(0, 6, 50)
        >>> helix = np.stack([np.cos(turn), np.sin(turn), turn / 6], axis=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     space(Space("helix", 1.5, [Strands("", [helix])]), f"{folder}/space.png").name
        'space.png'
    """
    panels = [panels] if isinstance(panels, Space) else list(panels)
    view = _View.of(elevation, azimuth)

    def draw_row(drawn: Figure, row: Sequence[Space], base: float) -> None:
        _draw_row(drawn, row, base, view)

    bar = _BAR if any(map(_values, panels)) else 0.0
    return in_rows(
        panels, path, draw_row, columns=columns, title=title, side=_SIDE, below=_FOOT, bar=bar
    )


def _values(panel: Space) -> list[np.ndarray]:
    """Return the numbers of the sheets that have numbers for colours."""
    colors = [sheet.color for sheet in panel.sheets]
    return [np.asarray(color, dtype=float) for color in colors if not isinstance(color, str)]


def _draw_row(drawn: Figure, panels: Sequence[Space], base: float, view: "_View") -> None:
    """Draw a row of panels, `base` inches above the lower edge, its colour bar and its legend."""
    width, height = drawn.get_size_inches()
    side = _SIDE - _GAP
    handles: dict[str, Any] = {}
    values = [value for panel in panels for value in _values(panel)]
    amounts = ScalarMappable(Normalize(0, max(map(np.nanmax, values), default=1) or 1), _SCALE)
    for i, panel in enumerate(panels):
        at = ((0.3 + i * _SIDE) / width, base / height, side / width, side / height)
        _draw_panel(drawn.add_axes(at), panel, view, amounts, handles)
    if values:
        left = (0.3 + len(panels) * _SIDE) / width
        bar = drawn.add_axes(
            (left, (base + 0.2 * side) / height, 0.12 / width, 0.6 * side / height)
        )
        label = next(panel.field_label for panel in panels if _values(panel))
        drawn.colorbar(amounts, cax=bar, label=label).outline.set_visible(False)
    legend(drawn, handles, base - (0.28 if any(panel.note for panel in panels) else 0.06))


# --- projection --------------------------------------------------------------------------------


class _View(NamedTuple):
    """An eye that looks at the origin: unit vectors to the right, upward and away from the eye."""

    right: np.ndarray
    up: np.ndarray
    away: np.ndarray

    @classmethod
    def of(cls, elevation: int | float, azimuth: int | float) -> "_View":
        e, a = math.radians(elevation), math.radians(azimuth)
        toward = np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
        right = np.array([-math.sin(a), math.cos(a), 0.0])
        return cls(right, np.cross(toward, right), -toward)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return places on the picture (…, 2) and depths (…)."""
        depth = points @ self.away
        flat = np.stack([points @ self.right, points @ self.up], axis=-1)
        return flat * _nearness(depth)[..., None], depth


def _nearness(depth: np.ndarray) -> np.ndarray:
    """Return how large a thing of size 1 appears."""
    return _EYE / (_EYE + depth)


def _faded(colors: np.ndarray, depths: np.ndarray) -> np.ndarray:
    """Mix colours with the ground by depth."""
    far = np.clip((depths - _NEAR) / (_FAR - _NEAR), 0, 1)[:, None]
    return colors + _FADE * far**1.3 * (np.array(to_rgb(PAPER)) - colors)


class _Pieces(NamedTuple):
    """What is painted: polygons, and strokes, which are polygons of two corners."""

    corners: list[np.ndarray]  # each (m, 2)
    depths: np.ndarray
    faces: np.ndarray  # RGBA
    edges: np.ndarray
    widths: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence["_Pieces"]) -> "_Pieces":
        """Return all, the farthest first."""
        corners = list(itertools.chain.from_iterable(part.corners for part in parts))
        rest = [np.concatenate(field) for field in zip(*(part[1:] for part in parts), strict=True)]
        order = np.argsort(-rest[0], kind="stable")
        return cls([corners[i] for i in order], *(field[order] for field in rest))


# --- painting ----------------------------------------------------------------------------------


def _draw_panel(
    axes: Axes, panel: Space, view: _View, amounts: ScalarMappable, handles: dict[str, Any]
) -> None:
    """Draw one panel, and note what its legend needs."""
    parts = [_cube(view), _dots(panel, view)]
    for sheet in panel.sheets:
        parts.append(_sheet(sheet, panel.edge, view, amounts))
        if sheet.label:
            color = sheet.color if isinstance(sheet.color, str) else SOFT
            handles[sheet.label] = Patch(color=color, alpha=sheet.alpha, linewidth=0)
    for strands in panel.strands:
        parts += _strands(strands, panel.edge, view)
        if strands.label:
            color = strands.colors if isinstance(strands.colors, str) else SOFT
            handles[strands.label] = Line2D([], [], color=color, linewidth=1.3 * strands.width)
    pieces = _Pieces.joined(parts)
    axes.add_collection(
        PolyCollection(
            pieces.corners, closed=False, facecolors=pieces.faces, edgecolors=pieces.edges,
            linewidths=pieces.widths, capstyle="round",
            joinstyle="round",
        )
    )  # fmt: skip
    if panel.marks is not None and len(panel.marks):
        places, _ = view.project(np.asarray(panel.marks, dtype=float) / panel.edge)
        style: dict[str, Any] = {"marker": "o", "mfc": "none", "ls": "none"}
        size = panel.marks_size
        axes.plot(*places.T, ms=size, mec=PAPER, mew=size / 2.6, **style)
        axes.plot(*places.T, ms=size, mec=INK, mew=size / 5.5, **style)
        handles[panel.marks_label] = Line2D([], [], ms=size, mec=INK, mew=size / 5.5, **style)
    _set_axes(axes, panel, view)


def _set_axes(axes: Axes, panel: Space, view: _View) -> None:
    corners, _ = view.project(np.array(list(itertools.product((-1.0, 1.0), repeat=3))))
    middle = (corners.min(axis=0) + corners.max(axis=0)) / 2
    half = 1.02 * np.ptp(corners, axis=0).max() / 2
    left, right, bottom, top = *(middle[0] + [-half, half]), *(middle[1] + [-half, half])
    axes.set(title=panel.title, xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axes.set_axis_off()
    if panel.note:
        style: dict[str, Any] = {"fontsize": 8.5, "color": SOFT, "ha": "left", "va": "top"}
        axes.text(0, -0.01, panel.note, transform=axes.transAxes, linespacing=1.4, **style)


def _strokes(segments: np.ndarray, colors: np.ndarray, width: int | float, view: _View) -> _Pieces:
    """Return segments (N, 2, 3) of the unit cube in their colours (N, 3)."""
    flat, depths = view.project(segments)
    depths = depths.mean(axis=1) - _BEFORE
    edges = np.concatenate([_faded(colors, depths), np.ones((len(depths), 1))], axis=1)
    return _Pieces(list(flat), depths, np.zeros_like(edges), edges, width * _nearness(depths))


def _strands(strands: Strands, edge: int | float, view: _View) -> list[_Pieces]:
    """Return the segments of curves that lie in the cube, and the margins behind them."""
    segments, colors = [np.zeros((0, 2, 3))], [np.zeros((0, 3))]
    one = isinstance(strands.colors, str)
    for i, line in enumerate(strands.lines):
        line = np.asarray(line, dtype=float) / edge
        color = np.asarray(to_rgb(strands.colors) if one else strands.colors[i], dtype=float)
        color = np.broadcast_to(color, (len(line), 3))
        inside = np.abs(line).max(axis=1) <= 1
        whole = inside[:-1] & inside[1:]
        segments.append(np.stack([line[:-1], line[1:]], axis=1)[whole])
        colors.append((0.5 * (color[:-1] + color[1:]))[whole])
    strokes = _strokes(np.concatenate(segments), np.concatenate(colors), strands.width, view)
    if not strands.margin:
        return [strokes]
    margins = strokes._replace(
        depths=strokes.depths + _BEHIND,
        edges=np.broadcast_to([*to_rgb(PAPER), 1.0], strokes.edges.shape),
        widths=strokes.widths + strands.margin,
    )
    return [margins, strokes]


def _sheet(sheet: Sheet, edge: int | float, view: _View, amounts: ScalarMappable) -> _Pieces:
    """Return a surface, lit from one side."""
    corners = np.asarray(sheet.corners, dtype=float)[np.asarray(sheet.pieces)] / edge
    flat, depths = view.project(corners)
    depths = depths.mean(axis=1)
    if isinstance(sheet.color, str):
        colors = np.broadcast_to(to_rgb(sheet.color), (len(corners), 3))
    else:
        colors = np.asarray(amounts.to_rgba(np.asarray(sheet.color, dtype=float)))[:, :3]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    light = 1 - _SHADOW * (1 - np.abs(normals @ _LIGHT))
    faces = _faded(colors * light[:, None], depths)
    faces = np.concatenate([faces, np.full((len(faces), 1), sheet.alpha)], axis=1)
    return _Pieces(list(flat), depths, faces, np.zeros_like(faces), np.zeros(len(faces)))


def _cube(view: _View) -> _Pieces:
    """Return the edges of the cube, in pieces that fade."""
    line = np.linspace(-1, 1, 21)
    ends = itertools.product(range(3), itertools.product((-1.0, 1.0), repeat=2))
    edges = [np.insert(np.tile(pair, (21, 1)), axis, line, axis=1) for axis, pair in ends]
    segments = np.concatenate([np.stack([edge[:-1], edge[1:]], axis=1) for edge in edges])
    return _strokes(segments, np.broadcast_to(to_rgb(_CUBE), (len(segments), 3)), 0.7, view)


def _dots(panel: Space, view: _View) -> _Pieces:
    """Return the data as small discs."""
    given = np.zeros((0, 3)) if panel.points is None else panel.points
    points = np.asarray(given, dtype=float) / panel.edge
    labels = np.zeros(len(points), int) if panel.labels is None else np.asarray(panel.labels)
    palette = np.array([to_rgb(color) for color in PALETTE])
    flat, depths = view.project(points)
    angle = np.linspace(0, 2 * np.pi, 9)[:-1]
    disc = _DOT * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    corners = flat[:, None] + _nearness(depths)[:, None, None] * disc
    faces = _faded(palette[labels % len(palette)], depths)
    faces = np.concatenate([faces, np.ones((len(points), 1))], axis=1)
    edges = np.broadcast_to([*to_rgb(PAPER), 1.0], faces.shape)
    return _Pieces(list(corners), depths, faces, edges, np.full(len(points), 0.3))
