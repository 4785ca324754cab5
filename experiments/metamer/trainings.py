"""Three trainings of one small network: plain, with a penalty on trace G, and adversarial."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from experiments.attack.baselines import projected_gradient
from experiments.harness.networks import Loaded, quick_network
from foliax import zoo

PLAIN, PENALTY, ADVERSARIAL = "plain", "trace penalty", "adversarial"
STRENGTH = 1.0  # of the penalty on the mean trace
_BATCH, _RATE = 60, 1e-3
_ATTACK_STEPS = 7


def trained(data: Any, *, epochs: int, budget: float, seed: int) -> dict[str, Loaded]:
    """Train a small network three times, by Adam with one order of batches.

    The adversarial one sees each image after seven steps of projected gradient in a ball of the
    budget, normalised units (Madry et al. 2018).
    """
    config = zoo.TrainConfig(
        epochs=epochs, learning_rate=_RATE, optimizer="adam", batch_size=_BATCH, seed=seed,
        track_per_epoch=0,
    )  # fmt: skip
    networks = {
        PLAIN: zoo.train(quick_network(data, seed=seed), data, config)[0],
        PENALTY: zoo.train(
            quick_network(data, seed=seed), data, replace(config, trace_penalty=STRENGTH)
        )[0],
        ADVERSARIAL: _adversarial(quick_network(data, seed=seed), data, epochs, budget, seed),
    }
    return {name: Loaded(model, data, f"{name} training") for name, model in networks.items()}


def _adversarial(model: Any, data: Any, epochs: int, budget: float, seed: int) -> Any:
    graph, weights = nnx.split(model)
    rule = optax.adam(_RATE)

    @jax.jit
    def step(weights: Any, state: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        def attacked(x: Any, label: Any) -> Any:
            return projected_gradient(
                nnx.merge(graph, weights), x, budget, num_steps=_ATTACK_STEPS, label=label,
                box=data.box,
            )  # fmt: skip

        moved = jax.lax.stop_gradient(jax.vmap(attacked)(images, labels))

        def loss(weights: Any) -> Any:
            logits = jax.vmap(nnx.merge(graph, weights))(moved)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

        updates, state = rule.update(jax.grad(loss)(weights), state, weights)
        return optax.apply_updates(weights, updates), state

    state, rng = rule.init(weights), np.random.default_rng(seed)
    rounds = len(data.train_y) // _BATCH
    for _ in tqdm(range(epochs), desc="adversarial training", unit="epoch"):
        order = rng.permutation(len(data.train_y))[: rounds * _BATCH].reshape(rounds, _BATCH)
        for places in order:
            weights, state = step(weights, state, data.train_x[places], data.train_y[places])
    return nnx.merge(graph, weights)
