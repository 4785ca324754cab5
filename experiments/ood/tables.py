"""The tables of the out-of-distribution experiment, its verdict and its pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness.report import FAILS, HOLDS, IN_PART, markdown_table
from experiments.ood import measures
from experiments.ood.baselines import NAMES
from experiments.ood.leaf import AT_X
from experiments.ood.measures import WAYS
from foliax import viz
from foliax.viz.style import figure

_PREDICTED = tuple(
    f"{name}[predicted]"
    for name in (
        "residual", "residual_ratio", "kernel_fraction", "kernel_at_reference", "kernel_at_x",
        "metric_length", "fisher_distance", "distance",
    )
)  # fmt: skip
_FOR_COMPARISON = ("residual[nearest]", "residual_ratio[nearest]", "distance[many, min]")
_LENGTHS = ("residual", "kernel_at_reference", "kernel_at_x")  # in the units of a distance
_LEAST = 0.001  # a gain in mean AUROC whose interval does not lie above this counts as none
_FURTHER = 6  # rows of other families, the best ones
_SHOWN = 6  # images in a row of the examples
_PARTNERS = 8  # rows of the table of gains


def is_blind(name: str) -> bool:
    """Tell whether a score is the leaf's, with references not chosen by distance."""
    return name not in NAMES and not name.startswith("distance") and "nearest" not in name


def control_of(name: str) -> str | None:
    """Return the plain distance that a length of the leaf could stand for; None for others."""
    score, _, family = name.partition("[")
    return f"distance[{family}" if score in _LENGTHS else None


def shown(result: Mapping[str, Any]) -> list[str]:
    """Return the rows of a short table; every score is in results.json."""
    scores, known = result["scores"], (*NAMES, *AT_X, *_PREDICTED)
    others = [name for name in scores if name not in known and is_blind(name)]
    others.sort(key=lambda name: (-measures.mean(scores[name]), name))
    chosen = (result[key][0] for key in ("chosen", "chosen_beside_partner"))
    names = dict.fromkeys((*known, *others[:_FURTHER], *chosen, *_FOR_COMPARISON))
    return [name for name in names if name in scores]


def report(results: Mapping[str, Any], milliseconds: Mapping[str, float]) -> str:
    """Return verdicts and tables of all epochs as Markdown."""
    epochs = results["epochs"]
    parts = [f"# Out of distribution: {results['setting']['dataset']}"]
    for epoch, result in epochs.items():
        parts += [
            f"## {result['network']}",
            "**{}**: {}".format(*verdict(result)),
            "AUROC, mean AUPR (outliers positive) and mean FPR at 95 % TPR (test images positive), "
            f"epoch {epoch}; `called` is the mean share of outliers above the threshold that 95 % "
            "of the held training images do not exceed, `alarms` that of test images.",
            measures_table(result),
            "Change of the mean AUROC, with a 95 % bootstrap interval, where a score joins the "
            "distance of the nearest training image in pixels.",
            gains_table(result),
        ]
    costs = [["scores", "ms an image"], *([k, f"{ms:.3g}"] for k, ms in milliseconds.items())]
    parts += [f"## Cost (epoch {list(epochs)[-1]})", markdown_table(costs)]
    if len(epochs) > 1:
        parts += ["## Degree of training", training_table(results)]
    return "\n\n".join(parts)


def verdict(result: Mapping[str, Any]) -> tuple[str, str]:
    """Return whether the slides' hope holds for one network, and the numbers it rests on."""
    means = {name: measures.mean(rows) for name, rows in result["scores"].items()}
    alone = max(filter(is_blind, means), key=lambda name: (result["synthetic"][name], name))
    strongest = max((name for name in NAMES if name in means), key=lambda name: means[name])
    (chosen, way), (partner, its_way) = result["chosen"], result["partner"]
    found, beside = result["gains"][chosen][way], result["gains"][partner][its_way]
    instead = result["gains_over_plain"].get(chosen, {}).get(way)
    words = (
        f"Mean AUROC: {means[alone]:.3f} by {alone}, the leaf's score that synthetic outliers "
        f"choose; {means[strongest]:.3f} by {strongest}, the best baseline. Joined to the distance "
        f"in pixels, the chosen {chosen} ({way}) changes it by {_interval(found)}"
        + (f", and by {_interval(instead)} over {control_of(chosen)} there" if instead else "")
        + f"; the chosen baseline {partner} ({its_way}) by {_interval(beside)}."
    )
    if means[alone] >= means[strongest]:
        return HOLDS, words
    adds = found["low"] > _LEAST and (instead is None or instead["low"] > _LEAST)
    return (IN_PART if adds else FAILS), words


def _interval(gain: Mapping[str, float]) -> str:
    return f"{gain['gain']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"


def measures_table(result: Mapping[str, Any]) -> str:
    """Return AUROC by set, and means of the other measures."""
    scores = result["scores"]
    outs = measures.outside(next(iter(scores.values())))
    lines = [["score", *outs, "mean", "AUPR", "FPR95", "called", "alarms"]]
    for name in shown(result):
        rows = scores[name]
        cells = [f"{rows[out]['auroc']:.3f}" if out in rows else "" for out in outs]
        cells += [f"{measures.mean(rows, key):.3f}" for key in ("auroc", "aupr", "fpr95", "called")]
        lines.append([name, *cells, f"{rows['test']['called']:.3f}"])
    return markdown_table(lines)


def gains_table(result: Mapping[str, Any]) -> str:
    """Return what scores add to the distance in pixels, and to it and the best baseline."""
    gains, beside, partner = result["gains"], result["gains_beside_partner"], result["partner"][0]
    blind = sorted(
        filter(is_blind, gains),
        key=lambda name: (-max(each["synthetic"] for each in gains[name].values()), name),
    )
    best = [result["chosen"][0], result["chosen_beside_partner"][0], *blind[:_PARTNERS]]
    best += [name for name in blind if any(gains[name][way]["low"] > 0 for way in WAYS)]
    controls = [control for name in best if (control := control_of(name))]
    names = [*NAMES, *best, _PREDICTED[0], *controls, _FOR_COMPARISON[0]]
    lines = [["partner", "synthetic", "sum", "logistic", "weight", "most changed (logistic)",
              "logistic, over plain", f"sum, beside {partner}",
              f"logistic, beside {partner}"]]  # fmt: skip
    for name in (name for name in dict.fromkeys(names) if name in gains):
        both, plain = gains[name], result["gains_over_plain"].get(name)
        sets = both["logistic"]["by_set"]
        most = max(sets, key=lambda out: abs(sets[out]))
        lines.append([
            name + (" (chosen)" if name in (result["chosen"][0], partner) else ""),
            "/".join(f"{both[way]['synthetic']:.3f}" for way in WAYS),
            *(_interval(both[way]) for way in WAYS),
            f"{both['logistic']['weights'][-1]:+.2f}",
            f"{most} {sets[most]:+.3f}",
            _interval(plain["logistic"]) if plain else "",
            *(_interval(beside[name][way]) if name in beside else "" for way in WAYS),
        ])  # fmt: skip
    return markdown_table(lines)


def training_table(results: Mapping[str, Any]) -> str:
    """Return accuracy, trace and mean AUROC by epoch, and where the training's trace peaks."""
    epochs, peak = results["epochs"].values(), results["training"]["peak_epoch_of_training"]
    lines = [
        ["epoch", *results["epochs"]],
        ["test accuracy", *(f"{each['accuracy']:.3f}" for each in epochs)],
        [
            "mean trace" + (f" (of the training, largest in epoch {peak})" if peak else ""),
            *(f"{each['mean_trace']:.3g}" for each in epochs),
        ],
    ]
    for name in dict.fromkeys(name for each in epochs for name in shown(each)):
        rows = [each["scores"].get(name) for each in epochs]
        lines.append([name, *("" if r is None else f"{measures.mean(r):.3f}" for r in rows)])
    chosen = [(each["gains"], *each["chosen"]) for each in epochs]
    gained = (f"{_interval(gains[name][way])} {name}" for gains, name, way in chosen)
    return markdown_table([*lines, ["gain of the chosen score beside pixels", *gained]])


# --- pictures ----------------------------------------------------------------------------------


def heat_map(results: Mapping[str, Any], path: Path) -> None:
    """Draw the AUROC of each score on each set, at the last epoch."""
    result = list(results["epochs"].values())[-1]
    names, scores = shown(result), result["scores"]
    outs = measures.outside(scores[names[0]])
    columns = [*outs, "mean"]
    values = np.array([
        [*(scores[name].get(out, {}).get("auroc", np.nan) for out in outs),
         measures.mean(scores[name])]
        for name in names
    ])  # fmt: skip
    with figure(path, 3.4 + 0.62 * len(columns), 1.3 + 0.22 * len(names)) as drawn:
        axes = drawn.add_subplot()
        axes.grid(False)
        mesh = axes.imshow(values, cmap="PuOr_r", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ink = "white" if abs(value - 0.5) > 0.38 else "black"
                centre = {"ha": "center", "va": "center", "fontsize": 6.5, "color": ink}
                axes.text(column, row, f"{value:.2f}", **centre)
        axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.axhline(sum(name in NAMES for name in names) - 0.5, color="black", lw=1)
        axes.axvline(len(outs) - 0.5, color="black", lw=1)
        axes.set_title(f"AUROC, {results['setting']['dataset']}, {result['network']}")
        drawn.colorbar(mesh, ax=axes, fraction=0.04, pad=0.02, label="AUROC; 0.5 is chance")
        drawn.tight_layout(pad=0.8)


def examples(sets: Any, parts: measures.Parts, name: str, path: Path) -> None:
    """Draw test images and outliers that the chosen score finds least and most far out."""
    images, captions, labels = [], [], []
    for pool, among in (("test images", ["test"]), ("outliers", measures.outside(parts))):
        xs = np.concatenate([sets.images[kind] for kind in among])
        values = np.concatenate([parts[kind][name] for kind in among])
        kinds = np.repeat(among, [len(sets.images[kind]) for kind in among])
        ranked = np.argsort(values, kind="stable")
        for end, places in (("least", ranked[:_SHOWN]), ("most", ranked[::-1][:_SHOWN])):
            labels.append(f"{pool},\n{end}")
            images.append(np.asarray(sets.dataset.to_pixels(xs[places])))
            captions += [f"{values[p]:.3g}\n{kinds[p]}" for p in places]
    viz.strip(np.concatenate(images), captions, path, row_labels=labels, title=name)


def training(results: Mapping[str, Any], path: Path) -> None:
    """Draw mean AUROC and mean trace against the epoch."""
    epochs = results["epochs"].values()
    names: Sequence[str] = (
        "knn_pixels", "energy", "residual[predicted]", "kernel_at_x[many, min]",
        "fisher_distance[predicted]", "trace",
    )  # fmt: skip
    at = [int(epoch) for epoch in results["epochs"]]
    curves = [
        viz.Curve(name, at, [measures.mean(each["scores"][name]) for each in epochs])
        for name in names
        if all(name in each["scores"] for each in epochs)
    ]
    traces = viz.Curve("mean trace", at, [each["mean_trace"] for each in epochs])
    panels = [
        viz.Panel("How well scores do", "epoch", "mean AUROC", curves),
        viz.Panel("Trace of G", "epoch", "mean over training images", [traces]),
    ]
    viz.curves(panels, path)
