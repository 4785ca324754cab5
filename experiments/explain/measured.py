"""What is said of many explanations: which classes are nearest, by which distance, and to whom."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import NearestNeighbors

import foliax
from experiments.harness import run as _run
from experiments.harness.common import predict, quartiles
from experiments.harness.judge import Judge
from foliax.apps import explain

_AT_ONCE = 8  # images on an accelerator, with a walk for every class


def explain_images(model: Any, xs: Any, *, step: float, max_steps: int) -> Any:
    """Explain many images, to numpy."""
    block = 1 if _run.on_cpu() else min(len(xs), _AT_ONCE) * 10
    fn = partial(explain.explanations, step=step, max_steps=max_steps, block=block)
    return _run.in_parts(fn, model, xs)


def orders(found: Any) -> dict[str, np.ndarray]:
    """Return the classes of each image from the nearest on, (N, C), by several distances."""
    near, fisher = found.nearest, found.fisher
    ordered = jax.vmap(explain.order)
    label = jnp.asarray(found.label)
    zero = np.zeros_like(near.status)
    by = {
        "input": ordered(near.chord, near.status, label),
        "metric": ordered(fisher.fisher, fisher.status, label),
        "bound": ordered(fisher.bound, zero, label),
        "probability": ordered(-found.probabilities, zero, label),
    }
    return {name: np.asarray(values) for name, values in by.items()}


def rivals(model: Any, dataset: Any, xs: Any, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return, for each image, the class that plainer means would name; −1 where they name none.

    Args:
        model: The classifier.
        dataset: Its data.
        xs: The images.
        labels: Their predicted labels.

    Returns:
        confusion: the commonest wrong label that test images of the class are given. pixels: the
        class of the nearest training image of another class.
    """
    every = np.concatenate(
        [np.asarray(predict(model, part)[0]) for part in np.array_split(dataset.test_x, 20)]
    )
    wrong = confusion_matrix(dataset.test_y, every, labels=np.arange(dataset.num_classes))
    np.fill_diagonal(wrong, 0)
    confused = np.where(wrong.max(axis=1) > 0, wrong.argmax(axis=1), -1)
    nearest = np.full(len(xs), -1)
    for label in np.unique(labels):
        others = dataset.train_y != label
        search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(
            _flat(dataset.train_x[others])
        )
        mine = labels == label
        places = search.kneighbors(_flat(xs[mine]), return_distance=False)[:, 0]
        nearest[mine] = dataset.train_y[others][places]
    return {"confusion": confused[labels], "pixels": nearest}


def summary(
    found: Any, dataset: Any, truth: np.ndarray, named: dict[str, np.ndarray], judge: Judge
) -> dict[str, Any]:
    """Return the statistics of a population of explanations."""
    by, labels = orders(found), found.label
    first = {name: values[:, 0] for name, values in by.items()}
    others = np.arange(found.probabilities.shape[1]) != labels[:, None]
    reached = {
        name: (move.status == foliax.Status.arrived) & others
        for name, move in (("input", found.nearest), ("metric", found.fisher))
    }
    correlations = jax.vmap(explain.rank_correlation)(
        found.nearest.chord, found.fisher.fisher, reached["input"] & reached["metric"]
    )
    missed = labels != truth
    every = np.arange(len(labels))
    return {
        "num_images": len(labels),
        "reached": {name: float(where.sum() / others.sum()) for name, where in reached.items()},
        "nearest_in_input_is": {
            "nearest in the metric of G": _share(first["input"] == first["metric"]),
            "second most probable": _share(first["input"] == first["probability"]),
            "commonest confusion": _share(
                (first["input"] == named["confusion"])[named["confusion"] >= 0]
            ),
            "nearest training image of another class": _share(first["input"] == named["pixels"]),
        },
        "second_probable_is": {
            "nearest in the metric of G": _share(first["probability"] == first["metric"]),
            "nearest by the bound": _share(first["probability"] == first["bound"]),
            "commonest confusion": _share(
                (first["probability"] == named["confusion"])[named["confusion"] >= 0]
            ),
            "nearest training image of another class": _share(
                first["probability"] == named["pixels"]
            ),
        },
        "misclassified": {
            "count": int(missed.sum()),
            "true_class_nearest_in_input": _share((first["input"] == truth)[missed]),
            "true_class_second_probable": _share((first["probability"] == truth)[missed]),
        },
        "rank_correlation": quartiles(correlations),
        "nearest_distance": {
            "input": quartiles(found.nearest.chord[every, first["input"]]),
            "metric": quartiles(found.fisher.fisher[every, first["metric"]]),
        },
        "all_distances": {
            "input": quartiles(found.nearest.chord[reached["input"]]),
            "metric": quartiles(found.fisher.fisher[reached["metric"]]),
        },
        "length_over_chord": _over(found.nearest.length, found.nearest.chord, reached["input"]),
        "over_bound": {
            "input": _over(found.nearest.fisher, found.nearest.bound, reached["input"]),
            "metric": _over(found.fisher.fisher, found.fisher.bound, reached["metric"]),
        },
        "steps": quartiles(found.nearest.num_steps[reached["input"]]),
        "judge": _judged(found, reached["input"], dataset, judge),
    }  # fmt: skip


def _judged(found: Any, reached: np.ndarray, dataset: Any, judge: Judge) -> dict[str, Any]:
    """Return what an independent classifier says of the images at the boundaries, clipped."""
    rows, classes = np.nonzero(reached)
    if not len(rows):
        return {"accuracy": judge.accuracy, "sees_the_class": None, "sees_the_label": None}
    seen = judge.predict(np.asarray(dataset.box.clip(found.nearest.end[rows, classes])))
    return {
        "accuracy": judge.accuracy,
        "sees_the_class": _share(seen == classes),
        "sees_the_label": _share(seen == found.label[rows]),
    }


def records(found: Any, places: Any, named: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return every image: its classes with their distances, and their orders."""
    by = orders(found)
    moves = {"smallest_in_input": found.nearest, "smallest_in_metric": found.fisher}
    return [
        {
            "place": int(place),
            "label": found.label[i],
            "probability": found.probabilities[i],
            "orders": {name: values[i, :-1] for name, values in by.items()},
            "rivals": {name: values[i] for name, values in named.items()},
        }
        | {
            name: {
                "status": [foliax.Status(int(s)).name for s in move.status[i]],
                "chord": move.chord[i],
                "length": move.length[i],
                "fisher": move.fisher[i],
                "bound": move.bound[i],
            }
            for name, move in moves.items()
        }
        for i, place in enumerate(places)
    ]  # fmt: skip


def _over(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> dict[str, float]:
    return quartiles(a[where] / b[where])


def _share(where: np.ndarray) -> float | None:
    return float(np.mean(where)) if len(where) else None


def _flat(images: Any) -> np.ndarray:
    images = np.asarray(images, np.float64)
    return images.reshape(len(images), -1)
