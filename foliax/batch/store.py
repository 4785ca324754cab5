"""What a sweep writes: a file for every result, and the journal that counts the valid rows.

Rows are flushed before the journal that counts them is put in its place, so that a run may be
stopped at any moment; a run that resumes checks the files against the journal before it touches
anything.
"""

import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from foliax.batch.folders import alone

_JOURNAL, _DRAFT, _LOCK = "sweep.json", "sweep.json.part", "sweep.lock"
_PIECE = 1 << 24  # bytes read at once where a file is checked


class Folder:
    """Results in files.

    Args:
        path: The folder.
        layout: Shape and dtype of every result, by the name of its file.
        sweep: All that the results depend on, by the words that a refusal uses.

    Attributes:
        done: How many rows are valid.
    """

    def __init__(self, path: Path, layout: Mapping[str, Any], sweep: dict[str, Any]):
        self._path, self._layout, self._sweep = path, layout, sweep
        self._count = next(iter(layout.values())).shape[0]
        self.done, self._sums = 0, dict.fromkeys(layout, 0)
        _check_dtypes(layout)
        journal = _read_journal(path)
        if journal is None:
            self._check_vacant()
            return
        _check_same(path, journal["sweep"], sweep)
        if journal["rows"] != self._count:
            raise _damaged(path / _JOURNAL, f"it counts {journal['rows']} rows")
        if journal["done"]:
            self.done, self._sums = journal["done"], journal["crc32"]
            for name in layout:
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
        """Return the files as read-only memory maps."""
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
        except Exception as error:  # numpy parses the header as Python, whose tokenizer raises too
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
def held(folder: Path) -> Iterator[None]:
    """Keep a second run out of the folder; a finished sweep is only read, by any number."""
    journal = _read_journal(folder)
    if journal is not None and journal["done"] == journal["rows"]:
        yield
        return
    with alone(folder, _LOCK):
        yield


# --- checks ------------------------------------------------------------------------------------


def _check_dtypes(layout: Mapping[str, Any]) -> None:
    for struct in layout.values():
        if np.dtype(struct.dtype).kind not in "biufc":
            raise ValueError(
                f"fn must return dtypes that .npy files know, got {struct.dtype}; return "
                "y.astype(jnp.float32), or leave out=None"
            )


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
    values = [str(value) for value in (theirs, ours)]
    if any(re.search("[0-9a-f]{64}", value) for value in values):
        return "not the same"
    return f"{values[0]} there, {values[1]} here"


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
