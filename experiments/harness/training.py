"""A training to look at: made here, gone on with, or read from an earlier run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import nnx

from experiments.harness.common import in_words
from foliax import zoo
from foliax.zoo import checkpoints

_HIDDEN = 48


@dataclass(frozen=True)
class Trained:
    """A training that is over.

    Attributes:
        dataset: What it was trained on.
        history: Its `foliax.zoo.History`.
        folder: Where its checkpoints are.
        epochs: Epochs that have one, ascending.
        network: The architecture in words.
        settings: What the training says of itself.
    """

    dataset: zoo.Dataset
    history: zoo.History
    folder: Path
    epochs: tuple[int, ...]
    network: str
    settings: dict[str, Any]

    def model(self, epoch: int) -> nnx.Module:
        """Return the network as it was at the end of an epoch."""
        return zoo.restore(self.folder, epoch)


def obtain(
    dataset: str, *, epochs: int, learning_rate: float, seed: int, out: Path, checkpoint: str
) -> Trained:
    """Return a training: the one in `checkpoint`, or with "auto" that in `out`, made if need be.

    Args:
        dataset: Name of the data set.
        epochs: How long to train.
        learning_rate: Of plain SGD.
        seed: Of the training.
        out: Where checkpoints go.
        checkpoint: "auto", or the folder of an earlier training, which is left as it is.

    Returns:
        The training.

    Raises:
        ValueError: If the earlier training was on another data set.
    """
    data = zoo.load_dataset(dataset)
    folder = out if checkpoint == "auto" else Path(checkpoint)
    if checkpoint == "auto":
        size = data.train_x[0].size
        model = zoo.MLP((size, _HIDDEN, data.num_classes), rngs=nnx.Rngs(seed))
        config = zoo.TrainConfig(epochs=epochs, learning_rate=learning_rate, seed=seed)
        zoo.train(model, data, config, out=out)
    there = tuple(epoch for epoch in zoo.epochs(folder) if checkpoint != "auto" or epoch <= epochs)
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
