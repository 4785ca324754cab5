"""How well scores tell outliers, what combining two of them gains, and how sure that is.

AUROC: the chance that an outlier scores higher than a test image. AUPR: outliers are the positive
class. FPR at 95 % TPR: test images are the positive class, as is usual; the share of outliers that
pass as test images when 95 % of the test images do. All of scikit-learn.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import auc, average_precision_score, roc_auc_score, roc_curve

from foliax.apps import ood
from foliax.zoo.data.outliers import OUTLIERS, synthetic_outliers

MEANINGS = OUTLIERS | {
    "held_out": "test images of classes that another network was trained without"
}


class Sets(NamedTuple):
    """What one network is tested on."""

    model: Any  # The network
    dataset: Any  # Its data
    bank_x: np.ndarray  # Training images that references, neighbours and class means come from
    bank_y: np.ndarray  # Their labels
    # By name: "held", training images apart from the bank, which calibrate; "synthetic",
    # outliers made of these; "test"; and every kind of outliers.
    images: dict[str, np.ndarray]


def sets(
    model: Any, dataset: Any, outside: dict[str, np.ndarray], *, count: int, calibration: int,
    bank: int, seed: int,
) -> Sets:  # fmt: skip
    """Draw at most `count` test images, and the training images of the bank and apart from it.

    Raises:
        ValueError: If the training set is too small.
    """
    total = len(dataset.train_y)
    if calibration >= total:
        raise ValueError(
            f"calibration must be below the {total} training images, got {calibration}"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(total)
    held, rest = dataset.train_x[order[:calibration]], order[calibration:][:bank]
    test = dataset.test_x[rng.permutation(len(dataset.test_y))[:count]]
    synthetic = synthetic_outliers(dataset, held, np.random.default_rng((seed, 100)))
    images = {"held": held, "synthetic": synthetic, "test": test, **outside}
    return Sets(model, dataset, dataset.train_x[rest], dataset.train_y[rest], images)


Named = Mapping[str, np.ndarray]
# By set of images, "held", "synthetic", "test" and the kinds of outliers: scores by name.
Parts = Mapping[str, Named]
_KNOWN = ("held", "synthetic", "test")
_TPR = 0.95


def split(images: Named, found: Named) -> Parts:
    """Cut the scores of all images, one set after the other, apart."""
    cuts = np.cumsum([len(xs) for xs in images.values()])[:-1]
    parts = {name: np.split(np.asarray(values, np.float64), cuts) for name, values in found.items()}
    return {kind: {name: part[i] for name, part in parts.items()} for i, kind in enumerate(images)}


def outside(parts: Mapping[str, Any]) -> list[str]:
    """Return the kinds of outliers."""
    return [kind for kind in parts if kind not in _KNOWN]


def not_finite(parts: Parts) -> dict[str, int]:
    """Return how many values of each score are no numbers, of scores with any."""
    counts = {
        name: int(sum((~np.isfinite(values[name])).sum() for values in parts.values()))
        for name in parts["held"]
    }
    return {name: count for name, count in counts.items() if count}


def measure(inside: np.ndarray, outliers: np.ndarray) -> dict[str, float]:
    """Return AUROC, AUPR (outliers positive) and FPR at 95 % TPR (test images positive)."""
    values = np.concatenate([inside, outliers])
    out = np.repeat([0, 1], [len(inside), len(outliers)])
    fpr, tpr, _ = roc_curve(1 - out, -values, drop_intermediate=False)
    return {
        "auroc": float(auc(fpr, tpr)),
        "aupr": float(average_precision_score(out, values)),
        "fpr95": float(fpr[np.argmax(tpr >= _TPR)]),
    }


def table(parts: Parts) -> dict[str, dict[str, dict[str, float]]]:
    """Return the measures of every score on every set, and the share called out at the threshold.

    `called` is the share of a set above the threshold that 95 % of the held training images do
    not exceed; "test" has the share of false alarms.
    """
    with jax.enable_x64(True):  # float64 scores stay what they are
        known = ood.calibrate(parts["held"], share=_TPR)
        called = {
            kind: {
                name: float(np.mean(np.asarray(beyond) > 0))
                for name, beyond in ood.exceeds(known, parts[kind]).items()
            }
            for kind in ("test", *outside(parts))
        }
    return {
        name: {"test": {"called": called["test"][name]}}
        | {
            kind: measure(inside, parts[kind][name]) | {"called": called[kind][name]}
            for kind in outside(parts)
        }
        for name, inside in parts["test"].items()
    }


def mean(rows: Mapping[str, Mapping[str, float]], key: str = "auroc") -> float:
    """Return the mean of a measure over the sets of outliers."""
    return float(np.mean([row[key] for out, row in rows.items() if out != "test"]))


class Combined(NamedTuple):
    """One number made of several scores."""

    values: dict[str, np.ndarray]  # Of each set of images
    weights: list[float]  # Of the standardised scores in it

    def synthetic(self) -> float:
        """Return the AUROC on held training images against synthetic outliers, which chooses."""
        held, synthetic = self.values["held"], self.values["synthetic"]
        labels = np.repeat([0, 1], [len(held), len(synthetic)])
        return float(roc_auc_score(labels, np.concatenate([held, synthetic])))


def summed(parts: Parts, names: Sequence[str]) -> Combined:
    """Return the sum of standardised scores: calibrated on training images alone."""
    with jax.enable_x64(True):
        known = _calibrated({str(i): parts["held"][name] for i, name in enumerate(names)})

        def total(rows: np.ndarray) -> np.ndarray:
            return np.asarray(_sum(known, {str(i): values for i, values in enumerate(rows.T)}))

        return _combined(parts, names, total, [1.0] * len(names))


# By number, not by name: one program serves all names.
_calibrated = jax.jit(ood.calibrate)
_sum = jax.jit(ood.combine)


def fitted(parts: Parts, names: Sequence[str]) -> Combined:
    """Return the decision function of a logistic regression of training on synthetic images."""
    held, synthetic = _rows(parts["held"], names), _rows(parts["synthetic"], names)
    location, scale = held.mean(axis=0), held.std(axis=0)
    scale = np.where(scale > 0, scale, 1)
    out = np.repeat([0, 1], [len(held), len(synthetic)])
    known = LogisticRegression(max_iter=1000).fit(
        (np.concatenate([held, synthetic]) - location) / scale, out
    )

    def total(rows: np.ndarray) -> np.ndarray:
        return known.decision_function((rows - location) / scale)

    return _combined(parts, names, total, known.coef_[0].tolist())


WAYS = {"sum": summed, "logistic": fitted}


def _rows(values: Named, names: Sequence[str]) -> np.ndarray:
    return np.stack([values[name] for name in names], axis=1)


def _combined(parts: Parts, names: Sequence[str], total: Any, weights: list[float]) -> Combined:
    rows = {kind: _rows(values, names) for kind, values in parts.items()}
    cuts = np.cumsum([len(each) for each in rows.values()])[:-1]
    totals = np.split(total(np.concatenate(list(rows.values()))), cuts)
    return Combined(dict(zip(rows, totals, strict=True)), weights)


def bootstrap(base: Combined, *, resamples: int, seed: int) -> Callable[[Combined], dict[str, Any]]:
    """Return what gives the gain of a combination in mean AUROC, with its 95 % interval.

    Test images and outliers are drawn anew with replacement, the same draws for both.
    """
    rng = np.random.default_rng(seed)
    sizes = {kind: len(base.values[kind]) for kind in ("test", *outside(base.values))}
    weights = {
        kind: rng.multinomial(size, np.full(size, 1 / size), size=resamples) / size
        for kind, size in sizes.items()
    }
    before = _wins(base)

    def gain(more: Combined) -> dict[str, Any]:
        drawn, each = [], {}
        for kind, wins in _wins(more).items():
            change = wins - before[kind]
            # The AUROC of a draw is its weights on both sides of the table of wins.
            drawn.append(((weights["test"] @ change) * weights[kind]).sum(axis=1))
            each[kind] = float(change.mean())
        low, high = np.quantile(np.mean(drawn, axis=0), (0.025, 0.975))
        return {
            "gain": float(np.mean(list(each.values()))),
            "low": float(low),
            "high": float(high),
            "by_set": each,
            "synthetic": more.synthetic(),
            "weights": more.weights,
        }

    return gain


def _wins(combined: Combined) -> dict[str, np.ndarray]:
    """Return, for each pair of a test image and an outlier, 1 where the outlier scores higher."""
    inside = combined.values["test"][:, None]
    return {
        kind: ((row := combined.values[kind][None]) > inside).astype(np.float32)
        + 0.5 * (row == inside).astype(np.float32)
        for kind in outside(combined.values)
    }


def partners(
    parts: Parts, base: Sequence[str], candidates: Sequence[str], *, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Return the gain of each candidate beside the base, by both ways to combine.

    `resamples` and `seed` are those of the bootstrap.
    """
    result: dict[str, dict[str, Any]] = {name: {} for name in candidates}
    for way, combine in WAYS.items():
        gain = bootstrap(combine(parts, base), resamples=resamples, seed=seed)
        for name in candidates:
            result[name][way] = gain(combine(parts, [*base, name]))
    return result


def choose(gains: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> tuple[str, str]:
    """Return the partner and the way to combine that tell synthetic outliers best.

    Every score says that the higher, the farther out: a fit that turns it round is not chosen.
    """
    pairs = [(n, way) for n in names for way in WAYS if min(gains[n][way]["weights"]) >= 0]
    return max(pairs, key=lambda pair: gains[pair[0]][pair[1]]["synthetic"])
