"""Train the models that come with foliax: `python -m foliax.zoo.make_weights`.

digits_mlp   MLP 64-48-10, ReLU, on the digits, 30 epochs
mnist_cnn    `small_cnn`, ReLU, on 4,000 images of MNIST, 30 epochs

Both by the papers' SGD (0.01, batches of 60, seed 0); the checkpoint is the one that
`choose_epoch` names.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from flax import nnx

from foliax.zoo import checkpoints
from foliax.zoo.data import Dataset, load
from foliax.zoo.evaluation import accuracy
from foliax.zoo.history import History, choose_epoch
from foliax.zoo.named import small_cnn
from foliax.zoo.nets import MLP
from foliax.zoo.shipped import SHIPPED
from foliax.zoo.train_config import TrainConfig
from foliax.zoo.training import train

_MIN_ACCURACY = 0.9


_EPOCHS = 30


def main(
    names: tuple[Literal["digits_mlp", "mnist_cnn"], ...] = ("digits_mlp", "mnist_cnn"),
    out: Path = Path(__file__).parent / "weights",
    work: Path | None = None,
    seed: int = 0,
) -> None:
    """Train networks and write each as NAME.npz.

    Args:
        names: Which.
        out: Folder for the weights.
        work: Folder for the checkpoints, to stop and go on; by default a temporary one.
        seed: Of the initial weights and of the order of the images.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            _make(name, out / f"{name}.npz", (work or Path(temporary)) / name, seed)


def _make(name: str, path: Path, folder: Path, seed: int) -> None:
    dataset, config = load(SHIPPED[name]), TrainConfig(epochs=_EPOCHS, seed=seed)
    rngs = nnx.Rngs(seed)
    model = MLP((64, 48, 10), rngs=rngs) if name == "digits_mlp" else small_cnn(rngs=rngs)
    _, history = train(model, dataset, config, out=folder)
    epoch = choose_epoch(history, min_accuracy=_MIN_ACCURACY)
    chosen = checkpoints.restore(folder, epoch)
    checkpoints.save_npz(path, chosen, _describe(chosen, dataset, config, history, epoch))
    print(f"{path}: {path.stat().st_size} bytes, epoch {epoch}")


def _describe(
    model: nnx.Module, dataset: Dataset, config: TrainConfig, history: History, epoch: int
) -> dict[str, Any]:
    peak = int(np.nanargmax(history.trace_mean))
    row = int(np.flatnonzero(history.steps == history.epoch_steps[epoch - 1])[0])
    return {
        "dataset": dataset.name,
        "training": dataclasses.asdict(config),
        "epoch": epoch,
        "step": int(history.steps[row]),
        "train_accuracy": accuracy(model, dataset.train_x, dataset.train_y),
        "test_accuracy": float(history.test_accuracy[epoch - 1]),
        "trace_mean": float(history.trace_mean[row]),
        "rank_mean": float(history.rank_mean[row]),
        "peak": {
            "step": int(history.steps[peak]),
            "trace_mean": float(history.trace_mean[peak]),
        },
        "chosen": "the first epoch that ends at or after the peak of the mean trace over the "
        f"reference images, with a test accuracy of at least {_MIN_ACCURACY}",
    }


if __name__ == "__main__":
    tyro.cli(main)
