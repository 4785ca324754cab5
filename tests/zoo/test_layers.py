"""The fast convolution against the stock one: values and derivatives of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.tree_util import Partial

import foliax
from foliax import fisher
from foliax.zoo.layers import Conv, conv

CASES = [(1, 4, 0, 8), (3, 5, 1, 7), (8, 6, 0, 9), (8, 6, 1, 9)]  # in, out, padding, side


def stock(x, kernel, padding):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def arrays(num_in, num_out, side):
    keys = jax.random.split(jax.random.key(num_in + side), 2)
    x = jax.random.normal(keys[0], (2, side, side, num_in))
    return x, jax.random.normal(keys[1], (3, 3, num_in, num_out))


@pytest.mark.parametrize(("num_in", "num_out", "padding", "side"), CASES)
def test_values_and_two_reverse_derivatives(num_in, num_out, padding, side):
    arguments = arrays(num_in, num_out, side)

    def derivatives(function):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(function(x, kernel, padding)) ** 2)

        def second(x, kernel):
            return sum(jnp.sum(g**3) for g in jax.grad(loss, (0, 1))(x, kernel))

        def whole(x, kernel):
            return function(x, kernel, padding), jax.grad(second, (0, 1))(x, kernel)

        return jax.jit(whole)(*arguments)

    got, expected = derivatives(conv), derivatives(stock)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), got, expected)


@pytest.mark.parametrize("padding", [0, 1])
def test_the_layer_is_that_of_flax(padding):
    own = Conv(3, 5, (3, 3), padding=padding, rngs=nnx.Rngs(0))
    flax = nnx.Conv(3, 5, (3, 3), padding=padding, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (7, 7, 3))
    np.testing.assert_allclose(own(x), flax(x), rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(nnx.state(own)) == jax.tree.structure(nnx.state(flax))
    with pytest.raises(ValueError, match="padding must be from 0 to 2"):
        Conv(3, 5, (3, 3), padding=3, rngs=nnx.Rngs(0))


def networks(rngs_seed=0):
    kernel = jax.random.normal(jax.random.key(rngs_seed), (3, 3, 2, 4))
    readout = jax.random.normal(jax.random.key(rngs_seed + 1), (64, 3)) / 8

    def network(function):
        def apply(weights, x):
            hidden = jnp.tanh(function(x[None], weights[0], 0))
            return hidden.ravel() @ weights[1]

        return apply

    return network(conv), network(stock), (kernel, readout)


def test_the_geometry_sees_no_difference():
    own, flax, weights = networks()
    x = jax.random.normal(jax.random.key(5), (6, 6, 2))
    v = jax.random.normal(jax.random.key(6), x.shape)

    def seen(apply):
        def model(x):
            return apply(weights, x)

        slope = jax.grad(lambda z: jnp.sum(model(z) ** 2))
        hessian = jax.jit(jax.grad(lambda y: jnp.vdot(slope(y), v)))(x)
        brackets = foliax.involutivity(model, x)
        return (
            foliax.factor(model, x),
            foliax.matvec(model, x, v),
            fisher.matvec(Partial(apply, weights), x, Partial(apply, weights)).args,
            hessian,
            brackets.outside,
        )

    got, expected = seen(own), seen(flax)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9), got, expected)
