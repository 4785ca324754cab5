"""Some patches of an image move along the kernel of a transformer: as published, and with p held.

    python -m experiments.metamer.transformer

trains a small vision transformer on MNIST (extra `mnist`), frees half of the patches of test images
and moves them 200 steps along the kernel of G, the others held. SiMEC (Benfenati, Ferrara, Marta et
al., NeurIPS 2025, algorithm 1) takes an Euler step along an eigenvector of the pulled-back metric
with eigenvalue 0, and does not come back onto the level set of p; `foliax.drift(…, along="kernel",
free=…)` does. Writes `transformer.png`, `results.json`, `run.json` and `report.html`.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import foliax
from experiments.harness.command import Run, script
from experiments.harness.populations import flat, quartiles
from experiments.harness.report import FAILS, HOLDS, percent, section, write_results
from experiments.harness.run import Stages
from foliax import viz, zoo

_SIMEC, _EULER, _EXACT = "SiMEC", "Euler", "exact"
_ZERO = 1e-5  # of the largest singular value: what counts as 0 in float32
_KEPT = 1e-5  # largest change of a probability at which p counts as kept
_SHOWN = 4


@dataclass(frozen=True)
class Config(Run):
    """Which images, and how far they move; `--quick` takes the last of the lengths."""

    images: int = 20  # Test images, drawn by the seed
    steps: int = 200  # Steps along the kernel
    lengths: tuple[float, ...] = (0.03, 0.1, 0.3)  # Of a step, normalised units
    epochs: int = 12  # Of the training


class Block(nnx.Module):
    """Self-attention and two dense layers, each after a layer norm and added to its input."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.dense = nnx.List([
            nnx.Linear(width, 2 * width, rngs=rngs), nnx.Linear(2 * width, width, rngs=rngs)
        ])  # fmt: skip

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return the tokens after this block."""
        tokens = tokens + self.attention(self.norms[0](tokens))
        first, second = self.dense
        return tokens + second(nnx.gelu(first(self.norms[1](tokens))))


class VisionTransformer(nnx.Module):
    """A small vision transformer (Dosovitskiy et al., ICLR 2021); classes from the mean token."""

    def __init__(
        self, side: int, num_classes: int, *, patch: int = 7, width: int = 48, heads: int = 4,
        depth: int = 2, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.patch = patch
        self.embed = nnx.Linear(patch**2, width, rngs=rngs)
        places = 0.02 * jax.random.normal(rngs.params(), ((side // patch) ** 2, width))
        self.places = nnx.Param(places)
        self.blocks = nnx.List([Block(width, heads, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.dense = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits of one image, (H, W, 1)."""
        across = len(x) // self.patch
        cut = x.reshape(across, self.patch, across, self.patch).swapaxes(1, 2)
        tokens = self.embed(cut.reshape(across**2, self.patch**2)) + self.places[...]
        for block in self.blocks:
            tokens = block(tokens)
        return self.dense(jnp.mean(self.norm(tokens), axis=0))


def run(config: Config) -> dict[str, Any]:
    """Train, move and write everything; return what results.json holds."""
    config = config.at_most(images=2, epochs=1, steps=20)
    images, steps = config.images, config.steps
    lengths = config.lengths[-1:] if config.quick else config.lengths
    data = zoo.load_dataset("mnist_5k")
    stages = Stages("transformer", 1 + 3 * len(lengths))
    model = stages.run("training", _trained, data, config.epochs, config.seed)
    rng = np.random.default_rng(config.seed)
    xs = data.test_x[rng.permutation(len(data.test_x))[:images]]
    free = free_patches(rng, images, data.shape[0], model.patch)
    keys = jax.random.split(jax.random.key(config.seed), images)
    ways = {_SIMEC: simec, _EULER: partial(drift, scheme="published"), _EXACT: drift}
    numbers: dict[str, Any] = {name: {} for name in ways}
    ends: dict[str, Any] = {}
    for k, length in enumerate(lengths):
        for name, way in ways.items():
            title = f"{name}, {length:g}"
            ends[name] = stages.run(title, _all, way, model, xs, free, keys, length, steps)
            numbers[name][str(k)] = {"length": length} | _numbers(model, xs, ends[name])
    _draw(model, data, xs, free, ends, config.out / "transformer.png")
    accuracy = zoo.accuracy(model, data.test_x, data.test_y)
    intro = (
        f"A vision transformer of two blocks on MNIST, test accuracy {accuracy:.1%}. Half of the "
        f"patches of {images} test images move {steps} steps along the kernel of G, for steps of "
        f"{', '.join(f'{v:g}' for v in lengths)} normalised units; the others are held."
    )
    return write_results(
        config.out, "Patches that a transformer does not see move", [intro],
        {"transformer": _section(numbers, lengths)},
        run={"seed": config.seed, "seconds": stages.seconds},
        setting={"test_accuracy": accuracy, "images": images, "steps": steps},
    )  # fmt: skip


def _trained(data: Any, epochs: int, seed: int) -> VisionTransformer:
    model = VisionTransformer(data.shape[0], data.num_classes, rngs=nnx.Rngs(seed))
    config = zoo.TrainConfig(
        epochs=epochs, learning_rate=2e-3, optimizer="adam", seed=seed, track_per_epoch=0
    )
    trained, _ = zoo.train(model, data, config)
    assert isinstance(trained, VisionTransformer)
    return trained


def free_patches(rng: np.random.Generator, count: int, side: int, patch: int) -> np.ndarray:
    """Draw masks that free half of the patches, (count, side, side, 1)."""
    across = side // patch
    order = rng.permuted(np.tile(np.arange(across**2), (count, 1)), axis=1)
    chosen = (order < across**2 // 2).reshape(count, across, across)
    return np.kron(chosen, np.ones((1, patch, patch), bool))[..., None]


def _all(way: Any, model: Any, xs: Any, free: Any, keys: Any, length: float, steps: int) -> Any:
    """Move every image, one program over all."""
    one = partial(way, length=length, steps=steps)
    move = jax.jit(lambda model, *rows: jax.lax.map(lambda row: one(model, *row), rows))
    return np.asarray(move(model, jnp.asarray(xs), jnp.asarray(free), keys))


def simec(model: Any, x: Any, free: Any, key: Any, *, length: float, steps: int) -> Any:
    """Return the end of SiMEC's path: Euler steps along eigenvectors with eigenvalue 0.

    Eigenvectors of eigenvalue 0 are any orthonormal basis of the kernel, and each step takes one of
    them at random: a direction drawn evenly from the kernel.
    """

    def step(x: Any, key: Any) -> Any:
        jacobian = jax.jacrev(lambda x: jax.nn.softmax(model(x)))(x) * free
        _, values, rows = jnp.linalg.svd(jacobian.reshape(len(jacobian), -1), full_matrices=False)
        rows = jnp.where(values[:, None] > _ZERO * values[0], rows, 0)
        v = (jax.random.normal(key, x.shape, x.dtype) * free).ravel()
        v = (v - rows.T @ (rows @ v)) * free.ravel()
        return x + length * (v / jnp.linalg.norm(v)).reshape(x.shape), None

    return jax.lax.scan(step, x, jax.random.split(key, steps))[0]


def drift(
    model: Any, x: Any, free: Any, key: Any, *, length: float, steps: int, scheme: Any = "exact"
) -> Any:
    """Return the end of a drift along the kernel in one random direction."""
    direction = jax.random.normal(key, x.shape, x.dtype)
    return foliax.drift(
        model, x, direction, along="kernel", free=free, step=length, max_steps=steps,
        save_every=steps, scheme=scheme,
    ).end  # fmt: skip


def _numbers(model: Any, xs: Any, ends: Any) -> dict[str, Any]:
    p, q = (np.asarray(jax.nn.softmax(jax.vmap(model)(jnp.asarray(each)))) for each in (xs, ends))
    change = np.abs(q - p).max(axis=1)
    return {
        "change_of_p": quartiles(change),
        "p_kept": float(np.mean(change <= _KEPT)),
        "label_kept": float(np.mean(p.argmax(axis=1) == q.argmax(axis=1))),
        "moved": quartiles(np.linalg.norm(flat(ends) - flat(xs), axis=1)),
    }


def _section(numbers: dict[str, Any], lengths: tuple[float, ...]) -> dict[str, Any]:
    def largest(name: str) -> str:
        return ", ".join(f"{k['change_of_p']['largest']:.1g}" for k in numbers[name].values())

    kept = min(found["p_kept"] for found in numbers[_EXACT].values())
    text = (
        "For the step lengths in order the largest change of a probability is "
        f"{largest(_SIMEC)} by SiMEC, {largest(_EULER)} by Euler steps in one direction, and "
        f"{largest(_EXACT)} by the exact scheme, which keeps p to {_KEPT:g} for {percent(kept)} of "
        "the images at least."
    )
    rows = {
        "change_of_p.median": "change of p, median",
        "change_of_p.largest": "change of p, largest",
        "p_kept": f"share with p kept to {_KEPT:g}",
        "label_kept": "share with the label kept",
        "moved.median": "distance moved, median",
    }
    return section(
        title="Part of the input moves, and p stays",
        claim="Along the kernel of G the prediction does not change.",
        verdict=(HOLDS if kept == 1 else FAILS, text),
        numbers=numbers,
        pictures={"transformer.png": "Each row: an image, the same with what is free in bright, "
                  "and where it ends by each scheme with the longest step."},
        columns=("", *(f"{name}, {length:g}" for length in lengths for name in numbers)),
        rows=[
            [words, *(f"{name}.{k}.{path}" for k in range(len(lengths)) for name in numbers)]
            for path, words in rows.items()
        ],
    )  # fmt: skip


def _draw(model: Any, data: Any, xs: Any, free: Any, ends: Any, file: Path) -> None:
    rows = []
    for i in range(min(_SHOWN, len(xs))):
        start, mask = np.asarray(data.to_pixels(xs[i])), free[i]
        first = int(np.argmax(model(jnp.asarray(xs[i]))))
        rows += [(start, _caption(model, xs[i], first)), (0.5 * start + 0.5 * mask, "free: bright")]
        rows += [
            (np.asarray(data.to_pixels(end[i])), f"{name}\n{_caption(model, end[i], first)}")
            for name, end in ends.items()
        ]
    images, captions = zip(*rows, strict=True)
    viz.strip(
        np.stack(images), captions, file, columns=2 + len(ends),
        title="Half of the patches move along the kernel of a transformer",
    )  # fmt: skip


def _caption(model: Any, x: Any, label: int) -> str:
    p = jax.nn.softmax(model(jnp.asarray(x)))
    return f"p({label}) = {float(p[label]):.4f}"


if __name__ == "__main__":
    script(Config, run, name="metamer.transformer", description=__doc__)
