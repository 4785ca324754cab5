"""Lengths, distances and geodesics in G's metric."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from foliax._core.checks import as_point, as_tangent, check_choice, check_chunk, check_count
from foliax._core.compile import compiled
from foliax._core.jacobian import contrast_jacobian, logits_struct, working_dtype
from foliax._core.likelihood import Likelihood
from foliax._core.types import Chunk, Count, Model
from foliax._linalg.row_space import RowSpace
from foliax.data_matrix import quadratic
from foliax.flow.path import Code, Status
from foliax.leaf.image import GeodesicMethod, centred, flat_logits, pushed
from foliax.leaf.lift import Geodesic, lifted
from foliax.leaf.shooting import integrated, shot
from foliax.leaf.sphere import circle_between, circle_from, separation
from foliax.likelihood import Categorical, square_root

_CATEGORICAL = Categorical()


@compiled
def length(
    model: Model, points: ArrayLike, *, likelihood: Likelihood = Categorical(), chunk: Chunk = None
) -> Float[Array, ""]:
    """Return the length ∫ √(ẋᵀ G ẋ) dt of a curve through the points, in G's metric.

    By the midpoint rule, Σ |A(m_i) Δx_i| with A the factor of G and m_i the middle of the segment
    Δx_i: matrix-free, and exact to second order in the spacing. Parts of the curve in ker G have
    no length.

    Args:
        points: (k, *shape of one input), k ≥ 2, in order along the curve.
        chunk: How many segments at once; None for all.

    Returns:
        A scalar ≥ 0, in √nats.

    Raises:
        ValueError: If there are fewer than two points; or as `foliax.quadratic`.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax.leaf.metric
        >>> binary = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> line = jnp.linspace(0.0, 1.0, 101)[:, None]
        >>> f"{foliax.leaf.length(binary, line):.4f}"
        '0.4804'
        >>> f"{foliax.leaf.distance(binary, line[0], line[-1]):.4f}"
        '0.4804'
    """
    return jnp.sum(square_root(_segments(model, points, likelihood, chunk)))


@compiled
def energy(
    model: Model, points: ArrayLike, *, likelihood: Likelihood = Categorical(), chunk: Chunk = None
) -> Float[Array, ""]:
    """Return the energy ½ ∫ ẋᵀ G ẋ dt of a curve through the points, t from 0 to 1 in equal steps.

    By the midpoint rule, ½ (k − 1) Σ |A(m_i) Δx_i|², as in `length`. At least ½ length², and equal
    to it where the speed is constant.

    Args:
        points: (k, *shape of one input), k ≥ 2, in order along the curve.
        chunk: How many segments at once; None for all.

    Returns:
        A scalar ≥ 0, in nats.

    Raises:
        ValueError: As `length`.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax.leaf.metric
        >>> binary = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> line = jnp.linspace(0.0, 1.0, 101)[:, None]
        >>> f"{foliax.leaf.energy(binary, line):.4f}", f"{0.4804**2 / 2:.4f}"
        ('0.1155', '0.1154')
    """
    squares = _segments(model, points, likelihood, chunk)
    return squares.size * jnp.sum(squares) / 2


@compiled
def distance(
    model: Model, x: ArrayLike, y: ArrayLike, *, method: GeodesicMethod = "sphere",
    num_steps: Count = 64, solver: diffrax.AbstractSolver = diffrax.Heun(),
) -> Float[Array, ""]:  # fmt: skip
    """Return how long the geodesic is from x to the probabilities of y, or a lower bound of it.

    - `"sphere"`: 2 arccos Σ_i √(p_i q_i), the distance of p = p(x) and q = p(y) in the simplex.
      Where rank G = C − 1 it is the distance of points of one leaf that are not far apart: a local
      isometry says nothing of leaves that fold over the simplex. Where the rank is lower it is a
      lower bound. Never above π, and 0 for points of one kernel leaf. Computed as
      4 arcsin(½ |√p − √q|) from differences of the logits, accurate also where x is near y and
      where p is saturated.
    - `"connection"`: the length of `geodesic` by that method, at any constant rank; it ends on the
      leaf of x, at y only where y is on it.

    Args:
        model: Callable pytree from one input to C logits; for "connection" twice differentiable.
        y: Another, of x's shape.
        method: "sphere" or "connection".
        num_steps: Of "connection", as in `geodesic`.
        solver: Likewise.

    Returns:
        A scalar, in √nats; ½ of its square is KL(q ‖ p) to leading order. By "sphere" in [0, π],
        its gradient at y = x, where it has none, 0; by "connection" NaN where the geodesic has not
        arrived, as where the leaf of x does not reach the probabilities of y.

    Raises:
        ValueError: If x or y is not an input of the model, or for another method.

    Source: Čencov, *Statistical decision rules and optimal inference*, § 11; Bhattacharyya 1943.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax.leaf.metric
        >>> binary = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> far = foliax.leaf.distance(binary, jnp.full(1, -900.0), jnp.full(1, 900.0))
        >>> f"{far:.4f}"
        '3.1416'
    """
    check_choice(method, name="method", choices=("sphere", "connection"))
    check_count(num_steps, name="num_steps")
    if method == "connection":
        found = geodesic(model, x, y, method=method, num_steps=num_steps, solver=solver)
        return jnp.where(found.status == Status.arrived, found.length, jnp.nan)
    x = as_point(x)
    y = as_tangent(y, x, name="y")
    dtype = working_dtype(x, y, logits_struct(model, x, _CATEGORICAL))
    logits = flat_logits(model, x)
    angle = separation(*(logits(point.ravel().astype(dtype)) for point in (x, y)))[2]
    return jnp.minimum(2 * angle, jnp.pi)


@compiled
def geodesic(
    model: Model, x: ArrayLike, y: ArrayLike | None = None, *,
    log_probabilities: ArrayLike | None = None, method: GeodesicMethod = "sphere",
    num_steps: Count = 64, solver: diffrax.AbstractSolver = diffrax.Heun(),
) -> Geodesic:  # fmt: skip
    """Return the geodesic of the leaf through x to where the probabilities are those of y.

    The end is on the leaf of x and has the probabilities of y; it is y itself only where y is on
    that leaf.

    - `"sphere"`: exact in p, which runs along the great circle of √p. The lift to x is integrated,
      exact to the order of the solver, and corrected inside D after every step. Needs rank
      G = C − 1 on the way. Costs about 3 Jacobians a step.
    - `"connection"`: at any constant rank. The initial velocity is found by shooting
      (Levenberg-Marquardt on the geodesic equation of `exponential`), exact to the order of the
      solver; meant for leaves of few dimensions. The target must be in the image of the leaf.

    Args:
        model: Callable pytree from one input to C logits; for "connection" twice differentiable.
        x: The start, in the model's units.
        y: An input whose probabilities are the target, of x's shape.
        log_probabilities: The target itself in place of y, (C,), up to a common constant; finite.
        method: "sphere" or "connection".
        num_steps: Steps, ≥ 1; sets the shape of the result.
        solver: A diffrax solver.

    Returns:
        A `Geodesic`; its status is arrived where the target was met.

    Raises:
        ValueError: For arguments that shapes, dtypes or names show to be wrong.

    Source: Čencov, *Statistical decision rules and optimal inference*, § 11 (the simplex as a
    sphere); O'Neill, *The fundamental equations of a submersion*, 1966 (horizontal lifts).

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax.leaf.metric
        >>> model = lambda x: jnp.stack([x[0], x[1], 0 * x[0]])
        >>> x, y = jnp.zeros(3), jnp.array([1.0, -2.0, 5.0])
        >>> found = foliax.leaf.geodesic(model, x, y)
        >>> [f"{v:.3f}" for v in found.end]  # x[2] is in the kernel
        ['1.000', '-2.000', '0.000']
        >>> f"{found.length:.4f}", f"{foliax.leaf.distance(model, x, y):.4f}"
        ('0.9591', '0.9591')
    """
    x = _checked(model, x, method, num_steps)
    target = _target(model, x, y, log_probabilities)
    if method == "connection":
        return shot(model, x, target, num_steps, solver)
    logits = flat_logits(model, x)(x.ravel())
    circle = circle_between(logits, target)
    return lifted(model, x, circle, num_steps, solver, Code.arrived)


@compiled
def exponential(
    model: Model, x: ArrayLike, v: ArrayLike, *, method: GeodesicMethod = "sphere",
    num_steps: Count = 64, solver: diffrax.AbstractSolver = diffrax.Heun(),
) -> Geodesic:  # fmt: skip
    """Return the geodesic of the leaf from x with initial velocity v, up to t = 1: exp_x(v).

    - `"sphere"`: the great circle of √p with this velocity, lifted; see `geodesic`. It ends
      shortly before it would leave the simplex, with status boundary.
    - `"connection"`: x' = M⁺q, q' = (1 − M M⁺) ü(x', x'), with M the Jacobian of u = 2 √p: the
      acceleration of the image is normal to it. At any constant rank, exact to the order of the
      solver.

    Args:
        model: Callable pytree from one input to C logits; for "connection" twice differentiable.
        x: The start, in the model's units.
        v: The velocity, of x's shape; its part in D counts.
        method: "sphere" (needs rank G = C − 1) or "connection".
        num_steps: Steps, ≥ 1; sets the shape of the result.
        solver: A diffrax solver.

    Returns:
        A `Geodesic`; its status is completed where it ran to t = 1.

    Raises:
        ValueError: For arguments that shapes, dtypes or names show to be wrong.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax.leaf.metric
        >>> binary = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> found = foliax.leaf.exponential(binary, jnp.zeros(1), jnp.full(1, 2.0))
        >>> f"{found.length:.3f}", f"{foliax.leaf.distance(binary, jnp.zeros(1), found.end):.3f}"
        ('1.000', '1.000')
    """
    x = _checked(model, x, method, num_steps)
    v = as_tangent(v, x, name="v")
    k = contrast_jacobian(model, x, _CATEGORICAL)[1]
    velocity = RowSpace.of(k).project(v.ravel().astype(k.dtype))
    if method == "connection":
        return integrated(model, x, velocity, num_steps, solver)
    flat = x.ravel().astype(k.dtype)
    logits, slopes = pushed(model, x, flat, velocity[None], _CATEGORICAL)
    circle = circle_from(logits, centred(jax.nn.softmax(logits), slopes[:, 0]))
    return lifted(model, x, circle, num_steps, solver, Code.completed)


def _checked(model: Model, x: ArrayLike, method: Any, num_steps: Any) -> Float[Array, "..."]:
    check_choice(method, name="method", choices=("sphere", "connection"))
    check_count(num_steps, name="num_steps")
    x = as_point(x)
    num_classes = logits_struct(model, x, _CATEGORICAL).shape[0]
    if method == "sphere" and x.size < num_classes - 1:
        raise ValueError(
            f'method="sphere" needs rank G = C - 1, got n = {x.size} inputs for C = {num_classes} '
            'classes; use method="connection"'
        )
    return x


def _target(
    model: Model, x: Array, y: ArrayLike | None, log_probabilities: ArrayLike | None
) -> Float[Array, " c"]:
    """Return log-probabilities, or logits, to go to."""
    if (y is None) == (log_probabilities is None):
        raise ValueError("geodesic needs either y or log_probabilities, got both or neither")
    logits = logits_struct(model, x, _CATEGORICAL)
    dtype = working_dtype(x, logits)
    if y is not None:
        return flat_logits(model, x)(as_tangent(y, x, name="y").ravel().astype(dtype))
    target = as_point(log_probabilities, name="log_probabilities")  # type: ignore[arg-type]
    if target.shape != logits.shape:
        raise ValueError(
            f"log_probabilities must have the shape of the logits, {logits.shape}, got "
            f"{target.shape}"
        )
    return target.astype(dtype)


def _segments(
    model: Model, points: ArrayLike, likelihood: Likelihood, chunk: Chunk
) -> Float[Array, " segments"]:
    """Return |A Δx|² of every segment, A at its middle."""
    check_chunk(chunk)
    points = as_point(points, name="points")
    if points.ndim < 2 or len(points) < 2:
        raise ValueError(
            "points must be at least two inputs stacked along axis 0, got shape "
            f"{points.shape}; batch curves with jax.vmap"
        )

    def squared(ends: tuple[Array, Array]) -> Array:
        before, after = ends
        middle = before + (after - before) / 2
        return 2 * quadratic(model, middle, after - before, likelihood=likelihood)

    size = len(points) - 1
    return lax.map(squared, (points[:-1], points[1:]), batch_size=min(chunk or size, size))
