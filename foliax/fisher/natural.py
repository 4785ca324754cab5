"""The damped inverse of F, and the natural gradient that it makes."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, ArrayLike, Float, PyTree

from foliax._core.checks import check_count, check_positive
from foliax._core.compile import compiled
from foliax._core.documented import documented
from foliax._core.likelihood import Likelihood
from foliax._core.types import Model
from foliax._linalg.products import norm
from foliax.fisher.linearised import Linearised, as_batch, inner, linearise
from foliax.fisher.trust_region import scaled, within
from foliax.fisher.weights import as_tangent, like, split, split_model
from foliax.likelihood import Categorical

if TYPE_CHECKING:
    import optax


class Solve(NamedTuple):
    """What a damped solve found.

    Attributes:
        value: v ≈ (F + damping)⁻¹ b, a pytree like the weights.
        residual: ‖(F + damping) v − b‖ / ‖b‖.
    """

    value: PyTree
    residual: Float[Array, ""]


class NaturalGradientState(NamedTuple):
    """Optimiser state of `natural_gradient`: the last direction, where the next solve starts."""

    direction: PyTree


@compiled
def solve(
    model: Model, xs: ArrayLike, b: PyTree, *, damping: float | Array, rtol: float = 1e-4,
    max_steps: int = 50, guess: PyTree | None = None, likelihood: Likelihood = Categorical(),
) -> Solve:  # fmt: skip
    """Solve (mean F over xs + damping) v = b by conjugate gradients.

    The network is linearised once; an iteration costs one product with J_w and its transpose.

    Args:
        xs: Inputs stacked along axis 0.
        b: The right-hand side, a pytree like the weights.
        damping: Added to the diagonal, > 0.
        rtol: Residual, relative to ‖b‖, at which to stop.
        max_steps: Iterations at most; the last v is returned after them.
        guess: Where to start, a pytree like the weights; None for zero.

    Returns:
        `Solve(value, residual)`; look at the residual if `max_steps` was reached.

    Raises:
        ValueError: As `matvec`; or if damping is not > 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.tree_util import Partial
        >>> from foliax import fisher
        >>> model = Partial(lambda w, x: jnp.stack([w @ x, 0.0]), jnp.zeros(1))
        >>> b = jax.tree.map(jnp.ones_like, model)
        >>> out = fisher.solve(model, jnp.ones((3, 1)), b, damping=0.75)
        >>> f"{out.value.args[0][0]:.3f}"
        '1.000'
    """
    check_positive(damping, name="damping")
    check_positive(rtol, name="rtol", or_zero=True)
    check_count(max_steps, name="max_steps")
    network = linearise(model, as_batch(xs, True), likelihood)
    b = as_tangent(b, network.weights, name="b")
    if guess is not None:
        guess = as_tangent(guess, network.weights, name="guess")
    product = _damped(network, damping)
    value, _ = cg(product, b, x0=guess, tol=rtol, maxiter=max_steps)
    left = jax.tree.map(jnp.subtract, product(value), b)
    size = norm(ravel_pytree(b)[0])
    return Solve(value, norm(ravel_pytree(left)[0]) / jnp.where(size > 0, size, 1))


@documented
def natural_gradient(
    model: Model, damping: float | Array, *, max_kl: float | Array = float("inf"),
    rtol: float = 1e-3, max_steps: int = 20, likelihood: Likelihood = Categorical(),
) -> "optax.GradientTransformationExtraArgs":  # fmt: skip
    """Precondition gradients with the damped inverse Fisher matrix, as an optax transformation.

    Replaces g by (F + damping)⁻¹ g with F the mean over the batch that `update` is given, by
    conjugate gradients that start from the last direction. Where they end in a v with vᵀg ≤ 0,
    along which the loss does not fall, they start again from zero. Chain it with a learning rate:
    `optax.chain(natural_gradient(model, 1e-2), optax.scale_by_learning_rate(0.5))`.

    `update` takes the weights from its params: of an Equinox module
    `eqx.filter(model, eqx.is_inexact_array)`, of `jax.tree_util.Partial(apply, params)` itself, of
    an NNX module its `nnx.Param` state, as `nnx.Optimizer(model, …, wrt=nnx.Param)` does in
    `optimizer.update(model, grads, batch=xs)`. All else is that of `model` as it is given here: put
    it in evaluation mode, and where statistics change in training make the transformation anew,
    which costs nothing and keeps the state.

    Args:
        model: Callable pytree from one input to C logits. Its own weights are not used.
        damping: Added to the diagonal, > 0.
        max_kl: The direction v is shortened to ½ vᵀ(F + damping)v ≤ max_kl, in nats, > 0, and
            where F does not hold as far as that, on until the mean KL over the batch from w to
            w − v is below 1.1 max_kl. The measurement costs a forward pass, a further one for
            each time that v is shortened.
        rtol: Relative residual of the solve.
        max_steps: Conjugate-gradient iterations at most, one F·v each.

    Returns:
        A transformation whose `update(grads, state, params, batch=xs)` needs the inputs xs.

    Raises:
        ValueError: If model holds no weights, damping or max_kl is not > 0, or `update` is called
            without params or batch.

    Source: Amari 1998, eq. (2).

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jax.tree_util import Partial
        >>> from foliax import fisher
        >>> model = Partial(lambda w, x: jnp.stack([w @ x, 0.0]), jnp.zeros(1))
        >>> xs, gradient = jnp.ones((3, 1)), jax.tree.map(jnp.ones_like, model)
        >>> rule = optax.chain(fisher.natural_gradient(model, 0.75), optax.scale(-0.1))
        >>> updates, state = rule.update(gradient, rule.init(model), model, batch=xs)
        >>> f"{optax.apply_updates(model, updates).args[0][0]:.3f}"
        '-0.100'
    """
    import optax

    check_positive(damping, name="damping")
    check_positive(max_kl, name="max_kl", or_infinite=True)
    _, rebuild = split_model(model)

    def init(params: PyTree) -> NaturalGradientState:
        return NaturalGradientState(jax.tree.map(jnp.zeros_like, split(params)[0]))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None,
        *, batch: ArrayLike | None = None, **_: Any,
    ) -> tuple[PyTree, NaturalGradientState]:  # fmt: skip
        if params is None or batch is None:
            missing = "params" if params is None else "batch"
            raise ValueError(
                f"natural_gradient's update needs {missing}; "
                "call update(grads, state, params, batch=inputs)"
            )
        xs = as_batch(batch, True)
        weights = split(params)[0]
        network = linearise(rebuild(weights), xs, likelihood)
        gradient = as_tangent(updates, network.weights, name="updates")
        guess = as_tangent(state.direction, network.weights, name="state.direction")
        product = _damped(network, damping)

        def half(v: PyTree) -> Float[Array, ""]:
            return network.half(v) + damping * inner(v, v) / 2

        solve_from = partial(cg, product, gradient, tol=rtol, maxiter=max_steps)
        # At its best length the guess is no worse than zero: with ½ vᵀ(F + λ)v − vᵀg ≤ 0, which
        # conjugate gradients only lower, even a solve cut short ends in a descent, to rounding.
        energy = 2 * half(guess)
        best = inner(guess, gradient) / jnp.where(energy > 0, energy, 1)
        found = solve_from(x0=scaled(best, guess))[0]
        found = lax.cond(inner(found, gradient) > 0, lambda: found, lambda: solve_from()[0])
        size = half(found)
        scale = jnp.sqrt(jnp.minimum(1, max_kl / jnp.where(size > 0, size, 1)))
        shortened = within(rebuild, weights, xs, scaled(scale, found), max_kl, likelihood)
        return like(updates, shortened), NaturalGradientState(like(state.direction, found))

    return optax.GradientTransformationExtraArgs(init, update)


def _damped(network: Linearised, damping: float | Array) -> Callable[[PyTree], PyTree]:
    """Return v ↦ (F + damping) v."""

    def product(v: PyTree) -> PyTree:
        return jax.tree.map(
            lambda f, u: f + jnp.asarray(damping, u.dtype) * u, network.product(v), v
        )

    return product
