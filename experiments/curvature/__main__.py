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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import foliax
from experiments.curvature import measures
from experiments.harness import command as commands
from experiments.harness.populations import quartiles, rank_correlation, walks
from experiments.harness.report import HOLDS, IN_PART, outcome, section
from foliax import viz

_NARROW = 2  # units of the layer that bounds the rank
_CHECKED = 32  # images at which the curvature is found by Christoffel symbols too
_QUARTER = 1e-5  # how near to 1/4 these have to come, in float64
_PATHS = 20  # walks at most
_ROWS = 11  # points measured on a walk
_BINS = 8
_PICTURE = (
    "curvature.png",
    "From the left: the mean sectional curvature of a network with a layer of two units, and that "
    "of a smooth network of full rank by its Christoffel symbols, against the doubt. How the "
    "leaves of the smooth network bend in input space, and how far D is from integrable. The same "
    "by class, and along walks on the data leaf. Lines are medians, bands quartiles.",
)


@dataclass(frozen=True)
class Command(commands.Command):
    """Which network, which images, and the smooth networks that are trained beside it."""

    pairs: commands.Count = 300  # How many test images
    hidden: int = 48  # Units of the hidden layers of the smooth networks
    epochs: int = 20  # How long these are trained, by Adam at 0.003
    steps: int = 200  # Steps at most of the walks
    step: float = 0.1  # Length of a step, normalised units


def measure_command(command: Command) -> commands.Found:
    """Measure on the network given and on the two smooth ones."""
    command = command.at_most(epochs=2, steps=20)
    loaded = command.load()
    model, data = loaded.model, loaded.dataset
    places = command.starts(len(data.test_x))
    xs, labels = data.test_x[places], np.asarray(data.test_y[places])
    narrow, smooth = (
        measures.trained(
            data, (math.prod(data.shape), *hidden, data.num_classes), epochs=command.epochs,
            seed=command.seed,
        )
        for hidden in ((command.hidden, _NARROW, command.hidden), (command.hidden,))
    )  # fmt: skip
    given = measures.over(measures.intrinsic, model, xs)
    lower = measures.in_float64(measures.intrinsic, narrow, xs)
    routes = {
        name: measures.in_float64(measures.routes, network, xs[:_CHECKED])
        for name, network in (("given", model), ("smooth", smooth), ("narrow", narrow))
    }
    bent, flat = (measures.over(measures.extrinsic, network, xs) for network in (smooth, model))
    along = _along(smooth, data, xs, command)
    _draw(routes["smooth"], lower, bent, labels, along, data.class_names, command.out)
    sections = {
        "intrinsic": _intrinsic(given, lower, routes, labels),
        "extrinsic": _extrinsic(bent, flat, along, labels),
    }
    images = [
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
    return commands.Found(loaded, sections, {"images": images})


def _along(model: Any, data: Any, xs: Any, command: Command) -> dict[str, Any]:
    count = min(_PATHS, len(xs) // 2)
    path = walks(
        model, xs[:count], xs[count : 2 * count], data.box, along="leaf",
        step=command.step, max_steps=command.steps, save_every=max(1, command.steps // 100),
    )  # fmt: skip
    stalled = int(np.sum(path.status == foliax.Status.stalled))
    return measures.along_paths(model, path, _ROWS) | {"stalled": stalled}


def _intrinsic(given: Any, lower: Any, routes: Any, labels: np.ndarray) -> dict[str, Any]:
    numbers = {
        "routes": {name: measures.route_numbers(found) for name, found in routes.items()},
        "given": measures.intrinsic_numbers(given, labels),
        "narrow": measures.intrinsic_numbers(lower, labels),
    }
    holds = [
        numbers["routes"][name]["off_a_quarter"]["largest"] < _QUARTER
        for name in ("given", "smooth")  # NaN, which does not hold, where there is no such image
    ]
    return section(
        title="The curvature of leaves in the metric of G",
        claim="The intrinsic curvature is 1/4 wherever the rank of G is full, for every network; "
        "it can explain a prediction only where the rank is lower.",
        verdict=(outcome(float(np.mean(holds))), _say_intrinsic(numbers, len(labels))),
        numbers=numbers,
        pictures=[_PICTURE],
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
    given, low = numbers["given"], numbers["narrow"]["lower_rank"]
    off = " and ".join(
        f"{found['off_a_quarter']['largest']:.2g} at {found['num_images']} images of the {name} one"
        for name, found in numbers["routes"].items()
        if name != "narrow"
    )
    return (
        f"At {given['full_rank']['count']} of {count} images G of the network given has full rank. "
        f"The Christoffel symbols, in float64 and one plane an image, give 1/4 to within {off}. "
        f"With a layer of {_NARROW} units the curvature is {_range(low['curvature'])}. "
        f"{_say_errors(low)}"
    )


def _range(found: dict[str, float]) -> str:
    return f"{found['median']:.3g} ({found['least']:.3g} to {found['largest']:.3g})"


def _say_errors(found: dict[str, Any]) -> str:
    """Say how well a curvature tells errors; an AUROC below 0.5 has the smaller as the sign."""
    scores = ", ".join(f"{k} {v:.3f}" for k, v in found.get("auroc_of_errors", {}).items())
    return f"AUROC of errors: {scores or 'there are none, or only errors'}."


def _extrinsic(bent: Any, flat: Any, along: Any, labels: np.ndarray) -> dict[str, Any]:
    ratio, fresh = along["norm"][:, -1] / along["norm"][:, 0], along["fresh"]
    numbers = {
        "smooth": measures.extrinsic_numbers(bent, labels),
        "given": measures.extrinsic_numbers(flat, labels),
        "along": {
            "num_paths": len(ratio),
            "stalled": along["stalled"],
            "num_points": int(fresh.sum()),
            "end_over_start": quartiles(ratio),
            "grew": float(np.mean(ratio > 1)),
            "rank_correlation_with_doubt": rank_correlation(
                along["norm"][fresh], along["doubt"][fresh]
            )[0],
        },
    }
    aurocs = numbers["smooth"].get("auroc_of_errors")
    better = aurocs and max(aurocs["curvature"], 1 - aurocs["curvature"]) > aurocs["doubt"]
    both = {
        "length of II, median": "norm.median",
        "twist, median": "twist.median",
        "mean curvature, median": "mean_curvature.median",
    }
    one = {
        "length of II where the prediction is right": "of_right.median",
        "where it is wrong": "of_wrong.median",
        "rank correlation with doubt": "rank_correlation_with_doubt",
        "rank correlation with trace": "rank_correlation_with_trace",
    }
    return section(
        title="How leaves bend in input space",
        claim="The extrinsic curvature of the data leaf differs from image to image, and says more "
        "of a prediction than its probability does.",
        verdict=(HOLDS if better else IN_PART, _say_extrinsic(numbers)),
        numbers=numbers,
        pictures=[],
        columns=("", "smooth network", "network given"),
        rows=[
            *((text, f"smooth.{path}", f"given.{path}") for text, path in both.items()),
            *((text, f"smooth.{path}", "") for text, path in one.items()),
        ],
    )


def _say_extrinsic(numbers: dict[str, Any]) -> str:
    smooth, along = numbers["smooth"], numbers["along"]
    medians = [found["median"] for found in smooth["by_class"].values()]
    return (
        f"Over {smooth['num_images']} images the length of the second fundamental form of the "
        f"smooth network is {_range(smooth['norm'])} per unit of input, with class medians from "
        f"{min(medians):.3g} to {max(medians):.3g}. {_say_errors(smooth)} Along "
        f"{along['num_paths']} walks it ends at {along['end_over_start']['median']:.2f} of that at "
        f"the start (median)."
    )


def _draw(full: Any, lower: Any, bent: Any, labels: Any, along: Any, names: Any, out: Path) -> None:
    classes = np.unique(labels)
    by_class = [bent.norm[labels == label] for label in classes]
    doubt = "doubt, log10(1 − max p)"
    curvatures = [
        _binned("layer of two units", lower, lower.mean, lower.defined),
        _binned("full rank", full, full.koszul, full.defined),
    ]
    bending = [
        _binned("second fundamental form", bent, bent.norm),
        _binned("twist", bent, bent.twist),
    ]
    of_classes = [_levels("median, quartiles", np.arange(len(classes)), by_class, dots=True)]
    on_walks = [_levels("median, quartiles", np.linspace(0, 1, _ROWS), along["norm"].T)]
    form = "second fundamental form"
    panels = [
        viz.Panel("Curvature in G's metric", doubt, "mean sectional curvature", curvatures),
        viz.Panel("Bending in input space", doubt, "per unit of input", bending),
        viz.Panel("By class", "class", form, of_classes, x_names=[names[c] for c in classes]),
        viz.Panel("Along walks on the leaf", "share of the steps taken", form, on_walks),
    ]
    viz.curves(panels, out / "curvature.png")


def _binned(label: str, found: Any, values: np.ndarray, where: Any = slice(None)) -> viz.Curve:
    """Return medians and quartiles over images of like doubt, as many in each group."""
    doubt, values = 1 - found.probabilities[where].max(axis=1), values[where]
    groups = np.array_split(np.argsort(doubt), min(_BINS, len(doubt) or 1))
    x = [np.log10(max(float(np.median(doubt[group])), 1e-8)) for group in groups if len(group)]
    return _levels(label, np.array(x), [values[group] for group in groups if len(group)])


def _levels(label: str, x: np.ndarray, groups: Any, *, dots: bool = False) -> viz.Curve:
    levels = [np.quantile(group, (0.25, 0.5, 0.75)) for group in groups]
    least, median, most = np.array(levels).T if levels else (np.array([]),) * 3
    return viz.Curve(label, x, median, least, most, dots=dots)


if __name__ == "__main__":
    commands.main(Command, measure_command, name="curvature", description=__doc__)
