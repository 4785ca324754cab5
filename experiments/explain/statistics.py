"""Many explanations in numbers: which classes are nearest by which distance, beside baselines."""

from functools import partial
from typing import Any

import jax
import numpy as np
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import NearestNeighbors

import foliax
from experiments.harness.judge import Judge
from experiments.harness.populations import flat, pick, predict, quartiles, status_name
from experiments.harness.run import in_parts, on_cpu
from foliax.apps import explain

_AT_ONCE = 8  # images on an accelerator, with a walk for every class


def explain_images(model: Any, xs: Any, *, step: float, max_steps: int) -> Any:
    """Explain many images, to numpy."""
    block = 1 if on_cpu() else min(len(xs), _AT_ONCE)
    fn = partial(foliax.map, explain.explain, step=step, max_steps=max_steps, block=block)
    return in_parts(fn, model, xs)


def orders(found: Any) -> dict[str, np.ndarray]:
    """Return the classes of each image from the nearest on, (N, C), by several distances."""
    near, fisher = found.nearest, found.fisher
    known = np.ones_like(near.chord, dtype=bool)
    by = {
        "input": (near.chord, near.status == foliax.Status.arrived),
        "metric": (fisher.fisher, fisher.status == foliax.Status.arrived),
        "bound": (fisher.bound, known),
        "probability": (-found.probabilities, known),
    }
    ordered = jax.vmap(explain.order)
    return {
        name: np.asarray(ordered(distances, reached, found.label))
        for name, (distances, reached) in by.items()
    }


def rivals(model: Any, dataset: Any, xs: Any, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return, for each image, the class that baselines call nearest; −1 where they name none.

    confusion: the commonest wrong label of test images of the class. pixels: the class of the
    nearest training image of another class.
    """
    every = [np.asarray(predict(model, part)[0]) for part in np.array_split(dataset.test_x, 20)]
    wrong = confusion_matrix(
        dataset.test_y, np.concatenate(every), labels=np.arange(dataset.num_classes)
    )
    np.fill_diagonal(wrong, 0)
    confused = np.where(wrong.max(axis=1) > 0, wrong.argmax(axis=1), -1)
    nearest = np.full(len(xs), -1)
    for label in np.unique(labels):
        mine, others = labels == label, dataset.train_y != label
        search = NearestNeighbors(n_neighbors=1, algorithm="brute")
        search.fit(flat(dataset.train_x[others]))
        places = np.asarray(search.kneighbors(flat(xs[mine]), return_distance=False))
        nearest[mine] = dataset.train_y[others][places[:, 0]]
    return {"confusion": confused[labels], "pixels": nearest}


def summary(
    found: Any, dataset: Any, truth: np.ndarray, named: dict[str, np.ndarray], judge: Judge
) -> dict[str, Any]:
    """Return the statistics of a population of explanations."""
    near, fisher, labels = found.nearest, found.fisher, found.label
    first = {name: values[:, 0] for name, values in orders(found).items()}
    others = np.arange(found.probabilities.shape[1]) != labels[:, None]
    reached, reached_metric = (
        (move.status == foliax.Status.arrived) & others for move in (near, fisher)
    )
    correlations = jax.vmap(explain.rank_correlation)(
        near.chord, fisher.fisher, reached & reached_metric
    )
    confused, missed, every = named["confusion"] >= 0, labels != truth, np.arange(len(labels))

    def agrees(name: str) -> dict[str, float | None]:
        """Return how often the nearest class by one distance is that of a baseline."""
        return {
            "nearest in the metric of G": _share(first[name] == first["metric"]),
            "commonest confusion": _share((first[name] == named["confusion"])[confused]),
            "nearest training image of another class": _share(first[name] == named["pixels"]),
        }

    return {
        "num_images": len(labels),
        "reached": {
            "input": float(reached.sum() / others.sum()),
            "metric": float(reached_metric.sum() / others.sum()),
        },
        "nearest_in_input_is": agrees("input")
        | {"second most probable": _share(first["input"] == first["probability"])},
        "second_probable_is": agrees("probability")
        | {"nearest by the bound": _share(first["probability"] == first["bound"])},
        "misclassified": {
            "count": int(missed.sum()),
            "true_class_nearest_in_input": _share((first["input"] == truth)[missed]),
            "true_class_second_probable": _share((first["probability"] == truth)[missed]),
        },
        "rank_correlation": quartiles(correlations),
        "nearest_distance": {
            "input": quartiles(near.chord[every, first["input"]]),
            "metric": quartiles(fisher.fisher[every, first["metric"]]),
        },
        "all_distances": {
            "input": quartiles(near.chord[reached]),
            "metric": quartiles(fisher.fisher[reached_metric]),
        },
        "length_over_chord": quartiles(near.length[reached] / near.chord[reached]),
        "over_bound": {
            "input": quartiles(near.fisher[reached] / near.bound[reached]),
            "metric": quartiles(fisher.fisher[reached_metric] / fisher.bound[reached_metric]),
        },
        "steps": quartiles(near.num_steps[reached]),
        "judge": _classified(found, reached, dataset, judge),
    }


def _classified(found: Any, reached: np.ndarray, dataset: Any, judge: Judge) -> dict[str, Any]:
    """Return what an independent classifier says of the images at the boundaries, clipped."""
    rows, classes = np.nonzero(reached)
    ends = np.asarray(dataset.box.clip(found.nearest.end[rows, classes]))
    labels = judge.predict(ends) if len(rows) else classes
    return {
        "accuracy": judge.accuracy,
        "sees_the_class": _share(labels == classes),
        "sees_the_label": _share(labels == found.label[rows]),
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
                "status": [status_name(pick(move.status, (i, c))) for c in range(move.end.shape[1])]
            }
            | {key: getattr(move, key)[i] for key in ("chord", "length", "fisher", "bound")}
            for name, move in moves.items()
        }
        for i, place in enumerate(places)
    ]


def _share(where: np.ndarray) -> float | None:
    return float(np.mean(where)) if len(where) else None
