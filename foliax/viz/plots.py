"""Plots of numbers: training dynamics, spectra, and curves along paths."""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from foliax.viz.style import PALETTE, PAPER, SOFT, figure

__all__ = ["Curve", "Panel", "curves", "dynamics", "spectrum"]

_MANY = 10  # times C eigenvalues, from which on their index is logarithmic
_EDGES = {"linestyle": "--", "linewidth": 1.0, "color": SOFT}
# From paper to the first colour: an empty cell is the ground itself.
_SHARES = LinearSegmentedColormap.from_list("shares", [PAPER, "#9cc3dd", PALETTE[0], "#00304d"])


@dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Attributes:
        label: What the legend says.
        x: Positions.
        y: Values, as many; not-a-number leaves a gap.
        low: Lower edge of a band around y, or None.
        high: Upper edge, or None.
        reference: Draw it grey and dashed: something to compare with, not a measurement.
        dots: Draw points with bars from low to high, not a line with a band: cases, not a course.
    """

    label: str
    x: Any
    y: Any
    low: Any = None
    high: Any = None
    reference: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        title: Set above the panel, on the left.
        x_label: Name and unit of x.
        y_label: Name and unit of y.
        curves: The lines; the n-th takes the n-th colour of `PALETTE`.
        log: Logarithmic y.
        y_range: Limits of y; None, or None in place of a limit, fits the curves.
        x_names: What is written at x = 0, 1, …, where these are no numbers but cases.
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    log: bool = False
    y_range: tuple[int | float | None, int | float | None] | None = None
    x_names: Sequence[str] = ()


def dynamics(
    history: Any,
    path: str | os.PathLike,
    *,
    marks: Mapping[str, int | float] | None = None,
    ranks: Mapping[str, tuple[Any, Any]] | None = None,
) -> Path:
    """Draw trace and rank of G against the optimisation step.

    Left, the mean trace with the band between quartiles, and the accuracy below; right, the share
    of reference images at each rank, dark for many, with the mean rank.

    Args:
        history: A `foliax.zoo.History`, or its `to_dict()`.
        path: The PNG to write.
        marks: Named steps to mark with a vertical line, e.g. the chosen checkpoint.
        ranks: Further mean ranks by name, (steps, values), e.g. at another tolerance.

    Returns:
        The path written.
    """
    h = _history(history)
    marks = dict(marks or {})
    with figure(path, 10.4, 4.3) as drawn:
        grid = drawn.add_gridspec(
            2, 2, height_ratios=(2.1, 1), width_ratios=(1, 1.06), left=0.07, right=0.955,
            top=0.92, bottom=0.115, hspace=0.16, wspace=0.14,
        )  # fmt: skip
        top = drawn.add_subplot(grid[0, 0])
        below = drawn.add_subplot(grid[1, 0], sharex=top)
        right = drawn.add_subplot(grid[:, 1])
        _draw_trace(top, h)
        _draw_accuracy(below, h)
        _draw_ranks(drawn, right, h, ranks or {})
        for i, (name, step) in enumerate(marks.items()):
            for axes in (top, below, right):
                label = name if axes is top else None
                style: Any = {"color": PALETTE[(3, 4)[i % 2]], "linestyle": ("--", ":")[i % 2]}
                axes.axvline(step, lw=1.3, label=label, **style)
        top.legend(loc="upper left", ncols=3, columnspacing=1.2, handlelength=1.6)
    return Path(path)


def spectrum(
    values: Any,
    path: str | os.PathLike,
    *,
    num_classes: int,
    dense: Any = None,
    title: str = "Eigenvalues of G",
) -> Path:
    """Draw eigenvalues of G on a logarithmic scale, with the cliff after the (C - 1)-th.

    Args:
        values: (k,) or (N, k) leading eigenvalues, in any order; several images become a median
            with its range.
        path: The PNG to write.
        num_classes: C.
        dense: All n eigenvalues of one dense G, to show the numerically zero ones past the cliff;
            None to leave them out.
        title: The title of the picture.

    Returns:
        The path written.
    """
    rows = -np.sort(-np.atleast_2d(np.asarray(values, dtype=float)), axis=1)
    with figure(path, 7.2, 3.7) as drawn:
        axes = drawn.add_axes((0.105, 0.145, 0.87, 0.76))
        if dense is not None:
            whole = -np.sort(-np.abs(np.asarray(dense, dtype=float)))
            whole = np.where(whole > 0, whole, np.nan)
            label = f"all {len(whole)} of one dense G (absolute values)"
            style = {"marker": "o", "ms": 3.2, "mfc": "none", "ls": "none", "color": PALETTE[1]}
            axes.plot(np.arange(1, len(whole) + 1), whole, label=label, **style)
        some = (rows > 0).any(axis=0)
        index = 1 + np.flatnonzero(some)
        shown = np.where(rows > 0, rows, np.nan)[:, some]
        label = "one image" if len(rows) == 1 else f"median and range of {len(rows)} images"
        axes.fill_between(index, *_range(shown), color=PALETTE[0], alpha=0.22, lw=0)
        axes.plot(index, np.nanmedian(shown, axis=0), "o-", ms=4, color=PALETTE[0], label=label)
        axes.axvline(num_classes - 0.5, **_EDGES, label=f"bound: rank ≤ C - 1 = {num_classes - 1}")
        axes.set_yscale("log")
        axes.set(xlabel="index", ylabel="eigenvalue (nats per squared input unit)", title=title)
        if (
            dense is not None and np.size(dense) > _MANY * num_classes
        ):  # the cliff would stick to the edge
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper right")
    return Path(path)


def curves(panels: Panel | Sequence[Panel], path: str | os.PathLike) -> Path:
    """Draw lines with bands: noise level, drift or distance along paths, shares, calibrations.

    Args:
        panels: One panel, or several side by side.
        path: The PNG to write.

    Returns:
        The path written.
    """
    panels = [panels] if isinstance(panels, Panel) else list(panels)
    width = 5.4 if len(panels) == 1 else 4.3 * len(panels)
    with figure(path, width, 3.5) as drawn:
        all_axes = drawn.subplots(1, len(panels), squeeze=False)[0]
        for panel, axes in zip(panels, all_axes, strict=True):
            colors = itertools.cycle(PALETTE)
            for curve in panel.curves:
                _draw_curve(axes, curve, SOFT if curve.reference else next(colors))
            axes.set(xlabel=panel.x_label, ylabel=panel.y_label, title=panel.title)
            if all(np.asarray(curve.x).dtype.kind in "iu" for curve in panel.curves):
                axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
            if panel.x_names:
                turned: Any = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
                axes.set_xticks(range(len(panel.x_names)), panel.x_names, **turned)
            if panel.log:
                axes.set_yscale("log")
            if panel.y_range:
                axes.set_ylim(*panel.y_range)
                low, high = axes.get_ylim()
                if panel.y_range[1] is None:  # the margin was that of the curves alone
                    axes.set_ylim(low, high + 0.05 * (high - low))
            if len(panel.curves) > 1:
                axes.legend(loc="best")
        drawn.tight_layout(pad=0.8, w_pad=1.6)
    return Path(path)


def _draw_curve(axes: Axes, curve: Curve, color: str) -> None:
    x, y = np.asarray(curve.x, dtype=float), np.asarray(curve.y, dtype=float)
    if curve.dots:
        axes.plot(x, y, "o", ms=4.5, color=color, label=curve.label)
        if curve.low is not None and curve.high is not None:
            axes.vlines(x, curve.low, curve.high, color=color, lw=1.3)
        return
    if curve.low is not None and curve.high is not None:
        axes.fill_between(x, curve.low, curve.high, color=color, alpha=0.18, lw=0)
    style = {"linestyle": "--", "linewidth": 1.2} if curve.reference else {}
    axes.plot(x, y, color=color, label=curve.label, **style)


def _draw_trace(axes: Axes, h: dict[str, np.ndarray]) -> None:
    low, high = h["trace_low"], h["trace_high"]
    axes.fill_between(h["steps"], low, high, color=PALETTE[0], alpha=0.2, lw=0, label="quartiles")
    axes.plot(h["steps"], h["trace_mean"], color=PALETTE[0], label="mean trace of G")
    top = 1.3 * np.nanmax([np.nanmax(high), np.nanmax(h["trace_mean"])])  # room for the legend
    axes.set(title="Trace of G during optimisation", ylabel="trace", ylim=(0, top))
    axes.tick_params(labelbottom=False)


def _draw_accuracy(axes: Axes, h: dict[str, np.ndarray]) -> None:
    axes.plot(h["epoch_steps"], h["test_accuracy"], color=PALETTE[2])
    axes.set(ylabel="test accuracy", xlabel="step", ylim=(None, 1.0))


def _draw_ranks(
    drawn: Figure, axes: Axes, h: dict[str, np.ndarray], more: Mapping[str, tuple[Any, Any]]
) -> None:
    counts = h["ranks"]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ranks = np.arange(counts.shape[1])
    mesh = axes.pcolormesh(
        h["steps"], ranks, shares.T, cmap=_SHARES, vmin=0, vmax=1, shading="nearest"
    )
    axes.plot(h["steps"], shares @ ranks, color=PALETTE[1], label="mean rank")
    for (name, (steps, values)), color in zip(more.items(), PALETTE[2:] * 2, strict=False):
        axes.plot(steps, values, "o--", ms=3.5, lw=1.3, color=color, label=name)
    axes.set(title="Rank of G: share of reference images", xlabel="step", ylabel="rank")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(False)
    axes.legend(loc="lower left")
    axes.tick_params(axis="x", labelbottom=True)
    bar = drawn.colorbar(mesh, ax=axes, pad=0.02, fraction=0.045, label="share")
    bar.outline.set_visible(False)


def _history(history: Any) -> dict[str, np.ndarray]:
    raw = history if isinstance(history, Mapping) else history.to_dict()
    return {name: np.asarray(value) for name, value in raw.items()}


def _range(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.nanmin(rows, axis=0), np.nanmax(rows, axis=0)
