"""What every test rests on: 64-bit mode, and the reference values."""

import os
from pathlib import Path

# XLA's fusion emitters make a program of a walk take twice as long to compile, and run no faster.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

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


@pytest.fixture(scope="module")
def quick_compilation():
    """Let XLA optimise little, for modules that compile much and compute next to nothing.

    Set JAX_DISABLE_MOST_OPTIMIZATIONS=0 to run them as users do; the reference values always are.
    """
    if "JAX_DISABLE_MOST_OPTIMIZATIONS" in os.environ:
        yield
        return
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
