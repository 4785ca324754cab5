"""Data sets that need no download: handwritten digits, and points in the plane."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from foliax.zoo.data.dataset import Dataset, from_arrays
from foliax.zoo.data.names import DIGITS

_DIGITS_TRAIN = 1437  # of 1,797: four fifths


def load_digits() -> Dataset:
    """Return the 1,797 handwritten digits of 8×8 that scikit-learn carries; needs no download.

    1,437 train and 360 test images, by a fixed permutation.

    Returns:
        The data set "digits".

    Example:
        >>> load_digits()
        Dataset('digits', 1437 training and 360 test images of shape (8, 8, 1), 10 classes)
    """
    from sklearn.datasets import load_digits as read_digits  # slow to import

    bunch: Any = read_digits()
    pixels, labels = bunch.images[..., None] / 16.0, bunch.target
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:_DIGITS_TRAIN], order[_DIGITS_TRAIN:]
    return from_arrays(
        "digits",
        (pixels[train], labels[train]),
        (pixels[test], labels[test]),
        class_names=DIGITS,
    )


def load_xor(*, num_train: int = 2000, num_test: int = 500, seed: int = 0) -> Dataset:
    """Return points of the unit square, labelled by the exclusive or of their rounded coordinates.

    The domain is that of the XOR networks of Tron & Fioresi 2024: uniform in [0, 1]². Points keep
    their coordinates, mean 0 and std 1, so that such networks take them as they are.

    Args:
        num_train: Number of training points.
        num_test: Number of test points.
        seed: Of the points.

    Returns:
        The data set "xor".

    Example:
        >>> load_xor()
        Dataset('xor', 2000 training and 500 test points of shape (2,), 2 classes)
    """
    points = np.random.default_rng(seed).random((_count(num_train, num_test), 2), np.float32)
    labels = np.logical_xor(points[:, 0] > 0.5, points[:, 1] > 0.5)
    return _points("xor", points, labels, num_train, ("equal", "different"), (0.0, 1.0))


def load_circles(*, num_train: int = 2000, num_test: int = 500, seed: int = 0) -> Dataset:
    """Return points of the unit circle in three classes, one for each arc of 120 degrees.

    The data are one closed curve in the plane, as for the circle networks of Tron & Fioresi 2024.
    Points keep their coordinates, mean 0 and std 1.

    Args:
        num_train: Number of training points.
        num_test: Number of test points.
        seed: Of the points.

    Returns:
        The data set "circles".

    Example:
        >>> load_circles().class_names
        ('0° to 120°', '120° to 240°', '240° to 360°')
    """
    turns = np.random.default_rng(seed).random(_count(num_train, num_test))
    angles = 2 * np.pi * turns
    points = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    names = ("0° to 120°", "120° to 240°", "240° to 360°")
    return _points("circles", points, np.floor(3 * turns), num_train, names, (-1.2, 1.2))


EMBEDDED: Final[dict[str, Callable[[], Dataset]]] = {
    "digits": load_digits,
    "xor": load_xor,
    "circles": load_circles,
}


def _count(num_train: int, num_test: int) -> int:
    if num_train < 1 or num_test < 1:
        raise ValueError(
            f"num_train and num_test must be at least 1, got {num_train} and {num_test}"
        )
    return num_train + num_test


def _points(
    name: str,
    points: np.ndarray,
    labels: np.ndarray,
    num_train: int,
    class_names: tuple[str, ...],
    limits: tuple[float, float],
) -> Dataset:
    x, y = points.astype(np.float32), labels.astype(np.int32)
    return Dataset(
        name=name,
        train_x=x[:num_train],
        train_y=y[:num_train],
        test_x=x[num_train:],
        test_y=y[num_train:],
        mean=0.0,
        std=1.0,
        num_classes=len(class_names),
        class_names=class_names,
        limits=limits,
    )
