"""Foliations of the plane and of space: small networks, curves, and where D loses a dimension."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

import foliax
from experiments.harness.command import Run
from experiments.harness.report import write_numbers
from experiments.harness.run import Stages
from foliax import zoo
from foliax.foliation import contrast_jacobian
from foliax.viz.spacing import apart

NAMES = {"relu": "ReLU", "gelu": "GELU", "sigmoid": "sigmoid"}
_NEWTON_STEPS = 40
Turn = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Config(Run):
    """Which networks, and where to write."""

    # Of the networks, one column of the pictures each; the first alone if quick.
    activations: tuple[Literal["relu", "gelu", "sigmoid"], ...] = ("relu", "gelu", "sigmoid")

    @property
    def epochs(self) -> int:
        """Return how long networks are trained."""
        return 300 if self.quick else 600


def corners(
    rng: np.random.Generator, num: int, axes: int, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return points about the corners of a cube, and the parity of each corner."""
    signs = rng.integers(0, 2, (num, axes))
    xs = 2.0 * signs - 1 + spread * rng.normal(size=(num, axes))
    return xs.astype(np.float32), signs.sum(axis=1) % 2


def train(model: Any, xs: Any, ys: Any, epochs: int) -> tuple[Any, float]:
    """Return the network after so many full-batch steps of Adam, and its accuracy."""
    optimizer = optax.adam(0.02)

    def loss(model: Any) -> jax.Array:
        logits = jax.vmap(model)(xs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, ys).mean()

    def update(carry: Any, _: None) -> tuple[Any, None]:
        model, state = carry
        change, state = optimizer.update(jax.grad(loss)(model), state)
        return (optax.apply_updates(model, change), state), None

    @jax.jit
    def fit(model: Any) -> tuple[Any, jax.Array]:
        (model, _), _ = lax.scan(update, (model, optimizer.init(model)), length=epochs)
        return model, jnp.mean(jnp.argmax(jax.vmap(model)(xs), axis=1) == ys)

    model, share = fit(model)
    return model, float(share)


def run_all(
    config: Config,
    networks: Mapping[str, tuple[int, ...]],
    sample: Callable[[str, int], tuple[np.ndarray, np.ndarray]],
    study: Callable[..., tuple[tuple[Any, Any], dict[str, Any]]],
    draw: Callable[..., Any],
) -> dict[str, Any]:
    """Study every network; write a picture for each data set, `results.json` and `run.json`.

    Args:
        config: Which networks, and where to write.
        networks: Layer sizes, by data set.
        sample: (data set, seed) → points and their classes.
        study: (data set, activation, model, points, classes, config) → an upper and a lower panel,
            and numbers.
        draw: (panels row by row, path, columns, data set) → a picture.
    """
    activations = config.activations[: 1 if config.quick else None]
    stages, results = Stages("foliations", len(networks) * len(activations)), {}
    for data, sizes in networks.items():
        xs, ys = sample(data, config.seed)

        def one(name: str, data: str = data, sizes: Any = sizes, xs: Any = xs, ys: Any = ys) -> Any:
            blank = zoo.MLP(sizes, activation=name, rngs=nnx.Rngs(config.seed))
            model, accuracy = train(blank, jnp.asarray(xs), jnp.asarray(ys), config.epochs)
            panels, numbers = study(data, name, model, xs, ys, config)
            return panels, {"accuracy": accuracy} | numbers

        found = {name: stages.run(f"{data}, {name}", one, name) for name in activations}
        results[data] = {name: numbers for name, (_, numbers) in found.items()}
        rows = zip(*(panels for panels, _ in found.values()), strict=True)
        draw([p for row in rows for p in row], config.out / f"{data}.png", len(found), data)
    return write_numbers(config.out, results, seed=config.seed, seconds=stages.seconds)


@jax.jit
def contrasts(model: Any, xs: Any) -> tuple[Any, Any]:
    """Return the logits and the contrast Jacobian (C − 1, n), whose rows span D, at many points."""
    likelihood = foliax.Categorical()
    return jax.vmap(lambda x: contrast_jacobian(model, x, likelihood, None))(xs)


def follow(
    model: Any,
    seeds: Any,
    directions: Any,
    *,
    along: str,
    pieces: int,
    piece_steps: int,
    step: float,
    turn: Turn | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Follow the leaf through each seed, to both sides, drift after drift.

    A drift goes as far as its direction has a part to follow; where a curve bends, the next one
    takes a new direction. A curve that turns back has met a ridge, and ends.

    Args:
        model: The network.
        seeds: (N, n).
        directions: (N, n) first directions, of one side.
        along: "leaf" or "kernel".
        pieces: Drifts a side.
        piece_steps: Steps of a drift.
        step: Length of a step.
        turn: Gives the directions to go on in, from the points and the last steps there; None to
            go on in those of the last steps.

    Returns:
        Curves (2N, points, n), where i and i + N are the two sides of a seed, and the logits on
        them.
    """
    xs, ahead = np.concatenate([seeds, seeds]), np.concatenate([directions, -directions])
    points, logits, ended = [], [], np.zeros(len(xs), bool)
    for _ in range(pieces):
        found = foliax.map(
            foliax.drift, model, xs, ahead.astype(xs.dtype), along=along, block=len(xs), step=step,
            max_steps=piece_steps, save_every=1,
        )  # fmt: skip
        piece = np.where(ended[:, None, None], xs[:, None], np.asarray(found.points))
        ended |= np.asarray(found.status != foliax.Status.completed)
        points.append(piece)
        logits.append(np.asarray(found.logits))
        xs, ahead = piece[:, -1], _last_step(piece, ahead)
        ahead = ahead if turn is None else turn(xs, ahead)
    return np.concatenate(points, axis=1), np.concatenate(logits, axis=1)


def _last_step(piece: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return the last step that went anywhere, or the old direction where none did."""
    steps = np.diff(piece, axis=1)
    moved = np.linalg.norm(steps, axis=2) > 0
    last = moved.shape[1] - 1 - moved[:, ::-1].argmax(axis=1)
    return np.where(moved.any(axis=1)[:, None], steps[np.arange(len(steps)), last], directions)


def changes(logits: Any) -> np.ndarray:
    """Return the largest change of a probability along each curve."""
    p = np.asarray(jax.nn.softmax(jnp.asarray(logits)))
    return np.abs(p - p[:, :1]).max(axis=(1, 2))


@jax.jit
def _singular(model: Any, xs: Any) -> tuple[Any, Any]:
    """Gauss and Newton's iteration for Kᵀu = 0, |u| = 1, and what is left of |Kᵀu|.

    Its steps are the least ones: where the solutions are curves it ends on one nearby.
    """

    def contrast(x: Any) -> Any:
        return contrast_jacobian(model, x, foliax.Categorical(), None)[1]

    def search(x: Any) -> Any:
        n, u = len(x), jnp.linalg.svd(contrast(x))[0][:, -1]

        def equations(z: Any) -> Any:
            return jnp.append(contrast(z[:n]).T @ z[n:], 0.5 * (z[n:] @ z[n:] - 1))

        def newton(z: Any, _: None) -> tuple[Any, None]:
            j = jax.jacobian(equations)(z)
            gram = j @ j.T
            damped = gram + 1e-6 * jnp.trace(gram) * jnp.eye(len(gram))
            move = j.T @ jnp.linalg.solve(damped, equations(z))
            return z - move * jnp.minimum(1, 0.2 / (jnp.linalg.norm(move) + 1e-12)), None

        z = lax.scan(newton, jnp.concatenate([x, u]), length=_NEWTON_STEPS)[0]
        return z[:n], jnp.linalg.norm(equations(z))

    return jax.vmap(search)(xs)


def singular_points(model: Any, seeds: np.ndarray, edge: float, gap: float) -> np.ndarray:
    """Return points of the window, no two nearer than the gap, where D loses a dimension.

    For networks whose contrasts are twice differentiable: the Jacobian of others jumps.
    """
    sizes = np.linalg.svd(np.asarray(contrasts(model, seeds)[1]), compute_uv=False)
    found, left = map(np.asarray, _singular(model, seeds))
    good = (left < 1e-5 * sizes.max()) & (np.abs(found).max(axis=1) < edge)
    return apart(found[good], gap)
