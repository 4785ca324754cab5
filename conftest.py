"""What tests and doctests share."""

import os

import jax
import pytest

collect_ignore_glob = ["notebooks/*"]  # they install and draw; tests/test_notebooks.py runs them


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory():
    """Forget compiled programs after each module.

    Each holds pages of its own; a process that keeps those of all tests reaches the limit that
    Linux sets on their number, and dies in the compiler.
    """
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _quick_doctests(request):
    """Let XLA optimise little for the examples, which compile much and compute next to nothing."""
    quick = isinstance(request.node, pytest.DoctestItem)
    if not quick or "JAX_DISABLE_MOST_OPTIMIZATIONS" in os.environ:
        yield
        return
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
