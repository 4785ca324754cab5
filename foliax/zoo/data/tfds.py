"""Data sets that TensorFlow Datasets prepares, read without TensorFlow.

Preparing, once a data set, needs TensorFlow, and the network or the original files. What is
prepared lies in array_record files, which are read at random places without either. The images of
a data set in memory are also kept beside them as one array of bytes, because decoding 60,000 PNG
files takes some ten seconds at every start.
"""

import contextlib
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from foliax.zoo.data.dataset import Dataset, constant, from_arrays
from foliax.zoo.data.streamed import StreamedDataset

_BLOCK = 1024  # examples read at a time
_LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


class Spec(NamedTuple):
    """What foliax adds to a data set of TensorFlow Datasets.

    Attributes:
        mean: The published constant, for pixels in [0, 1]; None to take it from the training set.
        std: The same.
        class_names: Names of the classes; None for those of TensorFlow Datasets.
        test: Its name for the test split.
        size: Side of streamed images; 0 for a data set in memory.
    """

    mean: float | tuple[float, ...] | None = None
    std: float | tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None
    test: str = "test"
    size: int = 0


TFDS: Final[dict[str, Spec]] = {
    "mnist": Spec(0.1307, 0.3081),
    "fashion_mnist": Spec(0.2860, 0.3530),
    "kmnist": Spec(),
    "emnist/letters": Spec(class_names=_LETTERS),
    "cifar10": Spec((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Spec((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet2012": Spec((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), test="validation", size=224),
}


def read(name: str, *, data_dir: str | os.PathLike | None = None) -> Dataset | StreamedDataset:
    """Return a prepared data set; see `foliax.zoo.data.load`."""
    spec, tfds = TFDS[name], import_tfds(name)
    builder = tfds.builder(name, data_dir=folder_of_data(data_dir))
    splits = {"train": "train", "test": spec.test}
    sources = {part: _open(builder, name, split, data_dir) for part, split in splits.items()}
    class_names = spec.class_names or tuple(builder.info.features["label"].names)
    if spec.size:
        assert spec.mean is not None  # a streamed data set has published constants
        assert spec.std is not None
        return StreamedDataset(
            name=name,
            sources=sources,
            size=spec.size,
            mean=constant("mean", spec.mean, 3),
            std=constant("std", spec.std, 3),
            num_classes=len(class_names),
            class_names=class_names,
        )
    folder = Path(builder.data_path)
    parts = {part: _arrays(sources[part], folder / f"foliax-{part}.npz") for part in splits}
    if name == "emnist/letters":
        parts = {split: _upright(*part) for split, part in parts.items()}
    return from_arrays(
        name,
        parts["train"],
        parts["test"],
        class_names=class_names,
        mean=spec.mean,
        std=spec.std,
    )


def import_tfds(name: str) -> Any:
    """Return the module tensorflow_datasets, or say how to get it."""
    try:
        import array_record.python.array_record_data_source  # noqa: F401 (read lazily later)
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"{name!r} needs TensorFlow Datasets ({error}); run: pip install 'foliax[tfds]'"
        ) from error
    return tfds


def folder_of_data(data_dir: str | os.PathLike | None) -> Path:
    """Return the folder of prepared data sets: the given one, or that of TensorFlow Datasets."""
    given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(given).expanduser()


def prepare_command(name: str, data_dir: str | os.PathLike | None) -> str:
    """Return the command that prepares a data set there."""
    command = f"python -m foliax.zoo.prepare {name}"
    return command if data_dir is None else f"{command} --data-dir {os.fspath(data_dir)}"


def _open(builder: Any, name: str, split: str, data_dir: str | os.PathLike | None) -> Any:
    """Return what reads examples of a split by index, or say what is missing."""
    root, command = folder_of_data(data_dir), prepare_command(name, data_dir)
    try:
        return builder.as_data_source(split=split)
    except (NotImplementedError, AssertionError, ValueError, OSError) as error:
        if not builder.is_prepared():
            why = f"is not prepared under {root}"
        elif isinstance(error, NotImplementedError):
            why = (
                f"is prepared in {builder.data_path}, but not as array_record, which is what can "
                "be read at random places; remove that folder, or choose another data_dir"
            )
        elif split not in builder.info.splits:
            why = f"has no split {split!r} in {builder.data_path}; remove that folder"
        else:
            raise
        raise FileNotFoundError(f"{name!r} {why}; run: {command}") from error


def _arrays(source: Any, kept: Path) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
    """Return all images and labels of a split: those kept as arrays, else decoded, then kept."""
    with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
        with kept.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
        if len(images) == len(labels) == len(source):
            return images, labels
    images, labels = [], []
    for start in range(0, len(source), _BLOCK):  # one by one takes three times as long
        block = source.__getitems__(list(range(start, min(start + _BLOCK, len(source)))))
        images += [example["image"] for example in block]
        labels += [int(example["label"]) for example in block]
    found = np.stack(images), np.array(labels, np.int32)
    _keep(kept, *found)
    return found


def _keep(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write the arrays in one step, or leave it where nothing may be written."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            temporary = file.name
            np.savez(file, images=images, labels=labels)
        os.chmod(temporary, 0o644)  # a temporary file is its owner's alone
        os.replace(temporary, path)
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _upright(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return EMNIST's letters upright, as they are stored with rows and columns exchanged, from 0.

    The files count the letters from 1.
    """
    return images.swapaxes(1, 2), labels - 1
