"""The folder of a sweep over several hosts: the first process writes, all of them read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from foliax.batch.store import Folder


class FolderOfHosts:
    """A `Folder` that only the first process has; the others follow its journal.

    What the first process refuses is raised there, and ends the run: the others lose it.
    """

    def __init__(self, path: Path, layout: Mapping[str, Any], sweep: dict[str, Any]):
        self._path, self._layout = path, layout
        self._folder = Folder(path, layout, sweep) if jax.process_index() == 0 else None
        done = np.asarray(self._folder.done if self._folder else 0, np.int32)
        self.done = int(multihost_utils.broadcast_one_to_all(done))

    def write(self, start: int, leaves: list[np.ndarray]) -> None:
        """Write rows, in the first process."""
        if self._folder:
            self._folder.write(start, leaves)
        self.done = start + len(leaves[0])

    def results(self) -> list[np.ndarray]:
        """Return the files as read-only memory maps, once they are complete."""
        multihost_utils.sync_global_devices("foliax.sweep: all rows are written")
        return [np.lib.format.open_memmap(self._path / name, "r") for name in self._layout]
