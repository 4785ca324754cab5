"""The networks: pooling at ties and away from them, one input against a batch, every derivative."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import foliax
from foliax import zoo
from foliax.zoo import nets

SHAPE = (6, 6, 1)


def stock_max_pool(x):
    return nnx.max_pool(x, (2, 2), strides=(2, 2))


def image(seed, shape=(7, 9, 3)):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def normalised(**options):
    """Make a small network with batch normalisation, as VGG has it."""
    options |= {"plan": (8, "pool", 6), "hidden": (), "padding": 1, "batch_norm": True}
    return zoo.CNN(SHAPE, 4, activation="sigmoid", pool="average", **options)


NETWORKS = {
    "MLP gelu": partial(zoo.MLP, (36, 12, 7, 10), activation="gelu"),
    "CNN relu max": partial(zoo.CNN, SHAPE, 4),
    "CNN gelu max": partial(zoo.CNN, SHAPE, 4, activation="gelu"),
    "CNN sigmoid average batch_norm": normalised,
}


@pytest.fixture(scope="module", params=NETWORKS)
def model(request):
    """Each network in float64, so that derivatives can be compared closely."""
    made = NETWORKS[request.param](rngs=nnx.Rngs(2))
    return jax.tree.map(lambda w: w.astype(jnp.float64), made)


@partial(jax.jit, static_argnums=0)
def both_modes(pool, x, tangent):
    """Return the value, the gradient of its sum, and the derivative along the tangent."""
    out, pull = jax.vjp(pool, x)
    return out, pull(jnp.ones_like(out))[0], jax.jvp(pool, (x,), (tangent,))[1]


@pytest.mark.parametrize(
    ("window", "first"),
    [
        ([[1, 2], [2, 0]], (0, 1)),
        ([[0, 1], [1, 1]], (0, 1)),
        ([[0, 0], [3, 3]], (1, 0)),
        ([[5, 5], [5, 5]], (0, 0)),
        ([[-1, -2], [-3, -1]], (0, 0)),
    ],
)
def test_first_of_tied_maxima_gets_the_whole_derivative(window, first):
    x = np.array(window, np.float32)[..., None]
    expected = np.zeros((2, 2))
    expected[first] = 1
    tangent = np.arange(10, 14, dtype=np.float32).reshape(2, 2, 1)
    _, gradient, pushed = both_modes(zoo.max_pool, x, tangent)
    np.testing.assert_array_equal(gradient[..., 0], expected)
    assert pushed.squeeze() == tangent[first].squeeze()


def test_flat_image_gives_each_window_one_pixel():
    gradient = jax.grad(lambda x: zoo.max_pool(x).sum())(jnp.zeros((4, 6, 2)))
    expected = np.zeros((4, 6, 2))
    expected[::2, ::2] = 1
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("shape", [(7, 9, 3), (2, 2, 1)])
def test_max_pool_is_the_stock_one_away_from_ties(shape):
    x, tangent = image(0, shape), image(1, shape)
    results = [both_modes(pool, x, tangent) for pool in (zoo.max_pool, stock_max_pool)]
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_second_derivative_of_max_pool_is_the_stock_one():
    x, v = image(2, (6, 6, 2)), image(3, (6, 6, 2))

    def product(pool):
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(pool(x)) ** 2))
        return jax.jit(lambda x: jax.jvp(gradient, (x,), (v,))[1])(x)

    np.testing.assert_allclose(product(zoo.max_pool), product(stock_max_pool), rtol=1e-12)


def test_pools_take_leading_axes_and_other_windows():
    x = np.asarray(image(4, (2, 5, 9, 9, 3)))
    assert zoo.max_pool(x, 4).shape == (2, 5, 2, 2, 3)
    np.testing.assert_array_equal(zoo.max_pool(x, 3)[1, 2], zoo.max_pool(x[1, 2], 3))
    np.testing.assert_allclose(
        zoo.average_pool(x, 3)[0, 0], nnx.avg_pool(x[0, 0], (3, 3), strides=(3, 3)), rtol=1e-12
    )


def test_max_pool_keeps_nan_visible():
    x = jnp.array([[1.0, jnp.nan], [3.0, 4.0]])[..., None]
    assert bool(jnp.isnan(zoo.max_pool(x)).all())


@pytest.mark.parametrize("pool", [zoo.max_pool, zoo.average_pool])
@pytest.mark.parametrize(("shape", "window"), [((4, 4), 2), ((1, 4, 1), 2), ((4, 4, 1), 0)])
def test_pool_refuses_what_holds_no_window(pool, shape, window):
    with pytest.raises(ValueError, match=r"\(\.\.\., H, W, channels\)"):
        pool(jnp.zeros(shape), window)


def test_vmap_equals_loop(model):
    xs = jax.random.normal(jax.random.key(5), (2, *SHAPE), jnp.float64)
    batched = jax.jit(jax.vmap(lambda m, x: m(x), in_axes=(None, 0)))(model, xs)
    one = jax.jit(lambda m, x: m(x))
    np.testing.assert_allclose(batched, [one(model, x) for x in xs], rtol=1e-10, atol=1e-12)


@jax.jit
def derivatives(model, x, v):
    """Pairs that must agree: reverse and forward mode, matvec and matrix, second derivatives."""

    def loss(x):
        return jax.nn.logsumexp(model(x))

    gradient, step = jax.grad(loss), 1e-5
    difference = (gradient(x + step * v) - gradient(x - step * v)) / (2 * step)
    return (
        (jax.jacrev(model)(x), jax.jacfwd(model)(x)),
        (foliax.matvec(model, x, v).ravel(), foliax.matrix(model, x) @ v.ravel()),
        (jax.jvp(gradient, (x,), (v,))[1], difference),
    )


def test_every_derivative_of_every_network(model):
    jacobians, products, curvatures = derivatives(model, image(6, SHAPE), image(7, SHAPE))
    np.testing.assert_allclose(*jacobians, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(*products, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(*curvatures, rtol=1e-5, atol=1e-8)


def test_products_with_the_weights(model):
    x = image(8, SHAPE)
    graphdef, params, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    assert not jax.tree.leaves(rest)

    def logits(params):
        return nnx.merge(graphdef, params, stats, rest)(x)

    out, pushed = jax.jit(lambda w: jax.jvp(logits, (w,), (w,)))(params)
    pulled = jax.jit(lambda w, u: jax.vjp(logits, w)[1](u)[0])(params, out)
    inner = sum(
        jnp.vdot(a, b)
        for a, b in zip(jax.tree.leaves(pulled), jax.tree.leaves(params), strict=True)
    )
    np.testing.assert_allclose(inner, jnp.vdot(out, pushed), rtol=1e-10)


def test_papers_network_has_its_sizes():
    model = nnx.eval_shape(lambda: zoo.CNN((28, 28, 1), 10, rngs=nnx.Rngs(0)))
    weights = jax.tree.leaves(model)
    assert sum(w.size for w in weights) == 320 + 18_496 + (144 * 64 * 128 + 128) + 1_290


def num_params(make):
    model = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    return sum(w.size for w in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(
    ("depth", "expected"), [(11, 9_231_114), (13, 9_416_010), (16, 14_728_266), (19, 20_040_522)]
)
def test_vgg_has_its_published_number_of_weights(depth, expected):
    assert num_params(partial(zoo.vgg, depth)) == expected


def test_named_networks_have_the_papers_sizes():
    convs = (3 * 32 + 32 * 64 + 64 * 128) * 9 + 32 + 64 + 128
    assert num_params(zoo.colour_cnn) == convs + (512 * 128 + 128) + (128 * 10 + 10)
    assert num_params(zoo.xor_net) == (2 * 8 + 8) + (8 * 2 + 2)
    assert num_params(zoo.circle_net) == (2 * 16 + 16) + (16 * 3 + 3)


def test_batch_statistics_are_those_of_batch_and_image():
    model = normalised(rngs=nnx.Rngs(0))
    xs = jax.random.normal(jax.random.key(1), (5, *SHAPE), jnp.float32)

    def one(model, x):
        model = nnx.view(nnx.clone(model), use_running_average=False)
        return model(x), nnx.state(model, nnx.BatchStat)

    batched = jax.vmap(one, in_axes=(None, 0), out_axes=(0, None), axis_name="batch")
    _, stats = jax.jit(batched)(model, xs)
    convolved = np.asarray(jax.vmap(model.conv1)(xs), np.float64).reshape(-1, 8)
    np.testing.assert_allclose(stats["norm1"]["mean"][...], 0.1 * convolved.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["norm1"]["var"][...], 0.9 + 0.1 * convolved.var(0), rtol=1e-5)
    np.testing.assert_array_equal(model.norm1.mean[...], 0)


def test_mlp_flattens_any_shape():
    model, x = zoo.MLP((12, 3), rngs=nnx.Rngs(0)), jnp.arange(12.0)
    np.testing.assert_array_equal(model(x), model(x.reshape(2, 3, 2)))


def test_gelu_is_the_exact_one():
    x = jnp.linspace(-3, 3, 7)
    expected = x * jax.scipy.stats.norm.cdf(x)
    np.testing.assert_allclose(nets.ACTIVATIONS["gelu"](x), expected, rtol=1e-6, atol=1e-7)


def test_config_rebuilds_the_network(model):
    config = json.loads(json.dumps(model.config))
    rebuilt = nnx.eval_shape(lambda: nets.build(config, nnx.Rngs(3)))
    assert rebuilt.config == model.config
    assert jax.tree.structure(rebuilt) == jax.tree.structure(model)


def test_config_without_the_newer_settings_is_the_papers_network():
    old = {"shape": [8, 8, 1], "num_classes": 3, "activation": "gelu", "pool": "average"}
    model = nnx.eval_shape(lambda: nets.build({"kind": "CNN", **old}))
    assert model.config == {"kind": "CNN", **old}
    assert (len(model.convs), len(model.denses)) == (2, 2)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda r: zoo.MLP((4, 2), activation="tanh", rngs=r), "'relu', 'gelu', 'sigmoid'"),
        (lambda r: zoo.MLP((4,), rngs=r), "sizes must name"),
        (lambda r: zoo.MLP((4, 0, 2), rngs=r), "sizes must name"),
        (lambda r: zoo.CNN((8, 8, 1), 2, plan=("pool",), rngs=r), "plan and hidden must hold"),
        (lambda r: zoo.CNN((8, 8, 1), 2, hidden=(0,), rngs=r), "plan and hidden must hold"),
        (lambda r: zoo.CNN((8, 8, 1), 2, padding=2, rngs=r), "padding must be 0 or 1"),
        (lambda r: zoo.vgg(12, rngs=r), "depth must be one of 11, 13, 16, 19, got 12"),
        (lambda r: zoo.vgg(11, shape=(28, 28, 1), rngs=r), "H, W ≥ 32"),
        (lambda r: zoo.colour_cnn(shape=(21, 32, 3), rngs=r), "H, W ≥ 22"),
        (lambda r: zoo.CNN((28, 28), 10, rngs=r), "shape must be"),
        (lambda r: zoo.CNN((5, 28, 1), 10, rngs=r), "shape must be"),
        (lambda r: zoo.CNN((8, 8, 1), 1, rngs=r), "num_classes must be"),
        (lambda r: zoo.CNN((8, 8, 1), 2, pool="median", rngs=r), "'max', 'average'"),
        (lambda r: nets.build({"kind": "RNN"}, r), "'MLP', 'CNN'"),
        (lambda r: nets.build({"kind": "MLP", "width": 3}, r), "does not describe a MLP"),
        (lambda r: zoo.MLP((4, 2), rngs=r)(jnp.zeros((3, 4))), "batch with jax.vmap"),
        (lambda r: zoo.CNN((8, 8, 1), 2, rngs=r)(jnp.zeros((2, 8, 8, 1))), "batch with jax.vmap"),
    ],
)
def test_wrong_arguments_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make(nnx.Rngs(0))


@pytest.mark.parametrize(
    "model",
    [zoo.MLP((64, 5, 3), rngs=nnx.Rngs(0)), zoo.CNN((8, 8, 1), 3, hidden=(7,), rngs=nnx.Rngs(0))],
)
def test_penultimate_features_lack_the_last_layer(model):
    x = zoo.load_digits().test_x[0]
    features = zoo.penultimate(model)(x)
    last = model.layers[-1] if isinstance(model, zoo.MLP) else model.denses[-1]
    np.testing.assert_allclose(last(features), model(x), rtol=1e-6)
    assert features.shape == ((5,) if isinstance(model, zoo.MLP) else (7,))
