"""What a walk leaves behind: the points it kept, what was measured there, and how it ended."""

import enum
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int


class Status(eqx.Enumeration):
    """How a walk ended: an `equinox.Enumeration`, as diffrax's `RESULTS`.

    `path.status == Status.arrived` compares, element by element in a batch; `Status[path.status]`
    and `print(path.status)` give the sentence, which begins with the name.
    """

    arrived = "arrived: within `arrival` of the target, or at the closest point along the kernel."
    completed = "completed: all steps were taken."
    # The distribution holds (nearly) nothing of the direction, or the velocity turned round.
    stalled = "stalled: no direction is left to follow. This is the closest point, or the farthest."
    out_of_steps = "out_of_steps: `max_steps` were not enough, rejected ones included."
    boundary = "boundary: the domain leaves no direction to go on in."
    invalid = "invalid: x, the target or the output of the model is not finite."
    outside = "outside: x lies outside the box, which was not known before the program ran."


class Code(enum.IntEnum):
    """The numbers of the statuses, for compiled loops, which carry numbers alone."""

    arrived = 0
    completed = 1
    stalled = 2
    out_of_steps = 3
    boundary = 4
    invalid = 5
    outside = 6


def as_code(status: Any) -> Int[Array, "..."]:
    """Return the code of a status."""
    return jnp.asarray(status._value)


def as_status(code: ArrayLike) -> Any:
    """Return the status of a code."""
    item: Any = Status.arrived
    return eqx.tree_at(lambda status: status._value, item, jnp.asarray(code, jnp.int32))


class Path(eqx.Module):
    """A walk along a leaf; a pytree of fixed shapes, `rows` = 1 + max_steps // save_every.

    Row i holds step i · save_every; rows past the end repeat the last point.

    Attributes:
        points: (rows, *x.shape).
        steps: (rows,) int32, the step number of each row.
        logits: (rows, C).
        distance: (rows,) to the target; of a drift, from the start. Euclidean, input units.
        tangent_fraction: (rows,) ‖P d‖ / ‖d‖: how much of the direction the distribution holds.
        probabilities: (rows, C), p at each point (of a `Gaussian`, its mean).
        probability_change: (rows,) max|p − p(start)|; zero along kernel leaves.
        dimension: (rows,) int32, of D.
        box_excess: (rows,) how far the worst pixel lies outside the box; 0 without one.
        leaf_defect: (rows,) how far the point has left its leaf. Along the kernel: max |centred
            logits − those of the start|, which the leaf conserves. Along the leaf: the summed
            length of what the steps had outside D (what clipping added).
        end: (*x.shape) the last point.
        best: (*x.shape) the point nearest to the target, the latest of those that are as near to
            rounding; of a drift, the last.
        num_steps: () int32.
        num_attempts: () int32, the steps tried: `num_steps` and those that an adaptive controller
            rejected.
        status: A `Status`.
    """

    points: Float[Array, "rows ..."]
    steps: Int[Array, " rows"]
    logits: Float[Array, "rows c"]
    distance: Float[Array, " rows"]
    tangent_fraction: Float[Array, " rows"]
    probabilities: Float[Array, "rows c"]
    probability_change: Float[Array, " rows"]
    dimension: Int[Array, " rows"]
    box_excess: Float[Array, " rows"]
    leaf_defect: Float[Array, " rows"]
    end: Float[Array, "..."]
    best: Float[Array, "..."]
    num_steps: Int[Array, ""]
    num_attempts: Int[Array, ""]
    status: Status
