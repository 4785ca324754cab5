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

import foliax
from experiments.harness import command as _command
from experiments.harness.common import (
    FAILS,
    HOLDS,
    IN_PART,
    drifts,
    norms,
    percent,
    predict,
    quartiles,
)
from experiments.harness.report import section
from foliax import viz


@dataclass(frozen=True)
class Config:
    """How large the map is.

    Attributes:
        half: Images on each side of the start, in both directions.
        spacing: Length between neighbours, normalised units.
        step: Length of a step, normalised units.
        nearer: Growth of the distance to the nearest training image that still counts as
            similar to the data.
    """

    half: int = 5
    spacing: float = 0.6
    step: float = 0.1
    nearer: float = 0.1


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


def survey(model: Any, dataset: Any, x: Any, vectors: Any, config: Config) -> Map:
    """Go from an image both ways along the first direction, and from there along the second."""
    across = _both_ways(model, dataset, np.asarray(x)[None], vectors[0], config)[0]
    up = _both_ways(model, dataset, across, vectors[1], config)
    points = np.swapaxes(up, 0, 1)[::-1]  # the second direction goes up
    side = 2 * config.half + 1
    labels, p = (np.asarray(a) for a in predict(model, points.reshape(-1, *points.shape[2:])))
    return Map(points, labels.reshape(side, side), p.reshape(side, side))


def _both_ways(model: Any, dataset: Any, xs: Any, vector: Any, config: Config) -> np.ndarray:
    """Return points (starts, 2 half + 1, …) along a direction, the start in the middle."""
    every = max(1, round(config.spacing / config.step))
    goals = np.broadcast_to(vector, xs.shape)
    ends = [
        drifts(
            model, xs, sign * goals, dataset.box, along="leaf",
            step=config.spacing / every, max_steps=config.half * every, save_every=every,
        ).points
        for sign in (-1, 1)
    ]  # fmt: skip
    return np.concatenate([ends[0][:, :0:-1], ends[1]], axis=1)


def run(model: Any, dataset: Any, out: Path, config: Config, xs: Any) -> tuple[dict, list[Map]]:
    """Survey the leaf around images, and draw the first.

    Args:
        model: The classifier.
        dataset: Its data.
        out: Folder for the pictures.
        config: How large the maps are.
        xs: The images.

    Returns:
        The section of the report (see `_report.section`), and the maps.
    """
    values, vectors = (np.asarray(part) for part in leading(model, xs))
    vectors = np.stack([directions(each) for each in vectors])
    maps = [survey(model, dataset, x, v, config) for x, v in zip(xs, vectors, strict=True)]
    numbers = _numbers(maps, values, dataset, config)
    _draw(model, dataset, maps[0], values, vectors[0], xs[0], out)
    found = section(
        title="A map of the leaf",
        claim="We can navigate the data leaf and obtain either data or points with similarities to "
        "our data.",
        verdict=_judge(numbers, config),
        numbers=numbers,
        pictures=[
            (
                "leaf_map.png",
                "The leaf around the marked image, along the two leading eigenvectors of G there; "
                f"neighbours are {config.spacing:g} apart in normalised units. Frames have the "
                "colour of the predicted label.",
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
        columns=("", "least", "median", "largest"),
        rows=_rows(),
    )
    return found, maps


def _numbers(maps: list[Map], values: np.ndarray, dataset: Any, config: Config) -> dict[str, Any]:
    middle = config.half
    own = [found.labels[middle, middle] for found in maps]
    points = np.stack([found.points for found in maps])
    nearest = _nearest(points.reshape(-1, *points.shape[3:]), dataset).reshape(points.shape[:3])
    growth = nearest / nearest[:, middle : middle + 1, middle : middle + 1]
    edge = np.ones(growth.shape[1:], bool)
    edge[1:-1, 1:-1] = False
    return {
        "num_images": len(maps),
        "labels_met": quartiles([len(np.unique(found.labels)) for found in maps]),
        "share_of_own_label": quartiles(
            [np.mean(found.labels == label) for found, label in zip(maps, own, strict=True)]
        ),
        "probability": quartiles([found.probabilities for found in maps]),
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
    squares = (train**2).sum(axis=1)
    index = np.concatenate(
        [np.argmin(squares - 2 * part @ train.T, axis=1) for part in np.array_split(points, 16)]
    )
    return norms(points - train[index])


def _draw(
    model: Any,
    dataset: Any,
    found: Map,
    values: np.ndarray,
    vectors: np.ndarray,
    x: Any,
    out: Path,
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
    pictures = np.concatenate(
        [np.broadcast_to(picture, (*picture.shape[:-1], 3)), viz.signed(vectors)]
    )
    shares = values[0] / values[0].sum()
    texts = [f"label {own}\n"] + [
        f"eigenvalue {value:.2g}\n{_share(share)} of trace"
        for value, share in zip(values[0], shares, strict=True)
    ]
    viz.strip(pictures, texts, out / "eigenvectors.png")
    title = f"Eigenvalues of G on {dataset.name}, n = {np.size(x)}"
    viz.spectrum(
        values,
        out / "spectrum.png",
        num_classes=dataset.num_classes,
        dense=dense_eigenvalues(model, x),
        title=title,
    )


def _share(share: float) -> str:
    return f"{100 * share:.2g} %" if share > 1e-4 else "< 0.01 %"


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


def _judge(numbers: dict[str, Any], config: Config) -> tuple[str, str]:
    met, growth = numbers["labels_met"], numbers["nearest_at_edge_over_start"]["median"]
    told = (
        f"Over {numbers['num_images']} map{'s' * (numbers['num_images'] > 1)} of "
        f"{2 * config.half + 1} by {2 * config.half + 1} images, {config.spacing:g} apart, the "
        f"leaf shows {met['median']:.3g} labels (median; {met['least']:.0f} to "
        f"{met['largest']:.0f}), {percent(numbers['share_of_own_label']['median'])} of each map "
        f"being of the label of its start. The two directions carry a median of "
        f"{percent(numbers['two_of_trace']['median'])} of the trace of G. At the edge, the nearest "
        f"training image is {growth:.3g} times as far as it is from the start (median). "
    )
    if growth <= 1 + config.nearer:
        return HOLDS, told + "What the leaf shows is as near to the data as a test image is."
    if met["median"] > 1:
        return IN_PART, told + "Other labels are reached, but not images as near to the data."
    return FAILS, told + "Neither other labels nor images as near to the data are reached."


def _rows() -> list[tuple[str, ...]]:
    quoted = (
        ("labels met in a map", "labels_met"),
        ("share of a map with the label of its start", "share_of_own_label"),
        ("probability of the predicted label", "probability"),
        ("share of the trace in two directions", "two_of_trace"),
        ("distance to the nearest training image", "nearest_training_image"),
        ("the same, over that of the start", "nearest_over_start"),
        ("the same, at the edge", "nearest_at_edge_over_start"),
    )
    return [
        (label, *(f"{path}.{name}" for name in ("least", "median", "largest")))
        for label, path in quoted
    ]


@dataclass(frozen=True)
class Command(_command.Command):
    """Which network, which images, and how large the map is.

    Attributes:
        half: Images on each side of the start, in both directions.
        spacing: Length between neighbours, normalised units; None for √n / 14, as more pixels lie
            farther apart.
        step: Length of a step, normalised units.
    """

    half: int = 5
    spacing: float | None = None
    step: float = 0.1
    out: Path = Path("out/leaf_map")


def measure_command(command: Command) -> _command.Found:
    """Survey the leaf around the images of a command."""
    loaded = command.load()
    half = min(command.half, 1) if command.quick else command.half
    spacing = command.spacing or round(math.sqrt(math.prod(loaded.dataset.shape)) / 14, 1)
    config = Config(half=half, spacing=spacing, step=command.step)
    starts = command.starts(len(loaded.dataset.test_x))
    xs = loaded.dataset.test_x[starts]
    found, maps = run(loaded.model, loaded.dataset, command.out, config, xs)
    walks = [
        {"start": int(start), "label": m.labels, "probability": m.probabilities}
        for start, m in zip(starts, maps, strict=True)
    ]
    return _command.Found(loaded, {"map": found}, {"map": walks})


if __name__ == "__main__":
    _command.main(Command, measure_command, name="leaf_map", description=__doc__)
