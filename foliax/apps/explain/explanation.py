"""What the moves to all classes say of one input."""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._backend.rewrite import logits_of
from foliax._core.checks import as_class, as_point, check_choice, check_count, check_positive
from foliax._core.documented import documented
from foliax._core.from_starts import from_starts
from foliax._core.jacobian import logits_struct, working_dtype
from foliax._core.types import Count, Metric, Model
from foliax._linalg.products import norm
from foliax.apps.explain.move import (
    LIKELIHOOD,
    Scene,
    move,
    nearest_log_probabilities,
    separation,
)
from foliax.flow.path import Status, as_status


class Reached(NamedTuple):
    """A move along the leaf toward a class; `explain` puts the classes on a leading axis.

    Attributes:
        end: (*x.shape) where it stopped. Where the status is arrived, the class is the most
            probable one there, by as little as the working precision can show.
        logits: (C,) those at the end.
        chord: ‖end − x‖, in input units.
        length: Length of the path along the leaf, ≥ chord.
        fisher: 2 arccos Σ√(p_i q_i) between p at x and at the end, ≤ π.
        bound: The least that `fisher` can be for this class, from p at x alone.
        num_steps: Jacobians used.
        status: A `Status`: arrived; stalled, where no direction leads to the class; out_of_steps;
            or invalid. Where it is not arrived, the numbers are those of where it stopped.
    """

    end: Float[Array, "..."]
    logits: Float[Array, "*k c"]
    chord: Float[Array, "*k"]
    length: Float[Array, "*k"]
    fisher: Float[Array, "*k"]
    bound: Float[Array, "*k"]
    num_steps: Int[Array, "*k"]
    status: Status


class Explanation(NamedTuple):
    """The classes around one input.

    Attributes:
        label: The class predicted at x.
        probabilities: (C,) p at x.
        nearest: `Reached` by the smallest move in input distance, with a leading axis of C; in the
            row of the label nothing moves.
        fisher: The same by the smallest move in G's metric.
    """

    label: Int[Array, "*b"]
    probabilities: Float[Array, "*b c"]
    nearest: Reached
    fisher: Reached


@documented
def reach(
    model: Model,
    x: ArrayLike,
    to: int | ArrayLike,
    *,
    metric: Metric = "euclidean",
    step: float | Array = 0.1,
    max_steps: Count = 1000,
) -> Reached:
    """Move x along its data leaf to where a class is the most probable one; stop at the boundary.

    - `"euclidean"`: each step goes toward the nearest point at which, to first order, no other
      class is ahead. The gradients of all logit contrasts lie in D, so this nearest point does too,
      and the move is a path on the leaf. Where the logits are affine it is straight, and its length
      the exact distance of the region of the class in all of input space, whatever class is
      predicted on the path; elsewhere it is an upper bound of the distance along the leaf.
    - `"fisher"`: toward where p is `nearest_distribution`, by the least step in D that takes the
      logits there. Where rank G = C − 1 that distribution is met, and `fisher` is its bound.

    The step that crosses the boundary is cut by bisection to the last bit. One Jacobian a step.
    Pixels are not kept in their range: D has too few dimensions for that.

    Args:
        to: The class.
        metric: What is minimised: "euclidean", the move in input space, or "fisher", that in G's
            metric.
        step: Length of a step at most, > 0, in the units of x; infinity to trust each
            linearisation as far as it leads.
        max_steps: Steps at most.

    Returns:
        `Reached`.

    Raises:
        ValueError: For arguments that shapes, dtypes or concrete values show to be wrong.

    Source: Tron, Fioresi, Couëllan & Puechmorel 2024, arXiv 2409.12057, for explanations by the
        leaf; Moosavi-Dezfooli, Fawzi & Frossard 2016, *DeepFool*, for the iterated linearisation.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda x: jnp.stack([x[0], x[1], 0 * x[0]])
        >>> found = reach(model, jnp.array([3.0, 1.0, 9.0]), 1)
        >>> [f"{v:.4f}" for v in found.end], f"{found.chord:.4f}"
        (['2.0000', '2.0000', '9.0000'], '1.4142')
    """
    check_choice(metric, name="metric", choices=("euclidean", "fisher"))
    check_positive(step, name="step", or_infinite=True)
    check_count(max_steps, name="max_steps")
    x = as_point(x)
    struct = logits_struct(model, x, LIKELIHOOD)
    dtype = working_dtype(x, struct)
    to = as_class(to, struct.shape[0], name="to")
    return _reached(model, x, to, jnp.asarray(step, dtype), metric, max_steps)


@eqx.filter_jit
def _reached(
    model: Model, x: Array, to: Array, step: Array, metric: str, max_steps: int
) -> Reached:
    start, logits = x.ravel().astype(step.dtype), logits_of(model, x).astype(step.dtype)
    scene = Scene(model, x.shape, x.dtype, start, logits, to, step, metric, max_steps)
    last = move(scene)
    log_p = jax.nn.log_softmax(logits)
    return Reached(
        last.x.reshape(x.shape),
        last.logits,
        norm(last.x - start),
        last.length,
        separation(log_p, jax.nn.log_softmax(last.logits)),
        separation(log_p, nearest_log_probabilities(log_p, to)),
        last.steps,
        as_status(last.status),
    )


@documented
def explain(
    model: Model, x: ArrayLike, *, step: float | Array = 0.1, max_steps: Count = 1000
) -> Explanation:
    """Reach every class from x, by the smallest move in input space and by that in G's metric.

    Args:
        step: As in `reach`.
        max_steps: As in `reach`.

    Returns:
        An `Explanation`; `order` gives the classes from the nearest on.

    Raises:
        ValueError: As `reach`.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda x: jnp.stack([x[0], 5 * x[1], 0 * x[0]])
        >>> found = explain(model, jnp.array([3.0, 0.0]))
        >>> int(found.label), [f"{v:.3f}" for v in found.nearest.chord]
        (0, ['0.000', '0.588', '3.000'])
        >>> order(found.nearest.chord, found.nearest.status == Status.arrived, found.label).tolist()
        [1, 2, 0]
    """
    x = as_point(x)
    num_classes = logits_struct(model, x, LIKELIHOOD).shape[0]
    logits = logits_of(model, x)

    def all_by(metric: Metric) -> Reached:
        one = partial(reach, model, x, metric=metric, step=step, max_steps=max_steps)
        return from_starts(one, jnp.arange(num_classes))

    label = jnp.argmax(logits).astype(jnp.int32)
    return Explanation(label, jax.nn.softmax(logits), all_by("euclidean"), all_by("fisher"))


# --- what is said of them ------------------------------------------------------------------------


def nearest_distribution(p: ArrayLike, to: int | ArrayLike) -> Float[Array, " c"]:
    """Return the distribution nearest to p, in the metric of the simplex, where no class exceeds c.

    In that metric p lies on a sphere of radius 2, at u = 2 √p, and the distributions of the class
    are a convex cone's part of it: u is projected on the cone, the classes above c taking the mean
    of their u and that of c, and scaled back. The distance to it is the least that any move can
    have in G's metric. Among the others it is the smaller the more probable the class.

    Args:
        p: (C,) probabilities.
        to: The class.

    Returns:
        (C,) probabilities; p itself where the class is the largest.

    Raises:
        ValueError: If p is not a vector of two or more, or there is no such class.

    Example:
        >>> import jax.numpy as jnp
        >>> q = nearest_distribution(jnp.array([0.64, 0.04, 0.32]), 2)
        >>> [f"{value:.3f}" for value in q]
        ['0.479', '0.041', '0.479']
    """
    p = as_point(p, name="p")
    if p.ndim != 1 or p.size < 2:
        raise ValueError(f"p must be (C,) probabilities of C >= 2 classes, got shape {p.shape}")
    return jnp.exp(nearest_log_probabilities(jnp.log(p), as_class(to, p.size, name="to")))


def order(distances: ArrayLike, reached: ArrayLike, label: int | ArrayLike) -> Int[Array, " c"]:
    """Return the classes from the nearest on; those not reached come next, the label itself last.

    Args:
        distances: (C,) of one kind, `chord`, `length` or `fisher`.
        reached: (C,) which classes the moves reached: `status == Status.arrived`.
        label: The class of x.

    Returns:
        (C,) classes.

    Raises:
        ValueError: If distances and reached are not (C,), reached are no booleans, or there is no
            such class.

    Example:
        >>> import jax.numpy as jnp
        >>> order(jnp.array([2.0, 0.0, 1.0]), jnp.ones(3, bool), 1).tolist()
        [2, 0, 1]
    """
    distances, reached = jnp.asarray(distances), jnp.asarray(reached)
    if distances.ndim != 1 or distances.shape != reached.shape:
        raise ValueError(
            "distances, reached must be (C,), one entry a class, got "
            f"{distances.shape}, {reached.shape}; batch with jax.vmap"
        )
    if reached.dtype != bool:
        raise ValueError(
            f"reached must be booleans, as `status == Status.arrived`, got dtype {reached.dtype}"
        )
    label = as_class(label, len(distances), name="label")
    # By three keys: the label last, before it what was not reached, by place where all is equal.
    mine = jnp.arange(distances.shape[0]) == label
    return jnp.lexsort((distances, ~reached, mine)).astype(jnp.int32)
