"""The tables of `claims`: what held where, and for how many."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.harness.report import look_up, markdown_table, percent

_SCHEMES = ("exact", "published")
_NOISY = ("noisy", "noisy.published")


class Column(NamedTuple):
    """A column of a table."""

    heading: str  # Its name
    paths: tuple[str, ...]  # Where its numbers are kept; they stand side by side
    kind: str = "percent"  # How they are written


def _both(heading: str, path: str, kind: str = "percent", *, places: Any = _SCHEMES) -> Column:
    """Return a column of the exact and the published scheme."""
    return Column(heading, tuple(f"{place}.{path}" for place in places), kind)


_WALKS = (
    ("arrive", "ended.arrived", "percent"),
    ("remains, median", "residual.median", "percent"),
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
        *(_both(*column, places=_NOISY) for column in _WALKS[:4]),
        _both("same level", "noise_of_whole.share_kept", places=_NOISY),
        Column("noise at the start", ("noisy.noise_of_whole.start.median",), "noise"),
        _both("at the end", "noise_of_whole.end.median", "noise", places=_NOISY),
    ),
}
_FORMATS = {"percent": "", "number": ".2g", "count": ".0f", "power": ".1e", "noise": ".3f"}
_TITLES = {
    "S3": "Any two images are joined on the data leaf",
    "S4": "An image is joined to a mirrored one",
    "S5": "A path on the leaf keeps the level of noise",
    "S6": "Along the kernel the label stays, and noise is added",
    "S7": "Noisy images are joined along a noisy leaf",
}


def markdown(networks: Mapping[str, Any], claims: Sequence[str]) -> str:
    """Return a table for each claim; numbers of both schemes as exact / published."""
    return "\n\n".join(
        f"**{claim}: {_TITLES[claim]}** (exact / published)\n\n{_table(networks, claim)}"
        for claim in claims
    )


def _table(networks: Mapping[str, Any], claim: str) -> str:
    lines = [["network, epoch", "accuracy", "pairs", *(each.heading for each in _COLUMNS[claim])]]
    for key, network in networks.items():
        setting, numbers = network["setting"], network["claims"][claim]["numbers"]
        cells = (
            " / ".join(_written(look_up(numbers, path), column.kind) for path in column.paths)
            for column in _COLUMNS[claim]
        )
        lines.append([key, f"{setting['test_accuracy']:.3f}", str(setting["pairs"]), *cells])
    return markdown_table(lines)


def _written(value: Any, kind: str) -> str:
    if value is None:
        return "n/a"
    return percent(value) if kind == "percent" else format(value, _FORMATS[kind])
