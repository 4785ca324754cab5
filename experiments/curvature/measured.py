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
from experiments.harness import run as _run
from experiments.harness.common import quartiles
from foliax import leaf, zoo


class Seen(NamedTuple):
    """What is said of an image by a network.

    Attributes:
        probabilities: (C,).
        trace: Trace of G.
        mean: Mean sectional curvature in G's metric, by Gauss' equation; 0 where it is not defined.
        defined: Whether G sees all of D, and dim D ≥ 2.
        dimension: dim D.
    """

    probabilities: Any
    trace: Any
    mean: Any
    defined: Any
    dimension: Any


class Routes(NamedTuple):
    """The sectional curvature of one plane of D, by two routes that share no formula.

    Attributes:
        probabilities: (C,).
        gauss: From the second derivatives of the logits.
        koszul: From the Christoffel symbols of the metric.
        defined: As in `Seen`.
    """

    probabilities: Any
    gauss: Any
    koszul: Any
    defined: Any


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
    p = jax.nn.softmax(model(x))
    return Seen(p, foliax.trace(model, x), found.mean, found.defined, found.dimension)


def without(model: Any, x: Float[Array, "..."]) -> Bent:
    """Return the extrinsic curvature at an image."""
    found = leaf.extrinsic(model, x)
    length = jnp.linalg.norm(found.mean.ravel())
    p = jax.nn.softmax(model(x))
    return Bent(p, foliax.trace(model, x), found.norm, found.twist, length)


def both(model: Any, x: Float[Array, "..."]) -> Routes:
    """Return the intrinsic curvature of the plane in D nearest to a random one.

    At full rank Gauss' equation has nothing left that could differ from 1/4, were the derivatives
    wrong or right; the Christoffel symbols do not know of it.
    """
    v, w = jax.random.normal(jax.random.key(0), (2, *x.shape), x.dtype)
    gauss, koszul = (leaf.sectional(model, x, v, w, method=m) for m in ("gauss", "koszul"))
    p = jax.nn.softmax(model(x))
    return Routes(p, gauss.value, koszul.value, gauss.defined & koszul.defined)


def over(function: Any, model: Any, xs: Any) -> Any:
    """Apply one of them to many images."""
    return _run.sweep(function, model, xs, batch=min(64, len(xs)), block=8)


def exactly(function: Any, model: Any, xs: Any) -> Any:
    """Do the same in float64: near a corner of the simplex, float32 leaves no digit of some K."""

    def widen(value: Any) -> Any:
        return value.astype(jnp.float64) if jnp.issubdtype(value.dtype, jnp.floating) else value

    with jax.enable_x64(True):
        return over(function, jax.tree.map(widen, model), jnp.asarray(xs, jnp.float64))


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
    dimensions, counts = np.unique(seen.dimension, return_counts=True)
    return {
        "num_images": len(labels),
        "images_by_dimension": dict(
            zip(map(str, dimensions.tolist()), counts.tolist(), strict=True)
        ),
        "not_defined": int(np.sum(~defined)),
        "full_rank": {"count": int(of_full.sum())},
        "lower_rank": {"count": int(lower.sum()), "curvature": quartiles(seen.mean[lower])}
        | (_told_by(seen.mean[lower], seen, lower, labels) if lower.sum() > 2 else {}),
    }


def route_numbers(found: Routes) -> dict[str, Any]:
    """Return how far the second route is from 1/4, and from the first, where both are defined."""
    there = np.asarray(found.defined)
    gauss, koszul = np.asarray(found.gauss)[there], np.asarray(found.koszul)[there]
    return {
        "num_images": int(there.sum()),
        "off_a_quarter": quartiles(np.abs(koszul - 0.25)),
        "apart": quartiles(np.abs(koszul - gauss) / np.maximum(np.abs(gauss), 0.25)),
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
    values = np.asarray(values)
    told: dict[str, Any] = {
        "rank_correlation_with_doubt": rank_correlation(values, doubt),
        "rank_correlation_with_trace": rank_correlation(values, trace),
        "wrong": int(wrong.sum()),
        "of_right": quartiles(values[~wrong]),
        "of_wrong": quartiles(values[wrong]),
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


def along_paths(model: Any, path: Any, rows: int) -> dict[str, np.ndarray]:
    """Return extrinsic curvature and doubt at so many even parts of each walk's own way, (N, rows).

    Rows past the end of a path repeat its last point: they are not looked at. `fresh` says which
    points are no repetition, on a way with fewer rows than are asked for.
    """
    steps, num_steps = np.asarray(path.steps), np.asarray(path.num_steps)
    last = np.minimum(np.sum(steps < num_steps[:, None], axis=1), steps.shape[1] - 1)
    at = np.rint(np.linspace(0, 1, rows) * last[:, None]).astype(int)
    points = np.asarray(path.points)[np.arange(len(at))[:, None], at]
    found = over(without, model, points.reshape(-1, *points.shape[2:]))
    return {
        "norm": np.asarray(found.norm).reshape(at.shape),
        "doubt": 1 - np.asarray(found.probabilities).max(axis=1).reshape(at.shape),
        "fresh": np.diff(at, axis=1, prepend=-1) > 0,
    }
