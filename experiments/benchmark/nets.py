"""Networks and data of the benchmark, and the plain JAX that foliax is compared with."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.scipy.linalg import cho_factor, cho_solve
from scipy.linalg import helmert

import foliax
from experiments.harness.networks import Loaded, load
from experiments.harness.populations import in_float64
from foliax import zoo
from foliax.data_matrix import count_rank, default_rtol, singular_values

_STEPS = 100  # of the training that is made here, where no weights are given


def obtain(weights: Path | None, checkpoint: Path | None, seed: int) -> Loaded:
    """Return the papers' network for MNIST with the weights given, or briefly trained here.

    Raises:
        ValueError: If both are given, or the checkpoint is of another network.
    """
    if weights is not None or checkpoint is not None:
        name = "fashion_mnist" if checkpoint is None else None
        loaded = load(name, checkpoint=checkpoint, weights=weights)
        if not isinstance(loaded.model, zoo.CNN):
            raise ValueError(f"checkpoint must hold a CNN, got {loaded.network}")
        return loaded
    try:
        data = zoo.load_dataset("fashion_mnist")
    except (FileNotFoundError, ImportError):
        data = zoo.load_digits()
    config = zoo.TrainConfig(optimizer="adamw", learning_rate=2e-3, track_per_epoch=0, seed=seed)
    most = _STEPS * config.batch_size
    part = replace(data, train_x=data.train_x[:most], train_y=data.train_y[:most])
    config = replace(config, epochs=math.ceil(most / len(part.train_y)))
    model = zoo.CNN(data.shape, data.num_classes, rngs=nnx.Rngs(seed))
    model, history = zoo.train(model, part, config, progress=False)
    steps, accuracy = history.epoch_steps[-1], history.test_accuracy[-1]
    words = f"CNN trained here for {steps} steps on {data.name}, test accuracy {accuracy:.3f}"
    return Loaded(model, data, words)


class StockCNN(nnx.Module):
    """The papers' network of the layers that everybody has: nnx.Conv, nnx.max_pool, nnx.Linear."""

    def __init__(self, model: zoo.CNN):
        def conv(own: Any) -> nnx.Conv:
            *window, num_in, num_out = own.kernel.shape
            blank = nnx.eval_shape(
                lambda: nnx.Conv(num_in, num_out, window, padding="VALID", rngs=nnx.Rngs(0))
            )
            blank.kernel, blank.bias = own.kernel, own.bias
            return blank

        if model.plan.index("pool") != len(model.plan) - 1 or model.padding or model.batch_norm:
            raise ValueError(f"model must be convolutions, then one pool; got {model.config}")
        self.convs = nnx.List([conv(own) for own in model.convs])
        self.denses = nnx.List(model.denses)

    def __call__(self, x: Any) -> jax.Array:
        """Return the logits of one input."""
        for conv in self.convs:
            x = nnx.relu(conv(x))
        x = nnx.max_pool(x, (2, 2), (2, 2)).ravel()
        for dense in self.denses[:-1]:
            x = nnx.relu(dense(x))
        return self.denses[-1](x)


def with_classes(model: zoo.CNN, classes: int, seed: int) -> zoo.CNN:
    """Return the network with a random last layer of so many classes."""
    other: Any = zoo.build({**model.config, "num_classes": classes}, nnx.Rngs(seed))
    layers: Any = zip(
        (*other.convs, *other.denses[:-1]), (*model.convs, *model.denses[:-1]), strict=True
    )
    for ours, theirs in layers:
        ours.kernel.set_value(theirs.kernel[...])
        ours.bias.set_value(theirs.bias[...])
    return other


def measured(model: Any, x: Any, chunk: int | None = None) -> dict[str, Any]:
    """Return trace, rank and spectrum of G at x, from one factor."""
    a = foliax.factor(model, x, chunk=chunk)
    s = singular_values(a)
    return {"trace": jnp.sum(a**2), "rank": count_rank(s, num_rows=len(a)), "spectrum": s**2}


def batch(model: Any, xs: Any, block: int, chunk: int | None = None) -> dict[str, Any]:
    """Return the same for a batch, in blocks of images."""
    return jax.lax.map(lambda x: measured(model, x, chunk), xs, batch_size=block)


def pulled(layer: Any, hs: Any, rows: Any, block: int) -> Any:
    """Return cotangents of a layer's outputs, pulled back to its inputs, in blocks of images."""

    def one(pair: Any) -> Any:
        pull = jax.vjp(layer, pair[0])[1]
        return jax.vmap(lambda row: pull(row)[0])(pair[1])

    return jax.lax.map(one, (hs, rows), batch_size=block)


def forward(model: Any, xs: Any) -> Any:
    """Return the logits of a batch."""
    return jax.vmap(model)(xs)


def plain(model: Any, xs: Any) -> dict[str, np.ndarray]:
    """Return trace, rank and spectrum in float64, by Σ p ∇log p ∇log pᵀ as it is written.

    Nothing of foliax is used but the tolerance of its rank, that of float32.
    """

    def gradients(model: Any, x: Any) -> tuple[Any, Any]:
        log_p = lambda y: jax.nn.log_softmax(model(y))  # noqa: E731
        return jnp.exp(log_p(x)), jax.jacrev(log_p)(x)

    with jax.enable_x64(True):
        found = jax.jit(jax.vmap(gradients, (None, 0)))(*in_float64((model, jnp.asarray(xs))))
        p, jacobian = (np.asarray(part) for part in found)
    rows = np.sqrt(p)[:, :, None] * jacobian.reshape(*p.shape, -1)
    count = p.shape[1] - 1
    s = np.linalg.svd(rows, compute_uv=False)[:, :count]
    least = math.sqrt(default_rtol(count, jnp.dtype(jnp.float32))) * s[:, :1]
    trace = np.sum(rows**2, axis=(1, 2))
    return {"trace": trace, "rank": np.sum(s > least, axis=1), "spectrum": s**2}


def scan_by_hand(
    model: Any, x: Any, target: Any, box: Any, classes: int, step: float, steps: int
) -> Any:
    """Walk along the leaf as one would write it without foliax: a scan, a Gram matrix, Cholesky.

    Returns the points of the published scheme: unit-speed Euler, clipped.
    """
    contrasts = jnp.asarray(helmert(classes), x.dtype)

    def body(x: Any, _: None) -> tuple[Any, Any]:
        _, pull = jax.vjp(model, x)
        rows = jax.vmap(lambda row: pull(row)[0].ravel())(contrasts)
        d = cho_solve(cho_factor(rows @ rows.T), rows @ (target - x).ravel()) @ rows
        x = box.clip(x + step * d.reshape(x.shape) / jnp.linalg.norm(d))
        return x, x

    return jax.lax.scan(body, x, length=steps)[1]
