"""The tables and the picture of `claims`: what held where, and for how many."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.harness.common import percent
from experiments.harness.report import look_up
from foliax import viz


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        heading: Its name.
        paths: Where its numbers are kept; they stand side by side.
        kind: How they are written.
        between: What stands between them.
    """

    heading: str
    paths: tuple[str, ...]
    kind: str = "percent"
    between: str = " / "


def _both(heading: str, path: str, kind: str = "percent") -> Column:
    """Return a column of the exact and the published scheme."""
    return Column(heading, (f"exact.{path}", f"published.{path}"), kind)


def _noisy(heading: str, path: str, kind: str = "percent") -> Column:
    return Column(heading, (f"noisy.{path}", f"noisy.published.{path}"), kind)


_WALKS = (
    ("arrive", "ended.arrived", "percent"),
    ("way left, median", "residual.median", "percent"),
    ("least", "residual.least", "percent"),
    ("target's label", "label_of_target_reached", "percent"),
    ("tangent fraction", "not_arrived.tangent_fraction.median", "number"),
    ("steps", "steps.median", "count"),
)
_DRIFTS = (
    _both("label kept", "label_kept"),
    _both("p moves, median", "drift_of_p.median", "power"),
    _both("at most", "drift_of_p.largest", "power"),
    Column("noise at the start", ("exact.noise_of_whole.start.median",), "noise"),
    _both("at the end", "noise_of_whole.end.median", "noise"),
    _both("added, rms", "added_rms_pixels.median", "noise"),
)
_LEVELS = (
    Column("same level on the leaf", ("kept.leaf", "kept.published")),
    Column("along the kernel", ("kept.kernel",)),
    Column("flat ground left out", ("kept_by_estimate.leaf", "kept_by_estimate.published")),
    Column("along the kernel", ("kept_by_estimate.kernel",)),
    Column("noise at the start", ("reading.start",), "noise"),
    Column("on the leaf", ("reading.leaf", "reading.published"), "noise"),
    Column("along the kernel", ("reading.kernel",), "noise"),
    Column("moved, rms", ("moved.leaf.median", "moved.published.median"), "noise"),
)
_COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "S3": tuple(_both(*column) for column in _WALKS),
    "S4": tuple(_both(*column) for column in _WALKS),
    "S5": _LEVELS,
    "S6": _DRIFTS,
    "S7": (
        *(_noisy(*column) for column in _WALKS[:4]),
        _noisy("same level", "noise_of_whole.share_kept"),
        Column("noise at the start", ("noisy.noise_of_whole.start.median",), "noise"),
        _noisy("at the end", "noise_of_whole.end.median", "noise"),
    ),
}
_FORMATS = {"percent": "", "number": ".2g", "count": ".0f", "power": ".1e", "noise": ".3f"}
_SAYS = {
    "S3": "Any two images are joined on the data leaf",
    "S4": "An image is joined to a mirrored one",
    "S5": "A path on the leaf keeps the level of noise",
    "S6": "Along the kernel the label stays, and noise is added",
    "S7": "Noisy images are joined along a noisy leaf",
}


def markdown(networks: Mapping[str, Any], claims: Sequence[str]) -> str:
    """Return a table for each claim; numbers of both schemes as exact / published."""
    return "\n\n".join(
        f"**{claim}: {_SAYS[claim]}** (exact / published)\n\n{_table(networks, claim)}"
        for claim in claims
    )


def _table(networks: Mapping[str, Any], claim: str) -> str:
    columns = _COLUMNS[claim]
    lines = [["network, epoch", "accuracy", "pairs", *(column.heading for column in columns)]]
    for key, network in networks.items():
        setting, numbers = network["setting"], network["claims"][claim]["numbers"]
        cells = [_cell(column, numbers) for column in columns]
        lines.append([key, f"{setting['test_accuracy']:.3f}", str(setting["pairs"]), *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    rows = (" | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(f"| {row} |" for row in rows)


def _cell(column: Column, numbers: Any) -> str:
    found = [look_up(numbers, path) for path in column.paths]
    return column.between.join(_written(value, column.kind) for value in found)


def _written(value: Any, kind: str) -> str:
    if value is None:
        return "n/a"
    return percent(value) if kind == "percent" else format(value, _FORMATS[kind])


# --- the picture --------------------------------------------------------------------------------


def draw(networks: Mapping[str, Any], path: Path) -> None:
    """Draw, network by network, what S3, S5 and S6 come to, those of them that were measured."""
    both = ("exact", "published")
    wanted = (
        ("S3", "S3: how far walks end from the target", "distance / start distance",
         {name: f"{name}.residual" for name in both}, (0, 1.05)),
        ("S5", "S5: noise where the leaf walk ends", "pixel range",
         {"start": "reading.start", "leaf": "reading.leaf",
          "as far along the kernel": "reading.kernel"}, (0, None)),
        ("S6", "S6: share that keeps its label", "share of images",
         {name: f"{name}.label_kept" for name in both}, (0, 1.05)),
    )  # fmt: skip
    panels = [
        viz.Panel(title, "", label, _curves(networks, claim, places), y_range=limits,
                  x_names=list(networks))
        for claim, title, label, places, limits in wanted
        if all(claim in network["claims"] for network in networks.values())
    ]  # fmt: skip
    if panels:
        viz.curves(panels, path)


def _curves(networks: Mapping[str, Any], claim: str, places: Mapping[str, str]) -> list[viz.Curve]:
    """Return a row of dots for each place of a number, beside each other; quartiles as bars."""
    curves = []
    for i, (name, place) in enumerate(places.items()):
        x = np.arange(len(networks)) + 0.2 * (i - (len(places) - 1) / 2)
        found = [look_up(each["claims"][claim]["numbers"], place) for each in networks.values()]
        if isinstance(found[0], Mapping):
            names = ("median", "lower_quartile", "upper_quartile")
            middle, low, high = ([each[name] for each in found] for name in names)
            curves.append(viz.Curve(name, x, middle, low, high, dots=True))
        else:
            curves.append(viz.Curve(name, x, found, dots=True))
    return curves
