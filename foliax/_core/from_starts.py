"""The same loop from several starts of one input."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def from_starts(fn: Callable[[Any], Any], starts: Any) -> Any:
    """Return fn of each start: on a CPU one after another, elsewhere all at once.

    Under `vmap` a loop runs until its slowest element has ended, and of a `cond` both branches run:
    an accelerator has the room for it.
    """
    return lax.map(fn, starts) if jax.default_backend() == "cpu" else jax.vmap(fn)(starts)
