"""Networks and data of the benchmark, and the plain JAX that foliax is compared with."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.scipy.linalg import cho_factor, cho_solve
from scipy.linalg import helmert

import foliax
from foliax import zoo
from foliax._linalg.rank import count_rank, default_rtol, singular_values

_SIDE = 28
_STEPS = 100  # of the training that is made here, where no weights are given


class Subject(NamedTuple):
    """The network that is timed, and its images.

    Attributes:
        model: A `foliax.zoo.CNN`.
        data: Images of the shape it takes.
        origin: Where both come from, in words.
    """

    model: zoo.CNN
    data: zoo.Dataset
    origin: str


def obtain(weights: Path | None, checkpoint: Path | None, seed: int) -> Subject:
    """Return the papers' network for MNIST with the weights given, or briefly trained here.

    Raises:
        ValueError: If both are given, or the checkpoint is of another network.
    """
    if weights is not None and checkpoint is not None:
        raise ValueError(f"give --weights or --checkpoint, not both: {weights} and {checkpoint}")
    data = images()
    if checkpoint is not None:
        model = zoo.restore(checkpoint)
        if not isinstance(model, zoo.CNN) or model.shape != data.shape:
            raise ValueError(
                f"checkpoint must hold a CNN for images of shape {data.shape}, got "
                f"{type(model).__name__} in {checkpoint}"
            )
        return Subject(model, data, f"the checkpoint {checkpoint.name} on {data.name}")
    model = zoo.CNN(data.shape, data.num_classes, rngs=nnx.Rngs(seed))
    if weights is not None:
        return Subject(zoo.load_torch(model, weights), data, f"{weights.name} on {data.name}")
    config = zoo.TrainConfig(
        epochs=1, optimizer="adamw", learning_rate=2e-3, track_per_epoch=0, seed=seed
    )
    most = _STEPS * config.batch_size
    part = replace(data, train_x=data.train_x[:most], train_y=data.train_y[:most])
    epochs = math.ceil(most / len(part.train_y))
    model, history = zoo.train(model, part, replace(config, epochs=epochs), progress=False)
    trained: Any = model
    told = f"trained here for {history.epoch_steps[-1]} steps on {data.name}, seed {seed}"
    return Subject(trained, data, f"{told}, test accuracy {history.test_accuracy[-1]:.3f}")


def images() -> zoo.Dataset:
    """Return Fashion-MNIST where it is prepared, else the digits at its size."""
    try:
        return zoo.load_dataset("fashion_mnist")
    except (FileNotFoundError, ImportError):
        digits = zoo.load_digits()

    def larger(x: np.ndarray) -> np.ndarray:
        shape = (len(x), _SIDE, _SIDE, 1)
        return np.clip(jax.image.resize(digits.to_pixels(x), shape, "linear"), 0, 1)

    return zoo.from_arrays(
        f"digits enlarged to {_SIDE} × {_SIDE}",
        (larger(digits.train_x), digits.train_y),
        (larger(digits.test_x), digits.test_y),
        class_names=digits.class_names,
    )


class StockCNN(nnx.Module):
    """The same network of the layers that everybody has: nnx.Conv, nnx.max_pool, nnx.Linear.

    Args:
        model: The papers' network for MNIST, whose weights are shared.
    """

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


# --- what is asked of foliax -------------------------------------------------------------------


def measured(model: Any, x: Any, chunk: int | None = None) -> dict[str, Any]:
    """Return trace, rank and spectrum of G at x, from one factor."""
    a = foliax.factor(model, x, chunk=chunk)
    s = singular_values(a)
    return {
        "trace": jnp.sum(a**2), "rank": count_rank(s, num_rows=len(a)), "spectrum": s**2
    }  # fmt: skip


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


# --- what it is compared with ------------------------------------------------------------------


def plain(model: Any, xs: Any) -> dict[str, np.ndarray]:
    """Return trace, rank and spectrum in float64, by Σ p ∇log p ∇log pᵀ as it is written.

    Nothing of foliax is used but the tolerance of its rank, that of float32.
    """

    def gradients(model: Any, x: Any) -> tuple[Any, Any]:
        log_p = lambda y: jax.nn.log_softmax(model(y))  # noqa: E731
        return jnp.exp(log_p(x)), jax.jacrev(log_p)(x)

    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), model)
        pulled = jax.jit(jax.vmap(gradients, (None, 0)))(double, np.asarray(xs, np.float64))
        p, jacobian = (np.asarray(part) for part in pulled)
    rows = np.sqrt(p)[:, :, None] * jacobian.reshape(*p.shape, -1)
    count = p.shape[1] - 1
    s = np.linalg.svd(rows, compute_uv=False)[:, :count]
    least = math.sqrt(default_rtol(count, jnp.dtype(jnp.float32))) * s[:, :1]
    return {
        "trace": np.sum(rows**2, axis=(1, 2)), "rank": np.sum(s > least, axis=1), "spectrum": s**2
    }  # fmt: skip


def scan_by_hand(
    model: Any, x: Any, target: Any, box: Any, classes: int, step: float, steps: int
) -> Any:
    """Walk along the leaf as one would write it without foliax: a scan, a Gram matrix, Cholesky."""
    contrasts = jnp.asarray(helmert(classes), x.dtype)

    def projected(x: Any, v: Any) -> Any:
        _, pull = jax.vjp(model, x)
        rows = jax.vmap(lambda row: pull(row)[0].ravel())(contrasts)
        return cho_solve(cho_factor(rows @ rows.T), rows @ v.ravel()) @ rows

    return _scan(projected, x, target, box, step, steps)


def scan_of_projections(model: Any, x: Any, target: Any, box: Any, step: float, steps: int) -> Any:
    """Walk along the leaf by `foliax.project_leaf` in a scan."""
    return _scan(lambda x, v: foliax.project_leaf(model, x, v), x, target, box, step, steps)


def _scan(projected: Any, x: Any, target: Any, box: Any, step: float, steps: int) -> Any:
    """Return the points of the published scheme: unit-speed Euler, clipped."""

    def body(x: Any, _: None) -> tuple[Any, Any]:
        d = projected(x, target - x).reshape(x.shape)
        x = box.clip(x + step * d / jnp.sqrt(jnp.sum(d**2)))
        return x, x

    return jax.lax.scan(body, x, length=steps)[1]
