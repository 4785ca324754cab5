"""Layers whose gradients are fast where the stock ones are slow, and equal to theirs.

XLA on CPU runs the input gradient of a convolution five to seven times too slowly inside a compiled
loop, as in a walk or a sweep: reverse mode leaves the kernel in a layout for which there is no fast
path. Written out as a convolution with the kernel turned in memory, it is as fast there as outside.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, ArrayLike, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_NARROW = 4  # input channels up to which shifted products beat a convolution


class Conv(nnx.Module):
    """A convolution of stride 1 on one image, with the parameters of `nnx.Conv`.

    Args:
        in_features: Input channels.
        out_features: Output channels.
        kernel_size: (height, width) of the kernel, odd where `padding` is used.
        padding: Zeros around the image, on each side.
        use_bias: Whether a bias is added.
        rngs: Where the weights are drawn from.

    Raises:
        ValueError: If the padding is wider than the kernel allows.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> Conv(1, 4, (3, 3), rngs=nnx.Rngs(0))(jnp.zeros((8, 8, 1))).shape
        (6, 6, 4)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: tuple[int, int],
        *,
        padding: int = 0,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        if not 0 <= padding < min(kernel_size):
            raise ValueError(
                f"padding must be from 0 to {min(kernel_size) - 1} for a kernel of {kernel_size}, "
                f"got {padding}"
            )
        stock = nnx.Conv(in_features, out_features, kernel_size, use_bias=use_bias, rngs=rngs)
        self.kernel = stock.kernel
        self.bias = stock.bias
        self.padding = padding

    def __call__(self, x: ArrayLike) -> Float[Array, "h w c"]:
        """Return the filtered image."""
        x = jnp.asarray(x)
        out = conv(x[None], self.kernel[...], self.padding)[0]
        return out if self.bias is None else out + self.bias[...]


def conv(
    x: Float[Array, "b h w i"], kernel: Float[Array, "p q i o"], padding: int = 0
) -> Float[Array, "b u v o"]:
    """Convolve images with a kernel, stride 1, `padding` zeros on each side.

    Equal to the stock convolution in every derivative; its input gradient in reverse mode is
    the fast one.
    """
    dtype = jnp.result_type(x, kernel)
    return _conv(x.astype(dtype), kernel.astype(dtype), padding)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _conv(x: Array, kernel: Array, padding: int) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=_LAYOUT
    )


@_conv.defjvp
def _conv_jvp(padding: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    """Differentiate along the transpose of the fast input gradient, so that reverse mode finds it.

    Both factors are linear: only the way in which the product with the tangent of x is written
    differs from the stock rule.
    """
    (x, kernel), (dx, dkernel) = primals, tangents
    out = _conv(x, kernel, padding)
    along = jax.linear_transpose(lambda g: _input_gradient(g, kernel, padding, x.shape), out)
    return out, along(dx)[0] + _conv(x, dkernel, padding)


def _input_gradient(g: Array, kernel: Array, padding: int, shape: tuple[int, ...]) -> Array:
    if kernel.shape[2] <= _NARROW:
        return _scatter(g, kernel, padding, shape)
    turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    back = kernel.shape[0] - 1 - padding
    return lax.conv_general_dilated(
        g, turned, (1, 1), [(back, back)] * 2, dimension_numbers=_LAYOUT
    )


def _scatter(g: Array, kernel: Array, padding: int, shape: tuple[int, ...]) -> Array:
    """Return the input gradient as one product and shifted sums: for a few input channels."""
    height, width, num_in, num_out = kernel.shape
    terms = g @ kernel.reshape(-1, num_out).T
    terms = terms.reshape(*g.shape[:3], height, width, num_in)
    total = jnp.zeros((shape[0], shape[1] + 2 * padding, shape[2] + 2 * padding, num_in), g.dtype)
    for a in range(height):
        for b in range(width):
            above = (a, total.shape[1] - a - g.shape[1])
            beside = (b, total.shape[2] - b - g.shape[2])
            total = total + jnp.pad(terms[:, :, :, a, b], ((0, 0), above, beside, (0, 0)))
    return total[:, padding : padding + shape[1], padding : padding + shape[2]]
