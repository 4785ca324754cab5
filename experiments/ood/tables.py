"""The tables of the out-of-distribution experiment, its verdict and its picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness.report import FAILS, HOLDS, IN_PART, markdown_table
from experiments.ood import measures
from experiments.ood.baselines import NAMES
from experiments.ood.leaf import AT_X
from experiments.ood.measures import WAYS
from foliax import viz

_PREDICTED = tuple(
    f"{name}[predicted]"
    for name in (
        "residual", "residual_ratio", "kernel_fraction", "kernel_at_reference", "kernel_at_x",
        "metric_length", "fisher_distance", "distance",
    )
)  # fmt: skip
_FOR_COMPARISON = ("residual[nearest]", "residual_ratio[nearest]", "distance[many, min]")
_LEAST = 0.001  # a gain in mean AUROC whose interval does not lie above this counts as none
_FURTHER = 6  # rows of other families, the best ones
_SHOWN = 6  # images in a row of the examples
_PARTNERS = 8  # rows of the table of gains


def is_blind(name: str) -> bool:
    """Tell whether a score is the leaf's, with references not chosen by distance."""
    return name not in NAMES and not name.startswith("distance") and "nearest" not in name


def shown(result: Mapping[str, Any]) -> list[str]:
    """Return the rows of a short table; every score is in results.json."""
    scores, known = result["scores"], (*NAMES, *AT_X, *_PREDICTED)
    others = [name for name in scores if name not in known and is_blind(name)]
    others.sort(key=lambda name: (-measures.mean(scores[name]), name))
    names = dict.fromkeys((*known, *others[:_FURTHER], result["chosen"][0], *_FOR_COMPARISON))
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
    return "\n\n".join(parts)


def verdict(result: Mapping[str, Any]) -> tuple[str, str]:
    """Return whether the slides' hope holds for one network, and the numbers it rests on."""
    means = {name: measures.mean(rows) for name, rows in result["scores"].items()}
    alone = max(filter(is_blind, means), key=lambda name: (result["synthetic"][name], name))
    strongest = max((name for name in NAMES if name in means), key=lambda name: means[name])
    (chosen, way), (partner, its_way) = result["chosen"], result["partner"]
    found, beside = result["gains"][chosen][way], result["gains"][partner][its_way]
    words = (
        f"Mean AUROC: {means[alone]:.3f} by {alone}, the leaf's score that synthetic outliers "
        f"choose; {means[strongest]:.3f} by {strongest}, the best baseline. Joined to the distance "
        f"in pixels, the chosen {chosen} ({way}) changes it by {_interval(found)}; the chosen "
        f"baseline {partner} ({its_way}) by {_interval(beside)}."
    )
    if means[alone] >= means[strongest]:
        return HOLDS, words
    return (IN_PART if found["low"] > _LEAST else FAILS), words


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
    """Return what scores add to the distance in pixels."""
    gains, chosen = result["gains"], (result["chosen"][0], result["partner"][0])
    blind = sorted(
        filter(is_blind, gains),
        key=lambda name: (-max(each["synthetic"] for each in gains[name].values()), name),
    )
    best = [chosen[0], *blind[:_PARTNERS]]
    best += [name for name in blind if any(gains[name][way]["low"] > 0 for way in WAYS)]
    names = dict.fromkeys((*NAMES, *best, _PREDICTED[0], _FOR_COMPARISON[0]))
    lines = [["partner", "synthetic", *WAYS, "weight", "most changed (logistic)"]]
    for name in (name for name in names if name in gains):
        both, sets = gains[name], gains[name]["logistic"]["by_set"]
        most = max(sets, key=lambda out: abs(sets[out]))
        lines.append([
            name + (" (chosen)" if name in chosen else ""),
            "/".join(f"{both[way]['synthetic']:.3f}" for way in WAYS),
            *(_interval(both[way]) for way in WAYS),
            f"{both['logistic']['weights'][-1]:+.2f}",
            f"{most} {sets[most]:+.3f}",
        ])  # fmt: skip
    return markdown_table(lines)


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
