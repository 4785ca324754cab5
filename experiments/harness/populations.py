"""Populations of paths: how they are made, what is said of each, and every path point by point."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr
from sklearn.neighbors import NearestNeighbors

import foliax
from experiments.harness import noise
from experiments.harness.run import in_parts, on_cpu
from foliax.flow.path import Code

_PROFILE = 11  # rows of a population's profile along its paths


def walks(model: Any, xs: Any, targets: Any, box: Any, **options: Any) -> Any:
    """Walk many pairs, to NumPy; `options` are those of `foliax.walk`."""
    return _each(foliax.walk, model, xs, targets, box, options)


def drifts(model: Any, xs: Any, directions: Any, box: Any, **options: Any) -> Any:
    """Drift many points, to NumPy; `options` are those of `foliax.drift`."""
    return _each(foliax.drift, model, xs, directions, box, options)


def _each(
    fn: Callable, model: Any, xs: Any, goals: Any, box: Any, options: Mapping[str, Any]
) -> Any:
    block = 1 if on_cpu() else len(xs)
    return in_parts(partial(foliax.map, fn, box=box, block=block, **options), model, xs, goals)


def pick(path: Any, index: int | tuple[int, ...]) -> Any:
    """Return one path of a population."""
    return jax.tree.map(lambda leaf: leaf[index], path)


def live_rows(path: Any, count: int | None = None) -> list[int]:
    """Return rows up to the end of one path: all of them, or `count` spread evenly."""
    last = int(np.argmax(path.steps == path.num_steps)) if path.num_steps in path.steps else -1
    rows = np.arange(len(path.steps) if last < 0 else last + 1)
    if count is not None and len(rows) > count:
        rows = rows[np.round(np.linspace(0, len(rows) - 1, count)).astype(int)]
    return rows.tolist()


@jax.jit
def predict(model: Any, xs: Any) -> tuple[jax.Array, jax.Array]:
    """Return predicted labels and their probabilities, for a batch."""
    p = jax.nn.softmax(jax.vmap(model)(jnp.asarray(xs)))
    return jnp.argmax(p, axis=-1), jnp.max(p, axis=-1)


def right(model: Any, xs: Any, labels: Any) -> np.ndarray:
    """Tell which images of a batch the model classifies as they are labelled."""
    return np.asarray(predict(model, xs)[0]) == np.asarray(labels)


def flat(images: Any) -> np.ndarray:
    """Return each image of a batch as a row, in float64."""
    images = np.asarray(images, dtype=np.float64)
    return images.reshape(len(images), -1)


def distance_to(known: Any) -> Callable[[Any], np.ndarray]:
    """Return what gives the distance of each image of a batch to the nearest of those known."""
    near = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(flat(known))
    return lambda images: near.kneighbors(flat(images))[0][:, 0]


def in_float64(model: Any) -> Any:
    """Return floating-point numbers in float64, and anything else, such as a key, as it is."""

    def widen(leaf: Any) -> Any:
        floating = jnp.issubdtype(getattr(leaf, "dtype", int), jnp.floating)
        return jnp.asarray(leaf, jnp.float64) if floating else leaf

    return jax.tree.map(widen, model)


def norms(vectors: Any) -> np.ndarray:
    """Return the Euclidean length of each image of a batch."""
    return np.linalg.norm(flat(vectors), axis=1)


def quartiles(values: Any) -> dict[str, float]:
    """Return least, quartiles and largest of the finite values."""
    values = np.asarray(values, dtype=np.float64).ravel()
    values = values[np.isfinite(values)]
    names = ("least", "lower_quartile", "median", "upper_quartile", "largest")
    if not len(values):
        return dict.fromkeys(names, math.nan)
    return dict(zip(names, np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist(), strict=True))


def share(where: Any) -> float | None:
    """Return the share of cases that are true; None of none."""
    return float(np.mean(where)) if len(where) else None


def rank_correlation(a: Any, b: Any) -> tuple[float, float]:
    """Return Spearman's rank correlation and its p-value; NaN where one does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan, math.nan
    found: Any = spearmanr(a, b)
    return float(found.statistic), float(found.pvalue)


def endings(path: Any) -> dict[str, float]:
    """Return the share of a population that ended in each status."""
    names = [code.name for code in Code]
    return {name: float(np.mean(path.status == getattr(foliax.Status, name))) for name in names}


def status_name(status: Any) -> str:
    """Return the name of one status."""
    status = jax.tree.map(np.asarray, status)  # a scalar of NumPy's is no array to Equinox
    return foliax.Status[status].partition(":")[0]


def statistics(path: Any, dataset: Any) -> dict[str, Any]:
    """Return how a population ended, what its steps did to p, and how noisy its points look."""
    return {
        "ended": endings(path),
        "steps": quartiles(path.num_steps),
        "drift_of_p": quartiles(path.probability_change.max(axis=1)),
        "noise": _noise_along(path, dataset, whole=False),
        "noise_of_whole": _noise_along(path, dataset, whole=True),
        "box_excess_pixels": quartiles(box_excess(path, dataset)),
    }


def _noise_along(path: Any, dataset: Any, *, whole: bool) -> dict[str, Any]:
    level = noise.path_readings(path, dataset, whole=whole)
    change = np.abs(level - level[:, :1])
    rows = np.unique(np.linspace(0, level.shape[1] - 1, _PROFILE).astype(int))
    return {
        "estimator": noise.estimator(dataset.shape),
        "start": quartiles(level[:, 0]),
        "end": quartiles(level[:, -1]),
        "largest_change": quartiles(change.max(axis=1)),
        "same": noise.SAME,
        "share_kept": float(np.mean(change.max(axis=1) <= noise.SAME)),
        "share_kept_at_end": float(np.mean(change[:, -1] <= noise.SAME)),
        "along": {
            "step": path.steps[:, rows].max(axis=0),
            "median": np.median(level[:, rows], axis=0),
        },
    }


def box_excess(path: Any, dataset: Any) -> np.ndarray:
    """Return how far the worst pixel of each path lies outside [0, 1], in pixel units."""
    pixels = np.asarray(dataset.to_pixels(np.asarray(path.points)), dtype=np.float64)
    outside = np.maximum(np.maximum(-pixels, pixels - 1), 0)
    return outside.reshape(len(outside), -1).max(axis=1)


def records(
    paths: Mapping[str, Any],
    dataset: Any,
    starts: Sequence[int] | np.ndarray,
    ends: Sequence[int] | np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Return every path point by point: label, probability, distance, drift of p and noise.

    `paths` has populations by name, from the same places of the test set to the same `ends`, and
    noise is read twice: flat ground left out, and of the whole image. The lists of a path have an
    entry for each point kept up to its end.
    """
    found = []
    for name, population in paths.items():
        part, whole = (
            noise.path_readings(population, dataset, whole=whole) for whole in (False, True)
        )
        for i, start in enumerate(starts):
            places = {"start": int(start)} | ({} if ends is None else {"end": int(ends[i])})
            found.append({"kind": name} | places | _record(pick(population, i), part[i], whole[i]))
    return found


def _record(path: Any, part: np.ndarray, whole: np.ndarray) -> dict[str, Any]:
    rows = live_rows(path)
    p = np.asarray(jax.nn.softmax(jnp.asarray(path.logits[rows])))
    return {
        "status": status_name(path.status),
        "num_steps": int(path.num_steps),
        "step": path.steps[rows],
        "label": p.argmax(axis=-1),
        "probability": p.max(axis=-1),
        "distance": path.distance[rows],
        "tangent_fraction": path.tangent_fraction[rows],
        "drift_of_p": path.probability_change[rows],
        "noise": part[rows],
        "noise_of_whole": whole[rows],
    }
