"""What is measured on each labelled data set, spectra and features, and how the sets compare."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

import foliax
from experiments.harness.populations import distance_to, quartiles, rank_correlation
from experiments.harness.run import sweep
from experiments.ood.baselines import outputs
from experiments.transfer.sets import OWN, Labelled
from foliax import zoo
from foliax.apps import transfer

PREDICTORS = {
    "spectral": "spectral distance",
    "trace": "difference of the median log trace",
    "pixels": "distance to the nearest training image",
}
TARGETS = ("retrained", "over_untrained", "over_pixels", "pixels")
_STRENGTHS = (1e-3, 1e-2, 1e-1)  # inverse penalties, chosen from on a quarter of the training part
_STEPS = 5000  # of the fit at most
_NEIGHBOURS = 10_000  # training images at most that neighbours are looked for among
_UNTRAINED = 3  # networks of random weights
_BATCH = 128


class Measured(NamedTuple):
    """One data set."""

    eigenvalues: np.ndarray  # (N, k) of G at its first test images
    # Of the last layer retrained; the same untrained, the mean of networks of random weights; of
    # logistic regression on pixels; and of the network as_it_is, where labels mean the same, else
    # None.
    accuracy: dict[str, Any]
    nearest: float  # Mean distance to the nearest training image of the network
    sizes: Mapping[str, int]  # Numbers of training images, test images and classes

    @property
    def logs(self) -> np.ndarray:
        """Return the logarithms of the eigenvalues."""
        return np.asarray(transfer.log_spectra(self.eigenvalues))


def measure(
    model: Any, dataset: Any, sets: Mapping[str, Labelled], *, images: int, seed: int
) -> dict[str, Measured]:
    """Measure every set, its spectra at so many test images at most."""
    known = np.random.default_rng(seed).permutation(len(dataset.train_x))[:_NEIGHBOURS]
    near = distance_to(dataset.train_x[known])
    blank = [zoo.penultimate(untrained(model, seed + i)) for i in range(_UNTRAINED)]
    functions = (zoo.penultimate(model), _pixels, *blank)
    found = {}
    for name, labelled in (bar := tqdm(sets.items(), desc="data sets", leave=False)):
        bar.set_postfix_str(name)
        xs = labelled.test_x[:images]
        layer, raw, *random = (retrained(function, labelled, seed=seed) for function in functions)
        alike = np.array_equal(labelled.test_y, sets[OWN].test_y)
        found[name] = Measured(
            sweep(_spectrum, model, xs, batch=min(_BATCH, images), progress=False),
            {
                "retrained": layer,
                "untrained": float(np.mean(random)),
                "pixels": raw,
                "as_it_is": zoo.accuracy(model, labelled.test_x, labelled.test_y)
                if alike
                else None,
            },
            float(np.mean(near(xs))),
            {
                "num_train": len(labelled.train_y),
                "num_test": len(labelled.test_y),
                "num_classes": len(np.unique(labelled.train_y)),
            },
        )
    return found


def _spectrum(model: Any, x: jax.Array) -> jax.Array:
    return foliax.spectrum(model, x).eigenvalues


@jax.tree_util.Partial
def _pixels(x: jax.Array) -> jax.Array:
    return x.ravel()


def untrained(model: Any, seed: int) -> Any:
    """Return a network of the same architecture with random weights."""
    return zoo.build(model.config, nnx.Rngs(seed + 1))


def retrained(function: Any, labelled: Labelled, *, seed: int) -> float:
    """Return the test accuracy of logistic regression on standardised features.

    Its penalty is chosen on a quarter of the training part.
    """
    held_out = np.random.default_rng((seed, 2)).permutation(len(labelled.train_y)) % 4 == 0
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=_STEPS, tol=1e-3)),
        {"logisticregression__C": _STRENGTHS},
        cv=PredefinedSplit(np.where(held_out, 0, -1)),
    )
    search.fit(outputs(function, labelled.train_x), labelled.train_y)
    right = search.predict(outputs(function, labelled.test_x)) == labelled.test_y
    return float(np.mean(right))


def compare(found: Mapping[str, Measured]) -> dict[str, Any]:
    """Return the numbers of every set, and how distances and accuracies are ordered."""
    own = found[OWN]
    sets = {name: _row(each, own) for name, each in found.items()}
    half = len(own.logs) // 2
    rest = [row for name, row in sets.items() if name != OWN]
    changed = [row for row in rest if row["accuracy"]["as_it_is"] is not None]
    return {
        "num_images": len(own.logs),
        "sets": sets,
        "halves_of_own": float(transfer.spectral_distance(own.logs[:half], own.logs[half:])),
        "num_ranked": len(rest),
        "rank_correlation": _ranks(rest, TARGETS),
        "num_changed": len(changed),
        "rank_correlation_of_changed": _ranks(changed, (*TARGETS, "as_it_is")),
        "rank_correlation_with_spectral": {
            name: _ranked(rest, ("away", "spectral"), ("away", name))
            for name in ("trace", "pixels")
        },
    }


def _ranks(rows: list[dict[str, Any]], targets: Any) -> dict[str, dict[str, dict[str, float]]]:
    """Return, for each distance and each accuracy, how the sets are ordered by both."""
    return {
        predictor: {
            target: _ranked(rows, ("away", predictor), ("accuracy", target)) for target in targets
        }
        for predictor in PREDICTORS
    }


def _ranked(rows: list[dict[str, Any]], *columns: tuple[str, str]) -> dict[str, float]:
    """Return Spearman's rank correlation with its p-value; NaN where all are alike."""
    a, b = ([row[group][name] for row in rows] for group, name in columns)
    return dict(zip(("rho", "p"), rank_correlation(a, b), strict=True))


def _row(each: Measured, own: Measured) -> dict[str, Any]:
    summary, mine = (transfer.summary(part.eigenvalues) for part in (each, own))
    accuracy = each.accuracy
    return {
        "away": {
            "spectral": float(transfer.spectral_distance(each.logs, own.logs)),
            "trace": abs(float(summary.log_trace[1] - mine.log_trace[1])),
            "pixels": each.nearest,
        },
        "accuracy": accuracy
        | {f"over_{n}": accuracy["retrained"] - accuracy[n] for n in ("untrained", "pixels")},
        "log_eigenvalues": np.asarray(summary.log_eigenvalues),
        "log_trace": np.asarray(summary.log_trace),
        "trace": quartiles(each.eigenvalues.sum(axis=1, dtype=np.float64)),
        "num_spectra": len(each.logs),
        **each.sizes,
    }
