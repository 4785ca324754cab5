"""Geodesics of a leaf of any constant rank, from the Levi-Civita connection of its image.

The image under u = 2 √p is a submanifold of R^C, and its geodesics are the curves whose
acceleration is normal to it. With M the Jacobian of u and q = du/dt the state (x, q) obeys

    x' = M⁺ q,  q' = (1 − M M⁺) ü(x', x'),  ü_i(v, v) = √p_i (s̈_i + ½ a_i² − the mean of s̈ + a²),

with a = d log p along v. At full rank only the part along u is left of q', and u is a great circle.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float

from foliax._core.jacobian import contrast_jacobian, pullback
from foliax._core.types import Model
from foliax._linalg import lapack
from foliax._linalg.products import dot, norm
from foliax._linalg.row_space import RowSpace
from foliax.flow.path import Code, Status, as_status
from foliax.leaf.image import along, centred, image, pushed
from foliax.leaf.lift import Geodesic, result, run
from foliax.leaf.sphere import separation
from foliax.likelihood import Categorical, square_root

_CATEGORICAL = Categorical()
_SPEED = 0.05  # relative change of speed at which the integration has failed
_SHOTS = 32  # steps of the search for a geodesic to a target
_MET = 1e-4  # |2 √p − 2 √q| at which it has reached the target


class Surface(eqx.Module):
    """The image of the input space in R^C, near a point.

    Attributes:
        model: The model.
        shape: The shape of x.
        dtype: Its dtype.
        speed: The speed that a geodesic keeps.
    """

    model: Any
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)
    speed: Array

    def at(self, x: Float[Array, " n"]) -> tuple[Array, Array, Array]:
        """Return p, a basis of D and the image of it, (C, m); differentiable in x."""
        shaped = x.astype(self.dtype).reshape(self.shape)
        logits, k = contrast_jacobian(self.model, shaped, _CATEGORICAL)
        basis = RowSpace.of(k).through(k).basis
        p = jax.nn.softmax(logits)
        slopes = dot(_CATEGORICAL.contrasts(logits).T, dot(k, basis.T))
        return p, basis, square_root(p)[:, None] * centred(p, slopes)

    def lift(self, x: Float[Array, " n"], q: Float[Array, " c"]) -> tuple[Array, Array]:
        """Return M⁺q, and the relative change of the speed |M M⁺q|."""
        _, basis, tangent = self.at(x)
        coefficients = dot(lapack.pinv(tangent), q)
        speed = norm(dot(tangent, coefficients))
        still = self.speed == 0
        change = jnp.where(still, speed, speed / jnp.where(still, 1, self.speed) - 1)
        return dot(coefficients, basis), change

    def field(self, x: Float[Array, " n"], q: Float[Array, " c"]) -> tuple[Array, Array]:
        """Return x' and q'."""
        p, basis, tangent = self.at(x)
        inverse = lapack.pinv(tangent)
        velocity = dot(dot(inverse, q), basis)
        shaped = x.astype(self.dtype).reshape(self.shape)

        def slope(y: Array) -> Array:
            return pushed(self.model, shaped, y, velocity[None], _CATEGORICAL)[1][:, 0]

        bent, a = along(slope, x, velocity), centred(p, slope(x))
        acceleration = square_root(p) * (centred(p, bent) - jnp.sum(p * a**2) + a**2 / 2)
        return velocity, acceleration - dot(tangent, dot(inverse, acceleration))


class _State(NamedTuple):
    x: Array
    q: Array


def _field(step: Any, state: _State, scene: tuple[Surface, int]) -> _State:
    del step
    surface, num_steps = scene
    velocity, acceleration = surface.field(state.x, state.q)
    return _State(velocity / num_steps, acceleration / num_steps)


def _is_lost(t: Any, y: _State, args: Any, **kwargs: Any) -> Array:
    del t, kwargs
    return ~(jnp.abs(args[0].lift(y.x, y.q)[1]) <= _SPEED)  # a NaN has failed too


def _solved(
    model: Model, x: Array, velocity: Float[Array, " n"], num_steps: int, solver: Any
) -> tuple[Surface, _State, Array]:
    """Integrate the equation of geodesics; x' is a rate per unit of t."""
    q = push(model, x, velocity)
    surface = Surface(model, x.shape, x.dtype, norm(q))
    start = _State(x.ravel().astype(q.dtype), q)
    return surface, *run(_field, solver, start, (surface, num_steps), num_steps, _is_lost)


def integrated(
    model: Model, x: Array, velocity: Float[Array, " n"], num_steps: int, solver: Any
) -> Geodesic:
    """Return the geodesic from x with this velocity in D."""
    surface, states, steps = _solved(model, x, velocity, num_steps, solver)
    change = jax.vmap(surface.lift)(*states)[1]
    good = jnp.abs(change) <= _SPEED
    # The step that failed is not part of it.
    last = jnp.maximum(jnp.sum(jnp.cumprod(good)) - 1, 0)
    row = jnp.minimum(jnp.arange(num_steps + 1), last)
    status = jnp.where(last < num_steps, Code.stalled, Code.completed)
    finite = jnp.all(jnp.isfinite(states.x[0])) & jnp.all(jnp.isfinite(states.q[0]))
    return result(
        x, states.x[row], jnp.arange(num_steps + 1, dtype=velocity.dtype) / num_steps, velocity,
        surface.speed, jnp.where(good, change, change[last])[row], jnp.minimum(steps, last),
        jnp.where(finite, status, Code.invalid),
    )  # fmt: skip


def shot(
    model: Model, x: Array, target: Float[Array, " c"], num_steps: int, solver: Any
) -> Geodesic:
    """Return the geodesic from x to where the probabilities are softmax(target)."""
    at = image(model, x, _CATEGORICAL)
    root = 2 * jnp.exp(jax.nn.log_softmax(target) / 2)

    def missed(z: Float[Array, " m"], args: Any) -> Float[Array, " c"]:
        del args
        _, states, _ = _solved(model, x, dot(z, at.frame), num_steps, solver)
        end = states.x[-1].astype(x.dtype).reshape(x.shape)
        logits, _ = pullback(model, end, _CATEGORICAL)  # has a JVP where layers have a custom_vjp
        return 2 * jnp.exp(jax.nn.log_softmax(logits) / 2) - root

    # The great circle to the target, as far as it is tangent to the image.
    d, _, angle = separation(at.logits, target)
    small = angle < 1e-6
    stretch = jnp.where(small, 1, angle / jnp.where(small, 1, jnp.sin(angle)))
    score = 2 * stretch * (jnp.exp(d / 2) - jnp.cos(angle))
    contrasts = dot(_CATEGORICAL.contrasts(at.logits), score)
    guess = dot(dot(at.isometry, contrasts), at.tangent)
    tolerance = float(jnp.finfo(guess.dtype).eps) ** 0.75
    found = optx.least_squares(
        missed,
        optx.LevenbergMarquardt(rtol=tolerance, atol=tolerance),
        guess,
        options={"jac": "fwd"},
        max_steps=_SHOTS,
        adjoint=optx.ImplicitAdjoint(),
        throw=False,
    ).value
    path = integrated(model, x, dot(found, at.frame), num_steps, solver)
    met = norm(missed(found, None)) <= _MET
    reached = jnp.where(met & (path.status == Status.completed), Code.arrived, Code.stalled)
    status = jnp.where(path.status == Status.invalid, Code.invalid, reached)
    return path._replace(status=as_status(status))


def push(model: Model, x: Float[Array, "..."], velocity: Float[Array, " n"]) -> Float[Array, " c"]:
    """Return q = M v: √p times the derivative of log p."""
    flat = x.ravel().astype(velocity.dtype)
    logits, slopes = pushed(model, x, flat, velocity[None], _CATEGORICAL)
    p = jax.nn.softmax(logits)
    return square_root(p) * centred(p, slopes[:, 0])
