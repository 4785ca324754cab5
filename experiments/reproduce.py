"""Reproduce the pictures and claims of the slides on one data set, from training to the report.

    python -m experiments.reproduce --dataset mnist_5k --epochs 20 --seed 0 --out out/reproduce

trains a small network, chooses a partially trained checkpoint by a stated rule, and writes
pictures, `results.json` (the same for the same seed), `run.json` (how it came about) and
`report.html` into the output folder. Stopped, it goes on where it was; a second run, or one with
`--checkpoint DIR`, trains no more.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments import data_leaf, dynamics, kernel, noise_leaf, noise_level, rank_table
from experiments.harness import command
from experiments.harness.networks import Trained, obtain
from experiments.harness.own import as_dataset
from experiments.harness.report import write_results
from experiments.harness.run import Stages
from experiments.harness.study import Sizes, Study
from foliax import zoo


class Extent(NamedTuple):
    """How much is computed by default: as much as takes a minute or two on two cores."""

    epochs: int
    track_per_epoch: int  # how often trace and rank are measured
    pairs: int
    others: frozenset[int]  # epochs that are walked besides the chosen one


_SMALL = 100  # images of no more pixels go as far as the digits
EXTENTS: Mapping[str, Extent] = {
    "mnist_5k": Extent(20, 3, 16, frozenset({1, 20})),
    "digits": Extent(30, 10, 64, frozenset({1, 5, 30})),
}


@dataclass(frozen=True)
class Config(command.Run):
    """What to reproduce, and where to."""

    # 5,000 images of MNIST, which need the extra `mnist`; or scikit-learn's digits of 8×8, which
    # need no further package.
    dataset: Literal["mnist_5k", "digits"] = "mnist_5k"
    # Your own images in place of it: an .npz file with train_x, train_y, test_x, test_y, or x, y
    # (pixels in bytes or [0, 1]), or a folder that has a folder of images for each class.
    data: Path | None = None
    # Epochs of training by plain SGD at the papers' rate; None for 20 on MNIST, 30 on the digits.
    epochs: int | None = None
    # Pairs of test images that are walked; None for 16 of MNIST, where a step takes fifty times as
    # long, and 64 of the digits.
    pairs: int | None = None
    # "auto" trains, or goes on with what the output folder holds; otherwise a folder of checkpoints
    # of an earlier training.
    checkpoint: str = "auto"

    def source(self) -> zoo.Dataset:
        """Return the data."""
        return as_dataset(self.dataset) if self.data is None else zoo.load_files(self.data)

    def sizes(self, data: zoo.Dataset) -> Sizes:
        """Return the sizes of the walks: those of the report, or tiny ones."""
        if not self.quick:
            pairs = min(self.pairs or extent_of(data).pairs, len(data.test_x) // 3)
            return Sizes(pairs=pairs, seed=self.seed)
        return Sizes(
            pairs=self.pairs or 4, steps=60, drift_steps=100, noise_steps=20, save_every=10,
            seed=self.seed,
        )  # fmt: skip


def extent_of(data: zoo.Dataset) -> Extent:
    """Return how much is computed for a data set: as for the named one that is most like it."""
    small = np.prod(data.shape) <= _SMALL
    return EXTENTS.get(data.name, EXTENTS["digits" if small else "mnist_5k"])


def run(config: Config) -> dict[str, Any]:
    """Train or load, measure all claims, write everything; return what results.json holds."""
    source = config.source()
    extent, stages = extent_of(source), Stages("reproduce", 8)
    trained: Trained = stages.run(
        "training", obtain, source, epochs=config.epochs or extent.epochs,
        track_per_epoch=extent.track_per_epoch, learning_rate=0.01,
        seed=config.seed, out=config.out, checkpoint=config.checkpoint,
    )  # fmt: skip
    choice = dynamics.choose(trained.history)
    claims = _claims(config, trained, choice)
    found = {name: stages.run(name, compute) for name, compute in claims.items()}
    stages.bar.close()
    data = trained.dataset
    return write_results(
        config.out,
        f"The data manifold of {data.name}",
        [_intro(trained, choice), command.SCHEMES],
        found,
        run={"seed": config.seed, "seconds": stages.seconds},
        setting={
            "dataset": data.name,
            "num_train": len(data.train_x),
            "num_test": len(data.test_x),
            "epochs": trained.epochs[-1],
            "seed": config.seed,
            "training": trained.settings,
            "network": trained.network,
            "sizes": asdict(config.sizes(data)),
        },
        choice=choice._asdict(),
    )


def _claims(
    config: Config, trained: Trained, choice: dynamics.Choice
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return how each claim is measured, in the order of the slides."""
    data, out = trained.dataset, config.out
    study = Study(trained.model(choice.epoch), data, config.sizes(data))
    others = {1} if config.quick else extent_of(data).others
    models = {
        epoch: trained.model(epoch)
        for epoch in sorted(others.intersection(trained.epochs) - {choice.epoch})
    }
    few = {"num_images": 8, "num_dense": 2} if config.quick else {}

    def training() -> dict[str, Any]:
        epochs, images = (
            dynamics.about_ten(trained.epochs),
            data.test_x[: few.get("num_images", rank_table.NUM_IMAGES)],
        )
        measured = dynamics.measure(trained.folder, epochs, images)
        loose = dynamics.mean_loose_ranks(measured)
        return dynamics.run(trained.history, out, choice, loose=loose)

    return {
        "S1": partial(rank_table.run, study.model, data, out, **few),
        "S2": training,
        "S3": partial(data_leaf.run, study, out, models=models),
        "S4": partial(data_leaf.run, study, out, data_leaf.MIRRORED),
        "S5": partial(noise_level.run, study, out),
        "S6": partial(kernel.run, study, out),
        "S7": partial(noise_leaf.run, study, out),
    }


def _intro(trained: Trained, choice: dynamics.Choice) -> str:
    data, settings = trained.dataset, trained.settings
    return (
        f"A network ({trained.network}) was trained on {len(data.train_x)} images of {data.name} "
        f"for {trained.epochs[-1]} epochs at a rate of {settings['learning_rate']:g} (seed "
        f"{settings['seed']}). All claims are measured on {len(data.test_x)} test images and one "
        f"partially trained checkpoint. {choice.reason}"
    )


if __name__ == "__main__":
    command.script(Config, run, name="reproduce", description=__doc__)
