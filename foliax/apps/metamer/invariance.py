"""Metamers on the ways to other inputs, and how far one can go before they look like another."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._core.checks import as_class, as_point, check_count
from foliax._core.compile import compiled
from foliax._core.types import Count, Model
from foliax._linalg.products import norm
from foliax.flow.box import check_box
from foliax.flow.closest import Closest, closest


class Metamers(NamedTuple):
    """Metamers of one input on the way to each of R references, S each, the farthest last.

    Attributes:
        points: (R, S, *x.shape).
        moved: (R, S) their Euclidean distance from x.
        left: (R, S) their distance to the reference.
        probability_change: (R, S) max|p − p(x)|.
    """

    points: Float[Array, "r s ..."]
    moved: Float[Array, "r s"]
    left: Float[Array, "r s"]
    probability_change: Float[Array, "r s"]


class Invariance(NamedTuple):
    """The invariance radius of an input.

    Attributes:
        radius: Distance from x to the nearest metamer that is read as another class; ∞ where there
            is none.
        place: (2,) int32, which one of the `Metamers` it is: reference, and place on the way.
    """

    radius: Float[Array, ""]
    place: Int[Array, "2"]


def metamers(
    model: Model,
    x: ArrayLike,
    references: ArrayLike,
    *,
    num: Count = 4,
    box: Any = None,  # a Box
    free: ArrayLike | None = None,
    max_steps: Count | None = None,
) -> Metamers:
    """Return metamers of x on the way to each reference.

    The s-th is the point of the level set of p nearest to x + (s / num)(reference − x), inside the
    box; the last is nearest to the reference itself.

    Args:
        model: Callable pytree from one input to C logits.
        x: One input, in the model's (normalised) units.
        references: (R, *x.shape) inputs of other classes.
        num: How many on each way, ≥ 1.
        box: The pixel bounds, as in `foliax.walk`.
        free: A boolean mask of the entries that may move, as in `foliax.walk`.
        max_steps: Steps at most to each, as in `foliax.closest`.

    Returns:
        `Metamers`.

    Raises:
        ValueError: For arguments that shapes, dtypes or concrete values show to be wrong.

    Source: Feather, Durango, Gonzalez & McDermott 2019, NeurIPS, *Metamers of neural networks*;
        Jacobsen, Behrmann, Zemel & Bethge 2019, ICLR, *Excessive invariance causes adversarial
        vulnerability*. There p is kept approximately.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> found = metamers(model, jnp.zeros(2), jnp.array([[3.0, 4.0]]), num=2)
        >>> found.points.round(2).tolist(), found.moved.round(2).tolist()
        ([[[0.0, 2.0], [0.0, 4.0]]], [[2.0, 4.0]])
    """
    x = as_point(x)
    references = as_point(references, name="references")
    if references.ndim != x.ndim + 1 or references.shape[1:] != x.shape or not len(references):
        raise ValueError(
            f"references must have shape (R, {', '.join(map(str, x.shape))}), like x along axis 0, "
            f"got {references.shape}"
        )
    check_count(num, name="num")
    check_box(box, x)
    shares = jnp.arange(1, num + 1, dtype=x.dtype) / num
    return _on_the_ways(model, x, references, shares, box, free, max_steps)


@compiled
def _on_the_ways(
    model: Model, x: Array, references: Array, shares: Array, box: Any, free: Any,
    max_steps: int | None,
) -> Metamers:  # fmt: skip
    def toward(target: Array) -> Closest:
        return closest(model, x, target, along="kernel", box=box, free=free, max_steps=max_steps)

    ways = x + shares.reshape(-1, *([1] * x.ndim)) * (references - x)[:, None]
    found = lax.map(toward, ways.reshape(-1, *x.shape))  # one after the other: nothing batches

    def on_ways(of: Array) -> Array:
        return of.reshape(len(references), len(shares), *of.shape[1:])

    def lengths(points: Array) -> Array:
        return norm(points.reshape(*points.shape[:2], -1), axis=2)

    points = on_ways(found.point)
    return Metamers(
        points=points,
        moved=lengths(points - x),
        left=lengths(points - references[:, None]),
        probability_change=on_ways(found.probability_change),
    )


def invariance_radius(moved: ArrayLike, readings: ArrayLike, label: int | ArrayLike) -> Invariance:
    """Return the distance to the nearest metamer that an independent classifier reads as another.

    Args:
        moved: (R, S) of `Metamers`.
        readings: (R, S) int, the classes that a classifier other than the model sees.
        label: The class of x itself.

    Returns:
        `Invariance`; an upper bound, over these metamers.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> moved, readings = jnp.array([[1.0, 2.0], [0.5, 1.5]]), jnp.array([[3, 7], [3, 9]])
        >>> found = invariance_radius(moved, readings, 3)
        >>> found.radius.tolist(), found.place.tolist()
        (1.5, [1, 1])
    """
    moved, readings = as_point(moved, name="moved"), jnp.asarray(readings)
    if moved.ndim != 2 or readings.shape != moved.shape:
        raise ValueError(
            f"moved and readings must have one shape (R, S), got {moved.shape} and {readings.shape}"
        )
    as_class(label, jnp.iinfo(jnp.int32).max, name="label")
    distance = jnp.where(readings == label, jnp.inf, moved)
    nearest = jnp.argmin(distance)
    place = jnp.stack(jnp.unravel_index(nearest, moved.shape)).astype(jnp.int32)
    return Invariance(distance.ravel()[nearest], place)
