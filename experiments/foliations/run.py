"""One run for the plane and for space: train small networks, study each, draw, and write."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from tqdm import tqdm

from experiments.harness.command import Run
from experiments.harness.files import provenance, write_json
from experiments.harness.report import percent
from foliax import zoo

NAMES = {"relu": "ReLU", "gelu": "GELU", "sigmoid": "sigmoid"}


@dataclass(frozen=True)
class Config(Run):
    """Which networks, and where to write."""

    # Of the networks, one column of the pictures each; the first alone if quick.
    activations: tuple[Literal["relu", "gelu", "sigmoid"], ...] = ("relu", "gelu", "sigmoid")


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
    results: dict[str, Any] = {}
    start = time.perf_counter()
    with tqdm(total=len(networks) * len(activations)) as bar:
        for data, sizes in networks.items():
            xs, ys = sample(data, config.seed)
            upper, lower = [], []
            for name in activations:
                bar.set_description(f"{data}, {name}")
                blank = zoo.MLP(sizes, activation=name, rngs=nnx.Rngs(config.seed))
                epochs = 300 if config.quick else 600
                model, accuracy = train(blank, jnp.asarray(xs), jnp.asarray(ys), epochs)
                panels, numbers = study(data, name, model, xs, ys, config)
                upper.append(panels[0])
                lower.append(panels[1])
                results.setdefault(data, {})[name] = {"accuracy": accuracy} | numbers
                bar.update()
            draw(upper + lower, config.out / f"{data}.png", len(upper), data)
    write_json(config.out / "results.json", results)
    spent = {"all": round(time.perf_counter() - start, 3)}
    write_json(config.out / "run.json", provenance(config.seed, spent))
    for data, found in results.items():
        for name, numbers in found.items():
            print(f"{data:8} {name:8} {_in_words(numbers)}")
    return results


def _in_words(numbers: Mapping[str, Any]) -> str:
    words = [f"accuracy {numbers['accuracy']:.3f}"]
    for key, text in (
        ("kernel_leaf_drift_of_p", "kernel leaves"),
        ("second_eigenvector_change_of_p", "the second eigenvector of G"),
    ):
        if key in numbers:
            words.append(f"p moves by at most {numbers[key]['largest']:.2g} along {text}")
    if "brackets_outside_d" in numbers:
        outside, share = numbers["brackets_outside_d"], numbers["share_where_brackets_leave_d"]
        words.append(
            f"brackets outside D: {outside['median']:.2g} in the median, {outside['largest']:.2g} "
            f"at most, above rounding at {percent(share)} of points"
        )
    return ", ".join(words)
