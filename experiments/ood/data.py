"""Test images, and outliers of several kinds, in the normalised units of a data set.

The outliers on which combinations of scores are fitted are made of training images alone, and are
of none of the kinds that are tested.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from foliax import zoo

# Classes for which a changed image is another one: a mirrored 8 or a mirrored shirt is in the data.
_MIRRORED = {"digits": (2, 3, 4, 5, 6, 7, 9), "fashion_mnist": (5, 7, 9)}
_ROTATED = {"digits": (1, 2, 3, 4, 5, 6, 7, 8, 9)}
_TEXTURES = ("brick", "grass", "gravel")
_WINDOWS = (48, 129)  # sides of the squares that are cut out of a texture and shrunk
_FACES = 100  # of lfw_subset, the first half; the second shows no faces
_NOISE = 0.15  # deviation of the noise in one kind of synthetic outliers, pixel units

MEANINGS = {
    "mirrored": "test images mirrored left to right, of classes that this changes",
    "rotated": "test images turned by 90 degrees, of classes that this changes",
    "inverted": "test images with black and white exchanged",
    "uniform": "uniform noise in each pixel",
    "gaussian": "Gaussian noise with each pixel's mean and deviation over the training set",
    "blends": "means of two test images of different classes",
    "textures": "squares of scikit-image's brick, grass and gravel, shrunk",
    "faces": "the 100 faces of scikit-image's lfw_subset",
    "digits": "scikit-learn's digits, enlarged",
    "held_out": "test images of classes that another network was trained without",
}


class Sets(NamedTuple):
    """What one network is tested on."""

    model: Any  # The network
    dataset: Any  # Its data
    bank_x: np.ndarray  # Training images that references, neighbours and class means come from
    bank_y: np.ndarray  # Their labels
    # By name: "held", training images apart from the bank, which calibrate; "synthetic",
    # outliers made of these; "test"; and every kind of outliers.
    images: dict[str, np.ndarray]


def sets(
    model: Any, dataset: Any, outside: dict[str, np.ndarray], *, count: int, calibration: int,
    bank: int, seed: int,
) -> Sets:  # fmt: skip
    """Draw at most `count` test images, and the training images of the bank and apart from it.

    Raises:
        ValueError: If the training set is too small.
    """
    total = len(dataset.train_y)
    if calibration >= total:
        raise ValueError(
            f"calibration must be below the {total} training images, got {calibration}"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(total)
    held, rest = dataset.train_x[order[:calibration]], order[calibration:][:bank]
    test = dataset.test_x[rng.permutation(len(dataset.test_y))[:count]]
    synthetic = _synthetic(dataset, held, np.random.default_rng((seed, 100)))
    images = {"held": held, "synthetic": synthetic, "test": test, **outside}
    return Sets(model, dataset, dataset.train_x[rest], dataset.train_y[rest], images)


def outliers(dataset: Any, count: int, seed: int) -> dict[str, np.ndarray]:
    """Return at most so many outliers of every kind that fits the shape of the images."""
    mirrored, rotated = (classes.get(dataset.name) for classes in (_MIRRORED, _ROTATED))
    kinds: dict[str, Callable[[Any, int, np.random.Generator], np.ndarray]] = {
        "mirrored": lambda d, n, rng: _some(d, n, rng, mirrored)[0][:, :, ::-1],
        "rotated": lambda d, n, rng: np.rot90(_some(d, n, rng, rotated)[0], axes=(1, 2)),
        "inverted": lambda d, n, rng: 1 - _some(d, n, rng)[0],
        "uniform": lambda d, n, rng: rng.uniform(size=(n, *d.shape)),
        "gaussian": _gaussian,
        "blends": _blends,
    }
    if dataset.shape[-1] == 1:
        kinds |= {"textures": _textures, "faces": _faces}
    if dataset.shape == (28, 28, 1):
        kinds["digits"] = lambda d, n, rng: resized(
            _some(zoo.load_digits(), n, rng)[0][..., 0], d.shape
        )
    return {
        name: _normalised(dataset, kinds[name](dataset, count, np.random.default_rng((seed, i))))
        for i, name in enumerate(MEANINGS)
        if name in kinds
    }


def _normalised(dataset: Any, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(dataset.from_pixels(np.clip(pixels, 0, 1)), np.float32)


def _some(
    dataset: Any, count: int, rng: np.random.Generator, classes: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels and labels of some test images, of some classes."""
    wanted = range(dataset.num_classes) if classes is None else classes
    places = rng.permutation(np.flatnonzero(np.isin(dataset.test_y, list(wanted))))[:count]
    return np.asarray(dataset.to_pixels(dataset.test_x[places])), dataset.test_y[places]


def _gaussian(dataset: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    pixels = np.asarray(dataset.to_pixels(dataset.train_x))
    return rng.normal(pixels.mean(axis=0), pixels.std(axis=0), (count, *dataset.shape))


def _blends(dataset: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    pixels, labels = _some(dataset, len(dataset.test_y), rng)
    first, second = rng.integers(len(pixels), size=(2, 4 * count))
    differ = np.flatnonzero(labels[first] != labels[second])[:count]
    return (pixels[first[differ]] + pixels[second[differ]]) / 2


def _textures(dataset: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    from skimage import data  # slow to import

    textures, found = [getattr(data, name)() / 255 for name in _TEXTURES], []
    for i in range(count):
        image, side = textures[i % len(textures)], int(rng.integers(*_WINDOWS))
        top, left = (int(rng.integers(extent - side + 1)) for extent in image.shape)
        found.append(image[top : top + side, left : left + side])
    return resized(found, dataset.shape)


def _faces(dataset: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    from skimage import data

    return resized(data.lfw_subset()[rng.permutation(_FACES)[:count]], dataset.shape)


def resized(images: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return grey images shrunk or enlarged to a shape of (H, W, 1)."""
    from skimage.transform import resize

    small: list[Any] = [resize(each, shape[:2], order=1, anti_aliasing=True) for each in images]
    return np.stack(small)[..., None]


def _synthetic(dataset: Any, held: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return outliers made of training images: quarters exchanged, halves of two, and noise."""
    pixels = np.asarray(dataset.to_pixels(held))
    height, width = pixels.shape[1] // 2, pixels.shape[2] // 2
    quarters, halves, noisy = (pixels[p] for p in np.array_split(rng.permutation(len(pixels)), 3))
    quarters = np.roll(quarters, (height, width), axis=(1, 2))
    halves[:, :, width:] = np.roll(halves, 1, axis=0)[:, :, width:]
    noisy = noisy + rng.normal(0, _NOISE, noisy.shape)
    return _normalised(dataset, np.concatenate([quarters, halves, noisy]))


def without(dataset: Any, classes: Sequence[int]) -> tuple[Any, np.ndarray]:
    """Return the data set without some classes, numbered anew, and the test images of those.

    Raises:
        ValueError: If fewer than two classes are left, or one is unknown.
    """
    out = sorted(set(classes))
    left = [label for label in range(dataset.num_classes) if label not in out]
    if len(left) < 2 or len(left) + len(out) != dataset.num_classes or not out:
        raise ValueError(
            f"held_out must name classes of 0 … {dataset.num_classes - 1} and leave two, "
            f"got {tuple(classes)}"
        )
    new = np.full(dataset.num_classes, -1)
    new[left] = np.arange(len(left))
    train, test = np.isin(dataset.train_y, left), np.isin(dataset.test_y, left)
    rest = replace(
        dataset,
        name=f"{dataset.name} without {', '.join(dataset.class_names[c] for c in out)}",
        train_x=dataset.train_x[train], train_y=new[dataset.train_y[train]].astype(np.int32),
        test_x=dataset.test_x[test], test_y=new[dataset.test_y[test]].astype(np.int32),
        num_classes=len(left), class_names=tuple(dataset.class_names[c] for c in left),
    )  # fmt: skip
    return rest, dataset.test_x[~test]
