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

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import foliax
from experiments import foliations
from experiments.foliations import Config, changes, contrasts, follow, singular_points
from experiments.harness.command import script
from experiments.harness.populations import quartiles
from foliax.viz.plane import Family, Plane, plane, tinted
from foliax.viz.spacing import lattice, spaced
from foliax.viz.style import INK

NETWORKS = {"xor": (2, 8, 2), "circles": (2, 16, 3)}
_EDGE = 2.2  # the window is a square of twice that side
_FLAT = 1e-6  # of the largest singular value: below, a direction is lost
_WHITE = ("#ffffff", 1.1)  # colour and width of the second family
_GAP = 0.17  # least distance of curves of one kind at their seeds; they end at half of it
_STEP, _PIECE_STEPS = 0.04, 6  # a curve is drawn in pieces, each in the last one's direction


class Sizes(NamedTuple):
    """Seeds a side of their grid, pieces of a curve to each side, pixels a side of the fields."""

    seeds: int = 14
    pieces: int = 14
    grid: int = 220


def sample(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 300 points of the plane and their classes."""
    rng = np.random.default_rng(seed)
    if name == "xor":
        return foliations.corners(rng, 300, axes=2, spread=0.35)
    ys = rng.integers(0, 3, 300)
    angle, radius = rng.uniform(0, 2 * np.pi, 300), 0.35 + 0.65 * ys + 0.12 * rng.normal(size=300)
    xs = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return xs.astype(np.float32), ys


def leaves(model: Any, sizes: Sizes) -> dict[str, tuple[Family, np.ndarray]]:
    """Follow both leaves through each seed of a grid; return curves and logits."""
    seeds, found = lattice(sizes.seeds, 0.93 * _EDGE), {}
    kinds: Any = (
        ("data_leaf_change_of_p", "data leaves", foliax.project_leaf, "leaf", ()),
        ("kernel_leaf_drift_of_p", "kernel leaves: level sets of p", foliax.project_kernel,
         "kernel", _WHITE),
    )  # fmt: skip
    for key, label, project, along, style in kinds:
        tangents = jax.vmap(partial(project, model))(seeds, np.ones_like(seeds) * [0.6, 0.8])
        curves, logits = follow(
            model, seeds, np.asarray(tangents), along=along, pieces=sizes.pieces,
            piece_steps=_PIECE_STEPS, step=_STEP,
        )  # fmt: skip
        found[key] = Family(label, spaced(curves, _GAP, _EDGE), *style), logits
    return found


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


def eigenvectors(model: Any, sizes: Sizes) -> dict[str, tuple[Family, np.ndarray]]:
    """Follow both eigenvectors of G from each seed of a grid, to both sides."""
    seeds = lattice(sizes.seeds, 0.93 * _EDGE)
    xs, signs = np.concatenate([seeds, seeds]), np.repeat([1, -1], len(seeds)).astype(np.float32)
    found = {}
    for which, (word, style) in enumerate({"first": (INK, 0.8), "second": _WHITE}.items()):
        length = sizes.pieces * _PIECE_STEPS
        curves, logits = map(
            np.asarray, eigencurves(model, xs, signs, np.float32(_STEP), which=which, length=length)
        )
        label = f"along the {word} eigenvector of G"
        family = Family(label, spaced(curves, _GAP, _EDGE), *style)
        found[f"{word}_eigenvector_change_of_p"] = family, logits
    return found


def study(
    _: str, activation: str, model: Any, xs: Any, ys: Any, config: Config
) -> tuple[tuple[Plane, Plane], dict[str, Any]]:
    """Follow the curves of a network, and return its two panels and its numbers."""
    sizes = Sizes(seeds=4, pieces=4, grid=60) if config.quick else Sizes()
    logits, k = map(np.asarray, contrasts(model, lattice(sizes.grid, _EDGE)))
    singular = np.linalg.svd(k, compute_uv=False)
    two = singular.shape[1] == 1
    curves = leaves(model, sizes) if two else eigenvectors(model, sizes)
    scale = singular.max() if two else np.maximum(singular[:, 0], 1e-30)
    relative = singular[:, -1] / scale
    numbers: dict[str, Any] = {
        "flat_share": np.mean(relative < _FLAT),
        "least_relative_singular_value": relative.min(),
    }
    numbers |= {key: quartiles(changes(logits)) for key, (_, logits) in curves.items()}
    marks = zero = None
    square = (sizes.grid, sizes.grid)
    if not two:
        determinant = np.linalg.det(k)
        zero = determinant.reshape(square)
        numbers["share_with_reversed_orientation"] = np.mean(determinant < 0)
    elif activation != "relu":
        marks = singular_points(model, lattice(12, _EDGE), _EDGE, gap=0.05)
        numbers["singular_points"] = np.sort(np.round(marks, 3), axis=0)
    extent = (-_EDGE, _EDGE, -_EDGE, _EDGE)
    field = tinted(np.asarray(jax.nn.softmax(jnp.asarray(logits))).reshape(*square, -1))
    depth = np.log10(np.maximum(relative, 10 * _FLAT)).reshape(square)
    families = [family for family, _ in curves.values()]
    title = foliations.NAMES[activation]
    upper = Plane(title, extent, field, families, points=xs, labels=ys)
    lower = Plane(
        "", extent, depth, zero=zero, marks=marks,
        zero_label="determinant changes sign: D loses a dimension",
        marks_label="singular points: dim D = 0",
        field_label="log10 |∇(s₁ - s₂)| / largest" if two else "log10 σ₂ / σ₁",
    )  # fmt: skip
    return (upper, lower), numbers


def draw(panels: list[Plane], path: Path, columns: int, name: str) -> None:
    """Draw the panels of a data set."""
    network = "-".join(map(str, NETWORKS[name]))
    title = f"{name}, network {network}: curves over the probabilities, and where D is thin"
    plane(panels, path, columns=columns, title=title)


def run(config: Config) -> dict[str, Any]:
    """Study every network; write a picture for each data set, `results.json` and `run.json`."""
    return foliations.run_all(config, NETWORKS, sample, study, draw)


if __name__ == "__main__":
    script(Config, run, name="foliation_2d", description=__doc__)
