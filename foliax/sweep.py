"""A pure function over a whole data set: streamed in batches, by one program, resumable.

Inputs are read a batch at a time, a batch is worked through in blocks of lanes, and results go to
an array or to files. On disk, a journal counts the rows that hold: data are flushed before the
journal that counts them is put in its place, so that a run may be stopped at any moment.
"""

import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from filelock import FileLock, Timeout
from jax import lax
from jax.tree_util import Partial, keystr
from jaxtyping import Array, Int
from tqdm import tqdm

from foliax._inputs import check_count, is_traced
from foliax._types import Count

__all__ = ["sweep"]

if TYPE_CHECKING:
    Function = Callable[..., Any]
else:
    Function = Any

_CPU_BLOCK = 4  # lanes whose work stays in the caches of a core
_JOURNAL, _DRAFT, _LOCK = "sweep.json", "sweep.json.part", "sweep.lock"
_PIECE = 1 << 24  # bytes read at once where a file is checked


def sweep(
    fn: Function,
    model: Any,
    inputs: Any,
    *,
    batch: Count = 256,
    block: Count | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Any:
    """Return fn(model, x) for every x of a data set, in one compiled program.

    Memory is that of one batch of inputs and results, beside the results themselves where they
    are not written to `out`. The model is an argument of the program: another one of the same
    structure, or another number of inputs, does not compile again, as long as fn is the same
    function (define a lambda once, outside the loop over models).

    With `out`, every array of the result is a `.npy` file there, and a run that was stopped,
    whatever stopped it, goes on where it was when it is called again: no batch that was finished
    is done twice, and the files end up byte for byte those of a run that was not stopped. A
    finished sweep called again computes nothing; it reads inputs and files once, to check them.
    Sweeps are the same if they agree in the program that fn compiles to, the weights, batch and
    block, the kind of device, the versions of foliax and jax, and the inputs: in all rows of an
    array or a list, in the first and the last batch of other sources.

    Args:
        fn: A pure function of the model and one input (or one of each, for a tuple of inputs)
            to a pytree of arrays: `foliax.trace`, `partial(foliax.eigh, k=3)`, a lambda.
        model: Callable pytree from one input to C logits, or whatever fn takes first.
        inputs: The inputs stacked along axis 0: an array, a list of arrays, or anything with
            len() and slices that give arrays (a memory map, an HDF5 data set, a class that reads
            or converts files). A dict of such makes a dict each, a tuple one argument each, as in
            fn(model, x, target). Floating point; whole numbers only as one a row, such as labels.
        batch: Inputs that are read, held on the device and stored at once, ≥ 1. With `out`, each
            batch waits for the disk: take thousands where fn is cheap.
        block: Lanes of a batch that are computed at once, ≥ 1; None for 4 on a CPU (small blocks
            stay in the caches, and wait least for their slowest walk) and for all elsewhere.
        out: A folder for the results, for this sweep alone; None to keep them in memory.
        progress: Whether to show a bar on stderr.

    Returns:
        What fn returns, every array with a leading axis over the inputs: NumPy arrays, or with
        `out` read-only memory maps of the files, which `np.load(path, mmap_mode="r")` opens too.
        They are named after their place in the result (`values.npy` and `vectors.npy` for
        `Eigen`, `result.npy` for a lone array).

    Raises:
        ValueError: For inputs that are not stacked alike or not numbers as above; if fn returns
            no array; or if `out` holds another sweep, or files that are not as they were left.
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
    plan = partial(_Task.of, fn, model, _Rows.of(inputs), int(batch), block)
    if out is None:
        task = plan(to_disk=False)
        return task.run(_Memory(task), progress)
    with _held(Path(out)):
        task = plan(to_disk=True)
        return task.run(_Folder(Path(out), task), progress)


# --- inputs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """The inputs as fn takes them: one or several sources of rows.

    Attributes:
        sources: Arrays or the like, one a leaf.
        names: How the caller would write each.
        structs: Shape and dtype of one row of each, as the device will have it.
        treedef: Rebuilds the arguments of fn after the model.
        count: How many rows each has.
    """

    sources: tuple[Any, ...]
    names: tuple[str, ...]
    structs: tuple[jax.ShapeDtypeStruct, ...]
    treedef: Any  # a PyTreeDef
    count: int

    @classmethod
    def of(cls, inputs: Any) -> "_Rows":
        """Look at the first row of every source, and refuse what cannot be swept."""
        alone = type(inputs) is not tuple
        leaves, treedef = jax.tree.flatten_with_path(
            (inputs,) if alone else inputs,
            is_leaf=lambda node: not isinstance(node, tuple | dict),
        )
        if not leaves:
            raise ValueError(f"inputs must hold an array, got {inputs!r}")
        names = tuple("inputs" + keystr(path[1:] if alone else path) for path, _ in leaves)
        sources = tuple(map(_on_host, [leaf for _, leaf in leaves], names))
        structs = tuple(map(_row_struct, sources, names))
        counts = [len(source) for source in sources]
        if len(set(counts)) > 1:
            told = ", ".join(f"{count} in {n}" for n, count in zip(names, counts, strict=True))
            raise ValueError(f"inputs must be stacked alike along axis 0, got {told}")
        return cls(sources, names, structs, treedef, counts[0])

    def read(self, start: int, stop: int) -> list[np.ndarray]:
        """Return rows start to stop of every source."""
        return [
            _read(source, start, stop, name, struct)
            for source, name, struct in zip(self.sources, self.names, self.structs, strict=True)
        ]

    def blank(self, *lead: int) -> Any:
        """Return what fn takes, with leading axes, for its shapes: it holds one number each."""
        return self.treedef.unflatten(
            np.broadcast_to(np.zeros((), s.dtype), (*lead, *s.shape)) for s in self.structs
        )

    def digest(self, batch: int) -> str:
        """Hash all rows of arrays and lists, the first and the last batch of what may be slow."""
        digest, whole = hashlib.sha256(), True
        for source, name, struct in zip(self.sources, self.names, self.structs, strict=True):
            starts = range(0, self.count, batch)
            if not isinstance(source, np.ndarray | list):
                starts, whole = sorted({0, max(self.count - batch, 0)}), False
            for start in starts:
                stop = min(start + batch, self.count)
                digest.update(_read(source, start, stop, name, struct).tobytes())
        return f"{'all rows' if whole else 'first and last batch'}, sha256 {digest.hexdigest()}"


def _has_keys(leaf: Any) -> bool:
    """Tell an array of random keys, which NumPy does not have, from one of numbers."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def _on_host(source: Any, name: str) -> Any:
    if _has_keys(source):
        raise ValueError(
            f"{name} must hold numbers, got dtype {source.dtype}; pass whole numbers, one a row, "
            "and make the keys in fn by jax.random.key"
        )
    # On the device, each new size of a slice would be compiled.
    return np.asarray(source) if isinstance(source, jax.Array) else source


def _row_struct(source: Any, name: str) -> jax.ShapeDtypeStruct:
    """Return shape and dtype of one row, or say why the rows cannot be inputs."""
    try:
        count, first = len(source), source[0:1]
    except (TypeError, KeyError):
        raise ValueError(
            f"{name} must be stacked along axis 0 and have len() and slices, got "
            f"{type(source).__name__}; stack first, e.g. np.stack(list(images)), or x[None] for "
            "a single input"
        ) from None
    if not count:
        raise ValueError(f"{name} must have at least one row, got none")
    first = _as_array(first, name)
    if first.shape[:1] != (1,) or first.size == 0:
        raise ValueError(
            f"{name} must hold at least one number a row, got the shape {first.shape} for the "
            "first row, where (1, *shape) was expected"
        )
    shape, dtype = first.shape[1:], first.dtype.newbyteorder("=")
    whole = jnp.issubdtype(dtype, jnp.integer) or dtype.kind == "b"
    if not jnp.issubdtype(dtype, jnp.floating) and not (whole and shape == ()):
        raise ValueError(
            f"{name} must be floating point (or one whole number a row), got rows of shape {shape} "
            f"and dtype {dtype}; convert and normalise first, e.g. {name}.astype(np.float32) / "
            "255, or pass a class with __len__ and __getitem__ that converts slice by slice"
        )
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype))


def _read(
    source: Any, start: int, stop: int, name: str, struct: jax.ShapeDtypeStruct
) -> np.ndarray:
    rows = _as_array(source[start:stop], name)
    expected = (stop - start, *struct.shape)
    if rows.shape != expected or not np.can_cast(rows.dtype, struct.dtype, "same_kind"):
        raise ValueError(
            f"{name}[{start}:{stop}] must be like the first row, {expected} {struct.dtype}, got "
            f"{rows.shape} {rows.dtype}"
        )
    return rows.astype(struct.dtype, copy=False)


def _as_array(rows: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(rows)
    except ValueError as error:  # rows of several shapes
        raise ValueError(f"{name} must give arrays for slices: {error}") from None


# --- the program -------------------------------------------------------------------------------


@eqx.filter_jit
def _block(fn: Any, model: Any, rows: Any) -> Any:
    """Return fn of a block of rows."""
    if jax.tree.leaves(rows)[0].shape[0] == 1:  # no vmap: a branch that is not taken costs nothing
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
            lambda whole, new: lax.dynamic_update_index_in_dim(whole, new, index, 0),
            results,
            _block(fn, model, part),
        )

    first = jax.tree.map(lambda whole: whole[0], rows)
    length = jax.tree.leaves(rows)[0].shape[0]
    blank = jax.tree.map(
        lambda struct: jnp.zeros((length, *struct.shape), struct.dtype),
        eqx.filter_eval_shape(_block, fn, model, first),
    )
    return lax.fori_loop(0, num_blocks, step, blank)


def _compute(fn: Any, model: Any, rows: Any, num_blocks: int) -> Any:
    """Put a batch on the device, compute it and fetch it: all that knows of devices."""
    return jax.device_get(_program(fn, model, rows, jnp.asarray(num_blocks, jnp.int32)))


@dataclass(frozen=True)
class _Task:
    """What is computed, and how it is cut.

    Attributes:
        fn: The function, its bound arrays being arguments of the program.
        model: The model, on the device.
        rows: The inputs.
        batch: Rows that are read and stored at once.
        block: Lanes that are computed at once.
        layout: Shape and dtype of every result, by the name of its file.
        treedef: Rebuilds what fn returns.
    """

    fn: Any
    model: Any
    rows: _Rows
    batch: int
    block: int
    layout: dict[str, jax.ShapeDtypeStruct]
    treedef: Any  # a PyTreeDef

    @classmethod
    def of(
        cls, fn: Any, model: Any, rows: _Rows, batch: int, block: int | None, *, to_disk: bool
    ) -> "_Task":
        """Trace fn for what it returns."""
        if block is None:
            block = _CPU_BLOCK if jax.default_backend() == "cpu" else batch
        block = min(int(block), batch)
        if isinstance(fn, partial):  # as a pytree, two that are alike share a program
            fn = Partial(fn.func, *fn.args, **fn.keywords)
        # Once, and not with every batch.
        fn, model = jax.tree.map(
            lambda leaf: jnp.asarray(leaf) if eqx.is_array(leaf) else leaf, (fn, model)
        )
        shapes = eqx.filter_eval_shape(_block, fn, model, rows.blank(block))
        leaves, treedef = jax.tree.flatten_with_path(shapes)
        _check_results(shapes, to_disk)
        names = _file_names([path for path, _ in leaves])
        layout = {
            name: jax.ShapeDtypeStruct((rows.count, *leaf.shape[1:]), leaf.dtype)
            for name, (_, leaf) in zip(names, leaves, strict=True)
        }
        return cls(fn, model, rows, batch, block, layout, treedef)

    def num_blocks(self, count: int) -> int:
        """Return how many blocks hold so many rows."""
        return -(-count // self.block)

    def run(self, store: "_Memory | _Folder", progress: bool) -> Any:
        """Go through what the store lacks, and return the results."""
        bar = tqdm(
            total=self.rows.count,
            initial=store.done,
            desc=_name(self.fn).rpartition(".")[2],
            unit="input",
            dynamic_ncols=True,
            disable=not progress,
        )
        with bar:
            for start in range(store.done, self.rows.count, self.batch):
                stop = min(start + self.batch, self.rows.count)
                store.write(start, self._results(start, stop))
                bar.update(stop - start)
        return self.treedef.unflatten(store.results())

    def _results(self, start: int, stop: int) -> list[np.ndarray]:
        count, cut = stop - start, (self.num_blocks(self.batch), self.block)
        rows = [_padded(leaf, cut) for leaf in self.rows.read(start, stop)]
        rows = self.rows.treedef.unflatten(rows)
        results = _compute(self.fn, self.model, rows, self.num_blocks(count))
        return [_joined(leaf)[:count] for leaf in jax.tree.leaves(results)]

    def fingerprint(self) -> dict[str, Any]:
        """Return all that the results depend on, by the words that a refusal uses."""
        rows = self.rows.blank(self.num_blocks(self.batch), self.block)
        program = _program.lower(self.fn, self.model, rows, jnp.asarray(0, jnp.int32)).as_text()
        return {
            "fn": _spelled(self.fn),
            "program of fn": hashlib.sha256(program.encode()).hexdigest(),
            "model": _name(self.model),
            "weights": _digest_arrays((self.fn, self.model)),
            "inputs": [f"{(self.rows.count, *s.shape)} {s.dtype}" for s in self.rows.structs],
            "contents of inputs": self.rows.digest(self.batch),
            "results": {name: f"{s.shape} {s.dtype}" for name, s in self.layout.items()},
            "batch": self.batch,
            "block": self.block,
            "device": jax.devices()[0].device_kind,
            "foliax": metadata.version("foliax"),
            "jax": jax.__version__,
        }


def _padded(rows: np.ndarray, cut: tuple[int, int]) -> np.ndarray:
    """Cut rows in blocks, and fill up with the last row: a walk from zeros might never end."""
    missing = cut[0] * cut[1] - len(rows)
    if missing:
        rows = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
    return rows.reshape(*cut, *rows.shape[1:])


def _joined(leaf: np.ndarray) -> np.ndarray:
    """Undo the cut in blocks."""
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])


def _check_results(shapes: Any, to_disk: bool) -> None:
    leaves = jax.tree.leaves(shapes)
    if not leaves:
        raise ValueError(f"fn must return at least one array, got {shapes!r}")
    for leaf in leaves:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise ValueError(
                f"fn must return numbers, got dtype {leaf.dtype}; return jax.random.key_data(key)"
            )
        if to_disk and np.dtype(leaf.dtype).kind not in "biufc":
            raise ValueError(
                f"fn must return dtypes that .npy files know, got {leaf.dtype}; return "
                "y.astype(jnp.float32), or leave out=None"
            )


def _file_names(paths: list[Any]) -> list[str]:
    plain = [keystr(path, simple=True, separator=".") for path in paths]
    names = [re.sub(r"[^\w.-]", "_", name).lstrip(".") or "result" for name in plain]
    if len({name.casefold() for name in names}) < len(names):  # two keys that are spelled alike
        names = [f"{name}.{index}" for index, name in enumerate(names)]
    return [f"{name}.npy" for name in names]


def _name(thing: Any) -> str:
    """Return the qualified name of a function, or of the class of what is none."""
    inner = thing.func if isinstance(thing, partial) else thing
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    return f"{named.__module__}.{named.__qualname__}"


def _spelled(value: Any) -> str:
    """Write a function and its bound options so that another process writes them alike."""
    if isinstance(value, partial):
        options = [f"{key}={_spelled(option)}" for key, option in sorted(value.keywords.items())]
        return f"{_name(value)}({', '.join([*map(_spelled, value.args), *options])})"
    if eqx.is_array(value):
        return f"{value.dtype}{list(value.shape)}"
    return _name(value) if callable(value) else re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _digest_arrays(tree: Any) -> str:
    digest = hashlib.sha256()
    for leaf in filter(eqx.is_array, jax.tree.leaves(tree)):
        numbers = np.asarray(jax.random.key_data(leaf) if _has_keys(leaf) else leaf)
        digest.update(f"{numbers.dtype}{numbers.shape}".encode())
        digest.update(numbers.tobytes())
    return digest.hexdigest()


# --- results -----------------------------------------------------------------------------------


class _Memory:
    """Results in arrays."""

    def __init__(self, task: _Task):
        self.done = 0
        self._arrays = [np.empty(s.shape, s.dtype) for s in task.layout.values()]

    def write(self, start: int, leaves: list[np.ndarray]) -> None:
        for array, leaf in zip(self._arrays, leaves, strict=True):
            array[start : start + len(leaf)] = leaf

    def results(self) -> list[np.ndarray]:
        return self._arrays


class _Folder:
    """Results in files, and the journal that says how many of their rows hold."""

    def __init__(self, path: Path, task: _Task):
        self._path, self._layout, self._count = path, task.layout, task.rows.count
        self._sweep = task.fingerprint()
        self.done, self._sums = 0, dict.fromkeys(task.layout, 0)
        journal = _read_journal(path)
        if journal is None:
            self._check_vacant()
            return
        _check_same(path, journal["sweep"], self._sweep)
        if journal["rows"] != self._count:
            raise _damaged(path / _JOURNAL, f"it counts {journal['rows']} rows")
        if journal["done"]:
            self.done, self._sums = journal["done"], journal["crc32"]
            for name in self._layout:
                self._check_file(name)

    def write(self, start: int, leaves: list[np.ndarray]) -> None:
        """Write rows, then count them."""
        if start == 0:
            self._create()
        for name, leaf in zip(self._layout, leaves, strict=True):
            data = leaf.tobytes()
            # Written, not mapped: where the disk is full, a map ends the process without a word.
            with open(self._path / name, "r+b") as file:
                file.seek(self._offset(name, start))
                file.write(data)
                _flush(file)
            self._sums[name] = zlib.crc32(data, self._sums[name])
        self.done = start + len(leaves[0])
        self._write_journal()

    def results(self) -> list[np.ndarray]:
        return [np.lib.format.open_memmap(self._path / name, "r") for name in self._layout]

    def _create(self) -> None:
        """Claim the folder by a journal of no rows, then make files of the full size."""
        self._write_journal()
        for name, struct in self._layout.items():
            np.lib.format.open_memmap(self._path / name, "w+", struct.dtype, struct.shape)
            with open(self._path / name, "r+b") as file:
                _flush(file)
        _flush_folder(self._path)

    def _offset(self, name: str, row: int) -> int:
        """Return where a row begins: files end with their last row."""
        struct = self._layout[name]
        row_bytes = struct.dtype.itemsize * int(np.prod(struct.shape[1:], dtype=np.int64))
        return (self._path / name).stat().st_size - (self._count - row) * row_bytes

    def _write_journal(self) -> None:
        journal = {"sweep": self._sweep, "rows": self._count, "done": self.done}
        draft = self._path / _DRAFT
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(journal | {"crc32": self._sums}, file, indent=1)
            _flush(file)
        os.replace(draft, self._path / _JOURNAL)

    def _check_vacant(self) -> None:
        found = [name for name in self._layout if (self._path / name).exists()]
        if found:
            raise ValueError(
                f"out={str(self._path)!r} must be a new folder or that of this sweep, got one with "
                f"{', '.join(found)} and no {_JOURNAL}; choose another folder"
            )

    def _check_file(self, name: str) -> None:
        """Refuse a file that is not as it was left."""
        path, struct = self._path / name, self._layout[name]
        try:
            found = np.lib.format.open_memmap(path, "r")
        except (OSError, ValueError) as error:
            raise _damaged(path, str(error)) from None
        if (found.shape, found.dtype) != (struct.shape, struct.dtype):
            raise _damaged(path, f"it holds {found.shape} {found.dtype}")
        size = path.stat().st_size
        if size != found.offset + found.nbytes:
            raise _damaged(path, f"it has {size} bytes, not {found.offset + found.nbytes}")
        checksum = _checksum(path, self._offset(name, 0), self._offset(name, self.done))
        if checksum != self._sums[name]:
            raise _damaged(path, f"the checksum of its first {self.done} rows is another")


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep a second run out of the folder; a finished sweep is only read, by any number."""
    journal = _read_journal(folder)
    if journal is not None and journal["done"] == journal["rows"]:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0)  # the system lets go of it when the process ends
    try:
        lock.acquire()
    except Timeout:
        raise RuntimeError(
            f"out={str(folder)!r} is being written by another run; wait for its end, or choose "
            "another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _read_journal(folder: Path) -> dict[str, Any] | None:
    """Return the journal of a folder, None if it has none, or say that it cannot be read."""
    path = folder / _JOURNAL
    try:
        journal = json.loads(path.read_bytes())
        sums, done, rows = journal["crc32"], journal["done"], journal["rows"]
        if type(done) is not int or not 0 <= done <= rows:
            raise ValueError(f"it counts {done!r} of {rows!r} rows")
        if sums.keys() != journal["sweep"]["results"].keys():
            raise ValueError("its checksums are not those of its results")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    return journal


def _check_same(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    differences = [
        f"{key}: {_difference(theirs.get(key), ours.get(key))}"
        for key in {**ours, **theirs}
        if theirs.get(key) != ours.get(key)
    ]
    if differences:
        raise ValueError(
            f"out={str(path)!r} must be a new folder or that of this sweep, got that of another: "
            f"{'; '.join(differences)}. Choose another folder, or delete that one (it is left as "
            "it was)"
        )


def _difference(theirs: Any, ours: Any) -> str:
    told = [str(value) for value in (theirs, ours)]
    if any(re.search("[0-9a-f]{64}", value) for value in told):
        return "not the same"
    return f"{told[0]} there, {told[1]} here"


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is not as a sweep left it ({reason}); restore it, or delete the folder to start "
        "anew (it is left as it was)"
    )


def _checksum(path: Path, start: int, stop: int) -> int:
    checksum = 0
    with open(path, "rb") as file:
        file.seek(start)
        for at in range(start, stop, _PIECE):
            checksum = zlib.crc32(file.read(min(_PIECE, stop - at)), checksum)
    return checksum


def _flush(file: Any) -> None:
    """Have the bytes of a file on the disk before anything after them."""
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Have the names in a folder on the disk, where the system does that."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
