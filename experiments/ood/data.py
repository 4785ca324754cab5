"""What is in the distribution, and what is not: test images against several other sets.

Everything is in the data set's normalised units, its pixels in [0, 1]. The outliers that a
combination may be fitted on are made of training images alone, and of none of the kinds that are
tested.
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

SAYS = {
    "mirrored": "test images mirrored left to right, of classes that this changes",
    "rotated": "test images turned by 90 degrees, of classes that this changes",
    "inverted": "test images with black and white exchanged",
    "uniform": "uniform noise in each pixel",
    "gaussian": "Gaussian noise with each pixel's mean and deviation over the training set",
    "blends": "means of two test images of different classes",
    "textures": "squares of scikit-image's brick, grass and gravel, shrunk",
    "faces": "the 100 faces of scikit-image's lfw_subset",
    "digits": "scikit-learn's digits, enlarged",
    "held_out": "test images of classes that another network, trained alike, never saw",
}


class Sets(NamedTuple):
    """What one network is tested on.

    Attributes:
        model: The network.
        dataset: Its data.
        bank_x: Training images that references, neighbours and class means come from.
        bank_y: Their labels.
        held: Training images that calibrate, apart from the bank.
        synthetic: Outliers made of `held`.
        inside: Test images.
        outside: Outliers by name.
    """

    model: Any
    dataset: Any
    bank_x: np.ndarray
    bank_y: np.ndarray
    held: np.ndarray
    synthetic: np.ndarray
    inside: np.ndarray
    outside: dict[str, np.ndarray]


def out_names(dataset: Any) -> list[str]:
    """Return the names of the sets that need no other network."""
    names = ["mirrored", "rotated", "inverted", "uniform", "gaussian", "blends"]
    names += ["textures", "faces"] if dataset.shape[-1] == 1 else []
    return names + (["digits"] if dataset.shape == (28, 28, 1) else [])


def sets(
    model: Any,
    dataset: Any,
    names: Sequence[str],
    *,
    count: int,
    calibration: int,
    bank: int,
    seed: int,
) -> Sets:
    """Draw everything that a network is tested on.

    Args:
        model: The network.
        dataset: Its data.
        names: Which outliers, of `out_names`.
        count: Images of each set at most.
        calibration: Training images that are kept apart.
        bank: Of the others, how many at most.
        seed: Draws all of it.

    Returns:
        The sets.

    Raises:
        ValueError: If the training set is too small.
    """
    if calibration >= len(dataset.train_y):
        raise ValueError(
            f"calibration must be below the {len(dataset.train_y)} training images, "
            f"got {calibration}"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(dataset.train_y))
    kept, rest = order[:calibration], order[calibration:][:bank]
    held, chosen = dataset.train_x[kept], rng.permutation(len(dataset.test_y))[:count]
    outside = {
        name: outliers(name, dataset, count, np.random.default_rng((seed, i)))
        for i, name in enumerate(SAYS)
        if name in names
    }
    synthetic = _synthetic(dataset, held, np.random.default_rng((seed, 100)))
    return Sets(
        model, dataset, dataset.train_x[rest], dataset.train_y[rest], held, synthetic,
        dataset.test_x[chosen], outside,
    )  # fmt: skip


# --- outliers ----------------------------------------------------------------------------------


def outliers(name: str, dataset: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return at most so many outliers of a kind, normalised.

    Args:
        name: One of `out_names`.
        dataset: What they are no images of.
        count: How many at most.
        rng: Draws them.
    """
    return _normalised(dataset, _KINDS[name](dataset, count, rng))


def _normalised(dataset: Any, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(dataset.from_pixels(np.clip(pixels, 0, 1)), np.float32)


def _test_pixels(
    dataset: Any, count: int, rng: np.random.Generator, classes: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    wanted = range(dataset.num_classes) if classes is None else classes
    places = rng.permutation(np.flatnonzero(np.isin(dataset.test_y, list(wanted))))[:count]
    return np.asarray(dataset.to_pixels(dataset.test_x[places])), dataset.test_y[places]


def _mirrored(dataset: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    return _test_pixels(dataset, count, rng, _MIRRORED.get(dataset.name))[0][:, :, ::-1]


def _rotated(dataset: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    return np.rot90(_test_pixels(dataset, count, rng, _ROTATED.get(dataset.name))[0], axes=(1, 2))


def _inverted(dataset: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    return 1 - _test_pixels(dataset, count, rng)[0]


def _uniform(dataset: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(size=(count, *dataset.shape))


def _gaussian(dataset: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    pixels = np.asarray(dataset.to_pixels(dataset.train_x))
    return rng.normal(pixels.mean(axis=0), pixels.std(axis=0), (count, *dataset.shape))


def _blends(dataset: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    pixels, labels = _test_pixels(dataset, len(dataset.test_y), rng)
    first, second = rng.integers(len(pixels), size=(2, 4 * count))
    differ = np.flatnonzero(labels[first] != labels[second])[:count]
    return (pixels[first[differ]] + pixels[second[differ]]) / 2


def _textures(dataset: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    from skimage import data  # slow to import

    whole = [getattr(data, name)() / 255 for name in _TEXTURES]
    found = []
    for i in range(count):
        image, side = whole[i % len(whole)], int(rng.integers(*_WINDOWS))
        top, left = (int(rng.integers(extent - side + 1)) for extent in image.shape)
        found.append(image[top : top + side, left : left + side])
    return resized(found, dataset.shape)


def _faces(dataset: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    from skimage import data

    return resized(data.lfw_subset()[rng.permutation(_FACES)[:count]], dataset.shape)


def _digits(dataset: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    digits = zoo.load_digits()
    return resized(_test_pixels(digits, count, rng)[0][..., 0], dataset.shape)


def resized(images: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return grey images shrunk or enlarged to a shape of (H, W, 1)."""
    from skimage.transform import resize

    small: list[Any] = [resize(each, shape[:2], order=1, anti_aliasing=True) for each in images]
    return np.stack(small)[..., None]


_KINDS: dict[str, Callable[[Any, int, np.random.Generator], np.ndarray]] = {
    "mirrored": _mirrored,
    "rotated": _rotated,
    "inverted": _inverted,
    "uniform": _uniform,
    "gaussian": _gaussian,
    "blends": _blends,
    "textures": _textures,
    "faces": _faces,
    "digits": _digits,
}


def _synthetic(dataset: Any, held: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return outliers made of training images, a third each of three kinds that are not tested.

    Quarters put in another order, a left half beside a right half of another image, and noise
    added to an image.
    """
    pixels = np.asarray(dataset.to_pixels(held))
    height, width = pixels.shape[1] // 2, pixels.shape[2] // 2
    kinds = np.array_split(rng.permutation(len(pixels)), 3)
    mixed = pixels[kinds[0]]
    mixed = np.roll(mixed, (height, width), axis=(1, 2))
    halves = pixels[kinds[1]].copy()
    halves[:, :, width:] = np.roll(halves, 1, axis=0)[:, :, width:]
    noisy = pixels[kinds[2]] + rng.normal(0, _NOISE, pixels[kinds[2]].shape)
    return _normalised(dataset, np.concatenate([mixed, halves, noisy]))


# --- classes held out --------------------------------------------------------------------------


def without(dataset: Any, classes: Sequence[int]) -> tuple[Any, np.ndarray]:
    """Return the data set without some classes, and the test images of those classes.

    Args:
        dataset: With all classes.
        classes: Those that are taken out; the others are numbered anew.

    Returns:
        A data set in the same units, and (M, H, W, channels) images.

    Raises:
        ValueError: If fewer than two classes are left, or one is unknown.
    """
    out = sorted(set(classes))
    left = [label for label in range(dataset.num_classes) if label not in out]
    if len(left) < 2 or any(not 0 <= label < dataset.num_classes for label in out) or not out:
        raise ValueError(
            f"held_out must name classes of 0 … {dataset.num_classes - 1} and leave two, "
            f"got {tuple(classes)}"
        )
    new = np.full(dataset.num_classes, -1)
    new[left] = np.arange(len(left))
    train, test = np.isin(dataset.train_y, left), np.isin(dataset.test_y, left)
    return (
        replace(
            dataset,
            name=f"{dataset.name} without {', '.join(dataset.class_names[c] for c in out)}",
            train_x=dataset.train_x[train], train_y=new[dataset.train_y[train]].astype(np.int32),
            test_x=dataset.test_x[test], test_y=new[dataset.test_y[test]].astype(np.int32),
            num_classes=len(left), class_names=tuple(dataset.class_names[c] for c in left),
        ),
        dataset.test_x[~test],
    )  # fmt: skip
