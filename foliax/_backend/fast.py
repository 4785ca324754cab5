"""Two operations whose gradients are fast where the stock ones are slow, and equal to theirs.

XLA on CPU runs the input gradient of a convolution five to seven times too slowly inside a compiled
loop, as in a walk or a sweep: reverse mode leaves the kernel in a layout for which there is no fast
path. Written out as a convolution with the kernel turned in memory, it is as fast there as outside.
The gradient of a windowed maximum is slow under `vmap`, where it turns into a scatter of many
cotangents; a choice by comparison is not.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

Padding = tuple[tuple[int, int], tuple[int, int]]
Precision = Any  # what `jax.lax` accepts, hashable

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_NARROW = 4  # input channels up to which shifted products beat a convolution


def conv(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "p q i o"],
    padding: int | Padding = 0,
    precision: Precision = None,
) -> Float[Array, "b u v o"]:
    """Convolve images with a kernel, stride 1, with zeros around: (low, high) for each axis.

    Equal to the stock convolution in every derivative; its input gradient in reverse mode is
    the fast one. All its products have the precision, by default what JAX's context says.
    """
    if isinstance(padding, int):
        padding = ((padding, padding), (padding, padding))
    dtype = jnp.result_type(x, kernel)
    if precision is None:  # read now: derivatives may be traced under another context
        config: Any = jax.config  # its context settings have no types
        precision = config.jax_default_matmul_precision
    return _conv(x.astype(dtype), kernel.astype(dtype), padding, precision)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _conv(x: Array, kernel: Array, padding: Padding, precision: Precision) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=_LAYOUT, precision=precision
    )


@_conv.defjvp
def _conv_jvp(
    padding: Padding,
    precision: Precision,
    primals: tuple[Array, Array],
    tangents: tuple[Array, Array],
):
    """Differentiate along the transpose of the fast input gradient, so that reverse mode finds it.

    Both factors are linear: only the way in which the product with the tangent of x is written
    differs from the stock rule.
    """
    (x, kernel), (dx, dkernel) = primals, tangents
    out = _conv(x, kernel, padding, precision)

    def back(g: Array) -> Array:
        return _input_gradient(g, kernel, padding, precision, x.shape)

    return out, jax.linear_transpose(back, out)(dx)[0] + _conv(x, dkernel, padding, precision)


def _input_gradient(
    g: Array, kernel: Array, padding: Padding, precision: Precision, shape: tuple[int, ...]
) -> Array:
    if kernel.shape[2] <= _NARROW:
        return _scatter(g, kernel, padding, precision, shape)
    turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    back = [
        (side - 1 - low, side - 1 - high)
        for side, (low, high) in zip(kernel.shape[:2], padding, strict=True)
    ]
    return lax.conv_general_dilated(
        g, turned, (1, 1), back, dimension_numbers=_LAYOUT, precision=precision
    )


def _scatter(
    g: Array, kernel: Array, padding: Padding, precision: Precision, shape: tuple[int, ...]
) -> Array:
    """Return the input gradient as one product and shifted sums: for a few input channels."""
    height, width, num_in, num_out = kernel.shape
    (top, bottom), (left, right) = padding
    terms = jnp.matmul(g, kernel.reshape(-1, num_out).T, precision=precision)
    terms = terms.reshape(*g.shape[:3], height, width, num_in)
    padded = (shape[0], shape[1] + top + bottom, shape[2] + left + right, num_in)
    total = jnp.zeros(padded, g.dtype)
    for a in range(height):
        for b in range(width):
            above = (a, total.shape[1] - a - g.shape[1])
            beside = (b, total.shape[2] - b - g.shape[2])
            total = total + jnp.pad(terms[:, :, :, a, b], ((0, 0), above, beside, (0, 0)))
    return total[:, top : top + shape[1], left : left + shape[2]]


# The rule of differentiation is written out so that the value alone stays a plain maximum, three
# times as fast as summing over the chosen entry; the rule is linear in the tangent and locally
# constant in x, so that reverse mode and higher derivatives follow from it.
@partial(jax.custom_jvp, nondiff_argnums=(1,))
def window_max(windows: Shaped[Array, "..."], axes: tuple[int, int]) -> Shaped[Array, "..."]:
    """Return the maximum over the two axes of a window.

    Where values tie, the first in the window, row by row, gets the entire derivative: PyTorch's
    convention, and that of the stock pool in reverse mode.
    """
    return jnp.max(windows, axis=axes)


@window_max.defjvp
def _window_max_jvp(axes: tuple[int, int], primals: tuple[Any], tangents: tuple[Any]):
    (windows,), (tangent,) = primals, tangents
    rows, columns = (windows.shape[axis] for axis in axes)
    shape = [1] * windows.ndim
    shape[axes[0]], shape[axes[1]] = rows, columns
    place = jnp.arange(rows * columns).reshape(shape)
    greatest = jnp.max(windows, axis=axes, keepdims=True)
    ties = jnp.where((windows == greatest) | jnp.isnan(windows), place, rows * columns)
    first = place == jnp.min(ties, axis=axes, keepdims=True)
    return window_max(windows, axes), jnp.sum(jnp.where(first, tangent, 0), axis=axes)
