"""Which clean images to denoise by: those similar to the noisy one."""

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._backend.rewrite import logits_of
from foliax._core.checks import as_point, check_choice, check_count
from foliax._core.documented import documented
from foliax._core.jacobian import logits_struct, working_dtype
from foliax._core.types import Count, Model
from foliax.likelihood import Categorical

if TYPE_CHECKING:
    By = Literal["distance", "class", "feature"]
else:  # checked by hand, see `foliax._core.types`
    By = Any


def nearest(x: ArrayLike, images: ArrayLike, k: Count) -> Int[Array, " k"]:
    """Return the places of the k images nearest to x, the nearest first.

    Args:
        x: One image.
        images: (N, *x.shape) images to choose from.
        k: How many, at most N.

    Returns:
        Places; of equal distances the first.

    Raises:
        ValueError: If the shapes do not fit, or k is not in 1 … N.

    Example:
        >>> import jax.numpy as jnp
        >>> nearest(jnp.zeros(2), jnp.array([[3.0, 0.0], [0.0, 1.0], [2.0, 0.0]]), 2).tolist()
        [1, 2]
    """
    x = as_point(x)
    return _least(squares(x, _as_images(images, x.shape, k)), k)


@documented
def nearest_by_class(
    model: Model, x: ArrayLike, images: ArrayLike, labels: ArrayLike, k: Count
) -> Int[Array, " k"]:
    """Return the places of the k images nearest to x among those of the class predicted for x.

    Args:
        x: One image.
        images: (N, *x.shape) images to choose from.
        labels: (N,) their classes.
        k: How many, at most N. Where the class has fewer, the nearest of the others follow.

    Returns:
        Places, the nearest first.

    Raises:
        ValueError: If the shapes do not fit, or k is not in 1 … N.

    Example:
        >>> import jax.numpy as jnp
        >>> images, labels = jnp.array([[3.0, 0.0], [-1.0, 0.0], [9.0, 0.0]]), jnp.array([0, 1, 0])
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> nearest_by_class(model, jnp.array([0.5, 0.0]), images, labels, 2).tolist()
        [0, 2]
    """
    x = as_point(x)
    images = _as_images(images, x.shape, k)
    labels = _as_labels(labels, len(images))
    logits_struct(model, x, Categorical())
    away = squares(x, images)
    other = labels != jnp.argmax(logits_of(model, x))
    return _least(jnp.where(other, away + jnp.max(away) + 1, away), k)


def nearest_by_feature(
    features: Model, x: ArrayLike, images: ArrayLike, k: Count
) -> Int[Array, " k"]:
    """Return the places of the k images whose features are nearest to those of x.

    Args:
        features: Callable pytree from one image to a feature array, as a classifier's logits or
            the output of its last hidden layer.
        x: As in `nearest`.
        images: As in `nearest`.
        k: As in `nearest`.

    Returns:
        Places, the nearest first.

    Raises:
        ValueError: As `nearest`.

    Example:
        >>> import jax.numpy as jnp
        >>> images = jnp.array([[0.0, 1.0], [9.0, 4.0]])
        >>> nearest_by_feature(lambda x: x[1:], jnp.array([0.0, 5.0]), images, 1).tolist()
        [1]
    """
    x = as_point(x)
    images = _as_images(images, x.shape, k)
    of = partial(logits_of, features)
    return _least(squares(of(x), lax.map(of, images, batch_size=256)), k)


def choose(
    xs: ArrayLike,
    images: ArrayLike,
    k: Count,
    *,
    by: By = "distance",
    model: Any = None,  # a Model
    labels: ArrayLike | None = None,
    block: Count = 8,
) -> Int[Array, "n k"]:
    """Choose k references for each of many images, in one compiled program.

    Args:
        xs: (n, *shape) images.
        images: (N, *shape) images to choose from, shared by all.
        k: How many for each.
        by: "distance" for `nearest`, "class" for `nearest_by_class`, "feature" for
            `nearest_by_feature`.
        model: What "class" predicts with, and "feature" takes the features from.
        labels: (N,) classes of the images, for "class".
        block: Images that are computed at once; memory is block · N · the size of an image.

    Returns:
        (n, k) places.

    Raises:
        ValueError: As the three; or if model or labels are missing.

    Example:
        >>> import jax.numpy as jnp
        >>> choose(jnp.zeros((2, 1)), jnp.array([[3.0], [1.0]]), 1).tolist()
        [[1], [1]]
    """
    check_choice(by, name="by", choices=("distance", "class", "feature"))
    check_count(block, name="block")
    if (model is None and by != "distance") or (labels is None and by == "class"):
        wanted = "model= and labels=" if by == "class" else "model="
        raise ValueError(f"by={by!r} needs {wanted}")
    xs = as_stack(xs, "xs")
    images = _as_images(images, xs.shape[1:], k)
    labels = _as_labels(labels, len(images)) if by == "class" else None
    return _chosen(model, xs, images, labels, k, by, block)


@eqx.filter_jit
def _chosen(
    model: Any, xs: Array, images: Array, labels: Any, k: int, by: str, block: int
) -> Array:
    if by == "feature":  # once for all, not once for each x
        xs, images = (
            lax.map(partial(logits_of, model), batch, batch_size=256) for batch in (xs, images)
        )

    def one(x: Array) -> Array:
        if by == "class":
            return nearest_by_class(model, x, images, labels, k)
        return nearest(x, images, k)

    return lax.map(one, xs, batch_size=block)


def squares(x: Array, images: Array) -> Float[Array, " n"]:
    """Return the squared distance of each image from x."""
    # Not ‖a‖² − 2ab + ‖b‖², which cancels where two images are close.
    # Features that are logits are −∞ in both, where a class cannot occur.
    away = jnp.where(images == x, 0, images - x).reshape(len(images), -1)
    return jnp.sum(away.astype(working_dtype(away)) ** 2, axis=1)


def _least(squares: Float[Array, " n"], k: int) -> Int[Array, " k"]:
    return lax.top_k(-squares, k)[1]


def as_stack(xs: ArrayLike, name: str) -> Array:
    """Return inputs stacked along axis 0, or say that they are not."""
    xs = as_point(xs, name=name)
    if xs.ndim < 2:
        raise ValueError(f"{name} must be stacked along axis 0, got shape {xs.shape}")
    return xs


def _as_images(images: ArrayLike, shape: tuple[int, ...], k: Any) -> Array:
    images = as_point(images, name="images")
    if images.ndim < 1 or images.shape[1:] != shape:
        raise ValueError(
            f"images must have shape (N, *shape) with images of shape {shape}, got {images.shape}"
        )
    check_count(k, name="k")
    if k > len(images):
        raise ValueError(f"k must be at most the number of images, {len(images)}, got {k}")
    return images


def _as_labels(labels: ArrayLike | None, count: int) -> Array:
    labels = jnp.asarray(labels)
    if labels.shape != (count,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must hold one whole number for each of {count} images, got shape "
            f"{labels.shape} of {labels.dtype}"
        )
    return labels
