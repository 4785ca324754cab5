"""What every public function does first: check its arguments.

The checks are made by hand, so that the caller reads a sentence about the argument and not a
type-checker's report. All of them rest on shapes and dtypes alone: they cost nothing under `jit`.
"""

from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._core.types import Chunk, Count


def as_point(x: ArrayLike, *, name: str = "x") -> Float[Array, "..."]:
    """Return the input as a floating array, or say why it is none."""
    refuse_deleted(x, name=name)
    try:
        x = jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers: {error}") from error
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be a floating-point array, got dtype {x.dtype}; G differentiates with "
            f"respect to it, so convert and normalise first, e.g. {name}.astype(jnp.float32) / 255;"
            " embed tokens first"
        )
    if x.size == 0:
        raise ValueError(f"{name} must hold at least one number, got the empty shape {x.shape}")
    return jnp.asarray(x, x.dtype)  # of no weak type, as jnp.full(3, 0.1) is: loops carry one dtype


def refuse_deleted(value: Any, *, name: str) -> None:
    """Refuse arrays (a pytree of them) whose buffers were given away."""
    for leaf in jax.tree.leaves(value):
        if isinstance(leaf, jax.Array) and not is_traced(leaf) and leaf.is_deleted():
            raise ValueError(
                f"{name} was donated to an earlier computation and is gone; pass a copy there, or "
                "leave it out of donate_argnums"
            )


def as_tangent(v: ArrayLike, x: Array, *, name: str) -> Float[Array, "..."]:
    """Return a vector at x as a floating array of x's shape, or say how it differs."""
    v = as_point(v, name=name)
    if v.shape != x.shape:
        raise ValueError(
            f"{name} must have the shape of x, {x.shape}, got {v.shape}; "
            "every function takes one input, batch with jax.vmap(f, in_axes=(None, 0, 0))"
        )
    return v


def check_chunk(chunk: Chunk) -> None:
    """Refuse a chunk that is neither None nor a positive whole number."""
    if chunk is not None and (not isinstance(chunk, Integral) or chunk < 1):
        raise ValueError(f"chunk must be None or a whole number of rows >= 1, got {chunk!r}")


def check_choice(value: Any, *, name: str, choices: tuple[str, ...]) -> None:
    """Refuse a name that is not among the choices."""
    if value not in choices:
        listed = ", ".join(repr(c) for c in choices)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")


def is_traced(value: Any) -> bool:
    """Tell whether a value is unknown while a program is being traced."""
    return isinstance(value, Tracer)


def check_positive(
    value: Any, *, name: str, or_zero: bool = False, or_infinite: bool = False
) -> None:
    """Refuse what is not a finite number > 0 where it is concrete; a tracer passes."""
    if is_traced(value):
        return
    number = np.asarray(value)  # under jit, JAX would trace the comparison of what is concrete
    above = number.ndim == 0 and (number > 0 or (or_zero and number == 0))
    if above and (or_infinite or number < float("inf")):
        return
    raise ValueError(f"{name} must be a finite number {'>=' if or_zero else '>'} 0, got {value!r}")


def check_finite(value: Any, *, name: str) -> None:
    """Refuse what is not a finite number where it is concrete; a tracer passes."""
    if not is_traced(value) and not (np.ndim(value) == 0 and np.isfinite(np.asarray(value))):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def check_key(key: Any, *, name: str = "key") -> None:
    """Refuse what is not one `jax.random` key; those of the old style, PRNGKey, are some."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if (typed and shape == ()) or (dtype == jnp.uint32 and len(shape or ()) == 1):
        return
    raise ValueError(
        f"{name} must be one key, as jax.random.key(0), got "
        f"{type(key).__name__ if dtype is None else f'{dtype} of shape {shape}'}; batch over "
        "jax.random.split(key, N) with jax.vmap"
    )


def check_count(value: Any, *, name: str, least: int = 1) -> None:
    """Refuse what is not a static whole number >= least: it sets the shape of the result."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")


def as_class(value: Any, num_classes: int, *, name: str) -> Int[Array, ""]:
    """Return a class as an index; refuse what is seen to be none."""
    index = jnp.asarray(value)
    is_index = index.ndim == 0 and jnp.issubdtype(index.dtype, jnp.integer)
    if not is_index or (not is_traced(index) and not 0 <= int(index) < num_classes):
        raise ValueError(f"{name} must be a class, 0 … {num_classes - 1}, got {value!r}")
    return index.astype(jnp.int32)


def as_num_pairs(k: Count | None, most: int, *, of: str) -> int:
    """Return how many eigenpairs are asked for, None being all there are."""
    if k is None:
        return most
    if not isinstance(k, Integral) or not 1 <= k <= most:
        raise ValueError(f"k must be a whole number from 1 to {of} = {most}, got {k!r}")
    return int(k)
