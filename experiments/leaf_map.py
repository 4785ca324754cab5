"""A map of the leaf through an image, and what spans it: the spectrum and eigenvectors of G.

    python -m experiments.leaf_map --start 3 --out out/leaf_map
    python -m experiments.leaf_map --checkpoint out/train --epoch 2 --images 20

goes from a test image along the two leading eigenvectors of G, projected on the leaf at every
step, and draws the grid of images, framed in the colour of their label; the eigenvectors as
images; and the spectrum with its cliff after the (C - 1)-th eigenvalue. Of several images the first
is drawn, all are measured. Writes pictures, `results.json`, `paths.json` (labels and probabilities
of every map), `run.json` and `report.html`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import foliax
from experiments.harness import command
from experiments.harness.populations import distance_to, drifts, predict, quartiles
from experiments.harness.report import FAILS, HOLDS, IN_PART, section
from experiments.rank_table import dense_eigenvalues
from foliax import viz

_STEP = 0.1  # length of a step, normalised units
_NEARER = 0.1  # growth of the distance to the nearest training image that is still near the data


def eigenpairs(model: Any, xs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return all C − 1 eigenpairs of G at every image; largest entries of vectors are positive."""
    values, vectors = (np.asarray(part) for part in foliax.map(foliax.eigh, model, xs, block=1))
    flat = vectors.reshape(*vectors.shape[:2], -1)
    largest = np.take_along_axis(flat, np.abs(flat).argmax(axis=2, keepdims=True), axis=2)
    return values, (flat * np.sign(largest)).reshape(vectors.shape)


def survey(model: Any, dataset: Any, x: Any, vectors: Any, half: int, spacing: float) -> np.ndarray:
    """Return a map of the leaf around an image, (rows, columns, H, W, channels).

    It goes both ways along the first direction, which are its columns, and from there along the
    second one, which goes up.
    """
    every = max(1, round(spacing / _STEP))

    def both_ways(xs: Any, vector: Any) -> np.ndarray:
        """Return points (starts, 2 half + 1, …) along a direction, the start in the middle."""
        back, forth = (
            drifts(
                model, xs, sign * np.broadcast_to(vector, xs.shape), dataset.box, along="leaf",
                step=spacing / every, max_steps=half * every, save_every=every,
            ).points
            for sign in (-1, 1)
        )  # fmt: skip
        return np.concatenate([back[:, :0:-1], forth], axis=1)

    (across,) = both_ways(np.asarray(x)[None], vectors[0])
    return np.swapaxes(both_ways(across, vectors[1]), 0, 1)[::-1]


def run(
    model: Any, dataset: Any, out: Path, xs: Any, *, half: int, spacing: float
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Survey the leaf around images, and draw the first; return the section and every label and p.

    The maps have `half` images on each side of the start, so far apart, in both directions.
    """
    values, vectors = eigenpairs(model, xs)
    points = np.stack(
        [survey(model, dataset, x, v, half, spacing) for x, v in zip(xs, vectors, strict=True)]
    )
    labels, p = (
        np.asarray(each).reshape(points.shape[:3])
        for each in predict(model, points.reshape(-1, *points.shape[3:]))
    )
    numbers = _numbers(points, labels, p, values, dataset)
    _draw_map(dataset, points[0], labels[0], p[0], out / "leaf_map.png")
    own = dataset.class_names[labels[0, half, half]]
    _draw_eigenvectors(dataset, xs[0], values[0], vectors[0], own, out / "eigenvectors.png")
    viz.spectrum(
        values,
        out / "spectrum.png",
        num_classes=dataset.num_classes,
        dense=dense_eigenvalues(model, xs[:1])[0][0],
        title=f"Eigenvalues of G on {dataset.name}, n = {np.size(xs[0])}",
    )
    names = ("least", "median", "largest")
    found = section(
        title="A map of the leaf",
        claim="We can navigate the data leaf and obtain either data or points with similarities to "
        "our data.",
        verdict=_verdict(numbers, 2 * half + 1, spacing),
        numbers=numbers,
        pictures={
            "leaf_map.png": (
                "The leaf around the marked image, along the two leading eigenvectors of G there; "
                f"neighbours are {spacing:g} apart in normalised units. Frames have the colour of "
                "the predicted label."
            ),
            "eigenvectors.png": (
                "The image, and the eigenvectors of G at it: orange where a brighter pixel goes "
                "along, blue where a darker one does (of colour: around grey)."
            ),
            "spectrum.png": (
                "Eigenvalues of G; those of one dense G, formed in float64 without the factor, "
                "fall to rounding after the (C - 1)-th."
            ),
        },
        columns=("", *names),
        rows=[(label, *(f"{path}.{name}" for name in names)) for label, path in _ROWS],
    )
    return found, labels, p


_ROWS = (
    ("labels met in a map", "labels_met"),
    ("share of a map with the label of its start", "share_of_own_label"),
    ("probability of the predicted label", "probability"),
    ("share of the trace in two directions", "two_of_trace"),
    ("distance to the nearest training image", "nearest_training_image"),
    ("the same, over that of the start", "nearest_over_start"),
    ("the same, at the edge", "nearest_at_edge_over_start"),
)


def _numbers(points: Any, labels: Any, p: Any, values: Any, dataset: Any) -> dict[str, Any]:
    middle = labels.shape[1] // 2
    own = labels[:, middle, middle]
    near = distance_to(dataset.train_x)
    nearest = near(points.reshape(-1, *points.shape[3:])).reshape(labels.shape)
    growth = nearest / nearest[:, middle : middle + 1, middle : middle + 1]
    edge = np.ones(growth.shape[1:], bool)
    edge[1:-1, 1:-1] = False
    return {
        "num_images": len(points),
        "labels_met": quartiles([len(np.unique(each)) for each in labels]),
        "share_of_own_label": quartiles((labels == own[:, None, None]).mean(axis=(1, 2))),
        "probability": quartiles(p),
        "nearest_training_image": quartiles(nearest),
        "nearest_at_start": quartiles(nearest[:, middle, middle]),
        "nearest_over_start": quartiles(growth),
        "nearest_at_edge_over_start": quartiles(growth[:, edge]),
        "two_of_trace": quartiles(values[:, :2].sum(axis=1) / values.sum(axis=1)),
        "eigenvalues": np.median(values, axis=0),
    }


def _draw_map(dataset: Any, points: Any, labels: Any, p: Any, file: Path) -> None:
    middle = len(labels) // 2
    own = dataset.class_names[labels[middle, middle]]
    viz.leaf_map(
        np.asarray(dataset.to_pixels(points)),
        labels,
        p,
        file,
        class_names=dataset.class_names,
        x_label="first eigenvector of G",
        y_label="second eigenvector",
        title=f"The leaf through an image of {dataset.name}, labelled {own}",
        mark=(middle, middle),
    )


def _draw_eigenvectors(
    dataset: Any, x: Any, values: np.ndarray, vectors: np.ndarray, label: str, file: Path
) -> None:
    picture = np.asarray(dataset.to_pixels(np.asarray(x)[None]))
    picture = np.broadcast_to(picture, (*picture.shape[:-1], 3))
    texts = [f"label {label}\n"] + [
        f"eigenvalue {value:.2g}\n{f'{share:.2g} %' if share > 1e-2 else '< 0.01 %'} of trace"
        for value, share in zip(values, 100 * values / values.sum(), strict=True)
    ]
    viz.strip(np.concatenate([picture, viz.signed(vectors)]), texts, file)


def _verdict(numbers: dict[str, Any], side: int, spacing: float) -> tuple[str, str]:
    met, growth = numbers["labels_met"], numbers["nearest_at_edge_over_start"]["median"]
    text = (
        f"In {numbers['num_images']} maps of {side} by {side} images, {spacing:g} apart, the leaf "
        f"shows a median of {met['median']:.3g} labels. At the edge, the nearest training image is "
        f"{growth:.3g} times as far as it is from the start (median). "
    )
    if growth <= 1 + _NEARER:
        return HOLDS, text + "What the leaf shows is as near to the data as a test image is."
    if met["median"] > 1:
        return IN_PART, text + "Other labels are reached, but not images as near to the data."
    return FAILS, text + "Neither other labels nor images as near to the data are reached."


@dataclass(frozen=True)
class Command(command.Command):
    """Which network, which images, and how large the map is."""

    half: int = 5  # Images on each side of the start, in both directions
    # Length between neighbours, normalised units; None for √n / 14, as more pixels lie farther
    # apart.
    spacing: float | None = None


def measure_command(options: Command) -> command.Found:
    """Survey the leaf around the images of a command."""
    loaded = options.load()
    data = loaded.dataset
    half = min(options.half, 1) if options.quick else options.half
    spacing = options.spacing or round(math.sqrt(math.prod(data.shape)) / 14, 1)
    starts = options.starts(len(data.test_x))
    xs = data.test_x[starts]
    found, labels, p = run(loaded.model, data, options.out, xs, half=half, spacing=spacing)
    walks = [
        {"start": int(start), "label": labels[i], "probability": p[i]}
        for i, start in enumerate(starts)
    ]
    return command.Found(loaded, {"map": found}, {"map": walks})


if __name__ == "__main__":
    command.main(Command, measure_command, name="leaf_map", description=__doc__)
