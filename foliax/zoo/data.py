"""Data sets of images, normalised as the networks take them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from foliax.domain import Box

_DIGITS_TRAIN = 1437  # of 1,797: four fifths


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images and labels, split into training and test, in normalised units.

    Normalised means (pixels − mean) / std, with pixels in [0, 1] and one mean and one standard
    deviation for all pixels of the training images.

    Attributes:
        name: The name that `load` knows.
        train_x: (N, H, W, channels) training images.
        train_y: (N,) training labels.
        test_x: (M, H, W, channels) test images.
        test_y: (M,) test labels.
        mean: Mean over all training pixels, in [0, 1].
        std: Standard deviation over all training pixels.
        num_classes: C.
        class_names: C names.
    """

    name: str
    train_x: Float[np.ndarray, "n h w c"]
    train_y: Int[np.ndarray, " n"]
    test_x: Float[np.ndarray, "m h w c"]
    test_y: Int[np.ndarray, " m"]
    mean: float
    std: float
    num_classes: int
    class_names: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.train_x.shape[1:]

    @property
    def box(self) -> Box:
        """What pixels in [0, 1] become: the bounds of the input space, in normalised units."""
        lower, upper = normalise(np.array([0.0, 1.0], np.float32), self.mean, self.std)
        return Box(lower, upper)

    def to_pixels(self, x: ArrayLike) -> Float[Array, "..."]:
        """Return normalised images as pixels, 0 black and 1 white; nothing is clipped."""
        return jnp.asarray(x) * self.std + self.mean

    def from_pixels(self, pixels: ArrayLike) -> Float[Array, "..."]:
        """Return pixels in [0, 1] as normalised images; the inverse of `to_pixels`."""
        return (jnp.asarray(pixels) - self.mean) / self.std

    def mirrored(self, x: ArrayLike) -> Float[Array, "... h w c"]:
        """Return images (..., H, W, channels) with left and right exchanged."""
        x = jnp.asarray(x)
        if x.ndim < 3:
            raise ValueError(f"x must have shape (..., H, W, channels), got {x.shape}")
        return jnp.flip(x, axis=-2)

    def noisy(self, x: ArrayLike, sigma: float | ArrayLike, key: Array) -> Float[Array, "..."]:
        """Return images with Gaussian noise added; nothing is clipped.

        Args:
            x: Normalised images of any shape.
            sigma: Standard deviation of the noise in pixel units, where white is 1.
            key: A `jax.random` key.

        Returns:
            The noisy images, normalised.
        """
        x = jnp.asarray(x)
        noise = jax.random.normal(key, x.shape, x.dtype)
        return x + noise * (jnp.asarray(sigma, x.dtype) / self.std)

    def fingerprint(self) -> str:
        """Return a short hash of the training set, which resuming a training compares."""
        parts = (np.ascontiguousarray(part) for part in (self.train_x, self.train_y))
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, {len(self.train_y)} training and {len(self.test_y)} test "
            f"images of shape {self.shape}, {self.num_classes} classes)"
        )


def normalise(
    pixels: Float[np.ndarray, "..."], mean: float, std: float
) -> Float[np.ndarray, "..."]:
    """Return (pixels − mean) / std in float32; the box goes through here as the images do."""
    return (pixels.astype(np.float32) - np.float32(mean)) / np.float32(std)


def from_arrays(
    name: str,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    class_names: tuple[str, ...],
) -> Dataset:
    """Make a `Dataset` from pixels in [0, 1] and labels.

    Args:
        name: What to call it.
        train: (N, H, W, channels) pixels and (N,) labels.
        test: The same for the test set.
        class_names: C names; labels are 0 … C − 1.

    Returns:
        The data set, standardised by mean and deviation of all training pixels.

    Raises:
        ValueError: If shapes do not fit, or pixels or labels are out of range.

    Example:
        >>> import numpy as np
        >>> pixels, labels = np.random.default_rng(0).random((4, 6, 6, 1)), np.arange(4) % 2
        >>> from_arrays("toy", (pixels, labels), (pixels, labels), class_names=("a", "b"))
        Dataset('toy', 4 training and 4 test images of shape (6, 6, 1), 2 classes)
    """
    for part, (pixels, labels) in (("train", train), ("test", test)):
        _check(part, np.asarray(pixels), np.asarray(labels), len(class_names))
    # In float64: a float32 sum over millions of pixels loses digits.
    mean = float(np.mean(train[0], dtype=np.float64))
    std = float(np.std(train[0], dtype=np.float64))
    return Dataset(
        name=name,
        train_x=normalise(np.asarray(train[0]), mean, std),
        train_y=np.asarray(train[1], np.int32),
        test_x=normalise(np.asarray(test[0]), mean, std),
        test_y=np.asarray(test[1], np.int32),
        mean=mean,
        std=std,
        num_classes=len(class_names),
        class_names=class_names,
    )


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
        class_names=tuple("0123456789"),
    )


DATASETS: Final[dict[str, Callable[[], Dataset]]] = {"digits": load_digits}


def load(name: str) -> Dataset:
    """Return the data set of this name.

    Args:
        name: "digits".

    Returns:
        The data set.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> load("digits").num_classes
        10
    """
    if name not in DATASETS:
        raise ValueError(f"name must be one of {', '.join(map(repr, DATASETS))}, got {name!r}")
    return DATASETS[name]()


def _check(part: str, pixels: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    if pixels.ndim != 4 or labels.shape != pixels.shape[:1] or not len(labels):
        raise ValueError(
            f"{part} must hold (N, H, W, channels) pixels and (N,) labels, got shapes "
            f"{pixels.shape} and {labels.shape}"
        )
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(
            f"{part} pixels must lie in [0, 1], got {pixels.min()} to {pixels.max()}; "
            "divide bytes by 255"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"{part} labels must lie in 0 … {num_classes - 1}, got {labels.min()} … {labels.max()}"
        )
