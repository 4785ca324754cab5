"""What all pictures share: colours, type, ground, and how a file is written."""

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

INK, SOFT, PAPER, GRID = "#22262b", "#5c646d", "#f7f7f4", "#d5d7d6"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Ten that can be distinguished with any colour vision, for classes: Paul Tol's "muted", grey last.
CLASSES = (
    "#332288", "#DDCC77", "#117733", "#88CCEE", "#CC6677",
    "#AA4499", "#44AA99", "#999933", "#882255", "#5F5F5C",
)  # fmt: skip
STYLE: Any = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": True,  # a line that crosses a legend must not hide its text
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "lines.linewidth": 1.6,
    "font.family": "DejaVu Sans",
}


@contextmanager
def figure(path: str | os.PathLike, width: float, height: float) -> Iterator[Figure]:
    """Give a figure in the house style, and write it when the block ends without an error."""
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(width, height))
        yield drawn
        written(path, lambda stream: drawn.savefig(stream, format="png"))


def in_rows(
    panels: Sequence[Any],
    path: str | os.PathLike,
    draw_row: Callable[[Figure, Sequence[Any], float], None],
    *,
    columns: int,
    title: str | None,
    side: float,
    below: float,
    bar: float,
) -> Path:
    """Draw panels in rows; `draw_row` gets the figure, the panels of a row, and its lower edge.

    All lengths are inches: the side of a panel, what is below it, and a colour bar beside a row.
    """
    if not panels or columns < 1:
        raise ValueError(f"panels must not be empty and columns ≥ 1, got {len(panels)}, {columns}")
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    top = 0.4 if title else 0.0
    width, height = columns * side + bar + 0.3, rows * (side + below) + top + 0.1
    with figure(path, width, height) as drawn:
        if title:
            drawn.text(0.3 / width, 1 - 0.28 / height, title, fontsize=11)
        for row in range(rows):
            base = height - top - (row + 1) * (side + below) + below
            draw_row(drawn, panels[row * columns : (row + 1) * columns], base)
    return Path(path)


def legend(drawn: Figure, handles: Mapping[str, Any], top: float) -> None:
    """Draw a legend in one line, if it has entries: its upper edge so many inches up."""
    width, height = drawn.get_size_inches()
    if handles:
        drawn.legend(
            list(handles.values()), list(handles), loc="upper left", ncols=len(handles),
            bbox_to_anchor=(0.2 / width, top / height), fontsize=8.5,
        )  # fmt: skip


def written(path: str | os.PathLike, save: Callable[[Any], None]) -> Path:
    """Write beside the target, then rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            save(stream)
        os.chmod(name, 0o644)  # mkstemp makes private files
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path
