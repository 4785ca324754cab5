"""Pictures of images: strips in the slides' layout, signed images, and GIFs."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from foliax.viz.style import GRID, INK, PALETTE, PAPER, figure, written

__all__ = ["as_pictures", "gif", "show", "signed", "strip", "write"]

# In inches: an image with its gap, a line of its caption, the column of the row labels.
_CELL, _LINE, _LABEL = 1.12, 0.145, 1.05
_GAP = 0.04
_LONGEST_ROW = 9  # as in the slides
_LAST_FRAME_MS = 1500  # a GIF shows its last frame longer before it starts again


def strip(
    images: Any,
    captions: Sequence[str],
    path: str | os.PathLike,
    *,
    columns: int | None = None,
    row_labels: Sequence[str] = (),
    title: str | None = None,
) -> Path:
    """Draw images in rows, a caption under each, as in the slides.

    Args:
        images: (N, H, W), (N, H, W, 1) or (N, H, W, 3) in pixel units [0, 1]; what lies outside
            is clipped, for display only. An image that is not a number anywhere leaves a gap.
        captions: N texts of one or more lines, e.g. iteration, predicted label, probability.
        path: The PNG to write.
        columns: Images in a row; None for at most nine, in rows of nearly equal length. With
            `row_labels`, rows are N / len(row_labels) long whatever `columns` says.
        row_labels: A name for each row, written on its left.
        title: A line above the pictures.

    Returns:
        The path written.

    Raises:
        ValueError: If shapes or counts do not fit.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     strip(np.zeros((2, 8, 8)), ["one", "two"], f"{folder}/zeros.png").name
        'zeros.png'
    """
    pictures = as_pictures(images)
    missing: Any = np.isnan(np.asarray(images, dtype=float))
    gaps = missing.reshape(len(pictures), -1).all(axis=1)
    _check_captions(captions, len(pictures))
    columns = _columns(len(pictures), columns, len(row_labels))
    rows = math.ceil(len(pictures) / columns)
    lines = max(caption.count("\n") + 1 for caption in captions)
    left, head = (_LABEL if row_labels else 0.08), (0.36 if title else 0.08)
    row_height = _CELL + _LINE * lines + 0.16
    height = head + rows * row_height
    with figure(path, left + columns * _CELL + 0.08, height) as drawn:
        if title:
            write(drawn, 0.12, height - 0.24, title, fontsize=10)
        for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
            row, column = divmod(i, columns)
            x, top = left + column * _CELL, height - head - row * row_height
            if not gaps[i]:
                show(drawn, picture, x + _GAP, top - _GAP, _CELL - 2 * _GAP)
            for k, line in enumerate(caption.split("\n")):
                at = top - _CELL - 0.1 - k * _LINE
                write(drawn, x + _CELL / 2, at, line, fontsize=7.2, ha="center")
        for row, label in enumerate(row_labels):
            at = height - head - row * row_height - _CELL / 2
            write(drawn, 0.12, at, label, fontsize=8.5, va="center", linespacing=1.3)
    return Path(path)


def gif(
    images: Any,
    captions: Sequence[str],
    path: str | os.PathLike,
    *,
    fps: int | float = 12,
    size: int = 224,
) -> Path:
    """Write an animated GIF, one captioned frame per image, the last one shown longer.

    Args:
        images: As in `strip`.
        captions: One text per image.
        path: The GIF to write.
        fps: Frames a second.
        size: Least width of the picture in screen pixels; pixels are enlarged, never blurred.

    Returns:
        The path written.

    Raises:
        ValueError: If shapes or counts do not fit, or fps is not positive.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     gif(np.zeros((2, 8, 8)), ["one", "two"], f"{folder}/zeros.gif").name
        'zeros.gif'
    """
    pictures = as_pictures(images)
    _check_captions(captions, len(pictures))
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    lines = max(caption.count("\n") + 1 for caption in captions)
    frames = [_frame(p, c, size, lines) for p, c in zip(pictures, captions, strict=True)]
    coded = _coded(frames, grey=pictures.shape[-1] == 1)
    durations = [round(1000 / fps)] * (len(frames) - 1) + [_LAST_FRAME_MS]

    def save(stream: Any) -> None:
        options = {"save_all": True, "append_images": coded[1:], "duration": durations, "loop": 0}
        coded[0].save(stream, format="GIF", optimize=False, **options)

    return written(path, save)


def signed(images: Any) -> np.ndarray:
    """Return signed images, such as eigenvectors of G, as pictures around a neutral grey.

    Each is scaled by its largest absolute value. Grey ones go from blue (negative) over the ground
    of the pages to orange (positive); of colour, each channel goes from 0 over 1/2 to 1.

    Args:
        images: (N, H, W), (N, H, W, 1) or (N, H, W, 3), of any scale and sign.

    Returns:
        (N, H, W, 3) in [0, 1], for `strip` or `gif`.

    Raises:
        ValueError: If the shape is another one.

    Example:
        >>> import numpy as np
        >>> signed(np.array([[[-2.0, 0.0, 2.0]]]))[0, 0, :, 2].round(2).tolist()
        [0.7, 0.96, 0.0]
    """
    values = np.asarray(images, dtype=float)
    values = values[..., None] if values.ndim == 3 else values
    if values.ndim != 4 or values.shape[-1] not in (1, 3):
        raise ValueError(
            f"images must be (N, H, W), (N, H, W, 1) or (N, H, W, 3), got shape {np.shape(images)}"
        )
    largest = np.abs(values).max(axis=(1, 2, 3), keepdims=True)
    values = values / np.where(largest > 0, largest, 1)
    if values.shape[-1] == 3:
        return (values + 1) / 2
    ground, low, high = (np.array(to_rgb(color)) for color in (PAPER, PALETTE[0], PALETTE[1]))
    return ground + np.abs(values) * np.where(values < 0, low - ground, high - ground)


def as_pictures(images: Any) -> np.ndarray:
    """Return (N, H, W, 1 or 3) in [0, 1]."""
    pictures = np.asarray(images, dtype=float)
    if pictures.ndim == 3:
        pictures = pictures[..., None]
    if pictures.ndim != 4 or pictures.shape[-1] not in (1, 3) or not len(pictures):
        raise ValueError(
            "images must be (N, H, W), (N, H, W, 1) or (N, H, W, 3) with N > 0, got shape "
            f"{np.shape(images)}"
        )
    return np.clip(np.nan_to_num(pictures), 0.0, 1.0)


def _check_captions(captions: Sequence[str], count: int) -> None:
    if isinstance(captions, str) or len(captions) != count:
        raise ValueError(f"captions must hold one text per image, {count}, got {len(captions)}")


def _columns(count: int, wanted: int | None, num_labels: int) -> int:
    """Return how many images are in a row."""
    if num_labels:
        if count % num_labels:
            raise ValueError(
                f"row_labels must divide the {count} images into equal rows, got {num_labels}"
            )
        return count // num_labels
    if wanted is not None and wanted < 1:
        raise ValueError(f"columns must be at least 1, got {wanted}")
    return wanted or math.ceil(count / math.ceil(count / _LONGEST_ROW))


def write(drawn: Figure, x: float, y: float, text: str, **style: Any) -> None:
    """Write at a place in inches from the lower left corner."""
    width, height = drawn.get_size_inches()
    drawn.text(x / width, y / height, text, **style)


def show(
    drawn: Figure, picture: np.ndarray, x: float, top: float, side: float, *, edge: Any = GRID
) -> None:
    """Show one image in a square whose upper left corner is at (x, top), in inches."""
    width, height = drawn.get_size_inches()
    axes: Axes = drawn.add_axes((x / width, (top - side) / height, side / width, side / height))
    pixels = picture[..., 0] if picture.shape[-1] == 1 else picture
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=edge, linewidth=0.6)


def _coded(frames: Sequence[Image.Image], *, grey: bool) -> list[Image.Image]:
    """Return frames of at most 256 colours, the same in all: otherwise shades shift."""
    if grey:
        return [frame.convert("L") for frame in frames]
    sample = np.concatenate([np.asarray(f) for f in frames[:: max(1, len(frames) // 4)]])
    palette = Image.fromarray(sample).quantize(255)
    return [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]


def _frame(picture: np.ndarray, caption: str, size: int, lines: int) -> Image.Image:
    height, width, _ = picture.shape
    scale = max(1, math.ceil(size / width))
    colors = np.round(255 * np.broadcast_to(picture, (height, width, 3))).astype(np.uint8)
    shape = (width * scale, height * scale)
    large = Image.fromarray(colors).resize(shape, Image.Resampling.NEAREST)
    margin, foot = 8, 20 * lines + 8
    frame = Image.new("RGB", (shape[0] + 2 * margin, shape[1] + margin + foot), PAPER)
    frame.paste(large, (margin, margin))
    font = ImageFont.load_default(size=15)
    at = (frame.width // 2, shape[1] + margin + 5)
    ImageDraw.Draw(frame).multiline_text(at, caption, INK, font, anchor="ma", align="center")
    return frame
