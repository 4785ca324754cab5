"""One run at a time in an output folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


class Busy(RuntimeError):
    """Another run is writing to the folder."""


@contextmanager
def alone(folder: str | os.PathLike, lock: str) -> Iterator[None]:
    """Keep a second run out of a folder, which is made where there is none.

    The system releases the lock when the process ends, however it ends.

    Args:
        folder: The folder, called `out` in the refusal.
        lock: Name of the file that is locked in it.

    Raises:
        Busy: If another run, or this process, is writing there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(folder / lock, timeout=0)
    try:
        held.acquire()
    except Timeout:
        raise Busy(
            f"out={str(folder)!r} is being written by another run; wait for its end, or choose "
            "another folder"
        ) from None
    try:
        yield
    finally:
        held.release()
