"""What all attacks share: the input and its budget, directions, and the choice among ends."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from foliax._backend.rewrite import logits_of
from foliax._core.checks import as_class, as_point, is_traced
from foliax._core.jacobian import logits_struct, working_dtype
from foliax._core.types import Model
from foliax._linalg import lapack
from foliax._linalg.products import dot, norm
from foliax.data_matrix import factor
from foliax.flow.box import check_box
from foliax.flow.path import Code, Status, as_status
from foliax.likelihood import Categorical, is_valid

_LIKELIHOOD = Categorical()


class Attacked(NamedTuple):
    """An input that was moved, and the output of the network there.

    Attributes:
        end: (*x.shape) the moved input; x itself where there is no direction to follow.
        logits: (C,) at the end; NaN where x or the model is.
        distance: ‖end − x‖, at most the budget.
        label: The class that was attacked.
        status: A `foliax.Status`: completed; stalled where x has not moved though the budget is
            not 0 (G or the gradient is 0, the geodesic's method needs a higher rank, the box stops
            x, or the move is below rounding); invalid where x or the model's output is not finite.
    """

    end: Float[Array, "..."]
    logits: Float[Array, "*b c"]
    distance: Float[Array, "*b"]
    label: Int[Array, "*b"]
    status: Status

    @property
    def fooled(self) -> Bool[Array, "*b"]:
        """Whether the prediction at the end is another one."""
        other = jnp.argmax(self.logits, axis=-1) != self.label
        return other & (self.status != Status.invalid)


class Scene(NamedTuple):
    """Arguments that all attacks share."""

    model: Any
    x: Array
    budget: Array
    label: Array
    box: Any


def scene_of(model: Model, x: Any, budget: Any, label: Any, box: Any) -> Scene:
    """Check the arguments that all attacks share."""
    x = as_point(x)
    check_box(box, x)
    struct = logits_struct(model, x, _LIKELIHOOD)
    radius = jnp.asarray(budget)
    real = radius.ndim == 0 and (
        jnp.issubdtype(radius.dtype, jnp.floating) or jnp.issubdtype(radius.dtype, jnp.integer)
    )
    if not real or (not is_traced(radius) and not 0 <= float(radius) < jnp.inf):
        raise ValueError(
            f"budget must be a finite number ≥ 0, the length of the move in the units of x, "
            f"got {budget!r}; for several, use jax.vmap"
        )
    x = x.astype(working_dtype(x, struct))
    if label is None:
        attacked = jnp.argmax(logits_of(model, x)).astype(jnp.int32)
    else:
        attacked = as_class(label, struct.shape[0], name="label")
    return Scene(model, x, radius.astype(x.dtype), attacked, box)


def doubt_of(scene: Scene, y: Array) -> Array:
    """Return log((1 − p) / p) of the label: it rises with the loss, and its slope never fades."""
    logits = logits_of(scene.model, y.reshape(scene.x.shape))
    others = jnp.where(jnp.arange(logits.size) == scene.label, -jnp.inf, logits)
    return jax.nn.logsumexp(others) - logits[scene.label]


def top(scene: Scene, y: Array) -> tuple[Array, Array]:
    """Return √λ of the top eigenvalue λ of G, and its eigenvector, flat; 0 where G is.

    From the factor, whose singular values are still there where their squares underflow.
    """
    u, s, _ = lapack.thin_svd(factor(scene.model, y.reshape(scene.x.shape)).T)
    return s[0], jnp.where(s[0] > 0, u[:, 0], 0).astype(y.dtype)


def unit(v: Array) -> Array:
    """Return v at length 1, without underflow; zero stays zero."""
    greatest = jnp.max(jnp.abs(v))
    v = v / jnp.where(greatest > 0, greatest, 1)
    size = norm(v)
    return jnp.where(size > 0, v / jnp.where(size > 0, size, 1), 0)


def reaching(start: Array, y: Array, direction: Array, radius: Array) -> Array:
    """Return where the ray from y leaves the ball of the radius around the start."""
    gone = y - start
    along = dot(gone, direction)
    left = jnp.maximum(along**2 + radius**2 - dot(gone, gone), 0)
    return y + (jnp.sqrt(left) - along) * direction


def cut(points: Array, radius: Array) -> Array:
    """Return the last point of a polygon before it leaves the ball around its first point."""
    far = norm(points - points[0], axis=1)
    out = far > radius
    first = jnp.where(jnp.any(out), jnp.argmax(out), len(points) - 1)
    before = points[jnp.maximum(first - 1, 0)]
    crossing = reaching(points[0], before, unit(points[first] - before), radius)
    return jnp.where(jnp.any(out), crossing, points[-1])


def clipped(scene: Scene, y: Array) -> Array:
    """Return the nearest point inside the box."""
    return y if scene.box is None else scene.box.clip(y)


def better(scene: Scene, ends: Float[Array, "k n"]) -> Attacked:
    """Return, of several ends, that at which the label is least probable."""
    shaped = jax.vmap(lambda end: clipped(scene, end.reshape(scene.x.shape)))(ends)
    doubt = jax.vmap(partial(doubt_of, scene))(shaped)
    return result(scene, shaped[jnp.argmax(doubt)])


def result(scene: Scene, end: Array) -> Attacked:
    """Evaluate the model at the end of an attack."""
    end = clipped(scene, end)
    logits = logits_of(scene.model, end)
    distance = norm(end - scene.x)
    finite = is_valid(_LIKELIHOOD, logits) & jnp.isfinite(distance)
    moved = jnp.where((distance > 0) | (scene.budget == 0), Code.completed, Code.stalled)
    status = as_status(jnp.where(finite, moved, Code.invalid))
    return Attacked(end, logits, distance, scene.label, status)
