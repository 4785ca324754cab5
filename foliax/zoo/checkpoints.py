"""Checkpoints of a training (orbax), and weights in single files (npz, no pickles).

Both name each array by its place in the model, "layers.0.kernel", and carry the architecture, so
that a model can be rebuilt from them alone and another architecture is refused.
"""

import itertools
import json
import os
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from foliax.zoo import nets

_SUBFOLDER = "checkpoints"
_METADATA = "__metadata__"  # the entry of an npz that is no weight


class Checkpoint(NamedTuple):
    """What is stored of one epoch.

    Attributes:
        epoch: Epochs trained.
        weights: Arrays by name.
        optimizer_state: Leaves of the optimizer's state, in order.
        architecture: The `config` of the model.
        info: What else was stored, such as the history.
    """

    epoch: int
    weights: dict[str, np.ndarray]
    optimizer_state: list[np.ndarray]
    architecture: dict[str, Any]
    info: dict[str, Any]


def save(
    directory: str | os.PathLike,
    model: nnx.Module,
    *,
    epoch: int,
    optimizer_state: Any = None,
    info: Mapping[str, Any] | None = None,
) -> None:
    """Store a model, and what resuming its training needs, as the checkpoint of an epoch.

    Written completely or not at all: an interrupted checkpoint is never listed. One of the same
    epoch is replaced.

    Args:
        directory: The folder of the training; checkpoints go to its subfolder "checkpoints".
        model: The model.
        epoch: Epochs trained, at least 0.
        optimizer_state: A pytree of arrays.
        info: JSON-able, kept beside the weights.
    """
    weights = weights_of(model)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(optimizer_state)]
    optimizer = {f"{i:04d}": leaf for i, leaf in enumerate(leaves)}
    described = {
        "epoch": epoch,
        "architecture": architecture_of(model),
        "checksum": _checksum({**weights, **optimizer}),
        "info": dict(info or {}),
    }
    with _manager(_folder(directory), create=True) as manager:
        if epoch in manager.all_steps():
            manager.delete(epoch)
        stored = manager.save(
            epoch,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave({"weights": weights, "optimizer": optimizer}),
                description=ocp.args.JsonSave(described),
            ),
            force=True,  # orbax would silently skip an epoch before the newest
        )
    if not stored:
        raise RuntimeError(f"epoch {epoch} was not stored in {os.fspath(directory)}")


def restore(
    directory: str | os.PathLike, epoch: int | None = None, *, model: nnx.Module | None = None
) -> nnx.Module:
    """Return the model of a checkpoint.

    Args:
        directory: The folder of the training, or its subfolder "checkpoints".
        epoch: Which; None for the newest that can be read (an unreadable one is skipped with a
            warning).
        model: A model of the same architecture to take the weights; None to build one from the
            stored description, which needs an MLP or CNN of `foliax.zoo`.

    Returns:
        A new model.

    Raises:
        FileNotFoundError: If the folder contains no checkpoint.
        ValueError: If it has no such epoch, or the epoch cannot be read, or the architecture is
            another one than that of `model`.
    """
    epochs(directory)
    checkpoint = read(directory, epoch)
    if checkpoint is None:
        raise ValueError(
            f"no checkpoint in {os.fspath(directory)} can be read; train again in another folder"
        )
    return with_weights(_blank(checkpoint.architecture) if model is None else model, checkpoint)


def epochs(directory: str | os.PathLike) -> list[int]:
    """Return the epochs that have a checkpoint, ascending.

    Args:
        directory: The folder of the training, or its subfolder "checkpoints".

    Returns:
        At least one epoch.

    Raises:
        FileNotFoundError: If the folder is missing or contains no checkpoint.
    """
    found = _steps(directory)
    if not found:
        what = "holds no checkpoint" if Path(directory).is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{os.fspath(directory)} {what}; give the `out` folder of a training"
        )
    return found


def has_any(directory: str | os.PathLike) -> bool:
    """Return whether the folder contains a checkpoint."""
    return bool(_steps(directory))


def read(
    directory: str | os.PathLike, epoch: int | None = None, *, at_most: int | None = None
) -> Checkpoint | None:
    """Return what a checkpoint stores.

    Args:
        directory: The folder of the training, or its subfolder "checkpoints".
        epoch: Which; None for the newest that can be read.
        at_most: Leave out later epochs.

    Returns:
        The checkpoint; None if no epoch was asked for and none can be read.

    Raises:
        ValueError: If the epoch asked for does not exist or cannot be read.
    """
    found = _steps(directory)
    if epoch is not None:
        if epoch not in found:
            raise ValueError(f"epoch must be one of {found}, got {epoch}")
        return _read_one(directory, epoch)
    for candidate in reversed(found):
        if at_most is not None and candidate > at_most:
            continue
        try:
            return _read_one(directory, candidate)
        except ValueError as error:
            warnings.warn(f"skipped: {error}", stacklevel=2)
    return None


def set_aside(directory: str | os.PathLike) -> Path:
    """Rename the folder of the checkpoints, so that new ones can be written and none is lost.

    Args:
        directory: The folder of the training, or its subfolder "checkpoints".

    Returns:
        The new name, in the same folder.
    """
    folder = _folder(directory)
    taken = (folder.with_name(f"{folder.name}.unreadable-{i}") for i in itertools.count(1))
    free = next(path for path in taken if not path.exists())
    return folder.rename(free)


def save_npz(
    path: str | os.PathLike, model: nnx.Module, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a model's weights and architecture to one file, without pickles.

    Args:
        path: The file, ending in .npz.
        model: The model.
        metadata: JSON-able, returned by `load_npz`.

    Raises:
        ValueError: If a weight has a dtype that npz cannot store, such as bfloat16, or the path
            does not end in .npz.
    """
    if Path(path).suffix != ".npz":
        raise ValueError(f"path must end in .npz, got {os.fspath(path)!r}")
    weights = weights_of(model)
    odd = {name: w.dtype for name, w in weights.items() if w.dtype.kind not in "biufc"}
    if odd:
        raise ValueError(f"npz cannot hold these weights, cast them to float32 first: {odd}")
    described = {"architecture": architecture_of(model), "metadata": dict(metadata or {})}
    arrays: dict[str, Any] = {**weights, _METADATA: np.array(json.dumps(described))}
    np.savez(path, **arrays)


def load_npz(
    path: str | os.PathLike, *, model: nnx.Module | None = None
) -> tuple[nnx.Module, dict[str, Any]]:
    """Read what `save_npz` wrote. Pickled objects are refused, never loaded.

    Args:
        path: The file.
        model: As in `restore`.

    Returns:
        A new model and the metadata.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no file of `save_npz`, or contains pickled objects, or the architecture
            is another one than that of `model`.
    """
    with open(path, "rb") as raw:  # here: numpy leaves the file open when it is a broken archive
        try:
            with np.load(raw, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            described = json.loads(str(arrays.pop(_METADATA)))
            architecture, metadata = described["architecture"], dict(described["metadata"])
        except Exception as error:  # zipfile, zlib, numpy and json each raise their own
            raise ValueError(
                f"{os.fspath(path)} is not a weight file of foliax.zoo.save_npz (numeric arrays "
                f"and a JSON description, no pickled objects): {error}"
            ) from error
    try:
        blank = _blank(architecture) if model is None else model
        return with_weights(blank, Checkpoint(0, arrays, [], architecture, {})), metadata
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} cannot be loaded: {error}") from error


def weights_of(model: nnx.Module) -> dict[str, np.ndarray]:
    """Return the arrays of a model by name, such as "layers.0.kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(model)
    return {_name(path): np.asarray(leaf) for path, leaf in leaves}


def architecture_of(model: nnx.Module) -> dict[str, Any]:
    """Return the `config` of a model, or its class where it has none."""
    described = getattr(model, "config", None)
    return dict(described) if isinstance(described, Mapping) else {"kind": type(model).__name__}


def with_weights(model: nnx.Module, checkpoint: Checkpoint) -> nnx.Module:
    """Return a new model with the weights of a checkpoint.

    Args:
        model: Of the same architecture; not changed.
        checkpoint: Where the weights come from.

    Returns:
        The new model.

    Raises:
        ValueError: If the architectures differ, in description or in names and shapes of weights.
    """
    expected = architecture_of(model)
    if checkpoint.architecture != expected:
        raise ValueError(
            f"the checkpoint holds another architecture: {checkpoint.architecture}, but the model "
            f"is {expected}; build the same model, or choose another folder"
        )
    leaves, tree = jax.tree_util.tree_flatten_with_path(model)
    stored = {name: array.shape for name, array in checkpoint.weights.items()}
    for path, leaf in leaves:
        found = checkpoint.weights[_name(path)].dtype if _name(path) in stored else leaf.dtype
        if jnp.issubdtype(found, jnp.floating) != jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"the checkpoint has {_name(path)} of {found} where the model has {leaf.dtype}"
            )
    wanted = {_name(path): np.shape(leaf) for path, leaf in leaves}
    if stored != wanted:
        only = {name: shape for name, shape in stored.items() if wanted.get(name) != shape}
        lacks = {name: shape for name, shape in wanted.items() if stored.get(name) != shape}
        raise ValueError(f"the checkpoint has the weights {only} where the model has {lacks}")
    return tree.unflatten([jnp.asarray(checkpoint.weights[name]) for name in wanted])


def _blank(architecture: Any) -> nnx.Module:
    """Build a network without drawing weights: the file has them."""
    try:
        return nnx.eval_shape(lambda: nets.build(architecture))
    except (TypeError, OverflowError, AttributeError) as error:
        raise ValueError(f"{architecture!r} does not describe a network: {error}") from error


def with_leaves(tree: Any, leaves: list[np.ndarray]) -> Any:
    """Return a pytree of this structure with stored leaves."""
    wanted, structure = jax.tree.flatten(tree)
    if [np.shape(leaf) for leaf in wanted] != [leaf.shape for leaf in leaves]:
        raise ValueError(
            "the checkpoint's optimizer state has the shapes "
            f"{[leaf.shape for leaf in leaves]}, expected {[np.shape(leaf) for leaf in wanted]}"
        )
    return structure.unflatten([jnp.asarray(leaf) for leaf in leaves])


def _read_one(directory: str | os.PathLike, epoch: int) -> Checkpoint:
    try:
        with _manager(_folder(directory)) as manager:
            stored = manager.restore(
                epoch,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardRestore(), description=ocp.args.JsonRestore()
                ),
            )
        weights, optimizer = stored["arrays"]["weights"], stored["arrays"]["optimizer"]
        described = stored["description"]
        intact = described["checksum"] == _checksum({**weights, **optimizer})
        leaves = [optimizer[name] for name in sorted(optimizer)]
        found = Checkpoint(epoch, weights, leaves, described["architecture"], described["info"])
    except Exception as error:  # orbax, tensorstore and json each raise their own for broken files
        raise ValueError(_broken(directory, epoch, f"{type(error).__name__}: {error}")) from error
    if not intact:
        raise ValueError(_broken(directory, epoch, "its checksum does not fit its weights"))
    return found


def _broken(directory: str | os.PathLike, epoch: int, why: str) -> str:
    return f"the checkpoint of epoch {epoch} in {os.fspath(directory)} cannot be read ({why[:300]})"


def _folder(directory: str | os.PathLike) -> Path:
    path = Path(directory).expanduser().absolute()  # orbax asks for absolute paths
    return path if path.name == _SUBFOLDER else path / _SUBFOLDER


def _steps(directory: str | os.PathLike) -> list[int]:
    folder = _folder(directory)
    if not folder.is_dir():
        return []
    with _manager(folder) as manager:
        return sorted(manager.all_steps())


def _manager(folder: Path, *, create: bool = False) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        create=create,
        cleanup_tmp_directories=create,  # of a writer that was killed
        enable_async_checkpointing=False,
    )
    return ocp.CheckpointManager(folder, options=options)


def _name(path: tuple[Any, ...]) -> str:
    keys = [
        str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path
    ]
    return ".".join(keys[:-1] if keys[-1] == "value" else keys)  # an nnx.Variable has a "value"


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), total)
    return total
