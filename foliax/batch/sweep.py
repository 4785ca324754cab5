"""A pure function over a data set: streamed in batches, by one program, resumable.

Inputs are read a batch at a time (`rows`), a batch is computed in blocks, and results go to an
array or to files (`store`).
"""

import hashlib
import os
import re
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import GetAttrKey, Partial, keystr
from jaxtyping import Array, Int
from tqdm import tqdm

from foliax._core.checks import check_count, is_traced
from foliax._core.types import Count
from foliax.batch import sharding
from foliax.batch.fingerprint import digest_arrays, name_of, spelled
from foliax.batch.hosts import FolderOfHosts
from foliax.batch.rows import Rows
from foliax.batch.store import Folder, held

__all__ = ["sweep"]

_CPU_BLOCK = 4  # inputs at once whose data stay in the caches of a core


def sweep(
    fn: Any,  # (model, *row) -> a pytree of arrays
    model: Any,
    inputs: Any,
    *,
    batch: Count = 256,
    block: Count | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    mesh: Any = None,  # a jax.sharding.Mesh
) -> Any:
    """Return fn(model, x) for every x of a data set, in one compiled program.

    Memory is that of one batch of inputs and results, beside the results themselves where they
    are not written to `out`. Another model of the same structure, or another number of inputs,
    does not compile again, as long as fn is the same function (define a lambda once, outside the
    loop over models).

    With `out`, every array of the result is a `.npy` file there. A run that was stopped resumes
    when it is called again, and the files end up byte for byte those of a run that was not stopped;
    a finished sweep computes nothing. Sweeps are the same if they agree in the program that fn
    compiles to, the weights, batch and block, the kind of device, the versions of foliax and jax,
    and the inputs: in all rows of an array or a list, in the first and the last batch of other
    sources.

    Args:
        fn: A pure function of the model and one input (or one of each, for a tuple of inputs)
            to a pytree of arrays: `foliax.trace`, `partial(foliax.eigh, k=3)`, a lambda.
        model: Callable pytree from one input to C logits, or whatever fn takes first.
        inputs: The inputs stacked along axis 0: an array, a list of arrays, or anything with
            len() and slices that give arrays (a memory map, an HDF5 data set, a class that reads
            or converts files). A dict of such makes a dict each, a tuple one argument each, as in
            fn(model, x, target). Numbers of any real dtype reach fn as they are: images kept as
            integers are converted there, `lambda model, x: foliax.trace(model, x / 255)`.
        batch: Inputs that are read, put on the device and stored at once, ≥ 1. With `out`, each
            batch waits for the disk: take thousands where fn is cheap.
        block: Inputs of a batch that are computed at once, ≥ 1; None for 4 on a CPU (small blocks
            stay in the caches, and wait least for their slowest walk) and for all elsewhere.
        out: A folder for the results, for this sweep alone; None to keep them in memory.
        progress: Whether to show a bar on stderr.
        mesh: Devices that share every batch, from `foliax.sharding.mesh`; None for one. Over
            several hosts every process calls sweep alike: the first one writes to `out`, which all
            must see, and each gets all the results.

    Returns:
        What fn returns, every array with a leading axis over the inputs: NumPy arrays, or with
        `out` read-only memory maps of the files, named after their place in the result
        (`values.npy` and `vectors.npy` for `Eigen`, `result.npy` for a lone array).

    Raises:
        ValueError: For inputs that are not stacked alike or not real numbers; if fn returns no
            array; or if `out` holds another sweep, or files that are not as they were left.
            Nothing in it is changed then.
        RuntimeError: If another run is writing to `out`.

    Example:
        >>> from functools import partial
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> xs = jnp.zeros((1000, 2))
        >>> foliax.sweep(foliax.trace, model, xs, progress=False).shape
        (1000,)
        >>> pairs = foliax.sweep(partial(foliax.eigh, k=1), model, xs, progress=False)
        >>> pairs.values.shape, pairs.vectors.shape
        ((1000, 1), (1000, 1, 2))
    """
    if not callable(fn):
        raise ValueError(
            f"fn must be a function of (model, x), got {type(fn).__name__}; options are bound by "
            "functools.partial(fn, option=value)"
        )
    if any(map(is_traced, jax.tree.leaves((fn, model, inputs)))):
        raise ValueError(
            "fn, model and inputs must be concrete, got a traced one; sweep reads and writes on "
            "the host, so call it outside of jax.jit, jax.vmap and jax.grad"
        )
    check_count(batch, name="batch")
    if block is not None:
        check_count(block, name="block")
    rows = Rows.of(inputs)
    hosts = mesh is not None and mesh.is_multi_process
    writes = out is not None and not (hosts and jax.process_index())
    with held(Path(out)) if writes else nullcontext():  # type: ignore[arg-type]
        task = _Task.of(fn, model, rows, int(batch), block, mesh)
        if out is None:
            return task.run(_Memory(task.layout), progress)
        store = (FolderOfHosts if hosts else Folder)(Path(out), task.layout, task.fingerprint())
        return task.run(store, progress and writes)


# --- the program -------------------------------------------------------------------------------


@eqx.filter_jit
def _block(fn: Any, model: Any, rows: Any) -> Any:
    """Return fn of a block of rows."""
    if jax.tree.leaves(rows)[0].shape[0] == 1:  # no vmap: it would run both branches of a cond
        alone = fn(model, *jax.tree.map(lambda row: row[0], rows))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], alone)
    return jax.vmap(lambda row: fn(model, *row))(rows)


@eqx.filter_jit
def _program(fn: Any, model: Any, rows: Any, num_blocks: Int[Array, ""]) -> Any:
    """Return fn of the first blocks of a batch, cut as (blocks, block, …); zeros for the others.

    A `lax.map` whose length is known only when it runs, so that one program serves the last,
    short batch too without going through its padding.
    """

    def step(index: Array, results: Any) -> Any:
        part = jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, 0, False), rows)
        return jax.tree.map(
            lambda rows, new: lax.dynamic_update_index_in_dim(rows, new, index, 0),
            results,
            _block(fn, model, part),
        )

    first = jax.tree.map(lambda leaf: leaf[0], rows)
    length = jax.tree.leaves(rows)[0].shape[0]
    blank = jax.tree.map(
        lambda struct: jnp.zeros((length, *struct.shape), struct.dtype),
        eqx.filter_eval_shape(_block, fn, model, first),
    )
    return lax.fori_loop(0, num_blocks, step, blank)


def _share(fn: Any, model: Any, rows: Any, num_blocks: Int[Array, " blocks"]) -> Any:
    """Return the share of one device."""
    return _program(fn, model, rows, num_blocks[0])


def _compute(fn: Any, model: Any, rows: Any, num_blocks: int, mesh: Any) -> Any:
    """Put a batch on the devices, compute it and fetch it; nothing else depends on devices."""
    if mesh is None:
        return jax.device_get(_program(fn, model, rows, jnp.asarray(num_blocks, jnp.int32)))
    each = len(jax.tree.leaves(rows)[0]) // mesh.size
    shares = np.clip(num_blocks - each * np.arange(mesh.size), 0, each).astype(np.int32)
    shares = np.repeat(shares, each)  # said to a device with each of its blocks
    return sharding.gather(sharding.spread(Partial(_share, fn), model, rows, shares, mesh=mesh))


@dataclass(frozen=True)
class _Task:
    """What is computed, and how it is cut.

    Attributes:
        fn: The function, its bound arrays being arguments of the program.
        model: The model, on the device.
        rows: The inputs.
        batch: Rows that are read and stored at once.
        block: Inputs that are computed at once.
        layout: Shape and dtype of every result, by the name of its file.
        treedef: Rebuilds what fn returns.
        mesh: The devices; None for one.
    """

    fn: Any
    model: Any
    rows: Rows
    batch: int
    block: int
    layout: dict[str, jax.ShapeDtypeStruct]
    treedef: Any  # a PyTreeDef
    mesh: Any

    @classmethod
    def of(
        cls, fn: Any, model: Any, rows: Rows, batch: int, block: int | None, mesh: Any
    ) -> "_Task":
        """Trace fn for what it returns."""
        if block is None:
            block = _CPU_BLOCK if jax.default_backend() == "cpu" else batch
        devices = 1 if mesh is None else mesh.size
        block = min(int(block), -(-batch // devices))
        if isinstance(fn, partial):  # as a pytree, two that are alike share a program
            fn = Partial(fn.func, *fn.args, **fn.keywords)
        # Once, and not with every batch.
        fn, model = jax.tree.map(
            lambda leaf: jnp.asarray(leaf) if eqx.is_array(leaf) else leaf, (fn, model)
        )
        shapes = eqx.filter_eval_shape(_block, fn, model, rows.blank(block))
        leaves, treedef = jax.tree.flatten_with_path(shapes)
        _check_results(shapes)
        names = _file_names([path for path, _ in leaves])
        layout = {
            name: jax.ShapeDtypeStruct((rows.count, *leaf.shape[1:]), leaf.dtype)
            for name, (_, leaf) in zip(names, leaves, strict=True)
        }
        if mesh is not None:
            fn, model = sharding.replicate((fn, model), mesh)
        return cls(fn, model, rows, batch, block, layout, treedef, mesh)

    def num_blocks(self, count: int) -> int:
        """Return how many blocks contain so many rows."""
        return -(-count // self.block)

    def cut(self) -> tuple[int, int]:
        """Return how a batch is cut: in blocks, as many on each device, of so many rows."""
        devices = 1 if self.mesh is None else self.mesh.size
        return -(-self.num_blocks(self.batch) // devices) * devices, self.block

    def run(self, store: "_Memory | Folder | FolderOfHosts", progress: bool) -> Any:
        """Go through what the store lacks, and return the results."""
        bar = tqdm(
            total=self.rows.count,
            initial=store.done,
            desc=name_of(self.fn).rpartition(".")[2],
            unit="input",
            dynamic_ncols=True,
            disable=not progress,
            leave=None,  # a bar inside another one goes when it is done
        )
        with bar:
            for start in range(store.done, self.rows.count, self.batch):
                stop = min(start + self.batch, self.rows.count)
                store.write(start, self._results(start, stop))
                bar.update(stop - start)
        return self.treedef.unflatten(store.results())

    def _results(self, start: int, stop: int) -> list[np.ndarray]:
        count = stop - start
        rows = [_padded(leaf, self.cut()) for leaf in self.rows.read(start, stop)]
        rows = self.rows.treedef.unflatten(rows)
        results = _compute(self.fn, self.model, rows, self.num_blocks(count), self.mesh)
        return [_joined(leaf)[:count] for leaf in jax.tree.leaves(results)]

    def fingerprint(self) -> dict[str, Any]:
        """Return all that the results depend on, by the words that a refusal uses."""
        rows = self.rows.blank(*self.cut())
        program = _program.lower(self.fn, self.model, rows, jnp.asarray(0, jnp.int32)).as_text()
        return {
            "fn": spelled(self.fn),
            "program of fn": hashlib.sha256(program.encode()).hexdigest(),
            "model": name_of(self.model),
            "weights": digest_arrays((self.fn, self.model)),
            "inputs": self.rows.described(),
            "contents of inputs": self.rows.digest(self.batch),
            "results": {name: f"{s.shape} {s.dtype}" for name, s in self.layout.items()},
            "batch": self.batch,
            "block": self.block,
            "device": jax.devices()[0].device_kind,
            "devices": 1 if self.mesh is None else self.mesh.size,
            "foliax": metadata.version("foliax"),
            "jax": jax.__version__,
        }


class _Memory:
    """Results in arrays; `foliax.batch.store.Folder` keeps them in files."""

    def __init__(self, layout: dict[str, jax.ShapeDtypeStruct]):
        self.done = 0
        self._arrays = [np.empty(s.shape, s.dtype) for s in layout.values()]

    def write(self, start: int, leaves: list[np.ndarray]) -> None:
        for array, leaf in zip(self._arrays, leaves, strict=True):
            array[start : start + len(leaf)] = leaf

    def results(self) -> list[np.ndarray]:
        return self._arrays


def _padded(rows: np.ndarray, cut: tuple[int, int]) -> np.ndarray:
    """Cut rows in blocks, and fill up with the last row: a walk from zeros might never end."""
    missing = cut[0] * cut[1] - len(rows)
    if missing:
        rows = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
    return rows.reshape(*cut, *rows.shape[1:])


def _joined(leaf: np.ndarray) -> np.ndarray:
    """Undo the cut in blocks."""
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])


def _check_results(shapes: Any) -> None:
    leaves = jax.tree.leaves(shapes)
    if not leaves:
        raise ValueError(f"fn must return at least one array, got {shapes!r}")
    for leaf in leaves:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise ValueError(
                f"fn must return numbers, got dtype {leaf.dtype}; return jax.random.key_data(key)"
            )


def _file_names(paths: list[Any]) -> list[str]:
    plain = [keystr(_place(path), simple=True, separator=".") for path in paths]
    names = [re.sub(r"[^\w.-]", "_", name).lstrip(".") or "result" for name in plain]
    if len({name.casefold() for name in names}) < len(names):  # two keys that are spelled alike
        names = [f"{name}.{index}" for index, name in enumerate(names)]
    return [f"{name}.npy" for name in names]


def _place(path: Any) -> Any:
    """Return where a result stands; the number of an `equinox.Enumeration` stands for it."""
    return path[:-1] if path[-1:] == (GetAttrKey("_value"),) else path
