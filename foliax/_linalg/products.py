"""Products and norms: full precision on every device, a derivative at zero."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_HIGHEST = lax.Precision.HIGHEST  # on GPU and TPU a float32 product is not float32 otherwise


def dot(a: Array, b: Array) -> Array:
    """Multiply matrices in full precision on every device."""
    return jnp.matmul(a, b, precision=_HIGHEST)


def norm(v: Float[Array, "..."], axis: int | None = None) -> Float[Array, "..."]:
    """Return ‖v‖ over an axis, or of all numbers, with gradient zero at v = 0."""
    square = jnp.sum(v**2, axis=axis)
    there = ~(square == 0)  # a NaN goes on
    return jnp.where(there, jnp.sqrt(jnp.where(there, square, 1)), 0)
