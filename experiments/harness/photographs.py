"""Colour images of the shape of CIFAR's, 32 by 32, cut from the photographs of scikit-image."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from foliax import zoo

NAME, SIDE = "photographs", 32
QUICK: dict[str, Any] = {"num_train": 140, "num_test": 70}  # sizes, to see that everything runs
_PAPERS = 0.5  # mean and deviation with which the papers' code normalises colour images
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
    *, num_train: int = 1400, num_test: int = 350, seed: int = 0, papers: bool = False
) -> zoo.Dataset:
    """Return random cuts of the photographs, labelled by which photograph they are of.

    Training and test images are cut from different parts of each photograph, about equally many
    of each. They are normalised by the training images, or as the `papers`' code does.
    """
    from skimage import data  # slow to import

    rng, centre = np.random.default_rng(seed), _PAPERS if papers else None
    images = [getattr(data, name)() for name in PHOTOGRAPHS]
    train, test = zip(
        *(np.split(image, [round(_TEST_FROM * image.shape[1])], axis=1) for image in images),
        strict=True,
    )
    return zoo.from_arrays(
        NAME, _cuts(train, num_train, rng), _cuts(test, num_test, rng),
        class_names=tuple(PHOTOGRAPHS.values()), mean=centre, std=centre,
    )  # fmt: skip


def photographs_of(training: Mapping[str, Any]) -> zoo.Dataset:
    """Return the cuts that a network was trained on, given what its checkpoint says of it.

    Raises:
        ValueError: If these cuts are none of those that are made here.
    """
    for sizes in ({}, QUICK):
        data = photographs(seed=training["seed"], **sizes)
        if data.fingerprint() == training["dataset_hash"]:
            return data
    raise ValueError("checkpoint must hold a training on cuts of this version, got other cuts")


def _cuts(parts: Any, count: int, rng: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return so many random squares, resized, and of which part each is."""
    from skimage.transform import resize

    labels = rng.permutation(np.arange(count) % len(parts))
    pixels = np.empty((count, SIDE, SIDE, 3), np.float32)
    for image, label in zip(pixels, labels, strict=True):
        small = resize(_window(parts[label], rng), (SIDE, SIDE), order=1, anti_aliasing=True)
        image[:] = np.clip(np.asarray(small), 0, 1)
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


def renormalised(dataset: zoo.Dataset) -> zoo.Dataset:
    """Return the same images normalised as the papers' code does: pixels less 1/2, over 1/2."""
    train_x, test_x = (
        ((np.asarray(dataset.to_pixels(x)) - _PAPERS) / _PAPERS).astype(np.float32)
        for x in (dataset.train_x, dataset.test_x)
    )
    return replace(dataset, train_x=train_x, test_x=test_x, mean=_PAPERS, std=_PAPERS)
