"""Colour images of the shape of CIFAR's, 32 by 32, cut from the photographs of scikit-image."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from foliax import zoo

NAME, SIDE = "photographs", 32
PAPERS_CENTRE = 0.5  # mean and deviation with which the papers' code normalises colour images
QUICK = {"num_train": 140, "num_test": 70}  # sizes, to see that everything runs
# What scikit-image carries in its package, and what it shows.
PHOTOGRAPHS = {
    "astronaut": "astronaut",
    "chelsea": "cat",
    "coffee": "coffee",
    "rocket": "rocket",
    "hubble_deep_field": "galaxies",
    "immunohistochemistry": "tissue",
    "retina": "retina",
}
_TEST_FROM = 0.7  # of the width: test images are cut right of it, training images left of it
_LEAST_CONTRAST, _TRIES = 0.08, 50  # deviation of the pixels of a square, and how often it is drawn
_WINDOWS = (64, 128)  # sides of the squares that are cut out and resized


def photographs(
    *,
    num_train: int = 1400,
    num_test: int = 350,
    seed: int = 0,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> zoo.Dataset:
    """Return random cuts of the photographs, labelled by which photograph they are of.

    Training and test images are cut from different parts of each photograph.

    Args:
        num_train: Training images; about equally many of each photograph.
        num_test: Test images.
        seed: Of the cuts.
        mean: What is subtracted; None for the mean of the training images.
        std: What is divided by; likewise.

    Returns:
        The data set "photographs".
    """
    from skimage import data  # slow to import

    rng = np.random.default_rng(seed)
    whole = [getattr(data, name)() for name in PHOTOGRAPHS]
    middles = [round(_TEST_FROM * image.shape[1]) for image in whole]
    train = [image[:, :middle] for image, middle in zip(whole, middles, strict=True)]
    test = [image[:, middle:] for image, middle in zip(whole, middles, strict=True)]
    return zoo.from_arrays(
        NAME, _cuts(train, num_train, rng), _cuts(test, num_test, rng),
        class_names=tuple(PHOTOGRAPHS.values()), mean=mean, std=std,
    )  # fmt: skip


def photographs_of(training: Mapping[str, Any]) -> zoo.Dataset:
    """Return the cuts that a network was trained on.

    Args:
        training: What its checkpoint says of it.

    Raises:
        ValueError: If these cuts are none of those that are made here.
    """
    for sizes in ({}, QUICK):
        data = photographs(seed=training["seed"], **sizes)
        if data.fingerprint() == training["dataset_hash"]:
            return data
    raise ValueError("checkpoint must hold a training on cuts of this version, got other cuts")


def _cuts(parts: list[np.ndarray], count: int, rng: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return so many random squares, resized, and of which part each is."""
    from skimage.transform import resize

    labels = rng.permutation(np.arange(count) % len(parts))
    pixels = np.empty((count, SIDE, SIDE, 3), np.float32)
    for image, label in zip(pixels, labels, strict=True):
        window = _window(parts[label], rng)
        small = np.asarray(resize(window, (SIDE, SIDE), order=1, anti_aliasing=True))
        image[:] = np.clip(small, 0, 1)
    return pixels, labels


def _window(part: np.ndarray, rng: Any) -> np.ndarray:
    """Return a random square that shows something."""
    window = part
    for _ in range(_TRIES):
        side = int(rng.integers(*_WINDOWS))
        top, left = (int(rng.integers(extent - side + 1)) for extent in part.shape[:2])
        window = part[top : top + side, left : left + side] / 255
        if window.std() >= _LEAST_CONTRAST:
            break
    return window


def renormalised(dataset: zoo.Dataset, mean: float, std: float) -> zoo.Dataset:
    """Return the same images as (pixels − mean) / std, for a network that takes them so."""
    train_x, test_x = (
        ((np.asarray(dataset.to_pixels(x)) - mean) / std).astype(np.float32)
        for x in (dataset.train_x, dataset.test_x)
    )
    return replace(dataset, train_x=train_x, test_x=test_x, mean=mean, std=std)
