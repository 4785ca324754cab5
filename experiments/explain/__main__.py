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
from experiments.explain import statistics
from experiments.harness import command as commands
from experiments.harness.judge import judge
from experiments.harness.outcomes import outcome, percent
from experiments.harness.report import section
from foliax import viz

_SHOWN = 4  # images in the picture


@dataclass(frozen=True)
class Command(commands.Command):
    """Which network, which images, and how they are moved."""

    pairs: commands.Count = 50  # How many test images
    steps: int = 500  # Steps at most to each class
    step: float = 0.25  # Length of a step, normalised units
    out: Path = Path("out/explain")  # Output folder


def measure_command(command: Command) -> commands.Found:
    """Explain the images of a command, draw the first ones, and count."""
    loaded = command.load()
    model, dataset = loaded.model, loaded.dataset
    places = command.starts(len(dataset.test_x))[: 12 if command.quick else None]
    xs = dataset.test_x[places]
    found = statistics.explain_images(model, xs, step=command.step, max_steps=command.steps)
    named = statistics.rivals(model, dataset, xs, found.label)
    oracle = judge(dataset, quick=command.quick)
    numbers = statistics.summary(found, dataset, dataset.test_y[places], named, oracle)
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
    images = statistics.records(found, places, named)
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
        f"independent classifier {listed(numbers['judge'])}."
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
        images += [np.broadcast_to(np.clip(ends, 0, 1), (*ends.shape[:-1], 3)), changes]
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


if __name__ == "__main__":
    commands.main(Command, measure_command, name="explain", description=__doc__)
