"""The picture of what `foliax.describe` found."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foliax.viz.images import signed
from foliax.viz.style import PALETTE, SOFT, figure

__all__ = ["describe"]

_MOST = 10  # classes that are shown


def describe(
    found: Any,
    path: str | os.PathLike,
    *,
    class_names: Sequence[str] | None = None,
    image: Any = None,
) -> Path:
    """Draw the input and the directions that G sees, the likeliest classes, the eigenvalues.

    Args:
        found: What `foliax.describe` returned.
        path: The PNG to write.
        class_names: C names; None for their numbers.
        image: The input in pixel units [0, 1], (H, W) or with channels last; None to draw x itself
            as a signed picture. Inputs that are no images become curves.

    Returns:
        The path written.

    Raises:
        ValueError: If there are not C class names.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> found = foliax.describe(lambda x: jnp.stack([x[0], x[1], 0 * x[0]]), jnp.zeros(9))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     describe(found, f"{folder}/model.png").name
        'model.png'
    """
    p = np.asarray(found.probabilities, np.float64)
    names = [str(k) for k in range(p.size)] if class_names is None else list(class_names)
    if len(names) != p.size:
        raise ValueError(f"class_names must be {p.size}, one for each class, got {len(names)}")
    parts = np.concatenate([np.asarray(found.x)[None], np.asarray(found.directions)])
    labels = ["x", *(f"{share:.0%} of the trace" for share in found.shares())]
    lines = found.advice or ("nothing looks wrong",)
    with figure(path, 9.6, 4.6 + 0.18 * len(lines)) as drawn:
        below = (0.4 + 0.18 * len(lines)) / drawn.get_figheight()
        edges = {"left": 0.07, "right": 0.975}
        above = drawn.add_gridspec(1, 4, bottom=0.62, top=0.94, wspace=0.3, **edges)
        lower = drawn.add_gridspec(1, 2, bottom=below + 0.08, top=0.53, wspace=0.24, **edges)
        for place, (part, label) in enumerate(zip(parts, labels[: len(parts)], strict=True)):
            _draw_part(drawn.add_subplot(above[place]), part, label, None if place else image)
        _draw_classes(drawn.add_subplot(lower[0]), p, names)
        _draw_values(drawn.add_subplot(lower[1]), found)
        _write(drawn, lines)
    return Path(path)


def _draw_part(axes: Axes, part: np.ndarray, label: str, image: Any) -> None:
    axes.set_title(label, fontsize=8.5)
    if image is not None:
        axes.imshow(np.squeeze(np.clip(image, 0, 1)), cmap="gray", vmin=0, vmax=1)
    elif part.ndim == 2 or (part.ndim == 3 and part.shape[-1] in (1, 3)):
        axes.imshow(signed(part[None])[0])
    else:
        axes.plot(part.ravel(), color=PALETTE[0], lw=1)
        return
    axes.set_axis_off()


def _draw_classes(axes: Axes, p: np.ndarray, names: Sequence[str]) -> None:
    top = np.argsort(-p, kind="stable")[:_MOST]
    axes.bar(range(len(top)), p[top], color=PALETTE[0])
    axes.set_xticks(range(len(top)), labels=[str(names[k]) for k in top], fontsize=7)
    axes.set(ylabel="probability", ylim=(0, 1), title="Likeliest classes")
    axes.grid(axis="x", visible=False)


def _draw_values(axes: Axes, found: Any) -> None:
    values = np.asarray(found.eigenvalues, np.float64)
    index = 1 + np.arange(values.size)
    shown = values > 0
    title = f"Eigenvalues of G: rank {int(found.rank)}, dim D {int(found.dimension)}"
    axes.set(xlabel="index", ylabel="nats per squared unit", title=title)
    if shown.any():
        axes.plot(index[shown], values[shown], "o-", ms=4, color=PALETTE[0])
        axes.set_yscale("log")
    axes.axvline(int(found.rank) + 0.5, ls="--", lw=1, color=SOFT)


def _write(drawn: Figure, lines: Sequence[str]) -> None:
    inches = drawn.get_figheight()
    for place, line in enumerate(lines):
        below = (0.14 + 0.18 * (len(lines) - 1 - place)) / inches
        drawn.text(0.02, below, line, fontsize=7.5, color=SOFT)
