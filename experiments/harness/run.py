"""One run of a script: its output folder, its devices, and what it says when it cannot go on.

`in_parts` and `sweep` are how scripts run what is long: shared among the devices, and kept in the
output folder part by part, so that a run that was stopped at any moment goes on near where it was.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial
from tqdm import tqdm

import foliax
from foliax import sharding
from foliax.batch.fingerprint import digest_arrays, spelled
from foliax.batch.folders import Busy, alone

_MESH: ContextVar[Any] = ContextVar("mesh", default=None)
_PARTS: ContextVar[Path | None] = ContextVar("parts", default=None)  # the folder they are kept in
_PROGRAMS = 2**30  # bytes of compiled programs that are kept at most
_ROWS_AT_ONCE = 8  # rows of a population on a CPU device, between two writes to the disk


@contextmanager
def running(
    name: str, out: Path, *, devices: int | None = None, hosts: bool = False
) -> Iterator[Path]:
    """Lock an output folder for one run, and set the devices that share its populations.

    What a caller can put right ends the program in one line, `name: what is wrong`.

    Args:
        name: The script.
        out: Its output folder.
        devices: How many devices; None for all that JAX finds.
        hosts: Whether it may run in several processes, as the environment says (see
            `foliax.sharding.initialize`). All compute, the first one writes.

    Yields:
        The folder to write to: `out`, or one that is thrown away in processes after the first.
    """
    there = out.exists()
    try:
        several = sharding.initialize()
        if several and not hosts:
            raise ValueError(
                f"it runs in one process, got JAX_NUM_PROCESSES={jax.process_count()}; --devices "
                "shares the devices of one host"
            )
        found = sharding.mesh(devices)
        with (
            _setting(_MESH, found if found.size > 1 else None),
            _silenced() if jax.process_index() else _locked(out) as folder,
            _setting(_PARTS, None if several else folder / ".parts"),
        ):
            yield folder
            shutil.rmtree(folder / ".parts", ignore_errors=True)
    except (Busy, ImportError, OSError, ValueError) as error:
        if not there and out.is_dir() and {file.name for file in out.iterdir()} <= {".lock"}:
            shutil.rmtree(out)  # nothing was written
        raise SystemExit(f"{name}: {error}") from error


def keep_programs() -> None:
    """Keep what scripts compile in the user's cache folder, for the next run of any of them.

    A JAX that was given a folder keeps to it, and JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
    Two runs at once are safe: a program that is half written is compiled again, with a warning.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "foliax" / "programs"
    kept = list(folder.glob("*"))
    if sum(file.stat().st_size for file in kept if file.is_file()) > _PROGRAMS:
        shutil.rmtree(folder, ignore_errors=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


class Stages:
    """A progress bar over the stages of a run, and the seconds that each took."""

    def __init__(self, name: str, total: int):
        self.bar = tqdm(total=total, desc=name, unit="stage", dynamic_ncols=True)
        self.seconds: dict[str, float] = {}

    def run(self, name: str, function: Callable, *arguments: Any, **options: Any) -> Any:
        """Run a stage to its end, timed."""
        self.bar.set_description(name)
        begun = time.perf_counter()
        found = jax.block_until_ready(function(*arguments, **options))
        self.seconds[name] = round(time.perf_counter() - begun, 3)
        self.bar.update()
        return found


def mesh() -> Any:
    """Return the mesh that populations are shared on; None for one device."""
    return _MESH.get()


def on_cpu() -> bool:
    """Tell whether paths are best run one by one: on a CPU one alone is as fast."""
    return jax.default_backend() == "cpu"


def keeping_nothing() -> AbstractContextManager[None]:
    """Have parts computed anew, as where they are timed."""
    return _setting(_PARTS, None)


def in_parts(fn: Any, model: Any, *stacked: Any, rows: int = 1) -> Any:
    """Return fn(model, *stacked) for many rows, in parts that all devices of the run share.

    On a CPU parts are small, and always of one size: other numbers of rows do not compile again.
    Elsewhere each device has one part.

    Args:
        fn: A pure function of the model and stacked inputs to stacked results, row by row, e.g.
            `partial(foliax.map, foliax.walk, block=1)`. Arrays and numbers may be bound.
        model: The classifier.
        *stacked: Arrays of N rows each, N ≥ 1.
        rows: Rows of a part on a CPU.
    """
    shared, count = mesh(), len(stacked[0])
    if not count:
        raise ValueError("stacked must hold at least one row, got none")
    devices = 1 if shared is None else shared.size
    size, batch = (rows, _ROWS_AT_ONCE * devices) if on_cpu() else (-(-count // devices), devices)
    cut = tuple(_cut(np.asarray(rows), size) for rows in stacked)
    found = sweep(_with_arrays(fn, cut[0].dtype), model, cut, batch=batch, block=1)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], found)


def sweep(fn: Any, model: Any, inputs: Any, **options: Any) -> Any:
    """Run `foliax.sweep` over the devices of the run, and keep what is done until the run ends."""
    folder = _folder(fn, model, inputs, options)
    run = partial(foliax.sweep, fn, model, inputs, mesh=mesh(), **options)
    try:
        found = run(out=folder)
    except ValueError:
        if folder is None or not folder.exists():
            raise
        shutil.rmtree(folder)  # what another program left, or what is damaged: nobody's result yet
        found = run(out=folder)
    return jax.tree.map(np.array, found)


def _with_arrays(fn: Any, dtype: Any) -> Any:
    """Return a function whose bound numbers are arrays, so that others do not compile again."""
    if not isinstance(fn, partial):
        return fn
    bound = {
        name: np.asarray(value, dtype) if isinstance(value, float) else value
        for name, value in fn.keywords.items()
    }
    return Partial(fn.func, *fn.args, **bound)


def _cut(rows: np.ndarray, size: int) -> np.ndarray:
    """Cut rows in parts of one size; the last row fills up."""
    missing = -len(rows) % size
    rows = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
    return rows.reshape(-1, size, *rows.shape[1:])


def _folder(fn: Any, model: Any, inputs: Any, options: Any) -> Path | None:
    """Return where a sweep is kept: one folder for the same work, whatever asks for it."""
    parts = _PARTS.get()
    if parts is None:
        return None
    if isinstance(fn, partial):  # a pytree, whose arrays count
        fn = Partial(fn.func, *fn.args, **fn.keywords)
    arrays = digest_arrays((fn, model, jax.tree.map(np.asarray, inputs)))
    work = f"{spelled(fn)} {arrays} {sorted(options.items())} {mesh()}"
    return parts / hashlib.sha256(work.encode()).hexdigest()[:16]


@contextmanager
def _setting(variable: ContextVar, value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextmanager
def _silenced() -> Iterator[Path]:
    """Let this process print nothing, and write where nobody looks."""
    with (
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
        tempfile.TemporaryDirectory() as folder,
    ):
        yield Path(folder)


@contextmanager
def _locked(out: Path) -> Iterator[Path]:
    with alone(out, ".lock"):
        yield out
