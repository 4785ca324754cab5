"""Data sets of images and points, normalised as the networks take them, behind one function."""

import os
from typing import Final, Literal, overload

from foliax.zoo.data.batching import batches
from foliax.zoo.data.dataset import Dataset, Normalised, from_arrays, normalise
from foliax.zoo.data.embedded import EMBEDDED, load_circles, load_digits, load_xor
from foliax.zoo.data.files import load_files
from foliax.zoo.data.outliers import outliers
from foliax.zoo.data.packaged import load_mnist_5k, load_samples
from foliax.zoo.data.photographs import load_photographs
from foliax.zoo.data.preparing import prepare, seed_downloads
from foliax.zoo.data.streamed import StreamedDataset
from foliax.zoo.data.tfds import TFDS, read

__all__ = [
    "DATASETS",
    "Dataset",
    "Normalised",
    "StreamedDataset",
    "batches",
    "from_arrays",
    "load",
    "load_circles",
    "load_digits",
    "load_files",
    "load_mnist_5k",
    "load_photographs",
    "load_samples",
    "load_xor",
    "normalise",
    "outliers",
    "prepare",
    "seed_downloads",
]

_AT_HAND = EMBEDDED | {"mnist_5k": load_mnist_5k}
DATASETS: Final[tuple[str, ...]] = (*_AT_HAND, *TFDS)


@overload
def load(
    name: Literal["imagenet2012"], *, data_dir: str | os.PathLike | None = None
) -> StreamedDataset: ...
@overload
def load(name: str, *, data_dir: str | os.PathLike | None = None) -> Dataset: ...
def load(name: str, *, data_dir: str | os.PathLike | None = None) -> Dataset | StreamedDataset:
    """Return the data set of this name.

    Args:
        name: "digits", "xor" or "circles", which need nothing; "mnist_5k", 5,000 images of MNIST
            that come with the extra `mnist`; or "mnist", "fashion_mnist", "kmnist",
            "emnist/letters", "cifar10", "cifar100" or "imagenet2012", which TensorFlow Datasets
            prepares once (`python -m foliax.zoo.prepare NAME`). Reading what is prepared does not
            need TensorFlow.
        data_dir: Where prepared data sets are; None for the folder of TensorFlow Datasets,
            `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Returns:
        The data set in memory, in float32; "imagenet2012" stays on disk, as a `StreamedDataset`.

    Raises:
        ValueError: If the name is unknown.
        ImportError: If the extra that the data set needs is not installed; the message has the
            command.
        FileNotFoundError: If the data set is not prepared; the message has the command.

    Example:
        >>> load("digits").num_classes
        10
    """
    if name in _AT_HAND:
        return _AT_HAND[name]()
    if name in TFDS:
        return read(name, data_dir=data_dir)
    raise ValueError(f"name must be one of {', '.join(map(repr, DATASETS))}, got {name!r}")
