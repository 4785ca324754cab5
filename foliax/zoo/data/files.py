"""A user's own images: an .npz file of arrays, or a folder of image files a class."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image, UnidentifiedImageError

from foliax.zoo.data.dataset import Dataset, from_arrays

__all__ = ["load_files"]

_PARTS = ("train_x", "train_y", "test_x", "test_y")
_TEST_OF = 5  # of so many images one is a test image, where a file does not say
_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

Arrays = dict[str, np.ndarray]


def load_files(path: str | os.PathLike) -> Dataset:
    """Return a data set from one's own files.

    An .npz file holds `train_x, train_y, test_x, test_y`, or `x, y`, of which every fifth image of
    each class, in a fixed random order, is a test image; and `class_names`, if it likes. Images are
    (N, H, W) or (N, H, W, channels), bytes or numbers in [0, 1]; labels are 0 … C − 1, or names.

    A folder has one folder of image files, all of one size, for each class, or such folders in
    `train` and `test`. Nothing is unpickled.

    Args:
        path: The file or the folder.

    Returns:
        The data set, called as the file or folder is, normalised by its own mean and deviation.

    Raises:
        FileNotFoundError: If there is nothing there.
        ValueError: If the file is none of numeric arrays, an array is missing or has another shape
            than expected, or pixels or labels are out of range; if images of a folder cannot be
            read or differ in size.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "mine.npz"
        ...     np.savez(file, x=np.zeros((20, 6, 6), np.uint8), y=np.arange(20) % 2)
        ...     load_files(file)
        Dataset('mine.npz', 16 training and 4 test images of shape (6, 6, 1), 2 classes)
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give an .npz file, or a folder of images")
    arrays = _of_folder(path) if path.is_dir() else _of_npz(path)
    given = arrays.pop("class_names", None)
    if "x" in arrays:
        arrays = _cut(arrays["x"], arrays["y"], path)
    labels = [arrays["train_y"], arrays["test_y"]]
    names = _names(given, labels, path)
    if labels[0].dtype.kind in "US":
        order = {name: label for label, name in enumerate(names)}
        labels = [np.array([order.get(str(name), -1) for name in part]) for part in labels]
    elif any(part.dtype.kind not in "iu" for part in labels):
        raise ValueError(f"{path}: labels must be whole numbers or names, got {labels[0].dtype}")
    images = [_with_channels(arrays[part]) for part in ("train_x", "test_x")]
    pairs = [(x, y) for x, y in zip(images, labels, strict=True)]
    try:
        return from_arrays(path.name, *pairs, class_names=names)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _of_npz(path: Path) -> Arrays:
    """Read the arrays of a file, or say what is wrong with it."""
    if path.suffix != ".npz":
        raise ValueError(f"{path} must be an .npz file, or a folder of images")
    with path.open("rb") as raw:
        try:
            with np.load(raw, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except Exception as error:  # zipfile, zlib and numpy each raise their own
            raise ValueError(
                f"{path} is not an .npz file of arrays of numbers, which nothing pickled is: "
                f"{error}"
            ) from error
    wanted = ("x", "y") if "x" in arrays or "y" in arrays else _PARTS
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise ValueError(
            f"{path} must hold train_x, train_y, test_x and test_y, or x and y, got "
            f"{', '.join(sorted(arrays)) or 'nothing'}; {', '.join(missing)} missing"
        )
    kept = (*wanted, "class_names")
    return {name: array for name, array in arrays.items() if name in kept}


def _of_folder(path: Path) -> Arrays:
    """Read the images of a folder, by classes."""
    if (path / "train").is_dir() and (path / "test").is_dir():
        train, test = _read(path / "train"), _read(path / "test")
        return dict(zip(_PARTS, (*train, *test), strict=True))
    return dict(zip(("x", "y"), _read(path), strict=True))


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of all classes, and the names of their folders."""
    files = [
        file
        for folder in sorted(path.iterdir())
        if folder.is_dir()
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in _ENDINGS
    ]
    if not files:
        raise ValueError(f"{path} must hold one folder of images for each class, got no image")
    images = [_pixels(file) for file in files]
    odd = next((k for k, image in enumerate(images) if image.shape != images[0].shape), None)
    if odd is not None:
        raise ValueError(
            f"{path}: images must be of one size, got {images[0].shape} in {files[0].name} and "
            f"{images[odd].shape} in {files[odd].name}; resize them"
        )
    return np.stack(images), np.array([file.parent.name for file in files])


def _pixels(file: Path) -> np.ndarray:
    """Read an image as bytes, (H, W, 1) where it is grey and else (H, W, 3)."""
    try:
        with Image.open(file) as image:
            grey = image.mode in ("1", "L", "LA", "I", "I;16", "F")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _cut(x: np.ndarray, y: np.ndarray, path: Path) -> Arrays:
    """Cut one set in two: every fifth of each class, in a fixed random order, is for tests."""
    if y.ndim != 1 or len(x) != len(y):
        raise ValueError(
            f"{path}: y must be (N,) labels of the N images in x, got shapes {x.shape} and "
            f"{y.shape}"
        )
    random = np.random.RandomState(0)  # whose stream never changes
    test = np.zeros(len(y), bool)
    for label in np.unique(y):
        places: Int[np.ndarray, " k"] = random.permutation(np.flatnonzero(y == label))
        test[places[: len(places) // _TEST_OF]] = True
    if not test.any():
        raise ValueError(f"{path}: x must hold at least {_TEST_OF} images of a class, got {len(y)}")
    return dict(zip(_PARTS, (x[~test], y[~test], x[test], y[test]), strict=True))


def _names(given: Any, labels: list[np.ndarray], path: Path) -> tuple[str, ...]:
    """Return the names of the classes: those given, those that are the labels, or numbers."""
    if given is not None:
        return tuple(map(str, np.ravel(given)))
    if labels[0].dtype.kind in "US":
        return tuple(sorted({str(name) for part in labels for name in part}))
    most = max((int(part.max()) for part in labels if part.size), default=0)
    if most >= sum(part.size for part in labels):
        raise ValueError(f"{path}: labels must be 0 … C − 1, got one of {most}; number them anew")
    return tuple(map(str, range(most + 1)))


def _with_channels(images: np.ndarray) -> np.ndarray:
    return images[..., None] if images.ndim == 3 else images
