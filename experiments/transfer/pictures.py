"""Pictures of data sets compared: box plots of log eigenvalues, distances and accuracies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.transfer.comparison import PREDICTORS, Measured
from experiments.transfer.sets import OWN
from foliax.viz.style import INK, PALETTE, SOFT, figure

_COLUMNS = 4
_DECADES = 12  # drawn below the largest eigenvalue: lower ones are rounding
_ACCURACIES = {
    "retrained": ("o", "last layer retrained"),
    "untrained": ("x", "the same, networks untrained"),
    "pixels": ("+", "raw pixels"),
}


def draw_spectra(found: Mapping[str, Measured], numbers: dict[str, Any], path: Path) -> None:
    """Draw a box plot of the ordered log eigenvalues for each set, the nearest first."""
    rows = numbers["sets"]
    names = sorted(found, key=lambda name: (name != OWN, rows[name]["away"]["spectral"]))
    height = -(-len(names) // _COLUMNS)
    mine = np.median(found[OWN].logs, axis=0)
    orders = np.arange(1, len(mine) + 1)
    most = max(float(each.logs.max()) for each in found.values())
    with figure(path, 2.9 * _COLUMNS, 2.5 * height) as drawn:
        all_axes = drawn.subplots(height, _COLUMNS, squeeze=False, sharex=True, sharey=True)
        least = []
        for axes, name in zip(all_axes.flat, names, strict=False):
            boxes = _draw_boxes(axes, found[name].logs, orders)
            least += [whisker.get_ydata().min() for whisker in boxes["whiskers"]]
            axes.plot(orders, mine, "--", lw=1.1, color=SOFT, zorder=3)
            away, accuracy = rows[name]["away"]["spectral"], rows[name]["accuracy"]["retrained"]
            axes.set_title(f"{name}: {away:.2f} away, {100 * accuracy:.1f} %", fontsize=8.5)
        for axes in all_axes.flat[len(names) :]:
            axes.set_axis_off()
        for axes in all_axes[:, 0]:
            axes.set_ylabel("log10 eigenvalue")
        for axes in all_axes[-1]:
            axes.set_xlabel("order")
        ticks = orders if len(orders) <= 10 else orders[:: len(orders) // 8]
        all_axes[0, 0].set_xticks(ticks, [str(k) for k in ticks])
        all_axes[0, 0].set_ylim(max(min(least), most - _DECADES) - 0.3, most + 0.3)
        drawn.tight_layout(pad=0.8)


def _draw_boxes(axes: Any, logs: np.ndarray, orders: np.ndarray) -> Any:
    line: Any = {"color": INK, "lw": 0.8}
    return axes.boxplot(
        list(logs.T), positions=orders, widths=0.6, patch_artist=True, manage_ticks=False,
        boxprops={"facecolor": PALETTE[5], "edgecolor": PALETTE[0], "lw": 0.8},
        medianprops={"color": PALETTE[1], "lw": 1.4}, whiskerprops=line, capprops=line,
        flierprops={"marker": ".", "ms": 2, "mec": "none", "mfc": SOFT, "alpha": 0.5},
    )  # fmt: skip


def draw_accuracies(numbers: dict[str, Any], path: Path) -> None:
    """Draw the accuracy after retraining against each distance, one point a set."""
    rows = numbers["sets"]
    with figure(path, 4.6 * len(PREDICTORS), 4.0) as drawn:
        all_axes = drawn.subplots(1, len(PREDICTORS), sharey=True)
        for axes, (name, words) in zip(all_axes, PREDICTORS.items(), strict=True):
            away = [row["away"][name] for row in rows.values()]
            for color, (kind, (mark, label)) in zip(PALETTE, _ACCURACIES.items(), strict=False):
                values = [row["accuracy"][kind] for row in rows.values()]
                axes.plot(away, values, mark, ms=5, color=color, label=label)
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
