"""Batches in a seeded order, a share of them for each host."""

import os
from collections.abc import Iterable

import jax
import numpy as np

from foliax.zoo.data.dataset import Normalised

Batch = tuple[np.ndarray, np.ndarray]

_THREADS = 8  # that read and decode, for images on disk


def batches(
    dataset: Normalised | str,
    *,
    batch_size: int,
    seed: int = 0,
    epoch: int = 0,
    split: str = "train",
    shuffle: bool = True,
    shard_index: int | None = None,
    shard_count: int | None = None,
    drop_remainder: bool = True,
    data_dir: str | os.PathLike | None = None,
) -> Iterable[Batch]:
    """Return the batches of one epoch, for this host.

    The order of the split depends on seed and epoch alone; host k of K takes places k,
    k + K, … of it, so that no two hosts use the same image in an epoch.

    Args:
        dataset: A data set, or the name of one.
        batch_size: Images in a batch of this host; with K hosts a step uses K times as many.
        seed: Of the order.
        epoch: Another epoch has another order.
        split: "train" or "test".
        shuffle: False for the order in which the split is stored.
        shard_index: Which host this is; None for `jax.process_index()`.
        shard_count: How many there are; None for `jax.process_count()`.
        drop_remainder: Whether to leave out what does not fill a batch on every host, so that all
            hosts have the same number of batches. False gives each image exactly once.
        data_dir: Where `load` looks, if `dataset` is a name.

    Returns:
        What yields (x, y): (batch_size, H, W, channels) normalised images and int32 labels. It is a
        `grain.IterDataset`, whose iterators have `get_state` and `set_state` for checkpoints.

    Raises:
        ValueError: If the split does not fill a batch, or numbers are out of range.
        ImportError: If grain is not installed.

    Example:
        >>> x, y = next(iter(batches("digits", batch_size=60, seed=1)))
        >>> x.shape, y.shape
        ((60, 8, 8, 1), (60,))
    """
    try:
        import grain
    except ImportError as error:
        raise ImportError("batches need grain; run: pip install 'foliax[tfds]'") from error
    if isinstance(dataset, str):
        from foliax.zoo.data import load

        dataset = load(dataset, data_dir=data_dir)
    index = jax.process_index() if shard_index is None else shard_index
    count = jax.process_count() if shard_count is None else shard_count
    total = dataset.length(split)
    _check(total, batch_size, seed, epoch, index, count, drop_remainder)
    order = grain.MapDataset.range(total)
    if shuffle:
        order = order.shuffle(seed=int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]))
    stop = total - total % count if drop_remainder else total
    places = order[index:stop:count].batch(batch_size, drop_remainder=drop_remainder)
    in_memory = hasattr(dataset, "train_x")
    options = grain.ReadOptions(
        num_threads=0 if in_memory else _THREADS,
        prefetch_buffer_size=0 if in_memory else 2 * _THREADS,
    )
    taken = places.map(lambda indices: dataset.take(indices, split=split))
    return taken.to_iter_dataset(options)


def _check(
    total: int, batch_size: int, seed: int, epoch: int, index: int, count: int, drop_remainder: bool
) -> None:
    if count < 1 or not 0 <= index < count:
        raise ValueError(
            f"shard_index must be in 0 … shard_count − 1, got {index} with shard_count {count}"
        )
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed and epoch must not be negative, got {seed} and {epoch}")
    most = total // count
    if batch_size < 1 or most < 1 or (drop_remainder and batch_size > most):
        raise ValueError(
            f"batch_size must be in 1 … {most}, the images of one host of {count}, got {batch_size}"
        )
