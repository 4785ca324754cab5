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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

from experiments.harness.command import Run, script
from experiments.harness.files import plain, provenance, write_json, write_text
from experiments.harness.outcomes import FAILS, HOLDS, IN_PART
from foliax import fisher, viz, zoo

NATURAL = "natural gradient"
FEWER = 1 / 3  # share of the best SGD's steps that counts as clearly fewer
_HIDDEN = 48
_RTOL = 1e-3  # of a solve, the default of `natural_gradient`
_OTHER_PRODUCTS = 2  # F·v of a solve besides those of its iterations: first and last residual
_TIMED_STEPS, _REPEATS = 20, 3


@dataclass(frozen=True)
class Config(Run):
    """What is compared.

    Attributes:
        rates: The grid of learning rates of SGD.
        momentum: Of a second SGD, at the same rates, to compare with; not what the claim is about.
        damping: Added to the diagonal of F.
        max_kl: Longest step of the natural gradient, in nats.
        solver_steps: Conjugate-gradient iterations at most.
        natural_rate: Learning rate that scales the natural gradient.
        batch_size: Images a step, drawn without replacement, the same for all methods.
        target: Loss over the whole training set to be reached.
        sgd_steps: Steps of SGD at most.
        natural_steps: Steps of the natural gradient at most.
        seeds: How many, from `seed` on; each draws its own weights and batches.
    """

    out: Path = Path("out/natural_gradient")
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0)
    momentum: float = 0.9
    damping: float = 0.03
    max_kl: float = 0.1
    solver_steps: int = 20
    natural_rate: float = 1.0
    batch_size: int = 256
    target: float = 0.05
    sgd_steps: int = 400
    natural_steps: int = 40
    seeds: int = 3

    def effective(self) -> "Config":
        """Return what is run: itself, or a smaller one."""
        if not self.quick:
            return self
        small: dict[str, Any] = {"seeds": 1, "sgd_steps": 60, "natural_steps": 8, "target": 0.3}
        return replace(self, rates=(0.3, 1.0), **small)


# --- training ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Task:
    """A network without its weights, and what it is trained on."""

    graph: Any
    images: jax.Array
    labels: jax.Array
    batch_size: int

    def loss(self, params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the mean cross-entropy."""
        logits = jax.vmap(self.network(params))(images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def network(self, params: Any) -> Callable[[jax.Array], jax.Array]:
        """Return the network with these weights."""
        return nnx.merge(self.graph, params)

    def batch(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draw a batch."""
        chosen = jax.random.choice(key, len(self.images), (self.batch_size,), replace=False)
        return self.images[chosen], self.labels[chosen]


class Before(NamedTuple):
    """Where a step started: parameters, state of the optimiser, its images and their gradient."""

    params: Any
    state: Any
    images: jax.Array
    gradient: Any


def make_task(batch_size: int) -> tuple[Task, Callable[[int], Any]]:
    """Return the task, and what makes the first weights from a seed."""
    data = zoo.load_digits()
    sizes = (data.train_x[0].size, _HIDDEN, data.num_classes)

    def split(seed: int) -> tuple[Any, Any]:
        return nnx.split(zoo.MLP(sizes, rngs=nnx.Rngs(seed)), nnx.Param)

    images, labels = jnp.asarray(data.train_x), jnp.asarray(data.train_y)
    return Task(split(0)[0], images, labels, batch_size), lambda seed: split(seed)[1]


def trainer(task: Task, make: Callable, steps: int, record: Callable) -> Callable:
    """Return a compiled training: (params, key, *settings) → what was recorded of each step.

    `make` turns settings into an optimiser, `record` the parameters after a step and `Before` into
    an array.
    """

    @jax.jit
    def go(params: Any, key: jax.Array, *settings: float) -> jax.Array:
        optimiser = optax.with_extra_args_support(make(*settings))

        def step(carry: Any, key: jax.Array) -> tuple[Any, Any]:
            params, state = carry
            images, labels = task.batch(key)
            gradient = jax.grad(task.loss)(params, images, labels)
            updates, after = optimiser.update(gradient, state, params, batch=images)
            before = Before(params, state, images, gradient)
            params = optax.apply_updates(params, updates)
            return (params, after), record(params, before)

        first = params, optimiser.init(params)
        return jax.lax.scan(step, first, jax.random.split(key, steps))[1]

    return go


def optimisers(task: Task, config: Config, first: Any) -> dict[str, Callable]:
    """Return what makes each optimiser from its settings: the one under test, and SGD.

    `first` are weights of the network, of which only the shapes count.
    """
    preconditioned = fisher.natural_gradient(
        task.network(first), config.damping, max_kl=config.max_kl, max_steps=config.solver_steps
    )
    return {
        "sgd": optax.sgd,
        "natural": lambda rate: optax.chain(preconditioned, optax.scale_by_learning_rate(rate)),
    }


def first_below(losses: np.ndarray, target: float) -> int | None:
    """Return the number of steps after which the loss is first below the target, if it ever is."""
    below = np.flatnonzero(losses < target)
    return int(below[0]) + 1 if len(below) else None


# --- what a step costs --------------------------------------------------------------------------


def seconds_per_call(function: Callable, *arguments: Any, calls: int = 1) -> float:
    """Return the least time of some repeats, compiled, over the calls that one run makes."""

    def run() -> Any:
        return jax.block_until_ready(function(*arguments))

    run()
    return min(timeit.repeat(run, number=1, repeat=_REPEATS)) / calls


def costs(task: Task, config: Config, params: Any) -> dict[str, float]:
    """Time a step of each optimiser, a gradient and a product F·v, in seconds."""
    key, rate, found = jax.random.key(0), config.natural_rate / 100, {}
    # The small rate keeps the weights in place, so that every step costs the same.
    settings = {"sgd": (rate, config.momentum), "natural": (rate,)}
    for name, make in optimisers(task, config, params).items():
        # The sum makes the last step needed.
        go = trainer(task, make, _TIMED_STEPS, lambda params, _: ravel_pytree(params)[0].sum())
        found[f"{name}_step"] = seconds_per_call(
            go, params, key, *settings[name], calls=_TIMED_STEPS
        )
    images, labels = task.batch(key)

    @jax.jit
    def products(v: Any) -> Any:
        # One after another, as in a solve: the network is linearised once.
        def body(_: int, v: Any) -> Any:
            out = fisher.matvec(task.network(params), images, v, batched=True)
            return jax.tree.map(lambda a: a / 100, out)

        return jax.lax.fori_loop(0, _TIMED_STEPS, body, v)

    found["product"] = seconds_per_call(products, params, calls=_TIMED_STEPS)
    gradient = jax.jit(jax.grad(task.loss))
    return found | {"gradient": seconds_per_call(gradient, params, images, labels)}


def audit(task: Task, config: Config, params: Any, steps: int) -> dict[str, Any]:
    """Repeat the first steps of the natural gradient, and measure the residual of every solve.

    A solve whose residual is above the tolerance took all its iterations.
    """

    def residual(_: Any, before: Before) -> jax.Array:
        return fisher.solve(
            task.network(before.params), before.images, before.gradient, damping=config.damping,
            rtol=_RTOL, max_steps=config.solver_steps, guess=before.state[0].direction,
        ).residual  # fmt: skip

    go = trainer(task, optimisers(task, config, params)["natural"], config.natural_steps, residual)
    residuals = np.asarray(go(params, jax.random.key(config.seed), config.natural_rate))[:steps]
    return {
        "products_per_step_at_most": config.solver_steps + _OTHER_PRODUCTS,
        "solves": steps,
        "solves_that_took_all_iterations": int(np.sum(residuals > _RTOL)),
        "least_residual": residuals.min(),
        "largest_residual": residuals.max(),
    }


# --- all ----------------------------------------------------------------------------------------


def run(config: Config) -> dict[str, Any]:
    """Train with every method and seed, write everything, and return what results.json holds."""
    start, config = time.perf_counter(), config.effective()
    task, first_weights = make_task(config.batch_size)
    losses = _train_all(task, first_weights, config)
    stages = {"training": time.perf_counter() - start}
    found = {name: _summary(curves, config.target) for name, curves in losses.items()}
    best, second = (_best(found, config, momentum) for momentum in (0.0, config.momentum))
    steps = found[NATURAL]["steps"][0] or config.natural_steps
    outcome, verdict = _verdict(found, best, second, config)
    results = plain({
        "setting": {k: v for k, v in asdict(config).items() if k not in ("out", "devices")},
        "methods": found,
        "best_sgd": best,
        "best_sgd_with_momentum": second,
        "solver": audit(task, config, first_weights(config.seed), steps),
        "outcome": outcome,
        "verdict": verdict,
    })  # fmt: skip
    seconds = costs(task, config, first_weights(config.seed))
    draw({name: losses[name] for name in (NATURAL, best, second) if name}, config)
    text = f"{make_table(results, seconds)}\n\n{verdict}\n"
    write_text(config.out / "table.md", text)
    write_json(config.out / "results.json", results)
    stages |= {f"per_{name}": value for name, value in seconds.items()}
    write_json(config.out / "run.json", provenance(config.seed, plain(stages)))
    print(f"{text}\n{outcome}; curves: {config.out / 'steps.png'}")
    return results


def _train_all(task: Task, first_weights: Callable, config: Config) -> dict[str, np.ndarray]:
    """Return the losses (seeds, steps) of every method by name."""

    def loss(params: Any, _: Before) -> jax.Array:
        return task.loss(params, task.images, task.labels)

    makers = optimisers(task, config, first_weights(config.seed))
    descend = trainer(task, makers["sgd"], config.sgd_steps, loss)
    improve = trainer(task, makers["natural"], config.natural_steps, loss)
    runs: dict[str, Any] = {
        _name(rate, momentum): (descend, rate, momentum)
        for momentum in dict.fromkeys((0.0, config.momentum))
        for rate in config.rates
    }
    runs[NATURAL] = (improve, config.natural_rate)
    losses: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    with tqdm(total=len(runs) * config.seeds, unit="run", dynamic_ncols=True) as bar:
        for seed in range(config.seed, config.seed + config.seeds):
            params, key = first_weights(seed), jax.random.key(seed)
            for name, (go, *settings) in runs.items():
                bar.set_description(f"{name}, seed {seed}")
                losses[name].append(np.asarray(go(params, key, *settings)))
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
    lines = [
        "| method | steps to the target, by seed | median | ms a step | seconds to the target |",
        "|---|---|---:|---:|---:|",
    ]
    for name, one in results["methods"].items():
        each, median = seconds["natural_step" if name == NATURAL else "sgd_step"], "–"
        steps = ", ".join("not reached" if s is None else str(s) for s in one["steps"])
        needed = "–"
        if one["median_steps"] is not None:
            median, needed = f"{one['median_steps']:g}", f"{one['median_steps'] * each:.3g}"
        lines.append(f"| {name} | {steps} | {median} | {1e3 * each:.3g} | {needed} |")
    solver = results["solver"]
    return "\n".join(lines) + (
        f"\n\nA natural-gradient step makes at most {solver['products_per_step_at_most']} products "
        f"F·v and one gradient; {solver['solves_that_took_all_iterations']} of the first "
        f"{solver['solves']} solves took all their iterations. A product takes "
        f"{1e3 * seconds['product']:.3g} ms, a gradient of one batch "
        f"{1e3 * seconds['gradient']:.3g} ms."
    )


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
