"""The leaf's scores, with references of several families.

- predicted: the medoid of the class that the network predicts.
- prototypes: the medoids of all classes, the least and the mean over them.
- fixed: training images drawn once, the same for all, the least and the mean over them.
- many: the same with many more, without feet.
- nearest: the nearest training image in pixels. This one is chosen by the distance, and whatever
  it scores contains that distance: for comparison only.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.neighbors import NearestNeighbors

from experiments.harness import run as _run
from foliax.apps import ood

FAMILIES = {
    "predicted": "medoid of the predicted class",
    "prototypes": "medoids of all classes",
    "fixed": "fixed random training images",
    "many": "many fixed random training images",
    "nearest": "nearest training image, chosen by distance: for comparison only",
}
AT_X = ("trace", "largest_eigenvalue", "effective_rank")
_LOGGED = ("trace", "largest_eigenvalue", "metric_length")  # of many orders of magnitude


@dataclass(frozen=True)
class Flow:
    """How feet are found, and from how many references.

    Attributes:
        step: Length of a step, normalised units.
        max_steps: Steps at most.
        stall: Tangent fraction at which a foot is reached.
        every: Whether feet are found from all medoids and fixed images; otherwise from the
            predicted class and the nearest image alone.
        feet: Whether any feet are found.
    """

    step: float
    max_steps: int
    stall: float
    every: bool
    feet: bool


class Leaf(NamedTuple):
    """The prepared references of one network.

    Attributes:
        model: The network.
        flow: How feet are found.
        prototypes: The medoids, by class.
        fixed: A few training images.
        many: Many of them.
        bank: The training images that the nearest is looked for in.
        near: Where it is looked for.
    """

    model: Any
    flow: Flow
    prototypes: ood.References
    fixed: ood.References
    many: ood.References
    bank: np.ndarray
    near: NearestNeighbors


def fit(
    model: Any, xs: np.ndarray, labels: np.ndarray, *, num_classes: int, fixed: int, many: int,
    flow: Flow, seed: int,
) -> Leaf:  # fmt: skip
    """Choose references among training images, and look at the network there.

    Args:
        model: The network.
        xs: Training images.
        labels: Their labels.
        num_classes: C.
        fixed: How many fixed images.
        many: How many without feet.
        flow: How feet are found.
        seed: Draws the fixed ones.

    Returns:
        What `scores` takes.
    """
    order = np.random.default_rng(seed).permutation(len(xs))
    chosen = ood.medoids(xs, labels, num_classes=num_classes)
    near = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(xs.reshape(len(xs), -1))
    return Leaf(
        model,
        flow,
        ood.prepare(model, xs[chosen]),
        ood.prepare(model, xs[order[:fixed]]),
        ood.prepare(model, xs[order[-many:]]),
        xs,
        near,
    )


def groups(leaf: Leaf, xs: np.ndarray) -> Iterator[tuple[str, Callable[[], dict[str, np.ndarray]]]]:
    """Return what is measured together: its name, and a function from nothing to scores by name.

    Args:
        leaf: The references.
        xs: The images to score.
    """
    every = leaf.flow.every and leaf.flow.feet
    yield "many", lambda: _over(leaf, xs, "many", leaf.many, feet=False)
    yield "fixed", lambda: _over(leaf, xs, "fixed", leaf.fixed, feet=every)
    yield "prototypes", lambda: _over(leaf, xs, "prototypes", leaf.prototypes, feet=every)
    yield "predicted", lambda: _predicted(leaf, xs)
    yield "nearest", lambda: _nearest(leaf, xs)


def scores(leaf: Leaf, xs: np.ndarray, tell: Callable[[str], None]) -> dict[str, np.ndarray]:
    """Return all scores of every image, by name: score[family, reduction].

    Args:
        leaf: The references.
        xs: The images to score.
        tell: Called with the name of each family before it is measured.
    """
    found: dict[str, np.ndarray] = {}
    for name, measure in groups(leaf, xs):
        tell(name)
        found |= measure()
    return found


def _over(
    leaf: Leaf, xs: np.ndarray, family: str, references: ood.References, *, feet: bool
) -> dict[str, np.ndarray]:
    fn = partial(_against_all, references=references, **_options(leaf, feet=feet))
    kept = _named(_run.in_parts(fn, leaf.model, xs, rows=1 if feet else 4))
    found = {name: kept[name] for name in AT_X}
    for name, values in kept.items():
        if name not in AT_X:
            found[f"{name}[{family}, min]"] = values.min(axis=1)
            found[f"{name}[{family}, mean]"] = values.mean(axis=1)
    return found


def _predicted(leaf: Leaf, xs: np.ndarray) -> dict[str, np.ndarray]:
    labels = np.argmax(np.asarray(_logits(leaf.model, xs)), axis=1)
    return _one(leaf, xs, "predicted", np.asarray(leaf.prototypes.points)[labels])


def _nearest(leaf: Leaf, xs: np.ndarray) -> dict[str, np.ndarray]:
    places = leaf.near.kneighbors(xs.reshape(len(xs), -1))[1][:, 0]
    return _one(leaf, xs, "nearest", leaf.bank[places])


@jax.jit
def _logits(model: Any, xs: Any) -> jax.Array:
    return jax.vmap(model)(xs)


def _one(leaf: Leaf, xs: np.ndarray, family: str, points: np.ndarray) -> dict[str, np.ndarray]:
    """Score each image by its own reference."""
    fn = partial(_against_own, **_options(leaf, feet=leaf.flow.feet))
    kept = _named(_run.in_parts(fn, leaf.model, xs, points))
    return {f"{name}[{family}]": v[:, 0] for name, v in kept.items() if name not in AT_X}


def _against_all(model: Any, xs: Any, *, references: ood.References, **options: Any) -> ood.Scores:
    return ood.scores(model, xs, references, **options)


def _against_own(model: Any, xs: Any, points: Any, **options: Any) -> ood.Scores:
    places = jnp.arange(len(xs))[:, None]
    return ood.scores(model, xs, ood.prepare(model, points), choice=places, **options)


def _options(leaf: Leaf, *, feet: bool) -> dict[str, Any]:
    """Return the options of `ood.scores` by which references stay apart."""
    options: dict[str, Any] = {"feet": feet, "reduce": "none", "block": 1 if feet else 4}
    if feet:
        flow = leaf.flow
        options |= {"step": flow.step, "max_steps": flow.max_steps, "stall": flow.stall}
    return options


def _named(found: ood.Scores) -> dict[str, np.ndarray]:
    return {
        name: np.log(np.maximum(values, np.finfo(np.float32).tiny)) if name in _LOGGED else values
        for name, values in found._asdict().items()
        if values is not None and name != "status"
    }
