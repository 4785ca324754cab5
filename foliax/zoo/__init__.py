"""Networks, data and training: what is needed to get a classifier."""

from foliax.zoo.checkpoints import (
    epochs,
    load_npz,
    restore,
    save,
    save_npz,
)
from foliax.zoo.data import (
    Dataset,
    StreamedDataset,
    batches,
    from_arrays,
    load_digits,
    load_files,
    load_mnist_5k,
    load_photographs,
    load_samples,
    outliers,
    seed_downloads,
)
from foliax.zoo.data import load as load_dataset
from foliax.zoo.evaluation import accuracy
from foliax.zoo.foreign import load_torch
from foliax.zoo.history import History, choose_epoch, describe_choice
from foliax.zoo.named import circle_net, colour_cnn, small_cnn, vgg, xor_net
from foliax.zoo.nets import CNN, MLP, average_pool, build, max_pool, penultimate
from foliax.zoo.shipped import load, load_metadata
from foliax.zoo.train_config import PRESETS, TrainConfig
from foliax.zoo.training import train

__all__ = [  # noqa: RUF022 (grouped by what they are for)
    # networks
    "CNN",
    "MLP",
    "average_pool",
    "build",
    "circle_net",
    "colour_cnn",
    "max_pool",
    "penultimate",
    "small_cnn",
    "vgg",
    "xor_net",
    # data
    "Dataset",
    "StreamedDataset",
    "batches",
    "from_arrays",
    "load_dataset",
    "load_digits",
    "load_files",
    "load_mnist_5k",
    "load_photographs",
    "load_samples",
    "outliers",
    "seed_downloads",
    # training
    "PRESETS",
    "History",
    "TrainConfig",
    "accuracy",
    "choose_epoch",
    "describe_choice",
    "train",
    # checkpoints
    "epochs",
    "restore",
    "save",
    # weights in single files, and those that come with foliax
    "load",
    "load_metadata",
    "load_npz",
    "load_torch",
    "save_npz",
]
