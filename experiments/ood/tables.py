"""The tables of the out-of-distribution experiment, its sentences and its pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness.common import FAILS, HOLDS, IN_PART
from experiments.ood import measures
from experiments.ood.baselines import NAMES
from experiments.ood.leaf import AT_X
from experiments.ood.measures import WAYS
from foliax import viz
from foliax.viz.style import figure

_PREDICTED = (
    "residual", "residual_ratio", "kernel_fraction", "kernel_at_reference", "kernel_at_x",
    "metric_length", "fisher_distance", "distance",
)  # fmt: skip
_LENGTHS = ("residual", "kernel_at_reference", "kernel_at_x")  # in the units of a distance
_LEAST = 0.001  # a gain in mean AUROC whose interval does not lie above this counts as none
_FURTHER = 6  # rows of other families, the best ones
_SHOWN = 6  # images in a row of the examples
_PARTNERS = 8  # rows of the table of gains


def is_blind(name: str) -> bool:
    """Tell whether a score is the leaf's, with references not chosen by distance."""
    return name not in NAMES and not name.startswith("distance") and "nearest" not in name


def order(scores: Mapping[str, Any]) -> list[str]:
    """Return all scores: baselines, at x, predicted class, then the others from the best down."""
    first = [*NAMES, *AT_X, *(f"{name}[predicted]" for name in _PREDICTED)]
    rest = [name for name in scores if name not in first]
    rest.sort(key=lambda name: (-measures.mean(scores[name]), name))
    return [name for name in first if name in scores] + rest


def shown(result: Mapping[str, Any]) -> list[str]:
    """Return the rows of a short table; every score is in results.json."""
    scores = result["scores"]
    known = [*NAMES, *AT_X, *(f"{name}[predicted]" for name in _PREDICTED)]
    further = [name for name in order(scores) if name not in known and is_blind(name)][:_FURTHER]
    further += [
        result[key][0]
        for key in ("chosen", "chosen_beside_partner")
        if result[key][0] not in [*known, *further]
    ]
    more = ["residual[nearest]", "residual_ratio[nearest]", "distance[many, min]"]
    return [name for name in dict.fromkeys((*known, *further, *more)) if name in scores]


# --- words -------------------------------------------------------------------------------------


def report(results: Mapping[str, Any], spent: Mapping[str, float]) -> list[str]:
    """Return the paragraphs and tables of the report, the verdict first."""
    epochs = results["epochs"]
    last = list(epochs)[-1]
    parts = [f"# Out of distribution: {results['setting']['dataset']}"]
    for epoch, result in epochs.items():
        parts += [
            f"## {result['network']}",
            f"**{verdict(result)[0]}**: {verdict(result)[1]}",
            "AUROC, mean AUPR (outliers positive) and mean FPR at 95 % TPR (test images positive), "
            f"epoch {epoch}; `called` is the mean share of outliers above the threshold that 95 % "
            "of the held training images do not exceed, `alarms` that of test images.",
            measures_table(result),
            "What joins the distance of the nearest training image in pixels: change of the mean "
            "AUROC, with a 95 % bootstrap interval.",
            gains_table(result),
        ]
    parts += [f"## Cost (epoch {last})", costs_table(spent)]
    if len(epochs) > 1:
        parts += ["## Degree of training", training_table(results), training_words(results)]
    return parts


def verdict(result: Mapping[str, Any]) -> tuple[str, str]:
    """Return whether the slides' hope holds for one network, and why."""
    scores, gains = result["scores"], result["gains"]
    means = {name: measures.mean(rows) for name, rows in scores.items()}
    blind = [name for name in scores if is_blind(name)]
    alone = max(blind, key=lambda name: (result["synthetic"][name], name))
    best = max(blind, key=lambda name: means[name])
    strongest = max((name for name in NAMES if name in scores), key=lambda name: means[name])
    (chosen, way), (partner, its_way) = result["chosen"], result["partner"]
    (last, last_way), more = result["chosen_beside_partner"], result["gains_beside_partner"]
    found, control = gains[chosen][way], gains[partner][its_way]
    beside, plain = more[last][last_way], result["gains_over_plain"].get(chosen)
    length = "residual" if "residual[predicted]" in scores else "kernel_at_reference"
    words = (
        f"Alone, the leaf's score that synthetic outliers choose, {alone}, has a mean AUROC of "
        f"{means[alone]:.3f}, and the best in hindsight, {best}, {means[best]:.3f}; the nearest "
        f"training image in pixels {means['knn_pixels']:.3f}, and the best baseline, {strongest}, "
        f"{means[strongest]:.3f}. {length}[predicted] and the plain distance[predicted] have "
        f"{means[f'{length}[predicted]']:.3f} and {means['distance[predicted]']:.3f}. "
        f"Beside pixels, the chosen {chosen} ({_way(way, found)}) changes the mean AUROC by "
        f"{_interval(found)}"
        + ("" if plain is None else f", and over the plain {control_of(chosen)} in its place by "
           f"{_interval(plain[way])}")
        + f"; the chosen baseline {partner} ({_way(its_way, control)}) by {_interval(control)}. On "
        f"top of pixels and {partner}, {last} ({_way(last_way, beside)}) changes it by "
        f"{_interval(beside)}."
    )  # fmt: skip
    words += " " + hindsight(result)
    if means[alone] >= means[strongest]:
        return HOLDS, words
    if found["low"] > _LEAST and (plain is None or plain[way]["low"] > _LEAST):
        less = f", less than {partner} does" if control["gain"] > found["gain"] else ""
        return IN_PART, words + f" The leaf is no detector alone, but adds to pixels{less}."
    if found["low"] > _LEAST:
        return FAILS, words + " What the leaf adds to pixels, a plain distance adds as well."
    return FAILS, words + " The chosen score adds nothing sure to pixels."


def hindsight(result: Mapping[str, Any]) -> str:
    """Say what the best partners of all add, chosen on the very outliers: an upper bound."""
    gains, more = result["gains"], result["gains_beside_partner"]
    leafs = [name for name in gains if is_blind(name)]
    (name, way), (other, its_way) = (
        max(((n, w) for n in names for w in WAYS), key=lambda pair: gains[pair[0]][pair[1]]["gain"])
        for names in (leafs, [n for n in NAMES if n in gains])
    )
    (last, last_way), (third, third_way) = (
        max(((n, w) for n in names for w in WAYS), key=lambda pair: more[pair[0]][pair[1]]["gain"])
        for names in (leafs, [n for n in NAMES if n in more])
    )
    control = control_of(name)
    plain = "" if control is None else f" (the plain {control} {_interval(gains[control][way])})"
    return (
        f"In hindsight the most that any score of the leaf adds to pixels is {name} "
        f"({_way(way, gains[name][way])}) with "
        f"{_interval(gains[name][way])}{plain}, any baseline {other} ({its_way}) with "
        f"{_interval(gains[other][its_way])}; on top of pixels and {result['partner'][0]}, {last} "
        f"({_way(last_way, more[last][last_way])}) with {_interval(more[last][last_way])}, and "
        f"any other baseline {third} ({third_way}) with {_interval(more[third][third_way])}."
    )


def control_of(name: str) -> str | None:
    """Return the plain distance that a length of the leaf could stand for; None for others."""
    score, _, family = name.partition("[")
    return f"distance[{family}" if score in _LENGTHS else None


def _way(way: str, gain: Mapping[str, Any]) -> str:
    return way if way == "sum" else f"{way}, weight {gain['weights'][-1]:+.2f}"


def _interval(gain: Mapping[str, float]) -> str:
    return f"{gain['gain']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"


def measures_table(result: Mapping[str, Any]) -> str:
    """Return AUROC by set, and means of the other measures, as markdown."""
    scores = result["scores"]
    outs = [out for out in next(iter(scores.values())) if out != "test"]
    lines = [["score", *outs, "mean", "AUPR", "FPR95", "called", "alarms"]]
    for name in shown(result):
        rows = scores[name]
        cells = [f"{rows[out]['auroc']:.3f}" if out in rows else "" for out in outs]
        cells += [f"{measures.mean(rows, key):.3f}" for key in ("auroc", "aupr", "fpr95", "called")]
        lines.append([name, *cells, f"{rows['test']['called']:.3f}"])
    return markdown(lines)


def gains_table(result: Mapping[str, Any]) -> str:
    """Return what partners add to the distance in pixels, as markdown."""
    gains, beside = result["gains"], result["gains_beside_partner"]
    partner = result["partner"][0]
    blind = sorted(
        (name for name in gains if is_blind(name)),
        key=lambda name: (-max(each["synthetic"] for each in gains[name].values()), name),
    )
    best = [result["chosen"][0], result["chosen_beside_partner"][0], *blind[:_PARTNERS]]
    best += [name for name in blind if gains[name]["sum"]["low"] > 0]
    controls = [control for name in best if (control := control_of(name))]
    names = [*NAMES, *best, "residual[predicted]", *controls, "residual[nearest]"]
    lines = [["partner", "synthetic", "sum", "logistic", "weight", "most changed (logistic)",
              "logistic, over plain", f"sum, beside {partner}",
              f"logistic, beside {partner}"]]  # fmt: skip
    for name in (name for name in dict.fromkeys(names) if name in gains):
        sets, plain = gains[name]["logistic"]["by_set"], result["gains_over_plain"].get(name)
        most = max(sets, key=lambda out: abs(sets[out]))
        both = [gains[name][way] for way in WAYS]
        more = [beside[name][way] for way in WAYS] if name in beside else []
        cells = [*map(_interval, both), f"{both[1]['weights'][-1]:+.2f}"]
        cells += [f"{most} {sets[most]:+.3f}", _interval(plain["logistic"]) if plain else ""]
        cells += [*map(_interval, more)]
        synthetic = "/".join(f"{each['synthetic']:.3f}" for each in both)
        mark = " (chosen)" if name in (result["chosen"][0], partner) else ""
        lines.append([name + mark, synthetic, *cells, *[""] * (2 - len(more))])
    return markdown(lines)


def costs_table(spent: Mapping[str, float]) -> str:
    """Return milliseconds an image as markdown."""
    lines = [["scores", "ms an image"], *([name, f"{ms:.3g}"] for name, ms in spent.items())]
    return markdown(lines)


def training_table(results: Mapping[str, Any]) -> str:
    """Return mean AUROC by epoch as markdown."""
    epochs = results["epochs"]
    names = list(dict.fromkeys(name for each in epochs.values() for name in shown(each)))
    lines = [["epoch", *epochs]]
    lines.append(["test accuracy", *(f"{each['accuracy']:.3f}" for each in epochs.values())])
    lines.append(["mean trace", *(f"{each['mean_trace']:.3g}" for each in epochs.values())])
    for name in names:
        rows = [each["scores"].get(name) for each in epochs.values()]
        lines.append([name, *("" if r is None else f"{measures.mean(r):.3f}" for r in rows)])
    chosen = []
    for each in epochs.values():
        name, way = each["chosen"]
        chosen.append(f"{_interval(each['gains'][name][way])} {name}")
    lines.append(["gain of the chosen score beside pixels", *chosen])
    return markdown(lines)


def training_words(results: Mapping[str, Any]) -> str:
    """Say which epoch serves best, and whether the peak of the mean trace predicts it."""
    told, epochs = results["training"], results["epochs"]
    best = {name: epoch for name, epoch in told["best_epoch"].items() if is_blind(name)}
    served = {epoch: sum(e == epoch for e in best.values()) for epoch in epochs}
    most = max(served, key=lambda epoch: served[epoch])
    peak = told["peak_epoch_of_training"]
    words = (
        f"Of {len(best)} scores of the leaf, "
        + ", ".join(f"{count} serve best at epoch {epoch}" for epoch, count in served.items())
        + f". Among the epochs compared the mean trace is greatest at epoch {told['most_trace']}"
        + (f", and over the whole training in epoch {peak}" if peak is not None else "")
        + f"; the most accurate is epoch {told['most_accurate']}. "
    )
    agrees = most == told["most_trace"]
    return words + (
        "The epoch of the greatest mean trace is the one that serves most scores best."
        if agrees
        else "The epoch of the greatest mean trace is not the one that serves most scores best."
    )


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table with its first line as the header."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [" | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    rule = " | ".join(["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])])
    return "\n".join(f"| {row} |" for row in (rows[0], rule, *rows[1:]))


# --- pictures ----------------------------------------------------------------------------------


def heat_map(results: Mapping[str, Any], path: Path) -> None:
    """Draw the AUROC of each score on each set, at the last epoch."""
    result = list(results["epochs"].values())[-1]
    names, scores = shown(result), result["scores"]
    outs = [out for out in scores[names[0]] if out != "test"]
    values = np.array(
        [
            [scores[name].get(out, {}).get("auroc", np.nan) for out in outs]
            + [measures.mean(scores[name])]
            for name in names
        ]
    )
    columns = [*outs, "mean"]
    with figure(path, 3.4 + 0.62 * len(columns), 1.3 + 0.22 * len(names)) as drawn:
        axes = drawn.add_subplot()
        axes.grid(False)
        mesh = axes.imshow(values, cmap="PuOr_r", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ink = "white" if abs(value - 0.5) > 0.38 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5,
                          color=ink)  # fmt: skip
        axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.axhline(sum(name in NAMES for name in names) - 0.5, color="black", lw=1)
        axes.axvline(len(outs) - 0.5, color="black", lw=1)
        axes.set_title(f"AUROC, {results['setting']['dataset']}, {result['network']}")
        drawn.colorbar(mesh, ax=axes, fraction=0.04, pad=0.02, label="AUROC; 0.5 is chance")
        drawn.tight_layout(pad=0.8)


def examples(sets: Any, parts: measures.Parts, name: str, out: Path) -> None:
    """Draw test images and outliers that the chosen score finds least and most far out."""
    pools = {"test images": (sets.inside, parts.inside[name])}
    pools["outliers"] = (
        np.concatenate(list(sets.outside.values())),
        np.concatenate([values[name] for values in parts.outside.values()]),
    )
    kinds = np.repeat(list(sets.outside), [len(images) for images in sets.outside.values()])
    images, captions, labels = [], [], []
    for pool, (xs, values) in pools.items():
        ranked = np.argsort(values, kind="stable")
        for end, places in (("least", ranked[:_SHOWN]), ("most", ranked[::-1][:_SHOWN])):
            labels.append(f"{pool},\n{end}")
            images.append(np.asarray(sets.dataset.to_pixels(xs[places])))
            kind = kinds[places] if pool == "outliers" else [""] * len(places)
            captions += [f"{values[p]:.3g}\n{k}" for p, k in zip(places, kind, strict=True)]
    viz.strip(np.concatenate(images), captions, out / "examples.png", row_labels=labels, title=name)


def training(results: Mapping[str, Any], path: Path) -> None:
    """Draw mean AUROC and mean trace against the epoch, where several are compared."""
    epochs = results["epochs"]
    if len(epochs) < 2:
        return
    names = ["knn_pixels", "energy", "residual[predicted]", "kernel_at_x[many, min]",
             "fisher_distance[predicted]", "trace"]  # fmt: skip
    at = [int(epoch) for epoch in epochs]
    curves = [
        viz.Curve(name, at, [measures.mean(each["scores"][name]) for each in epochs.values()])
        for name in names
        if all(name in each["scores"] for each in epochs.values())
    ]
    traces = viz.Curve("mean trace", at, [each["mean_trace"] for each in epochs.values()])
    viz.curves(
        [
            viz.Panel("How well scores do", "epoch", "mean AUROC", curves),
            viz.Panel("Trace of G", "epoch", "mean over training images", [traces]),
        ],
        path,
    )
