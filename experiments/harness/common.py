"""What the experiments share: networks, output files, populations of walks, captions, summaries."""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import foliax
from experiments.harness import run as _run
from experiments.harness.photographs import (
    NAME as PHOTOGRAPHS,
)
from experiments.harness.photographs import (
    PAPERS_CENTRE,
    photographs_of,
    renormalised,
)
from foliax import zoo
from foliax.zoo import checkpoints

SIGNIFICANT = 6  # digits kept in JSON: what float32 can repeat
_SMALL = 100  # inputs of no more pixels go to a dense network
HOLDS, IN_PART, FAILS = "holds", "holds in part", "does not hold"


# --- networks ----------------------------------------------------------------------------------


class Loaded(NamedTuple):
    """A trained network and its data.

    Attributes:
        model: The classifier.
        dataset: Its `foliax.zoo.Dataset`.
        network: In words, with the epoch or the file it came from.
    """

    model: Any
    dataset: Any
    network: str


def load(
    dataset: str | None = None,
    *,
    checkpoint: Path | None = None,
    epoch: int | None = None,
    weights: Path | None = None,
) -> Loaded:
    """Return a trained network with its data.

    Args:
        dataset: Name of the data set; None for that of the checkpoint, and for digits without one.
        checkpoint: Folder of a training to take the network from.
        epoch: Which of its epochs; None for the newest.
        weights: PyTorch weights of the papers' network, .npz or .pt, in place of a checkpoint;
            colour images are then normalised as the papers' code does. With neither, digits take
            the network that comes with foliax.

    Returns:
        The network, its data and where it came from.

    Raises:
        ValueError: If there is no network for the data set, or two, or it is one for another.
        FileNotFoundError: If the checkpoint is missing, or the data set is not prepared.
    """
    check_one_network(checkpoint, epoch, weights)
    if checkpoint is not None:
        return _from_checkpoint(dataset, checkpoint, epoch)
    dataset = dataset or "digits"
    if weights is None and dataset != "digits":
        raise ValueError(
            f"dataset={dataset!r} needs --checkpoint (a training's folder) or --weights"
        )
    data = zoo.load_dataset(dataset)
    if weights is None:
        return Loaded(zoo.load("digits_mlp"), data, "digits_mlp, as shipped")
    if data.shape[-1] == 3:
        data = renormalised(data, PAPERS_CENTRE, PAPERS_CENTRE)
    return Loaded(zoo.load_torch(papers_network(data), weights), data, weights.name)


def check_one_network(checkpoint: Path | None, epoch: int | None, weights: Path | None) -> None:
    """Refuse options that name two networks, or an epoch of none."""
    if checkpoint is not None and weights is not None:
        raise ValueError(
            f"a network comes from --checkpoint or from --weights, got both, {checkpoint} and "
            f"{weights}"
        )
    if epoch is not None and checkpoint is None:
        raise ValueError(f"epoch={epoch} needs --checkpoint (a training's folder)")


def papers_network(dataset: Any) -> nnx.Module:
    """Return the papers' network for inputs of this shape, untrained."""
    shape, classes, rngs = dataset.shape, dataset.num_classes, nnx.Rngs(0)
    if math.prod(shape) <= _SMALL:
        return zoo.MLP((math.prod(shape), 48, classes), rngs=rngs)
    if shape[-1] == 1:
        return zoo.CNN(shape, classes, rngs=rngs)
    return zoo.colour_cnn(classes, shape=shape, rngs=rngs)


def _from_checkpoint(dataset: str | None, folder: Path, epoch: int | None) -> Loaded:
    zoo.epochs(folder)  # says what is wrong with the folder
    stored = checkpoints.read(folder, epoch)
    if stored is None:
        raise ValueError(f"no checkpoint in {folder} can be read")
    trained_on = stored.info.get("training", {}).get("dataset", dataset)
    if trained_on is None:
        raise ValueError(f"{folder} does not say what was trained on; name it with --dataset")
    if dataset not in (None, trained_on):
        raise ValueError(
            f"checkpoint must hold a training on {dataset}, got one on {trained_on} in {folder}"
        )
    words = f"{in_words(stored.architecture)}, epoch {stored.epoch} of {_name(folder)}"
    if trained_on == PHOTOGRAPHS:
        data = photographs_of(stored.info["training"])
    else:
        data = zoo.load_dataset(trained_on)
    return Loaded(zoo.restore(folder, stored.epoch), data, words)


def _name(folder: Path) -> str:
    """Return the name of a training: that of its folder."""
    folder = folder.expanduser().absolute()
    return folder.parent.name if folder.name == "checkpoints" else folder.name


def in_words(architecture: Mapping[str, Any]) -> str:
    """Name a network, e.g. MLP 64-48-10, relu."""
    sizes = architecture.get("sizes", architecture.get("shape", ()))
    parts = "-".join(str(size) for size in sizes)
    return f"{architecture['kind']} {parts}, {architecture.get('activation', 'relu')}"


# --- files -------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> Path:
    """Write a text file beside its place, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write sorted JSON atomically; see `plain` for how numbers are kept."""
    text = json.dumps(plain(value), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return write_text(path, text + "\n")


def plain(value: Any) -> Any:
    """Turn arrays and numbers into JSON's own; floats to six digits, NaN and infinity to null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str | bool) or value is None:
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        number = float(f"{float(value):.{SIGNIFICANT}g}")
        return number if math.isfinite(number) else None
    if isinstance(value, np.ndarray | jax.Array):
        return plain(np.asarray(value).tolist())
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def provenance(seed: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Say how a result came about: all that may differ between two runs that must agree."""
    packages = ("foliax", "jax", "jaxlib", "flax", "optax", "diffrax", "numpy", "matplotlib")
    device = jax.devices()[0]
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {name: _version(name) for name in packages}
        | {"python": platform.python_version()},
        "device": {"platform": device.platform, "kind": device.device_kind, "cpus": os.cpu_count()},
        "seed": seed,
        "seconds": dict(seconds),
        "revision": _revision(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """Return the commit of the tree that this file is in, marked where it was changed."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        if commit.returncode:
            return None
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:
        return None
    return commit.stdout.strip() + (" (changed)" if changed.stdout.strip() else "")


# --- populations -------------------------------------------------------------------------------


def walks(model: Any, xs: Any, targets: Any, box: Any, **options: Any) -> Any:
    """Walk many pairs, to numpy; `options` are those of `foliax.walk`; see `_run.in_parts`."""
    return _each(foliax.walks, model, xs, targets, box, options)


def drifts(model: Any, xs: Any, directions: Any, box: Any, **options: Any) -> Any:
    """Drift many points, to numpy; `options` are those of `foliax.drift`."""
    return _each(foliax.drifts, model, xs, directions, box, options)


def _each(
    many: Callable, model: Any, xs: Any, goals: Any, box: Any, options: Mapping[str, Any]
) -> Any:
    block = 1 if _run.on_cpu() else len(xs)
    return _run.in_parts(partial(many, box=box, block=block, **options), model, xs, goals)


def check_rows(max_steps: int, save_every: int) -> None:
    """Refuse to keep points so that the last one of a path would not be among them."""
    if save_every < 1 or max_steps % save_every:
        raise ValueError(
            f"save_every must divide the number of steps, {max_steps}, got {save_every}"
        )


def pick(path: Any, index: int) -> Any:
    """Return one path of a population."""
    return jax.tree.map(lambda leaf: leaf[index], path)


@jax.jit
def predict(model: Any, xs: Any) -> tuple[jax.Array, jax.Array]:
    """Return predicted labels and their probabilities, for a batch."""
    p = jax.nn.softmax(jax.vmap(model)(jnp.asarray(xs)))
    return jnp.argmax(p, axis=-1), jnp.max(p, axis=-1)


def flat(images: Any) -> np.ndarray:
    """Return each image of a batch as a row, in float64."""
    images = np.asarray(images, dtype=np.float64)
    return images.reshape(len(images), -1)


def norms(vectors: Any) -> np.ndarray:
    """Return the Euclidean length of each image of a batch."""
    return np.linalg.norm(flat(vectors), axis=1)


# --- summaries ---------------------------------------------------------------------------------


def quartiles(values: Any) -> dict[str, float]:
    """Return least, quartiles and largest of the finite values."""
    values = np.asarray(values, dtype=np.float64).ravel()
    values = values[np.isfinite(values)]
    names = ("least", "lower_quartile", "median", "upper_quartile", "largest")
    if not len(values):
        return dict.fromkeys(names, math.nan)
    return dict(zip(names, np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist(), strict=True))


def endings(path: Any) -> dict[str, float]:
    """Return the share of a population that ended in each status."""
    return {s.name: float(np.mean(path.status == s)) for s in foliax.Status}


def outcome(share: float) -> str:
    """Name what a share of cases for which a claim held amounts to."""
    return HOLDS if share >= 0.99 else FAILS if share <= 0.01 else IN_PART


def percent(share: float) -> str:
    """Write a share in words for a sentence, e.g. 34.4 %."""
    return f"{100 * share:.3g} %"


# --- captions ----------------------------------------------------------------------------------


def caption(iteration: int | str, label: Any, probability: float, names: Sequence[str]) -> str:
    """Return the slides' caption: iteration, predicted label, its probability."""
    head = f"iteration {iteration}" if not isinstance(iteration, str) else iteration
    return f"{head}\nlabel {names[int(label)]}\np = {float(probability):.4f}"


def captions(path: Any, rows: Sequence[int], names: Sequence[str]) -> list[str]:
    """Return captions for rows of one path, from the logits it kept."""
    p = np.asarray(jax.nn.softmax(jnp.asarray(path.logits)[np.asarray(rows)]))
    steps = path.steps[np.asarray(rows)]
    return [caption(int(s), q.argmax(), q.max(), names) for s, q in zip(steps, p, strict=True)]


def live_rows(path: Any, count: int | None = None) -> list[int]:
    """Return rows up to the end of one path: all of them, or `count` spread evenly."""
    last = int(np.argmax(path.steps == path.num_steps)) if path.num_steps in path.steps else -1
    rows = np.arange(len(path.steps) if last < 0 else last + 1)
    if count is not None and len(rows) > count:
        rows = rows[np.round(np.linspace(0, len(rows) - 1, count)).astype(int)]
    return rows.tolist()
