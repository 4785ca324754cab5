"""One step of a training: the batch's gradient and what optax makes of it."""

import functools
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from foliax.data_matrix import trace_estimate
from foliax.zoo.nets import BATCH_AXIS

cross_entropy: Final = optax.softmax_cross_entropy_with_integer_labels


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
        params: The trainable weights.
        stats: Running statistics of batch normalisations; an empty state without any.
        optimizer_state: What optax keeps.
    """

    params: Any
    stats: Any
    optimizer_state: Any


# One compiled step, called from Python, and not a scan over steps: on CPU, XLA runs convolutions
# inside a loop without its threaded kernels (measured: 8 to 10 times slower for the papers'
# network), while a call costs 0.1 ms.
@functools.partial(jax.jit, static_argnames=("graphdef", "optimizer", "trace_penalty"))
def train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    rest: nnx.State,
    images: Float[Array, "b ..."],
    labels: Int[Array, " b"],
    key: Array | None = None,
    trace_penalty: float = 0.0,
) -> tuple[TrainState, Float[Array, ""]]:
    """Return the state after one step on a batch, and the loss before it, without the penalty.

    A penalty needs a key, for the random signs that estimate the trace of G.
    """

    def mean_trace(params: nnx.State, key: Array) -> Float[Array, ""]:
        model = nnx.merge(graphdef, params, state.stats, rest, copy=True)
        model = nnx.view(model, raise_if_not_found=False, use_running_average=True)

        def one(x: Array, key: Array) -> Array:
            return trace_estimate(model, x, key, num_samples=2).value

        return jnp.mean(jax.vmap(one)(images, jax.random.split(key, len(images))))

    def loss_fn(params: nnx.State) -> tuple[Float[Array, ""], tuple[Array, nnx.State]]:
        def one(x: Array) -> tuple[Array, nnx.State]:
            model = nnx.merge(graphdef, params, state.stats, rest, copy=True)  # to be mutated here
            return model(x), nnx.state(model, nnx.BatchStat)

        # The new statistics are means over the batch: the same for every element of the batch.
        logits, stats = jax.vmap(one, axis_name=BATCH_AXIS, out_axes=(0, None))(images)
        loss = jnp.mean(cross_entropy(logits, labels))
        if key is None or not trace_penalty:
            return loss, (loss, stats)
        return loss + trace_penalty * mean_trace(params, key), (loss, stats)

    (_, (loss, stats)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, stats, optimizer_state), loss
