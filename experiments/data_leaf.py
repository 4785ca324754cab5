"""S3 and S4: walks on the data leaf from one image toward another, or toward a mirrored digit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments._common import (
    caption,
    captions,
    endings,
    live_rows,
    norms,
    outcome,
    percent,
    pick,
    predict,
    quartiles,
    walks,
)
from experiments._report import section
from foliax import viz

SCHEMES = ("exact", "published")
# Mirrored, these are no digits; 0, 1 and 8 are, or nearly.
_NO_DIGIT_WHEN_MIRRORED = (2, 3, 4, 5, 6, 7, 9)

# Toward test images, and toward mirrored digits.
_TITLES = (
    "Any two images are joined on the data leaf",
    "A digit is joined to a symbol that is not a digit",
)
_CLAIMS = (
    "We can connect any two data images.",
    "We can connect a digit to a symbol not in the data set, here a mirrored digit, moving on the "
    "data leaf.",
)


@dataclass(frozen=True)
class Config:
    """Which pairs are walked, and how far.

    Attributes:
        num_pairs: Pairs of test images.
        step: Length of a step, normalised units.
        max_steps: Steps at most.
        save_every: Steps between the points kept.
        arrival: Distance to the target that counts as arrived, normalised units.
        stall: Tangent fraction below which the exact scheme has stalled.
        frames: Pictures in a row of the strip, without the target.
        seed: Draws the pairs.
    """

    num_pairs: int = 64
    step: float = 0.1
    max_steps: int = 600
    save_every: int = 5
    arrival: float = 1.0
    stall: float = 0.01
    frames: int = 8
    seed: int = 0

    def options(self) -> dict[str, Any]:
        """Return what `foliax.walk` takes."""
        names = ("step", "max_steps", "save_every", "arrival", "stall")
        return {name: getattr(self, name) for name in names}


def pairs(dataset: Any, config: Config, *, mirrored: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Draw start and target images among the test images, no image twice.

    With `mirrored`, targets are mirrored digits of classes that are no digit when mirrored.
    """
    order = np.random.default_rng(config.seed).permutation(len(dataset.test_x))
    starts, rest = order[: config.num_pairs], order[config.num_pairs :]
    if mirrored:
        rest = rest[np.isin(dataset.test_y[rest], _NO_DIGIT_WHEN_MIRRORED)]
    if len(rest) < len(starts):
        raise ValueError(f"num_pairs = {config.num_pairs} is too many for {len(order)} test images")
    targets = dataset.test_x[rest[: len(starts)]]
    if mirrored:
        targets = dataset.mirrored(targets)
    return np.asarray(dataset.test_x[starts]), np.asarray(targets)


def walk_pairs(model: Any, dataset: Any, xs: Any, targets: Any, config: Config) -> dict[str, Any]:
    """Walk every pair along the leaf with both schemes."""
    return {
        scheme: walks(
            model, xs, targets, dataset.box, scheme=scheme, along="leaf", **config.options()
        )
        for scheme in SCHEMES
    }


def measure(model: Any, path: Any, xs: Any, targets: Any, std: float) -> dict[str, Any]:
    """Return how a population of walks ended."""
    start = norms(targets - xs)
    wanted, _ = predict(model, targets)
    reached, _ = predict(model, path.best)
    return {
        "ended": endings(path),
        "residual": quartiles(norms(targets - path.best) / start),
        "residual_at_end": quartiles(norms(targets - path.end) / start),
        "tangent_fraction_at_end": quartiles(path.tangent_fraction[:, -1]),
        "steps": quartiles(path.num_steps),
        "label_of_target_reached": float(np.mean(np.asarray(wanted) == np.asarray(reached))),
        "dimension": quartiles(path.dimension),
        "box_excess_pixels": quartiles(path.box_excess.max(axis=1) * std),
        "leaf_defect": quartiles(path.leaf_defect[:, -1]),
    }


def run(
    model: Any,
    dataset: Any,
    out: Path,
    config: Config,
    *,
    mirrored: bool = False,
    paths: dict[str, Any] | None = None,
    models: Mapping[int, Any] | None = None,
) -> dict[str, Any]:
    """Walk a population of pairs and draw the median and the best pair.

    Args:
        model: The classifier.
        dataset: Its data.
        out: Folder for the pictures.
        config: Which pairs are walked, and how far.
        mirrored: Whether targets are mirrored digits (S4) or test images (S3).
        paths: What `walk_pairs` gave for the same pairs, to spare walking again.
        models: The classifier at other epochs, to see how the residual depends on training.

    Returns:
        The section of the report; see `_report.section`.
    """
    xs, targets = pairs(dataset, config, mirrored=mirrored)
    paths = paths or walk_pairs(model, dataset, xs, targets, config)
    numbers: dict[str, Any] = {
        scheme: measure(model, path, xs, targets, dataset.std) for scheme, path in paths.items()
    }
    start = norms(targets - xs)
    residuals = norms(targets - paths["exact"].best) / start
    order = np.argsort(residuals, kind="stable")
    median, best = int(order[len(order) // 2]), int(order[0])
    shape = np.prod(dataset.shape)
    numbers |= {
        "num_pairs": len(xs),
        # What a fixed random subspace of the leaf's dimension would leave of a distance.
        "flat_random_leaf": np.sqrt(1 - numbers["exact"]["dimension"]["median"] / shape),
        "by_epoch": _by_epoch(models or {}, dataset, xs, targets, config),
        "start_distance": quartiles(start),
        "arrival": config.arrival,
        "max_steps": config.max_steps,
        "shown_median_pair": median,
        "shown_best_pair": best,
    }
    stem = "leaf_mirrored" if mirrored else "leaf"
    _draw(model, dataset, paths, targets, (median, best), out / stem, config)
    _draw_distances(paths, start, out / f"{stem}_distances.png", config)
    return section(
        title=_TITLES[mirrored],
        claim=_CLAIMS[mirrored],
        verdict=_judge(numbers, config, mirrored=mirrored),
        numbers=numbers,
        pictures=_pictures(stem, config),
        columns=("", *SCHEMES),
        rows=_rows(),
    )


def _by_epoch(models: Any, dataset: Any, xs: Any, targets: Any, config: Config) -> dict[str, Any]:
    """Return how the exact walks end on checkpoints of other epochs."""
    found, start = {}, norms(targets - xs)
    for epoch, model in models.items():
        path = walks(
            model, xs, targets, dataset.box, scheme="exact", along="leaf", **config.options()
        )
        residual = quartiles(norms(targets - path.best) / start)
        found[str(epoch)] = {"arrived": endings(path)["arrived"], "residual": residual}
    return found


def _draw(
    model: Any,
    dataset: Any,
    paths: Any,
    targets: Any,
    shown: tuple[int, int],
    stem: Path,
    config: Any,
) -> None:
    """Draw the strip of the median and the best pair, and a GIF of the median pair."""
    median, best = shown
    names = dataset.class_names
    images, texts, labels = [], [], []
    for scheme, index, name in (
        ("exact", median, "median pair\nexact"),
        ("published", median, "median pair\npublished"),
        ("exact", best, "best pair\nexact"),
    ):
        path = pick(paths[scheme], index)
        rows = _telling_rows(path, config.frames)
        label, p = predict(model, targets[index : index + 1])
        images += [*path.points[rows], targets[index]]
        texts += [*captions(path, rows, names), caption("target", label[0], p[0], names)]
        labels.append(name)
    pixels = dataset.to_pixels(np.asarray(images))
    viz.strip(pixels, texts, stem.with_suffix(".png"), row_labels=labels)
    path = pick(paths["exact"], median)
    rows = live_rows(path, 40)
    pixels = dataset.to_pixels(path.points[rows])
    viz.gif(pixels, captions(path, rows, names), stem.with_suffix(".gif"))


def _telling_rows(path: Any, count: int) -> list[int]:
    """Return `count` rows: evenly as long as the path comes nearer, and the last.

    A published walk dithers at its foot for most of its steps, all of which look alike.
    """
    rows = live_rows(path)
    near = path.distance <= path.distance.min() + 0.01 * np.ptp(path.distance)
    progress = [row for row in rows[:-1] if row <= int(near.argmax())]
    if len(progress) > count - 1:
        spread = np.round(np.linspace(0, len(progress) - 1, count - 1)).astype(int)
        progress = [progress[i] for i in spread]
    return progress + rows[-1:] * (count - len(progress))


def _draw_distances(paths: Any, start: Any, file: Path, config: Any) -> None:
    """Draw distance against step, and the share of pairs below each residual."""
    lines, ranks = [], []
    for scheme, path in paths.items():
        steps = np.arange(path.distance.shape[1]) * config.save_every
        low, middle, high = np.quantile(path.distance / start[:, None], (0.25, 0.5, 0.75), axis=0)
        lines.append(viz.Curve(scheme, steps, middle, low, high))
        least = np.sort(path.distance.min(axis=1) / start)
        share = (np.arange(len(least)) + 1) / len(least)
        ranks.append(viz.Curve(scheme, least, share))
    needed = np.sort(config.arrival / start)
    ranks.append(viz.Curve("needed to arrive", needed, share, reference=True))
    viz.curves(
        [
            viz.Panel("Distance to the target, median and quartiles", "step",
                      "distance / start distance", lines, y_range=(0, 1.05)),
            viz.Panel("Where the walks end", "least distance / start distance",
                      "share of pairs at or below", ranks, y_range=(0, 1.03)),
        ],
        file,
    )  # fmt: skip


def _judge(numbers: dict[str, Any], config: Config, *, mirrored: bool) -> tuple[str, str]:
    exact, published = numbers["exact"], numbers["published"]
    share = exact["ended"]["arrived"]
    goal = "the mirrored digit" if mirrored else "the other image"
    told = (
        f"Of {numbers['num_pairs']} pairs, {percent(share)} arrive within {config.arrival:g} of "
        f"{goal} (exact; published: {percent(published['ended']['arrived'])}); "
        f"{percent(exact['ended']['stalled'])} stall, where the leaf holds less than "
        f"{percent(config.stall)} of the direction to the target, and "
        f"{percent(exact['ended']['out_of_steps'])} run out of steps. The nearest point has a "
        f"median of {percent(exact['residual']['median'])} of the start distance left "
        f"({percent(exact['residual']['least'])} to {percent(exact['residual']['largest'])}; "
        f"published: {percent(published['residual']['median'])}); a random flat leaf of the same "
        f"dimension would leave {percent(numbers['flat_random_leaf'])}. There the model gives the "
        f"label of the target in {percent(exact['label_of_target_reached'])} of pairs."
    )
    if numbers["by_epoch"]:
        told += (
            " At other epochs the median residual is "
            + ", ".join(
                f"{percent(found['residual']['median'])} (epoch {epoch})"
                for epoch, found in numbers["by_epoch"].items()
            )
            + "."
        )
    if share <= 0.01 and exact["label_of_target_reached"] > 0.5:
        told += " The leaf leads to the label of the target, not to its image."
    return outcome(share), told


def _pictures(stem: str, config: Config) -> list[tuple[str, str]]:
    return [
        (
            f"{stem}.png",
            "The pair whose residual is the median of the population, with both schemes, and the "
            "best pair; each row ends with its target. Pixels outside [0, 1] are clipped for "
            "display only.",
        ),
        (f"{stem}.gif", "The median pair, exact scheme."),
        (
            f"{stem}_distances.png",
            f"Distance to the target over {config.max_steps} steps; and the share of pairs whose "
            "nearest point is at most so far from the target.",
        ),
    ]


def _rows() -> list[tuple[str, ...]]:
    quoted = (
        ("share arrived", "ended.arrived"),
        ("share stalled", "ended.stalled"),
        ("share out of steps", "ended.out_of_steps"),
        ("residual / start distance, median", "residual.median"),
        ("residual / start distance, least", "residual.least"),
        ("tangent fraction at the end, median", "tangent_fraction_at_end.median"),
        ("steps, median", "steps.median"),
        ("share with the target's label", "label_of_target_reached"),
        ("excess over the pixel box, largest", "box_excess_pixels.largest"),
        ("length walked off the leaf, median", "leaf_defect.median"),
    )
    return [(label, *(f"{scheme}.{path}" for scheme in SCHEMES)) for label, path in quoted]
