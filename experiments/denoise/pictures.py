"""Pictures of denoised images: a grid for each noise, and PSNR against strength."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.denoise.classical import NOISES
from experiments.denoise.report import Measured, label, methods
from foliax import viz

_COLUMNS = 8
_TITLES = {"gaussian": "White noise", "salt": "Salt and pepper", "blur": "Blur"}
_CURVES = {
    "noisy input": "input",
    "total variation (Chambolle)": "TV",
    "PCA of the training set": "PCA",
    "nearest_mean": "k nearest",
    "closest": "closest",
    "closest_mean": "k closest",
    "closest_apart": "shares apart",
}
_ROWS = (*list(_CURVES)[:-1], "closest_part", "closest_apart")


def draw(out: Path, measured: Measured, images: Mapping[str, Any], shown: str) -> None:
    """Draw the images at the middle strength of each noise, and the curves.

    Args:
        out: Folder for the pictures.
        measured: What was measured.
        images: By noise, clean and denoised images at the middle strength, by method.
        shown: Name of the network whose leaves are shown.
    """
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
        panels.append(viz.Panel(_TITLES[noise], NOISES[noise], "mean PSNR (dB)", curves))
    viz.curves(panels, out / "denoise_psnr.png")


def middle(strengths: Any) -> float:
    """Return the strength at which images are shown."""
    return strengths[len(strengths) // 2]


def _draw_grid(path: Path, images: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    shown, texts = [*images["clean"][:_COLUMNS]], [""] * len(images["clean"][:_COLUMNS])
    for method in _ROWS:
        shown += [*images[method][:_COLUMNS]]
        texts += [f"{value:.1f} dB" for value in found[method]["psnr"][:_COLUMNS]]
    labels = ["clean", *(textwrap.fill(label(method), 13) for method in _ROWS)]
    viz.strip(np.clip(shown, 0, 1), texts, path, row_labels=labels)
