"""The tables of denoising, and what they say of the slides' hope.

`measured` holds, by noise and strength: "methods", what was measured of every image by method;
"leaves", the same by network; "leaf", by network what was chosen and how flows ended; "level".
"""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.denoise.classical import NOISES
from experiments.harness.command import setting
from experiments.harness.report import FAILS, HOLDS, IN_PART, outcome, section
from foliax import viz

MEASURES = ("psnr", "ssim", "classified_right")
LEAF = {
    "closest": "closest point on the leaf of the nearest training image",
    "closest_best": "nearest of the closest points",
    "closest_mean": "mean of k closest points",
    "closest_weighted": "weighted mean of the closest points",
    "closest_discrepancy": "mean of k closest points, stopped by the discrepancy",
    "closest_stein": "mean of k closest points, drawn back (James-Stein)",
    "closest_part": "mean of k closest points, part of the way",
    "closest_blended": "mean of k closest points, blended with the input",
    "closest_apart": "shares on and off the leaf tuned apart",
    "kernel_exchanged": "leaf component of the input, kernel of the references",
    "nearest_class": "mean of k nearest of the predicted class, no leaf",
    "closest_class": "mean of k closest points, references of the predicted class",
    "nearest_feature": "mean of k nearest by logits, no leaf",
    "closest_feature": "mean of k closest points, references nearest by logits",
}
_ALONE = {
    "nearest": "nearest training image",
    "nearest_mean": "mean of k nearest training images",
    "nearest_weighted": "weighted mean of the nearest",
    "nearest_blended": "mean of k nearest, blended with the input",
}
CONTROL = "plane"  # random planes in place of leaves
_GAINS = {
    "closest_over_noisy": ("closest", "noisy input"),
    "closest_over_reference": ("closest", "nearest"),
    "mean_over_noisy": ("closest_mean", "noisy input"),
    "mean_over_references": ("closest_mean", "nearest_mean"),
    "part_over_references": ("closest_part", "nearest_mean"),
    "apart_over_blend": ("closest_apart", "nearest_blended"),
}
_COLUMNS = {
    "test_accuracy": "accuracy",
    "mean_trace": "mean trace",
    "closest_mean": "PSNR, mean of k closest points",
    "weak.mean": "over references, weakest noises (dB)",
    "weak.error": "±",
    "over_references.mean": "over references, all (dB)",
    "over_references.error": "±",
    "part.mean": "part of the way over references (dB)",
    "part.error": "±",
    "over_blend.mean": "shares apart over blend (dB)",
    "over_blend.error": "±",
    "classified_right": "classified right",
}
_SLUGS = str.maketrans({" ": "_", "(": None, ")": None, "-": "_"})
Measured = Mapping[str, Mapping[float, Any]]


def label(method: str) -> str:
    """Return what a table calls a method."""
    return (LEAF | _ALONE).get(method, method)


def methods(record: Mapping[str, Any], network: str) -> dict[str, Any]:
    """Return what was measured by the methods without a network and by those of one."""
    return record["methods"] | record["leaves"][network]


def sections(
    measured: Measured, networks: Mapping, traces: Mapping[str, float], shown: str
) -> dict[str, Any]:
    """Return one section for each noise, of the network shown, and one that compares all."""
    found = {f"S9-{noise}": _noise_section(measured, noise, shown) for noise in measured}
    name = "S9-training" if len(traces) > 1 else "S9-control"
    found[name] = _training_section(measured, networks, traces)
    curves = "Mean PSNR of the test images against the strength of the noise."
    next(iter(found.values()))["pictures"].append({"file": "denoise_psnr.png", "caption": curves})
    return found


def paired(a: Any, b: Any) -> dict[str, float]:
    """Return the mean of a - b and its standard error."""
    gain = np.asarray(a) - np.asarray(b)
    error = float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else 0.0
    return {"mean": float(gain.mean()), "error": error}


def _clear(gain: Mapping[str, float]) -> bool:
    return gain["mean"] > 2 * gain["error"]


def _signed(gain: Mapping[str, float]) -> str:
    return f"{gain['mean']:+.2f} ± {gain['error']:.2f} dB"


def _noise_section(measured: Measured, noise: str, shown: str) -> dict[str, Any]:
    strengths = list(measured[noise])
    records = {f"s{i}": record for i, record in enumerate(measured[noise].values())}
    values = {s: methods(record, shown) for s, record in records.items()}
    slugs = {name.translate(_SLUGS).lower(): name for name in values["s0"]}
    numbers = {
        "strength": dict(zip(records, strengths, strict=True)),
        "noise": {s: record["level"] for s, record in records.items()},
        "method": {
            slug: {s: {m: float(of[name][m].mean()) for m in MEASURES} for s, of in values.items()}
            for slug, name in slugs.items()
        },
        "leaf": {s: record["leaf"][shown] for s, record in records.items()},
        "gain": {s: _gains(record, shown) for s, record in records.items()},
    }
    columns = [(f"PSNR at {strength:g}", "SSIM", "classified right") for strength in strengths]
    rows = [
        (label(name), *(f"method.{slug}.{s}.{m}" for s in records for m in MEASURES))
        for slug, name in slugs.items()
    ]
    caption = (
        f"Test images ({NOISES[noise]}: {strengths[len(strengths) // 2]:g}), one column each, with "
        "the PSNR of each result."
    )
    return section(
        title=f"Denoising: {NOISES[noise]}",
        claim="Project a noisy data point on the data leaf to perform denoising.",
        verdict=_noise_verdict(numbers),
        numbers=numbers,
        pictures=[(f"denoise_{noise}.png", caption)],
        columns=("", *(name for three in columns for name in three)),
        rows=rows,
    )


def _gains(record: Mapping[str, Any], network: str) -> dict[str, Any]:
    """Return by how much PSNR one way is better than another, image by image."""
    found, planes = methods(record, network), methods(record, CONTROL)
    gains = {name: paired(found[a]["psnr"], found[b]["psnr"]) for name, (a, b) in _GAINS.items()}
    random = paired(planes["closest_mean"]["psnr"], planes["nearest_mean"]["psnr"])
    return gains | {"random_over_references": random}


def _noise_verdict(numbers: Mapping[str, Any]) -> tuple[str, str]:
    better, parts = [], []
    for s, strength in numbers["strength"].items():
        gain = numbers["gain"][s]
        better.append(_clear(gain["mean_over_noisy"]) and _clear(gain["mean_over_references"]))
        parts.append(
            f"At {strength:g}: {_signed(gain['mean_over_noisy'])} over the input, "
            f"{_signed(gain['mean_over_references'])} over the references "
            f"({_signed(gain['random_over_references'])} with random planes); shares tuned apart "
            f"over a blend without a leaf {_signed(gain['apart_over_blend'])}."
        )
    text = (
        f"The mean of k closest points is better than both the input and its references, by more "
        f"than two standard errors, at {sum(better)} of {len(better)} strengths. {' '.join(parts)}"
    )
    return outcome(float(np.mean(better))), text


def _training_section(
    measured: Measured, networks: Mapping, traces: Mapping[str, float]
) -> dict[str, Any]:
    gains = {name: _gains_of_images(measured, name) for name in networks}
    every = {
        name: {
            "mean_trace": traces.get(name),
            "test_accuracy": None if name == CONTROL else setting(loaded)["test_accuracy"],
            "closest_mean": _mean(measured, name, "closest_mean").mean(),
            "classified_right": _mean(measured, name, "closest_mean", "classified_right").mean(),
        }
        | {key: paired(values, 0) for key, values in gains[name].items()}
        for name, loaded in networks.items()
    }
    names = {name: f"epoch {name[1:]}" if name[1:] else "the network" for name in every}
    names[CONTROL] = "random planes"
    title, claim = "Leaves against random planes", "The leaf is where images lie, not noise."
    if len(traces) > 1:
        title = "Which degree of training denoises best"
        claim = "The model must be partially trained: at equilibrium, the information is lost."
    return section(
        title=title,
        claim=claim,
        verdict=training_verdict(gains, traces),
        numbers={"network": every},
        pictures=[],
        columns=("", *_COLUMNS.values()),
        rows=[(names[name], *(f"network.{name}.{key}" for key in _COLUMNS)) for name in every],
    )


def _mean(
    measured: Measured, network: str, method: str, key: str = "psnr", weakest: bool = False
) -> np.ndarray:
    """Return a mean over all noises and strengths, or the weakest of each, image by image."""
    records = [
        list(strengths.values())[: 1 if weakest else None] for strengths in measured.values()
    ]
    found = [methods(record, network)[method][key] for some in records for record in some]
    return np.mean(found, axis=0)


def _gains_of_images(measured: Measured, network: str) -> dict[str, np.ndarray]:
    def gain(method: str, other: str, **options: Any) -> np.ndarray:
        a, b = (_mean(measured, network, name, **options) for name in (method, other))
        return a - b

    return {
        "weak": gain("closest_mean", "nearest_mean", weakest=True),
        "over_references": gain("closest_mean", "nearest_mean"),
        "part": gain("closest_part", "nearest_mean"),
        "over_blend": gain("closest_apart", "nearest_blended"),
    }


def training_verdict(
    gains: Mapping[str, Mapping[str, np.ndarray]], traces: Mapping[str, float]
) -> tuple[str, str]:
    """Compare networks by two gains in which the noise that a closest point fits counts little.

    Several epochs: whether the best is that of the largest trace. One: whether its leaves are
    better than random planes.
    """
    agreed, against, parts = [], [], []
    peak = max(traces, key=lambda name: traces[name])
    for key, words in (("weak", "at the weakest noises"), ("part", "part of the way, all noises")):
        best = max(traces, key=lambda name, key=key: gains[name][key].mean())
        other = peak if len(traces) > 1 else CONTROL
        gap = paired(gains[best][key], gains[other][key])
        if len(traces) > 1:
            agreed.append(best == peak)
            against.append(_clear(gap))
        else:
            agreed.append(_clear(gap))
            against.append(gap["mean"] <= 0)
        of_best, of_planes = (_signed(paired(gains[name][key], 0)) for name in (best, CONTROL))
        where = f" at epoch {best[1:]}, the best" if len(traces) > 1 else ""
        parts.append(f"{words}: {of_best}{where}; with random planes {of_planes}")
    text = f"Gain over the references {', '.join(parts)}."
    if len(traces) > 1:
        text += f" The mean trace is largest at epoch {peak[1:]}, {traces[peak]:.3g}."
    return (HOLDS if all(agreed) else FAILS if all(against) else IN_PART), text


_ACROSS = 8
_PANELS = {"gaussian": "White noise", "salt": "Salt and pepper", "blur": "Blur"}
_CURVES = {
    "noisy input": "input",
    "total variation (Chambolle)": "TV",
    "PCA of the training set": "PCA",
    "nearest_mean": "k nearest",
    "closest": "closest",
    "closest_mean": "k closest",
    "closest_apart": "shares apart",
}
_SHOWN_ROWS = (*list(_CURVES)[:-1], "closest_part", "closest_apart")


def draw(out: Path, measured: Measured, images: Mapping[str, Any], shown: str) -> None:
    """Draw the images at the middle strength of each noise, by method, and the curves."""
    panels = []
    for noise, records in measured.items():
        strengths = list(records)
        found = {strength: methods(records[strength], shown) for strength in strengths}
        _draw_grid(out / f"denoise_{noise}.png", images[noise], found[middle(strengths)])
        curves = [
            viz.Curve(
                name, strengths, [float(of[method]["psnr"].mean()) for of in found.values()],
                reference=method == "noisy input",
            )
            for method, name in _CURVES.items()
        ]  # fmt: skip
        panels.append(viz.Panel(_PANELS[noise], NOISES[noise], "mean PSNR (dB)", curves))
    viz.curves(panels, out / "denoise_psnr.png")


def middle(strengths: Any) -> float:
    """Return the strength at which images are shown."""
    return strengths[len(strengths) // 2]


def _draw_grid(path: Path, images: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    shown = [*images["clean"][:_ACROSS]]
    texts = [""] * len(shown)
    for method in _SHOWN_ROWS:
        shown += [*images[method][:_ACROSS]]
        texts += [f"{value:.1f} dB" for value in found[method]["psnr"][:_ACROSS]]
    labels = ["clean", *(textwrap.fill(label(method), 13) for method in _SHOWN_ROWS)]
    viz.strip(shown, texts, path, row_labels=labels)
