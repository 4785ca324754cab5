"""Training with optax, watching trace and rank of the local data matrix as it goes.

The setting of Grementieri & Fioresi 2022 is the default: plain SGD at 0.01, batches of 60, 30
epochs; the mean trace over reference images rises, then falls as the softmax saturates.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int
from tqdm import tqdm

from foliax.data_matrix import trace_and_rank
from foliax.zoo import checkpoints
from foliax.zoo.data import Dataset
from foliax.zoo.history import History, Recorder

OnEpoch = Callable[[int, nnx.Module, History], Any]

_OPTIMIZERS = ("sgd", "adam")
_PREDICT_BLOCK = 256
_OBSERVE_BLOCK = 64  # images whose factor is in memory at once


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are the papers'.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Images in a step. An epoch drops what does not fill a batch, other images in
            each epoch.
        learning_rate: The constant rate.
        optimizer: "sgd" or "adam".
        momentum: Of SGD; 0 for plain SGD.
        seed: Of the order of the images.
        track_per_epoch: How often in an epoch trace and rank are measured; 0 for never.
        reference_size: On how many training images, always the same; all where there are fewer.
    """

    epochs: int = 30
    batch_size: int = 60
    learning_rate: float = 0.01
    optimizer: str = "sgd"
    momentum: float = 0.0
    seed: int = 0
    track_per_epoch: int = 10
    reference_size: int = 256

    def __post_init__(self):
        least = {"epochs": 1, "batch_size": 1, "track_per_epoch": 0, "reference_size": 1}
        for name, bound in least.items():
            if (value := getattr(self, name)) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {value}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.optimizer not in _OPTIMIZERS:
            choices = ", ".join(map(repr, _OPTIMIZERS))
            raise ValueError(f"optimizer must be one of {choices}, got {self.optimizer!r}")
        if not 0 <= self.momentum < 1 or (self.momentum and self.optimizer != "sgd"):
            raise ValueError(
                f"momentum must be in [0, 1), and 0 unless the optimizer is 'sgd'; got "
                f"{self.momentum} with {self.optimizer!r}"
            )


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
        params: The trainable weights.
        optimizer_state: What optax keeps.
    """

    params: Any
    optimizer_state: Any


class _Task(NamedTuple):
    """What a training does not change; `graphdef` and `optimizer` are static under jit."""

    graphdef: nnx.GraphDef
    rest: nnx.State
    optimizer: optax.GradientTransformation
    images: Array
    labels: Array
    reference: Int[np.ndarray, " r"]


def train(
    model: nnx.Module,
    dataset: Dataset,
    config: TrainConfig = TrainConfig(),
    *,
    out: str | os.PathLike | None = None,
    on_epoch: OnEpoch | None = None,
    progress: bool = True,
) -> tuple[nnx.Module, History]:
    """Train a classifier by its cross-entropy, and record trace and rank of G on the way.

    With `out`, every epoch leaves a checkpoint; a second call goes on from the newest and ends
    with the very weights of an uninterrupted run. It may ask for more epochs, and for nothing
    else: another architecture, data set or configuration is refused. The weights of `model` are
    then those of the checkpoint, whatever it came with.

    Args:
        model: An NNX module from one input to C logits. It is not changed; its variables other
            than `nnx.Param` stay as they are.
        dataset: What to train on.
        config: How.
        out: Folder for the checkpoints, which go to `out/checkpoints`; None for none.
        on_epoch: Called as `on_epoch(epoch, model, history)` after each epoch, from 1.
        progress: Whether to show a bar with loss, test accuracy, mean trace and mean rank.

    Returns:
        The trained model and what was recorded.

    Raises:
        ValueError: If the data set does not fill a batch, the model does not fit the data set, or
            `out` holds another training.

    Example:
        >>> from flax import nnx
        >>> from foliax import zoo
        >>> model = zoo.MLP((64, 16, 10), rngs=nnx.Rngs(0))
        >>> config = zoo.TrainConfig(epochs=1, learning_rate=0.1, reference_size=8)
        >>> model, history = zoo.train(model, zoo.load_digits(), config, progress=False)
        >>> history.steps.tolist()
        [0, 2, 5, 7, 9, 12, 14, 16, 18, 21, 23]
    """
    _check_fit(model, dataset, config)
    task, state = _begin(model, dataset, config)
    recorder, start = Recorder(), 0
    identity = _identity(dataset, config)
    if out is not None and checkpoints.has_any(out):
        state, recorder, start = _resume(out, model, state, identity, config.epochs)
    elif config.track_per_epoch:
        _track(task, state.params, 0, recorder, dataset.num_classes)
    num_steps = len(dataset.train_y) // config.batch_size
    total = config.epochs * num_steps
    with tqdm(
        total=total, initial=start * num_steps, unit="step", mininterval=0.5, disable=not progress
    ) as bar:
        for epoch in range(start + 1, config.epochs + 1):
            state = _run_epoch(task, state, epoch, dataset, config, recorder, bar)
            trained, history = nnx.merge(task.graphdef, state.params, task.rest), recorder.history()
            if out is not None:
                info = {"training": identity, "history": history.to_dict()}
                checkpoints.save(
                    out, trained, epoch=epoch, optimizer_state=state.optimizer_state, info=info
                )
            if on_epoch is not None:
                on_epoch(epoch, trained, history)
    return nnx.merge(task.graphdef, state.params, task.rest), recorder.history()


def accuracy(model: Callable, images: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of images whose greatest logit is that of the label.

    Args:
        model: A pytree callable on one input (wrap a plain function in `jax.tree_util.Partial`).
        images: (N, H, W, channels), normalised.
        labels: (N,) integers.

    Returns:
        A number in [0, 1].

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> identity = jax.tree_util.Partial(lambda x: x)
        >>> accuracy(identity, jnp.array([[1.0, 0.0], [2.0, 3.0]]), jnp.array([0, 0]))
        0.5
    """
    predicted = _in_blocks(lambda x: _predict(model, x), _PREDICT_BLOCK, jnp.asarray(images))
    return float(np.mean(predicted == np.asarray(labels)))


def choose_epoch(history: History, *, min_accuracy: float = 0.9) -> int:
    """Return the partially trained epoch that the geometry is looked at in.

    The first that ends at or after the peak of the mean trace and has enough test accuracy: before
    the peak the network has not learnt, long after it the softmax saturates and G vanishes.

    Args:
        history: Of a training with tracking.
        min_accuracy: Least test accuracy.

    Returns:
        The epoch, counted from 1.

    Raises:
        ValueError: If no epoch fits, or nothing was tracked.
    """
    if not len(history.steps):
        raise ValueError("history must hold traces; train with track_per_epoch ≥ 1")
    peak = history.steps[int(np.nanargmax(history.trace_mean))]
    fits = (history.epoch_steps >= peak) & (history.test_accuracy >= min_accuracy)
    if not fits.any():
        raise ValueError(
            f"no epoch ends at or after the peak of the mean trace (step {peak}) with a test "
            f"accuracy of at least {min_accuracy}; the best is {history.test_accuracy.max():.3f}. "
            "Train longer or at a higher rate"
        )
    return int(np.argmax(fits)) + 1


# One compiled step, called from Python, and not a scan over steps: on CPU, XLA runs convolutions
# inside a loop without its threaded kernels (seen: 8 to 10 times slower for the papers' network),
# while a call costs 0.1 ms.
@functools.partial(jax.jit, static_argnames=("graphdef", "optimizer"))
def train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    rest: nnx.State,
    images: Float[Array, "b ..."],
    labels: Int[Array, " b"],
) -> tuple[TrainState, Float[Array, ""]]:
    """Return the state after one step on a batch, and the loss before it."""

    def loss_fn(params: nnx.State) -> Float[Array, ""]:
        logits = jax.vmap(nnx.merge(graphdef, params, rest))(images)
        return jnp.mean(cross_entropy(logits, labels))

    loss, gradient = jax.value_and_grad(loss_fn)(state.params)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), optimizer_state), loss


cross_entropy: Final = optax.softmax_cross_entropy_with_integer_labels


@functools.lru_cache
def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Return the transformation; the same one for the same configuration, so jit compiles once."""
    if config.optimizer == "adam":
        return optax.adam(config.learning_rate)
    return optax.sgd(config.learning_rate, momentum=config.momentum or None)


def shuffled(num_images: int, epoch: int, config: TrainConfig) -> Int[np.ndarray, "s b"]:
    """Return the batches of an epoch as indices; they depend on seed and epoch alone."""
    key = jax.random.fold_in(jax.random.key(config.seed), epoch)
    order = np.asarray(jax.random.permutation(key, num_images))
    num_steps = num_images // config.batch_size
    return order[: num_steps * config.batch_size].reshape(num_steps, config.batch_size)


def tracked_steps(num_steps: int, per_epoch: int) -> Int[np.ndarray, " t"]:
    """Return after which steps of an epoch G is measured, evenly spread, the last one included."""
    marks = np.linspace(0, num_steps, per_epoch + 1)[1:]
    return np.unique(np.rint(marks).astype(int))


def _begin(model: nnx.Module, dataset: Dataset, config: TrainConfig) -> tuple[_Task, TrainState]:
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = make_optimizer(config)
    num_images = len(dataset.train_y)
    # Data sets may come sorted by class: a fixed random choice, whatever the seed of the training.
    reference = np.random.default_rng(0).permutation(num_images)[: config.reference_size]
    task = _Task(
        graphdef,
        rest,
        optimizer,
        jnp.asarray(dataset.train_x),
        jnp.asarray(dataset.train_y),
        np.sort(reference),
    )
    return task, TrainState(params, optimizer.init(params))


def _run_epoch(
    task: _Task,
    state: TrainState,
    epoch: int,
    dataset: Dataset,
    config: TrainConfig,
    recorder: Recorder,
    bar: tqdm,
) -> TrainState:
    batches = shuffled(len(dataset.train_y), epoch, config)
    before, losses = (epoch - 1) * len(batches), []
    marks = tracked_steps(len(batches), config.track_per_epoch)
    for step, batch in enumerate(batches, start=1):
        x, y = task.images[batch], task.labels[batch]
        state, loss = train_step(task.graphdef, task.optimizer, state, task.rest, x, y)
        losses.append(loss)
        if step in marks:
            _track(task, state.params, before + step, recorder, dataset.num_classes)
            bar.set_postfix(recorder.latest(), refresh=False)
        bar.update()
    model = nnx.merge(task.graphdef, state.params, task.rest)
    recorder.epoch(
        step=before + len(batches),
        train_loss=float(jnp.mean(jnp.stack(losses))),
        test_accuracy=accuracy(model, dataset.test_x, dataset.test_y),
    )
    bar.set_postfix(recorder.latest())
    return state


def _track(task: _Task, params: nnx.State, step: int, recorder: Recorder, num_classes: int) -> None:
    model = nnx.merge(task.graphdef, params, task.rest)
    x, y = task.images[task.reference], task.labels[task.reference]
    trace, rank, loss = _in_blocks(lambda x, y: _observe(model, x, y), _OBSERVE_BLOCK, x, y)
    recorder.track(step=step, loss=loss, trace=trace, rank=rank, num_classes=num_classes)


@jax.jit
def _observe(model: nnx.Module, images: Array, labels: Array) -> tuple[Array, Array, Array]:
    def one(x: Array, y: Array) -> tuple[Array, Array, Array]:
        return *trace_and_rank(model, x), cross_entropy(model(x), y)

    return jax.vmap(one)(images, labels)


@jax.jit
def _predict(model: Callable, images: Array) -> Int[Array, " b"]:
    return jnp.argmax(jax.vmap(model)(images), axis=-1)


def _in_blocks(function: Callable, block: int, *arrays: Array) -> Any:
    """Apply a compiled function block by block, all of one size so that it compiles once."""
    results = [function(*parts) for parts in _blocks(block, *arrays)]
    whole = jax.tree.map(lambda *parts: np.concatenate([np.asarray(p) for p in parts]), *results)
    return jax.tree.map(lambda values: values[: len(arrays[0])], whole)


def _blocks(block: int, *arrays: Array) -> Iterator[tuple[Array, ...]]:
    num = len(arrays[0])
    count = -(-num // block)
    # The last block is filled up from the start again; `_in_blocks` cuts the surplus off.
    for index in np.resize(np.arange(num), (count, -(-num // count))):
        yield tuple(array[index] for array in arrays)


def _identity(dataset: Dataset, config: TrainConfig) -> dict[str, Any]:
    """Describe a training up to its length: what must be the same for it to go on."""
    settings = dataclasses.asdict(config)
    del settings["epochs"]
    return {**settings, "dataset": dataset.name, "dataset_hash": dataset.fingerprint()}


def _resume(
    out: str | os.PathLike,
    model: nnx.Module,
    state: TrainState,
    identity: Mapping[str, Any],
    epochs: int,
) -> tuple[TrainState, Recorder, int]:
    checkpoint = checkpoints.read(out, at_most=epochs)
    if checkpoint is None:  # all are of later epochs
        raise ValueError(
            f"{os.fspath(out)} holds no usable checkpoint of epoch ≤ {epochs}; choose another `out`"
        )
    restored = checkpoints.with_weights(model, checkpoint)
    was = checkpoint.info.get("training", {})
    changed = {name: (was.get(name), now) for name, now in identity.items() if was.get(name) != now}
    if changed:
        told = "; ".join(f"{name} was {a!r}, is {b!r}" for name, (a, b) in changed.items())
        raise ValueError(f"{os.fspath(out)} holds another training: {told}; choose another `out`")
    params = nnx.state(restored, nnx.Param)
    optimizer_state = checkpoints.with_leaves(state.optimizer_state, checkpoint.optimizer_state)
    recorder = Recorder(History.from_dict(checkpoint.info["history"]))
    return TrainState(params, optimizer_state), recorder, checkpoint.epoch


def _check_fit(model: nnx.Module, dataset: Dataset, config: TrainConfig) -> None:
    if len(dataset.train_y) < config.batch_size:
        raise ValueError(
            f"batch_size must be at most the {len(dataset.train_y)} training images, "
            f"got {config.batch_size}"
        )
    logits = jax.eval_shape(lambda x: model(x), jnp.asarray(dataset.train_x[0]))
    if logits.shape != (dataset.num_classes,):
        raise ValueError(
            f"model must map one image to {dataset.num_classes} logits, as {dataset!r} has classes,"
            f" got shape {logits.shape}"
        )
