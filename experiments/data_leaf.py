"""S3 and S4: walks on the data leaf from one image toward another, or toward a mirrored one.

    python -m experiments.data_leaf --start 3 --end 17 --out out/data_leaf
    python -m experiments.data_leaf --flip --pairs 100 --out out/data_leaf_flip
    python -m experiments.data_leaf --checkpoint out/train --epoch 2 --pairs 100

walks with the exact and the published scheme, and writes strips, a GIF, the distances, and
`results.json`, `paths.json` (every path point by point), `run.json` and `report.html`. `--flip`
takes mirrored targets, which are no digits (of Fashion-MNIST: shoes, which all point left).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import foliax
from experiments.harness import command as _command
from experiments.harness.common import (
    check_rows,
    norms,
    outcome,
    percent,
    predict,
    quartiles,
    walks,
)
from experiments.harness.leaf_pictures import draw, draw_distances
from experiments.harness.population import box_excess, records, statistics, unfinished
from experiments.harness.report import section

SCHEMES = ("exact", "published")
_DIGITS = (2, 3, 4, 5, 6, 7, 9)  # mirrored, 0, 1 and 8 are digits still, or nearly
# Classes that leave the data set when mirrored: sandals, sneakers and boots all point left. Of
# data sets that are not named here, all classes are taken.
_ONE_HANDED = {"digits": _DIGITS, "mnist": _DIGITS, "fashion_mnist": (5, 7, 9)}


@dataclass(frozen=True)
class Claim:
    """What is claimed of the walks.

    Attributes:
        name: Of the claim.
        stem: What its pictures are called.
        title: Heading.
        text: The claim, as the slides make it.
        goal: What the walks go to, for a sentence.
    """

    name: str
    stem: str
    title: str
    text: str
    goal: str


JOINED = Claim(
    "S3",
    "leaf",
    "Any two images are joined on the data leaf",
    "We can connect any two data images.",
    "the other image",
)
MIRRORED = Claim(
    "S4",
    "leaf_mirrored",
    "A digit is joined to a symbol that is not a digit",
    "We can connect a digit to a symbol not in the data set, here a mirrored digit, moving on the "
    "data leaf.",
    "the mirrored image",
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
        start: Place of the start in the test set, for one pair; None to draw it.
        end: The same of the target.
    """

    num_pairs: int = 64
    step: float = 0.1
    max_steps: int = 600
    save_every: int = 5
    arrival: float = 1.0
    stall: float = 0.01
    frames: int = 8
    seed: int = 0
    start: int | None = None
    end: int | None = None

    def __post_init__(self):
        check_rows(self.max_steps, self.save_every)

    def options(self) -> dict[str, Any]:
        """Return what `foliax.walk` takes."""
        names = ("step", "max_steps", "save_every", "arrival", "stall")
        return {name: getattr(self, name) for name in names}


def places(dataset: Any, config: Config, *, mirrored: bool = False) -> tuple[Any, Any]:
    """Draw the places of starts and targets in the test set, no place twice.

    With `mirrored`, targets are of classes that leave the data set when mirrored.

    Raises:
        ValueError: If there are too few test images or no pairs, or places are given for more
            than one pair, or one place twice.
    """
    given = {"start": config.start, "end": config.end}
    given = {name: place for name, place in given.items() if place is not None}
    total = len(dataset.test_x)
    if config.num_pairs < 1:
        raise ValueError(f"num_pairs must be at least 1, got {config.num_pairs}")
    if given and config.num_pairs != 1:
        raise ValueError(f"start and end name one pair, got them for {config.num_pairs} pairs")
    for name, place in given.items():
        if not 0 <= place < total:
            raise ValueError(f"{name} must be in 0 … {total - 1}, the test images, got {place}")
    order = np.random.default_rng(config.seed).permutation(total)
    order = order[~np.isin(order, list(given.values()))]
    num_starts = 0 if "start" in given else config.num_pairs
    starts, rest = order[:num_starts], order[num_starts:]
    if mirrored and dataset.name in _ONE_HANDED:
        rest = rest[np.isin(dataset.test_y[rest], _ONE_HANDED[dataset.name])]
    if len(rest) < config.num_pairs:
        raise ValueError(f"num_pairs = {config.num_pairs} is too many for {total} test images")
    starts = np.array([given["start"]]) if "start" in given else starts
    ends = np.array([given["end"]]) if "end" in given else rest[: config.num_pairs]
    if not mirrored and np.array_equal(starts, ends):
        raise ValueError(f"start and end must be two images, got {config.start} for both")
    return starts, ends


def pairs(dataset: Any, config: Config, *, mirrored: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Draw start and target images among the test images; `mirrored` mirrors the targets."""
    starts, ends = places(dataset, config, mirrored=mirrored)
    targets = dataset.test_x[ends]
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


def measure(model: Any, path: Any, xs: Any, targets: Any, dataset: Any) -> dict[str, Any]:
    """Return how a population of walks ended."""
    start = norms(targets - xs)
    wanted, _ = predict(model, targets)
    reached, _ = predict(model, path.best)
    return statistics(path, dataset) | {
        "residual": quartiles(norms(targets - path.best) / start),
        "residual_at_end": quartiles(norms(targets - path.end) / start),
        "residual_distance": quartiles(norms(targets - path.best)),
        "not_arrived": unfinished(path, targets, start),
        "tangent_fraction_at_end": quartiles(path.tangent_fraction[:, -1]),
        "label_of_target_reached": float(np.mean(np.asarray(wanted) == np.asarray(reached))),
        "dimension": quartiles(path.dimension),
        "box_excess_pixels": quartiles(box_excess(path, dataset)),
        "leaf_defect": quartiles(path.leaf_defect[:, -1]),
    }


def run(
    model: Any,
    dataset: Any,
    out: Path,
    config: Config,
    *,
    mirrored: bool = False,
    claim: Claim | None = None,
    paths: dict[str, Any] | None = None,
    models: Mapping[int, Any] | None = None,
) -> dict[str, Any]:
    """Walk a population of pairs and draw the median and the best pair.

    Args:
        model: The classifier.
        dataset: Its data.
        out: Folder for the pictures.
        config: Which pairs are walked, and how far.
        mirrored: Whether targets are mirrored (S4) or test images as they are (S3).
        claim: What the walks are to show, where it is neither of these.
        paths: What `walk_pairs` gave for the same pairs, to spare walking again.
        models: The classifier at other epochs, to see how the residual depends on training.

    Returns:
        The section of the report; see `_report.section`.
    """
    claim = claim or (MIRRORED if mirrored else JOINED)
    xs, targets = pairs(dataset, config, mirrored=mirrored)
    paths = paths or walk_pairs(model, dataset, xs, targets, config)
    numbers: dict[str, Any] = {
        scheme: measure(model, path, xs, targets, dataset) for scheme, path in paths.items()
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
    draw(model, dataset, paths, targets, (median, best), out / claim.stem, config)
    draw_distances(paths, start, out / f"{claim.stem}_distances.png", config)
    return section(
        title=claim.title,
        claim=claim.text,
        verdict=_judge(numbers, config, claim.goal),
        numbers=numbers,
        pictures=_pictures(claim.stem, config, len(xs)),
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
        arrived = float(np.mean(path.status == foliax.Status.arrived))
        found[str(epoch)] = {"arrived": arrived, "residual": residual}
    return found


def _judge(numbers: dict[str, Any], config: Config, goal: str) -> tuple[str, str]:
    exact, published = numbers["exact"], numbers["published"]
    share = exact["ended"]["arrived"]
    if numbers["num_pairs"] == 1:
        return outcome(share), _tell_one(numbers)
    told = (
        f"Of {numbers['num_pairs']} pairs, {percent(share)} arrive within "
        f"{config.arrival:g} of {goal} (exact; published: "
        f"{percent(published['ended']['arrived'])}); {percent(exact['ended']['stalled'])} stall, "
        f"where the leaf holds less than {percent(config.stall)} of the direction to the target, "
        f"and "
        f"{percent(exact['ended']['out_of_steps'])} run out of steps. The nearest point has a "
        f"median of {percent(exact['residual']['median'])} of the start distance left "
        f"({percent(exact['residual']['least'])} to {percent(exact['residual']['largest'])}; "
        f"published: {percent(published['residual']['median'])}); a random flat leaf of the same "
        f"dimension would leave {percent(numbers['flat_random_leaf'])}. There the model gives the "
        f"label of the target in {percent(exact['label_of_target_reached'])} of pairs. The "
        f"estimate of noise stays within {exact['noise']['same']:g} of that of the start in "
        f"{percent(exact['noise']['share_kept'])} of pairs (published: "
        f"{percent(published['noise']['share_kept'])}), with flat ground counted in "
        f"{percent(exact['noise_of_whole']['share_kept'])} "
        f"({percent(published['noise_of_whole']['share_kept'])})."
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


def _tell_one(numbers: dict[str, Any]) -> str:
    told = []
    for scheme in SCHEMES:
        found = numbers[scheme]
        (end,) = (name for name, share in found["ended"].items() if share)
        noise = found["noise"]
        told.append(
            f"With the {scheme} scheme the walk ends after {found['steps']['median']:.0f} steps "
            f"({end.replace('_', ' ')}) with {percent(found['residual']['median'])} of the start "
            f"distance left, {'with' if found['label_of_target_reached'] else 'without'} the label "
            f"of the target; the estimate of noise goes from {noise['start']['median']:.3g} to "
            f"{noise['end']['median']:.3g} of the pixel range."
        )
    return " ".join(told)


def _pictures(stem: str, config: Config, num_pairs: int) -> list[tuple[str, str]]:
    shown = (
        "The pair whose residual is the median of the population, with both schemes, and the best "
        "pair; each row ends"
        if num_pairs > 1
        else "The walk with both schemes; each row ends"
    )
    return [
        (
            f"{stem}.png",
            f"{shown} with its target. Pixels outside [0, 1] are clipped for display only.",
        ),
        (f"{stem}.gif", f"The {'median pair' if num_pairs > 1 else 'same walk'}, exact scheme."),
        (
            f"{stem}_distances.png",
            f"Distance to the target over {config.max_steps} steps"
            + (
                "; and the share of pairs whose nearest point is at most so far from the target."
                if num_pairs > 1
                else "."
            ),
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
        ("drift of p, median", "drift_of_p.median"),
        ("estimated noise at the start, median", "noise.start.median"),
        ("estimated noise at the end, median", "noise.end.median"),
        ("share whose noise stays the same", "noise.share_kept"),
        ("the same, flat ground counted", "noise_of_whole.share_kept"),
        ("excess over the pixel box, largest", "box_excess_pixels.largest"),
        ("length walked off the leaf, median", "leaf_defect.median"),
    )
    return [(label, *(f"{scheme}.{path}" for scheme in SCHEMES)) for label, path in quoted]


@dataclass(frozen=True)
class Command(_command.PairCommand):
    """Which network, which pairs, and how far they are walked.

    Attributes:
        flip: Mirror the targets (S4).
        steps: Steps at most.
        step: Length of a step, normalised units.
        save_every: Steps between the points kept.
        arrival: Distance to the target that counts as arrived, normalised units.
        stall: Tangent fraction below which the exact scheme has stalled.
    """

    flip: bool = False
    steps: int = 1000
    step: float = 0.1
    save_every: int = 10
    arrival: float = 1.0
    stall: float = 0.01
    out: Path = Path("out/data_leaf")

    def config(self) -> Config:
        """Return what `run` takes."""
        return Config(
            num_pairs=self.pairs,
            step=self.step,
            max_steps=min(self.steps, 60) if self.quick else self.steps,
            save_every=self.save_every,
            arrival=self.arrival,
            stall=self.stall,
            seed=self.seed,
            start=self.start,
            end=self.end,
        )


def measure_command(command: Command) -> _command.Found:
    """Walk the pairs of a command."""
    loaded, config = command.load(), command.config()
    model, dataset = loaded.model, loaded.dataset
    starts, ends = places(dataset, config, mirrored=command.flip)
    paths = walk_pairs(model, dataset, *pairs(dataset, config, mirrored=command.flip), config)
    name = (MIRRORED if command.flip else JOINED).name
    found = run(model, dataset, command.out, config, mirrored=command.flip, paths=paths)
    walks = {name: records(paths, dataset, starts, ends)}
    return _command.Found(loaded, {name: found}, walks)


if __name__ == "__main__":
    _command.main(Command, measure_command, name="data_leaf", description=__doc__)
