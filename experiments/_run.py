"""One run of a script: its output folder, its devices, and what it says when it cannot go on."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax

from foliax import sharding
from foliax._folders import Busy, alone

_MESH: ContextVar[Any] = ContextVar("mesh", default=None)


@contextmanager
def running(
    name: str, out: Path, *, devices: int | None = None, hosts: bool = False
) -> Iterator[Path]:
    """Hold an output folder for one run, and set the devices that share its populations.

    What a caller can put right ends the program in one line, `name: what is wrong`.

    Args:
        name: The script.
        out: Its output folder.
        devices: How many devices; None for all that JAX sees.
        hosts: Whether it may run in several processes, as the environment says (see
            `foliax.sharding.initialize`). All compute, the first one writes.

    Yields:
        The folder to write to: `out`, or one that is thrown away in processes after the first.
    """
    try:
        several = sharding.initialize()
        if several and not hosts:
            raise ValueError(
                f"it runs in one process, got JAX_NUM_PROCESSES={jax.process_count()}; --devices "
                "shares the devices of one host"
            )
        with _over(devices), _aside() if jax.process_index() else _held(out) as folder:
            yield folder
    except (Busy, ImportError, OSError, ValueError) as error:
        raise SystemExit(f"{name}: {error}") from error


def mesh() -> Any:
    """Return the mesh that populations are shared on; None for one device."""
    return _MESH.get()


@contextmanager
def _over(devices: int | None) -> Iterator[None]:
    found = sharding.mesh(devices)
    token = _MESH.set(found if found.size > 1 else None)
    try:
        yield
    finally:
        _MESH.reset(token)


@contextmanager
def _aside() -> Iterator[Path]:
    """Let nothing be seen of this process."""
    with (
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
        tempfile.TemporaryDirectory() as folder,
    ):
        yield Path(folder)


@contextmanager
def _held(out: Path) -> Iterator[Path]:
    with alone(out, ".lock"):
        yield out
