"""Both foliations of space, for small networks on XOR of three bits and on three lifted circles.

    python -m experiments.foliation_3d --out out/foliation_3d

trains 3-16-2 networks on the parity of three bits and 3-16-3 networks on circles that lie at two
heights about one axis, with ReLU, GELU and sigmoid.

With two classes D is a line. Its leaves are curves of steepest change of the logits' difference,
drawn from where the classes are even; the kernel leaves are the level surfaces of p, drawn for
two levels, with two families of curves that cross at right angles: up a diagonal of the cube, and
across it. Singular points are where the difference has no gradient.

With three classes D is a plane, and the kernel leaves are curves along which p stays, here loops
about the axis. Below them are pieces of D, coloured by how far its fields' brackets leave it. That
says something here, n = 3 being more than C - 1 = 2: a network of flat pieces has integrable D,
and a smooth one in general has not (Frobenius). D loses a dimension on curves, such as the axis.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.colors import to_rgb
from skimage.measure import marching_cubes

import foliax
from experiments import foliations
from experiments.foliations import Config, changes, contrasts, follow, singular_points
from experiments.harness.command import script
from experiments.harness.populations import quartiles
from foliax.viz.space import Sheet, Space, Strands, space
from foliax.viz.spacing import apart, lattice, spaced
from foliax.viz.style import INK, PALETTE

NETWORKS = {"xor": (3, 16, 2), "circles": (3, 16, 3)}
TITLES = {
    "xor": "Parity of three bits, networks 3-16-2: data leaves are curves, kernel leaves surfaces",
    "circles": "Three lifted circles, networks 3-16-3: kernel leaves are curves, D a plane field",
}
_EDGE = 2.0  # half the side of the cube that is drawn
_LEVEL = 3.0  # |s₁ − s₂| on the surfaces drawn
_AZIMUTH = -62.0
_UP = np.full(3, 3**-0.5, np.float32)
_FLAT = 1e-6  # of the largest gradient: below, D is lost
_NEWTON_SEEDS = 10


class Sizes(NamedTuple):
    """How fine a study is."""

    seeds: int = 70  # Curves of a kind start at so many points at most
    gap: float = 0.55  # Least distance of curves of one kind at their seeds; they end at half of it
    reach: float = 3.0  # Length of a curve to each side of its seed, for "xor"
    around: float = 13.0  # The same for "circles": enough for a loop
    piece_steps: int = 10  # Steps after which a curve takes a new direction
    step: float = 0.025  # Length of a step
    grid: int = 48  # Points a side of the lattice from which level surfaces are found
    samples: int = 1000  # Points at which involutivity is measured

    def follow(self, model: Any, seeds: Any, directions: Any, length: float, **options: Any) -> Any:
        """Follow curves, as `curves.follow`, so far to each side."""
        pieces = int(np.ceil(length / (self.piece_steps * self.step)))
        options |= {"pieces": pieces, "piece_steps": self.piece_steps, "step": self.step}
        return follow(model, seeds, directions, **options)


_QUICK = Sizes(
    seeds=12, gap=0.8, piece_steps=5, step=0.08, reach=1.6, around=11.0, grid=24, samples=100
)


def sample(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 450 points of space and their classes."""
    rng = np.random.default_rng(seed)
    if name == "xor":
        return foliations.corners(rng, 450, axes=3, spread=0.3)
    ys = np.arange(450) % 3
    angle, radius = rng.uniform(0, 2 * np.pi, 450), np.array([0.5, 1.1, 1.7])[ys]
    height = np.array([-0.9, 0.9, -0.9])[ys]
    circles = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)
    return (circles + 0.12 * rng.normal(size=(450, 3))).astype(np.float32), ys


def kernel_normal(model: Any, xs: Any) -> np.ndarray:
    """Return unit vectors: ∇(s₁ − s₂) of two classes, and across both gradients of three."""
    k = np.asarray(contrasts(model, xs)[1])
    vectors = k[:, 0] if k.shape[1] == 1 else np.cross(k[:, 0], k[:, 1])
    return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-30)


def level_surface(model: Any, level: float, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Return corners and triangles of the surface s₁ − s₂ = level inside the cube."""
    logits, _ = contrasts(model, lattice(grid, _EDGE, axes=3))
    difference = np.asarray(logits[:, 0] - logits[:, 1]).reshape(grid, grid, grid).T
    if not difference.min() < level < difference.max():
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), int)
    corners, triangles, _, _ = marching_cubes(difference, level)
    return (corners * (2 * _EDGE / (grid - 1)) - _EDGE).astype(np.float32), triangles


def spread(points: np.ndarray, sizes: Sizes, seed: int) -> np.ndarray:
    """Return as many points as seeds, apart from each other; repeated where there are too few."""
    order = np.random.default_rng(seed).permutation(len(points))
    kept = apart(points[order], sizes.gap, sizes.seeds)
    return np.resize(kept, (sizes.seeds, 3))  # one shape, one compiled program


def shades(model: Any, lines: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return a colour for every point of curves, mixed from those of the classes by p."""
    p = np.asarray(jax.nn.softmax(contrasts(model, np.concatenate(lines))[0]))
    colors = np.array([to_rgb(color) for color in PALETTE[: p.shape[1]]])
    return np.split(p @ colors, np.cumsum([len(line) for line in lines])[:-1])


def loops(curves: np.ndarray, step: float) -> tuple[list[np.ndarray], int]:
    """Return one curve a seed, a closed one going round once, and how many are closed."""
    found, closed = [], 0
    for there, back in zip(*np.split(curves, 2), strict=True):
        distance = np.linalg.norm(there - there[0], axis=1)
        left = np.maximum.accumulate(distance) > 6 * step
        again = np.flatnonzero(left & (distance < step))
        if len(again):
            found.append(np.concatenate([there[: again[0]], there[:1]]))
            closed += 1
        else:
            found.append(np.concatenate([back[::-1], there]))
    return found, closed


def _singular(model: Any, activation: str) -> np.ndarray | None:
    """Return where D loses a dimension; None for ReLU, whose Jacobian jumps."""
    if activation == "relu":
        return None
    return singular_points(model, lattice(_NEWTON_SEEDS, _EDGE, axes=3), _EDGE, gap=0.08)


def data_leaves(model: Any, sizes: Sizes, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return curves of steepest change, from where the classes are even, and their logits."""
    even, _ = level_surface(model, 0.0, sizes.grid)
    seeds = spread(even[np.abs(even).max(axis=1) < 0.9 * _EDGE], sizes, seed)
    directions = kernel_normal(model, seeds)
    curves, logits = sizes.follow(model, seeds, directions, sizes.reach, along="leaf")
    return spaced(curves, sizes.gap, _EDGE), logits


def kernel_curves(model: Any, seeds: Any, sizes: Sizes) -> list[tuple[list, np.ndarray]]:
    """Return curves on level surfaces up the diagonal, and those across, with their logits."""
    upward = np.broadcast_to(_UP, seeds.shape)
    both = np.concatenate([upward, -upward])

    def across(xs: np.ndarray, last: np.ndarray) -> np.ndarray:
        ahead = np.cross(kernel_normal(model, xs), _UP)
        return np.where((ahead * last).sum(axis=1, keepdims=True) < 0, -ahead, ahead)

    found = []
    for directions, turn in (
        (upward, lambda *_: both),
        (np.cross(kernel_normal(model, seeds), _UP), across),
    ):
        curves, logits = sizes.follow(
            model, seeds, directions, sizes.reach, along="kernel", turn=turn
        )
        found.append((spaced(curves, sizes.gap, _EDGE), logits))
    return found


def study_xor(
    model: Any, activation: str, sizes: Sizes, seed: int
) -> tuple[Space, Space, dict[str, Any]]:
    """Follow both kinds of leaves; return two panels and what was measured."""
    lines, logits = data_leaves(model, sizes, seed)
    _, k = contrasts(model, lattice(sizes.grid // 2, _EDGE, axes=3))
    slopes = np.linalg.norm(np.asarray(k)[:, 0], axis=1)
    numbers: dict[str, Any] = {
        "data_leaf_change_of_p": quartiles(changes(logits)),
        "share_without_gradient": np.mean(slopes / slopes.max() < _FLAT),
    }
    sheets, strands, drifts = [], [], []
    for level, color in ((_LEVEL, PALETTE[0]), (-_LEVEL, PALETTE[1])):
        corners, triangles = level_surface(model, level, sizes.grid)
        p = 1 / (1 + np.exp(-level))
        label = f"kernel leaves, p = ({p:.2f}, {1 - p:.2f})"
        sheets.append(Sheet(label, corners, triangles, color))
        for curves, found in kernel_curves(model, spread(corners, sizes, seed), sizes):
            strands.append(Strands("", curves, INK, 0.7, margin=0))
            drifts.append(changes(found))
    drift = numbers["kernel_leaf_drift_of_p"] = quartiles(np.concatenate(drifts))
    marks, note = _singular(model, activation), "D jumps from piece to piece"
    if marks is not None:
        numbers["singular_points"] = np.round(marks, 3)
        note = f"{len(marks)} singular points found"
    leaves = Strands("data leaves, coloured by p", lines, shades(model, lines))
    upper = Space(
        foliations.NAMES[activation], _EDGE, [leaves], note=note, marks=marks, marks_size=5,
        marks_label="singular points: dim D = 0",
    )  # fmt: skip
    note = f"p moves by at most {drift['largest']:.1g} along the lines"
    return upper, Space("", _EDGE, strands, sheets, note=note), numbers


def kernel_loops(model: Any, sizes: Sizes) -> tuple[list[np.ndarray], np.ndarray, int]:
    """Return level curves of p from a half-plane that faces the eye, and how many are closed."""
    radius, height = np.meshgrid([0.35, 0.8, 1.25, 1.7], [-1.6, -0.8, 0.0, 0.8, 1.6])
    if sizes is _QUICK:
        radius, height = radius[1::2, 1::2], height[1::2, 1::2]
    angle = np.deg2rad(_AZIMUTH)
    seeds = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=-1)
    seeds = seeds.reshape(-1, 3).astype(np.float32)
    directions = kernel_normal(model, seeds)
    curves, logits = sizes.follow(model, seeds, directions, sizes.around, along="kernel")
    lines, closed = loops(curves, sizes.step)
    return lines, logits, closed


def tiles(model: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return centres, corners and pieces of small squares in D, about the axis."""
    turn, radius, height = np.meshgrid(
        np.linspace(0, 2 * np.pi, 13)[:-1], [0.55, 1.1, 1.65], [-1.3, 0.0, 1.3]
    )
    places = np.stack([radius * np.cos(turn), radius * np.sin(turn), height], axis=-1)
    centres = places.reshape(-1, 3).astype(np.float32)
    normal = kernel_normal(model, centres)
    upright = np.array([0, 0, 1]) - normal[:, 2:] * normal  # the axis, projected on D
    upright /= np.linalg.norm(upright, axis=1, keepdims=True) + 1e-30
    sideways = np.cross(normal, upright)
    signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    corners = np.stack([centres + 0.2 * (a * upright + b * sideways) for a, b in signs], axis=1)
    return centres, corners.reshape(-1, 3), np.arange(4 * len(centres)).reshape(-1, 4)


def study_circles(
    model: Any, activation: str, sizes: Sizes, seed: int
) -> tuple[Space, Space, dict[str, Any]]:
    """Follow the kernel leaves, measure brackets; return two panels and what was measured."""
    curves, logits, closed = kernel_loops(model, sizes)
    centres, corners, pieces = tiles(model)
    xs = np.random.default_rng(seed).uniform(-_EDGE, _EDGE, (sizes.samples, 3))
    points = np.concatenate([xs.astype(np.float32), centres])
    found = foliax.map(foliax.involutivity, model, points, block=len(points))
    at, at_tiles = (
        jax.tree.map(lambda leaf, part=part: np.asarray(leaf)[part], found)
        for part in (slice(len(xs)), slice(len(xs), None))
    )
    drift, outside = quartiles(changes(logits)), quartiles(at.outside)
    numbers: dict[str, Any] = {
        "brackets_outside_d": outside,
        "share_where_brackets_leave_d": np.mean(at.dimension_with_brackets > at.dimension),
        "share_of_dimension_two": np.mean(at.dimension == 2),
        "kernel_leaf_drift_of_p": drift,
        "kernel_leaves": len(curves),
        "closed_kernel_leaves": closed,
    }
    marks = _singular(model, activation)
    if marks is not None:
        numbers["singular_points_found"] = len(marks)
    leaves = Strands("kernel leaves, in the colour of their p", curves, shades(model, curves))
    upper = Space(
        foliations.NAMES[activation], _EDGE, [leaves], marks=marks, marks_size=3.5,
        marks_label="singular points: dim D = 1", note=f"p moves by at most {drift['largest']:.1g}",
    )  # fmt: skip
    lower = Space(
        "", _EDGE, sheets=[Sheet("pieces of D", corners, pieces, at_tiles.outside, 0.92)],
        note=f"brackets outside D: {outside['median']:.2g} in the median",
        field_label="size of the bracket's part outside D",
    )  # fmt: skip
    return upper, lower, numbers


def study(
    data: str, activation: str, model: Any, xs: Any, ys: Any, config: Config
) -> tuple[tuple[Space, Space], dict[str, Any]]:
    """Return the two panels of a network, and its numbers."""
    sizes = _QUICK if config.quick else Sizes()
    study_one = study_xor if data == "xor" else study_circles
    upper, lower, numbers = study_one(model, activation, sizes, config.seed)
    return (replace(upper, points=xs[:120], labels=ys[:120]), lower), numbers


def draw(panels: list[Space], path: Path, columns: int, data: str) -> None:
    """Draw the panels of a data set."""
    space(panels, path, columns=columns, title=TITLES[data], azimuth=_AZIMUTH)


def run(config: Config) -> dict[str, Any]:
    """Study every network; write a picture for each data set, `results.json` and `run.json`."""
    return foliations.run_all(config, NETWORKS, sample, study, draw)


if __name__ == "__main__":
    script(Config, run, name="foliation_3d", description=__doc__)
