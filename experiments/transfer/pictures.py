"""Pictures of data sets compared: box plots of log eigenvalues, distances and accuracies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.transfer.measured import PREDICTORS, Measured
from experiments.transfer.sets import OWN
from foliax.viz.style import INK, PALETTE, SOFT, figure

_COLUMNS = 4
_DECADES = 12  # drawn below the largest eigenvalue: lower ones are rounding


def draw_spectra(found: Mapping[str, Measured], numbers: dict[str, Any], path: Path) -> None:
    """Draw a box plot of the ordered log eigenvalues for each set, the nearest first.

    Args:
        found: The measured sets.
        numbers: What `compare` gave.
        path: The PNG to write.
    """
    rows = numbers["sets"]
    names = sorted(found, key=lambda name: (name != OWN, rows[name]["away"]["spectral"]))
    height = -(-len(names) // _COLUMNS)
    mine = np.median(found[OWN].logs, axis=0)
    orders = np.arange(1, len(mine) + 1)
    most = max(float(each.logs.max()) for each in found.values())
    least = min(float(_whiskers(each.logs).min()) for each in found.values())
    with figure(path, 2.9 * _COLUMNS, 2.5 * height) as drawn:
        all_axes = drawn.subplots(height, _COLUMNS, squeeze=False, sharex=True, sharey=True)
        for axes, name in zip(all_axes.flat, names, strict=False):
            _draw_boxes(axes, found[name].logs, orders)
            axes.plot(orders, mine, "--", lw=1.1, color=SOFT, zorder=3)
            axes.set_title(_told(name, rows[name]), fontsize=8.5)
        for axes in all_axes.flat[len(names) :]:
            axes.set_axis_off()
        for axes in all_axes[:, 0]:
            axes.set_ylabel("log10 eigenvalue")
        for axes in all_axes[-1]:
            axes.set_xlabel("order")
        ticks = orders if len(orders) <= 10 else orders[:: len(orders) // 8]
        all_axes[0, 0].set_xticks(ticks, [str(k) for k in ticks])
        all_axes[0, 0].set_ylim(max(least, most - _DECADES) - 0.3, most + 0.3)
        drawn.tight_layout(pad=0.8)


def _whiskers(logs: np.ndarray) -> np.ndarray:
    """Return where the lower whiskers may end."""
    low, high = np.quantile(logs, (0.25, 0.75), axis=0)
    return np.maximum(low - 1.5 * (high - low), logs.min(axis=0))


def _draw_boxes(axes: Any, logs: np.ndarray, orders: np.ndarray) -> None:
    line: Any = {"color": INK, "lw": 0.8}
    axes.boxplot(
        list(logs.T), positions=orders, widths=0.6, patch_artist=True, manage_ticks=False,
        boxprops={"facecolor": PALETTE[5], "edgecolor": PALETTE[0], "lw": 0.8},
        medianprops={"color": PALETTE[1], "lw": 1.4}, whiskerprops=line, capprops=line,
        flierprops={"marker": ".", "ms": 2, "mec": "none", "mfc": SOFT, "alpha": 0.5},
    )  # fmt: skip


def _told(name: str, row: dict[str, Any]) -> str:
    away = row["away"]["spectral"]
    return f"{name}: {away:.2f} away, {100 * row['accuracy']['retrained']:.1f} %"


def draw_accuracies(numbers: dict[str, Any], path: Path) -> None:
    """Draw the accuracy after retraining against each distance, one point a set.

    Args:
        numbers: What `compare` gave.
        path: The PNG to write.
    """
    rows = numbers["sets"]
    with figure(path, 4.6 * len(PREDICTORS), 4.0) as drawn:
        all_axes = drawn.subplots(1, len(PREDICTORS), sharey=True)
        for axes, (name, words) in zip(all_axes, PREDICTORS.items(), strict=True):
            away = [row["away"][name] for row in rows.values()]
            for i, (kind, label) in enumerate(_KINDS.items()):
                values = [row["accuracy"][kind] for row in rows.values()]
                axes.plot(away, values, _MARKS[i], ms=5, color=PALETTE[i], label=label)
            for i, place in enumerate(np.argsort(away)):
                set_name, row = list(rows.items())[place]
                at = (row["away"][name], row["accuracy"]["retrained"])
                apart: Any = (4, (3, -9)[i % 2])  # neighbours do not write on each other
                axes.annotate(set_name, at, apart, textcoords="offset points", fontsize=6.5)
            ranked = numbers["rank_correlation"][name]["retrained"]["rho"]
            axes.set(xlabel=words, title=f"rank correlation {ranked:.2f}")
        all_axes[0].set_ylabel("accuracy")
        drawn.legend(*all_axes[0].get_legend_handles_labels(), loc="lower center", ncols=3)
        drawn.tight_layout(pad=0.8, rect=(0, 0.07, 1, 1))


_KINDS = {
    "retrained": "last layer retrained",
    "untrained": "the same, networks untrained",
    "pixels": "raw pixels",
}
_MARKS = ("o", "x", "+")
