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

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from matplotlib.colors import to_rgb
from skimage.measure import marching_cubes
from tqdm import tqdm

import foliax
from experiments.harness.common import provenance, quartiles, write_json
from experiments.harness.curves import (
    NAMES,
    apart,
    changes,
    contrasts,
    follow,
    lattice,
    singular_points,
    spaced,
    train,
)
from experiments.harness.run import running
from foliax import zoo
from foliax.viz.space import Sheet, Space, Strands, space
from foliax.viz.style import INK, PALETTE

SIZES = {"xor": (3, 16, 2), "circles": (3, 16, 3)}
TITLES = {
    "xor": "Parity of three bits, networks 3-16-2: data leaves are curves, kernel leaves surfaces",
    "circles": "Three lifted circles, networks 3-16-3: kernel leaves are curves, D a plane field",
}
_EDGE = 2.0  # half the side of the cube that is looked at
_LEVEL = 3.0  # |s₁ − s₂| on the surfaces drawn
_AZIMUTH = -62.0
_UP = np.full(3, 3**-0.5, np.float32)
_FLAT = 1e-6  # of the largest gradient: below, D is lost
_NEWTON_SEEDS = 10


@dataclass(frozen=True)
class Config:
    """What to draw, and where to write.

    Attributes:
        out: Output folder.
        datasets: "xor", "circles".
        activations: "relu", "gelu", "sigmoid".
        seeds: Curves of a kind start at so many points at most.
        gap: Least distance of curves of one kind at their seeds; they end at half of it.
        reach: Length of a curve to each side of its seed, for "xor".
        around: The same for "circles": enough for a loop.
        piece_steps: Steps between two looks at where a curve is going.
        step: Length of a step.
        grid: Points a side of the lattice from which level surfaces are found.
        samples: Points at which involutivity is measured.
        epochs: Full-batch steps of Adam.
        seed: Of data, weights and samples.
        quick: Few and coarse curves, for one activation.
    """

    out: Path = Path("out/foliation_3d")
    datasets: tuple[Literal["xor", "circles"], ...] = ("xor", "circles")
    activations: tuple[Literal["relu", "gelu", "sigmoid"], ...] = ("relu", "gelu", "sigmoid")
    seeds: int = 70
    gap: float = 0.55
    reach: float = 3.0
    around: float = 13.0
    piece_steps: int = 10
    step: float = 0.025
    grid: int = 48
    samples: int = 1000
    epochs: int = 600
    seed: int = 0
    quick: bool = False

    def follow(self, model: Any, seeds: Any, directions: Any, length: float, **options: Any) -> Any:
        """Follow curves, as `_curves.follow`, so far to each side."""
        pieces = int(np.ceil(length / (self.piece_steps * self.step)))
        return follow(
            model, seeds, directions, pieces=pieces, piece_steps=self.piece_steps, step=self.step,
            **options,
        )  # fmt: skip


def sample(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 450 points of space and their classes."""
    rng = np.random.default_rng(seed)
    if name == "xor":
        corners = rng.integers(0, 2, (450, 3))
        xs = 2.0 * corners - 1 + 0.3 * rng.normal(size=(450, 3))
        return xs.astype(np.float32), corners.sum(axis=1) % 2
    ys = np.arange(450) % 3
    angle, radius = rng.uniform(0, 2 * np.pi, 450), np.array([0.5, 1.1, 1.7])[ys]
    height = np.array([-0.9, 0.9, -0.9])[ys]
    circles = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)
    return (circles + 0.12 * rng.normal(size=(450, 3))).astype(np.float32), ys


# --- geometry ----------------------------------------------------------------------------------


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


def spread(points: np.ndarray, config: Config) -> np.ndarray:
    """Return as many points as seeds, apart from each other; repeated where there are too few."""
    order = np.random.default_rng(config.seed).permutation(len(points))
    kept = apart(points[order], config.gap, config.seeds)
    return np.resize(kept, (config.seeds, 3))  # one shape, one compiled program


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


# --- parity: D is a line -----------------------------------------------------------------------


def data_leaves(model: Any, config: Config) -> tuple[list[np.ndarray], np.ndarray]:
    """Return curves of steepest change, from where the classes are even, and their logits."""
    even, _ = level_surface(model, 0.0, config.grid)
    seeds = spread(even[np.abs(even).max(axis=1) < 0.9 * _EDGE], config)
    curves, logits = config.follow(
        model, seeds, kernel_normal(model, seeds), config.reach, along="leaf"
    )
    return spaced(curves, config.gap, _EDGE), logits


def kernel_curves(model: Any, seeds: Any, config: Config) -> list[tuple[list, np.ndarray]]:
    """Return curves on level surfaces up the diagonal, and those across, with their logits."""
    both = np.concatenate([seeds, seeds])
    upward = np.broadcast_to(_UP, seeds.shape)
    ahead = np.where(np.arange(len(both))[:, None] < len(seeds), _UP, -_UP)

    def up(xs: np.ndarray, last: np.ndarray) -> np.ndarray:
        del xs, last
        return ahead

    def across(xs: np.ndarray, last: np.ndarray) -> np.ndarray:
        ways = np.cross(kernel_normal(model, xs), _UP)
        return np.where((ways * last).sum(axis=1, keepdims=True) < 0, -ways, ways)

    found = []
    for directions, way in ((upward, up), (np.cross(kernel_normal(model, seeds), _UP), across)):
        curves, logits = config.follow(
            model, seeds, directions, config.reach, along="kernel", way=way
        )
        found.append((spaced(curves, config.gap, _EDGE), logits))
    return found


def _relative_gradient(model: Any, config: Config) -> np.ndarray:
    """Return |∇(s₁ − s₂)| on a lattice, over the largest."""
    _, k = contrasts(model, lattice(config.grid // 2, _EDGE, axes=3))
    sizes = np.linalg.norm(np.asarray(k)[:, 0], axis=1)
    return sizes / sizes.max()


def study_xor(model: Any, name: str, config: Config) -> tuple[list[Space], dict[str, Any]]:
    """Follow both kinds of leaves; return two panels and what was measured."""
    lines, logits = data_leaves(model, config)
    numbers: dict[str, Any] = {
        "data_leaf_change_of_p": quartiles(changes(logits)),
        "share_without_gradient": np.mean(_relative_gradient(model, config) < _FLAT),
    }
    sheets, strands, drifts = [], [], []
    for level, color in ((_LEVEL, PALETTE[0]), (-_LEVEL, PALETTE[1])):
        corners, triangles = level_surface(model, level, config.grid)
        p = 1 / (1 + np.exp(-level))
        sheets.append(
            Sheet(f"kernel leaves, p = ({p:.2f}, {1 - p:.2f})", corners, triangles, color)
        )
        for curves, found in kernel_curves(model, spread(corners, config), config):
            strands.append(Strands("", curves, INK, 0.7, margin=0))
            drifts.append(changes(found))
    numbers["kernel_leaf_drift_of_p"] = quartiles(np.concatenate(drifts))
    marks = _singular(model, name)
    note = "D jumps from piece to piece"
    if marks is not None:
        numbers["singular_points"] = np.round(marks, 3)
        note = f"{len(marks)} singular points found"
    told = f"p moves by at most {numbers['kernel_leaf_drift_of_p']['largest']:.1g} along the lines"
    leaves = Strands("data leaves, coloured by p", lines, shades(model, lines))
    style: dict[str, Any] = {
        "marks": marks,
        "marks_label": "singular points: dim D = 0",
        "marks_size": 5,
    }
    return [
        Space(NAMES[name], _EDGE, [leaves], note=note, **style),
        Space("", _EDGE, strands, sheets, note=told),
    ], numbers


# --- circles: D is a plane ---------------------------------------------------------------------


@jax.jit
def _involutivity(model: Any, xs: Any) -> foliax.Involutivity:
    return jax.vmap(partial(foliax.involutivity, model))(xs)


def kernel_loops(model: Any, config: Config) -> tuple[list[np.ndarray], np.ndarray, int]:
    """Return level curves of p from a half-plane that faces the eye, and how many are closed."""
    radius, height = np.meshgrid([0.35, 0.8, 1.25, 1.7], [-1.6, -0.8, 0.0, 0.8, 1.6])
    if config.quick:
        radius, height = radius[1::2, 1::2], height[1::2, 1::2]
    angle = np.deg2rad(_AZIMUTH)
    seeds = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=-1)
    seeds = seeds.reshape(-1, 3).astype(np.float32)
    curves, logits = config.follow(
        model, seeds, kernel_normal(model, seeds), config.around, along="kernel"
    )
    lines, closed = loops(curves, config.step)
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


def brackets(model: Any, centres: np.ndarray, config: Config) -> tuple[dict, np.ndarray]:
    """Return how far brackets leave D at points of the cube, in numbers, and at some centres."""
    rng = np.random.default_rng(config.seed)
    xs = rng.uniform(-_EDGE, _EDGE, (config.samples, 3)).astype(np.float32)
    found = jax.tree.map(np.asarray, _involutivity(model, np.concatenate([xs, centres])))
    at = jax.tree.map(lambda leaf: leaf[: len(xs)], found)
    return {
        "brackets_outside_d": quartiles(at.outside),
        "share_where_brackets_leave_d": np.mean(at.dimension_with_brackets > at.dimension),
        "share_of_dimension_two": np.mean(at.dimension == 2),
    }, found.outside[len(xs) :]


def study_circles(model: Any, name: str, config: Config) -> tuple[list[Space], dict[str, Any]]:
    """Follow the kernel leaves, measure brackets; return two panels and what was measured."""
    curves, logits, closed = kernel_loops(model, config)
    centres, corners, pieces = tiles(model)
    measured, outside = brackets(model, centres, config)
    numbers: dict[str, Any] = measured | {
        "kernel_leaf_drift_of_p": quartiles(changes(logits)),
        "kernel_leaves": len(curves),
        "closed_kernel_leaves": closed,
    }
    marks = _singular(model, name)
    if marks is not None:
        numbers["singular_points_found"] = len(marks)
    leaves = Strands("kernel leaves, in the colour of their p", curves, shades(model, curves))
    label = "singular points: dim D = 1"
    drift, median = numbers["kernel_leaf_drift_of_p"], numbers["brackets_outside_d"]["median"]
    upper = Space(
        NAMES[name], _EDGE, [leaves], marks=marks, marks_label=label, marks_size=3.5,
        note=f"p moves by at most {drift['largest']:.1g}",
    )  # fmt: skip
    lower = Space(
        "", _EDGE, sheets=[Sheet("pieces of D", corners, pieces, outside, 0.92)],
        note=f"brackets outside D: {median:.2g} in the median",
        field_label="size of the bracket's part outside D",
    )  # fmt: skip
    return [upper, lower], numbers


# --- all ---------------------------------------------------------------------------------------


def _singular(model: Any, name: str) -> np.ndarray | None:
    """Return where D loses a dimension; None for ReLU, whose Jacobian jumps."""
    if name == "relu":
        return None
    return singular_points(model, lattice(_NEWTON_SEEDS, _EDGE, axes=3), _EDGE, gap=0.08)


STUDIES = {"xor": study_xor, "circles": study_circles}


def run(config: Config) -> dict[str, Any]:
    """Study every network; write a picture for each data set, `results.json` and `run.json`."""
    if config.quick:
        config = replace(
            config, activations=config.activations[:1], seeds=12, gap=0.8, piece_steps=5,
            step=0.08, reach=1.6, around=11.0, grid=24, samples=100, epochs=300,
        )  # fmt: skip
    results: dict[str, Any] = {}
    start = time.perf_counter()
    with tqdm(total=len(config.datasets) * len(config.activations)) as bar:
        for data in config.datasets:
            xs, ys = sample(data, config.seed)
            panels = []
            for name in config.activations:
                bar.set_description(f"{data}, {name}")
                blank = zoo.MLP(SIZES[data], activation=name, rngs=nnx.Rngs(config.seed))
                model, accuracy = train(blank, jnp.asarray(xs), jnp.asarray(ys), config.epochs)
                drawn, numbers = STUDIES[data](model, name, config)
                panels.append([replace(drawn[0], points=xs[:120], labels=ys[:120]), drawn[1]])
                results.setdefault(data, {})[name] = {"accuracy": accuracy} | numbers
                bar.update()
            rows = [panel for row in zip(*panels, strict=True) for panel in row]
            path = config.out / f"{data}.png"
            space(rows, path, columns=len(panels), title=TITLES[data], azimuth=_AZIMUTH)
    write_json(config.out / "results.json", results)
    spent = {"all": round(time.perf_counter() - start, 3)}
    write_json(config.out / "run.json", provenance(config.seed, spent))
    for data, networks in results.items():
        for name, numbers in networks.items():
            print(f"{data:8} {name:8} {_told(numbers)}")
    return results


def _told(numbers: dict[str, Any]) -> str:
    words = (
        f"accuracy {numbers['accuracy']:.3f}, p moves by at most "
        f"{numbers['kernel_leaf_drift_of_p']['largest']:.2g} along kernel leaves"
    )
    if "brackets_outside_d" not in numbers:
        return words
    outside, share = numbers["brackets_outside_d"], numbers["share_where_brackets_leave_d"]
    return (
        f"{words}; brackets outside D: {outside['median']:.2g} in the median, "
        f"{outside['largest']:.2g} at most, above rounding at {100 * share:.3g} % of points"
    )


def main() -> None:
    """Run from the command line."""
    config = tyro.cli(Config, prog="python -m experiments.foliation_3d", description=__doc__)
    with running("foliation_3d", config.out):
        run(config)


if __name__ == "__main__":
    main()
