"""Explanations: which classes are nearest to an image in the geometry of its leaf.

    python -m experiments.explain --images 100 --out out/explain
    python -m experiments.explain --checkpoint out/train --epoch 3 --start 17

moves test images along the data leaf to where each other class is the most probable one, by the
smallest move in input distance and by that in the metric of G, and stops at the boundary. Draws,
for the first images, the nearest image of every class and what it changes, with both distances; and
counts how often the nearest class in input distance is the nearest one in G's metric, the second
most probable one, the commonest confusion, and that of the nearest training image of another class.
An independent classifier says what the images at the boundaries show. Writes `explain.png`,
`results.json`, `paths.json` (every image, class by class), `run.json` and `report.html`.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import NearestNeighbors

import foliax
from experiments.harness import command as commands
from experiments.harness.classifier import Classifier, independent
from experiments.harness.populations import (
    flat,
    pick,
    quartiles,
    rank_correlation,
    share,
    status_name,
)
from experiments.harness.report import outcome, percent, section
from experiments.harness.run import in_parts, on_cpu
from experiments.ood.baselines import outputs
from foliax import viz
from foliax.apps import explain

_AT_ONCE = 8  # images on an accelerator, with a walk for every class
_SHOWN = 4  # images in the picture


@dataclass(frozen=True)
class Command(commands.Command):
    """Which network, which images, and how they are moved."""

    pairs: commands.Count = 50  # How many test images
    steps: int = 500  # Steps at most to each class
    step: float = 0.25  # Length of a step, normalised units


def measure_command(command: Command) -> commands.Found:
    """Explain the images of a command, draw the first ones, and count."""
    loaded = command.load()
    model, dataset = loaded.model, loaded.dataset
    places = command.starts(len(dataset.test_x))[: 12 if command.quick else None]
    xs = dataset.test_x[places]
    found = explain_images(model, xs, step=command.step, max_steps=command.steps)
    named = rivals(model, dataset, xs, found.label)
    classifier = independent(dataset, quick=command.quick)
    numbers = summary(found, dataset, dataset.test_y[places], named, classifier)
    rows = {
        "classes reached, share": "reached.{}",
        "to the nearest class, median": "nearest_distance.{}.median",
        "to all classes, median": "all_distances.{}.median",
        "G's distance over its bound, median": "over_bound.{}.median",
    }
    report = section(
        title="The classes nearest to an image on its leaf",
        claim="The distances along the data leaf say which classes an image is near to, as the "
        "network's own order of probabilities does.",
        verdict=_verdict(numbers),
        numbers=numbers,
        pictures=[_draw(dataset, xs, found, command.out / "explain.png")],
        columns=("", "input distance", "metric of G"),
        rows=[
            *((text, path.format("input"), path.format("metric")) for text, path in rows.items()),
            ("rank correlation of the two orders, median", "rank_correlation.median", ""),
        ],
    )
    images = records(found, places, named)
    return commands.Found(loaded, {"explain": report}, {"explain": images})


def _verdict(numbers: dict[str, Any]) -> tuple[str, str]:
    def listed(shares: dict[str, float | None]) -> str:
        return ", ".join(
            f"{name.replace('_', ' ')} {'none' if share is None else percent(share)}"
            for name, share in shares.items()
            if name not in ("count", "accuracy")
        )

    text = (
        f"Of {numbers['num_images']} images, the nearest class in input distance is the "
        f"{listed(numbers['nearest_in_input_is'])}; the second most probable class is the "
        f"{listed(numbers['second_probable_is'])}. Of {numbers['misclassified']['count']} "
        f"misclassified images: {listed(numbers['misclassified'])}. At the boundaries an "
        f"independent classifier {listed(numbers['classifier'])}."
    )
    return outcome(numbers["nearest_in_input_is"]["second most probable"]), text


def _draw(dataset: Any, xs: Any, found: Any, file: Path) -> tuple[str, str]:
    """Draw two rows an image: the nearest image of every class, and what it changes."""
    names, images, captions = dataset.class_names, [], []
    for i, x in enumerate(xs[:_SHOWN]):
        label, move, p = int(found.label[i]), found.nearest, found.probabilities[i]
        arrived = move.status == foliax.Status.arrived
        ends = np.asarray(dataset.to_pixels(np.concatenate([x[None], move.end[i]])))
        changes = viz.signed(np.concatenate([0 * x[None], move.end[i] - x]))
        changes[[0, 1 + label]] = np.nan  # gaps: nothing changes there
        images += [np.broadcast_to(ends, (*ends.shape[:-1], 3)), changes]
        captions.append(f"{names[label]}\np = {p[label]:.3f}")
        captions += [
            f"{name}\n{move.chord[i, c]:.2f}, G {found.fisher.fisher[i, c]:.2f}"
            if arrived[i, c]
            else f"{name}\nnot reached"
            for c, name in enumerate(names)
        ]
        captions += ["", *(f"p = {one:.2g}" for one in p)]
    rows = ["nearest image\nof each class", "change"] * (len(images) // 2)
    viz.strip(np.concatenate(images), captions, file, row_labels=rows)
    return (
        file.name,
        "Left, the image; then, for every class, the nearest image on the leaf at which that class "
        "wins, with its distance in input space and the least one in the metric of G. Below, what "
        "changes, each scaled by itself, and the probability of the class at the image.",
    )


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
    predicted = outputs(model, dataset.test_x).argmax(axis=1)
    wrong = confusion_matrix(dataset.test_y, predicted, labels=np.arange(dataset.num_classes))
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
    found: Any,
    dataset: Any,
    truth: np.ndarray,
    named: dict[str, np.ndarray],
    classifier: Classifier,
) -> dict[str, Any]:
    """Return the statistics of a population of explanations."""
    near, fisher, labels = found.nearest, found.fisher, found.label
    first = {name: values[:, 0] for name, values in orders(found).items()}
    others = np.arange(found.probabilities.shape[1]) != labels[:, None]
    reached, reached_metric = (
        (move.status == foliax.Status.arrived) & others for move in (near, fisher)
    )
    correlations = [
        rank_correlation(a[both], b[both])[0]
        for a, b, both in zip(near.chord, fisher.fisher, reached & reached_metric, strict=True)
    ]
    confused, missed, every = named["confusion"] >= 0, labels != truth, np.arange(len(labels))

    def agrees(name: str) -> dict[str, float | None]:
        """Return how often the nearest class by one distance is that of a baseline."""
        return {
            "nearest in the metric of G": share(first[name] == first["metric"]),
            "commonest confusion": share((first[name] == named["confusion"])[confused]),
            "nearest training image of another class": share(first[name] == named["pixels"]),
        }

    return {
        "num_images": len(labels),
        "reached": {
            "input": float(reached.sum() / others.sum()),
            "metric": float(reached_metric.sum() / others.sum()),
        },
        "nearest_in_input_is": agrees("input")
        | {"second most probable": share(first["input"] == first["probability"])},
        "second_probable_is": agrees("probability")
        | {"nearest by the bound": share(first["probability"] == first["bound"])},
        "misclassified": {
            "count": int(missed.sum()),
            "true_class_nearest_in_input": share((first["input"] == truth)[missed]),
            "true_class_second_probable": share((first["probability"] == truth)[missed]),
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
        "classifier": _classified(found, reached, dataset, classifier),
    }


def _classified(
    found: Any, reached: np.ndarray, dataset: Any, classifier: Classifier
) -> dict[str, Any]:
    """Return what an independent classifier says of the images at the boundaries, clipped."""
    rows, classes = np.nonzero(reached)
    ends = np.asarray(dataset.box.clip(found.nearest.end[rows, classes]))
    labels = classifier.predict(ends) if len(rows) else classes
    return {
        "accuracy": classifier.accuracy,
        "sees_the_class": share(labels == classes),
        "sees_the_label": share(labels == found.label[rows]),
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


if __name__ == "__main__":
    commands.main(Command, measure_command, name="explain", description=__doc__)
