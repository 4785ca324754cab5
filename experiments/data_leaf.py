"""S3 and S4: walks on the data leaf from one image toward another, or toward a mirrored one.

    python -m experiments.data_leaf --start 3 --end 17 --out out/data_leaf
    python -m experiments.data_leaf --flip --pairs 100 --out out/data_leaf_flip
    python -m experiments.data_leaf --checkpoint out/train --epoch 2 --pairs 100

walks with the exact and the published scheme, and writes strips, a GIF, the distances, and
`results.json`, `paths.json` (every path point by point), `run.json` and `report.html`. `--flip`
takes mirrored targets, which are no digits (of Fashion-MNIST: shoes, which all point left).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import foliax
from experiments.harness import command
from experiments.harness.networks import Loaded
from experiments.harness.pictures import draw_distances, draw_walks
from experiments.harness.populations import norms, predict, quartiles, records, statistics
from experiments.harness.report import outcome, percent, rows_of, section
from experiments.harness.study import ARRIVAL, SCHEMES, Kind, Study, WalkCommand, places


class Claim(NamedTuple):
    """A claim on walks to targets of a kind, and the stem of the names of its pictures."""

    name: str
    kind: Kind
    stem: str
    title: str
    text: str


JOINED = Claim(
    "S3",
    "test",
    "leaf",
    "Any two images are joined on the data leaf",
    "We can connect any two data images.",
)
MIRRORED = Claim(
    "S4",
    "mirrored",
    "leaf_mirrored",
    "A digit is joined to a symbol that is not a digit",
    "We can connect a digit to a symbol not in the data set, here a mirrored digit, moving on the "
    "data leaf.",
)


def measure(study: Study, scheme: str, kind: Kind) -> dict[str, Any]:
    """Return how a population of walks ended; computed once."""
    return study.once(("walks", kind, scheme), lambda: _measure(study, scheme, kind))


def _measure(study: Study, scheme: str, kind: Kind) -> dict[str, Any]:
    (xs, targets), path = study.pair(kind), study.leaf(scheme, kind)
    start, rest = norms(targets - xs), norms(targets - path.best)
    left = path.status != foliax.Status.arrived
    wanted, reached = (np.asarray(predict(study.model, x)[0]) for x in (targets, path.best))
    return statistics(path, study.dataset) | {
        "residual": quartiles(rest / start),
        "residual_at_end": quartiles(norms(targets - path.end) / start),
        "residual_distance": quartiles(rest),
        "not_arrived": {
            "count": int(left.sum()),
            "distance": quartiles(rest[left]),
            "residual": quartiles((rest / start)[left]),
            "tangent_fraction": quartiles(path.tangent_fraction[left, -1]),
        },
        "tangent_fraction_at_end": quartiles(path.tangent_fraction[:, -1]),
        "label_of_target_reached": float(np.mean(wanted == reached)),
        "dimension": quartiles(path.dimension),
        "leaf_defect": quartiles(path.leaf_defect[:, -1]),
    }


def run(
    study: Study, out: Path, claim: Claim = JOINED, models: Mapping[int, Any] | None = None
) -> dict[str, Any]:
    """Walk a population of pairs, draw the median and the best pair, and return the section.

    `models` are the classifier at other epochs, to see how the residual depends on training.
    """
    kind, sizes = claim.kind, study.sizes
    xs, targets = study.pair(kind)
    paths = study.leaves(kind)
    numbers: dict[str, Any] = {scheme: measure(study, scheme, kind) for scheme in SCHEMES}
    start = norms(targets - xs)
    order = np.argsort(norms(targets - paths["exact"].best) / start, kind="stable")
    median, best = int(order[len(order) // 2]), int(order[0])
    shape = np.prod(study.dataset.shape)
    numbers |= {
        "num_pairs": len(xs),
        # What a fixed random subspace of the leaf's dimension would leave of a distance.
        "flat_random_leaf": np.sqrt(1 - numbers["exact"]["dimension"]["median"] / shape),
        "by_epoch": {
            str(epoch): _at_epoch(replace(study, model=model), kind)
            for epoch, model in (models or {}).items()
        },
        "start_distance": quartiles(start),
        "arrival": ARRIVAL,
        "max_steps": sizes.steps,
        "shown_median_pair": median,
        "shown_best_pair": best,
    }
    draw_walks(study.model, study.dataset, paths, targets, (median, best), out / claim.stem)
    file = out / f"{claim.stem}_distances.png"
    draw_distances(paths, start, file, save_every=sizes.save_every, arrival=ARRIVAL)
    return section(
        title=claim.title,
        claim=claim.text,
        verdict=_verdict(numbers),
        numbers=numbers,
        pictures={
            f"{claim.stem}.png": (
                "The pair with the median residual, with both schemes, and the best pair; each row "
                "ends with its target. Pixels outside [0, 1] are clipped for display only."
            ),
            f"{claim.stem}.gif": "The median pair, exact scheme.",
            f"{claim.stem}_distances.png": (
                "Distance to the target by step, and the share of pairs whose closest point is at "
                "most so far from it."
            ),
        },
        columns=("", *SCHEMES),
        rows=rows_of(SCHEMES, _ROWS),
    )


def _at_epoch(study: Study, kind: Kind) -> dict[str, Any]:
    """Return how the exact walks end on the checkpoint of another epoch."""
    (xs, targets), path = study.pair(kind), study.leaf("exact", kind)
    return {
        "arrived": float(np.mean(path.status == foliax.Status.arrived)),
        "residual": quartiles(norms(targets - path.best) / norms(targets - xs)),
    }


def _verdict(numbers: dict[str, Any]) -> tuple[str, str]:
    exact, published = numbers["exact"], numbers["published"]
    share, residual = exact["ended"]["arrived"], exact["residual"]
    text = (
        f"Of {numbers['num_pairs']} pairs, {percent(share)} arrive within {ARRIVAL:g} of the "
        f"target (published: {percent(published['ended']['arrived'])}). At the closest point a "
        f"median of {percent(residual['median'])} of the start distance remains, at least "
        f"{percent(residual['least'])} (published: {percent(published['residual']['median'])}; a "
        "random flat leaf of the same dimension would leave "
        f"{percent(numbers['flat_random_leaf'])}), and "
        f"{percent(exact['label_of_target_reached'])} have the label of the target there."
    )
    if share <= 0.01 and exact["label_of_target_reached"] > 0.5:
        text += " The leaf leads to the label of the target, not to its image."
    return outcome(share), text


_ROWS = (
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


@dataclass(frozen=True)
class Command(WalkCommand):
    """Which network, which pairs, and how far they are walked."""

    flip: bool = False  # Mirror the targets (S4)


def measure_command(options: Command) -> command.Found:
    """Walk the pairs of a command."""
    loaded = options.load()
    study = Study(loaded.model, loaded.dataset, options.sizes())
    return walked(study, loaded, options.out, MIRRORED if options.flip else JOINED)


def walked(
    study: Study, loaded: Loaded, out: Path, claim: Claim, *, labelled: bool = True
) -> command.Found:
    """Walk the pairs of a study, and keep every path."""
    starts, ends = places(study.dataset, study.sizes, mirrored=claim.kind == "mirrored")
    found = run(study, out, claim)
    paths = records(study.leaves(claim.kind), study.dataset, starts, ends)
    return command.Found(loaded, {claim.name: found}, {claim.name: paths}, labelled=labelled)


if __name__ == "__main__":
    command.main(Command, measure_command, name="data_leaf", description=__doc__)
