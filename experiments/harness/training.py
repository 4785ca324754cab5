"""A training to look at: made here, continued, or read from an earlier run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import nnx

from experiments.harness.networks import in_words, quick_network
from foliax import zoo
from foliax.zoo import checkpoints


@dataclass(frozen=True)
class Trained:
    """A training that is over."""

    dataset: zoo.Dataset  # What it was trained on
    history: zoo.History  # Its `foliax.zoo.History`
    folder: Path  # Where its checkpoints are
    epochs: tuple[int, ...]  # Epochs that have one, ascending
    network: str  # The architecture in words
    settings: dict[str, Any]  # What the training says of itself

    def model(self, epoch: int) -> nnx.Module:
        """Return the network as it was at the end of an epoch."""
        return zoo.restore(self.folder, epoch)


def obtain(
    dataset: str, *, epochs: int, learning_rate: float, seed: int, out: Path, checkpoint: str
) -> Trained:
    """Return the training in the folder `checkpoint`, or with "auto" that in `out`.

    The latter is made, or continued, if need be: a small network by plain SGD.

    Raises:
        ValueError: If the earlier training was on another data set.
    """
    data = zoo.load_dataset(dataset)
    if checkpoint == "auto":
        config = zoo.TrainConfig(epochs=epochs, learning_rate=learning_rate, seed=seed)
        zoo.train(quick_network(data, seed=seed), data, config, out=out)
        folder, there = out, tuple(epoch for epoch in zoo.epochs(out) if epoch <= epochs)
    else:
        folder = Path(checkpoint)
        there = tuple(zoo.epochs(folder))
    newest = checkpoints.read(folder, there[-1])
    assert newest is not None  # an epoch asked for is read, or an error is raised
    settings = newest.info["training"]
    if settings["dataset_hash"] != data.fingerprint():
        raise ValueError(
            f"checkpoint must hold a training on {dataset}, got one on {settings['dataset']} "
            f"in {folder}; give its --dataset"
        )
    history = zoo.History.from_dict(newest.info["history"])
    return Trained(data, history, folder, there, in_words(newest.architecture), settings)
