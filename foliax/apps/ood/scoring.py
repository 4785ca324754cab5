"""The scores of an input against references."""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._core.checks import as_point, check_choice, check_count, check_positive
from foliax._core.documented import documented
from foliax._core.from_starts import from_starts
from foliax._core.jacobian import contrast_jacobian
from foliax._core.types import Count, Model
from foliax._linalg.products import dot, norm
from foliax._linalg.rank import singular_values
from foliax._linalg.row_space import RowSpace
from foliax.apps.denoise.projection import as_references
from foliax.flow.closest import closest
from foliax.flow.path import Code, Status, as_code, as_status
from foliax.likelihood import Categorical

if TYPE_CHECKING:
    Reduce = Literal["min", "mean", "none"]
else:
    Reduce = Any  # checked by hand, so that our error comes before a type-checking hook's
_LIKELIHOOD = Categorical()


class References(NamedTuple):
    """Points whose leaves inputs are compared with, and what is needed of the model there.

    Attributes:
        points: (k, *x.shape) the references.
        frames: (k, m, n) orthonormal rows spanning D at each; rows that are not there are zero.
        roots: (k, C) √p, the points of the sphere that the leaf is mapped to.
    """

    points: Float[Array, "k ..."]
    frames: Float[Array, "k m n"]
    roots: Float[Array, "k c"]


class Scores(NamedTuple):
    """Scores of one input, each higher the farther out of distribution.

    Those over references are reduced to a scalar, or kept as (k,) with `reduce="none"`;
    `foliax.map` puts the inputs on a leading axis.

    Attributes:
        trace: trace G(x), in nats per squared input unit. At x alone.
        largest_eigenvalue: Of G(x).
        effective_rank: exp of the entropy of the normalised spectrum of G(x); 0 where G = 0.
        distance: ‖x − r‖. Does not depend on the leaf: the control for all that follow.
        residual: The distance of x from the closest point found on the leaf through r, an upper
            bound of that from the leaf; None with `feet=False`.
        residual_ratio: residual over distance; 0 where x = r. None with `feet=False`.
        kernel_at_reference: ‖P_ker(r)(x − r)‖, the length along the noise directions at r: the
            distance of x from the leaf's tangent plane there.
        kernel_at_x: ‖P_ker(x)(x − r)‖, the same with the noise directions at x.
        kernel_fraction: kernel_at_reference over distance, √(1 − τ²) where τ is the tangent
            fraction at the start of a walk from r to x; 0 where x = r.
        metric_length: ‖x − r‖ in the metric G(x), √((x − r)ᵀ G(x) (x − r)).
        fisher_distance: 2 arccos Σ√(p_i q_i) between p at x and at r, ≤ π: the distance along a
            leaf in G's metric where rank G = C − 1. It depends on p alone.
        status: A `Status`: stalled where every flow reached a closest point (and without flows),
            out_of_steps where one was not, invalid where x or the model's output is not finite.
    """

    trace: Float[Array, "*n"]
    largest_eigenvalue: Float[Array, "*n"]
    effective_rank: Float[Array, "*n"]
    distance: Float[Array, "*k"]
    residual: Float[Array, "*k"] | None
    residual_ratio: Float[Array, "*k"] | None
    kernel_at_reference: Float[Array, "*k"]
    kernel_at_x: Float[Array, "*k"]
    kernel_fraction: Float[Array, "*k"]
    metric_length: Float[Array, "*k"]
    fisher_distance: Float[Array, "*k"]
    status: Status


# --- references --------------------------------------------------------------------------------


def medoids(xs: ArrayLike, labels: ArrayLike, *, num_classes: Count) -> Int[np.ndarray, " c"]:
    """Return the place of one training input of each class: the medoid in squared distance.

    The sum of squared distances to the others of a class is smallest for the member nearest to
    the class mean. The choice depends on the training set alone, never on what is scored.

    Args:
        xs: (N, *x.shape) training inputs.
        labels: (N,) their classes.
        num_classes: C.

    Returns:
        (C,) places in xs.

    Raises:
        ValueError: If xs and labels do not fit, or a class has no member.

    Example:
        >>> import numpy as np
        >>> xs, labels = np.array([[0.0], [1.0], [5.0], [9.0]]), np.array([0, 0, 0, 1])
        >>> medoids(xs, labels, num_classes=2).tolist()
        [1, 3]
    """
    check_count(num_classes, name="num_classes")
    xs, labels = np.asarray(xs, np.float64), np.asarray(labels)
    if xs.ndim < 2 or labels.shape != xs.shape[:1]:
        raise ValueError(
            f"labels must hold one class for each of the inputs, got {labels.shape} for inputs of "
            f"shape {xs.shape}"
        )
    if not np.all(np.isfinite(xs)):
        raise ValueError("xs must be finite, got NaN or infinity; leave such inputs out")
    flat, found = xs.reshape(len(xs), -1), []
    for label in range(num_classes):
        places = np.flatnonzero(labels == label)
        if not len(places):
            raise ValueError(
                f"labels must hold every class of 0 … {num_classes - 1}, got none of {label}"
            )
        away = flat[places] - flat[places].mean(axis=0)
        found.append(places[np.argmin((away**2).sum(axis=1))])
    return np.array(found)


@documented
def prepare(model: Model, points: ArrayLike, *, block: Count = 16) -> References:
    """Evaluate the model once at each reference, for the scores of many inputs.

    Args:
        points: (k, *x.shape) the references, in the model's units.
        block: How many are computed at once.

    Returns:
        `References`, of k Jacobians.

    Raises:
        ValueError: If points is not such a stack, or as `foliax.frame`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> model = jax.tree_util.Partial(lambda x: jnp.stack([x[0], 0 * x[0]]))
        >>> jnp.abs(prepare(model, jnp.zeros((1, 2))).frames).round(3).tolist()
        [[[1.0, 0.0]]]
    """
    check_count(block, name="block")
    points = as_point(points, name="points")
    if points.ndim < 2:
        raise ValueError(f"points must be stacked along axis 0, got shape {points.shape}")
    return _prepared(model, points, block)


@eqx.filter_jit
def _prepared(model: Model, points: Array, block: int) -> References:
    def one(point: Array) -> tuple[Array, Array]:
        logits, k = contrast_jacobian(model, point, _LIKELIHOOD)
        return RowSpace.of(k).basis, _root(logits)

    return References(points, *lax.map(one, points, batch_size=min(block, len(points))))


def _root(logits: Float[Array, " c"]) -> Float[Array, " c"]:
    return jnp.exp(jax.nn.log_softmax(logits) / 2)


# --- scores ------------------------------------------------------------------------------------


@documented
def score(
    model: Model,
    x: ArrayLike,
    references: References | ArrayLike,
    *,
    reduce: Reduce = "min",
    feet: bool = True,
    step: float | Array = 0.1,
    max_steps: Count = 1000,
    stall: float | Array = 1e-5,
) -> Scores:
    """Score how far one input is out of the distribution of the references.

    Costs one Jacobian at x; with `feet`, also a flow (`foliax.closest`) from each reference, of one
    Jacobian a step. Many inputs are scored by `foliax.map(score, model, xs, references=prepared)`,
    with what `prepare` returns; each by its own, as those of its predicted class, by
    `foliax.map(score, model, xs, jax.tree.map(lambda rows: rows[places], prepared))`.

    Args:
        references: What `prepare` returned, or (k, *x.shape) points.
        reduce: "min" for the nearest by each score, "mean" over all, "none" to keep all k.
        feet: Whether to flow to the closest points.
        step: Length of a step of these flows, > 0. Longer ones are fewer and leave the leaf
            earlier.
        max_steps: Steps at most of a flow.
        stall: Tangent fraction below which a flow has stalled.

    Returns:
        `Scores`.

    Raises:
        ValueError: If the references do not have the shape of x, or as `foliax.closest`.

    Source: the slides' closing proposal, "use the distance from the data leaf to recognize
        out-of-distribution examples"; Grementieri & Fioresi 2022 for the leaf.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> model = jax.tree_util.Partial(lambda x: jnp.stack([x[0], 0 * x[0]]))
        >>> found = jax.jit(score)(model, jnp.array([3.0, 4.0]), jnp.zeros((1, 2)))
        >>> f"{found.residual:.3f}", f"{found.residual_ratio:.3f}", f"{found.kernel_at_x:.3f}"
        ('4.000', '0.800', '4.000')
    """
    check_choice(reduce, name="reduce", choices=("min", "mean", "none"))
    check_positive(step, name="step")
    x = as_point(x)
    references = _as_references(model, x, references)
    logits, k = contrast_jacobian(model, x, _LIKELIHOOD)
    a = _factor(logits, k)
    away = (x - references.points).reshape(len(references.points), -1).astype(k.dtype)
    distance = norm(away, axis=1)
    space = RowSpace.of(k)

    def rest(v: Array) -> Array:
        return v - space.project_through(k, v)

    at_reference = norm(jax.vmap(_outside)(references.frames, away), axis=1)
    found: dict[str, Any] = {
        "distance": distance,
        "kernel_at_reference": at_reference,
        "kernel_at_x": norm(jax.vmap(rest)(away), axis=1),
        "kernel_fraction": _over(at_reference, distance),
        "metric_length": norm(dot(away, a.T), axis=1),
        "fisher_distance": _fisher_distance(_root(logits), references.roots),
        "residual": None,
        "residual_ratio": None,
    }
    finite = jnp.all(jnp.isfinite(a)) & jnp.all(jnp.isfinite(distance))
    status = jnp.where(finite, Code.stalled, Code.invalid)
    if feet:
        options = {"step": step, "max_steps": max_steps, "stall": stall}
        ends = from_starts(lambda start: closest(model, start, x, **options), references.points)
        found |= {"residual": ends.distance, "residual_ratio": _over(ends.distance, distance)}
        # Of stalled, out_of_steps and invalid the larger number is the worse.
        status = jnp.maximum(status, jnp.max(as_code(ends.status)))
    reduced = {name: _reduced(value, reduce) for name, value in found.items()}
    return Scores(**_spectrum(a), **reduced, status=as_status(status))


def _factor(logits: Float[Array, " c"], k: Float[Array, "r n"]) -> Float[Array, "r n"]:
    """Return A with G = AᵀA from the contrast Jacobian K = H J: its rows are contrasts too."""
    weights, rows = _LIKELIHOOD.factor(logits)
    return weights[:, None] * dot(dot(rows, _LIKELIHOOD.contrasts(logits).T), k)


def _spectrum(a: Float[Array, "r n"]) -> dict[str, Array]:
    values = singular_values(a) ** 2
    total = jnp.sum(values)
    share = values / jnp.where(total > 0, total, 1)
    none = share == 0  # a NaN propagates
    entropy = -jnp.sum(jnp.where(none, 0, share * jnp.log(jnp.where(none, 1, share))))
    return {
        "trace": total,
        "largest_eigenvalue": values[0],
        "effective_rank": jnp.where(total == 0, 0, jnp.exp(entropy)),
    }


def _outside(basis: Float[Array, "m n"], v: Float[Array, " n"]) -> Float[Array, " n"]:
    # Not √(‖v‖² − ‖B v‖²), which cancels where v is nearly tangent.
    return v - dot(dot(basis, v), basis)


def _over(part: Float[Array, " k"], whole: Float[Array, " k"]) -> Float[Array, " k"]:
    return jnp.where(whole == 0, 0, part / jnp.where(whole == 0, 1, whole))


def _fisher_distance(root: Float[Array, " c"], roots: Float[Array, "k c"]) -> Float[Array, " k"]:
    # 2 arccos Σ√(pq) = 4 arcsin(‖√p − √q‖ / 2), without the loss of digits of arccos near 1.
    return 4 * jnp.arcsin(jnp.minimum(norm(roots - root, axis=1) / 2, 2**-0.5))


def _reduced(values: Array | None, reduce: str) -> Any:
    if values is None or reduce == "none":
        return values
    return jnp.min(values) if reduce == "min" else jnp.mean(values)


def _as_references(model: Model, x: Array, references: Any) -> References:
    given = isinstance(references, References)
    points = as_references(references.points if given else references, x)
    return references if given else _prepared(model, points, len(points))
