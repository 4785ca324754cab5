"""Colour images of the shape of CIFAR's, 32 by 32, cut from the photographs of scikit-image."""

from typing import Any

import numpy as np

from foliax.zoo.data.dataset import Dataset, from_arrays

_SIDE = 32
_PAPERS = 0.5  # mean and deviation with which the papers' code normalises colour images
# What scikit-image carries in its package, and what it shows.
_PHOTOGRAPHS = {
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


def load_photographs(
    *, num_train: int = 1400, num_test: int = 350, seed: int = 0, papers: bool = False
) -> Dataset:
    """Return random 32×32 cuts of the photographs that scikit-image carries; needs no download.

    Colour images of CIFAR's shape, labelled by which of seven photographs they are of. Training and
    test images are cut from different parts of each photograph, about equally many of each.

    Args:
        num_train: Number of training images.
        num_test: Number of test images.
        seed: Of the cuts.
        papers: Whether they are normalised as the papers' code does, pixels less 1/2 over 1/2; else
            by the training images.

    Returns:
        The data set "photographs".

    Example:
        >>> load_photographs(num_train=14, num_test=7)
        Dataset('photographs', 14 training and 7 test images of shape (32, 32, 3), 7 classes)
    """
    from skimage import data  # slow to import

    rng, centre = np.random.default_rng(seed), _PAPERS if papers else None
    images = [getattr(data, name)() for name in _PHOTOGRAPHS]
    train, test = zip(
        *(np.split(image, [round(_TEST_FROM * image.shape[1])], axis=1) for image in images),
        strict=True,
    )
    return from_arrays(
        "photographs", _cuts(train, num_train, rng), _cuts(test, num_test, rng),
        class_names=tuple(_PHOTOGRAPHS.values()), mean=centre, std=centre,
    )  # fmt: skip


def _cuts(parts: Any, count: int, rng: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return so many random squares, resized, and of which part each is."""
    from skimage.transform import resize

    labels = rng.permutation(np.arange(count) % len(parts))
    pixels = np.empty((count, _SIDE, _SIDE, 3), np.float32)
    for image, label in zip(pixels, labels, strict=True):
        small = resize(_window(parts[label], rng), (_SIDE, _SIDE), order=1, anti_aliasing=True)
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
