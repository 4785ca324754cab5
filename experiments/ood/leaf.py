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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.neighbors import NearestNeighbors

from experiments.harness.run import in_parts
from foliax.apps import ood

AT_X = ("trace", "largest_eigenvalue", "effective_rank")
_LOGGED = ("trace", "largest_eigenvalue", "metric_length")  # of many orders of magnitude
Named = dict[str, np.ndarray]


class Leaf(NamedTuple):
    """The prepared references of one network.

    Attributes:
        model: The network.
        flow: `step`, `max_steps` and `stall` of the flow to a closest point; "feet", whether any
            are found, and "every", whether from all medoids and fixed images.
        references: Those of the families prototypes, fixed and many.
        bank: The training images that the nearest is looked for in.
        near: Where it is looked for.
    """

    model: Any
    flow: dict[str, Any]
    references: dict[str, ood.References]
    bank: np.ndarray
    near: NearestNeighbors


def fit(
    model: Any, xs: np.ndarray, labels: np.ndarray, *, num_classes: int, fixed: int, many: int,
    flow: dict[str, Any], seed: int,
) -> Leaf:  # fmt: skip
    """Choose references among training images, and evaluate the network there."""
    order = np.random.default_rng(seed).permutation(len(xs))
    chosen = {
        "many": order[-many:],
        "fixed": order[:fixed],
        "prototypes": ood.medoids(xs, labels, num_classes=num_classes),
    }
    references = {name: ood.prepare(model, xs[places]) for name, places in chosen.items()}
    near = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(xs.reshape(len(xs), -1))
    return Leaf(model, flow, references, xs, near)


def families(leaf: Leaf, xs: np.ndarray) -> dict[str, Callable[[], Named]]:
    """Return, by family of references, what scores images by it: score[family, reduction]."""
    every = leaf.flow["every"] and leaf.flow["feet"]
    measures: dict[str, Callable[[], Named]] = {
        name: partial(_by_all, leaf, xs, name, feet=every and name != "many")
        for name in leaf.references
    }

    def predicted() -> Named:
        labels = np.argmax(np.asarray(_logits(leaf.model, xs)), axis=1)
        medoids = np.asarray(leaf.references["prototypes"].points)
        return _by_own(leaf, xs, "predicted", medoids[labels])

    def nearest() -> Named:
        places = leaf.near.kneighbors(xs.reshape(len(xs), -1))[1][:, 0]
        return _by_own(leaf, xs, "nearest", leaf.bank[places])

    return measures | {"predicted": predicted, "nearest": nearest}


@jax.jit
def _logits(model: Any, xs: Any) -> jax.Array:
    return jax.vmap(model)(xs)


def _by_all(leaf: Leaf, xs: np.ndarray, family: str, *, feet: bool) -> Named:
    """Score each image by all references of a family."""
    fn = partial(_against_all, references=leaf.references[family], **_options(leaf, feet))
    kept = _named(in_parts(fn, leaf.model, xs, rows=1 if feet else 4))
    found = {name: kept.pop(name) for name in AT_X}
    for name, values in kept.items():
        found[f"{name}[{family}, min]"] = values.min(axis=1)
        found[f"{name}[{family}, mean]"] = values.mean(axis=1)
    return found


def _by_own(leaf: Leaf, xs: np.ndarray, family: str, points: np.ndarray) -> Named:
    """Score each image by its own reference."""
    fn = partial(_against_own, **_options(leaf, leaf.flow["feet"]))
    kept = _named(in_parts(fn, leaf.model, xs, points))
    return {f"{name}[{family}]": v[:, 0] for name, v in kept.items() if name not in AT_X}


def _against_all(model: Any, xs: Any, *, references: ood.References, **options: Any) -> ood.Scores:
    return ood.scores(model, xs, references, **options)


def _against_own(model: Any, xs: Any, points: Any, **options: Any) -> ood.Scores:
    places = jnp.arange(len(xs))[:, None]
    return ood.scores(model, xs, ood.prepare(model, points), choice=places, **options)


def _options(leaf: Leaf, feet: bool) -> dict[str, Any]:
    flow = {name: leaf.flow[name] for name in ("step", "max_steps", "stall")} if feet else {}
    return {"feet": feet, "reduce": "none", "block": 1 if feet else 4, **flow}


def _named(found: ood.Scores) -> Named:
    return {
        name: np.log(np.maximum(values, np.finfo(np.float32).tiny)) if name in _LOGGED else values
        for name, values in found._asdict().items()
        if values is not None and name != "status"
    }
