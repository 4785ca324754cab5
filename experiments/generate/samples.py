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
from experiments.harness import noise as _noise
from experiments.harness import run as _run
from experiments.harness.common import predict, quartiles
from experiments.harness.judge import Judge
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
MADE = ("leaf", "leaf_free", "kernel", "walk")  # by the model
_SIGMAS = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
_REAL = 200  # images of a class that its spread is measured on, at most


@dataclass(frozen=True)
class Config:
    """How samples are made.

    Attributes:
        num_starts: Test images that motions start from, as many of each class as of another.
        start: One place in the test set instead.
        samples: Samples of each start, ≥ 2.
        length: How far a free motion goes on the mean, over the mean distance of two training
            images of a class.
        keep: Threshold of p_label, over p_label at the start.
        num_steps: Steps of a Brownian motion.
        walk_steps: Steps of a walk, at most.
        step: Length of a step of a walk, normalised units.
        seed: Draws starts, targets and noise.
    """

    num_starts: int = 30
    start: int | None = None
    samples: int = 4
    length: float = 1.0
    keep: float = 0.9
    num_steps: int = 100
    walk_steps: int = 400
    step: float = 0.2
    seed: int = 0


class Task(NamedTuple):
    """What every epoch of a training starts from.

    Attributes:
        places: (N,) of the starts in the test set.
        labels: (N,) their true labels.
        targets: (N, samples) places in the training set, of the same label.
        spread: Mean distance of two training images of a class, by class.
        reading: Mean reading of the noise of test images, and its calibration.
        nearest: Fitted on the training images.
        near: Median distance of a test image from the nearest training image.
    """

    places: np.ndarray
    labels: np.ndarray
    targets: np.ndarray
    spread: np.ndarray
    reading: Any
    nearest: Any
    near: float


def prepare(dataset: Any, config: Config) -> Task:
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
    spread = np.array([np.mean(pdist(_flat(dataset.train_x[m[:_REAL]]))) for m in members])
    nearest = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(_flat(dataset.train_x))
    near = np.median(nearest.kneighbors(_flat(dataset.test_x[:_REAL]), 1)[0])
    reading = _noise.calibrate(dataset, config.seed, len(dataset.test_x), _SIGMAS)
    return Task(places, labels, targets, spread, reading, nearest, float(near))


def _starts(dataset: Any, config: Config, rng: Any) -> np.ndarray:
    if config.start is not None:
        return np.array([config.start])
    each, left = divmod(config.num_starts, dataset.num_classes)
    if left or each < 1:
        raise ValueError(
            f"images must be a multiple of the {dataset.num_classes} classes, got "
            f"{config.num_starts}"
        )
    order = rng.permutation(len(dataset.test_y))
    return np.concatenate(
        [order[dataset.test_y[order] == c][:each] for c in range(dataset.num_classes)]
    )


class Made(NamedTuple):
    """Samples by one method, (N, samples, *shape), and how their motions went; None for others."""

    images: np.ndarray
    motion: Any = None


def make(model: Any, dataset: Any, task: Task, config: Config) -> dict[str, Made]:
    """Make samples of every start by every method."""
    count, key = config.samples, jax.random.key(config.seed)
    starts = dataset.test_x[task.places]
    xs = np.repeat(starts, count, axis=0)
    labels = np.repeat(task.labels, count).astype(np.int32)
    targets = dataset.train_x[task.targets.ravel()]
    floor = config.keep * np.asarray(_p_label(model, xs, labels))
    size, flat = xs[0].size, dataset.num_classes - 1
    length = config.length * float(np.mean(task.spread[task.labels]))
    seeds = jax.random.key_data(jax.random.split(key, len(xs)))
    common: dict[str, Any] = {"num_steps": config.num_steps, "save_every": config.num_steps}
    ways: dict[str, tuple[Any, float, dict[str, Any]]] = {
        "leaf": (floor, length**2 / flat, {}),
        "leaf_free": (0 * floor, length**2 / flat, {}),
        "kernel": (floor, length**2 / (size - flat), {"along": "kernel", "box": dataset.box}),
    }
    found = {}
    bar = tqdm(total=len(MADE), leave=False, dynamic_ncols=True)
    for name, (least, time, options) in ways.items():
        bar.set_description(LABELS[name])
        fn = partial(_diffused, time=time, **options, **common)
        found[name] = _run.in_parts(fn, model, xs, seeds, labels, least)
        bar.update()
    bar.set_description(LABELS["walk"])
    fn = partial(
        _approached, step=config.step, max_steps=config.walk_steps, save_every=config.walk_steps,
        stall=1e-2, block=1 if _run.on_cpu() else len(xs),  # walks differ much in length
    )  # fmt: skip
    found["walk"] = _run.in_parts(fn, model, xs, targets, labels, floor)
    made = {name: Made(np.asarray(motion.end), motion) for name, motion in found.items()}
    bar.close()
    made |= _baselines(xs, targets, made, key)
    shape = (len(starts), count, *starts.shape[1:])
    return {name: one._replace(images=one.images.reshape(shape)) for name, one in made.items()}


def _diffused(model: Any, xs: Any, seeds: Any, labels: Any, floor: Any, **options: Any) -> Any:
    keys = jax.random.wrap_key_data(seeds)
    return generate.diffusions(model, xs, keys, labels=labels, threshold=floor, **options)


def _approached(model: Any, xs: Any, targets: Any, labels: Any, floor: Any, **options: Any) -> Any:
    return generate.approaches(model, xs, targets, labels=labels, threshold=floor, **options)


def _baselines(xs: Any, targets: Any, made: Mapping[str, Made], key: Any) -> dict[str, Made]:
    """Return what needs no model: noise as long as the leaf's motion, and mixtures."""
    noise = np.asarray(jax.random.normal(jax.random.fold_in(key, 1), xs.shape, xs.dtype))
    to_target = targets - xs
    return {
        "noise": Made(xs + _as_long(noise, made["leaf"].images - xs)),
        "convex": Made(xs + to_target / 2),
        "convex_short": Made(xs + _as_long(to_target, made["walk"].images - xs)),
        "real": Made(targets),
    }


def _as_long(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    one, other = (np.linalg.norm(_flat(each), axis=1) for each in (vectors, others))
    return vectors * (other / one).reshape(-1, *(1,) * (vectors.ndim - 1)).astype(vectors.dtype)


# --- measures ----------------------------------------------------------------------------------


def measure(
    model: Any, dataset: Any, task: Task, made: Mapping[str, Made], judge: Judge
) -> dict[str, Any]:
    """Return what is measured of each method; of the images as they are shown, clipped."""
    return {name: _measure(model, dataset, task, name, one, judge) for name, one in made.items()}


def _measure(
    model: Any, dataset: Any, task: Task, name: str, made: Made, judge: Judge
) -> dict[str, Any]:
    count = made.images.shape[1]
    raw = made.images.reshape(-1, *dataset.shape)
    shown = np.asarray(dataset.box.clip(raw))
    starts = np.repeat(dataset.test_x[task.places], count, axis=0)
    labels = np.repeat(task.labels, count)
    spread = task.spread[labels]
    rank = 1 if name == "real" else 0  # a training image is its own nearest
    near = task.nearest.kneighbors(_flat(shown), 2)[0][:, rank]
    reading = float(_noise.whole_readings(dataset.to_pixels(shown)).mean())
    kept = judge.predict(shown) == labels
    numbers = {
        "agreement": np.mean(kept),
        "kept_of_start": kept.reshape(-1, count).mean(axis=1),
        "model_agreement": np.mean(np.asarray(predict(model, shown)[0]) == labels),
        "p_label": quartiles(_p_label(model, raw, labels)),
        "p_label_shown": quartiles(_p_label(model, shown, labels)),
        "reading": reading,
        "noise": float(task.reading.sigma(reading)),
        "nearest_training": float(np.median(near) / task.near),
        "moved": quartiles(np.linalg.norm(_flat(shown - starts), axis=1) / spread),
        "diversity_of_start": _diversity(made.images, task, dataset),
        "diversity_of_class": _diversity(_by_class(made.images, task), task, dataset),
        "box_excess": float(np.mean(np.abs(raw - shown) > 1e-5)),
    }
    if made.motion is not None:
        numbers |= _story(made.motion)
    return numbers


def _story(motion: Any) -> dict[str, Any]:
    """Return how motions went."""
    accepted, refused = np.asarray(motion.accepted), np.asarray(motion.refused)
    return {
        "accepted": quartiles(accepted),
        "refused": float(refused.sum() / max(1, (accepted + refused).sum())),
        "ended": {s.name: float(np.mean(np.asarray(motion.status) == s)) for s in foliax.Status},
    }


def _diversity(groups: Any, task: Task, dataset: Any) -> float:
    """Return the mean distance of two samples of a group, over that of two real ones."""
    labels = task.labels if len(groups) == len(task.labels) else np.unique(task.labels)
    ratios = [
        np.mean(pdist(_flat(np.asarray(dataset.box.clip(group))))) / task.spread[label]
        for group, label in zip(groups, labels, strict=True)
    ]
    return float(np.mean(ratios))


def _by_class(images: np.ndarray, task: Task) -> list[np.ndarray]:
    return [images[task.labels == c].reshape(-1, *images.shape[2:]) for c in np.unique(task.labels)]


@jax.jit
def _p_label(model: Any, xs: Any, labels: Any) -> jax.Array:
    p = jax.nn.softmax(jax.vmap(model)(jnp.asarray(xs)))
    return jnp.take_along_axis(p, jnp.asarray(labels)[:, None], axis=1)[:, 0]


def gain(measured: Mapping[str, Any], over: str = "noise") -> dict[str, float]:
    """Return how much oftener the leaf keeps the label than another method, with standard error."""
    pairs = measured["leaf"]["kept_of_start"] - measured[over]["kept_of_start"]
    error = np.std(pairs, ddof=1) / np.sqrt(len(pairs)) if len(pairs) > 1 else np.nan
    return {"mean": float(np.mean(pairs)), "error": float(error)}


def trace(model: Any, xs: Any) -> float:
    """Return the mean trace of G at images."""
    found = _run.sweep(foliax.trace, model, np.asarray(xs), progress=False)
    return float(np.mean(found))


def _flat(images: Any) -> np.ndarray:
    images = np.asarray(images, np.float64)
    return images.reshape(len(images), -1)
