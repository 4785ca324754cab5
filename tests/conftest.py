"""What every test rests on: 64-bit mode, and the reference values."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

# Set once, before any array exists; a test that wants float32 casts its arrays.
jax.config.update("jax_enable_x64", True)

_SHIPPED = Path(__file__).parent / "reference"
_SHARED = Path(
    os.environ.get("FOLIAX_REFERENCE", Path(__file__).parents[2] / "shared" / "reference")
)


def _load(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of one reference file, or skip the test where it is not to be had."""
    for folder in (_SHIPPED, _SHARED):
        path = folder / f"{name}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
    pytest.skip(f"{name}.npz is neither in tests/reference nor under FOLIAX_REFERENCE")


@pytest.fixture(scope="session")
def reference():
    """Return the loader of reference files; it keeps what it has read."""
    seen = {}

    def load(name):
        if name not in seen:
            seen[name] = _load(name)
        return seen[name]

    return load
