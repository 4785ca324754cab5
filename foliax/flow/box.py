"""The pixel box: the region of input space in which images live, in the units of x."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Shaped

_ROUNDING = 16  # times eps: what normalising and clipping leave


class Box(eqx.Module):
    """Bounds lower ≤ x ≤ upper, in the (normalised) units of x and broadcastable to it.

    Args:
        lower: The least value of each pixel.
        upper: The greatest value of each pixel.

    Raises:
        ValueError: If the box is empty or its bounds are NaN (seen where they are concrete).

    Example:
        >>> import jax.numpy as jnp
        >>> from foliax import Box
        >>> Box(-1.0, 1.0).clip(jnp.array([-3.0, 0.5])).tolist()
        [-1.0, 0.5]
    """

    lower: Shaped[Array, "..."]
    upper: Shaped[Array, "..."]

    def __init__(self, lower: ArrayLike, upper: ArrayLike):
        self.lower = jnp.asarray(lower, dtype=_float_dtype(lower))
        self.upper = jnp.asarray(upper, dtype=_float_dtype(upper))

    def __check_init__(self):
        # Not run when a transformation rebuilds the pytree, whose leaves may be anything.
        if any(isinstance(b, Tracer) for b in (self.lower, self.upper)):
            return
        if not np.all(np.asarray(self.lower) < np.asarray(self.upper)):
            raise ValueError(
                "box is empty: lower must be below upper in every pixel, got "
                f"lower = {_brief(self.lower)} and upper = {_brief(self.upper)}"
            )

    def clip(self, x: ArrayLike) -> Float[Array, "..."]:
        """Return the nearest point of the box."""
        x = jnp.asarray(x)
        return jnp.clip(x, self.lower.astype(x.dtype), self.upper.astype(x.dtype))

    def excess(self, x: ArrayLike) -> Float[Array, ""]:
        """Return how far outside the box the worst pixel lies; 0 inside."""
        x = jnp.asarray(x)
        return jnp.max(jnp.abs(x - self.clip(x)))

    def holds(self, x: ArrayLike) -> Bool[Array, ""]:
        """Tell whether x lies in the box, up to the rounding of its bounds and of itself."""
        x = jnp.asarray(x)
        nearest = self.clip(x)
        size = jnp.maximum(jnp.max(jnp.abs(x)), jnp.max(jnp.abs(nearest)))
        return jnp.max(jnp.abs(x - nearest)) <= _ROUNDING * jnp.finfo(x.dtype).eps * size

    def check_inside(self, x: Array, *, name: str = "x") -> None:
        """Raise ValueError if a start, or one of several, is seen to lie outside the box."""
        traced = any(isinstance(a, Tracer) for a in (x, self.lower, self.upper))
        if traced or not np.all(np.isfinite(x)) or self.holds(x):
            return
        raise ValueError(
            f"{name} must start inside the box, which runs from {_least(self.lower)} to "
            f"{_most(self.upper)}, got values from {_least(x)} to {_most(x)}; a box is in the "
            f"units of x: for normalised images take data.box, or clip with box.clip({name})"
        )


def check_box(box: Any, x: Array, *, name: str = "x") -> None:
    """Refuse what is no Box, bounds that do not broadcast to x, and an x that lies outside.

    Where x or the box is traced, the last is for the caller to find out with `Box.holds`.
    """
    if box is None:
        return
    if not isinstance(box, Box):
        raise ValueError(f"box must be a foliax.Box or None, got {type(box).__name__}")
    for side, bound in (("lower", box.lower), ("upper", box.upper)):
        try:
            fits = np.broadcast_shapes(bound.shape, x.shape) == x.shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"box.{side} must broadcast to the shape of x, {x.shape}, got {bound.shape}"
            )
    box.check_inside(x, name=name)


def _float_dtype(bound: ArrayLike) -> jnp.dtype:
    dtype = jnp.result_type(bound)
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)


def _least(values: Array) -> str:
    return f"{float(np.min(values)):.4g}"


def _most(values: Array) -> str:
    return f"{float(np.max(values)):.4g}"


def _brief(bound: Array) -> str:
    return f"{float(bound):g}" if bound.ndim == 0 else f"an array of shape {bound.shape}"
