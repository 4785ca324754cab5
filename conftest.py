"""What tests and doctests share: how programs are compiled, and that they are forgotten."""

import gc
import os
from pathlib import Path

# The tests compile much and compute next to nothing, so XLA is to be quick about it. Variables that
# are set already stay, and the tests' subprocesses inherit them. The fusion emitters make a program
# of a walk take twice as long to compile, and run no faster; LLVM works less on one thread.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest

_PAGES = Path("/proc/self/maps")  # a line for each run of pages that are mapped together
_QUICK = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"].lower() in ("1", "true")

collect_ignore_glob = ["notebooks/*"]  # they install and draw; tests/test_notebooks.py runs them


def pytest_configure():
    """Say it to a JAX that was imported before this file, too."""
    jax.config.update("jax_disable_most_optimizations", _QUICK)


def pytest_collection_finish():
    """Let the garbage collector pass over what was imported; tracing makes it run very often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory():
    """Forget compiled programs before there are too many: modules share the small ones.

    Each holds pages of its own; a process that keeps those of all tests reaches the limit that
    Linux sets on their number, 65,530, and dies in the compiler.
    """
    yield
    if not _PAGES.exists() or _PAGES.read_bytes().count(b"\n") > 8_000:
        jax.clear_caches()


@pytest.fixture(scope="module")
def full_optimization():
    """Compile as users do: for modules that hold the numbers themselves against others'."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", _QUICK)
