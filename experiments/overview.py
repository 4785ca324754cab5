"""One picture of the main results, composed of those that other experiments left.

    python -m experiments.overview --help

asks for the pictures of `train`, `leaf_map`, and of `claims` (or `kernel` and `data_leaf`).
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import tyro
from PIL import Image, ImageDraw, ImageFont

from experiments.harness.run import running
from foliax.viz import style

_WIDTH, _MARGIN, _CAPTION = 1700, 24, 40
_LEFT = 0.45  # share of the left column


@dataclass(frozen=True)
class Config:
    """Which pictures, and where the composed one goes."""

    training: Path  # Trace and rank of G during training, of `train`
    kernel: Path  # Strip of a drift along the kernel, of `kernel` or `claims`
    leaf: Path  # Strips of walks on the data leaf, of `data_leaf` or `claims`
    map: Path  # Map of the leaf, of `leaf_map`
    eigenvectors: Path  # Eigenvectors of G, of `leaf_map`
    out: Path = Path("out/overview.png")  # The picture to write


def run(config: Config) -> Path:
    """Compose the picture and write it."""
    left = int((_WIDTH - 3 * _MARGIN) * _LEFT)
    first = _column({
        "a  Trace and rank of G as a network learns": config.training,
        "b  An image and the leading eigenvectors of G at it": config.eigenvectors,
    }, left)  # fmt: skip
    second = _column({"c  A map of the leaf through an image": config.map},
                     _WIDTH - 3 * _MARGIN - left)  # fmt: skip
    wide = _column({
        "d  Across the leaves: noise comes, p stays (exact), or not (published)": config.kernel,
        "e  On the leaf, toward another image: as near as it comes": config.leaf,
    }, _WIDTH - 2 * _MARGIN)  # fmt: skip
    height = max(first.height, second.height)
    page = Image.new("RGB", (_WIDTH, height + wide.height + 3 * _MARGIN), style.PAPER)
    page.paste(first, (_MARGIN, _MARGIN))
    page.paste(second, (2 * _MARGIN + left, _MARGIN))
    page.paste(wide, (_MARGIN, 2 * _MARGIN + height))
    few = page.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    return style.written(config.out, lambda draft: few.save(draft, "PNG", optimize=True))


def _column(parts: dict[str, Path], width: int) -> Image.Image:
    """Return pictures of one width below each other, each with its caption above."""
    pictures = {text: _fitted(path, width) for text, path in parts.items()}
    height = sum(_CAPTION + _MARGIN + picture.height for picture in pictures.values()) - _MARGIN
    page = Image.new("RGB", (width, height), style.PAPER)
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 20)
    top = 0
    for text, picture in pictures.items():
        ImageDraw.Draw(page).text((0, top + 6), text, fill=style.INK, font=font)
        page.paste(picture, (0, top + _CAPTION))
        top += _CAPTION + picture.height + _MARGIN
    return page


def _fitted(path: Path, width: int) -> Image.Image:
    with Image.open(path) as picture:
        height = round(picture.height * width / picture.width)
        return picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    config = tyro.cli(Config, prog="python -m experiments.overview", description=__doc__)
    with running("overview", config.out.parent):
        print(run(config))
