"""Data sets in normalised units: images or points, labels, and what belongs to their units."""

import abc
import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Num

from foliax.flow.box import Box

Constant = float | Float[np.ndarray, " c"]


class Normalised(abc.ABC):
    """The units of a data set, wherever its images are stored.

    Normalised means (pixels − mean) / std, with pixels in [0, 1]; mean and std are numbers for
    grey images, and have one entry a channel for colour. Points keep their own coordinates: mean
    is 0, std is 1, and `limits` are the bounds of a coordinate.
    """

    name: str
    mean: Constant
    std: Constant
    num_classes: int
    class_names: tuple[str, ...]
    limits: tuple[float, float]

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""

    @abc.abstractmethod
    def length(self, split: str = "train") -> int:
        """Return how many inputs the split has."""

    @abc.abstractmethod
    def take(
        self, indices: Sequence[int] | Int[np.ndarray, " b"], *, split: str = "train"
    ) -> tuple[Float[np.ndarray, "b ..."], Int[np.ndarray, " b"]]:
        """Return the inputs at these places of the split, normalised, and their labels."""

    @property
    def box(self) -> Box:
        """What pixels in [0, 1] become: the bounds of the input space, in normalised units."""
        limits = np.asarray(self.limits, np.float32)
        lower, upper = (normalise(limits[[k]], self.mean, self.std) for k in (0, 1))
        return Box(lower[0], upper[0]) if lower.size == 1 else Box(lower, upper)

    def to_pixels(self, x: ArrayLike) -> Float[Array, "..."]:
        """Return normalised images as pixels, 0 black and 1 white; nothing is clipped."""
        x = jnp.asarray(x)
        return x * _like(self.std, x) + _like(self.mean, x)

    def from_pixels(self, pixels: ArrayLike) -> Float[Array, "..."]:
        """Return pixels in [0, 1] as normalised images; the inverse of `to_pixels`."""
        pixels = jnp.asarray(pixels)
        return (pixels - _like(self.mean, pixels)) / _like(self.std, pixels)

    def mirrored(self, x: ArrayLike) -> Float[Array, "... h w c"]:
        """Return images (..., H, W, channels) with left and right exchanged."""
        x = jnp.asarray(x)
        if x.ndim < 3 or len(self.shape) != 3:
            raise ValueError(
                f"x must have shape (..., H, W, channels), got {x.shape}; {self.name!r} has inputs "
                f"of shape {self.shape}"
            )
        return jnp.flip(x, axis=-2)

    def noisy(self, x: ArrayLike, sigma: float | ArrayLike, key: Array) -> Float[Array, "..."]:
        """Return images with Gaussian noise added; nothing is clipped.

        Args:
            x: Normalised images of any shape; of colour, with the channels last.
            sigma: Standard deviation of the noise in pixel units, where white is 1.
            key: A `jax.random` key.

        Returns:
            The noisy images, normalised.
        """
        x = jnp.asarray(x)
        noise = jax.random.normal(key, x.shape, x.dtype)
        return x + noise * (jnp.asarray(sigma, x.dtype) / _like(self.std, x))


@dataclass(frozen=True, eq=False, repr=False)
class Dataset(Normalised):
    """Images or points and their labels, split into training and test, in normalised units.

    Attributes:
        name: The name that `load` knows.
        train_x: (N, H, W, channels) training images, or (N, n) points.
        train_y: (N,) training labels.
        test_x: (M, H, W, channels) test images, or (M, n) points.
        test_y: (M,) test labels.
        mean: Mean over all training pixels, in [0, 1]; of colour, one a channel.
        std: Standard deviation over all training pixels; of colour, one a channel.
        num_classes: C.
        class_names: C names.
        limits: The least and the greatest value before normalisation; (0, 1) of pixels.
    """

    name: str
    train_x: Float[np.ndarray, "n ..."]
    train_y: Int[np.ndarray, " n"]
    test_x: Float[np.ndarray, "m ..."]
    test_y: Int[np.ndarray, " m"]
    mean: Constant
    std: Constant
    num_classes: int
    class_names: tuple[str, ...]
    limits: tuple[float, float] = (0.0, 1.0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.train_x.shape[1:]

    def length(self, split: str = "train") -> int:
        """Return how many inputs the split has."""
        return len(self._split(split)[1])

    def take(
        self, indices: Sequence[int] | Int[np.ndarray, " b"], *, split: str = "train"
    ) -> tuple[Float[np.ndarray, "b ..."], Int[np.ndarray, " b"]]:
        """Return the inputs at these places of the split, normalised, and their labels."""
        x, y = self._split(split)
        return x[np.asarray(indices)], y[np.asarray(indices)]

    def fingerprint(self) -> str:
        """Return a short hash of the training set, which resuming a training compares."""
        parts = (np.ascontiguousarray(part) for part in (self.train_x, self.train_y))
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]

    def without(self, classes: Sequence[int]) -> tuple["Dataset", Float[np.ndarray, "k ..."]]:
        """Return the data set without some classes, numbered anew, and the test images of those.

        Raises:
            ValueError: If fewer than two classes are left, or one is unknown.
        """
        out = sorted(set(classes))
        kept = [label for label in range(self.num_classes) if label not in out]
        if len(kept) < 2 or len(kept) + len(out) != self.num_classes or not out:
            raise ValueError(
                f"classes must be some of 0 … {self.num_classes - 1} and leave two, got "
                f"{tuple(classes)}"
            )
        new = np.full(self.num_classes, -1)
        new[kept] = np.arange(len(kept))
        train, test = np.isin(self.train_y, kept), np.isin(self.test_y, kept)
        rest = dataclasses.replace(
            self,
            name=f"{self.name} without {', '.join(self.class_names[c] for c in out)}",
            train_x=self.train_x[train],
            train_y=new[self.train_y[train]].astype(np.int32),
            test_x=self.test_x[test],
            test_y=new[self.test_y[test]].astype(np.int32),
            num_classes=len(kept),
            class_names=tuple(self.class_names[c] for c in kept),
        )
        return rest, self.test_x[~test]

    def _split(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        check_split(split)
        return (self.train_x, self.train_y) if split == "train" else (self.test_x, self.test_y)

    def __repr__(self) -> str:
        kind = "images" if len(self.shape) == 3 else "points"
        return (
            f"Dataset({self.name!r}, {len(self.train_y)} training and {len(self.test_y)} test "
            f"{kind} of shape {self.shape}, {self.num_classes} classes)"
        )


def check_split(split: str) -> None:
    """Refuse what is neither "train" nor "test"."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")


def normalise(
    pixels: Num[np.ndarray, "..."], mean: Constant, std: Constant
) -> Float[np.ndarray, "..."]:
    """Return (pixels − mean) / std in float32; the box goes through here as the images do.

    Args:
        pixels: In [0, 1]; or bytes, which are divided by 255.
        mean: A number, or one a channel (the last axis).
        std: The same.

    Returns:
        An array of the shape of `pixels`.
    """
    if pixels.dtype != np.uint8:
        return (pixels.astype(np.float32) - np.float32(mean)) / np.float32(std)
    # By a table of the 256 values: one pass and no float64 copy of the images.
    grey = (np.arange(256) / 255.0)[:, None]
    table = normalise(grey, mean, std)  # (256, 1) or (256, channels)
    if table.shape[1] == 1:
        return table[:, 0][pixels]
    return np.stack([table[:, c][pixels[..., c]] for c in range(pixels.shape[-1])], axis=-1)


def from_arrays(
    name: str,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    class_names: tuple[str, ...],
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> Dataset:
    """Make a `Dataset` from images and labels.

    Args:
        name: What to call it.
        train: (N, H, W, channels) pixels in [0, 1], or bytes (uint8), and (N,) labels.
        test: The same for the test set.
        class_names: C names; labels are 0 … C − 1.
        mean: What is subtracted, in [0, 1]: a number, or one a channel. None for the mean of all
            training pixels, of colour for each channel.
        std: What is divided by; None for the standard deviation of the training pixels.

    Returns:
        The data set, normalised.

    Raises:
        ValueError: If shapes do not fit, or pixels or labels are out of range.

    Example:
        >>> import numpy as np
        >>> pixels, labels = np.random.default_rng(0).random((4, 6, 6, 1)), np.arange(4) % 2
        >>> from_arrays("toy", (pixels, labels), (pixels, labels), class_names=("a", "b"))
        Dataset('toy', 4 training and 4 test images of shape (6, 6, 1), 2 classes)
    """
    parts = [tuple(np.asarray(part) for part in pair) for pair in (train, test)]
    for part, (pixels, labels) in zip(("train", "test"), parts, strict=True):
        _check(part, pixels, labels, len(class_names))
    (train_x, train_y), (test_x, test_y) = parts
    if test_x.shape[1:] != train_x.shape[1:]:
        raise ValueError(
            f"test images must have the shape of the training images, {train_x.shape[1:]}, "
            f"got {test_x.shape[1:]}"
        )
    found = _moments(train_x) if mean is None or std is None else (0.0, 1.0)
    mean_ = found[0] if mean is None else constant("mean", mean, train_x.shape[-1])
    std_ = found[1] if std is None else constant("std", std, train_x.shape[-1])
    return Dataset(
        name=name,
        train_x=normalise(train_x, mean_, std_),
        train_y=train_y.astype(np.int32),
        test_x=normalise(test_x, mean_, std_),
        test_y=test_y.astype(np.int32),
        mean=mean_,
        std=std_,
        num_classes=len(class_names),
        class_names=class_names,
    )


def constant(name: str, value: float | Sequence[float], channels: int) -> Constant:
    """Return a normalisation constant as a number or as one entry a channel, or refuse it."""
    given = np.asarray(value, np.float32)
    if given.shape not in ((), (channels,)) or not np.isfinite(given).all():
        raise ValueError(f"{name} must be a number or {channels} of them, got {value}")
    if name == "std" and not (given > 0).all():
        raise ValueError(f"std must be positive, got {value}")
    return float(np.asarray(value)) if given.shape == () else given


def _moments(pixels: np.ndarray) -> tuple[Constant, Constant]:
    """Return mean and deviation over all pixels; of colour, of each channel."""
    channels = pixels.shape[-1]
    # In float64: a float32 sum over millions of pixels loses digits.
    if pixels.dtype == np.uint8:
        counts = np.stack(
            [np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(channels)]
        )
        weights, values = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255.0
        mean = weights @ values
        std = np.sqrt(np.sum(weights * (values - mean[:, None]) ** 2, axis=1))
    else:
        axes = None if channels == 1 else (0, 1, 2)
        mean = np.atleast_1d(np.mean(pixels, axis=axes, dtype=np.float64))
        std = np.atleast_1d(np.std(pixels, axis=axes, dtype=np.float64))
    std = np.where(std > 0, std, 1)  # a channel that is the same everywhere stays so
    if channels == 1:
        return float(mean[0]), float(std[0])
    return mean.astype(np.float32), std.astype(np.float32)


def _like(value: Constant, x: Array) -> Any:
    """Return a constant that leaves the dtype of x as it is."""
    return value if isinstance(value, float) else jnp.asarray(value, x.dtype)


def _check(part: str, pixels: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    if pixels.ndim != 4 or labels.shape != pixels.shape[:1] or not len(labels):
        raise ValueError(
            f"{part} must hold (N, H, W, channels) pixels and (N,) labels, got shapes "
            f"{pixels.shape} and {labels.shape}"
        )
    if pixels.dtype != np.uint8 and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(
            f"{part} pixels must lie in [0, 1], got {pixels.min()} to {pixels.max()}; "
            "divide bytes by 255"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"{part} labels must lie in 0 … {num_classes - 1}, got {labels.min()} … {labels.max()}"
        )
