"""The tables of denoising, and what they say of the slides' hope."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.denoise.classical import NOISES
from experiments.harness import command as _command
from experiments.harness.common import FAILS, HOLDS, IN_PART, percent
from experiments.harness.report import section

MEASURES = ("psnr", "ssim", "judged")
# Those of a network; its name follows after an @.
LEAF = {
    "foot": "foot from the nearest training image",
    "foot_best": "nearest of the feet",
    "feet_mean": "mean of k feet",
    "feet_weighted": "weighted mean of the feet",
    "feet_discrepancy": "mean of k feet, stopped by the discrepancy",
    "feet_stein": "mean of k feet, drawn back (James-Stein)",
    "feet_part": "mean of k feet, part of the way",
    "feet_blended": "mean of k feet, blended with the input",
    "feet_apart": "shares on and off the leaf tuned apart",
    "kernel_exchanged": "leaf component of the input, kernel of the references",
    "nearest_class": "mean of k nearest of the predicted class, no leaf",
    "feet_class": "mean of k feet, references of the predicted class",
    "nearest_feature": "mean of k nearest by logits, no leaf",
    "feet_feature": "mean of k feet, references nearest by logits",
}
_ALONE = {
    "nearest": "nearest training image",
    "nearest_mean": "mean of k nearest training images",
    "nearest_weighted": "weighted mean of the nearest",
    "nearest_blended": "mean of k nearest, blended with the input",
}
CONTROL = "plane"  # random planes in place of leaves
_CLAIM = "Project a noisy data point on the data leaf to perform denoising."
_SLUGS = str.maketrans({" ": "_", "(": None, ")": None, "-": "_"})


def label(method: str) -> str:
    """Return what a table calls a method."""
    return LEAF.get(method, _ALONE.get(method, method))


def at(method: str, found: Mapping[str, Any], network: str) -> str:
    """Return the key of a method, that of a network where it needs one."""
    return method if method in found else f"{method}@{network}"


def by_noise(measured: Mapping[tuple[str, float], Any]) -> dict[str, list[float]]:
    """Return the strengths of each noise."""
    found: dict[str, list[float]] = {}
    for noise, strength in measured:
        found.setdefault(noise, []).append(strength)
    return found


def sections(
    measured: Mapping, networks: Mapping, traces: Mapping[str, float], shown: str
) -> dict[str, Any]:
    """Return one section for each noise, and one that compares the networks.

    Args:
        measured: What was measured, by noise and strength.
        networks: The networks by name.
        traces: Their mean traces.
        shown: The network of the tables.
    """
    found = {
        f"S9-{noise}": _noise_section(measured, noise, strengths, shown)
        for noise, strengths in by_noise(measured).items()
    }
    name = "S9-training" if len(traces) > 1 else "S9-control"
    found[name] = _training_section(measured, networks, traces)
    first = next(iter(found))
    curve = ("denoise_psnr.png", "Mean PSNR of the test images against the strength of the noise.")
    found[first]["pictures"].append(dict(zip(("file", "caption"), curve, strict=True)))
    return found


def every_image(measured: Mapping, setting: Any) -> dict[str, Any]:
    """Return what was measured of every single image."""
    return {
        "test_image": setting.places,
        "measured": [
            {"noise": noise, "strength": strength, "methods": told["methods"]}
            for (noise, strength), told in measured.items()
        ],
    }


def paired(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Return the mean of a - b and its standard error."""
    gain = np.asarray(a) - np.asarray(b)
    error = float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else 0.0
    return {"mean": float(gain.mean()), "error": error}


# --- one noise ---------------------------------------------------------------------------------


def _noise_section(measured: Mapping, noise: str, strengths: list, shown: str) -> dict[str, Any]:
    told = [measured[noise, strength] for strength in strengths]
    methods = [m for m in told[0]["methods"] if "@" not in m or m.endswith(f"@{shown}")]
    names = {method.split("@")[0]: method for method in methods}
    values = {
        _slug(name): {
            f"s{i}": {key: float(one["methods"][key_of][key].mean()) for key in MEASURES}
            for i, one in enumerate(told)
        }
        for name, key_of in names.items()
    }
    numbers = {
        "strength": {f"s{i}": s for i, s in enumerate(strengths)},
        "noise": {f"s{i}": one["level"] for i, one in enumerate(told)},
        "method": values,
        "leaf": {f"s{i}": one["leaf"][shown] for i, one in enumerate(told)},
        "gain": {f"s{i}": _gains(one["methods"], shown) for i, one in enumerate(told)},
    }
    columns, rows = [""], [(label(name),) for name in names]
    for i, strength in enumerate(strengths):
        columns += [f"PSNR at {strength:g}", "SSIM", "judged right"]
        rows = [
            (*row, *(f"method.{_slug(name)}.s{i}.{key}" for key in MEASURES))
            for row, name in zip(rows, names, strict=True)
        ]
    return section(
        title=f"Denoising: {NOISES[noise]}",
        claim=_CLAIM,
        verdict=_judge_noise(numbers, {_slug(n): label(n) for n in names}),
        numbers=numbers,
        pictures=[
            (
                f"denoise_{noise}.png",
                f"Test images ({NOISES[noise]}: {strengths[len(strengths) // 2]:g}), one column "
                "each, with the PSNR of each result.",
            )
        ],
        columns=columns,
        rows=rows,
    )


def _gains(methods: Mapping, network: str) -> dict[str, Any]:
    """Return by how much PSNR one way is better than another, image by image."""

    def gain(a: str, b: str, of: str = network) -> dict[str, float]:
        return paired(*(methods[at(m, methods, of)]["psnr"] for m in (a, b)))

    return {
        "foot_over_noisy": gain("foot", "noisy input"),
        "foot_over_reference": gain("foot", "nearest"),
        "feet_over_noisy": gain("feet_mean", "noisy input"),
        "feet_over_references": gain("feet_mean", "nearest_mean"),
        "part_over_references": gain("feet_part", "nearest_mean"),
        "apart_over_blend": gain("feet_apart", "nearest_blended"),
        "random_over_references": gain("feet_mean", "nearest_mean", CONTROL),
    }


def _judge_noise(numbers: Mapping, labels: Mapping[str, str]) -> tuple[str, str]:
    gain, method, strength = (numbers[key] for key in ("gain", "method", "strength"))
    better, parts = [], []
    for s, value in strength.items():
        rows = gain[s]
        better.append(
            all(
                rows[name]["mean"] > 2 * rows[name]["error"]
                for name in ("feet_over_noisy", "feet_over_references")
            )
        )
        first = max(method, key=lambda name: method[name][s]["psnr"])
        parts.append(
            f"At {value:g}, the mean of k feet has {method['feet_mean'][s]['psnr']:.2f} dB: "
            f"{_signed(rows['feet_over_noisy'])} against the noisy input, "
            f"{_signed(rows['feet_over_references'])} against its references alone (with random "
            f"planes in place of leaves {_signed(rows['random_over_references'])}). Going part of "
            f"the way: {_signed(rows['part_over_references'])} against them; shares on and off the "
            f"leaf tuned apart, against a blend that knows no leaf: "
            f"{_signed(rows['apart_over_blend'])}. The highest PSNR has “{labels[first]}”, "
            f"{method[first][s]['psnr']:.2f} dB; the judge is right on "
            f"{percent(method['feet_mean'][s]['judged'])} of the means of feet and "
            f"{percent(method['noisy_input'][s]['judged'])} of the noisy images. "
            f"{percent(numbers['leaf'][s]['ended']['feet']['stalled'])} of the flows reached their "
            "foot within the steps allowed."
        )
    told = " ".join(parts) + (
        f" The projection is better than both the noisy input and its references, by more than two "
        f"standard errors, at {sum(better)} of {len(better)} strengths."
    )
    return (HOLDS if all(better) else IN_PART if any(better) else FAILS), told


def _signed(gain: Mapping[str, float]) -> str:
    return f"{gain['mean']:+.2f} ± {gain['error']:.2f} dB"


# --- networks ----------------------------------------------------------------------------------


def _training_section(
    measured: Mapping, networks: Mapping, traces: Mapping[str, float]
) -> dict[str, Any]:
    every = {
        name: {"mean_trace": traces.get(name), "test_accuracy": _accuracy(loaded, name)}
        | _means(measured, name)
        for name, loaded in networks.items()
    }
    columns = {
        "test_accuracy": "accuracy",
        "mean_trace": "mean trace",
        "feet_mean": "PSNR, mean of k feet",
        "weak.mean": "over references, weakest noises (dB)",
        "weak.error": "±",
        "over_references.mean": "over references, all (dB)",
        "over_references.error": "±",
        "part.mean": "part of the way over references (dB)",
        "part.error": "±",
        "over_blend.mean": "shares apart over blend (dB)",
        "over_blend.error": "±",
        "judged": "judged right",
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
        verdict=_judge_training(every),
        numbers={"network": every},
        pictures=[],
        columns=("", *columns.values()),
        rows=[(names[name], *(f"network.{name}.{key}" for key in columns)) for name in every],
    )


def _accuracy(loaded: Any, name: str) -> float | None:
    return None if name == CONTROL else _command.setting(loaded)["test_accuracy"]


def _means(measured: Mapping, name: str) -> dict[str, Any]:
    """Return means over all noises and strengths; an image counts once, for its mean."""
    weakest = {(noise, strengths[0]) for noise, strengths in by_noise(measured).items()}

    def mean(method: str, key: str = "psnr", among: Any = measured) -> np.ndarray:
        found = [measured[case]["methods"] for case in among]
        return np.mean([methods[at(method, methods, name)][key] for methods in found], axis=0)

    references, part = mean("nearest_mean"), mean("feet_part")
    few = [mean(method, among=weakest) for method in ("feet_mean", "nearest_mean")]
    return {
        "feet_mean": mean("feet_mean").mean(),
        "judged": mean("feet_mean", "judged").mean(),
        "weak": paired(*few),
        "over_references": paired(mean("feet_mean"), references),
        "part": paired(part, references),
        "over_blend": paired(mean("feet_apart"), mean("nearest_blended")),
        "each": {"weak": few[0], "part": part},
    }


def _judge_training(every: dict[str, Any]) -> tuple[str, str]:
    """Compare the networks by two gains in which the noise that a foot fits counts little.

    Several epochs: whether the best is that of the largest trace. One: whether its leaves are
    better than random planes.
    """
    told, agreed, against = [], [], []
    epochs = {name: one for name, one in every.items() if name != CONTROL}
    peak = max(epochs, key=lambda name: epochs[name]["mean_trace"])
    for key, words in (
        ("weak", "mean of k feet over its references, at the weakest of each noise"),
        ("part", "part of the way over its references, over all noises"),
    ):
        each = {name: one["each"][key] for name, one in every.items()}
        best = max(epochs, key=lambda name, key=key: epochs[name][key]["mean"])
        text = f"{words}: {_signed(epochs[best][key])}"
        if len(epochs) > 1:
            gap = paired(each[best], each[peak])
            text += f" at epoch {best[1:]}, the best ({_signed(gap)} against the peak of the trace)"
        else:
            gap = paired(each[best], each[CONTROL])
        agreed.append(best == peak if len(epochs) > 1 else gap["mean"] > 2 * gap["error"])
        against.append(gap["mean"] > 2 * gap["error"] if len(epochs) > 1 else gap["mean"] <= 0)
        told.append(f"{text}, with random planes {_signed(every[CONTROL][key])}")
    for one in every.values():
        del one["each"]
    text = "; ".join(told)
    text = f"{text[0].upper()}{text[1:]}."
    if len(epochs) > 1:
        text += f" The mean trace is largest at epoch {peak[1:]}, {epochs[peak]['mean_trace']:.3g}."
    return (HOLDS if all(agreed) else FAILS if all(against) else IN_PART), text


def _slug(name: str) -> str:
    return name.translate(_SLUGS).lower()
