"""The same network in each library, adapted: its logits, its Jacobian, and what is refused."""

import subprocess
import sys
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.tree_util import Partial

import foliax
from foliax import fisher
from tests.cases import layer
from tests.tolerance import assert_close

SHAPE, HIDDEN, C = (6, 5, 2), 8, 4
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, 2, 3)) / 3
OUTER, BIAS = layer(RNG, C, 2 * 2 * 3)
NORM = {"scale": 1 + 0.2 * RNG.normal(size=3), "bias": 0.2 * RNG.normal(size=3),
        "mean": 0.2 * RNG.normal(size=3), "var": 0.5 + RNG.random(3)}  # fmt: skip
X = jnp.asarray(RNG.normal(size=SHAPE))


def network(weights, x):
    """A convolution, normalisation, tanh, mean over windows, a dense layer."""
    kernel, outer = weights
    layout = ("NHWC", "HWIO", "NHWC")
    h = jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "VALID",
                                     dimension_numbers=layout)[0]  # fmt: skip
    h = (h - NORM["mean"]) / np.sqrt(NORM["var"] + 1e-5) * NORM["scale"] + NORM["bias"]
    h = jnp.tanh(h)[:, :2].reshape(2, 2, 2, 3).mean(1)  # (4, 3, 3) without its last column
    return outer @ h.ravel() + BIAS


reference = Partial(network, (jnp.asarray(KERNEL), jnp.asarray(OUTER)))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        make = {"param_dtype": jnp.float64, "rngs": rngs}
        self.conv = nnx.Conv(2, 3, (3, 3), padding="VALID", use_bias=False, **make)
        self.norm = nnx.BatchNorm(3, **make)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.outer = nnx.Linear(12, C, **make)

    def __call__(self, x):  # of a batch
        h = jnp.tanh(self.norm(self.conv(x)))[:, :, :2]
        h = h.reshape(len(x), 2, 2, 2, 3).mean(2)
        return self.outer(self.dropout(h.reshape(len(x), -1)))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x, train=True):
        make = {"param_dtype": jnp.float64}
        h = linen.Conv(3, (3, 3), padding="VALID", use_bias=False, name="conv", **make)(x)
        h = linen.BatchNorm(use_running_average=not train, name="norm", **make)(h)
        h = jnp.tanh(h)[:, :, :2].reshape(len(x), 2, 2, 2, 3).mean(2).reshape(len(x), -1)
        h = linen.Dropout(0.5, deterministic=not train)(h)
        return {"features": h, "logits": linen.Dense(C, name="outer", **make)(h)}


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    outer: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(jax.random.key(0))
        self.conv = eqx.nn.Conv2d(2, 3, 3, use_bias=False, key=keys[0])
        self.norm = eqx.nn.BatchNorm(3, "batch", mode="ema", dtype=jnp.float64)
        self.dropout = eqx.nn.Dropout()
        self.outer = eqx.nn.Linear(12, C, key=keys[1])

    def __call__(self, x, state, *, key=None):  # channels first
        h, state = self.norm(self.conv(x), state)
        h = jnp.moveaxis(jnp.tanh(h), 0, -1)[:, :2].reshape(2, 2, 2, 3).mean(1)
        return self.outer(self.dropout(h.ravel(), key=key)), state


def nnx_net():
    model = NNXNet(nnx.Rngs(0))
    model.conv.kernel.set_value(jnp.asarray(KERNEL))
    for name, value in NORM.items():
        getattr(model.norm, name).set_value(jnp.asarray(value))
    model.outer.kernel.set_value(jnp.asarray(OUTER.T))
    model.outer.bias.set_value(jnp.asarray(BIAS))
    model.eval()
    return model


def linen_variables():
    return jax.tree.map(jnp.asarray, {
        "params": {"conv": {"kernel": KERNEL}, "outer": {"kernel": OUTER.T, "bias": BIAS},
                   "norm": {name: NORM[name] for name in ("scale", "bias")}},
        "batch_stats": {"norm": {name: NORM[name] for name in ("mean", "var")}},
    })  # fmt: skip


def equinox_net():
    model, state = eqx.nn.make_with_state(EquinoxNet)()

    def where(m):
        return m.conv.weight, m.norm.weight, m.norm.bias, m.outer.weight, m.outer.bias

    values = KERNEL.transpose(3, 2, 0, 1), NORM["scale"], NORM["bias"], OUTER, BIAS
    model = eqx.tree_at(where, model, tuple(map(jnp.asarray, values)))
    statistics = jnp.asarray(NORM["mean"]), jnp.asarray(NORM["var"])
    state = state.set(model.norm.ema_state_index, statistics)
    return model, state.set(model.norm.ema_first_time_index, jnp.array(False))


def haiku_net():
    hk = pytest.importorskip("haiku")

    def convolutional(x, is_training):
        h = hk.Conv2D(3, 3, padding="VALID", with_bias=False, name="conv")(x)
        h = hk.BatchNorm(True, True, 0.9, name="norm")(h, is_training)
        h = jnp.tanh(h)[:, :, :2].reshape(len(x), 2, 2, 2, 3).mean(2)
        return hk.Linear(C, name="outer")(h.reshape(len(x), -1))

    net = hk.transform_with_state(convolutional)
    params, state = net.init(jax.random.key(0), X[None], is_training=True)
    wide = (1, 1, 1, 3)
    params = {"conv": {"w": KERNEL}, "outer": {"w": OUTER.T, "b": BIAS}, "norm": {
        "scale": NORM["scale"].reshape(wide), "offset": NORM["bias"].reshape(wide)}}  # fmt: skip
    for name, key in (("mean", "mean"), ("var", "var")):
        part = dict(state[f"norm/~/{name}_ema"])
        part["average"] = jnp.asarray(NORM[key]).reshape(part["average"].shape)
        state = {**state, f"norm/~/{name}_ema": part}
    return net, jax.tree.map(jnp.asarray, params), state


def keras_net():
    keras = pytest.importorskip("keras")
    if keras.config.backend() != "jax":
        pytest.skip("Keras is set to another backend")
    given = keras.Input(SHAPE)
    h = keras.layers.Conv2D(3, 3, use_bias=False)(given)
    h = keras.layers.BatchNormalization(epsilon=1e-5)(h)
    h = keras.ops.tanh(h)[:, :, :2]
    h = keras.layers.AveragePooling2D((2, 1))(h)
    h = keras.layers.Dropout(0.5)(keras.layers.Flatten()(h))
    model = keras.Model(given, keras.layers.Dense(C)(h))
    names = ("scale", "bias", "mean", "var")
    model.set_weights([KERNEL, *(NORM[name] for name in names), OUTER.T, BIAS])
    return model


def adapted(name):
    match name:
        case "nnx":
            return foliax.adapt(nnx_net())
        case "linen":
            return foliax.adapt(LinenNet(), linen_variables())
        case "a bound Linen module":
            return foliax.adapt(LinenNet().bind(linen_variables()))
        case "equinox":
            return foliax.adapt(*equinox_net(), channels="first")
        case "haiku":
            net, params, state = haiku_net()
            return foliax.adapt(net.apply, params, state)
        case "keras":
            return foliax.adapt(keras_net())
        case "a function":
            return foliax.adapt(network, *reference.args)
    return foliax.adapt(reference)


NAMES = ("nnx", "linen", "a bound Linen module", "equinox", "haiku", "keras", "a function",
         "a function without weights")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_jacobian_are_those_of_the_network(name):
    model = adapted(name)
    single = name == "keras"  # whose dtype is float32
    rtol = 1e-5 if single else 1e-10
    x = X.astype(jnp.float32) if single else X
    assert_close(model(x), reference(X), rtol=rtol)
    assert_close(jax.jit(jax.jacrev(model))(x), jax.jacrev(reference)(X), rtol=10 * rtol)
    assert_close(foliax.factor(model, x), foliax.factor(reference, X), rtol=10 * rtol)


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_arguments_of_the_program(name):
    model = adapted(name)
    count = 0

    @eqx.filter_jit
    def traces(model, xs):
        nonlocal count
        count += 1
        return jax.vmap(foliax.trace, in_axes=(None, 0))(model, xs)

    xs = jnp.stack([X, X / 2]).astype(model(X).dtype)
    before = traces(model, xs)
    halved = jax.tree.map(
        lambda w: w / 2 if eqx.is_inexact_array(w) else w, model, is_leaf=eqx.is_array
    )
    after = traces(halved, xs)
    assert count == 1
    if jax.tree.leaves(model) and "function" not in name:
        assert float(jnp.abs(after / before - 1).min()) > 0.1
        assert all(map(eqx.is_array, jax.tree.leaves(model)))


@pytest.mark.parametrize("name", ["nnx", "linen", "equinox", "haiku", "keras"])
def test_statistics_are_no_weights(name):
    weights = KERNEL.size + 2 * 3 + OUTER.size + BIAS.size
    factor = fisher.factor(adapted(name), X.astype(jnp.float32) if name == "keras" else X)
    assert sum(leaf.size for leaf in jax.tree.leaves(factor)) == (C - 1) * weights


# --- what goes in and comes out ------------------------------------------------------------------

W = jnp.asarray(RNG.normal(size=(3, C)))
V = jnp.asarray(RNG.normal(size=3))


def dense(w, x):
    return x @ w


@pytest.mark.parametrize(("options", "function"), [
    ({}, dense),
    ({"batched": False}, lambda w, x: dense(w, x)),
    ({"batched": True}, lambda w, x: dense(w, x)),
    ({}, lambda w, xs: jnp.einsum("bi,ij->bj", xs, w)),
    ({}, lambda w, x: {"loss": 0.0, "logits": dense(w, x)}),
    ({"logits": "scores"}, lambda w, x: {"scores": dense(w, x)}),
    ({"logits": 1}, lambda w, x: (x, dense(w, x))),
    ({"logits": lambda out: out[0][1]}, lambda w, x: [[x, dense(w, x)]]),
    ({"options": {"scale": 2.0}}, lambda w, x, scale: dense(w, x) * scale / 2),
    ({}, lambda w, x, train=True, deterministic=False: dense(w, x) if deterministic and not train
     else 0 * x),
])  # fmt: skip
def test_forms_of_input_and_output(options, function):
    assert_close(foliax.adapt(function, W, **options)(V), V @ W)


def test_probabilities_and_single_outputs_become_logits():
    p = jax.nn.softmax(V @ W)
    model = foliax.adapt(lambda w, x: jax.nn.softmax(dense(w, x)), W, output="probabilities")
    assert_close(model(V), jnp.log(p))
    assert_close(foliax.matrix(model, V), foliax.matrix(lambda x: x @ W, V), rtol=1e-9)
    z = V @ W[:, 0]
    for function in (lambda w, x: dense(w, x)[..., 0], lambda w, x: dense(w, x)[..., :1]):
        assert_close(foliax.adapt(function, W, output="logit")(V), jnp.stack([0 * z, z]))
    yes = foliax.adapt(lambda w, x: jax.nn.sigmoid(dense(w, x)[..., :1]), W, output="probabilities")
    assert_close(jax.nn.softmax(yes(V)), jnp.stack([1 - jax.nn.sigmoid(z), jax.nn.sigmoid(z)]))
    assert np.isfinite(foliax.adapt(lambda x: x, output="probabilities")(jnp.eye(2)[0])).all()


@pytest.mark.parametrize("make", [
    lambda key: foliax.adapt(nnx.Sequential(
        nnx.Linear(3, C, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))), key=key),
    lambda key: foliax.adapt(eqx.nn.Sequential(
        [eqx.nn.Linear(3, C, key=jax.random.key(0)), eqx.nn.Dropout()]), key=key),
], ids=["nnx", "equinox"])  # fmt: skip
def test_a_key_keeps_the_masks_of_dropout(make):
    one, again, other = (make(jax.random.key(seed)) for seed in (3, 3, 5))
    outs = [np.asarray(model(V.astype(jnp.float32))) for model in (one, one, again, other)]
    np.testing.assert_array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(outs[0], outs[2])
    assert any((np.asarray(make(jax.random.key(seed))(V)) == 0).any() for seed in range(4))
    masks = {tuple(np.asarray(make(jax.random.key(seed))(V)) == 0) for seed in range(6)}
    assert len(masks) > 1


# --- hidden layers -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nnx", "equinox"])
def test_a_hidden_layer_is_an_input(name):
    if name == "nnx":
        model = foliax.adapt(nnx_net(), at="conv", given=X)
        hidden = jax.vmap(lambda c: c, -1, -1)(model.hidden)
    else:
        model = foliax.adapt(*equinox_net(), channels="first", at="conv", given=X)
        hidden = jnp.moveaxis(model.hidden, 0, -1)

    def rest(h):
        h = (h - NORM["mean"]) / np.sqrt(NORM["var"] + 1e-5) * NORM["scale"] + NORM["bias"]
        return OUTER @ jnp.tanh(h)[:, :2].reshape(2, 2, 2, 3).mean(1).ravel() + BIAS

    assert hidden.shape == (4, 3, 3)
    assert_close(model(model.hidden), reference(X), rtol=1e-10)
    moved = model.hidden + 0.3
    assert_close(model(moved), rest(hidden + 0.3), rtol=1e-10)
    assert_close(foliax.trace(model, moved), foliax.trace(rest, hidden + 0.3), rtol=1e-9)


def test_layers_in_lists_and_tokens():
    rngs = nnx.Rngs(0)
    net = nnx.Sequential(nnx.Embed(7, 3, rngs=rngs), partial(jnp.mean, axis=-2),
                         nnx.Linear(3, C, rngs=rngs))  # fmt: skip
    tokens = jnp.array([1, 4, 2])
    model = foliax.adapt(net, at="layers.0", given=tokens)
    assert model.hidden.shape == (3, 3)
    assert_close(model(model.hidden), net(tokens[None])[0], rtol=1e-6)
    assert int(foliax.rank(model, model.hidden)) == 3
    keys = jax.random.split(jax.random.key(0))
    net = eqx.nn.Sequential([eqx.nn.Linear(3, 5, key=keys[0]), eqx.nn.Linear(5, C, key=keys[1])])
    model = foliax.adapt(net, at="layers.0", given=V)
    assert_close(foliax.matrix(model, model.hidden), foliax.matrix(net.layers[1], model.hidden))


class Attention(nnx.Module):
    def __init__(self):
        make = {"param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        self.inner, self.outer = nnx.Linear(6, 24, **make), nnx.Linear(8, C, **make)

    def __call__(self, xs):
        q, k, v = jnp.split(self.inner(xs).reshape(len(xs), 5, 2, 12), 3, axis=-1)
        h = jax.nn.dot_product_attention(q, k, v)
        return self.outer(h.reshape(len(xs), 5, 8).mean(1))


def test_attention_is_differentiated_without_cudnn():
    """Whose operation fails under the vmapped pullback that a factor is."""
    model, x = foliax.adapt(Attention()), jnp.asarray(RNG.normal(size=(5, 6)))
    p = jax.nn.softmax(model(x))
    j = jax.jacrev(model)(x).reshape(C, -1)
    assert_close(
        foliax.matrix(model, x), j.T @ (jnp.diag(p) - jnp.outer(p, p)) @ j, rtol=1e-5
    )  # it is float32 inside
    for call in (foliax.factor, lambda m, y: foliax.drift(m, y, y, along="kernel", max_steps=2)):
        lowered = jax.jit(call).trace(model, x).lower(lowering_platforms=("cuda",))
        assert "cudnn" not in lowered.as_text().lower()


# --- what is refused -----------------------------------------------------------------------------


def training_nnx():
    model = nnx_net()
    model.train()
    return model


def shared():
    """The same layer twice."""
    net = eqx.nn.Linear(3, 3, key=jax.random.key(0))
    return eqx.nn.Sequential([eqx.nn.Lambda(lambda x: x), net])


LINEAR = eqx.nn.Linear(3, C, key=jax.random.key(0))
EMBED = nnx.Embed(5, 3, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: foliax.adapt(training_nnx()),
     r"model must be in evaluation mode, got training mode in .*norm.*call model\.eval\(\)"),
    (lambda: foliax.adapt(nnx_net(), W), r"holds its weights, got 1 more.*adapt\(model\)"),
    (lambda: foliax.adapt(LinenNet()), r"needs its variables, got 0.*adapt\(module, variables\)"),
    (lambda: foliax.adapt(LinenNet(), linen_variables()["params"]),
     r"variables must be what module\.init returned, .* got \['conv', 'norm', 'outer'\]"),
    (lambda: foliax.adapt(equinox_net()[0]), r"needs its state; call adapt\(model, state\)"),
    (lambda: foliax.adapt(LINEAR, W, W), r"may have a state, got 2 arguments"),
    (lambda: foliax.adapt(3), "model must be a network or a function, got int"),
    (lambda: foliax.adapt(dense, W)(jnp.arange(3)),
     "x must be a floating-point array, got dtype int.*embed first: G differentiates"),
    (lambda: foliax.trace(foliax.adapt(dense, W), jnp.arange(3)), "embed tokens first"),
    (lambda: foliax.adapt(EMBED)(V), r"embed first: .*adapt\(model, at=…, given=tokens\)"),
    (lambda: foliax.adapt(lambda x: (x, x))(V),
     r"model must return C logits .* got a tuple of 2 for .*pick the logits out by logits=…"),
    (lambda: foliax.adapt(lambda x: {"a": x}, logits="b")(V), r"logits='b' is not in .*with 'a'"),
    (lambda: foliax.adapt(lambda x: x.reshape(1, 3, 1), batched=True)(V), "must return C log"),
    (lambda: foliax.adapt(dense, W, output="logit")(V), "must return one logit of one input"),
    (lambda: foliax.adapt(dense, W, output="p"), "output must be one of 'logits', 'probabilities'"),
    (lambda: foliax.adapt(dense, W, channels="last"), "channels must be None or 'first'"),
    (lambda: foliax.adapt(dense, W, key=jax.random.key(0)), "key keeps dropout on in networks of"),
    (lambda: foliax.adapt(dense, W, at="a", given=V), "needs a network of NNX, Equinox or PyTorch"),
    (lambda: foliax.adapt(LINEAR, at="a"), "at and given belong together"),
    (lambda: foliax.adapt(eqx.nn.Sequential([LINEAR]), at="layers.3", given=V),
     r"at must name a layer, one of layers\.0; got 'layers\.3'"),
    (lambda: foliax.adapt(nnx_net(), at="cons", given=X), "one of conv, dropout, norm, outer; "),
    (lambda: foliax.adapt(eqx.nn.Sequential([LINEAR]), at="layers.0", given=V)(V),
     r"x must have the shape of what 'layers\.0' returns, \(4,\), got \(3,\)"),
])  # fmt: skip
def test_what_cannot_be_adapted_is_told(call, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()


def test_models_of_haiku_and_keras_that_are_not_complete():
    net, params, _ = haiku_net()
    with pytest.raises(ValueError, match=r"needs params and state, got 1 of them"):
        foliax.adapt(net.apply, params)
    keras = pytest.importorskip("keras")
    with pytest.raises(ValueError, match=r"has no weights yet; call it on a batch once"):
        foliax.adapt(keras.Sequential([keras.layers.Dense(3)]))


def test_an_error_of_the_network_is_raised_as_it_is():
    def broken(x):
        raise RuntimeError("no such thing")

    with pytest.raises(RuntimeError, match="no such thing") as found:
        foliax.adapt(broken)(V)
    assert "adapt called the network with x of shape (3,)" in "".join(found.value.__notes__)


def test_weights_on_two_devices():
    script = """
import jax, jax.numpy as jnp, foliax
a, b = (jax.device_put(jnp.ones((2, 2)), d) for d in jax.devices())
try:
    foliax.adapt(lambda w, x: w[1] @ (w[0] @ x), (a, b))
except ValueError as error:
    print(error)
"""
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    import os

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          check=True, env=os.environ | env)  # fmt: skip
    assert "must lie on one device, got weights on cpu:0; cpu:1" in done.stdout
