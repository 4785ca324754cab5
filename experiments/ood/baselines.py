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

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax, logsumexp
from sklearn.covariance import EmpiricalCovariance

from experiments.harness.populations import distance_to
from foliax import zoo

NAMES = ("msp", "max_logit", "energy", "odin", "mahalanobis", "knn_features", "knn_pixels")
TEMPERATURE = 1000.0
STEPS = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)  # of ODIN, in pixel units
_BLOCK = 256


def fit(
    model: Any, xs: np.ndarray, labels: np.ndarray, held: np.ndarray, *, std: Any
) -> dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]]:
    """Learn from training images what the baselines need; those held apart choose ODIN's step.

    Returns:
        What gives the scores of images by name, for each group that is computed together.
    """
    network, step = zoo.penultimate(model), odin_step(model, held, std)
    features = outputs(network, xs)
    means = np.stack([features[labels == label].mean(axis=0) for label in np.unique(labels)])
    centred = features - means[np.searchsorted(np.unique(labels), labels)]
    covariance = EmpiricalCovariance(assume_centered=True).fit(centred)
    nearest, nearest_pixels = distance_to(_unit(features)), distance_to(xs)

    def mahalanobis(xs: np.ndarray) -> np.ndarray:
        features = outputs(network, xs)
        return np.min([covariance.mahalanobis(features - mean) for mean in means], axis=0)

    return {
        "msp, max_logit, energy": lambda xs: from_logits(outputs(model, xs)),
        "odin": lambda xs: {"odin": odin(model, xs, step)},
        "mahalanobis": lambda xs: {"mahalanobis": mahalanobis(xs)},
        "knn_features": lambda xs: {"knn_features": nearest(_unit(outputs(network, xs)))},
        "knn_pixels": lambda xs: {"knn_pixels": nearest_pixels(xs)},
    }


def from_logits(logits: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores that the logits alone give, (N, C) to (N,)."""
    ordered = np.sort(np.asarray(logits, np.float64), axis=1)
    return {
        "msp": logsumexp(ordered[:, :-1], axis=1) - ordered[:, -1],
        "max_logit": -ordered[:, -1],
        "energy": -logsumexp(logits, axis=1),
    }


def outputs(function: Any, xs: np.ndarray) -> np.ndarray:
    """Return what a network gives for each image, in float64, block by block."""
    return _in_blocks(_outputs, function, xs).astype(np.float64)


@jax.jit
def _outputs(function: Any, xs: Any) -> jax.Array:
    return jax.vmap(function)(jnp.asarray(xs))


def _in_blocks(function: Any, model: Any, xs: np.ndarray, *more: Any) -> np.ndarray:
    starts = range(0, len(xs), _BLOCK)
    return np.concatenate([np.asarray(function(model, xs[i : i + _BLOCK], *more)) for i in starts])


def odin_step(model: Any, held: np.ndarray, std: Any) -> float:
    """Return the step, in the units of x, that makes training images most confident."""
    steps = [step / float(np.mean(std)) for step in STEPS]
    return min(steps, key=lambda step: odin(model, held, step).mean())


def odin(model: Any, xs: np.ndarray, step: float) -> np.ndarray:
    """Return minus the log of the largest tempered probability after ODIN's step."""
    moved = _in_blocks(perturbed, model, xs, step)
    # In float64: at this temperature probabilities differ in the fourth digit.
    return -log_softmax(outputs(model, moved) / TEMPERATURE, axis=1).max(axis=1)


@jax.jit
def perturbed(model: Any, xs: Any, step: Any) -> jax.Array:
    """Return images moved along the sign of the gradient of the largest probability."""

    def confidence(x: jax.Array) -> jax.Array:
        return jnp.max(jax.nn.log_softmax(model(x) / TEMPERATURE))

    xs = jnp.asarray(xs)
    return xs + step * jnp.sign(jax.vmap(jax.grad(confidence))(xs))


def _unit(features: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1)
