"""Images that are not of a data set, in its normalised units, of several kinds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from foliax.zoo.data.dataset import Dataset
from foliax.zoo.data.embedded import load_digits

# Classes for which a changed image is another one: a mirrored 8 or a mirrored shirt is in the data.
_DIGITS = ("digits", "mnist", "mnist_5k")
_MIRRORED: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(_DIGITS, (2, 3, 4, 5, 6, 7, 9)),
    "fashion_mnist": (5, 7, 9),
}
_ROTATED: Mapping[str, tuple[int, ...]] = dict.fromkeys(_DIGITS, (1, 2, 3, 4, 5, 6, 7, 8, 9))
_TEXTURES = ("brick", "grass", "gravel")
_WINDOWS = (48, 129)  # sides of the squares that are cut out of a texture and shrunk
_FACES = 100  # of lfw_subset, the first half; the second shows no faces
_NOISE = 0.15  # deviation of the noise in one kind of synthetic outliers, pixel units

OUTLIERS = {
    "mirrored": "test images mirrored left to right, of classes that this changes",
    "rotated": "test images turned by 90 degrees, of classes that this changes",
    "inverted": "test images with black and white exchanged",
    "uniform": "uniform noise in each pixel",
    "gaussian": "Gaussian noise with each pixel's mean and deviation over the training set",
    "blends": "means of two test images of different classes",
    "textures": "squares of scikit-image's brick, grass and gravel, shrunk",
    "faces": "the 100 faces of scikit-image's lfw_subset",
    "digits": "scikit-learn's digits, enlarged",
}


def outliers(dataset: Dataset, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return images that are not of a data set, of every kind that fits their shape.

    The kinds are those of `OUTLIERS`; test images are changed, or come from elsewhere.

    Args:
        dataset: The data set, of images.
        count: How many of each kind, at most.
        seed: Draws them.

    Returns:
        By kind (N, *shape) images in the normalised units of the data set, inside the pixel range.

    Example:
        >>> from foliax import zoo
        >>> found = outliers(zoo.load_digits(), 5)
        >>> found["faces"].shape, "digits" in found
        ((5, 8, 8, 1), False)
    """
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
            _some(load_digits(), n, rng)[0][..., 0], d.shape
        )
    return {
        name: _normalised(dataset, kinds[name](dataset, count, np.random.default_rng((seed, i))))
        for i, name in enumerate(OUTLIERS)
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


def synthetic_outliers(dataset: Any, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return outliers made of images: quarters exchanged, halves of two, and noise."""
    pixels = np.asarray(dataset.to_pixels(images))
    height, width = pixels.shape[1] // 2, pixels.shape[2] // 2
    quarters, halves, noisy = (pixels[p] for p in np.array_split(rng.permutation(len(pixels)), 3))
    quarters = np.roll(quarters, (height, width), axis=(1, 2))
    halves[:, :, width:] = np.roll(halves, 1, axis=0)[:, :, width:]
    noisy = noisy + rng.normal(0, _NOISE, noisy.shape)
    return _normalised(dataset, np.concatenate([quarters, halves, noisy]))
