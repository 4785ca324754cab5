"""What people use to recognise what is out of distribution, each higher the farther out.

- msp: Hendrycks & Gimpel 2017, one minus the largest probability; as the log odds against the
  predicted class, which orders alike and does not tie where the softmax saturates.
- max_logit: Hendrycks et al. 2022, minus the largest logit.
- energy: Liu et al. 2020, minus the logarithm of the sum of exponentials of the logits.
- odin: Liang et al. 2018, temperature 1000 and a step of the input along the sign of the gradient;
  the length of the step is the one that makes held training images most confident (Hsu et al.
  2020), so that no outlier is needed.
- mahalanobis: Lee et al. 2018, the least squared distance to a class mean of the penultimate
  features, with one covariance for all classes (scikit-learn).
- knn_features: Sun et al. 2022, distance to the nearest training image in normalised features.
- knn_pixels: the same on raw pixels.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.special import log_softmax, logsumexp
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors

from foliax import zoo

NAMES = ("msp", "max_logit", "energy", "odin", "mahalanobis", "knn_features", "knn_pixels")
TEMPERATURE = 1000.0
_STEPS = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)  # of ODIN, in pixel units
_BLOCK = 256


class Baselines(NamedTuple):
    """What was learnt from training images.

    Attributes:
        model: The network.
        features: From an input to the penultimate features, or the logits where there are none.
        step: ODIN's, in the units of x.
        means: (C, d) of the features, by class.
        covariance: Of the features about their class means.
        near_features: Nearest neighbours in normalised features.
        near_pixels: Nearest neighbours in pixels.
    """

    model: Any
    features: Any
    step: float
    means: np.ndarray
    covariance: EmpiricalCovariance
    near_features: NearestNeighbors
    near_pixels: NearestNeighbors


def penultimate(model: Any) -> Any:
    """Return the network without its last layer; the network itself where that is unknown."""
    if isinstance(model, zoo.MLP) and len(model.layers) > 1:
        copy = nnx.clone(model)
        copy.layers[-1] = _identity(model.layers[-1])
        return copy
    if isinstance(model, zoo.CNN):
        copy, last = nnx.clone(model), f"dense{len(model.hidden) + 1}"
        setattr(copy, last, _identity(getattr(model, last)))
        return copy
    return model


def _identity(layer: nnx.Linear) -> nnx.Linear:
    """Return a layer that gives back the input of this one."""
    same = nnx.Linear(layer.in_features, layer.in_features, use_bias=False, rngs=nnx.Rngs(0))
    same.kernel[...] = jnp.eye(layer.in_features, dtype=same.kernel[...].dtype)
    return same


def fit(
    model: Any, xs: np.ndarray, labels: np.ndarray, held: np.ndarray, *, std: Any, neighbours: int
) -> Baselines:
    """Learn from training images what the baselines need.

    Args:
        model: The network.
        xs: (N, …) training images.
        labels: Their labels.
        held: Training images apart from these, which choose ODIN's step.
        std: What pixels were divided by.
        neighbours: Which neighbour's distance counts, the k-th.

    Returns:
        What `scores` takes.
    """
    features = penultimate(model)
    seen = outputs(features, xs)
    classes = np.unique(labels)
    means = np.stack([seen[labels == label].mean(axis=0) for label in classes])
    centred = seen - means[np.searchsorted(classes, labels)]
    steps = [step / float(np.mean(std)) for step in _STEPS]
    sure = [_odin(model, held, step).mean() for step in steps]
    return Baselines(
        model,
        features,
        steps[int(np.argmin(sure))],
        means,
        EmpiricalCovariance(assume_centered=True).fit(centred),
        _neighbours(_unit(seen), neighbours),
        _neighbours(_flat(xs), neighbours),
    )


def scores(known: Baselines, xs: np.ndarray) -> dict[str, np.ndarray]:
    """Return every baseline's score of every image, by name."""
    return {name: group(known, xs)[name] for group, names in GROUPS.items() for name in names}


def from_logits(logits: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores that the logits alone give, (N, C) to (N,)."""
    logits = np.asarray(logits, np.float64)
    rest = np.sort(logits, axis=1)
    return {
        "msp": logsumexp(rest[:, :-1], axis=1) - rest[:, -1],
        "max_logit": -rest[:, -1],
        "energy": -logsumexp(logits, axis=1),
    }


def _logits_group(known: Baselines, xs: np.ndarray) -> dict[str, np.ndarray]:
    return from_logits(outputs(known.model, xs))


def _odin_group(known: Baselines, xs: np.ndarray) -> dict[str, np.ndarray]:
    return {"odin": _odin(known.model, xs, known.step)}


def _mahalanobis_group(known: Baselines, xs: np.ndarray) -> dict[str, np.ndarray]:
    seen = outputs(known.features, xs)
    away = [known.covariance.mahalanobis(seen - mean) for mean in known.means]
    return {"mahalanobis": np.min(away, axis=0)}


def _features_group(known: Baselines, xs: np.ndarray) -> dict[str, np.ndarray]:
    seen = _unit(outputs(known.features, xs))
    return {"knn_features": known.near_features.kneighbors(seen)[0][:, -1]}


def _pixels_group(known: Baselines, xs: np.ndarray) -> dict[str, np.ndarray]:
    return {"knn_pixels": known.near_pixels.kneighbors(_flat(xs))[0][:, -1]}


GROUPS = {
    _logits_group: ("msp", "max_logit", "energy"),
    _odin_group: ("odin",),
    _mahalanobis_group: ("mahalanobis",),
    _features_group: ("knn_features",),
    _pixels_group: ("knn_pixels",),
}


def outputs(function: Any, xs: np.ndarray) -> np.ndarray:
    """Return what a network gives for each image, in float64, block by block."""
    return np.concatenate(
        [np.asarray(_outputs(function, xs[i : i + _BLOCK])) for i in range(0, len(xs), _BLOCK)]
    ).astype(np.float64)


@jax.jit
def _outputs(function: Any, xs: Any) -> jax.Array:
    return jax.vmap(function)(jnp.asarray(xs))


def _odin(model: Any, xs: np.ndarray, step: float) -> np.ndarray:
    """Return minus the log of the largest tempered probability after ODIN's step."""
    moved = np.concatenate(
        [np.asarray(_nudged(model, xs[i : i + _BLOCK], step)) for i in range(0, len(xs), _BLOCK)]
    )
    # In float64: at this temperature probabilities differ in the fourth digit.
    return -log_softmax(outputs(model, moved) / TEMPERATURE, axis=1).max(axis=1)


@jax.jit
def _nudged(model: Any, xs: Any, step: Any) -> jax.Array:
    def sure(x: jax.Array) -> jax.Array:
        return jnp.max(jax.nn.log_softmax(model(x) / TEMPERATURE))

    xs = jnp.asarray(xs)
    return xs + step * jnp.sign(jax.vmap(jax.grad(sure))(xs))


def _neighbours(points: np.ndarray, count: int) -> NearestNeighbors:
    return NearestNeighbors(n_neighbors=count, algorithm="brute").fit(points)


def _flat(xs: np.ndarray) -> np.ndarray:
    return np.asarray(xs).reshape(len(xs), -1)


def _unit(features: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1)
