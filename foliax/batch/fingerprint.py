"""What identifies a computation: functions spelled out, arrays as digests."""

import hashlib
import re
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


def has_keys(leaf: Any) -> bool:
    """Return whether an array is one of random keys, which NumPy does not have."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def name_of(thing: Any) -> str:
    """Return the qualified name of a function, or of the class of what is none."""
    inner = thing.func if isinstance(thing, partial) else thing
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    return f"{named.__module__}.{named.__qualname__}"


def spelled(value: Any) -> str:
    """Write a function and its bound options so that another process writes them alike."""
    if isinstance(value, partial):
        options = [f"{key}={spelled(option)}" for key, option in sorted(value.keywords.items())]
        return f"{name_of(value)}({', '.join([*map(spelled, value.args), *options])})"
    if eqx.is_array(value):
        return f"{value.dtype}{list(value.shape)}"
    return name_of(value) if callable(value) else re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def digest_arrays(tree: Any) -> str:
    """Return a digest of all arrays of a pytree."""
    digest = hashlib.sha256()
    for leaf in filter(eqx.is_array, jax.tree.leaves(tree)):
        numbers = np.asarray(jax.random.key_data(leaf) if has_keys(leaf) else leaf)
        digest.update(f"{numbers.dtype}{numbers.shape}".encode())
        digest.update(numbers.tobytes())
    return digest.hexdigest()
