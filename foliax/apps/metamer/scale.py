"""A metamer of a model with many classes, from gradients alone.

The nearest point to the target with the probabilities of the start, by an augmented Lagrangian. The
target is moved away from the start little by little, and p is held all the way: where the search
begins at the target, units that are off there and on at the start have no gradient to return by.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from scipy.optimize import Bounds, minimize
from tqdm import tqdm

from foliax._backend.rewrite import logits_of
from foliax._core.checks import as_point, as_tangent, check_count, check_positive
from foliax._core.compile import compiled
from foliax._core.types import Count, Model
from foliax._linalg.products import dot, norm
from foliax.data_matrix import trace_estimate
from foliax.flow.box import check_box
from foliax.flow.closest import Closest, certified
from foliax.flow.path import Code, as_status
from foliax.flow.scene import as_mask
from foliax.likelihood import Categorical, contrast_change

_STAGES = 10  # in which the target moves away from the start
_STIFFNESS = (1 / 500, 5)  # of the constraint, first and last, over the squared length of the way
_LEAST = 5e5  # what stands for that length where it is short, times tr G
_SAMPLES = 8  # of the estimate of tr G
_STILL = 0.01  # the share of the distance below which a round no longer comes nearer
_WELL_KEPT = 0.4  # the share of `keep` to which the last search returns p
_MEMORY = 20  # gradients that L-BFGS remembers


class _Problem(NamedTuple):
    """What a round leaves as it is."""

    goal: Array  # the target of this stage
    log_p: Float[Array, " c"]  # of the start
    multipliers: Float[Array, " c"]
    stiffness: Float[Array, ""]
    keep: Float[Array, ""]


class _Values(NamedTuple):
    """What is known of a point."""

    value: Float[Array, ""]  # of the augmented Lagrangian
    gradient: Float[Array, " n"]
    residual: Float[Array, " c"]  # 2√(p + keep) − 2√(p_start + keep), held at 0
    change: Float[Array, ""]  # max|p − p_start|


def at_scale(
    model: Model,
    start: ArrayLike,
    target: ArrayLike,
    *,
    box: Any = None,  # a Box
    free: ArrayLike | None = None,
    keep: float = 1e-4,
    rounds: Count = 30,
    steps: Count = 60,
    progress: bool = True,
) -> Closest:
    """Return a metamer of `start` near the target for a model with many classes.

    `foliax.closest(…, along="kernel")` is exact and needs a Jacobian of C − 1 rows at each step.
    This one needs one gradient at each, whatever C, and keeps p to `keep`. It is no pure function:
    the search is SciPy's L-BFGS-B, with the model compiled.

    Args:
        model: Callable pytree from one input to C logits.
        start: The input whose probabilities are kept, in the model's (normalised) units.
        target: The input to come close to, of the same shape.
        box: The pixel bounds, as in `foliax.walk`.
        free: A boolean mask of the entries that may move, as in `foliax.walk`.
        keep: The largest change of a probability, > 0.
        rounds: Updates of the multipliers at most.
        steps: Steps of the optimiser in each.
        progress: Whether a bar shows the distance and the change of p.

    Returns:
        A `Closest`. Its status is arrived where p is kept to `keep` and the last round came no
        nearer, out_of_steps otherwise, invalid where the model's output is not finite; `num_steps`
        counts gradients, `defect` is large where logits of improbable classes have moved, and
        `optimality` is that of the augmented Lagrangian.

    Raises:
        ValueError: For arguments that shapes, dtypes or concrete values show to be wrong.

    Source: the method: Nocedal & Wright, *Numerical Optimization*, chapter 17.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> found = at_scale(model, jnp.zeros(2), jnp.array([3.0, 4.0]), progress=False)
        >>> [f"{abs(v):.2f}" for v in found.point], bool(found.probability_change <= 1e-4)
        (['0.00', '4.00'], True)
    """
    start = as_point(start, name="start")
    target = as_tangent(target, start, name="target")
    check_box(box, start, name="start")
    check_positive(keep, name="keep")
    check_count(rounds, name="rounds")
    check_count(steps, name="steps")
    search = _Search(model, start, target, *_bounds(start, box, free), keep, steps)
    arrived = search.approach(rounds, progress=progress)
    search.restore()
    last = search.last
    if not jnp.isfinite(last.value):
        code, point = Code.invalid, start
    else:
        kept = last.change <= keep
        code, point = Code.arrived if arrived and kept else Code.out_of_steps, search.point()
    likelihood = Categorical()
    change = contrast_change(likelihood, logits_of(model, start), logits_of(model, point))
    return certified(
        model, likelihood, start, target, box, point, as_status(code),
        jnp.asarray(search.num_gradients, jnp.int32), jnp.max(jnp.abs(change)),
        jnp.asarray(search.optimality(), start.dtype),
    )  # fmt: skip


class _Search:
    """A point on its way, with the multipliers; flat float64, as SciPy takes it."""

    def __init__(
        self, model: Model, start: Array, target: Array, lower: Any, upper: Any, keep: float,
        steps: int,
    ):  # fmt: skip
        self.model, self.start, self.target = model, start, target
        self.bounds, self.keep, self.steps = (lower, upper), keep, steps
        self.x = np.ravel(start).astype(float)
        log_p = _log_probabilities(model, start)
        zero, kept = jnp.zeros((), start.dtype), jnp.asarray(keep, start.dtype)
        self.problem = _Problem(start, log_p, jnp.zeros_like(log_p), zero, kept)
        self.num_gradients = 0
        self.last = self.evaluate(_lagrangian, self.x)

    def approach(self, rounds: int, *, progress: bool) -> bool:
        """Follow the target; tell whether the last round came no nearer."""
        way = float(norm(self.target - self.start))
        left, still = way, way == 0
        bar = tqdm(range(0 if still else rounds), "metamer", disable=not progress, leave=False)
        scale = max(way**2, self.least_scale())
        for k, stiffness in zip(bar, scale * np.geomspace(*_STIFFNESS, rounds), strict=False):
            share = min(1, (k + 1) / _STAGES)
            self.problem = self.problem._replace(
                goal=self.start + share * (self.target - self.start),
                stiffness=jnp.asarray(stiffness, self.start.dtype),
            )
            self.minimise(_lagrangian)
            before, left = left, float(norm(self.point() - self.target))
            still = share == 1 and left >= (1 - _STILL) * before
            bar.set_postfix_str(f"{left / way:.1%} left, p moved by {self.last.change:.1e}")
            if still or not np.isfinite(left):
                break
            multipliers = self.problem.multipliers + self.problem.stiffness * self.last.residual
            self.problem = self.problem._replace(multipliers=multipliers)
        return still

    def least_scale(self) -> float:
        """Return the least scale of the stiffness: where G is weak, p needs more to be held."""
        key = jax.random.key(0)
        found = trace_estimate(self.model, self.start, key, num_samples=_SAMPLES, chunk=1)
        trace = float(found.value)
        return _LEAST / trace if trace > 0 else 0.0

    def restore(self) -> None:
        """Bring p back where it is not kept."""
        if self.last.change > self.keep:
            self.minimise(_excess, until=0.9 * self.keep)
            self.last = self.evaluate(_lagrangian, self.x)

    def minimise(self, function: Any, *, until: float = -1.0) -> None:
        """Take steps of L-BFGS-B, to where p has moved no more than `until`."""

        def value(x: np.ndarray) -> tuple[float, np.ndarray]:
            self.last = self.evaluate(function, x)
            return float(self.last.value), np.asarray(self.last.gradient, float)

        def stop(_: np.ndarray) -> None:
            if self.last.change <= until:
                raise StopIteration

        options = {"maxiter": self.steps, "maxcor": _MEMORY, "ftol": 0, "gtol": 0}
        self.x = minimize(
            value, self.x, method="L-BFGS-B", jac=True, bounds=Bounds(*self.bounds), callback=stop,
            options=options,
        ).x  # fmt: skip
        self.last = self.evaluate(function, self.x)

    def evaluate(self, function: Any, x: np.ndarray) -> _Values:
        """Return a function with its gradient at x."""
        self.num_gradients += 1
        return function(self.model, self.point(x), self.problem)

    def point(self, x: np.ndarray | None = None) -> Array:
        """Return a point in the shape and dtype of the start."""
        x = self.x if x is None else x
        return jnp.asarray(x.reshape(self.start.shape), self.start.dtype)

    def optimality(self) -> float:
        """Return the length of the projected gradient of the augmented Lagrangian."""
        ahead = np.clip(self.x - np.asarray(self.last.gradient, float), *self.bounds)
        return float(np.linalg.norm(ahead - self.x))


def _bounds(start: Array, box: Any, free: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return least and greatest values, flat; what is not free has one value."""
    sides = (-np.inf, np.inf) if box is None else (box.lower, box.upper)
    held = np.zeros(start.shape, bool) if free is None else ~np.asarray(as_mask(free, start))
    lower, upper = (np.where(held, start, side).astype(float).ravel() for side in sides)
    return lower, upper


@compiled
def _log_probabilities(model: Model, x: Array) -> Float[Array, " c"]:
    return jax.nn.log_softmax(logits_of(model, x))


@compiled
def _lagrangian(model: Model, x: Array, problem: _Problem) -> _Values:
    """Evaluate ½ ‖x − goal‖² and the terms that hold p."""

    def held(log_p: Array) -> Array:
        # Of unit length where p is large, and blind to changes of p far below `keep`.
        return 2 * jnp.sqrt(jnp.exp(log_p) + problem.keep)

    def value(x: Array) -> tuple[Array, Any]:
        now = _log_probabilities(model, x)
        residual = held(now) - held(problem.log_p)
        away = (x - problem.goal).ravel()
        terms = dot(problem.multipliers, residual)
        terms += 0.5 * problem.stiffness * dot(residual, residual)
        return 0.5 * dot(away, away) + terms, (residual, _change(now, problem.log_p))

    return _values(value, x)


@compiled
def _excess(model: Model, x: Array, problem: _Problem) -> _Values:
    """Evaluate by how much the probabilities have moved too far, squared."""

    def value(x: Array) -> tuple[Array, Any]:
        now = _log_probabilities(model, x)
        moved = jnp.abs(jnp.exp(now) - jnp.exp(problem.log_p))
        excess = jnp.maximum(moved / problem.keep - _WELL_KEPT, 0)
        return dot(excess, excess), (excess, _change(now, problem.log_p))

    return _values(value, x)


def _values(value: Any, x: Array) -> _Values:
    (total, (residual, change)), gradient = jax.value_and_grad(value, has_aux=True)(x)
    return _Values(total, gradient.ravel(), residual, change)


def _change(log_p: Array, other: Array) -> Float[Array, ""]:
    return jnp.max(jnp.abs(jnp.exp(log_p) - jnp.exp(other)))
