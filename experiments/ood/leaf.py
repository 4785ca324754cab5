"""The leaf's scores, with references of several families.

- predicted: the medoid of the class that the network predicts.
- prototypes: the medoids of all classes, the least and the mean over them.
- fixed: training images drawn once, the same for all, the least and the mean over them.
- many: the same with many more, without closest points.
- nearest: the nearest training image in pixels. This one is chosen by the distance, and whatever
  it scores contains that distance: for comparison only.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from sklearn.neighbors import NearestNeighbors

import foliax
from experiments.harness.run import in_parts
from experiments.ood.baselines import outputs
from foliax.apps import ood

AT_X = ("trace", "largest_eigenvalue", "effective_rank")
_LOGGED = ("trace", "largest_eigenvalue", "metric_length")  # of many orders of magnitude
Named = dict[str, np.ndarray]


def fit(
    model: Any, xs: np.ndarray, labels: np.ndarray, *, num_classes: int, fixed: int, many: int,
    flow: dict[str, Any], seed: int,
) -> dict[str, Callable[[np.ndarray], Named]]:  # fmt: skip
    """Choose references among training images: `fixed` ones, and `many` without closest points.

    `flow` has `step`, `max_steps` and `stall` of the flow to a closest point; "feet", whether any
    are found, and "every", whether from all medoids and fixed images.

    Returns:
        By family of references, what scores images by it: score[family, reduction].
    """
    order = np.random.default_rng(seed).permutation(len(xs))
    medoids = xs[ood.medoids(xs, labels, num_classes=num_classes)]
    near = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(xs.reshape(len(xs), -1))

    def by_all(family: str, points: np.ndarray, feet: bool) -> Callable[[np.ndarray], Named]:
        return partial(_by_all, model, ood.prepare(model, points), family, _options(flow, feet))

    def by_own(images: np.ndarray, family: str, points: np.ndarray) -> Named:
        return _by_own(model, images, family, points, _options(flow, flow["feet"]))

    def predicted(images: np.ndarray) -> Named:
        return by_own(images, "predicted", medoids[outputs(model, images).argmax(axis=1)])

    def nearest(images: np.ndarray) -> Named:
        places = near.kneighbors(images.reshape(len(images), -1))[1][:, 0]
        return by_own(images, "nearest", xs[places])

    every = flow["every"] and flow["feet"]
    return {
        "many": by_all("many", xs[order[-many:]], feet=False),
        "fixed": by_all("fixed", xs[order[:fixed]], feet=every),
        "prototypes": by_all("prototypes", medoids, feet=every),
        "predicted": predicted,
        "nearest": nearest,
    }


def _by_all(
    model: Any, references: ood.References, family: str, options: dict[str, Any], xs: np.ndarray
) -> Named:
    """Score each image by all references of a family."""
    fn = partial(foliax.map, ood.score, references=references, **options)
    kept = _named(in_parts(fn, model, xs, rows=1 if options["feet"] else 4))
    found = {name: kept.pop(name) for name in AT_X}
    for name, values in kept.items():
        found[f"{name}[{family}, min]"] = values.min(axis=1)
        found[f"{name}[{family}, mean]"] = values.mean(axis=1)
    return found


def _by_own(
    model: Any, xs: np.ndarray, family: str, points: np.ndarray, options: dict[str, Any]
) -> Named:
    """Score each image by its own reference."""
    kept = _named(in_parts(partial(_against_own, **options), model, xs, points))
    return {f"{name}[{family}]": v[:, 0] for name, v in kept.items() if name not in AT_X}


def _against_own(model: Any, xs: Any, points: Any, **options: Any) -> ood.Scores:
    own = jax.tree.map(lambda rows: rows[:, None], ood.prepare(model, points))
    return foliax.map(ood.score, model, xs, own, **options)


def _options(flow: dict[str, Any], feet: bool) -> dict[str, Any]:
    some = {name: flow[name] for name in ("step", "max_steps", "stall")} if feet else {}
    return {"feet": feet, "reduce": "none", "block": 1 if feet else 4, **some}


def _named(found: ood.Scores) -> Named:
    return {
        name: np.log(np.maximum(values, np.finfo(np.float32).tiny)) if name in _LOGGED else values
        for name, values in found._asdict().items()
        if values is not None and name != "status"
    }
