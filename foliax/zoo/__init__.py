"""Networks, data and training: what a classifier needs before its geometry can be looked at."""

from foliax.zoo.checkpoints import (
    epochs,
    load,
    load_metadata,
    load_npz,
    restore,
    save,
    save_npz,
)
from foliax.zoo.data import Dataset, from_arrays, load_digits
from foliax.zoo.data import load as load_dataset
from foliax.zoo.history import History
from foliax.zoo.nets import CNN, MLP, average_pool, build, max_pool
from foliax.zoo.training import TrainConfig, accuracy, choose_epoch, train

__all__ = [  # noqa: RUF022 (grouped by what they are for)
    # networks
    "CNN",
    "MLP",
    "average_pool",
    "build",
    "max_pool",
    # data
    "Dataset",
    "from_arrays",
    "load_dataset",
    "load_digits",
    # training
    "History",
    "TrainConfig",
    "accuracy",
    "choose_epoch",
    "train",
    # checkpoints
    "epochs",
    "restore",
    "save",
    # weights in single files, and those that come with foliax
    "load",
    "load_metadata",
    "load_npz",
    "save_npz",
]
