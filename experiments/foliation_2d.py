"""Both foliations of the plane, drawn whole, for small networks on XOR and on three circles.

    python -m experiments.foliation_2d --out out/foliation_2d

trains 2-8-2 networks on XOR and 2-16-3 networks on concentric circles, with ReLU, GELU and
sigmoid, and draws leaves over the probabilities, and below them where D loses a dimension.

With two classes D is a line, the data leaves are the curves of steepest change of the logits'
difference, and the kernel leaves are the level sets of p, on which p is checked. Singular points
are where that difference has no gradient. With three classes D is the whole plane and there is
nothing to draw of it; the integral curves of the first and of the second eigenvector of G are
drawn instead (not leaves: p changes along both), and D loses a dimension where the determinant of
the contrast Jacobian passes through zero, on whole curves. A ReLU network's Jacobian jumps from
piece to piece: it passes through zero without being zero.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jax import lax
from tqdm import tqdm

import foliax
from experiments.harness.common import provenance, quartiles, write_json
from experiments.harness.curves import (
    NAMES,
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
from foliax.viz.plane import Family, Plane, plane, tinted

SIZES = {"xor": (2, 8, 2), "circles": (2, 16, 3)}
_EDGE = 2.2  # the window is a square of twice that side
_FLAT = 1e-6  # of the largest singular value: below, a direction is lost


@dataclass(frozen=True)
class Config:
    """What to draw, and where to write.

    Attributes:
        out: Output folder.
        datasets: "xor", "circles".
        activations: "relu", "gelu", "sigmoid".
        seeds: Curves start on a grid of so many points a side, where no other curve is near.
        gap: Least distance of curves of one kind at their seeds; they end at half of it.
        pieces: A curve is drawn in so many pieces to each side, each in the direction in which
            the last one ended.
        piece_steps: Steps of a piece.
        step: Length of a step.
        grid: Pixels a side of the fields.
        epochs: Full-batch steps of Adam.
        seed: Of data and weights.
        quick: Few curves, for one activation.
    """

    out: Path = Path("out/foliation_2d")
    datasets: tuple[str, ...] = ("xor", "circles")
    activations: tuple[str, ...] = ("relu", "gelu", "sigmoid")
    seeds: int = 14
    gap: float = 0.17
    pieces: int = 14
    piece_steps: int = 6
    step: float = 0.04
    grid: int = 220
    epochs: int = 600
    seed: int = 0
    quick: bool = False


# --- data and network --------------------------------------------------------------------------


def sample(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 300 points of the plane and their classes."""
    rng = np.random.default_rng(seed)
    if name == "xor":
        corners = rng.integers(0, 2, (300, 2))
        xs = 2.0 * corners - 1 + 0.35 * rng.normal(size=(300, 2))
        return xs.astype(np.float32), corners.sum(axis=1) % 2
    ys = rng.integers(0, 3, 300)
    angle, radius = rng.uniform(0, 2 * np.pi, 300), 0.35 + 0.65 * ys + 0.12 * rng.normal(size=300)
    xs = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return xs.astype(np.float32), ys


# --- curves ------------------------------------------------------------------------------------


def leaves(model: Any, along: str, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Follow the leaf through each seed of a grid, and return curves and logits of both sides."""
    seeds = lattice(config.seeds, 0.93 * _EDGE)
    project = foliax.project_kernel if along == "kernel" else foliax.project_leaf
    tangents = jax.vmap(partial(project, model))(seeds, np.ones_like(seeds) * [0.6, 0.8])
    return follow(
        model, seeds, np.asarray(tangents), along=along, pieces=config.pieces,
        piece_steps=config.piece_steps, step=config.step,
    )  # fmt: skip


@partial(jax.jit, static_argnames=("which", "length"))
def eigencurves(model: Any, xs: Any, signs: Any, step: Any, *, which: int, length: int) -> Any:
    """Follow an eigenvector of G, midpoint rule; its sign is kept from step to step.

    Returns:
        Curves (N, length, 2), and the logits on them.
    """

    def follow(x: Any, sign: Any) -> Any:
        def vector(x: Any, before: Any) -> Any:
            v = foliax.eigh(model, x).vectors[which]
            return jnp.where(jnp.vdot(v, before) < 0, -v, v)

        def advance(carry: Any, _: None) -> Any:
            x, before = carry
            middle = x + 0.5 * step * vector(x, before)
            v = vector(middle, before)
            return (x + step * v, v), (x, model(x))

        start = (x, sign * foliax.eigh(model, x).vectors[which])
        return lax.scan(advance, start, length=length)[1]

    return jax.vmap(follow)(xs, signs)


# --- one network -------------------------------------------------------------------------------


def study(name: str, activation: str, config: Config) -> tuple[list[Plane], dict[str, Any]]:
    """Train a network, follow its curves, and return its two panels and its numbers."""
    xs, ys = sample(name, config.seed)
    blank = zoo.MLP(SIZES[name], activation=activation, rngs=nnx.Rngs(config.seed))
    model, accuracy = train(blank, jnp.asarray(xs), jnp.asarray(ys), config.epochs)
    logits, k = map(np.asarray, contrasts(model, lattice(config.grid, _EDGE)))
    sizes = np.linalg.svd(k, compute_uv=False)
    two = sizes.shape[1] == 1
    curves = _leaf_families(model, config) if two else _eigen_families(model, config)
    relative = sizes[:, -1] / (sizes.max() if two else np.maximum(sizes[:, 0], 1e-30))
    numbers: dict[str, Any] = {
        "accuracy": accuracy,
        "flat_share": np.mean(relative < _FLAT),
        "least_relative_singular_value": relative.min(),
    }
    numbers |= {key: quartiles(changes(logits)) for key, (_, logits) in curves.items()}
    marks = None
    if two and activation != "relu":
        marks = singular_points(model, lattice(12, _EDGE), _EDGE, gap=0.05)
    determinant = None if two else np.linalg.det(k)
    if marks is not None:
        numbers["singular_points"] = np.sort(np.round(marks, 3), axis=0)
    if determinant is not None:
        numbers["share_with_reversed_orientation"] = np.mean(determinant < 0)
    square = (config.grid, config.grid)
    extent = (-_EDGE, _EDGE, -_EDGE, _EDGE)
    field = tinted(np.asarray(jax.nn.softmax(jnp.asarray(logits))).reshape(*square, -1))
    depth = np.log10(np.maximum(relative, 10 * _FLAT)).reshape(square)
    families = [family for family, _ in curves.values()]
    upper = Plane(NAMES[activation], extent, field, families, points=xs, labels=ys)
    lower = Plane(
        "", extent, depth, zero=None if determinant is None else determinant.reshape(square),
        zero_label="determinant changes sign: D loses a dimension", marks=marks,
        marks_label="singular points: dim D = 0",
        field_label="log10 |∇(s₁ - s₂)| / largest" if two else "log10 σ₂ / σ₁",
    )  # fmt: skip
    return [upper, lower], numbers


def _leaf_families(model: Any, config: Config) -> dict[str, tuple[Family, np.ndarray]]:
    data, kernel = leaves(model, "leaf", config), leaves(model, "kernel", config)
    return {
        "data_leaf_change_of_p": (
            Family("data leaves", spaced(data[0], config.gap, _EDGE)),
            data[1],
        ),
        "kernel_leaf_drift_of_p": (
            Family(
                "kernel leaves: level sets of p",
                spaced(kernel[0], config.gap, _EDGE),
                "#ffffff",
                1.1,
            ),
            kernel[1],
        ),
    }


def _eigen_families(model: Any, config: Config) -> dict[str, tuple[Family, np.ndarray]]:
    seeds = lattice(config.seeds, 0.93 * _EDGE)
    xs, signs = np.concatenate([seeds, seeds]), np.repeat([1, -1], len(seeds)).astype(np.float32)
    length = config.pieces * config.piece_steps
    found = {}
    named = (("first", 0, "#22262b", 0.8), ("second", 1, "#ffffff", 1.1))
    for word, which, color, width in named:
        points, logits = eigencurves(
            model, xs, signs, np.float32(config.step), which=which, length=length
        )
        family = Family(
            f"along the {word} eigenvector of G",
            spaced(np.asarray(points), config.gap, _EDGE),
            color,
            width,
        )
        found[f"{word}_eigenvector_change_of_p"] = (family, np.asarray(logits))
    return found


def run(config: Config) -> dict[str, Any]:
    """Study every network; write a picture for each data set, `results.json` and `run.json`."""
    activations = config.activations[:1] if config.quick else config.activations
    if config.quick:
        config = Config(
            out=config.out, datasets=config.datasets, activations=activations, seeds=4, pieces=4,
            grid=60, epochs=300, seed=config.seed,
        )  # fmt: skip
    results: dict[str, Any] = {}
    start = time.perf_counter()
    with tqdm(total=len(config.datasets) * len(activations)) as bar:
        for name in config.datasets:
            upper, lower = [], []
            for activation in activations:
                bar.set_description(f"{name}, {activation}")
                panels, numbers = study(name, activation, config)
                upper.append(panels[0])
                lower.append(panels[1])
                results.setdefault(name, {})[activation] = numbers
                bar.update()
            sizes = "-".join(map(str, SIZES[name]))
            title = f"{name}, network {sizes}: curves over the probabilities, and where D is thin"
            plane(upper + lower, config.out / f"{name}.png", columns=len(upper), title=title)
    write_json(config.out / "results.json", results)
    spent = {"all": round(time.perf_counter() - start, 3)}
    write_json(config.out / "run.json", provenance(config.seed, spent))
    for name, networks in results.items():
        for activation, numbers in networks.items():
            kept = numbers.get(
                "kernel_leaf_drift_of_p", numbers.get("second_eigenvector_change_of_p")
            )
            print(
                f"{name:8} {activation:8} accuracy {numbers['accuracy']:.3f}, p moves by at most "
                f"{kept['largest']:.2g} along the white curves"
            )
    return results


def main() -> None:
    """Run from the command line."""
    config = tyro.cli(Config, prog="python -m experiments.foliation_2d", description=__doc__)
    with running("foliation_2d", config.out):
        run(config)


if __name__ == "__main__":
    main()
