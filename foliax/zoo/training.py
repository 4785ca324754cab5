"""Training with optax, recording trace and rank of the local data matrix.

The setting of Grementieri & Fioresi 2022 is the default: plain SGD at 0.01, batches of 60, 30
epochs; the mean trace over reference images rises, then falls as the softmax saturates.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int
from tqdm import tqdm

from foliax.batch import sharding
from foliax.batch.folders import alone
from foliax.zoo import checkpoints
from foliax.zoo.data import Dataset
from foliax.zoo.evaluation import accuracy, observe
from foliax.zoo.history import History, Recorder
from foliax.zoo.nets import BATCH_AXIS
from foliax.zoo.train_config import TrainConfig, make_optimizer
from foliax.zoo.train_step import TrainState, train_step

OnEpoch = Callable[[int, nnx.Module, History], Any]


class _Task(NamedTuple):
    """What a training does not change; `graphdef` is that of evaluation.

    `training_graphdef` has the batch normalisations at the statistics of the batch; it and
    `optimizer` are static under jit.
    """

    graphdef: nnx.GraphDef
    training_graphdef: nnx.GraphDef
    rest: nnx.State
    optimizer: optax.GradientTransformation
    dataset: Dataset
    config: TrainConfig
    reference: Int[np.ndarray, " r"]
    recorder: Recorder
    seconds: MutableMapping[str, float]
    mesh: Mesh | None
    out: str | os.PathLike | None

    def model(self, state: TrainState) -> nnx.Module:
        return nnx.merge(self.graphdef, state.params, state.stats, self.rest)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def train(
    model: nnx.Module,
    dataset: Dataset,
    config: TrainConfig = TrainConfig(),
    *,
    out: str | os.PathLike | None = None,
    on_epoch: OnEpoch | None = None,
    progress: bool = True,
    seconds: MutableMapping[str, float] | None = None,
    mesh: Mesh | None = None,
) -> tuple[nnx.Module, History]:
    """Train a classifier by its cross-entropy, and record trace and rank of G on the way.

    With `out`, every epoch writes a checkpoint; a second call resumes from the newest and ends
    with the weights of an uninterrupted run. It may ask for more epochs (unless the rate
    follows a schedule over them), and for nothing else: another architecture, data set or
    configuration is refused. The weights of `model` are then those of the checkpoint, whatever it
    came with.

    A checkpoint that cannot be read is skipped with a warning, for the one before. Where none
    can be read, the training starts over from `model`; what is there is renamed, not deleted.

    Args:
        model: An NNX module from one input to C logits. It is not changed. Of its variables,
            `nnx.Param` are trained and `nnx.BatchStat` follow the batches; others stay as they are.
        dataset: What to train on.
        config: How.
        out: Folder for the checkpoints, which go to `out/checkpoints`; None for none.
        on_epoch: Called as `on_epoch(epoch, model, history)` after each epoch, from 1.
        progress: Whether to show a bar with loss, test accuracy, mean trace and mean rank.
        seconds: Where the time spent on "steps", "tracking", "evaluation" and "checkpoints" is
            added, compilation included.
        mesh: Devices of this host that share every batch, each with all the weights, see
            `foliax.sharding`; None for one. Sums over a batch then come in another order: the
            weights agree with those of one device up to rounding. A training may resume on
            other devices.

    Returns:
        The trained model, in evaluation mode, and what was recorded.

    Raises:
        ValueError: If the data set does not fill a batch, the model does not fit the data set, the
            devices cannot share a batch evenly or are not all of this host, or `out` holds another
            training.
        RuntimeError: If another run is training into `out`.
        FloatingPointError: If the training diverges: the loss of a step, the weights, or what is
            measured at the reference images is not finite. The checkpoints written so far are kept.

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
    _check_mesh(mesh, config)
    with nullcontext() if out is None else alone(out, "training.lock"):
        return _train(
            model, dataset, config, out, on_epoch, progress,
            {} if seconds is None else seconds, mesh,
        )  # fmt: skip


def _train(
    model: nnx.Module,
    dataset: Dataset,
    config: TrainConfig,
    out: str | os.PathLike | None,
    on_epoch: OnEpoch | None,
    progress: bool,
    seconds: MutableMapping[str, float],
    mesh: Mesh | None,
) -> tuple[nnx.Module, History]:
    """Resume from the newest checkpoint, epoch by epoch."""
    identity = _identity(dataset, config)
    found = None if out is None else _resume(out, model, identity, config.epochs)
    task, state = _begin(model, dataset, config, found, seconds, mesh, out)
    start = 0 if found is None else found.epoch
    if not start and config.track_per_epoch:
        _track(task, state, 0)
    num_steps = len(dataset.train_y) // config.batch_size
    bar = tqdm(
        total=config.epochs * num_steps,
        initial=start * num_steps,
        unit="step",
        mininterval=0.5,
        disable=not progress,
    )
    with bar:
        bar.set_postfix(task.recorder.latest(), refresh=False)
        for epoch in range(start + 1, config.epochs + 1):
            state = _run_epoch(task, state, epoch, bar)
            trained, history = task.model(state), task.recorder.history()
            if out is not None:
                info = {"training": identity, "history": history.to_dict()}
                kept = state.optimizer_state
                with task.timed("checkpoints"):
                    checkpoints.save(out, trained, epoch=epoch, optimizer_state=kept, info=info)
            if on_epoch is not None:
                on_epoch(epoch, trained, history)
    return task.model(state), task.recorder.history()


def shuffled(num_images: int, epoch: int, config: TrainConfig) -> Int[np.ndarray, "s b"]:
    """Return the batches of an epoch as indices; they depend on seed and epoch alone."""
    key = jax.random.fold_in(jax.random.key(config.seed), epoch)
    order = np.asarray(jax.random.permutation(key, num_images))
    num_steps = num_images // config.batch_size
    return order[: num_steps * config.batch_size].reshape(num_steps, config.batch_size)


def tracked_steps(num_steps: int, per_epoch: int) -> Int[np.ndarray, " t"]:
    """Return after which steps of an epoch G is measured, evenly spread, the last one included."""
    marks = np.unique(np.rint(np.linspace(0, num_steps, per_epoch + 1)[1:]).astype(int))
    return marks[marks > 0]


def _begin(
    model: nnx.Module,
    dataset: Dataset,
    config: TrainConfig,
    found: checkpoints.Checkpoint | None,
    seconds: MutableMapping[str, float],
    mesh: Mesh | None,
    out: str | os.PathLike | None,
) -> tuple[_Task, TrainState]:
    """Return the task, and the state to resume from: that of the checkpoint, if there is one."""
    if found is not None:
        model = checkpoints.with_weights(model, found)
    graphdef, params, stats, rest = _split(model, use_running_average=True)
    num_images = len(dataset.train_y)
    optimizer = make_optimizer(config, config.epochs * (num_images // config.batch_size))
    optimizer_state, history = optimizer.init(params), None
    if found is not None:
        optimizer_state = checkpoints.with_leaves(optimizer_state, found.optimizer_state)
        history = History.from_dict(found.info["history"])
    state = TrainState(params, stats, optimizer_state)
    if mesh is not None:
        state, rest = sharding.replicate((state, rest), mesh)
    # Data sets may come sorted by class: a fixed random choice, whatever the seed of the training.
    reference = np.random.default_rng(0).permutation(num_images)[: config.reference_size]
    task = _Task(
        graphdef,
        _split(model, use_running_average=False)[0],
        rest,
        optimizer,
        dataset,
        config,
        np.sort(reference),
        Recorder(history),
        seconds,
        mesh,
        out,
    )
    return task, state


def _split(model: nnx.Module, **mode: bool) -> tuple[nnx.GraphDef, Any, Any, Any]:
    moded = nnx.view(model, raise_if_not_found=False, **mode)
    parts: Any = nnx.split(moded, nnx.Param, nnx.BatchStat, ...)
    return parts


def _run_epoch(task: _Task, state: TrainState, epoch: int, bar: tqdm) -> TrainState:
    data, config = task.dataset, task.config
    batches = shuffled(len(data.train_y), epoch, config)
    before, losses, start = (epoch - 1) * len(batches), [], 0
    stops = tracked_steps(len(batches), config.track_per_epoch).tolist()
    for stop in stops or [len(batches)]:
        with task.timed("steps"):
            for step, batch in enumerate(batches[start:stop], before + start):
                x, y = data.train_x[batch], data.train_y[batch]
                if task.mesh is not None:
                    x, y = sharding.place((x, y), task.mesh)
                state, loss = train_step(
                    task.training_graphdef, task.optimizer, state, task.rest, x, y,
                    _signs(config, step), config.trace_penalty,
                )  # fmt: skip
                losses.append(loss)
                bar.update()
            jax.block_until_ready(state.params)
        _check_finite(task, losses, state, before)
        if stops:
            _track(task, state, before + stop)
            bar.set_postfix(task.recorder.latest(), refresh=False)
        start = stop
    with task.timed("evaluation"):
        reached = accuracy(task.model(state), data.test_x, data.test_y, mesh=task.mesh)
    task.recorder.epoch(
        step=before + len(batches),
        train_loss=float(jnp.mean(jnp.stack(losses))),
        test_accuracy=reached,
    )
    bar.set_postfix(task.recorder.latest())
    return state


def _check_finite(task: _Task, losses: list[Array], state: TrainState, before: int) -> None:
    """Stop a training that has diverged, before anything is recorded or kept of it."""
    bad = np.flatnonzero(~np.isfinite(np.asarray(jnp.stack(losses))))
    if len(bad):
        raise _diverged(task, f"the loss is not finite at step {before + bad[0] + 1}")
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state.params)):
        raise _diverged(task, f"the weights are not finite after step {before + len(losses)}")


def _diverged(task: _Task, what: str) -> FloatingPointError:
    kept = ""
    if task.out is not None and checkpoints.has_any(task.out):
        newest = checkpoints.epochs(task.out)[-1]
        kept = f"; the checkpoints to epoch {newest} are kept in {os.fspath(task.out)}"
    return FloatingPointError(
        f"the training has diverged: {what}{kept}. Train again at a smaller learning_rate, or with "
        "schedule='warmup-cosine', into another `out`; see that the images are finite and "
        "normalised"
    )


def _signs(config: TrainConfig, step: int) -> Array | None:
    """Return the key of a step; None where nothing is random."""
    if not config.trace_penalty:
        return None
    # Apart from the keys that `shuffled` takes.
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), step), 1)


def _track(task: _Task, state: TrainState, step: int) -> None:
    data = task.dataset
    x, y = data.train_x[task.reference], data.train_y[task.reference]
    with task.timed("tracking"):
        trace, rank, loss = observe(task.model(state), x, y, mesh=task.mesh)
    if not np.isfinite(loss).all() or (rank < 0).any():
        raise _diverged(
            task, f"the loss of the reference images or G is not finite after step {step}"
        )
    task.recorder.track(step=step, loss=loss, trace=trace, rank=rank, num_classes=data.num_classes)


def _identity(dataset: Dataset, config: TrainConfig) -> dict[str, Any]:
    """Describe a training up to its length: what must be the same for it to resume."""
    settings = config.settings()
    if config.schedule == "constant":
        del settings["epochs"]
    return {**settings, "dataset": dataset.name, "dataset_hash": dataset.fingerprint()}


def _resume(
    out: str | os.PathLike, model: nnx.Module, identity: Mapping[str, Any], epochs: int
) -> checkpoints.Checkpoint | None:
    """Return the checkpoint of this training to resume from; None for a new start."""
    if not checkpoints.has_any(out):
        return None
    checkpoint = checkpoints.read(out, at_most=epochs)
    if checkpoint is None:
        if checkpoints.epochs(out)[-1] > epochs:
            raise ValueError(
                f"{os.fspath(out)} holds checkpoints, but no usable one of epoch ≤ {epochs}; ask "
                "for more epochs, or choose another `out`"
            )
        kept = checkpoints.set_aside(out)
        warnings.warn(
            f"no checkpoint in {os.fspath(out)} can be read: the training starts over, and they "
            f"are kept in {kept}",
            stacklevel=4,
        )
        return None
    checkpoints.with_weights(model, checkpoint)  # another architecture is refused first
    # What was not written yet when the checkpoint was, had its default.
    was = {**TrainConfig().settings(), **checkpoint.info.get("training", {})}
    changed = {name: (was.get(name), now) for name, now in identity.items() if was.get(name) != now}
    if changed:
        changes = "; ".join(f"{name} was {a!r}, is {b!r}" for name, (a, b) in changed.items())
        raise ValueError(
            f"{os.fspath(out)} holds another training: {changes}; choose another `out`"
        )
    return checkpoint


def _check_fit(model: nnx.Module, dataset: Dataset, config: TrainConfig) -> None:
    if len(dataset.train_y) < config.batch_size:
        raise ValueError(
            f"batch_size must be at most the {len(dataset.train_y)} training images, "
            f"got {config.batch_size}"
        )
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm) and module.axis_name != BATCH_AXIS:
            raise ValueError(
                f"model must have axis_name={BATCH_AXIS!r} in its batch normalisation "
                f"{'.'.join(map(str, path))}, got {module.axis_name!r}"
            )
    evaluated = nnx.view(model, raise_if_not_found=False, use_running_average=True)
    logits = jax.eval_shape(lambda x: evaluated(x), jnp.asarray(dataset.train_x[0]))
    if logits.shape != (dataset.num_classes,):
        raise ValueError(
            f"model must map one image to {dataset.num_classes} logits, as {dataset!r} has classes,"
            f" got shape {logits.shape}"
        )


def _check_mesh(mesh: Mesh | None, config: TrainConfig) -> None:
    if mesh is None:
        return
    if mesh.is_multi_process:
        raise ValueError(
            "mesh must be of the devices of this process, as one process writes the checkpoints, "
            f"got devices of {jax.process_count()}"
        )
    if config.batch_size % mesh.size:
        raise ValueError(
            f"batch_size must be a multiple of the {mesh.size} devices that share a batch, got "
            f"{config.batch_size}; another batch size, or another mesh"
        )
