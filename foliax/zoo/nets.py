"""Networks of the papers, as Flax NNX modules that map one input to C logits.

They contain parameters, and the running statistics of a batch normalisation, but no dropout and no
random state: a network is a clean pytree, which passes through `jax.jit`, `jax.vmap` and
`jax.jacrev` as an argument. One network of convolutions serves MNIST, CIFAR-10 and VGG; a plan says
what stands in which order.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Shaped

from foliax._backend.fast import window_max
from foliax.zoo.layers import Conv

ACTIVATIONS: Final[dict[str, Callable[[Array], Array]]] = {
    "relu": jax.nn.relu,
    "gelu": partial(jax.nn.gelu, approximate=False),  # JAX's own default is the tanh formula
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
}

BATCH_AXIS: Final = "batch"  # the name of the vmap axis that batch statistics are taken over

Plan = Sequence[int | Literal["pool"]]

_PAPERS: Final[tuple[int | Literal["pool"], ...]] = (32, 64, "pool")


def max_pool(x: ArrayLike, window: int = 2) -> Shaped[Array, "... h w c"]:
    """Return the maximum of each window, differentiable in every mode and to every order.

    Where values tie, the first in the window, row by row, gets the entire derivative, which is
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
    return window_max(_windows(x, window), (-4, -2))


def average_pool(x: ArrayLike, window: int = 2) -> Shaped[Array, "... h w c"]:
    """Return the mean of each window.

    Args:
        x: As in `max_pool`.
        window: As in `max_pool`.

    Returns:
        The same shape as `max_pool`.

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
        activation: "relu", "gelu" (the exact one), "sigmoid" or "softplus".
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
    """3×3 convolutions and 2×2 pools after a plan, then dense layers.

    By default the papers' network for MNIST: two convolutions (32, 64), a pool, dense 128, dense C.
    An activation follows every layer but the last. The published network also has dropout, which is
    the identity at evaluation and is left out.

    A batch normalisation, between convolution and activation, uses its running statistics.
    `foliax.zoo.train` switches it to those of the batch (`nnx.view(model,
    use_running_average=False)`), which needs `jax.vmap(…, axis_name="batch")` around the network.

    Args:
        shape: (H, W, channels) of one input.
        num_classes: C, at least 2.
        plan: The width of each convolution, and "pool" for each pool, in order.
        hidden: Widths of the hidden dense layers.
        padding: Zeros around an image before a convolution: 0, or 1 to keep its size.
        batch_norm: Whether a batch normalisation follows each convolution.
        activation: "relu", "gelu" (the exact one), "sigmoid" or "softplus".
        pool: "max" or "average".
        rngs: Where the weights are drawn from, as `nnx.Rngs(0)`.

    Raises:
        ValueError: If the shape is too small for the plan, or a choice is unknown.

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
        plan: Plan = _PAPERS,
        hidden: Sequence[int] = (128,),
        padding: int = 0,
        batch_norm: bool = False,
        activation: str = "relu",
        pool: str = "max",
        rngs: nnx.Rngs,
    ):
        self.shape = tuple(int(side) for side in shape)
        self.plan, self.hidden = tuple(plan), tuple(int(width) for width in hidden)
        self.padding, self.batch_norm = int(padding), bool(batch_norm)
        self.num_classes = int(num_classes)
        self._check()
        self.activation = _choice("activation", activation, ACTIVATIONS)
        self.pool = _choice("pool", pool, POOLS)
        channels = self.shape[2]
        for i, width in enumerate(self._widths, start=1):
            layer = Conv(channels, width, (3, 3), padding=self.padding, rngs=rngs)
            setattr(self, f"conv{i}", layer)
            if self.batch_norm:
                setattr(self, f"norm{i}", _batch_norm(width, rngs))
            channels = width
        sizes = (math.prod(self.pooled_shape), *self.hidden, self.num_classes)
        for i, (n, m) in enumerate(itertools.pairwise(sizes), start=1):
            setattr(self, f"dense{i}", nnx.Linear(n, m, rngs=rngs))

    def __call__(self, x: ArrayLike) -> Float[Array, " c"]:
        """Return the logits of one input."""
        h = jnp.asarray(x)
        if h.shape != self.shape:
            raise ValueError(
                f"x must have shape {self.shape}, one input of this CNN, got {h.shape}; "
                "batch with jax.vmap(model)"
            )
        act, pooled = ACTIVATIONS[self.activation], POOLS[self.pool]
        convs, norms = iter(self.convs), iter(self.norms)
        for item in self.plan:
            if item == "pool":
                h = pooled(h)
            else:
                h = next(convs)(h)
                h = act(next(norms)(h) if self.batch_norm else h)
        h = h.ravel()
        for dense in self.denses[:-1]:
            h = act(dense(h))
        return self.denses[-1](h)

    @property
    def convs(self) -> tuple[Any, ...]:
        """The convolutions, in order."""
        return tuple(getattr(self, f"conv{i + 1}") for i in range(len(self._widths)))

    @property
    def norms(self) -> tuple[nnx.BatchNorm, ...]:
        """The batch normalisations, one a convolution; empty if there are none."""
        count = len(self._widths) if self.batch_norm else 0
        return tuple(getattr(self, f"norm{i + 1}") for i in range(count))

    @property
    def denses(self) -> tuple[nnx.Linear, ...]:
        """The dense layers, in order."""
        return tuple(getattr(self, f"dense{i + 1}") for i in range(len(self.hidden) + 1))

    @property
    def pooled_shape(self) -> tuple[int, int, int]:
        """(H, W, channels) that the first dense layer gets flattened."""
        height, width, channels = self.shape
        for item in self.plan:
            if item == "pool":
                height, width = height // 2, width // 2
            else:
                shrink = 2 * self.padding - 2
                height, width, channels = height + shrink, width + shrink, int(item)
        return height, width, channels

    @property
    def config(self) -> dict[str, Any]:
        """The architecture, as `build` reads it; JSON-able, without what is as in the papers."""
        more: dict[str, Any] = {
            "plan": list(self.plan),
            "hidden": list(self.hidden),
            "padding": self.padding,
            "batch_norm": self.batch_norm,
        }
        papers = {"plan": list(_PAPERS), "hidden": [128], "padding": 0, "batch_norm": False}
        return {
            "kind": "CNN",
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "activation": self.activation,
            "pool": self.pool,
            **{name: value for name, value in more.items() if value != papers[name]},
        }

    @property
    def _widths(self) -> tuple[int, ...]:
        return tuple(int(item) for item in self.plan if item != "pool")

    def _check(self) -> None:
        if not self._widths or min(*self._widths, *self.hidden, 1) < 1:
            raise ValueError(
                "plan and hidden must hold widths of at least 1, and plan at least one, e.g. "
                f"(32, 64, 'pool') and (128,); got {self.plan} and {self.hidden}"
            )
        if self.padding not in (0, 1):
            raise ValueError(f"padding must be 0 or 1, got {self.padding}")
        least = 1
        for item in reversed(self.plan):
            least = 2 * least if item == "pool" else max(1, least + 2 - 2 * self.padding)
        if len(self.shape) != 3 or min(self.shape[:2]) < least or self.shape[2] < 1:
            raise ValueError(
                f"shape must be (H, W, channels) of one input with H, W ≥ {least} for the plan "
                f"{self.plan}, e.g. (28, 28, 1); got {self.shape}"
            )
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {self.num_classes}")


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


def penultimate(model: Any) -> Any:
    """Return a network of the zoo without its last layer, another model itself.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> penultimate(MLP((64, 48, 10), rngs=nnx.Rngs(0)))(jnp.zeros(64)).shape
        (48,)
    """
    if isinstance(model, MLP) and len(model.layers) > 1:
        copy = nnx.clone(model)
        copy.layers[-1] = _identity(model.layers[-1])
        return copy
    if isinstance(model, CNN):
        copy, last = nnx.clone(model), f"dense{len(model.hidden) + 1}"
        setattr(copy, last, _identity(getattr(model, last)))
        return copy
    return model


def _identity(layer: nnx.Linear) -> nnx.Linear:
    """Return a layer that gives back the input of this one."""
    same = nnx.Linear(layer.in_features, layer.in_features, use_bias=False, rngs=nnx.Rngs(0))
    same.kernel[...] = jnp.eye(layer.in_features, dtype=same.kernel[...].dtype)
    return same


def _batch_norm(width: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Return one with PyTorch's settings, whose momentum of 0.1 is 0.9 here."""
    return nnx.BatchNorm(
        width,
        use_running_average=True,
        momentum=0.9,
        epsilon=1e-5,
        axis_name=BATCH_AXIS,
        rngs=rngs,
    )


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


def _choice(name: str, value: Any, choices: Mapping[str, Any]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value
