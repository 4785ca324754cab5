"""Slow operations of a model are replaced: which are, which are not, and the same derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.tree_util import Partial

import foliax
from foliax import with_options
from foliax._backend.fast import conv, window_max
from foliax._backend.rewrite import differentiable
from tests.cases import counted, random_like

SHAPE = (9, 9, 2)
X = jax.random.normal(jax.random.key(0), SHAPE)
READOUT = jax.random.normal(jax.random.key(1), (200, 4))


def kernel_of(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape) / 3


LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolved(x, *, kernel, layout=LAYOUT, strides=(1, 1), padding="VALID", **more):
    out = lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout, **more)
    return jnp.tanh(out)


def pooled(x, *, sides=(1, 2, 2, 1), strides=None, padding="VALID"):
    return lax.reduce_window(x, -jnp.inf, lax.max, sides, strides or sides, padding)


def head(h):
    return h.ravel() @ READOUT[: h.size]


class Stock(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(2, 6, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(6, 5, (3, 3), padding="VALID", rngs=rngs)
        self.dense = nnx.Linear(45, 4, rngs=rngs)

    def __call__(self, x):
        h = nnx.relu(self.conv1(x))
        h = nnx.max_pool(nnx.relu(self.conv2(h)), (2, 2), strides=(2, 2))
        return self.dense(h.ravel())


def first_channels(x):
    return jnp.moveaxis(x, 2, 0)[None]


# Models of which every slow operation is known.
KNOWN = {
    "flax": Stock(nnx.Rngs(0)),
    "one image without a batch": lambda x: head(convolved(x[None], kernel=kernel_of(3, 3, 2, 2))),
    "even kernel, same": lambda x: head(
        convolved(x[None], kernel=kernel_of(2, 4, 2, 1), padding="SAME")
    ),
    "many channels, uneven padding": lambda x: head(
        convolved(
            jnp.concatenate([x] * 3, -1)[None],
            kernel=kernel_of(5, 3, 6, 2),
            padding=[(0, 2), (1, 0)],
        )
    ),
    "precise": lambda x: head(
        convolved(x[None], kernel=kernel_of(3, 3, 2, 2), precision=lax.Precision.HIGHEST)
    ),
    "channels first": lambda x: head(
        convolved(first_channels(x), kernel=kernel_of(2, 2, 3, 3), layout=("NCHW", "OIHW", "NCHW"))
    ),
    "channels first pool": lambda x: head(pooled(first_channels(x), sides=(1, 1, 2, 3))),
    "in a jit": jax.jit(lambda x: head(pooled(convolved(x[None], kernel=kernel_of(3, 3, 2, 5))))),
}
# Models that run as they are.
UNKNOWN = {
    "dense": lambda x: jnp.tanh(x.ravel()[:200] @ READOUT[:162]),
    "strided": lambda x: head(convolved(x[None], kernel=kernel_of(3, 3, 2, 3), strides=(2, 2))),
    "dilated": lambda x: head(
        convolved(x[None], kernel=kernel_of(3, 3, 2, 3), rhs_dilation=(2, 2))
    ),
    "grouped": lambda x: head(
        convolved(x[None], kernel=kernel_of(3, 3, 1, 2), feature_group_count=2)
    ),
    "one dimension": lambda x: head(
        convolved(
            x[0].T[None], kernel=kernel_of(2, 2, 3), layout=("NCW", "OIW", "NCW"), strides=(1,)
        )
    ),
    "overlapping pool": lambda x: head(pooled(x[None], sides=(1, 3, 3, 1), strides=(1, 2, 2, 1))),
    "padded pool": lambda x: head(pooled(x[None], padding="SAME")),
    "pool over one axis": lambda x: head(pooled(x[None], sides=(1, 2, 1, 1))),
}


@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
def test_factor_and_values_are_those_of_the_stock_model(name):
    model = (KNOWN | UNKNOWN)[name]
    fast, stock = (with_options(model, operations=way) for way in ("fast", "stock"))
    np.testing.assert_allclose(
        differentiable(fast, X)(X), model(X), rtol=1e-6 if name == "flax" else 1e-12, atol=1e-7
    )
    got, expected = (jax.jit(partial(foliax.factor, way))(X) for way in (fast, stock))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KNOWN)
def test_known_operations_are_replaced(name):
    model = KNOWN[name]
    jaxpr = str(jax.make_jaxpr(differentiable(with_options(model, operations="fast"), X))(X))
    assert "name=_conv" in jaxpr or "name=window_max" in jaxpr
    assert "reduce_window_max" not in jaxpr


@pytest.mark.parametrize("name", UNKNOWN)
def test_the_rest_runs_as_it_is(name):
    model = UNKNOWN[name]
    fast = str(jax.make_jaxpr(differentiable(with_options(model, operations="fast"), X))(X))
    with jax.default_matmul_precision("highest"):
        plain = str(jax.make_jaxpr(model)(X))
    assert fast == plain


def test_the_choice_is_made_for_the_caller(monkeypatch):
    model = KNOWN["flax"]

    def pools(model):
        return "reduce_window_max" in str(jax.make_jaxpr(differentiable(model, X))(X))

    assert not pools(model)
    assert not pools(with_options(model))
    assert pools(with_options(model, operations="stock"))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert pools(model)
    assert not pools(with_options(model, operations="fast"))


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="operations must be one of 'auto', 'fast', 'stock'"):
        with_options(KNOWN["flax"], operations="quick")


def test_derivatives_of_every_kind():
    """Second derivatives, products and derivatives in the weights, through the replaced pool."""
    model = Stock(nnx.Rngs(0))
    graph, weights = nnx.split(model)
    v = random_like(X, 3)

    def scalars(weights, x, way):
        model = with_options(nnx.merge(graph, weights), operations=way)
        return foliax.trace(model, x) + foliax.quadratic(model, x, v)

    fast, stock = (
        jax.jit(jax.grad(partial(scalars, way=way), argnums=(0, 1))) for way in ("fast", "stock")
    )
    for got, expected in zip(
        jax.tree.leaves(fast(weights, X)), jax.tree.leaves(stock(weights, X)), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    got, expected = (
        foliax.matvec(with_options(model, operations=way), X, v) for way in ("fast", "stock")
    )
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_ties_and_nan_are_those_of_the_stock_pool():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(-1.0)
    stock = jax.grad(lambda x: pooled(x).sum())
    rewritten = differentiable(with_options(lambda x: pooled(x).ravel(), operations="fast"), x)
    own = jax.grad(lambda x: rewritten(x).sum())
    np.testing.assert_array_equal(own(x), stock(x))
    windows = jnp.array([[0.0, jnp.nan], [1.0, 2.0]])
    assert bool(jnp.isnan(window_max(windows, (0, 1))))


def test_a_custom_derivative_and_a_loop_survive():
    @jax.custom_vjp
    def doubled(x):
        return x

    doubled.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))

    def model(x):
        h = doubled(pooled(convolved(x[None], kernel=kernel_of(3, 3, 2, 5))))
        return lax.scan(lambda h, _: (jnp.tanh(h), None), head(h), length=2)[0]

    plain, fast = (
        foliax.factor(with_options(model, operations=way), X) for way in ("stock", "fast")
    )
    np.testing.assert_allclose(fast, plain, rtol=1e-5, atol=1e-7)


def test_transformations_meet_the_rewritten_model():
    """Under vmap and jit, with the weights an argument, it is traced once."""
    network, traces = counted(lambda weights, x: head(pooled(convolved(x[None], kernel=weights))))
    traced = jax.jit(jax.vmap(foliax.trace, (None, 0)))
    xs = jnp.stack([X, X + 0.1])
    first = traced(Partial(network, kernel_of(3, 3, 2, 5)), xs)
    count = len(traces)
    second = traced(Partial(network, 2 * kernel_of(3, 3, 2, 5)), xs)
    assert len(traces) == count
    assert not np.allclose(first, second)


def test_the_fast_convolution_takes_uneven_padding():
    x, kernel = X[None], kernel_of(3, 2, 2, 7)
    padding = ((2, 0), (0, 1))
    stock = partial(
        lax.conv_general_dilated, window_strides=(1, 1), padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip

    def gradient(function):
        return jax.grad(lambda x, k: jnp.sum(function(x, k) ** 2), (0, 1))(x, kernel)

    got, expected = gradient(lambda x, k: conv(x, k, padding)), gradient(stock)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), got, expected)
