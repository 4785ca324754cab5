"""What `curvature` measures: one image, one row."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

import foliax
from experiments._common import quartiles
from foliax import leaf, zoo


class Seen(NamedTuple):
    """What is said of an image by a network.

    Attributes:
        probabilities: (C,).
        trace: Trace of G.
        mean: Mean sectional curvature in G's metric; 0 where it is not defined.
        spread: Largest minus smallest, over the planes of the eigenvectors of G.
        defined: Whether G sees all of D, and dim D ≥ 2.
        dimension: dim D.
    """

    probabilities: Any
    trace: Any
    mean: Any
    spread: Any
    defined: Any
    dimension: Any


class Bent(NamedTuple):
    """How the leaf bends in input space at an image, in 1 / normalised units.

    Attributes:
        probabilities: (C,).
        trace: Trace of G.
        norm: Length of the second fundamental form.
        twist: Its antisymmetric part: how far D is from being integrable.
        mean: Length of the mean-curvature vector.
    """

    probabilities: Any
    trace: Any
    norm: Any
    twist: Any
    mean: Any


def within(model: Any, x: Float[Array, "..."]) -> Seen:
    """Return the intrinsic curvature at an image."""
    found = leaf.curvature(model, x)
    size = len(found.sectional)
    planes = found.sectional[jnp.triu_indices(size, 1)]
    there = planes != 0
    top = jnp.max(jnp.where(there, planes, -jnp.inf))
    least = jnp.min(jnp.where(there, planes, jnp.inf))
    spread = jnp.where(jnp.any(there), top - least, 0)
    p = jax.nn.softmax(model(x))
    return Seen(p, foliax.trace(model, x), found.mean, spread, found.defined, found.dimension)


def without(model: Any, x: Float[Array, "..."]) -> Bent:
    """Return the extrinsic curvature at an image."""
    found = leaf.extrinsic(model, x)
    length = jnp.linalg.norm(found.mean.ravel())
    p = jax.nn.softmax(model(x))
    return Bent(p, foliax.trace(model, x), found.norm, found.twist, length)


def koszul(model: Any, xs: Any) -> np.ndarray:
    """Return curvatures from the Christoffel symbols, in float64, in a plane of each image."""
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model)

        def one(model: Any, x: Any) -> Any:
            v, w = foliax.eigh(model, x, k=2).vectors
            return leaf.sectional(model, x, v, w, method="koszul").value

        found = jax.jit(jax.vmap(one, in_axes=(None, 0)))(exact, jnp.asarray(xs, jnp.float64))
        return np.asarray(found)


def over(function: Any, model: Any, xs: Any) -> Any:
    """Apply one of them to many images."""
    return foliax.sweep(function, model, xs, batch=min(64, len(xs)), block=8)


def trained(dataset: Any, sizes: tuple[int, ...], *, epochs: int, seed: int) -> Any:
    """Return a smooth dense network of these sizes, trained."""
    model = zoo.MLP(sizes, activation="gelu", rngs=nnx.Rngs(seed))
    config = zoo.TrainConfig(
        epochs=epochs, optimizer="adam", learning_rate=3e-3, seed=seed, track_per_epoch=0
    )
    return zoo.train(model, dataset, config)[0]


# --- numbers -----------------------------------------------------------------------------------


def intrinsic_numbers(seen: Seen, labels: np.ndarray) -> dict[str, Any]:
    """Return what is said of a population of images."""
    full = seen.probabilities.shape[1] - 1
    defined, whole = np.asarray(seen.defined), np.asarray(seen.dimension) == full
    of_full, lower = defined & whole, defined & ~whole
    off = np.abs(seen.mean[of_full] - 0.25) if of_full.any() else np.array([])
    dimensions, counts = np.unique(seen.dimension, return_counts=True)
    return {
        "num_images": len(labels),
        "images_by_dimension": dict(
            zip(map(str, dimensions.tolist()), counts.tolist(), strict=True)
        ),
        "not_defined": int(np.sum(~defined)),
        "full_rank": {"count": int(of_full.sum()), "off_a_quarter": quartiles(off)},
        "lower_rank": {
            "count": int(lower.sum()),
            "curvature": quartiles(seen.mean[lower]),
            "planes_spread": quartiles(seen.spread[lower]),
        }
        | (_told_by(seen.mean[lower], seen, lower, labels) if lower.sum() > 2 else {}),
    }


def extrinsic_numbers(bent: Bent, labels: np.ndarray) -> dict[str, Any]:
    """Return what is said of a population of images."""
    every = np.ones(len(labels), bool)
    return {
        "num_images": len(labels),
        "norm": quartiles(bent.norm),
        "twist": quartiles(bent.twist),
        "mean_curvature": quartiles(bent.mean),
        "by_class": {
            str(label): quartiles(bent.norm[labels == label]) for label in np.unique(labels)
        },
    } | _told_by(bent.norm, bent, every, labels)


def _told_by(values: np.ndarray, found: Any, chosen: np.ndarray, labels: np.ndarray) -> dict:
    """Return whether a curvature says more than confidence and trace do."""
    p, trace = np.asarray(found.probabilities)[chosen], np.asarray(found.trace)[chosen]
    wrong = p.argmax(axis=1) != labels[chosen]
    doubt = 1 - p.max(axis=1)
    told: dict[str, Any] = {
        "rank_correlation_with_doubt": rank_correlation(values, doubt),
        "rank_correlation_with_trace": rank_correlation(values, trace),
        "wrong": int(wrong.sum()),
    }
    if 0 < wrong.sum() < len(wrong):
        told["auroc_of_errors"] = {
            "curvature": roc_auc_score(wrong, values),
            "doubt": roc_auc_score(wrong, doubt),
            "trace": roc_auc_score(wrong, trace),
        }
    return told


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's; not a number where one of them does not vary."""
    a, b = np.asarray(a), np.asarray(b)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    found: Any = spearmanr(a, b)
    return float(found.statistic)


def along_paths(model: Any, path: Any) -> dict[str, np.ndarray]:
    """Return the extrinsic curvature and the doubt at every kept point of paths, (N, rows)."""
    count, rows = np.shape(path.steps)
    points = np.asarray(path.points)
    found = over(without, model, points.reshape(count * rows, *points.shape[2:]))
    return {
        "norm": np.asarray(found.norm).reshape(count, rows),
        "doubt": 1 - np.asarray(found.probabilities).max(axis=1).reshape(count, rows),
    }
