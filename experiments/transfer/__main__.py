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

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.harness import command as _command
from experiments.harness.common import FAILS, HOLDS, IN_PART, percent
from experiments.harness.report import section
from experiments.transfer import measured as _transfer
from experiments.transfer import pictures as _transfer_pictures
from experiments.transfer import sets as data

_TITLE = "Spectra of G over data sets, and transfer"
_CLAIM = (
    "Data sets whose spectra are near that of the network's own data are those on which its "
    "retrained last layer does well."
)
_SURE = 0.05  # p-value below which an order is taken for one
_QUICK = {"pairs": 40, "train": 300, "test": 100}


@dataclass(frozen=True)
class Command(_command.Command):
    """Which network, how many images of each data set, and which sets.

    Attributes:
        pairs: How many test images of each set get a spectrum, at most.
        train: Training images of each set at most, for the last layer.
        test: Test images of each set at most.
        budget: Length of the adversarial step over √n, n pixels, in normalised units.
        others: More data sets, where they are prepared.
    """

    pairs: _command.Count = 300
    train: int = 2000
    test: int = 1000
    budget: float = 0.1
    others: tuple[
        Literal[
            "digits", "mnist", "fashion_mnist", "kmnist", "emnist/letters", "cifar10", "cifar100"
        ],
        ...,
    ] = ()
    out: Path = Path("out/transfer")

    def effective(self) -> "Command":
        """Return what is run: itself, or a smaller one."""
        if not self.quick:
            return self
        smaller = {name: min(getattr(self, name), most) for name, most in _QUICK.items()}
        return replace(self, **smaller)

    def check(self) -> None:
        """Refuse what does not fit."""
        if self.start is not None:
            raise ValueError(f"start names one image, and data sets are compared; got {self.start}")
        if not self.budget >= 0:
            raise ValueError(f"budget must be a number >= 0, got {self.budget}")
        for name, least in {"pairs": 2, "train": 40, "test": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


def run(model: Any, dataset: Any, command: Command) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure and compare the data sets of a command, and draw them.

    Args:
        model: The classifier.
        dataset: Its data.
        command: How much, and the folder of the pictures.

    Returns:
        The section of the report (see `_report.section`), and the spectra of every set.
    """
    command = command.effective()
    command.check()
    most = max(command.test, command.pairs)
    wanted = data.Wanted(command.train, most, command.budget, command.seed)
    sets, left_out = data.labelled_sets(model, dataset, wanted, command.others)
    found = _transfer.measure(model, dataset, sets, images=command.pairs, seed=command.seed)
    numbers = _transfer.compare(found) | {
        "means": {name: labelled.says for name, labelled in sets.items()},
        "left_out": left_out,
    }
    rows: dict[str, Any] = numbers["sets"]
    _transfer_pictures.draw_spectra(found, numbers, command.out / "transfer.png")
    _transfer_pictures.draw_accuracies(numbers, command.out / "accuracy.png")
    told = section(
        title=_TITLE,
        claim=_CLAIM,
        verdict=_judge(numbers),
        numbers=numbers,
        pictures=_pictures(),
        columns=("", "spectral distance", "retrained", "untrained", "raw pixels", "as it is",
                 "Δ log trace", "nearest image"),
        rows=[
            (name, *(f"sets.{name}.{path}" for path in _COLUMNS))
            for name in sorted(found, key=lambda name: rows[name]["away"]["spectral"])
        ],
    )  # fmt: skip
    return told, _records(found)


_COLUMNS = (
    "away.spectral", "accuracy.retrained", "accuracy.untrained", "accuracy.pixels",
    "accuracy.as_it_is", "away.trace", "away.pixels",
)  # fmt: skip


def _pictures() -> list[tuple[str, str]]:
    return [
        (
            "transfer.png",
            "The ordered eigenvalues of G over each data set: box from quartile to quartile, "
            "whiskers to 1.5 times that range, points beyond. Dashed, the medians of the network's "
            "own data. In the titles the spectral distance to these, in decades, and the accuracy "
            "with the last layer retrained.",
        ),
        (
            "accuracy.png",
            "The accuracy with the last layer retrained, with an untrained network and with raw "
            "pixels, against three distances to the network's own data. The rank correlations are "
            "those of the first, without the network's own data.",
        ),
    ]


def _judge(numbers: dict[str, Any]) -> tuple[str, str]:
    ranks = {name: row["retrained"] for name, row in numbers["rank_correlation"].items()}
    spectral = ranks.pop("spectral")
    ordered = spectral["rho"] < 0 and spectral["p"] < _SURE
    beats = ordered and all(spectral["rho"] < cheaper["rho"] for cheaper in ranks.values())
    left_out = [f" Left out: {name} ({why})." for name, why in numbers["left_out"].items()]
    told = f"{_say_ranks(numbers)} {_say_sets(numbers)}{''.join(left_out)}"
    return HOLDS if beats else IN_PART if ordered else FAILS, told


def _say_ranks(numbers: dict[str, Any]) -> str:
    ranks, changed = numbers["rank_correlation"], numbers["rank_correlation_of_changed"]

    def said(ranked: dict[str, float]) -> str:
        if not np.isfinite(ranked["rho"]):
            return "none to tell"
        return f"{ranked['rho']:.2f} (p = {ranked['p']:.2g})"

    spectral = {name: said(ranked) for name, ranked in ranks["spectral"].items()}
    return (
        f"Over {numbers['num_ranked']} data sets beside the network's own, the rank correlation of "
        "the spectral distance and the accuracy with the last layer retrained is "
        f"{spectral['retrained']}; of the difference of the median log trace, "
        f"{said(ranks['trace']['retrained'])}; of the distance to the nearest training image in "
        f"pixels, {said(ranks['pixels']['retrained'])}. With what the network gives over an "
        f"untrained one the spectral distance has {spectral['over_untrained']}, with what it gives "
        f"over raw pixels {spectral['over_pixels']}, and with the accuracy of raw pixels alone, "
        f"which the network has no part in, {spectral['pixels']}. Over the "
        f"{numbers['num_changed']} sets that are the network's own data changed, the spectral "
        f"distance has {said(changed['spectral']['retrained'])} with the accuracy retrained and "
        f"{said(changed['spectral']['as_it_is'])} with that of the network as it is, the distance "
        f"in pixels {said(changed['pixels']['retrained'])} and "
        f"{said(changed['pixels']['as_it_is'])}."
    )


def _say_sets(numbers: dict[str, Any]) -> str:
    rows: dict[str, Any] = {name: row for name, row in numbers["sets"].items() if name != data.OWN}
    by_distance = sorted(rows, key=lambda name: rows[name]["away"]["spectral"])
    by_accuracy = sorted(rows, key=lambda name: rows[name]["accuracy"]["retrained"])
    near, far, worst, best = (by_distance[0], by_distance[-1], by_accuracy[0], by_accuracy[-1])

    def accuracy(row: dict[str, Any]) -> str:
        return percent(row["accuracy"]["retrained"])

    return (
        f"The nearest set is {near} at {rows[near]['away']['spectral']:.3g} decades "
        f"({accuracy(rows[near])}), the farthest {far} at {rows[far]['away']['spectral']:.3g} "
        f"({accuracy(rows[far])}); two halves of the network's own data are "
        f"{numbers['halves_of_own']:.2g} apart. The best of them is {best} "
        f"({accuracy(rows[best])}), the worst {worst} ({accuracy(rows[worst])}); the network's own "
        f"data {accuracy(numbers['sets'][data.OWN])}."
    )


def _records(found: Any) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "log_eigenvalues": each.logs,
            "log_trace": np.log10(np.maximum(each.eigenvalues.sum(axis=1), _LEAST)),
        }
        for name, each in found.items()
    ]


_LEAST = float(np.finfo(np.float32).tiny)


def measure_command(command: Command) -> _command.Found:
    """Compare the data sets of a command."""
    loaded = command.load()
    found, spectra = run(loaded.model, loaded.dataset, command)
    return _command.Found(loaded, {"transfer": found}, {"transfer": spectra})


if __name__ == "__main__":
    _command.main(Command, measure_command, name="transfer", description=__doc__)
