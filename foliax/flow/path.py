"""What a walk leaves behind: the points it kept, what was measured there, and how it ended."""

import enum

import equinox as eqx
from jaxtyping import Array, Float, Int


class Status(enum.IntEnum):
    """How a walk ended.

    Attributes:
        arrived: Within `arrival` of the target.
        completed: A drift ran all its steps.
        stalled: The distribution holds (nearly) nothing of the direction any more, or the
            velocity turned round: the foot, or the farthest point.
        out_of_steps: `max_steps` were not enough, rejected ones included.
        boundary: The domain leaves no direction to go on in.
        invalid: x, the target or the model's output is not finite.
        outside: x lies outside the box, which was not known before the program ran.
    """

    arrived = 0
    completed = 1
    stalled = 2
    out_of_steps = 3
    boundary = 4
    invalid = 5
    outside = 6


class Path(eqx.Module):
    """A walk along a leaf; a pytree of fixed shapes, `rows` = 1 + max_steps // save_every.

    Row i holds step i · save_every; rows past the end repeat the last point.

    Attributes:
        points: (rows, *x.shape).
        steps: (rows,) int32, the step number of each row.
        logits: (rows, C).
        distance: (rows,) to the target; of a drift, from the start. Euclidean, input units.
        tangent_fraction: (rows,) ‖P d‖ / ‖d‖: how much of the direction the distribution holds.
        drift: (rows,) max|p − p(start)|; conserved (zero) along kernel leaves.
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
        status: () int32, a `Status`.
    """

    points: Float[Array, "rows ..."]
    steps: Int[Array, " rows"]
    logits: Float[Array, "rows c"]
    distance: Float[Array, " rows"]
    tangent_fraction: Float[Array, " rows"]
    drift: Float[Array, " rows"]
    dimension: Int[Array, " rows"]
    box_excess: Float[Array, " rows"]
    leaf_defect: Float[Array, " rows"]
    end: Float[Array, "..."]
    best: Float[Array, "..."]
    num_steps: Int[Array, ""]
    num_attempts: Int[Array, ""]
    status: Int[Array, ""]
