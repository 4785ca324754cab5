"""Data sets compared by the spectra of G, and what the comparison says of transfer.

    python -m experiments.transfer --images 300 --out out/transfer
    python -m experiments.transfer --checkpoint out/train --epoch 3 --images 500 --out out/transfer
    python -m experiments.transfer --checkpoint out/train --others mnist kmnist emnist/letters

shows one trained network its own data, the same mirrored, turned, inverted, permuted, noisy,
adversarial and blurred, and other data sets; measures the eigenvalues of G at their test images,
and retrains the last layer alone on each (logistic regression on the penultimate features), beside
the same with untrained networks and with raw pixels. Asks whether the distance between the
spectra orders the sets by that accuracy, and whether the distance to the nearest training image
does so as well. `--others` needs data prepared by `python -m foliax.zoo.prepare`, which needs the
internet. Writes `transfer.png`, `accuracy.png`, `results.json`, `paths.json` (the log eigenvalues
of every image), `run.json` and `report.html`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness import command as commands
from experiments.harness.report import FAILS, HOLDS, IN_PART, section
from experiments.transfer.comparison import PREDICTORS, Measured, compare, measure
from experiments.transfer.sets import OWN, Wanted, labelled_sets
from foliax.viz.style import INK, PALETTE, SOFT, figure

_SURE = 0.05  # p-value below which an order is taken for one
_QUICK = {"pairs": 40, "train": 300, "test": 100}
_COLUMNS = {
    "spectral distance": "away.spectral", "retrained": "accuracy.retrained",
    "untrained": "accuracy.untrained", "raw pixels": "accuracy.pixels",
    "as it is": "accuracy.as_it_is", "Δ log trace": "away.trace", "nearest image": "away.pixels",
}  # fmt: skip
_PICTURES = {
    "transfer.png": "The ordered eigenvalues of G over each data set: box from quartile to "
    "quartile, whiskers to 1.5 times that range, points beyond. Dashed, the medians of the "
    "network's own data. In the titles the spectral distance to these, in decades, and the "
    "accuracy with the last layer retrained.",
    "accuracy.png": "The accuracy with the last layer retrained, with an untrained network and "
    "with raw pixels, against three distances to the network's own data. The rank correlations "
    "are those of the first, without the network's own data.",
}


@dataclass(frozen=True)
class Command(commands.Command):
    """Which network, how many images of each data set, and which sets."""

    pairs: commands.Count = 300  # How many test images of each set get a spectrum, at most
    train: int = 2000  # Training images of each set at most, for the last layer
    test: int = 1000  # Test images of each set at most
    budget: float = 0.1  # Length of the adversarial step over √n, n pixels, in normalised units
    # More data sets, where they are prepared.
    others: tuple[commands.Named, ...] = ()

    def checked(self) -> "Command":
        """Return what is run, itself or a smaller one, or refuse what does not fit."""
        if self.start is not None:
            raise ValueError(f"start names one image, and data sets are compared; got {self.start}")
        if not self.budget >= 0:
            raise ValueError(f"budget must be a number >= 0, got {self.budget}")
        for name, least in {"pairs": 2, "train": 40, "test": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        return self.at_most(**_QUICK)


def measure_command(command: Command) -> commands.Found:
    """Measure and compare the data sets of a command, and draw them."""
    command = command.checked()
    loaded = command.load()
    most = max(command.test, command.pairs)
    wanted = Wanted(command.train, most, command.budget, command.seed)
    sets, left_out = labelled_sets(loaded.model, loaded.dataset, wanted, command.others)
    found = measure(loaded.model, loaded.dataset, sets, images=command.pairs, seed=command.seed)
    numbers: dict[str, Any] = compare(found) | {
        "means": {name: labelled.says for name, labelled in sets.items()},
        "left_out": left_out,
    }
    rows: dict[str, Any] = numbers["sets"]
    draw_spectra(found, numbers, command.out / "transfer.png")
    draw_accuracies(numbers, command.out / "accuracy.png")
    report = section(
        title="Spectra of G over data sets, and transfer",
        claim="Data sets whose spectra are near that of the network's own data are those on which "
        "its retrained last layer does well.",
        verdict=_verdict(numbers),
        numbers=numbers,
        pictures=list(_PICTURES.items()),
        columns=("", *_COLUMNS),
        rows=[
            (name, *(f"sets.{name}.{path}" for path in _COLUMNS.values()))
            for name in sorted(found, key=lambda name: rows[name]["away"]["spectral"])
        ],
    )
    least = float(np.finfo(np.float32).tiny)
    spectra = [
        {
            "name": name,
            "log_eigenvalues": each.logs,
            "log_trace": np.log10(np.maximum(each.eigenvalues.sum(axis=1), least)),
        }
        for name, each in found.items()
    ]
    return commands.Found(loaded, {"transfer": report}, {"transfer": spectra})


def _verdict(numbers: dict[str, Any]) -> tuple[str, str]:
    ranks = {name: row["retrained"] for name, row in numbers["rank_correlation"].items()}
    spectral = ranks["spectral"]
    ordered = spectral["rho"] < 0 and spectral["p"] < _SURE
    beats = ordered and spectral["rho"] < min(ranks["trace"]["rho"], ranks["pixels"]["rho"])

    def said(targets: dict[str, dict[str, float]]) -> str:
        return ", ".join(
            f"{name.replace('_', ' ')} {ranked['rho']:.2f} (p = {ranked['p']:.2g})"
            for name, ranked in targets.items()
        )

    left_out = [f" Left out: {name} ({why})." for name, why in numbers["left_out"].items()]
    text = (
        f"Rank correlations over {numbers['num_ranked']} data sets beside the network's own. Of "
        f"distances with the accuracy retrained: {said(ranks)}. Of the spectral distance: "
        f"{said(numbers['rank_correlation']['spectral'])}; over the {numbers['num_changed']} sets "
        "that are the network's own data changed: "
        f"{said(numbers['rank_correlation_of_changed']['spectral'])}. Two halves of the network's "
        f"own data are {numbers['halves_of_own']:.2g} decades apart.{''.join(left_out)}"
    )
    return HOLDS if beats else IN_PART if ordered else FAILS, text


_ACROSS = 4
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
    height = -(-len(names) // _ACROSS)
    mine = np.median(found[OWN].logs, axis=0)
    orders = np.arange(1, len(mine) + 1)
    most = max(float(each.logs.max()) for each in found.values())
    with figure(path, 2.9 * _ACROSS, 2.5 * height) as drawn:
        all_axes = drawn.subplots(height, _ACROSS, squeeze=False, sharex=True, sharey=True)
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


if __name__ == "__main__":
    commands.main(Command, measure_command, name="transfer", description=__doc__)
