"""Pictures of denoised images: a grid for each noise, and PSNR against strength."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.denoise.classical import NOISES
from experiments.denoise.report import at, by_noise, label
from foliax import viz

_COLUMNS = 8
_ROWS = (
    "noisy input",
    "total variation (Chambolle)",
    "PCA of the training set",
    "nearest_mean",
    "foot",
    "feet_mean",
    "feet_part",
    "feet_apart",
)
_TITLES = {"gaussian": "White noise", "salt": "Salt and pepper", "blur": "Blur"}
_CURVES = {
    "noisy input": "input",
    "total variation (Chambolle)": "TV",
    "PCA of the training set": "PCA",
    "nearest_mean": "k nearest",
    "foot": "foot",
    "feet_mean": "k feet",
    "feet_apart": "shares apart",
}


def grid(noise: str) -> str:
    """Return the name of the picture of a noise."""
    return f"denoise_{noise}.png"


def draw(out: Path, measured: Mapping, cases: Mapping[tuple[str, float], Any], shown: str) -> None:
    """Draw the images at the middle strength of each noise, and the curves.

    Args:
        out: Folder for the pictures.
        measured: What was measured, by noise and strength.
        cases: The noisy and the denoised images, by noise and strength.
        shown: Name of the network whose leaves are shown.
    """
    for noise, strengths in by_noise(measured).items():
        middle = strengths[len(strengths) // 2]
        case, made = cases[noise, middle]
        images, texts = [*case.test.clean[:_COLUMNS]], ["" for _ in case.test.clean[:_COLUMNS]]
        for method in _ROWS:
            images += [*made[at(method, made, shown)][:_COLUMNS]]
            numbers = measured[noise, middle]["methods"][at(method, made, shown)]["psnr"]
            texts += [f"{value:.1f} dB" for value in numbers[:_COLUMNS]]
        labels = ["clean", *(_broken(label(method)) for method in _ROWS)]
        viz.strip(np.clip(images, 0, 1), texts, out / grid(noise), row_labels=labels)
    panels = [_panel(measured, noise, strengths, shown)
              for noise, strengths in by_noise(measured).items()]  # fmt: skip
    viz.curves(panels, out / "denoise_psnr.png")


def _panel(measured: Mapping, noise: str, strengths: list[float], shown: str) -> viz.Panel:
    curves = []
    for method, name in _CURVES.items():
        values = [
            measured[noise, s]["methods"][at(method, measured[noise, s]["methods"], shown)]["psnr"]
            for s in strengths
        ]
        means = [float(v.mean()) for v in values]
        curves.append(viz.Curve(name, strengths, means, reference=method == "noisy input"))
    return viz.Panel(_TITLES[noise], NOISES[noise], "mean PSNR (dB)", curves)


def _broken(text: str) -> str:
    """Break a label into lines that fit beside a row."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > 13:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
