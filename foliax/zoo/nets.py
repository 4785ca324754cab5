"""Networks of the papers, as Flax NNX modules that map one input to C logits.

They hold parameters only (no dropout, no random state), so that a network is a clean pytree: it
passes through `jax.jit`, `jax.vmap` and `jax.jacrev` as an argument.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Shaped

ACTIVATIONS: Final[dict[str, Callable[[Array], Array]]] = {
    "relu": jax.nn.relu,
    "gelu": partial(jax.nn.gelu, approximate=False),  # JAX's own default is the tanh formula
    "sigmoid": jax.nn.sigmoid,
}

_SMALLEST_SIDE = 6  # two valid 3×3 convolutions leave 2×2, one window of the pool


def max_pool(x: ArrayLike, window: int = 2) -> Shaped[Array, "... h w c"]:
    """Return the maximum of each window, differentiable in every mode and to every order.

    Where values tie, the first in the window, row by row, gets the whole derivative, which is
    PyTorch's convention: flat backgrounds tie, and splitting the derivative evenly, or giving it
    to another pixel in forward than in reverse mode, changes the local data matrix on real images.

    Args:
        x: (..., H, W, c); rows and columns that do not fill a window are dropped.
        window: The side of the window, and the stride.

    Returns:
        (..., H // window, W // window, c).

    Raises:
        ValueError: If no window fits.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0, 2.0], [2.0, 0.0]])[..., None]
        >>> jax.grad(lambda x: max_pool(x).sum())(x)[..., 0].tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    return _window_max(_windows(x, window))


def average_pool(x: ArrayLike, window: int = 2) -> Shaped[Array, "... h w c"]:
    """Return the mean of each window.

    Args:
        x: (..., H, W, c); rows and columns that do not fill a window are dropped.
        window: The side of the window, and the stride.

    Returns:
        (..., H // window, W // window, c).

    Raises:
        ValueError: If no window fits.

    Example:
        >>> import jax.numpy as jnp
        >>> average_pool(jnp.arange(4.0).reshape(2, 2, 1)).ravel().tolist()
        [1.5]
    """
    return jnp.mean(_windows(x, window), axis=(-4, -2))


POOLS: Final[dict[str, Callable[[Array], Array]]] = {"max": max_pool, "average": average_pool}


class MLP(nnx.Module):
    """Dense layers with an activation between them; the input is flattened.

    Args:
        sizes: Width of the input, of each hidden layer, and the number of classes.
        activation: "relu", "gelu" (the exact one) or "sigmoid".
        rngs: Where the weights are drawn from, as `nnx.Rngs(0)`.

    Raises:
        ValueError: If there are fewer than two sizes, or the activation is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> MLP((64, 48, 10), rngs=nnx.Rngs(0))(jnp.zeros((8, 8, 1))).shape
        (10,)
    """

    def __init__(self, sizes: Sequence[int], *, activation: str = "relu", rngs: nnx.Rngs):
        self.sizes = tuple(int(size) for size in sizes)
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            raise ValueError(
                "sizes must name the input's width, those of the hidden layers and the number of "
                f"classes, all at least 1, e.g. (64, 48, 10); got {self.sizes}"
            )
        self.activation = _choice("activation", activation, ACTIVATIONS)
        pairs = zip(self.sizes[:-1], self.sizes[1:], strict=True)
        self.layers = nnx.List([nnx.Linear(n, m, rngs=rngs) for n, m in pairs])

    def __call__(self, x: ArrayLike) -> Float[Array, " c"]:
        """Return the logits of one input."""
        x = jnp.asarray(x)
        if x.size != self.sizes[0]:
            raise ValueError(
                f"x must hold {self.sizes[0]} numbers, one input of this MLP, got shape {x.shape}; "
                "batch with jax.vmap(model)"
            )
        x = x.ravel()
        for layer in self.layers[:-1]:
            x = ACTIVATIONS[self.activation](layer(x))
        return self.layers[-1](x)

    @property
    def config(self) -> dict[str, Any]:
        """The architecture, as `build` reads it; JSON-able."""
        return {"kind": "MLP", "sizes": list(self.sizes), "activation": self.activation}


class CNN(nnx.Module):
    """The papers' network: two 3×3 convolutions (32, 64), a 2×2 pool, dense 128, dense C.

    No padding, and an activation after each layer but the last. The published network also has
    dropout, which is the identity at evaluation and is left out.

    Args:
        shape: (H, W, channels) of one input, at least 6×6.
        num_classes: C, at least 2.
        activation: "relu", "gelu" (the exact one) or "sigmoid".
        pool: "max" or "average".
        rngs: Where the weights are drawn from, as `nnx.Rngs(0)`.

    Raises:
        ValueError: If the shape is too small, or a choice is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> CNN((8, 8, 1), 10, rngs=nnx.Rngs(0))(jnp.zeros((8, 8, 1))).shape
        (10,)
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int,
        *,
        activation: str = "relu",
        pool: str = "max",
        rngs: nnx.Rngs,
    ):
        self.shape = tuple(int(side) for side in shape)
        if len(self.shape) != 3 or min(self.shape[:2]) < _SMALLEST_SIDE or self.shape[2] < 1:
            raise ValueError(
                "shape must be (H, W, channels) of one input with H, W ≥ "
                f"{_SMALLEST_SIDE}, e.g. (28, 28, 1); got {self.shape}"
            )
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.num_classes = int(num_classes)
        self.activation = _choice("activation", activation, ACTIVATIONS)
        self.pool = _choice("pool", pool, POOLS)
        height, width, channels = self.shape
        pooled = ((height - 4) // 2) * ((width - 4) // 2)
        self.conv1 = nnx.Conv(channels, 32, (3, 3), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), padding="VALID", rngs=rngs)
        self.dense1 = nnx.Linear(64 * pooled, 128, rngs=rngs)
        self.dense2 = nnx.Linear(128, self.num_classes, rngs=rngs)

    def __call__(self, x: ArrayLike) -> Float[Array, " c"]:
        """Return the logits of one input."""
        x = jnp.asarray(x)
        if x.shape != self.shape:
            raise ValueError(
                f"x must have shape {self.shape}, one input of this CNN, got {x.shape}; "
                "batch with jax.vmap(model)"
            )
        act = ACTIVATIONS[self.activation]
        x = POOLS[self.pool](act(self.conv2(act(self.conv1(x)))))
        return self.dense2(act(self.dense1(x.ravel())))

    @property
    def config(self) -> dict[str, Any]:
        """The architecture, as `build` reads it; JSON-able."""
        return {
            "kind": "CNN",
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "activation": self.activation,
            "pool": self.pool,
        }


KINDS: Final[dict[str, Callable[..., nnx.Module]]] = {"MLP": MLP, "CNN": CNN}


def build(config: Mapping[str, Any], rngs: nnx.Rngs | None = None) -> nnx.Module:
    """Make the network that a `config` describes.

    Args:
        config: What a network's `config` returned: "kind" and the arguments of that class.
        rngs: Where the weights are drawn from; None for `nnx.Rngs(0)`.

    Returns:
        A new network.

    Raises:
        ValueError: If the kind is unknown, or its arguments are not those of the class.

    Example:
        >>> build({"kind": "MLP", "sizes": [4, 3], "activation": "gelu"}).config["activation"]
        'gelu'
    """
    arguments = dict(config)
    kind = _choice("kind", arguments.pop("kind", None), KINDS)
    try:
        return KINDS[kind](**arguments, rngs=nnx.Rngs(0) if rngs is None else rngs)
    except TypeError as error:
        raise ValueError(f"config does not describe a {kind}: {error}; got {config}") from error


def _windows(x: ArrayLike, window: int) -> Shaped[Array, "... h a w b c"]:
    """Split the image axes into windows, without moving data: (..., h, window, w, window, c)."""
    x = jnp.asarray(x)
    if window < 1 or x.ndim < 3 or min(x.shape[-3:-1]) < window:
        raise ValueError(
            f"x must have shape (..., H, W, channels) with H, W ≥ window = {window} ≥ 1, "
            f"got {x.shape}"
        )
    *lead, height, width, channels = x.shape
    rows, columns = height // window, width // window
    x = x[..., : rows * window, : columns * window, :]
    return x.reshape(*lead, rows, window, columns, window, channels)


# The rule of differentiation is written out so that the value alone stays a plain maximum, three
# times as fast as summing over the chosen pixel; the rule is linear in the tangent and locally
# constant in x, so that reverse mode and higher derivatives follow from it.
@jax.custom_jvp
def _window_max(windows: Shaped[Array, "... h a w b c"]) -> Shaped[Array, "... h w c"]:
    return jnp.max(windows, axis=(-4, -2))


@_window_max.defjvp
def _window_max_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (windows,), (tangent,) = primals, tangents
    rows, columns = windows.shape[-4], windows.shape[-2]
    place = jnp.arange(rows * columns).reshape(rows, 1, columns, 1)
    greatest = jnp.max(windows, axis=(-4, -2), keepdims=True)
    ties = jnp.where((windows == greatest) | jnp.isnan(windows), place, rows * columns)
    first = place == jnp.min(ties, axis=(-4, -2), keepdims=True)
    return _window_max(windows), jnp.sum(jnp.where(first, tangent, 0), axis=(-4, -2))


def _choice(name: str, value: Any, choices: Mapping[str, Any]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value
