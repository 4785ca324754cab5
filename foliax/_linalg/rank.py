"""Singular values, and how many of them count."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from foliax._core.checks import check_positive
from foliax._linalg import lapack


def singular_values(a: Float[Array, "r n"]) -> Float[Array, " m"]:
    """Return the min(r, n) singular values of a wide matrix, descending, through its triangle."""
    return lapack.thin_values(a.T)


def default_rtol(num_rows: int, dtype: jnp.dtype) -> float:
    """Return (10 · C · eps)², C = num_rows + 1: below it an eigenvalue counts as rounding."""
    return float(10 * (num_rows + 1) * jnp.finfo(jnp.result_type(jnp.float32, dtype)).eps) ** 2


def count_rank(
    s: Float[Array, " m"], *, num_rows: int, rtol: float | None = None
) -> Int[Array, ""]:
    """Count the singular values with s² > rtol · s_1²; −1 where they are not numbers."""
    count = jnp.sum(counted(s, num_rows=num_rows, rtol=rtol), dtype=jnp.int32)
    return jnp.where(jnp.all(jnp.isfinite(s)), count, -1)


def counted(s: Float[Array, " m"], *, num_rows: int, rtol: float | None = None) -> Array:
    """Mark the singular values with s² > rtol · s_1², compared without squaring."""
    if rtol is None:
        rtol = default_rtol(num_rows, s.dtype)
    check_positive(rtol, name="rtol", or_zero=True)
    return s > jnp.sqrt(jnp.asarray(rtol, s.dtype)) * jnp.max(s, initial=0)
