"""Which claims of the slides hold, for which network and at which epoch: S3 to S7, side by side.

    python -m experiments.claims --networks out/train@1,2,3 out/quick@5 --pairs 100

walks the populations of `data_leaf`, `noise_level`, `kernel` and `noise_leaf` on every network,
with the exact and the published scheme. A network is the folder of a training, with the epochs
after an @ (none for the newest, "all" for all that have a checkpoint), a file of PyTorch weights,
or digits_mlp or mnist_cnn, which come with foliax. Every cell, a network and a claim, is written
when it is done, under `cells`, and not measured again: stopped, the command goes on where it was.
The end is `table.md`, `results.json`, `run.json`, and pictures and a report for each network.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments import data_leaf, kernel, noise_leaf, noise_level
from experiments.harness import command
from experiments.harness.networks import Loaded, load, training_name
from experiments.harness.own import data_of
from experiments.harness.report import (
    look_up,
    markdown_table,
    percent,
    plain,
    provenance,
    without_tables,
    write_json,
    write_numbers,
    write_report,
)
from experiments.harness.run import Stages
from experiments.harness.study import Sizes, Study
from foliax import zoo
from foliax.zoo.shipped import SHIPPED

CLAIMS = ("S3", "S4", "S5", "S6", "S7")
MEASURES: Mapping[str, Callable[[Study, Path], dict[str, Any]]] = {
    "S3": data_leaf.run,
    "S4": partial(data_leaf.run, claim=data_leaf.MIRRORED),
    "S5": noise_level.run,
    "S6": kernel.run,
    "S7": noise_leaf.run,
}


@dataclass(frozen=True)
class Config(command.Run):
    """Which networks and claims, how many pairs, and where to write."""

    # Folders of trainings, with epochs as FOLDER@1,3 or FOLDER@all; .npz or .pt files of the
    # papers' weights; or digits_mlp.
    networks: tuple[str, ...] = ("digits_mlp",)
    dataset: command.Grey = "fashion_mnist"  # Data set of the weights in files
    # Your own images, which the networks were trained on: an .npz file, or a folder of images for
    # each class.
    data: Path | None = None
    model: str | None = None  # Your own network, module:function, in place of `networks`
    claims: tuple[Literal["S3", "S4", "S5", "S6", "S7"], ...] = CLAIMS  # Which claims
    pairs: int = 100  # How many pairs of test images; as many images drift along the kernel
    steps: int = 1000  # Steps at most
    step: float = 0.1  # Length of a step, normalised units
    # How noisy the images of S7 are made, root mean square in pixel units, about.
    noise: float = 0.2

    def __post_init__(self):
        if self.quick:
            object.__setattr__(self, "pairs", min(self.pairs, 3))
            object.__setattr__(self, "steps", min(self.steps, 125))

    def setting(self) -> dict[str, Any]:
        """Return what a cell depends on besides its network."""
        names = ("pairs", "steps", "step", "noise", "seed")
        return {name: getattr(self, name) for name in names}

    def study(self, loaded: Loaded) -> Study:
        """Return the walks of a network."""
        every, data = 5, loaded.dataset
        steps = noise_leaf.noise_steps(data, self.noise, step=self.step, save_every=every)
        sizes = Sizes(
            pairs=self.pairs, step=self.step, steps=self.steps, drift_steps=self.steps,
            noise_steps=min(steps, self.steps), save_every=every, seed=self.seed,
        )  # fmt: skip
        return Study(loaded.model, data, sizes)


def sources(config: Config) -> dict[str, dict[str, Any]]:
    """Return what `networks.load` takes for the networks that are named, one for each epoch.

    Raises:
        ValueError: If two have the same name.
        FileNotFoundError: If a folder holds no checkpoint.
    """
    own = data_of(None, config.data)
    if config.model is not None:
        return {config.model.replace(":", "-"): {"dataset": own, "model": config.model}}
    found = [source for name in config.networks for source in _parse(name, config.dataset)]
    if own is not None:
        found = [(key, where | {"dataset": own}) for key, where in found]
    keys = [key for key, _ in found]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise ValueError(f"networks must have different names, got twice: {sorted(twice)}")
    return dict(found)


def _parse(name: str, dataset: str) -> list[tuple[str, dict[str, Any]]]:
    """Return names of networks, which are those of their cells' folders, and where each is."""
    if name in SHIPPED:
        return [(name, {"dataset": SHIPPED[name]})]
    place, _, wanted = name.partition("@")
    path = Path(place)
    if path.suffix in (".npz", ".pt", ".pth"):
        return [(path.stem, {"dataset": dataset, "weights": path})]
    if not re.fullmatch(r"all|(\d+(,\d+)*)?", wanted):
        raise ValueError(f"epochs must be as in FOLDER@1,3 or FOLDER@all, got {name!r}")
    there = list(zoo.epochs(path))
    named = [int(epoch) for epoch in re.findall(r"\d+", wanted)]
    return [
        (f"{training_name(path)}-{epoch}", {"checkpoint": path, "epoch": epoch})
        for epoch in named or (there if wanted == "all" else there[-1:])
    ]


def run(config: Config) -> dict[str, Any]:
    """Measure what is not measured yet, write everything, and return what results.json holds."""
    named = sources(config)
    stages = Stages("claims", len(named) * len(config.claims))
    networks = {key: _network(key, load(**where), config, stages) for key, where in named.items()}
    results = plain({"setting": config.setting() | {"claims": config.claims}, "networks": networks})
    return write_numbers(
        config.out, results, seed=config.seed, seconds=stages.seconds,
        table=markdown(results["networks"], config.claims),
    )  # fmt: skip


def _network(key: str, loaded: Loaded, config: Config, stages: Stages) -> dict[str, Any]:
    """Return all cells of a network, measured or read, and write its report."""
    folder = config.out / "cells" / key
    setting = plain(config.setting() | command.setting(loaded))
    study, sections = config.study(loaded), {}
    for claim in config.claims:
        name, file = f"{key} {claim}", folder / f"{claim}.json"
        found = _read(file, setting)
        if found is None:
            found = stages.run(name, MEASURES[claim], study, folder)
            write_json(file, {"setting": setting, "section": found})
            spent = {claim: stages.seconds[name]}
            write_json(file.with_suffix(".run.json"), provenance(config.seed, spent))
        sections[claim] = found
    intro = [f"{loaded.network} on {loaded.dataset.name}, {config.pairs} pairs."]
    write_report(folder, f"Claims, {key}", intro, sections)
    return {"setting": setting, "claims": without_tables(sections)}


def _read(file: Path, setting: dict[str, Any]) -> dict[str, Any] | None:
    """Return the section of a cell that was measured at these sizes; None if there is none."""
    if not file.exists():
        return None
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return stored["section"] if stored["setting"] == setting else None
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{file} is not as a run left it ({type(error).__name__}: {error}); restore it, or "
            "delete it to have it measured again"
        ) from None


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


if __name__ == "__main__":
    command.script(Config, run, name="claims", description=__doc__)
