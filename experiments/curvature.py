"""Curvature as an explanation: what is left of it, and where a leaf bends.

    python -m experiments.curvature --images 300 --out out/curvature
    python -m experiments.curvature --checkpoint out/train --images 100

measures the sectional curvature of leaves in G's metric at test images of the network given. Where
rank G = C - 1 it is 1/4, whatever the network has learnt; so it is measured again where the rank is
lower, on a smooth network with a layer of two units, trained for it. How the leaf bends in input
space does depend on the network: that is measured on a smooth network without such a layer (inside
a linear region of ReLU units nothing bends), over a data set and along walks on the data leaf. Each
is set beside what is cheaper: the doubt 1 - max p and the trace of G, as signs of errors too.
Writes `curvature.png`, `results.json`, `paths.json`, `run.json` and `report.html`.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments import _command
from experiments import _curvature as measured
from experiments._common import FAILS, HOLDS, IN_PART, percent, walks
from experiments._report import section
from foliax import viz

_NARROW = 2  # units of the layer that bounds the rank
_CHECKED = 4  # images at which the curvature is found by Christoffel symbols too
_PATHS = 20  # walks at most
_BINS = 8


@dataclass(frozen=True)
class Command(_command.Command):
    """Which network, which images, and the smooth networks that are trained beside it.

    Attributes:
        pairs: How many test images.
        hidden: Units of the hidden layers of the smooth networks.
        epochs: How long these are trained, by Adam at 0.003.
        steps: Steps at most of the walks.
        step: Length of a step, normalised units.
    """

    pairs: _command.Count = 300
    hidden: int = 48
    epochs: int = 20
    steps: int = 200
    step: float = 0.1
    out: Path = Path("out/curvature")


def measure_command(command: Command) -> _command.Found:
    """Measure on the network given and on the two smooth ones."""
    if command.quick:
        command = replace(command, epochs=min(command.epochs, 2), steps=min(command.steps, 20))
    loaded = command.load()
    data = loaded.dataset
    places = command.starts(len(data.test_x))
    xs, labels = data.test_x[places], np.asarray(data.test_y[places])
    size, classes = math.prod(data.shape), data.num_classes
    recipe = {"epochs": command.epochs, "seed": command.seed}
    narrow = measured.trained(
        data, (size, command.hidden, _NARROW, command.hidden, classes), **recipe
    )
    smooth = measured.trained(data, (size, command.hidden, classes), **recipe)
    given = measured.over(measured.within, loaded.model, xs)
    lower = measured.over(measured.within, narrow, xs)
    bent = measured.over(measured.without, smooth, xs)
    flat = measured.over(measured.without, loaded.model, xs)
    along = _along(smooth, data, xs, command)
    _draw(given, lower, bent, along, command.out / "curvature.png")
    sections = {
        "intrinsic": _intrinsic(given, lower, measured.koszul(loaded.model, xs[:_CHECKED]), labels),
        "extrinsic": _extrinsic(bent, flat, along, labels),
    }
    return _command.Found(loaded, sections, {"images": _records(places, given, lower, bent)})


def _along(model: Any, data: Any, xs: Any, command: Command) -> dict[str, np.ndarray]:
    count = min(_PATHS, len(xs) // 2)
    path = walks(
        model, xs[:count], xs[count : 2 * count], data.box, along="leaf",
        step=command.step, max_steps=command.steps, save_every=max(1, command.steps // 10),
    )  # fmt: skip
    return measured.along_paths(model, path)


# --- the report --------------------------------------------------------------------------------


def _intrinsic(given: Any, lower: Any, koszul: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    numbers = {
        "koszul": measured.quartiles(np.abs(koszul - 0.25)),
        "given": measured.intrinsic_numbers(given, labels),
        "narrow": measured.intrinsic_numbers(lower, labels),
    }
    full, low = numbers["given"]["full_rank"], numbers["narrow"]["lower_rank"]
    aurocs = low.get("auroc_of_errors", {})
    verdict = (
        f"At {full['count']} of {len(labels)} images G has full rank, and the curvature is 1/4 to "
        f"within {full['off_a_quarter']['largest']:.2g} in all of them (by another route, in "
        f"float64, to within {numbers['koszul']['largest']:.2g} at {_CHECKED}); at "
        f"{numbers['given']['not_defined']} G no longer sees all of D in this precision. On the "
        f"network with a layer of {_NARROW} units it has a median of "
        f"{low['curvature']['median']:.3g} ({low['curvature']['least']:.3g} to "
        f"{low['curvature']['largest']:.3g}) at {low['count']} images. Its rank "
        f"correlation with the doubt 1 - max p is "
        f"{low.get('rank_correlation_with_doubt', math.nan):.2f}. "
        + (
            f"It tells errors with an AUROC of {aurocs['curvature']:.3f}, the doubt with "
            f"{aurocs['doubt']:.3f}."
            if aurocs
            else "There are no errors, or only errors, to tell."
        )
    )
    quarter = full["count"] and full["off_a_quarter"]["largest"] < 0.05
    return section(
        title="The curvature of leaves in the metric of G",
        claim="The intrinsic curvature is 1/4 wherever the rank of G is full, for every network; "
        "it can explain a prediction only where the rank is lower.",
        verdict=(HOLDS if quarter else IN_PART if full["count"] else FAILS, verdict),
        numbers=numbers,
        pictures=[
            (
                "curvature.png",
                "Left, the mean sectional curvature of the network given, at images of full rank, "
                "and of a network with a layer of two units, against the doubt. Middle, how the "
                "leaves of a smooth network bend in input space, and how far D is from integrable. "
                "Right, the same along walks on the data leaf: median and quartiles.",
            )
        ],
        columns=("", "network given", "layer of two units"),
        rows=[
            ("images where it is not defined", "given.not_defined", "narrow.not_defined"),
            ("images of full rank", "given.full_rank.count", "narrow.full_rank.count"),
            ("largest distance from 1/4", "given.full_rank.off_a_quarter.largest", ""),
            ("images of lower rank", "given.lower_rank.count", "narrow.lower_rank.count"),
            ("curvature there, median", "", "narrow.lower_rank.curvature.median"),
        ],
    )


def _extrinsic(bent: Any, flat: Any, along: Any, labels: np.ndarray) -> dict[str, Any]:
    ratio = along["norm"][:, -1] / along["norm"][:, 0]
    numbers = {
        "smooth": measured.extrinsic_numbers(bent, labels),
        "given": measured.extrinsic_numbers(flat, labels),
        "along": {
            "num_paths": len(ratio),
            "end_over_start": measured.quartiles(ratio),
            "rank_correlation_with_doubt": measured.rank_correlation(
                along["norm"].ravel(), along["doubt"].ravel()
            ),
        },
    }
    smooth = numbers["smooth"]
    aurocs = smooth.get("auroc_of_errors", {})
    medians = [found["median"] for found in smooth["by_class"].values()]
    verdict = (
        f"Over {len(labels)} images the second fundamental form has a median length of "
        f"{smooth['norm']['median']:.3g} ({smooth['norm']['least']:.3g} to "
        f"{smooth['norm']['largest']:.3g}) per unit of input, and by class medians from "
        f"{min(medians):.3g} to {max(medians):.3g}; of the network given it is "
        f"{numbers['given']['norm']['median']:.2g}. The part that keeps D from being integrable "
        f"has a median of {smooth['twist']['median']:.3g}. Rank correlation with the doubt: "
        f"{smooth['rank_correlation_with_doubt']:.2f}, with the trace of G: "
        f"{smooth['rank_correlation_with_trace']:.2f}. "
        + (
            f"Errors are told with an AUROC of {aurocs['curvature']:.3f}, by the doubt with "
            f"{aurocs['doubt']:.3f}. "
            if aurocs
            else ""
        )
        + f"Along {len(ratio)} walks it ends at {numbers['along']['end_over_start']['median']:.2f} "
        f"of that at the start (median); {percent(float(np.mean(ratio > 1)))} end where it is "
        "larger."
    )
    better = aurocs and aurocs["curvature"] > aurocs["doubt"]
    return section(
        title="How leaves bend in input space",
        claim="The extrinsic curvature of the data leaf differs from image to image, and says more "
        "of a prediction than its probability does.",
        verdict=(HOLDS if better else IN_PART, verdict),
        numbers=numbers,
        pictures=[],
        columns=("", "smooth network", "network given"),
        rows=[
            ("length of II, median", "smooth.norm.median", "given.norm.median"),
            ("twist, median", "smooth.twist.median", "given.twist.median"),
            ("mean curvature, median", "smooth.mean_curvature.median",
             "given.mean_curvature.median"),
            ("rank correlation with doubt", "smooth.rank_correlation_with_doubt", ""),
            ("rank correlation with trace", "smooth.rank_correlation_with_trace", ""),
        ],
    )  # fmt: skip


def _records(places: Any, given: Any, lower: Any, bent: Any) -> list[dict[str, Any]]:
    return [
        {
            "place": int(place),
            "curvature": given.mean[i] if given.defined[i] else None,
            "dimension": given.dimension[i],
            "curvature_narrow": lower.mean[i] if lower.defined[i] else None,
            "second_fundamental_form": bent.norm[i],
            "twist": bent.twist[i],
        }
        for i, place in enumerate(places)
    ]


def _draw(given: Any, lower: Any, bent: Any, along: Any, file: Path) -> None:
    seen, low = np.asarray(given.defined), np.asarray(lower.defined)
    doubt = 1 - np.asarray(bent.probabilities).max(axis=1)
    rows = np.arange(along["norm"].shape[1])
    least, median, most = np.quantile(along["norm"], (0.25, 0.5, 0.75), axis=0)
    viz.curves(
        [
            viz.Panel(
                "Curvature in G's metric", "doubt, log10(1 − max p)", "mean sectional curvature",
                [
                    _dots("network given", given.probabilities[seen], given.mean[seen]),
                    _dots("layer of two units", lower.probabilities[low], lower.mean[low]),
                ],
            ),
            viz.Panel(
                "Bending in input space", "doubt, log10(1 − max p)", "per unit of input",
                [
                    _binned("second fundamental form", doubt, bent.norm),
                    _binned("twist", doubt, bent.twist),
                ],
            ),
            viz.Panel(
                "Along walks on the leaf", "tenth of the walk", "second fundamental form",
                [viz.Curve("median, quartiles", rows, median, least, most)],
            ),
        ],
        file,
    )  # fmt: skip


def _dots(label: str, p: np.ndarray, values: np.ndarray) -> viz.Curve:
    return _binned(label, 1 - np.asarray(p).max(axis=1), values)


def _binned(label: str, doubt: np.ndarray, values: np.ndarray) -> viz.Curve:
    """Return medians and quartiles over images of like doubt, as many in each group."""
    order = np.argsort(doubt)
    groups = [group for group in np.array_split(order, min(_BINS, len(order))) if len(group)]
    x = [np.log10(max(float(np.median(doubt[group])), 1e-8)) for group in groups]
    levels = [np.quantile(np.asarray(values)[group], (0.25, 0.5, 0.75)) for group in groups]
    least, median, most = np.array(levels).T if levels else (np.array([]),) * 3
    return viz.Curve(label, np.array(x), median, least, most)


if __name__ == "__main__":
    _command.main(Command, measure_command, name="curvature", description=__doc__)
