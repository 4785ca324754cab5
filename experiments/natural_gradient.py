"""Natural gradient against gradient descent: how many steps to the same training loss?

    python -m experiments.natural_gradient --out out/natural_gradient

trains the same network from the same weights on the same batches, with SGD at each rate of a grid
(plain, and for comparison with momentum) and with the damped natural gradient of `foliax.fisher`
(Amari 1998), and counts the steps until the loss over all training images is below a target. It
tells the cost of a step too, which is a linear solve. Writes `steps.png`, `table.md`,
`results.json` (the same for the same seeds) and `run.json`.
"""

import time
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

from experiments.harness.command import Run, script
from experiments.harness.report import FAILS, HOLDS, IN_PART, markdown_table, write_numbers
from foliax import fisher, viz, zoo

NATURAL = "natural gradient"
FEWER = 1 / 3  # share of the best SGD's steps that counts as clearly fewer
_SIZES, _BATCH = (64, 48, 10), 256  # of the network, and images a step, the same for all methods
_MOMENTUM = 0.9  # of a second SGD, to compare with; not what the claim is about
_DAMPING, _MAX_KL, _SOLVER_STEPS = 0.03, 0.1, 20  # of the natural gradient; KL in nats
_TIMED_STEPS, _REPEATS = 20, 3


@dataclass(frozen=True)
class Config(Run):
    """What is compared."""

    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0)  # The grid of SGD
    target: float = 0.05  # Loss over the whole training set to be reached
    sgd_steps: int = 400  # Steps of SGD at most
    natural_steps: int = 40  # Steps of the natural gradient at most
    seeds: int = 3  # How many, from `seed` on; each draws its own weights and batches

    def effective(self) -> "Config":
        """Return what is run: itself, or a smaller one."""
        if not self.quick:
            return self
        small: dict[str, Any] = {"seeds": 1, "sgd_steps": 60, "natural_steps": 8, "target": 0.3}
        return replace(self, rates=(0.3, 1.0), **small)


def loss(model: Any, images: Any, labels: Any) -> jax.Array:
    """Return the mean cross-entropy."""
    logits = jax.vmap(lambda x: _apply(model, x))(images)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def network(seed: int) -> tuple[Any, Any]:
    """Return the network before the first step: its graph and its weights."""
    return nnx.split(zoo.MLP(_SIZES, rngs=nnx.Rngs(seed)), nnx.Param)


def _apply(weights: Any, x: jax.Array) -> jax.Array:
    return nnx.merge(network(0)[0], weights)(x)


def trainer(data: Any, make: Callable, steps: int, record: Callable[[Any], Any]) -> Callable:
    """Return a compiled training: (model, key, *settings) → what was recorded after each step.

    `make` turns settings into an optimiser.
    """
    xs, ys = jnp.asarray(data.train_x), jnp.asarray(data.train_y)

    @jax.jit
    def go(model: Any, key: jax.Array, *settings: float) -> jax.Array:
        optimiser = optax.with_extra_args_support(make(*settings))

        def step(carry: Any, key: jax.Array) -> tuple[Any, Any]:
            model, state = carry
            chosen = jax.random.choice(key, len(xs), (_BATCH,), replace=False)
            gradient = jax.grad(loss)(model, xs[chosen], ys[chosen])
            updates, new = optimiser.update(gradient, state, model, batch=xs[chosen])
            after = optax.apply_updates(model, updates)
            return (after, new), record(after)

        first = model, optimiser.init(model)
        return jax.lax.scan(step, first, jax.random.split(key, steps))[1]

    return go


def _natural() -> optax.GradientTransformation:
    preconditioned = fisher.natural_gradient(
        nnx.merge(*network(0)), _DAMPING, max_kl=_MAX_KL, max_steps=_SOLVER_STEPS
    )
    return optax.chain(preconditioned, optax.scale_by_learning_rate(1.0))


def first_below(losses: np.ndarray, target: float) -> int | None:
    """Return the number of steps after which the loss is first below the target, if it ever is."""
    below = np.flatnonzero(losses < target)
    return int(below[0]) + 1 if len(below) else None


def costs(data: Any, config: Config) -> dict[str, float]:
    """Time a step of each optimiser, in seconds: the least of some repeats, compiled."""
    found, model, key = {}, network(config.seed)[1], jax.random.key(0)
    for name, make, settings in (("sgd", optax.sgd, (1e-2, _MOMENTUM)), ("natural", _natural, ())):
        # The sum makes the last step needed.
        go = trainer(data, make, _TIMED_STEPS, lambda model: ravel_pytree(model)[0].sum())
        jax.block_until_ready(go(model, key, *settings))
        timer = timeit.Timer(lambda go=go, s=settings: jax.block_until_ready(go(model, key, *s)))
        found[f"{name}_step"] = min(timer.repeat(_REPEATS, 1)) / _TIMED_STEPS
    return found


def run(config: Config) -> dict[str, Any]:
    """Train with every method and seed, write everything, and return what results.json holds."""
    start, config = time.perf_counter(), config.effective()
    data = zoo.load_digits()
    losses = _train_all(data, config)
    seconds = {"training": time.perf_counter() - start}
    found = {name: _summary(curves, config.target) for name, curves in losses.items()}
    best, second = (_best(found, config, momentum) for momentum in (0.0, _MOMENTUM))
    outcome, verdict = _verdict(found, best, second, config)
    spent = costs(data, config)
    draw({name: losses[name] for name in (NATURAL, best, second) if name}, config)
    setting = {
        "seed": config.seed, "seeds": config.seeds, "rates": config.rates, "momentum": _MOMENTUM,
        "damping": _DAMPING, "max_kl": _MAX_KL, "solver_steps": _SOLVER_STEPS, "batch_size": _BATCH,
        "target": config.target, "sgd_steps": config.sgd_steps,
        "natural_steps": config.natural_steps,
    }  # fmt: skip
    results = {
        "setting": setting, "methods": found, "best_sgd": best, "best_sgd_with_momentum": second,
        "outcome": outcome, "verdict": verdict,
    }  # fmt: skip
    return write_numbers(
        config.out, results, seed=config.seed,
        seconds=seconds | {f"per_{name}": value for name, value in spent.items()},
        table=f"{make_table(results, spent)}\n\n{verdict}",
    )  # fmt: skip


def _train_all(data: Any, config: Config) -> dict[str, np.ndarray]:
    """Return the losses (seeds, steps) of every method by name."""
    images, labels = jnp.asarray(data.train_x), jnp.asarray(data.train_y)

    def whole(model: Any) -> jax.Array:
        return loss(model, images, labels)

    descend = trainer(data, optax.sgd, config.sgd_steps, whole)
    runs: dict[str, Any] = {
        _name(rate, momentum): (descend, rate, momentum)
        for momentum in (0.0, _MOMENTUM)
        for rate in config.rates
    }
    runs[NATURAL] = (trainer(data, _natural, config.natural_steps, whole),)
    losses: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    with tqdm(total=len(runs) * config.seeds, unit="run", dynamic_ncols=True) as bar:
        for seed in range(config.seed, config.seed + config.seeds):
            model, key = network(seed)[1], jax.random.key(seed)
            for name, (go, *settings) in runs.items():
                bar.set_description(f"{name}, seed {seed}")
                losses[name].append(np.asarray(go(model, key, *settings)))
                bar.update()
    return {name: np.stack(curves) for name, curves in losses.items()}


def _summary(curves: np.ndarray, target: float) -> dict[str, Any]:
    steps: list[Any] = [first_below(curve, target) for curve in curves]
    return {
        "steps": steps,
        "median_steps": None if None in steps else float(np.median(steps)),
        "last_loss": np.median(curves[:, -1]),
        "least_loss": np.median(np.nan_to_num(curves, nan=np.inf).min(axis=1)),
    }


def _name(rate: float, momentum: float) -> str:
    return f"SGD, rate {rate:g}" + (f", momentum {momentum:g}" if momentum else "")


def _best(found: Mapping[str, Any], config: Config, momentum: float) -> str | None:
    """Name the SGD of this momentum that needs the fewest steps; None if none arrives."""
    names = [_name(rate, momentum) for rate in config.rates]
    arrived = [name for name in names if found[name]["median_steps"] is not None]
    return min(arrived, key=lambda name: found[name]["median_steps"], default=None)


def _verdict(
    found: Mapping[str, Any], best: str | None, second: str | None, config: Config
) -> tuple[str, str]:
    ours, target = found[NATURAL]["median_steps"], f"a training loss of {config.target:g}"
    if ours is None:
        return FAILS, f"The natural gradient does not reach {target}."
    text = f"To {target} the natural gradient needs {ours:g} steps"
    if best is None:
        return IN_PART, f"{text}; no rate of plain SGD reaches it in {config.sgd_steps}."
    theirs = found[best]["median_steps"]
    outcome = HOLDS if ours <= FEWER * theirs else IN_PART if ours < theirs else FAILS
    momentum = f", {second} {found[second]['median_steps']:g}" if second else ""
    return outcome, (
        f"{text}, the best plain SGD {theirs:g} ({best}){momentum}: {ours / theirs:.2g} of plain "
        f"SGD's, where {FEWER:.2g} counts as clearly fewer. Medians over {config.seeds} seeds."
    )


def make_table(results: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    """Return the table of methods and of what they cost, in Markdown."""
    lines = [["method", "steps to the target, by seed", "median", "ms a step", "s to the target"]]
    for name, one in results["methods"].items():
        each, median = (
            seconds["natural_step" if name == NATURAL else "sgd_step"],
            one["median_steps"],
        )
        steps = ", ".join("not reached" if s is None else str(s) for s in one["steps"])
        needed = ["–", f"{1e3 * each:.3g}", "–"]
        if median is not None:
            needed = [f"{median:g}", f"{1e3 * each:.3g}", f"{median * each:.3g}"]
        lines.append([name, steps, *needed])
    return markdown_table(lines)


def draw(losses: Mapping[str, np.ndarray], config: Config) -> None:
    """Draw the loss against the steps, median and range over seeds."""
    below = [first_below(np.median(each, axis=0), config.target) for each in losses.values()]
    most = min(config.sgd_steps, 2 * max(count or config.sgd_steps for count in below))

    def curve(name: str) -> viz.Curve:
        curves = losses[name][:, :most]
        curves = np.where(np.isfinite(curves), curves, np.nan)
        x = np.arange(1, curves.shape[1] + 1)
        return viz.Curve(name, x, np.median(curves, axis=0), curves.min(0), curves.max(0))

    target = viz.Curve(f"target {config.target:g}", [1, most], [config.target] * 2, reference=True)
    title, lines = "Loss over all training images", [*map(curve, losses), target]
    panel = viz.Panel(title, "step", "training loss (nats)", lines, log=True)
    viz.curves(panel, config.out / "steps.png")


if __name__ == "__main__":
    script(Config, run, name="natural_gradient", description=__doc__)
