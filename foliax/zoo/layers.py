"""A layer whose gradient is fast where the stock one is slow; see `foliax._backend.fast`.

foliax rewrites stock layers by itself where it differentiates a model in its input. Layers of its
own are as fast everywhere else: in training, in F, under a caller's `jax.grad`.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from foliax._backend.fast import conv


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
