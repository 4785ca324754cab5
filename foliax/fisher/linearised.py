"""A network linearised in its weights, at one input or at a batch of them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, PyTree

from foliax._backend.rewrite import logits_of, precision_of
from foliax._core.checks import as_point
from foliax._core.jacobian import logits_struct
from foliax._core.likelihood import Likelihood
from foliax._core.types import Model
from foliax._linalg.products import dot
from foliax.fisher.weights import split_model


class Linearised(NamedTuple):
    """The network at w, and its Jacobian in w.

    Attributes:
        weights: w, a pytree.
        logits: (b, C), one row an input.
        pull: (b, C) cotangents ↦ J_wᵀ u, summed over the inputs, a pytree like the weights.
        likelihood: The output distribution.
    """

    weights: PyTree
    logits: Float[Array, "b c"]
    pull: Callable[[Float[Array, "b c"]], PyTree]
    likelihood: Likelihood

    def push(self, v: PyTree) -> Float[Array, "b c"]:
        """Return J_w v as the transpose of `pull`: layers with a custom_vjp have no JVP."""
        _, transpose = jax.vjp(self.pull, jnp.zeros_like(self.logits))
        return transpose(v)[0]

    def product(self, v: PyTree) -> PyTree:
        """Return F v, the mean over the inputs."""

        def one(s: Array, u: Array) -> Array:
            weights, rows = self.likelihood.factor(s)
            return dot(weights**2 * dot(rows, u), rows)

        return self.pull(jax.vmap(one)(self.logits, self.push(v)) / len(self.logits))

    def half(self, v: PyTree) -> Float[Array, ""]:
        """Return ½ vᵀFv: a sum of squares, in which nothing cancels."""

        def one(s: Array, u: Array) -> Array:
            weights, rows = self.likelihood.factor(s)
            return jnp.sum((weights * dot(rows, u)) ** 2)

        return jnp.mean(jax.vmap(one)(self.logits, self.push(v))) / 2


def linearise(model: Model, xs: Float[Array, "b ..."], likelihood: Likelihood) -> Linearised:
    """Return the network linearised in its weights at a batch of inputs."""
    logits_struct(model, xs[0], likelihood)
    weights, rebuild = split_model(model)
    logits, vjp = jax.vjp(lambda w: jax.vmap(lambda y: logits_of(rebuild(w), y))(xs), weights)

    def pull(cotangents: Array) -> PyTree:
        with precision_of(model):
            return vjp(cotangents.astype(logits.dtype))[0]

    return Linearised(weights, logits, pull, likelihood)


def as_batch(x: ArrayLike, batched: bool) -> Float[Array, "b ..."]:
    """Return inputs stacked along axis 0."""
    x = as_point(x)
    if batched and x.ndim == 0:
        raise ValueError("x must have a leading batch axis where batched=True, got a scalar")
    return x if batched else x[None]


def inner(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """Return Σ a b over all weights."""
    return dot(ravel_pytree(a)[0], ravel_pytree(b)[0])
