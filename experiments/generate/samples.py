"""Samples of a class by several methods, and what is measured of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import pdist
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

import foliax
from experiments.harness import command, noise, run
from experiments.harness.classifier import Classifier
from experiments.harness.populations import endings, flat, norms, predict, quartiles
from foliax.apps import generate

LABELS = {
    "leaf": "Brownian, leaf",
    "leaf_free": "the same, no threshold",
    "kernel": "Brownian, kernel",
    "walk": "walk on the leaf",
    "noise": "white noise, as long",
    "convex": "halfway between two",
    "convex_short": "mixture as far as the walk",
    "real": "training images",
}
_REAL = 200  # images of a class that its spread is measured on, at most
_STEP = 0.2  # of a walk, normalised units


@dataclass(frozen=True)
class Command(command.Command):
    """Which networks, which images, and how samples are made."""

    pairs: command.Count = 30  # Test images to start from, a multiple of the number of classes
    epochs: tuple[int, ...] = ()  # Epochs of the checkpoint to compare; none for the one of `epoch`
    samples: int = 4  # Samples of each start, at least 2
    # How far a free Brownian motion goes on average, over the distance of two images of a class.
    length: float = 1.0
    keep: float = 0.9  # Threshold of p_label, over p_label at the start
    steps: int = 100  # Steps of a Brownian motion; a walk takes four times as many at most

    @property
    def walk_steps(self) -> int:
        """Return the steps of a walk, at most."""
        return 40 if self.quick else 4 * self.steps


class Task(NamedTuple):
    """What every epoch of a training starts from."""

    places: np.ndarray  # (N,) of the starts in the test set
    labels: np.ndarray  # (N,) their true labels
    targets: np.ndarray  # (N, samples) places in the training set, of the same label
    spread: np.ndarray  # Mean distance of two training images of a class, by class
    reading: noise.Calibration  # Calibration of the noise of test images
    nearest: NearestNeighbors  # Fitted on the training images
    near: float  # Median distance of a test image from the nearest training image


class Made(NamedTuple):
    """Samples by one method, (N, samples, *shape), and their motions; None where there are none."""

    images: np.ndarray
    motion: Any = None


def prepare(dataset: Any, config: Command) -> Task:
    """Draw starts and targets, and measure the real images that samples are compared with."""
    if config.samples < 2:
        raise ValueError(
            f"samples must be at least 2, to see how they differ, got {config.samples}"
        )
    rng = np.random.default_rng(config.seed)
    places = _starts(dataset, config, rng)
    labels = dataset.test_y[places]
    members = [np.flatnonzero(dataset.train_y == c) for c in range(dataset.num_classes)]
    targets = np.stack([rng.choice(members[y], config.samples, replace=False) for y in labels])
    spread = np.array([np.mean(pdist(flat(dataset.train_x[m[:_REAL]]))) for m in members])
    nearest = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(flat(dataset.train_x))
    near = np.median(nearest.kneighbors(flat(dataset.test_x[:_REAL]), 1)[0])
    reading = noise.calibrate(dataset, config.seed, len(dataset.test_x))
    return Task(places, labels, targets, spread, reading, nearest, float(near))


def _starts(dataset: Any, config: Command, rng: Any) -> np.ndarray:
    """Return places of test images, as many of each class."""
    if config.start is not None:
        return np.array([config.start])
    classes = dataset.num_classes
    each, left = divmod(config.pairs, classes)
    if left or each < 1:
        raise ValueError(f"images must be a multiple of the {classes} classes, got {config.pairs}")
    order = rng.permutation(len(dataset.test_y))
    return np.concatenate([order[dataset.test_y[order] == c][:each] for c in range(classes)])


def make(model: Any, dataset: Any, task: Task, config: Command) -> dict[str, Made]:
    """Make samples of every start by every method."""
    count, key = config.samples, jax.random.key(config.seed)
    starts = dataset.test_x[task.places]
    xs = np.repeat(starts, count, axis=0)
    labels = np.repeat(task.labels, count).astype(np.int32)
    targets = dataset.train_x[task.targets.ravel()]
    floor = config.keep * np.asarray(_p_label(model, xs, labels))
    size, dimension = xs[0].size, dataset.num_classes - 1
    length = config.length * float(np.mean(task.spread[task.labels]))
    seeds = jax.random.key_data(jax.random.split(key, len(xs)))
    motion = partial(foliax.map, _diffused, num_steps=config.steps, save_every=config.steps)
    on_leaf = partial(motion, time=length**2 / dimension)
    off_leaf = partial(motion, time=length**2 / (size - dimension), along="kernel", box=dataset.box)
    walk = partial(
        foliax.map, _approached, step=_STEP, max_steps=config.walk_steps,
        save_every=config.walk_steps, stall=1e-2,
        block=1 if run.on_cpu() else len(xs),  # walks differ much in length
    )  # fmt: skip
    programs = {
        "leaf": (on_leaf, seeds, floor),
        "leaf_free": (on_leaf, seeds, 0 * floor),
        "kernel": (off_leaf, seeds, floor),
        "walk": (walk, targets, floor),
    }
    made: dict[str, Made] = {}
    for name, (fn, goals, least) in (bar := tqdm(programs.items(), leave=False)):
        bar.set_description(LABELS[name])
        found = run.in_parts(fn, model, xs, goals, labels, least)
        made[name] = Made(np.asarray(found.end), found)
    made |= _baselines(xs, targets, made, key)
    shape = (len(starts), count, *starts.shape[1:])
    return {name: one._replace(images=one.images.reshape(shape)) for name, one in made.items()}


def _diffused(model: Any, x: Any, seed: Any, label: Any, floor: Any, **options: Any) -> Any:
    key = jax.random.wrap_key_data(seed)
    return generate.diffuse(model, x, key, label=label, threshold=floor, **options)


def _approached(model: Any, x: Any, target: Any, label: Any, floor: Any, **options: Any) -> Any:
    return generate.approach(model, x, target, label=label, threshold=floor, **options)


def _baselines(xs: Any, targets: Any, made: Mapping[str, Made], key: Any) -> dict[str, Made]:
    """Return what needs no model: noise as long as the leaf's motion, and mixtures."""
    white = np.asarray(jax.random.normal(jax.random.fold_in(key, 1), xs.shape, xs.dtype))
    to_target = targets - xs
    return {
        "noise": Made(xs + _as_long(white, made["leaf"].images - xs)),
        "convex": Made(xs + to_target / 2),
        "convex_short": Made(xs + _as_long(to_target, made["walk"].images - xs)),
        "real": Made(targets),
    }


def _as_long(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    ratio = norms(others) / norms(vectors)
    return vectors * ratio.reshape(-1, *(1,) * (vectors.ndim - 1)).astype(vectors.dtype)


def measure(
    model: Any, dataset: Any, task: Task, made: Mapping[str, Made], classifier: Classifier
) -> dict[str, Any]:
    """Return what is measured of each method; of the images as they are shown, clipped."""
    return {
        name: _measure(model, dataset, task, name, one, classifier) for name, one in made.items()
    }


def _measure(
    model: Any, dataset: Any, task: Task, name: str, made: Made, classifier: Classifier
) -> dict[str, Any]:
    count = made.images.shape[1]
    raw = made.images.reshape(-1, *dataset.shape)
    shown = np.asarray(dataset.box.clip(raw))
    starts = np.repeat(dataset.test_x[task.places], count, axis=0)
    labels = np.repeat(task.labels, count)
    rank = 1 if name == "real" else 0  # a training image is its own nearest
    near = task.nearest.kneighbors(flat(shown), 2)[0][:, rank]
    reading = float(noise.whole_readings(dataset.to_pixels(shown)).mean())
    kept = classifier.predict(shown) == labels
    classes = np.unique(task.labels)
    by_class = [shown[labels == c] for c in classes]
    numbers = {
        "agreement": np.mean(kept),
        "kept_of_start": kept.reshape(-1, count).mean(axis=1),
        "model_agreement": np.mean(np.asarray(predict(model, shown)[0]) == labels),
        "p_label": quartiles(_p_label(model, raw, labels)),
        "p_label_shown": quartiles(_p_label(model, shown, labels)),
        "reading": reading,
        "noise": float(task.reading.sigma(reading)),
        "nearest_training": float(np.median(near) / task.near),
        "moved": quartiles(norms(shown - starts) / task.spread[labels]),
        "diversity_of_start": _diversity(shown.reshape(made.images.shape), task.labels, task),
        "diversity_of_class": _diversity(by_class, classes, task),
        "box_excess": float(np.mean(np.abs(raw - shown) > 1e-5)),
    }
    if made.motion is not None:
        accepted, refused = made.motion.accepted, made.motion.refused
        numbers |= {
            "accepted": quartiles(accepted),
            "refused": float(refused.sum() / max(1, (accepted + refused).sum())),
            "ended": endings(made.motion),
        }
    return numbers


def _diversity(groups: Any, labels: np.ndarray, task: Task) -> float:
    """Return the mean distance of two samples of a group, over that of two real ones."""
    mean = [np.mean(pdist(flat(group))) for group in groups]
    return float(np.mean(mean / task.spread[labels]))


@jax.jit
def _p_label(model: Any, xs: Any, labels: Any) -> jax.Array:
    p = jax.nn.softmax(jax.vmap(model)(jnp.asarray(xs)))
    return jnp.take_along_axis(p, jnp.asarray(labels)[:, None], axis=1)[:, 0]


def gain(measured: Mapping[str, Any]) -> dict[str, float]:
    """Return by how much more the leaf keeps the label than white noise, with standard error."""
    pairs = measured["leaf"]["kept_of_start"] - measured["noise"]["kept_of_start"]
    error = np.std(pairs, ddof=1) / np.sqrt(len(pairs)) if len(pairs) > 1 else np.nan
    return {"mean": float(np.mean(pairs)), "error": float(error)}
