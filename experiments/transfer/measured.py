"""What is measured on each labelled data set: spectra, and what features are good for."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from experiments.harness import run as _run
from experiments.harness.common import quartiles
from experiments.ood.baselines import outputs, penultimate
from experiments.transfer.sets import OWN, Labelled
from foliax import zoo
from foliax.apps import transfer

PREDICTORS = {
    "spectral": "spectral distance",
    "trace": "difference of the median log trace",
    "pixels": "distance to the nearest training image",
}
TARGETS = ("retrained", "over_untrained", "over_pixels", "pixels")
_STRENGTHS = (
    1e-3,
    1e-2,
    1e-1,
)  # inverse penalties that a quarter of the training part chooses from
_STEPS = 5000  # of the fit at most
_NEIGHBOURS = 10_000  # training images at most that neighbours are looked for among
_UNTRAINED = 3  # networks of random weights
_BATCH = 128


class Measured(NamedTuple):
    """One data set.

    Attributes:
        eigenvalues: (N, k) of G at its first test images.
        logs: The same, as logarithms.
        retrained: Accuracy with the last layer of the network retrained.
        untrained: The same with networks of random weights, their mean.
        pixels: Accuracy of logistic regression on pixels.
        as_it_is: Accuracy of the network as it is, where labels mean the same; else None.
        nearest: Mean distance to the nearest training image of the network.
        num_train: Training images.
        num_test: Test images.
        num_classes: Classes in the training part.
    """

    eigenvalues: np.ndarray
    logs: np.ndarray
    retrained: float
    untrained: float
    pixels: float
    as_it_is: float | None
    nearest: float
    num_train: int
    num_test: int
    num_classes: int


def measure(
    model: Any, dataset: Any, sets: Mapping[str, Labelled], *, images: int, seed: int
) -> dict[str, Measured]:
    """Measure every set.

    Args:
        model: The trained network.
        dataset: What it was trained on.
        sets: The labelled sets by name.
        images: How many test images of each get a spectrum, at most.
        seed: Draws the untrained network and the held-out quarter.
    """
    known = np.random.default_rng(seed).permutation(len(dataset.train_x))[:_NEIGHBOURS]
    near = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(_flat(dataset.train_x[known]))
    blank = [penultimate(untrained(model, seed + i)) for i in range(_UNTRAINED)]
    found = {}
    bar = tqdm(sets.items(), desc="data sets", leave=False, dynamic_ncols=True)
    for name, labelled in bar:
        bar.set_postfix_str(name)
        xs = labelled.test_x[:images]
        size = min(_BATCH, images)
        values = _run.sweep(_spectrum, model, xs, batch=size, progress=False)
        layer, raw, *random = (
            retrained(
                outputs(function, labelled.train_x),
                labelled.train_y,
                outputs(function, labelled.test_x),
                labelled.test_y,
                seed=seed,
            )
            for function in (penultimate(model), _same, *blank)
        )
        alike = np.array_equal(labelled.test_y, sets[OWN].test_y)
        found[name] = Measured(
            eigenvalues=values,
            logs=np.asarray(transfer.log_spectra(values)),
            retrained=layer,
            untrained=float(np.mean(random)),
            pixels=raw,
            as_it_is=zoo.accuracy(model, labelled.test_x, labelled.test_y) if alike else None,
            nearest=float(np.mean(near.kneighbors(_flat(xs))[0])),
            num_train=len(labelled.train_y),
            num_test=len(labelled.test_y),
            num_classes=len(np.unique(labelled.train_y)),
        )
    return found


def _spectrum(model: Any, x: jax.Array) -> jax.Array:
    return transfer.spectra(model, x[None])[0]


@jax.tree_util.Partial
def _same(x: jax.Array) -> jax.Array:
    return x.ravel()


def untrained(model: Any, seed: int) -> Any:
    """Return a network of the same architecture with random weights."""
    return zoo.build(model.config, nnx.Rngs(seed + 1))


def retrained(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, *, seed: int
) -> float:
    """Return the test accuracy of logistic regression on features.

    They are standardised; how strongly the weights are held is chosen on a quarter of the training
    part, the same way for all features.
    """
    held = np.random.default_rng((seed, 2)).permutation(len(train_y)) % 4 == 0
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=_STEPS, tol=1e-3)),
        {"logisticregression__C": _STRENGTHS},
        cv=PredefinedSplit(np.where(held, 0, -1)),
    )
    right = search.fit(train_x, train_y).predict(test_x) == test_y
    return float(np.mean(right))


def _flat(xs: np.ndarray) -> np.ndarray:
    return np.asarray(xs).reshape(len(xs), -1)


# --- compared ----------------------------------------------------------------------------------


def compare(found: Mapping[str, Measured]) -> dict[str, Any]:
    """Return the numbers of every set, and how distances and accuracies are ordered.

    Args:
        found: The measured sets; the network's own first.
    """
    own = found[OWN]
    sets = {name: _row(each, own) for name, each in found.items()}
    half = len(own.logs) // 2
    rest = [row for name, row in sets.items() if name != OWN]
    changed = [row for row in rest if row["accuracy"]["as_it_is"] is not None]
    return {
        "num_images": len(own.logs),
        "sets": sets,
        "halves_of_own": _distance(own.logs[:half], own.logs[half:]),
        "num_ranked": len(rest),
        "rank_correlation": _ranks(rest, TARGETS),
        "num_changed": len(changed),
        "rank_correlation_of_changed": _ranks(changed, (*TARGETS, "as_it_is")),
        "rank_correlation_with_spectral": {
            name: _ranked(*([row["away"][each] for row in rest] for each in ("spectral", name)))
            for name in ("trace", "pixels")
        },
    }


def _ranks(rows: list[dict[str, Any]], targets: Any) -> dict[str, dict[str, dict[str, float]]]:
    """Return, for each distance and each accuracy, how the sets are ordered by both."""
    return {
        predictor: {
            target: _ranked(
                [row["away"][predictor] for row in rows],
                [row["accuracy"][target] for row in rows],
            )
            for target in targets
        }
        for predictor in PREDICTORS
    }


def _row(each: Measured, own: Measured) -> dict[str, Any]:
    told, mine = (transfer.summary(part.eigenvalues) for part in (each, own))
    return {
        "away": {
            "spectral": _distance(each.logs, own.logs),
            "trace": abs(float(told.log_trace[1] - mine.log_trace[1])),
            "pixels": each.nearest,
        },
        "accuracy": {
            "retrained": each.retrained,
            "untrained": each.untrained,
            "pixels": each.pixels,
            "over_untrained": each.retrained - each.untrained,
            "over_pixels": each.retrained - each.pixels,
            "as_it_is": each.as_it_is,
        },
        "log_eigenvalues": np.asarray(told.log_eigenvalues),
        "log_trace": np.asarray(told.log_trace),
        "trace": quartiles(each.eigenvalues.sum(axis=1, dtype=np.float64)),
        "num_spectra": len(each.logs),
        "num_train": each.num_train,
        "num_test": each.num_test,
        "num_classes": each.num_classes,
    }


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    if not len(a) or not len(b):
        return float("nan")
    return float(transfer.spectral_distance(a, b))


def _ranked(distances: list[float], others: list[float]) -> dict[str, float]:
    """Return Spearman's rank correlation with its p-value; not-a-number where all are alike."""
    if len(distances) < 3 or len(set(distances)) < 2 or len(set(others)) < 2:
        return {"rho": float("nan"), "p": float("nan")}
    ranked: Any = spearmanr(distances, others)
    return {"rho": float(ranked.statistic), "p": float(ranked.pvalue)}
