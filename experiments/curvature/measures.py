"""Curvature of leaves at many images, and whether it says more than probability and trace do."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from sklearn.metrics import roc_auc_score

import foliax
from experiments.harness import populations
from experiments.harness.populations import quartiles, rank_correlation
from experiments.harness.run import sweep
from foliax import leaf, zoo


class Intrinsic(NamedTuple):
    """Mean sectional curvature in G's metric, by Gauss' equation; 0 where it is not defined.

    It is defined where G has rank dim D at least 2.
    """

    probabilities: Any
    trace: Any
    mean: Any
    defined: Any
    dimension: Any


class Routes(NamedTuple):
    """The sectional curvature of one plane of D, by two routes that share no formula.

    `gauss` is from the second derivatives of the logits, `koszul` from the Christoffel symbols.
    """

    probabilities: Any
    gauss: Any
    koszul: Any
    defined: Any


class Extrinsic(NamedTuple):
    """How the leaf bends in input space, in 1 / normalised units.

    The lengths of the second fundamental form, of its antisymmetric part `twist`, which keeps D
    from being integrable, and of the mean-curvature vector.
    """

    probabilities: Any
    trace: Any
    norm: Any
    twist: Any
    mean: Any


def intrinsic(model: Any, x: jax.Array) -> Intrinsic:
    """Return the intrinsic curvature at an image."""
    found = leaf.curvature(model, x)
    p = jax.nn.softmax(model(x))
    return Intrinsic(p, foliax.trace(model, x), found.mean, found.defined, found.dimension)


def extrinsic(model: Any, x: jax.Array) -> Extrinsic:
    """Return the extrinsic curvature at an image."""
    found = leaf.extrinsic(model, x)
    length = jnp.linalg.norm(found.mean.ravel())
    p = jax.nn.softmax(model(x))
    return Extrinsic(p, foliax.trace(model, x), found.norm, found.twist, length)


def routes(model: Any, x: jax.Array) -> Routes:
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
    return sweep(function, model, xs, batch=min(64, len(xs)), block=8)


def in_float64(function: Any, model: Any, xs: Any) -> Any:
    """Do the same in float64: near a corner of the simplex float32 has no digits for some K."""
    with jax.enable_x64(True):
        return over(function, *populations.in_float64((model, jnp.asarray(xs))))


def trained(dataset: Any, sizes: tuple[int, ...], *, epochs: int, seed: int) -> Any:
    """Return a smooth dense network of these sizes, trained."""
    model = zoo.MLP(sizes, activation="gelu", rngs=nnx.Rngs(seed))
    config = zoo.TrainConfig(
        epochs=epochs, optimizer="adam", learning_rate=3e-3, seed=seed, track_per_epoch=0
    )
    return zoo.train(model, dataset, config)[0]


def intrinsic_numbers(found: Intrinsic, labels: np.ndarray) -> dict[str, Any]:
    """Return the statistics of a population of images."""
    full = found.dimension == found.probabilities.shape[1] - 1
    lower = found.defined & ~full
    dimensions, counts = np.unique(found.dimension, return_counts=True)
    return {
        "num_images": len(labels),
        "images_by_dimension": {str(d): int(n) for d, n in zip(dimensions, counts, strict=True)},
        "not_defined": int(np.sum(~found.defined)),
        "full_rank": {"count": int(np.sum(found.defined & full))},
        "lower_rank": {"count": int(lower.sum()), "curvature": quartiles(found.mean[lower])}
        | (_explains(found.mean[lower], found, lower, labels) if lower.sum() > 2 else {}),
    }


def route_numbers(found: Routes) -> dict[str, Any]:
    """Return how far the second route is from 1/4, and from the first, where both are defined."""
    gauss, koszul = found.gauss[found.defined], found.koszul[found.defined]
    return {
        "num_images": int(found.defined.sum()),
        "off_a_quarter": quartiles(np.abs(koszul - 0.25)),
        "apart": quartiles(np.abs(koszul - gauss) / np.maximum(np.abs(gauss), 0.25)),
    }


def extrinsic_numbers(found: Extrinsic, labels: np.ndarray) -> dict[str, Any]:
    """Return the statistics of a population of images."""
    return {
        "num_images": len(labels),
        "norm": quartiles(found.norm),
        "twist": quartiles(found.twist),
        "mean_curvature": quartiles(found.mean),
        "by_class": {
            str(label): quartiles(found.norm[labels == label]) for label in np.unique(labels)
        },
    } | _explains(found.norm, found, np.ones(len(labels), bool), labels)


def _explains(values: np.ndarray, found: Any, chosen: np.ndarray, labels: np.ndarray) -> dict:
    """Return whether a curvature says more than confidence and trace do."""
    p, trace = found.probabilities[chosen], found.trace[chosen]
    wrong = p.argmax(axis=1) != labels[chosen]
    doubt = 1 - p.max(axis=1)
    numbers: dict[str, Any] = {
        "rank_correlation_with_doubt": rank_correlation(values, doubt)[0],
        "rank_correlation_with_trace": rank_correlation(values, trace)[0],
        "wrong": int(wrong.sum()),
        "of_right": quartiles(values[~wrong]),
        "of_wrong": quartiles(values[wrong]),
    }
    if 0 < wrong.sum() < len(wrong):
        numbers["auroc_of_errors"] = {
            name: roc_auc_score(wrong, score)
            for name, score in (("curvature", values), ("doubt", doubt), ("trace", trace))
        }
    return numbers


def along_paths(model: Any, path: Any, rows: int) -> dict[str, np.ndarray]:
    """Return extrinsic curvature and doubt at so many even parts of each walk, (N, rows).

    Rows past the end of a path repeat its last point and are left out. `fresh` says which points
    are no repetition, on a path with fewer rows than are asked for.
    """
    last = np.sum(path.steps < path.num_steps[:, None], axis=1)
    last = np.minimum(last, path.steps.shape[1] - 1)
    at = np.rint(np.linspace(0, 1, rows) * last[:, None]).astype(int)
    points = path.points[np.arange(len(at))[:, None], at]
    found = over(extrinsic, model, points.reshape(-1, *points.shape[2:]))
    return {
        "norm": found.norm.reshape(at.shape),
        "doubt": 1 - found.probabilities.max(axis=1).reshape(at.shape),
        "fresh": np.diff(at, axis=1, prepend=-1) > 0,
    }
