"""Networks with a name: those of the papers, and VGG as it is commonly cut down to CIFAR.

VGG is Simonyan & Zisserman 2015, table 1, columns A, B, D and E, with batch normalisation, and with
one dense layer instead of three for images of 32×32.
"""

from collections.abc import Sequence
from typing import Final

from flax import nnx

from foliax._core.documented import documented
from foliax.zoo.nets import CNN, MLP, Plan

__all__ = ["VGG_DEPTHS", "circle_net", "colour_cnn", "small_cnn", "vgg", "xor_net"]

VGG_DEPTHS: Final = (11, 13, 16, 19)

# How many convolutions each of the five widths has.
_COUNTS: Final = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_WIDTHS: Final = (64, 128, 256, 512, 512)


@documented
def small_cnn(
    num_classes: int = 10, *, shape: Sequence[int] = (28, 28, 1),
    activation: str = "relu", pool: str = "max", rngs: nnx.Rngs,
) -> CNN:  # fmt: skip
    """Return a small network of the papers' kind: two convolutions (8, 16), each with a pool.

    Of 14,500 weights for images of 28×28, where the papers' has 1.2 million.

    Returns:
        The network; dense 32 and dense C follow the convolutions.
    """
    plan: Plan = (8, "pool", 16, "pool")
    return CNN(
        shape, num_classes, plan=plan, hidden=(32,), activation=activation, pool=pool, rngs=rngs
    )


@documented
def colour_cnn(
    num_classes: int = 10, *, shape: Sequence[int] = (32, 32, 3),
    activation: str = "relu", pool: str = "max", rngs: nnx.Rngs,
) -> CNN:  # fmt: skip
    """Return the papers' network for CIFAR-10: three convolutions (32, 64, 128), each with a pool.

    Returns:
        The network; dense 128 and dense C follow the convolutions.
    """
    plan: Plan = (32, "pool", 64, "pool", 128, "pool")
    return CNN(shape, num_classes, plan=plan, activation=activation, pool=pool, rngs=rngs)


def xor_net(*, activation: str = "sigmoid", rngs: nnx.Rngs) -> MLP:
    """Return the papers' network for XOR in the plane: 2-8-2."""
    return MLP((2, 8, 2), activation=activation, rngs=rngs)


def circle_net(num_classes: int = 3, *, activation: str = "relu", rngs: nnx.Rngs) -> MLP:
    """Return the papers' network for arcs of a circle in the plane: 2-16-C."""
    return MLP((2, 16, num_classes), activation=activation, rngs=rngs)


@documented
def vgg(
    depth: int, num_classes: int = 10, *, shape: Sequence[int] = (32, 32, 3),
    activation: str = "relu", pool: str = "max", rngs: nnx.Rngs,
) -> CNN:  # fmt: skip
    """Return VGG11, 13, 16 or 19: padded convolutions with batch normalisation, five pools, dense.

    Args:
        depth: 11, 13, 16 or 19.
        shape: (H, W, channels) of one input, at least 32×32.

    Returns:
        The network, in evaluation mode; see `CNN` for training.

    Raises:
        ValueError: If the depth is another one, or the shape is too small.

    Example:
        >>> from flax import nnx
        >>> model = nnx.eval_shape(lambda: vgg(16, 100, rngs=nnx.Rngs(0)))
        >>> len(model.convs), model.pooled_shape
        (13, (1, 1, 512))
    """
    if depth not in _COUNTS:
        raise ValueError(f"depth must be one of {', '.join(map(str, VGG_DEPTHS))}, got {depth!r}")
    plan: list = []
    for count, width in zip(_COUNTS[depth], _WIDTHS, strict=True):
        plan += [*[width] * count, "pool"]
    return CNN(
        shape,
        num_classes,
        plan=plan,
        hidden=(),
        padding=1,
        batch_norm=True,
        activation=activation,
        pool=pool,
        rngs=rngs,
    )
