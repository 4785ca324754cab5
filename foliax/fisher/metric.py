"""Products with F, its expansion of KL, and its damped inverse."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, ArrayLike, Float, PyTree

from foliax._backend.rewrite import logits_of, precision_of
from foliax._core.checks import as_point, check_count, check_positive
from foliax._core.compile import compiled
from foliax._core.jacobian import logits_struct
from foliax._core.likelihood import Likelihood
from foliax._linalg.products import dot, norm
from foliax.fisher.trust_region import scaled, within
from foliax.likelihood import Categorical, logit_change

if TYPE_CHECKING:
    import optax


Apply = Callable[[Any, Array], Array]


class Solve(NamedTuple):
    """What a damped solve found.

    Attributes:
        value: v ≈ (F + damping)⁻¹ b, a pytree like b.
        residual: ‖(F + damping) v − b‖ / ‖b‖.
    """

    value: PyTree
    residual: Float[Array, ""]


class NaturalGradientState(NamedTuple):
    """Optimiser state of `natural_gradient`: the last direction, where the next solve starts."""

    direction: PyTree


@compiled
def matvec(
    apply: Apply,
    params: PyTree,
    x: ArrayLike,
    v: PyTree,
    *,
    batched: bool = False,
    likelihood: Likelihood = Categorical(),  # noqa: B008 (holds no state)
) -> PyTree:
    """Return F(x, w) v, or its mean over a batch of inputs.

    F v = J_wᵀ S (J_w v): one forward pass, one product with J_w, one with its transpose.

    Args:
        apply: (params, one input) → C logits.
        params: The weights w, a pytree of floating arrays.
        x: One input; with `batched`, inputs stacked along axis 0.
        v: A pytree like params.
        batched: Whether x has a leading batch axis, over which the mean of F is taken.
        likelihood: The output distribution.

    Returns:
        A pytree like params.

    Raises:
        ValueError: If x or the logits are not what they should be, or v is not like params.

    Source: Amari 1998, section 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from foliax import fisher
        >>> apply = lambda w, x: jnp.stack([w @ x, 0.0])
        >>> out = fisher.matvec(apply, jnp.zeros(2), jnp.array([1.0, 2.0]), jnp.ones(2))
        >>> [f"{f:.2f}" for f in out]
        ['0.75', '1.50']
    """
    _check_like(params, v, name="v")
    logits, pull = _batch_pullback(apply, params, _as_batch(x, batched), likelihood)
    return pull(_metric(likelihood, logits, _push(pull, logits, v)) / logits.shape[0])


@compiled
def kl(
    apply: Apply,
    params: PyTree,
    x: ArrayLike,
    delta: PyTree,
    *,
    likelihood: Likelihood = Categorical(),  # noqa: B008
) -> Float[Array, ""]:
    """Return KL(p(·|x, w + δ) ‖ p(·|x, w)) = ½ δᵀFδ + O(‖δ‖³), summed without cancellation.

    Args:
        apply: (params, one input) → C logits.
        params: The weights w.
        x: One input.
        delta: A pytree like params.
        likelihood: The output distribution.

    Returns:
        A scalar ≥ 0, in nats.

    Raises:
        ValueError: As `matvec`.
    """
    _check_like(params, delta, name="delta")
    x = as_point(x)
    logits_struct(apply, x, likelihood, weights=(params,))
    logits = logits_of(apply, params, x)
    moved = logits_of(apply, jax.tree.map(jnp.add, params, delta), x)
    return likelihood.kl(logits, logit_change(likelihood, logits, moved))


@compiled
def quadratic(
    apply: Apply,
    params: PyTree,
    x: ArrayLike,
    delta: PyTree,
    *,
    likelihood: Likelihood = Categorical(),  # noqa: B008
) -> Float[Array, ""]:
    """Return ½ δᵀ F(x, w) δ, the second-order term of `kl`.

    Args:
        apply: (params, one input) → C logits.
        params: The weights w.
        x: One input.
        delta: A pytree like params.
        likelihood: The output distribution.

    Returns:
        A scalar ≥ 0, in nats.

    Raises:
        ValueError: As `matvec`.
    """
    _check_like(params, delta, name="delta")
    logits, pull = _batch_pullback(apply, params, _as_batch(x, False), likelihood)
    weights, rows = likelihood.factor(logits[0])
    return jnp.sum((weights * dot(rows, _push(pull, logits, delta)[0])) ** 2) / 2


@compiled
def solve(
    apply: Apply,
    params: PyTree,
    xs: ArrayLike,
    b: PyTree,
    *,
    damping: float | Array,
    rtol: float = 1e-4,
    max_steps: int = 50,
    guess: PyTree | None = None,
    likelihood: Likelihood = Categorical(),  # noqa: B008
) -> Solve:
    """Solve (mean F over xs + damping) v = b by conjugate gradients.

    The network is linearised once; an iteration costs one product with J_w and its transpose.

    Args:
        apply: (params, one input) → C logits.
        params: The weights w.
        xs: Inputs stacked along axis 0.
        b: The right-hand side, a pytree like params.
        damping: Added to the diagonal, > 0.
        rtol: Residual, relative to ‖b‖, at which to stop.
        max_steps: Iterations at most; the last v is returned after them.
        guess: Where to start; None for zero.
        likelihood: The output distribution.

    Returns:
        `Solve(value, residual)`; look at the residual if `max_steps` was reached.

    Raises:
        ValueError: As `matvec`; or if damping is not > 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from foliax import fisher
        >>> apply = lambda w, x: jnp.stack([w @ x, 0.0])
        >>> out = fisher.solve(apply, jnp.zeros(1), jnp.ones((3, 1)), jnp.ones(1), damping=0.75)
        >>> f"{out.value[0]:.3f}"
        '1.000'
    """
    check_positive(damping, name="damping")
    check_positive(rtol, name="rtol", or_zero=True)
    check_count(max_steps, name="max_steps")
    _check_like(params, b, name="b")
    if guess is not None:
        _check_like(params, guess, name="guess")
    product, _ = _damped(apply, params, xs, damping, likelihood)
    value, _ = cg(product, b, x0=guess, tol=rtol, maxiter=max_steps)
    left = jax.tree.map(jnp.subtract, product(value), b)
    size = norm(ravel_pytree(b)[0])
    return Solve(value, norm(ravel_pytree(left)[0]) / jnp.where(size > 0, size, 1))


def natural_gradient(
    apply: Apply,
    damping: float | Array,
    *,
    max_kl: float | Array = float("inf"),
    rtol: float = 1e-3,
    max_steps: int = 20,
    likelihood: Likelihood = Categorical(),  # noqa: B008
) -> "optax.GradientTransformationExtraArgs":
    """Precondition gradients with the damped inverse Fisher matrix, as an optax transformation.

    Replaces g by (F + damping)⁻¹ g with F the mean over the batch that `update` is given, by
    conjugate gradients that start from the last direction. Where they end in a v with vᵀg ≤ 0,
    along which the loss does not fall, they start again from zero. Chain it with a learning rate:
    `optax.chain(natural_gradient(apply, 1e-2), optax.scale_by_learning_rate(0.5))`.

    Args:
        apply: (params, one input) → C logits.
        damping: Added to the diagonal, > 0.
        max_kl: The direction v is shortened to ½ vᵀ(F + damping)v ≤ max_kl, in nats, > 0, and
            where F does not hold as far as that, on until the mean KL over the batch from w to
            w − v is below 1.1 max_kl. The measurement costs a forward pass, a further one for
            each time that v is shortened.
        rtol: Relative residual of the solve.
        max_steps: Conjugate-gradient iterations at most, one F·v each.
        likelihood: The output distribution.

    Returns:
        A transformation whose `update(grads, state, params, batch=xs)` needs the inputs xs.

    Raises:
        ValueError: If damping or max_kl is not > 0, or `update` is called without params or batch.

    Source: Amari 1998, eq. (2).
    """
    import optax

    check_positive(damping, name="damping")
    check_positive(max_kl, name="max_kl", or_infinite=True)

    def init(params: PyTree) -> NaturalGradientState:
        return NaturalGradientState(jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree | None = None,
        *,
        batch: ArrayLike | None = None,
        **_: Any,
    ) -> tuple[PyTree, NaturalGradientState]:
        if params is None or batch is None:
            missing = "params" if params is None else "batch"
            raise ValueError(
                f"natural_gradient's update needs {missing}; "
                "call update(grads, state, params, batch=inputs)"
            )
        _check_like(params, updates, name="updates")
        product, half = _damped(apply, params, batch, damping, likelihood)
        solve_from = partial(cg, product, updates, tol=rtol, maxiter=max_steps)
        # At its best length the guess is no worse than zero: with ½ vᵀ(F + λ)v − vᵀg ≤ 0, which
        # conjugate gradients only lower, even a solve cut short ends in a descent, to rounding.
        energy = 2 * half(state.direction)
        best = _inner(state.direction, updates) / jnp.where(energy > 0, energy, 1)
        found = solve_from(x0=scaled(best, state.direction))[0]
        found = lax.cond(_inner(found, updates) > 0, lambda: found, lambda: solve_from()[0])
        size = half(found)
        scale = jnp.sqrt(jnp.minimum(1, max_kl / jnp.where(size > 0, size, 1)))
        xs = jnp.asarray(batch)
        shortened = within(apply, params, xs, scaled(scale, found), max_kl, likelihood)
        return shortened, NaturalGradientState(found)

    return optax.GradientTransformationExtraArgs(init, update)


def _damped(
    apply: Apply, params: PyTree, xs: ArrayLike, damping: float | Array, likelihood: Likelihood
) -> tuple[Callable[[PyTree], PyTree], Callable[[PyTree], Float[Array, ""]]]:
    """Return v ↦ (F + damping) v and v ↦ ½ vᵀ(F + damping)v, of one linearisation of the network.

    The second is a sum of squares: nothing cancels, and it is right of any v, solution or not.
    """
    logits, pull = _batch_pullback(apply, params, _as_batch(xs, True), likelihood)

    def product(v: PyTree) -> PyTree:
        out = pull(_metric(likelihood, logits, _push(pull, logits, v)) / logits.shape[0])
        return jax.tree.map(lambda f, u: f + jnp.asarray(damping, u.dtype) * u, out, v)

    def half(v: PyTree) -> Float[Array, ""]:
        def one(s: Array, u: Array) -> Array:
            weights, rows = likelihood.factor(s)
            return jnp.sum((weights * dot(rows, u)) ** 2)

        fisher = jnp.mean(jax.vmap(one)(logits, _push(pull, logits, v)))
        return (fisher + damping * _inner(v, v)) / 2

    return product, half


def _as_batch(x: ArrayLike, batched: bool) -> Float[Array, "b ..."]:
    x = as_point(x)
    if batched and x.ndim == 0:
        raise ValueError("x must have a leading batch axis where batched=True, got a scalar")
    return x if batched else x[None]


def _batch_pullback(
    apply: Apply, params: PyTree, xs: Float[Array, "b ..."], likelihood: Likelihood
) -> tuple[Float[Array, "b c"], Callable[[Float[Array, "b c"]], PyTree]]:
    """Return the logits of a batch, and the map from cotangents on them to the parameters."""
    logits_struct(apply, xs[0], likelihood, weights=(params,))
    logits, vjp = jax.vjp(lambda w: jax.vmap(lambda y: logits_of(apply, w, y))(xs), params)

    def pull(cotangents: Array) -> PyTree:
        with precision_of(apply):
            return vjp(cotangents.astype(logits.dtype))[0]

    return logits, pull


def _push(
    pull: Callable[[Array], PyTree], logits: Float[Array, "b c"], v: PyTree
) -> Float[Array, "b c"]:
    """Return J_w v as the transpose of `pull`: layers with a custom_vjp have no JVP."""
    _, transpose = jax.vjp(pull, jnp.zeros_like(logits))
    return transpose(v)[0]


def _metric(
    likelihood: Likelihood, logits: Float[Array, "b c"], change: Float[Array, "b c"]
) -> Float[Array, "b c"]:
    """Apply S = L Lᵀ of each example to its change of logits."""

    def one(s: Array, u: Array) -> Array:
        weights, rows = likelihood.factor(s)
        return dot(weights**2 * dot(rows, u), rows)

    return jax.vmap(one)(logits, change)


def _check_like(params: PyTree, v: PyTree, *, name: str) -> None:
    """Refuse a tangent whose structure, shapes or dtypes are not those of the parameters."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"params must hold floating arrays only, got dtype {jnp.result_type(leaf)} at "
                f"params{jax.tree_util.keystr(path)}; split other state off, e.g. with nnx.split"
            )
    if jax.tree.structure(params) != jax.tree.structure(v):
        raise ValueError(
            f"{name} must be a pytree like params, {jax.tree.structure(params)}, got "
            f"{jax.tree.structure(v)}"
        )
    shapes = jax.tree.map(jnp.shape, params), jax.tree.map(jnp.shape, v)
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name} must have the shapes of params, {shapes[0]}, got {shapes[1]}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(v):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"{name} must hold floating arrays only, got dtype {jnp.result_type(leaf)} at "
                f"{name}{jax.tree_util.keystr(path)}"
            )
    dtypes = [jax.tree.map(lambda leaf: jnp.result_type(leaf).name, t) for t in (params, v)]
    if dtypes[0] != dtypes[1]:
        raise ValueError(
            f"{name} must have the dtypes of params, {dtypes[0]}, got {dtypes[1]}; convert with "
            f"jax.tree.map(lambda w, u: u.astype(w.dtype), params, {name})"
        )


def _inner(a: PyTree, b: PyTree) -> Float[Array, ""]:
    return dot(ravel_pytree(a)[0], ravel_pytree(b)[0])
