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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import pairwise_distances_argmin

import foliax
from experiments.harness import command
from experiments.harness.outcomes import FAILS, HOLDS, IN_PART
from experiments.harness.populations import drifts, norms, predict, quartiles
from experiments.harness.report import section
from foliax import viz

_STEP = 0.1  # length of a step, normalised units
_NEARER = 0.1  # growth of the distance to the nearest training image that is still near the data


class Map(NamedTuple):
    """The map around one image; rows go along the second direction, columns along the first.

    Attributes:
        points: (rows, columns, H, W, channels), normalised.
        labels: (rows, columns) predicted.
        probabilities: (rows, columns) of the predicted labels.
    """

    points: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray


@jax.jit
def leading(model: Any, xs: Any) -> foliax.Eigen:
    """Return all C - 1 eigenpairs of G at every image."""
    return jax.lax.map(lambda x: foliax.eigh(model, x), jnp.asarray(xs))


def directions(vectors: Any) -> np.ndarray:
    """Return eigenvectors with the sign that makes their largest entry positive."""
    vectors = np.asarray(vectors)
    flat = vectors.reshape(len(vectors), -1)
    largest = np.take_along_axis(flat, np.abs(flat).argmax(axis=1)[:, None], axis=1)[:, 0]
    return vectors * np.sign(largest).reshape(-1, *(1,) * (vectors.ndim - 1))


def survey(model: Any, dataset: Any, x: Any, vectors: Any, half: int, spacing: float) -> Map:
    """Go from an image both ways along the first direction, and from there along the second."""
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
    points = np.swapaxes(both_ways(across, vectors[1]), 0, 1)[::-1]  # the second goes up
    labels, p = (np.asarray(a) for a in predict(model, points.reshape(-1, *points.shape[2:])))
    side = points.shape[:2]
    return Map(points, labels.reshape(side), p.reshape(side))


def run(
    model: Any, dataset: Any, out: Path, xs: Any, *, half: int, spacing: float
) -> tuple[dict[str, Any], list[Map]]:
    """Survey the leaf around images, and draw the first; return the section and the maps.

    The maps have `half` images on each side of the start, so far apart, in both directions.
    """
    values, vectors = (np.asarray(part) for part in leading(model, xs))
    vectors = np.stack([directions(each) for each in vectors])
    maps = [survey(model, dataset, x, v, half, spacing) for x, v in zip(xs, vectors, strict=True)]
    numbers = _numbers(maps, values, dataset)
    _draw(dataset, maps[0], values[0], vectors[0], xs[0], out)
    viz.spectrum(
        values,
        out / "spectrum.png",
        num_classes=dataset.num_classes,
        dense=dense_eigenvalues(model, xs[0]),
        title=f"Eigenvalues of G on {dataset.name}, n = {np.size(xs[0])}",
    )
    names = ("least", "median", "largest")
    found = section(
        title="A map of the leaf",
        claim="We can navigate the data leaf and obtain either data or points with similarities to "
        "our data.",
        verdict=_verdict(numbers, 2 * half + 1, spacing),
        numbers=numbers,
        pictures=[
            (
                "leaf_map.png",
                "The leaf around the marked image, along the two leading eigenvectors of G there; "
                f"neighbours are {spacing:g} apart in normalised units. Frames have the colour of "
                "the predicted label.",
            ),
            (
                "eigenvectors.png",
                "The image, and the eigenvectors of G at it: orange where a brighter pixel goes "
                "along, blue where a darker one does (of colour: around grey).",
            ),
            (
                "spectrum.png",
                "Eigenvalues of G; those of one dense G, formed in float64 without the factor, "
                "fall to rounding after the (C - 1)-th.",
            ),
        ],
        columns=("", *names),
        rows=[(label, *(f"{path}.{name}" for name in names)) for label, path in _ROWS],
    )
    return found, maps


_ROWS = (
    ("labels met in a map", "labels_met"),
    ("share of a map with the label of its start", "share_of_own_label"),
    ("probability of the predicted label", "probability"),
    ("share of the trace in two directions", "two_of_trace"),
    ("distance to the nearest training image", "nearest_training_image"),
    ("the same, over that of the start", "nearest_over_start"),
    ("the same, at the edge", "nearest_at_edge_over_start"),
)


def _numbers(maps: list[Map], values: np.ndarray, dataset: Any) -> dict[str, Any]:
    points, labels, probabilities = (np.stack(parts) for parts in zip(*maps, strict=True))
    middle = labels.shape[1] // 2
    own = labels[:, middle, middle]
    nearest = _nearest(points.reshape(-1, *points.shape[3:]), dataset).reshape(labels.shape)
    growth = nearest / nearest[:, middle : middle + 1, middle : middle + 1]
    edge = np.ones(growth.shape[1:], bool)
    edge[1:-1, 1:-1] = False
    return {
        "num_images": len(maps),
        "labels_met": quartiles([len(np.unique(each)) for each in labels]),
        "share_of_own_label": quartiles((labels == own[:, None, None]).mean(axis=(1, 2))),
        "probability": quartiles(probabilities),
        "nearest_training_image": quartiles(nearest),
        "nearest_at_start": quartiles(nearest[:, middle, middle]),
        "nearest_over_start": quartiles(growth),
        "nearest_at_edge_over_start": quartiles(growth[:, edge]),
        "two_of_trace": quartiles(values[:, :2].sum(axis=1) / values.sum(axis=1)),
        "eigenvalues": np.median(values, axis=0),
    }


def _nearest(points: np.ndarray, dataset: Any) -> np.ndarray:
    """Return the distance of each point to the nearest training image."""
    train = np.asarray(dataset.train_x).reshape(len(dataset.train_x), -1)
    points = points.reshape(len(points), -1)
    return norms(points - train[pairwise_distances_argmin(points, train)])


def _draw(
    dataset: Any, found: Map, values: np.ndarray, vectors: np.ndarray, x: Any, out: Path
) -> None:
    middle = len(found.labels) // 2
    own = dataset.class_names[found.labels[middle, middle]]
    viz.leaf_map(
        np.asarray(dataset.to_pixels(found.points)),
        found.labels,
        found.probabilities,
        out / "leaf_map.png",
        class_names=dataset.class_names,
        x_label="first eigenvector of G",
        y_label="second eigenvector",
        title=f"The leaf through an image of {dataset.name}, labelled {own}",
        mark=(middle, middle),
    )
    picture = np.clip(np.asarray(dataset.to_pixels(np.asarray(x)[None])), 0, 1)
    picture = np.broadcast_to(picture, (*picture.shape[:-1], 3))
    texts = [f"label {own}\n"] + [
        f"eigenvalue {value:.2g}\n{f'{share:.2g} %' if share > 1e-2 else '< 0.01 %'} of trace"
        for value, share in zip(values, 100 * values / values.sum(), strict=True)
    ]
    viz.strip(np.concatenate([picture, viz.signed(vectors)]), texts, out / "eigenvectors.png")


@jax.jit
def _columns(model: Any, x: Any) -> Any:
    basis = jnp.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape)
    return jax.lax.map(lambda v: foliax.matvec(model, x, v).ravel(), basis, batch_size=4)


def dense_eigenvalues(model: Any, x: Any) -> np.ndarray:
    """Return all eigenvalues of a dense G made of products G v in float64, which know no factor."""
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model)
        dense = np.asarray(_columns(double, jnp.asarray(np.asarray(x), jnp.float64)))
    return np.linalg.eigvalsh((dense + dense.T) / 2)[::-1]


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
    """Which network, which images, and how large the map is.

    Attributes:
        half: Images on each side of the start, in both directions.
        spacing: Length between neighbours, normalised units; None for √n / 14, as more pixels lie
            farther apart.
    """

    half: int = 5
    spacing: float | None = None
    out: Path = Path("out/leaf_map")


def measure_command(options: Command) -> command.Found:
    """Survey the leaf around the images of a command."""
    loaded = options.load()
    data = loaded.dataset
    half = min(options.half, 1) if options.quick else options.half
    spacing = options.spacing or round(math.sqrt(math.prod(data.shape)) / 14, 1)
    starts = options.starts(len(data.test_x))
    xs = data.test_x[starts]
    found, maps = run(loaded.model, data, options.out, xs, half=half, spacing=spacing)
    walks = [
        {"start": int(start), "label": m.labels, "probability": m.probabilities}
        for start, m in zip(starts, maps, strict=True)
    ]
    return command.Found(loaded, {"map": found}, {"map": walks})


if __name__ == "__main__":
    command.main(Command, measure_command, name="leaf_map", description=__doc__)
