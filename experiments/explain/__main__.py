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
from pathlib import Path
from typing import Any

import numpy as np

import foliax
from experiments.explain import measured as _explain
from experiments.harness import command as _command
from experiments.harness.common import outcome, percent
from experiments.harness.judge import judge
from experiments.harness.report import section
from foliax import viz

_SHOWN = 4  # images in the picture
_TITLE = "The classes nearest to an image on its leaf"
_CLAIM = (
    "The distances along the data leaf say which classes an image is near to, as the network's own "
    "order of probabilities does."
)


@dataclass(frozen=True)
class Command(_command.Command):
    """Which network, which images, and how they are moved.

    Attributes:
        pairs: How many test images.
        steps: Steps at most to each class.
        step: Length of a step, normalised units.
    """

    pairs: _command.Count = 50
    steps: int = 500
    step: float = 0.25
    out: Path = Path("out/explain")


def run(model: Any, dataset: Any, command: Command) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Explain the images of a command, draw the first ones, and count.

    Args:
        model: The classifier.
        dataset: Its data.
        command: Which images, how, and the folder of the picture.

    Returns:
        The section of the report (see `_report.section`), and every image by itself.
    """
    places = command.starts(len(dataset.test_x))
    if command.quick:
        places = places[:12]
    xs = dataset.test_x[places]
    found = _explain.explain_images(model, xs, step=command.step, max_steps=command.steps)
    named = _explain.rivals(model, dataset, xs, found.label)
    oracle = judge(dataset, quick=command.quick)
    numbers = _explain.summary(found, dataset, dataset.test_y[places], named, oracle)
    picture = _draw(dataset, xs, found, command.out / "explain.png")
    told = section(
        title=_TITLE,
        claim=_CLAIM,
        verdict=_judge(numbers),
        numbers=numbers,
        pictures=[picture],
        columns=("", "input distance", "metric of G"),
        rows=[
            ("classes reached, share", "reached.input", "reached.metric"),
            ("to the nearest class, median", "nearest_distance.input.median",
             "nearest_distance.metric.median"),
            ("to all classes, median", "all_distances.input.median",
             "all_distances.metric.median"),
            ("G's distance over its bound, median", "over_bound.input.median",
             "over_bound.metric.median"),
            ("rank correlation of the two orders, median", "rank_correlation.median", ""),
        ],
    )  # fmt: skip
    return told, _explain.records(found, places, named)


def _judge(numbers: dict[str, Any]) -> tuple[str, str]:
    same = numbers["nearest_in_input_is"]
    distance = numbers["nearest_distance"]["input"]["median"]
    second = numbers["second_probable_is"]
    missed, seen = numbers["misclassified"], numbers["judge"]

    def said(share: float | None) -> str:
        return "none to tell" if share is None else percent(share)

    told = (
        f"Of {numbers['num_images']} images, {percent(numbers['reached']['input'])} of the other "
        f"classes are reached, the nearest one at {distance:.3g} "
        f"(median, normalised units). The nearest class in input distance is the nearest one in "
        f"the metric of G in {said(same['nearest in the metric of G'])}, the second most probable "
        f"one in {said(same['second most probable'])}, the commonest confusion in "
        f"{said(same['commonest confusion'])} and that of the nearest training image of another "
        f"class in {said(same['nearest training image of another class'])} (the second most "
        f"probable class: {said(second['commonest confusion'])} and "
        f"{said(second['nearest training image of another class'])}). The two orders have a rank "
        f"correlation of {numbers['rank_correlation']['median']:.3g} (median). In G's metric the "
        f"nearest class is the second most probable one in "
        f"{said(second['nearest in the metric of G'])}, as its bound says it must be. Of "
        f"{missed['count']} images that are misclassified, the true class is the nearest in input "
        f"distance in {said(missed['true_class_nearest_in_input'])}, the second most probable in "
        f"{said(missed['true_class_second_probable'])}. Of the images at the boundaries an "
        f"independent classifier sees the class reached in {said(seen['sees_the_class'])}, and "
        f"still the label in {said(seen['sees_the_label'])}."
    )
    return outcome(same["second most probable"]), told


def _draw(dataset: Any, xs: Any, found: Any, file: Path) -> tuple[str, str]:
    """Draw two rows an image: the nearest image of every class, and what it changes."""
    names, images, captions, rows = dataset.class_names, [], [], []
    for i, x in enumerate(xs[:_SHOWN]):
        label, move = int(found.label[i]), found.nearest
        ends = np.asarray(dataset.to_pixels(np.concatenate([x[None], move.end[i]])))
        grey = np.broadcast_to(np.clip(ends, 0, 1), (*ends.shape[:-1], 3))
        changes = viz.signed(np.concatenate([0 * x[None], move.end[i] - x]))
        changes[[0, 1 + label]] = np.nan  # gaps: nothing changes there
        images += [grey, changes]
        chance = found.probabilities[i]
        captions.append(f"{names[label]}\np = {chance[label]:.3f}")
        captions += [
            f"{names[c]}\n{move.chord[i, c]:.2f}, G {found.fisher.fisher[i, c]:.2f}"
            if move.status[i, c] == foliax.Status.arrived
            else f"{names[c]}\nnot reached"
            for c in range(len(names))
        ]
        captions += ["", *[f"p = {chance[c]:.2g}" for c in range(len(names))]]
        rows += ["nearest image\nof each class", "change"]
    viz.strip(np.concatenate(images), captions, file, row_labels=rows)
    return (
        file.name,
        "Left, the image; then, for every class, the nearest image on the leaf at which that class "
        "wins, with its distance in input space and the least one in the metric of G. Below, what "
        "changes, each scaled by itself, and the probability of the class at the image.",
    )


def measure_command(command: Command) -> _command.Found:
    """Explain the images of a command."""
    loaded = command.load()
    found, images = run(loaded.model, loaded.dataset, command)
    return _command.Found(loaded, {"explain": found}, {"explain": images})


if __name__ == "__main__":
    _command.main(Command, measure_command, name="explain", description=__doc__)
