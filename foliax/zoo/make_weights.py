"""Train the models that come with foliax: `python -m foliax.zoo.make_weights`.

digits_mlp   MLP 64-48-10, ReLU, on the digits, with the papers' SGD (0.01, batches of 60, 30
             epochs, seed 0); the checkpoint is the one that `choose_epoch` names.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from flax import nnx

from foliax.zoo import checkpoints
from foliax.zoo.data import Dataset, load_digits
from foliax.zoo.evaluation import accuracy
from foliax.zoo.history import History, choose_epoch
from foliax.zoo.nets import MLP
from foliax.zoo.train_config import TrainConfig
from foliax.zoo.training import train

_MIN_ACCURACY = 0.9


def main(
    out: Path = Path(__file__).parent / "weights", work: Path | None = None, seed: int = 0
) -> None:
    """Train digits_mlp and write digits_mlp.npz.

    Args:
        out: Folder for the weights.
        work: Folder for the checkpoints, to stop and go on; by default a temporary one.
        seed: Of the initial weights and of the order of the images.
    """
    dataset, config = load_digits(), TrainConfig(seed=seed)
    model = MLP((64, 48, 10), rngs=nnx.Rngs(seed))
    with tempfile.TemporaryDirectory() as temporary:
        folder = work or Path(temporary)
        _, history = train(model, dataset, config, out=folder)
        epoch = choose_epoch(history, min_accuracy=_MIN_ACCURACY)
        chosen = checkpoints.restore(folder, epoch)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "digits_mlp.npz"
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
