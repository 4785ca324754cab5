"""What the motions of `generate` share: their result, their scene, their checks, their batches."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._backend.rewrite import logits_of
from foliax._core.checks import as_class, as_point, is_traced
from foliax._core.jacobian import contrast_jacobian, logits_struct, working_dtype
from foliax._core.types import Model
from foliax._linalg.products import norm
from foliax._linalg.row_space import RowSpace
from foliax.flow.box import Box, check_box
from foliax.flow.flat import Flat
from foliax.flow.path import Code, Status, as_status
from foliax.likelihood import Categorical

LIKELIHOOD = Categorical()


class Motion(NamedTuple):
    """A motion that keeps the probability of a label.

    Attributes:
        points: (rows, *x.shape), rows = 1 + steps // save_every; past the end the last point.
        p_label: (rows,) the probability of the label at each.
        distance: (rows,) from the start, or of `approach` to the target. Euclidean, input units.
        end: (*x.shape) the last point.
        least: The least p_label of all points taken, kept or not; ≥ threshold unless the start is
            below it.
        accepted: Steps taken.
        refused: Proposals that were refused: of `approach`, every one before the one taken.
        status: A `Status`. Of `diffuse`: completed; boundary where no step at all was accepted, or
            where the start is below the threshold (the end is then the start). Of `approach`:
            arrived, stalled (the closest point), boundary (the threshold ends the walk, or the
            start is below it), out_of_steps. Of both: invalid.
    """

    points: Float[Array, "rows ..."]
    p_label: Float[Array, " rows"]
    distance: Float[Array, " rows"]
    end: Float[Array, "..."]
    least: Float[Array, ""]
    accepted: Int[Array, ""]
    refused: Int[Array, ""]
    status: Status


class Scene(Flat):
    """What stays fixed during one motion."""

    box: Box | None
    start: Float[Array, " n"]
    start_logits: Float[Array, " c"]
    label: Int[Array, ""]
    threshold: Float[Array, ""]
    along: str = eqx.field(static=True)

    def p_label(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        """Return the probability of the label."""
        return jax.nn.softmax(self.logits(x))[self.label]

    def evaluated(self, x: Float[Array, " n"]) -> tuple[Array, Array, RowSpace]:
        """Return logits, contrast Jacobian and its row space at x: one Jacobian."""
        logits, k = contrast_jacobian(self.model, self.shaped(x), LIKELIHOOD)
        k = k.astype(x.dtype)
        return logits.astype(x.dtype), k, RowSpace.of(k)


def make_scene(
    model: Model, x: ArrayLike, label: Any, threshold: Any, box: Any, along: str
) -> Scene:
    """Check the arguments and flatten them."""
    x = as_point(x)
    struct = logits_struct(model, x, LIKELIHOOD)
    check_box(box, x)
    if not is_traced(threshold) and not (jnp.ndim(threshold) == 0 and 0 <= threshold < 1):
        raise ValueError(f"threshold must be a probability in [0, 1), got {threshold!r}")
    dtype = working_dtype(x, struct)
    start = x.ravel().astype(dtype)
    logits = logits_of(model, x).astype(dtype)
    return Scene(
        model=model,
        box=jax.tree.map(lambda b: jnp.broadcast_to(b, x.shape).ravel().astype(dtype), box),
        start=start,
        start_logits=logits,
        label=_label(label, logits),
        threshold=jnp.asarray(threshold, dtype),
        along=along,
        shape=x.shape,
        dtype=x.dtype,
    )


def _label(label: Any, logits: Float[Array, " c"]) -> Int[Array, ""]:
    if label is None:
        return jnp.argmax(logits).astype(jnp.int32)
    return as_class(label, logits.size, name="label")


def begin(scene: Scene) -> tuple[Array, Float[Array, ""]]:
    """Return whether the start is allowed, and its p_label."""
    p = jax.nn.softmax(scene.start_logits)[scene.label]
    return p >= scene.threshold, p


def validated(status: Array, number: Array) -> Any:
    """Return the status, or invalid where the number is not finite."""
    return as_status(jnp.where(jnp.isfinite(number), status, Code.invalid))


def capped(v: Float[Array, " n"], most: Float[Array, ""]) -> Float[Array, " n"]:
    """Shorten v to a length."""
    length = norm(v)
    return v * jnp.minimum(1, most / jnp.where(length > 0, length, 1))
