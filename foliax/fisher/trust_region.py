"""How far a step of the weights may go: until the outputs have changed by so many nats."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from foliax._backend.rewrite import logits_of
from foliax._core.likelihood import Likelihood
from foliax._core.types import Model

_SHORTENINGS = 30  # each to nine tenths at most
_SLACK = 1.1  # what the third order adds to half the squared length is no reason to go on


def within(
    rebuild: Callable[[PyTree], Model], weights: PyTree, xs: Float[Array, "b ..."], v: PyTree,
    max_kl: float | Array, likelihood: Likelihood,
) -> PyTree:  # fmt: skip
    """Shorten v until the mean KL over the batch from w to w − v is at most 1.1 max_kl.

    Half the squared Fisher length is the KL of a short step alone: a saturated output is nearly
    flat at w and steep at the end of a long one.
    """

    def logits_at(w: PyTree) -> Float[Array, "b c"]:
        return jax.vmap(lambda x: logits_of(rebuild(w), x))(xs)

    logits = logits_at(weights)

    def measured(scale: Array) -> Array:
        change = logits_at(jax.tree.map(jnp.subtract, weights, scaled(scale, v))) - logits
        return jnp.mean(jax.vmap(likelihood.kl)(logits, change))

    def too_far(carry: tuple[Array, Array, Array]) -> Array:
        _, size, count = carry
        return ~(size <= _SLACK * max_kl) & (max_kl < jnp.inf) & (count < _SHORTENINGS)

    def shorten(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        scale, size, count = carry
        factor = jnp.where(jnp.isfinite(size), jnp.sqrt(max_kl / size), 0)
        scale = scale * jnp.clip(factor, 0.1, 0.9).astype(scale.dtype)
        return scale, measured(scale), count + 1

    one = jnp.ones((), ravel_pytree(v)[0].dtype)
    start = one, measured(one), jnp.zeros((), int)
    return scaled(lax.while_loop(too_far, shorten, start)[0], v)


def scaled(scale: Float[Array, ""], v: PyTree) -> PyTree:
    """Multiply every leaf, each in its own dtype."""
    return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), v)
