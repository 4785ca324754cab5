"""The command line of the experiments on one network: the options and the output of all."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import tyro

from experiments.harness.networks import Loaded, load
from experiments.harness.own import data_of
from experiments.harness.report import write_json, write_results
from experiments.harness.run import keep_programs, running
from foliax import zoo

SCHEMES = (
    "Distances are Euclidean in standardised units unless pixels are named; the pixel range is 1. "
    "“Exact” steps follow the projection and keep p along the kernel; “published” is the paper's "
    "scheme, unit-speed steps clipped to the pixel box."
)
# Said by `network` or run.json.
_WHERE = ("checkpoint", "data", "devices", "epoch", "model", "out", "weights")

Grey = Literal["digits", "mnist_5k", "mnist", "fashion_mnist", "kmnist", "emnist/letters"]
Named = Literal[Grey, "cifar10", "cifar100"]
Count = Annotated[int, tyro.conf.arg(aliases=("--images",))]


@dataclass(frozen=True)
class Run:
    """One run of a script."""

    seed: int = 0  # Of all that is drawn at random: images, directions, noise, trainings made here
    # Output folder, of pictures, numbers (results.json), run.json, and a report or tables.
    out: Path = Path("out")
    devices: int | None = None  # How many devices share the work; None for all that JAX finds
    quick: bool = False  # Few steps, to see that everything runs

    def at_most(self, **largest: Any) -> Any:
        """Return what is run: itself, or if quick with no setting above these."""
        if not self.quick:
            return self
        return replace(self, **{k: min(most, getattr(self, k)) for k, most in largest.items()})


@dataclass(frozen=True)
class Network(Run):
    """Which network, with its data."""

    # Data set; None for that of the checkpoint, and for digits without one. Digits need nothing,
    # Fashion-MNIST and the like are prepared by `python -m foliax.zoo.prepare`; MNIST and CIFAR
    # need the internet for it.
    dataset: Named | None = None
    # Your own images: an .npz file with train_x, train_y, test_x, test_y, or x, y (pixels in bytes
    # or [0, 1]), or a folder that has a folder of images for each class.
    data: Path | None = None
    # Your own network, as module:function: a function without arguments that returns it, of
    # whatever library.
    model: str | None = None
    # Folder of a training (`experiments.train --out`). Without it, digits take the network that
    # comes with foliax.
    checkpoint: Path | None = None
    epoch: int | None = None  # Which epoch of that training; None for the newest
    # PyTorch weights of the papers' network, .npz or .pt, in place of a checkpoint.
    weights: Path | None = None

    def load(self) -> Loaded:
        """Return the network and its data."""
        return load(
            data_of(self.dataset, self.data), checkpoint=self.checkpoint, epoch=self.epoch,
            weights=self.weights, model=self.model,
        )  # fmt: skip

    def load_each(self, epochs: Sequence[int]) -> dict[int | None, Loaded]:
        """Return the network at each epoch of the training; at `epoch` where none is named."""
        return {epoch: replace(self, epoch=epoch).load() for epoch in epochs or (self.epoch,)}


@dataclass(frozen=True)
class Command(Network):
    """Which network, which images, and where to write."""

    # How many pairs of test images, or images where there are no targets; 1 for one picture.
    pairs: Count = 1
    start: int | None = None  # Place of one start in the test set; None to draw starts by the seed

    def starts(self, total: int) -> np.ndarray:
        """Return the places of the starts in a test set of so many images."""
        if self.start is None:
            if not 1 <= self.pairs <= total:
                raise ValueError(f"pairs must be in 1 … {total}, the test images, got {self.pairs}")
            return np.random.default_rng(self.seed).permutation(total)[: self.pairs]
        if self.pairs != 1:
            raise ValueError(f"start names one image, got it for {self.pairs}")
        if not 0 <= self.start < total:
            raise ValueError(f"start must be in 0 … {total - 1}, the test images, got {self.start}")
        return np.array([self.start])


Any_Command = TypeVar("Any_Command", bound=Command)


@dataclass(frozen=True)
class Found:
    """What an experiment found."""

    loaded: Loaded  # The network and its data
    sections: Mapping[str, Any]  # Name of each claim, and what `report.section` gave
    walks: Mapping[str, Any]  # What `populations.records` gave, by claim; every path point by point
    note: str = SCHEMES  # What a reader of the report has to know
    labelled: bool = True  # Whether the labels of the data are those that the network predicts


def perform(
    command: Any_Command, measure: Callable[[Any_Command], Found], *, title: str
) -> dict[str, Any]:
    """Measure, and write `results.json`, `paths.json`, `run.json` and the report."""
    begun = time.perf_counter()
    found = measure(command)
    network, seconds = found.loaded, {"all": round(time.perf_counter() - begun, 2)}
    options = {k: v for k, v in asdict(command).items() if k not in _WHERE}
    intro = (
        f"Measured on {network.dataset.name} with the network {network.network}. {found.note} All "
        "numbers are in results.json, and those of every single image or path in paths.json."
    )
    results = write_results(
        command.out, title, [intro], found.sections,
        run={"seed": command.seed, "seconds": seconds},
        setting=options | setting(network, labelled=found.labelled),
    )  # fmt: skip
    write_json(command.out / "paths.json", found.walks)
    return results


def setting(network: Loaded, *, labelled: bool = True) -> dict[str, Any]:
    """Return what is said of a network: its data, itself, and how well it does."""
    model, data = network.model, network.dataset
    return {
        "dataset": data.name,
        "network": network.network,
        "num_test": len(data.test_x),
        "test_accuracy": zoo.accuracy(model, data.test_x, data.test_y) if labelled else None,
    }


def script(
    kind: type[Any],
    run: Callable[[Any], Any],
    *,
    name: str,
    description: str | None,
    hosts: bool = False,
) -> None:
    """Run a script from the command line, in its output folder: out/NAME where none is named."""
    keep_programs()
    options = tyro.cli(
        kind, prog=f"python -m experiments.{name}", description=description,
        default=kind(out=Path("out") / name),
    )  # fmt: skip
    devices = getattr(options, "devices", None)  # not every script shares its work
    with running(name, options.out, devices=devices, hosts=hosts) as out:
        run(replace(options, out=out))


def main(
    kind: type[Any_Command],
    measure: Callable[[Any_Command], Found],
    *,
    name: str,
    description: str | None,
) -> None:
    """Run an experiment on one network from the command line."""
    run = partial(perform, measure=measure, title=name)
    script(kind, run, name=name, description=description, hosts=True)
