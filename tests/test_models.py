"""The same weights in NNX, Linen, Equinox and a plain function give the same geometry."""

import functools
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.tree_util import Partial

import foliax
from tests.cases import layer, tanh_mlp
from tests.tolerance import assert_close

N, HIDDEN, C = 6, 8, 4
RNG = np.random.default_rng(0)
(INNER, SHIFT), (OUTER, BIAS) = layer(RNG, HIDDEN, N), layer(RNG, C, HIDDEN)
NORM = {  # scale, bias, mean and variance of a batch normalisation after the first layer
    "scale": 1 + 0.2 * RNG.normal(size=HIDDEN),
    "bias": 0.2 * RNG.normal(size=HIDDEN),
    "mean": 0.2 * RNG.normal(size=HIDDEN),
    "var": 0.5 + RNG.random(HIDDEN),
}
EPSILON = 1e-5
XS = jnp.asarray(RNG.normal(size=(3, N)))
TARGETS = jnp.asarray(RNG.normal(size=(3, N)))


class NNXNet(nnx.Module):
    def __init__(self, *, normed=False, rngs):
        make = partial(nnx.Linear, param_dtype=jnp.float64, rngs=rngs)
        self.inner, self.outer = make(N, HIDDEN), make(HIDDEN, C)
        self.norm = nnx.BatchNorm(HIDDEN, param_dtype=jnp.float64, rngs=rngs) if normed else None
        self.dropout = nnx.Dropout(0.5, rngs=rngs) if normed else None

    def __call__(self, x):
        h = self.inner(x)
        h = h if self.norm is None else self.norm(h)
        h = jnp.tanh(h)
        return self.outer(h if self.dropout is None else self.dropout(h))


class LinenNet(linen.Module):
    normed: bool = False

    @linen.compact
    def __call__(self, x):
        h = linen.Dense(HIDDEN, param_dtype=jnp.float64, name="inner")(x)
        if self.normed:
            h = linen.BatchNorm(
                use_running_average=True, epsilon=EPSILON, param_dtype=jnp.float64, name="norm"
            )(h)
        return linen.Dense(C, param_dtype=jnp.float64, name="outer")(jnp.tanh(h))


class EquinoxNet(eqx.Module):
    inner: eqx.nn.Linear
    outer: eqx.nn.Linear

    def __call__(self, x):
        return self.outer(jnp.tanh(self.inner(x)))


def make_nnx(*, normed=False):
    model = NNXNet(normed=normed, rngs=nnx.Rngs(0))
    for linear, kernel, bias in ((model.inner, INNER, SHIFT), (model.outer, OUTER, BIAS)):
        linear.kernel.set_value(jnp.asarray(kernel.T))
        linear.bias.set_value(jnp.asarray(bias))
    if normed:
        for name, value in NORM.items():
            getattr(model.norm, name).set_value(jnp.asarray(value))
        model.eval()
    return model


def make_linen(*, normed=False):
    params = {
        "inner": {"kernel": INNER.T, "bias": SHIFT},
        "outer": {"kernel": OUTER.T, "bias": BIAS},
    }
    variables = {"params": params}
    if normed:
        params["norm"] = {name: NORM[name] for name in ("scale", "bias")}
        variables["batch_stats"] = {"norm": {name: NORM[name] for name in ("mean", "var")}}
    return Partial(LinenNet(normed).apply, jax.tree.map(jnp.asarray, variables))


def make_equinox():
    keys = jax.random.split(jax.random.key(0))
    blank = EquinoxNet(eqx.nn.Linear(N, HIDDEN, key=keys[0]), eqx.nn.Linear(HIDDEN, C, key=keys[1]))
    leaves = (jnp.asarray(leaf) for leaf in (INNER, SHIFT, OUTER, BIAS))

    def where(m):
        return m.inner.weight, m.inner.bias, m.outer.weight, m.outer.bias

    return eqx.tree_at(where, blank, tuple(leaves))


def make_plain(*, normed=False):
    inner, shift = INNER, SHIFT
    if normed:  # folded into the layer before it
        slope = NORM["scale"] / np.sqrt(NORM["var"] + EPSILON)
        inner, shift = slope[:, None] * INNER, slope * (SHIFT - NORM["mean"]) + NORM["bias"]
    return Partial(tanh_mlp, jax.tree.map(jnp.asarray, ((inner, shift), (OUTER, BIAS))))


@jax.jit
def everything(model, xs, targets):
    """Measure a batch, with the model as an argument."""
    options = {"max_steps": 4, "save_every": 2, "box": foliax.Box(-9.0, 9.0)}

    def over(f, *rest):
        return jax.vmap(f, in_axes=(None, 0, *(0 for _ in rest)))(model, xs, *rest)

    return {
        "logits": jax.vmap(model)(xs),
        "factor": over(foliax.factor),
        "product": over(foliax.matvec, targets),
        "dimension": over(foliax.dimension),
        "walk": over(partial(foliax.walk, **options), targets).points,
    }


@pytest.fixture(scope="module")
def expected():
    """Return what the plain function gives, which is tested against formulas elsewhere."""
    return {normed: everything(make_plain(normed=normed), XS, TARGETS) for normed in (False, True)}


MODELS = {
    "nnx": make_nnx,
    "linen": make_linen,
    "equinox": make_equinox,
    "nnx, batch norm": partial(make_nnx, normed=True),
    "linen, batch norm": partial(make_linen, normed=True),
}


@functools.cache
def built(name):
    """Make a model once: two Linen modules are two programs, however equal."""
    return MODELS[name]()


@pytest.mark.parametrize("name", MODELS)
def test_same_weights_same_geometry(expected, name):
    got = everything(built(name), XS, TARGETS)
    assert got["factor"].shape == (3, C - 1, N)
    assert got["factor"].dtype == jnp.float64
    for quantity, value in expected["norm" in name].items():
        assert_close(got[quantity], value, rtol=1e-9)


def test_the_walks_do_move(expected):
    points = expected[False]["walk"]
    assert float(jnp.abs(points[:, -1] - points[:, 0]).max()) > 0.05


def test_batch_norm_matters(expected):
    assert not np.allclose(expected[True]["factor"], expected[False]["factor"], rtol=0.1)


def test_a_model_is_left_as_it_was():
    """Statistics and random keys of an NNX module are read, and not written."""
    model = make_nnx(normed=True)
    before = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model)))
    foliax.trace(model, XS[0])
    after = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model)))
    for a, b in zip(before, after, strict=True):
        assert bool(jnp.all(a == b))


def test_one_input_without_batch_or_jit():
    """An eager call on the module itself, a closure over it, and a lambda are all models."""
    model = make_nnx()
    value = foliax.trace(model, XS[0])
    assert_close(foliax.trace(lambda x: model(x), XS[0]), value)
    assert_close(foliax.trace(lambda x: model(x[None])[0], XS[0]), value)


def test_new_weights_do_not_compile():
    for name in ("nnx", "linen, batch norm", "equinox"):
        model = built(name)
        changed = jax.tree.map(lambda a: 1.1 * a, model)
        before = everything(model, XS, TARGETS)
        count = everything._cache_size()
        got = everything(changed, XS, TARGETS)
        assert everything._cache_size() == count, name
        assert not np.allclose(got["factor"], before["factor"])
