"""What tests and doctests share: how programs are compiled, and that they are forgotten."""

import gc
import os
import shutil
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
_MOST_BYTES = 2**30  # of the compiled programs that are kept from run to run
_QUICK = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"].lower() in ("1", "true")

collect_ignore_glob = ["notebooks/*"]  # they install and draw; tests/test_notebooks.py runs them


def pytest_configure(config):
    """Say it to a JAX that was imported before this file, too, and keep what is compiled."""
    jax.config.update("jax_disable_most_optimizations", _QUICK)
    if cache := getattr(config, "cache", None):
        _keep_programs(cache.mkdir("programs"), first=not hasattr(config, "workerinput"))


def _keep_programs(folder, *, first):
    """Keep compiled programs for the other processes, the slow tests and the next run."""
    if first and sum(file.stat().st_size for file in folder.iterdir()) > _MOST_BYTES:
        shutil.rmtree(folder)
    for name, value in {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }.items():
        if name.upper() not in os.environ:
            os.environ[name.upper()] = str(value)  # for the tests' subprocesses
            jax.config.update(name, value)


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
