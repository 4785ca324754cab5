"""Curvature as an explanation: what is left of it, and where a leaf bends.

    python -m experiments.curvature --images 300 --out out/curvature
    python -m experiments.curvature --checkpoint out/train --images 100

measures the sectional curvature of leaves in G's metric at test images. Where rank G = C - 1 it is
1/4, whatever the network has learnt: that is held against the Christoffel symbols of the metric, at
the network given and at a smooth one trained beside it. It is measured where the rank is lower, on
a smooth network with a layer of two units. How the leaf bends in input space does depend on the
network: that is measured on the smooth network (inside a linear region of ReLU units nothing
bends), over a data set and along walks on the data leaf. Each is set beside what is cheaper: the
doubt 1 - max p and the trace of G, as signs of errors too.
Writes `curvature.png`, `results.json`, `paths.json`, `run.json` and `report.html`.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import foliax
from experiments.curvature import measured
from experiments.harness import command as _command
from experiments.harness.common import FAILS, HOLDS, IN_PART, percent, walks
from experiments.harness.report import section
from foliax import viz

_NARROW = 2  # units of the layer that bounds the rank
_CHECKED = 32  # images at which the curvature is found by Christoffel symbols too
_QUARTER = 1e-5  # how near to 1/4 these have to come, in float64
_PATHS = 20  # walks at most
_ROWS = 11  # points looked at on a walk
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
    lower = measured.exactly(measured.within, narrow, xs)
    routes = {
        name: measured.exactly(measured.both, model, xs[:_CHECKED])
        for name, model in (("given", loaded.model), ("smooth", smooth), ("narrow", narrow))
    }
    bent = measured.over(measured.without, smooth, xs)
    flat = measured.over(measured.without, loaded.model, xs)
    along = _along(smooth, data, xs, command)
    _draw(routes["smooth"], lower, (bent, labels, data.class_names), along, command.out)
    sections = {
        "intrinsic": _intrinsic(given, lower, routes, labels),
        "extrinsic": _extrinsic(bent, flat, along, labels),
    }
    return _command.Found(loaded, sections, {"images": _records(places, given, lower, bent)})


def _along(model: Any, data: Any, xs: Any, command: Command) -> dict[str, Any]:
    count = min(_PATHS, len(xs) // 2)
    path = walks(
        model, xs[:count], xs[count : 2 * count], data.box, along="leaf",
        step=command.step, max_steps=command.steps, save_every=max(1, command.steps // 100),
    )  # fmt: skip
    stalled = int(np.sum(np.asarray(path.status) == foliax.Status.stalled))
    return measured.along_paths(model, path, _ROWS) | {"stalled": stalled}


# --- the report --------------------------------------------------------------------------------


def _intrinsic(given: Any, lower: Any, routes: Any, labels: np.ndarray) -> dict[str, Any]:
    numbers = {
        "routes": {name: measured.route_numbers(found) for name, found in routes.items()},
        "given": measured.intrinsic_numbers(given, labels),
        "narrow": measured.intrinsic_numbers(lower, labels),
    }
    at_full = [numbers["routes"][name] for name in ("given", "smooth")]
    seen = [found for found in at_full if found["num_images"]]
    holds = [found["off_a_quarter"]["largest"] < _QUARTER for found in seen]
    outcome = FAILS if not any(holds) else HOLDS if all(holds) and len(holds) == 2 else IN_PART
    return section(
        title="The curvature of leaves in the metric of G",
        claim="The intrinsic curvature is 1/4 wherever the rank of G is full, for every network; "
        "it can explain a prediction only where the rank is lower.",
        verdict=(outcome, _say_intrinsic(numbers, len(labels))),
        numbers=numbers,
        pictures=[
            (
                "curvature.png",
                "From the left: the mean sectional curvature of a network with a layer of two "
                "units, and that of a smooth network of full rank by its Christoffel symbols, "
                "against the doubt. How the leaves of the smooth network bend in input space, and "
                "how far D is from integrable. The same by class, and along walks on the data "
                "leaf. Lines are medians, bands quartiles.",
            )
        ],
        columns=("", "network given", "layer of two units"),
        rows=[
            ("images where it is not defined", "given.not_defined", "narrow.not_defined"),
            ("images of full rank", "given.full_rank.count", "narrow.full_rank.count"),
            ("images of lower rank", "given.lower_rank.count", "narrow.lower_rank.count"),
            ("curvature there, median", "", "narrow.lower_rank.curvature.median"),
            ("by Christoffel symbols, largest distance from 1/4",
             "routes.given.off_a_quarter.largest", ""),
            ("two routes apart, largest", "routes.given.apart.largest",
             "routes.narrow.apart.largest"),
        ],
    )  # fmt: skip


def _say_intrinsic(numbers: dict[str, Any], count: int) -> str:
    full, low = numbers["given"]["full_rank"], numbers["narrow"]["lower_rank"]
    given, smooth, narrow = (numbers["routes"][name] for name in ("given", "smooth", "narrow"))
    aurocs = low.get("auroc_of_errors", {})
    return (
        f"At {full['count']} of {count} images G of the network given has full rank, and Gauss' "
        "equation leaves nothing but 1/4; at "
        f"{numbers['given']['not_defined']} G no longer sees all of D in this precision. The "
        "Christoffel symbols of the metric, in float64 and one plane an image, give 1/4 to within "
        f"{given['off_a_quarter']['largest']:.2g} at {given['num_images']} images of this network "
        f"and {smooth['off_a_quarter']['largest']:.2g} at {smooth['num_images']} of a smooth one. "
        f"On the network with a layer of {_NARROW} units the curvature has a median of "
        f"{low['curvature']['median']:.3g} ({low['curvature']['least']:.3g} to "
        f"{low['curvature']['largest']:.3g}) at {low['count']} images, and the two routes differ "
        f"by at most {narrow['apart']['largest']:.2g} of it. Its rank correlation with the doubt "
        f"1 - max p is {low.get('rank_correlation_with_doubt', math.nan):.2f}. {_errors(aurocs)}"
    )


def _errors(aurocs: dict[str, float]) -> str:
    """Say how well a curvature tells errors, whichever of its ends is the sign of one."""
    if not aurocs:
        return "There are no errors, or only errors, to tell."
    found = aurocs["curvature"]
    turned = f" ({1 - found:.3f} where the smaller is the sign)" if found < 0.5 else ""
    return (
        f"It tells errors with an AUROC of {found:.3f}{turned}, the doubt with "
        f"{aurocs['doubt']:.3f}, the trace with {aurocs['trace']:.3f}."
    )


def _extrinsic(bent: Any, flat: Any, along: Any, labels: np.ndarray) -> dict[str, Any]:
    ratio = along["norm"][:, -1] / along["norm"][:, 0]
    numbers = {
        "smooth": measured.extrinsic_numbers(bent, labels),
        "given": measured.extrinsic_numbers(flat, labels),
        "along": {
            "num_paths": len(ratio),
            "stalled": along["stalled"],
            "num_points": int(along["fresh"].sum()),
            "end_over_start": measured.quartiles(ratio),
            "grew": float(np.mean(ratio > 1)),
            "rank_correlation_with_doubt": measured.rank_correlation(
                along["norm"][along["fresh"]], along["doubt"][along["fresh"]]
            ),
        },
    }
    aurocs = numbers["smooth"].get("auroc_of_errors", {})
    better = aurocs and max(aurocs["curvature"], 1 - aurocs["curvature"]) > aurocs["doubt"]
    return section(
        title="How leaves bend in input space",
        claim="The extrinsic curvature of the data leaf differs from image to image, and says more "
        "of a prediction than its probability does.",
        verdict=(HOLDS if better else IN_PART, _say_extrinsic(numbers)),
        numbers=numbers,
        pictures=[],
        columns=("", "smooth network", "network given"),
        rows=[
            ("length of II, median", "smooth.norm.median", "given.norm.median"),
            ("where the prediction is right", "smooth.of_right.median", ""),
            ("where it is wrong", "smooth.of_wrong.median", ""),
            ("twist, median", "smooth.twist.median", "given.twist.median"),
            ("mean curvature, median", "smooth.mean_curvature.median",
             "given.mean_curvature.median"),
            ("rank correlation with doubt", "smooth.rank_correlation_with_doubt", ""),
            ("rank correlation with trace", "smooth.rank_correlation_with_trace", ""),
        ],
    )  # fmt: skip


def _say_extrinsic(numbers: dict[str, Any]) -> str:
    smooth, given, along = numbers["smooth"], numbers["given"], numbers["along"]
    medians = [found["median"] for found in smooth["by_class"].values()]
    return (
        f"Over {smooth['num_images']} images the second fundamental form of the smooth network has "
        f"a median length of {smooth['norm']['median']:.3g} ({smooth['norm']['least']:.3g} to "
        f"{smooth['norm']['largest']:.3g}) per unit of input, and by class medians from "
        f"{min(medians):.3g} to {max(medians):.3g}; of the network given it is "
        f"{given['norm']['median']:.2g}. The part that keeps D from being integrable has a median "
        f"of {smooth['twist']['median']:.3g}. Rank correlation with the doubt: "
        f"{smooth['rank_correlation_with_doubt']:.2f}, with the trace of G: "
        f"{smooth['rank_correlation_with_trace']:.2f}. At the {smooth['wrong']} images that are "
        f"taken for another class the median is {smooth['of_wrong']['median']:.3g}, at the others "
        f"{smooth['of_right']['median']:.3g}. {_errors(smooth.get('auroc_of_errors', {}))} Along "
        f"{along['num_paths']} walks, of which {along['stalled']} stalled short of their target, "
        f"it ends at {along['end_over_start']['median']:.2f} of that at the start (median); "
        f"{percent(along['grew'])} end where it is larger."
    )


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


def _draw(whole: Any, lower: Any, over: Any, along: Any, out: Path) -> None:
    (bent, labels, names), low = over, np.asarray(lower.defined)
    seen = np.asarray(whole.defined)
    classes = np.unique(labels)
    by_class = [np.asarray(bent.norm)[labels == label] for label in classes]
    viz.curves(
        [
            viz.Panel(
                "Curvature in G's metric", "doubt, log10(1 − max p)", "mean sectional curvature",
                [
                    _binned("layer of two units", _doubt(lower)[low], lower.mean[low]),
                    _binned("full rank", _doubt(whole)[seen], whole.koszul[seen]),
                ],
            ),
            viz.Panel(
                "Bending in input space", "doubt, log10(1 − max p)", "per unit of input",
                [
                    _binned("second fundamental form", _doubt(bent), bent.norm),
                    _binned("twist", _doubt(bent), bent.twist),
                ],
            ),
            viz.Panel(
                "By class", "class", "second fundamental form",
                [_levels("median, quartiles", np.arange(len(classes)), by_class, dots=True)],
                x_names=[names[label] for label in classes],
            ),
            viz.Panel(
                "Along walks on the leaf", "share of the steps taken", "second fundamental form",
                [_levels("median, quartiles", np.linspace(0, 1, _ROWS), along["norm"].T)],
            ),
        ],
        out / "curvature.png",
    )  # fmt: skip


def _doubt(found: Any) -> np.ndarray:
    return 1 - np.asarray(found.probabilities).max(axis=1)


def _binned(label: str, doubt: np.ndarray, values: np.ndarray) -> viz.Curve:
    """Return medians and quartiles over images of like doubt, as many in each group."""
    order = np.argsort(doubt)
    groups = [group for group in np.array_split(order, min(_BINS, len(order) or 1)) if len(group)]
    x = [np.log10(max(float(np.median(doubt[group])), 1e-8)) for group in groups]
    return _levels(label, np.array(x), [np.asarray(values)[group] for group in groups])


def _levels(label: str, x: np.ndarray, groups: Any, *, dots: bool = False) -> viz.Curve:
    levels = [np.quantile(group, (0.25, 0.5, 0.75)) for group in groups]
    least, median, most = np.array(levels).T if levels else (np.array([]),) * 3
    return viz.Curve(label, x, median, least, most, dots=dots)


if __name__ == "__main__":
    _command.main(Command, measure_command, name="curvature", description=__doc__)
