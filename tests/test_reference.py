"""Values from independent PyTorch code in float64: the papers' own, and a second formula.

The digits network is shipped with the tests; larger files are read where they lie (see conftest).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.tree_util import Partial

import foliax
from tests.tolerance import assert_close

pytestmark = pytest.mark.usefixtures("full_optimization")

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "gelu": partial(jax.nn.gelu, approximate=False),
}
DENSE = {
    "digits_mlp_relu": ("digits_mlp_relu", "relu"),
    "xor_relu": ("papers/xor_net_relu_30", "relu"),
    "xor_sigmoid": ("papers/xor_net_sigmoid_20", "sigmoid"),
    "xor_gelu": ("papers/xor_net_gelu_acc100", "gelu"),
    "circle_relu": ("papers/circle_net_c3_relu_30", "relu"),
}
CONVOLUTIONAL = {
    "fashion": ("own/fmnist_medium_cnn_a", ((0, False), (2, True)), (6, 8)),
    "cifar": ("papers/cifar10_medium_cnn", ((0, True), (3, True), (6, True)), (10, 12)),
}


def dense(activation, params, x):
    (w1, b1), (w2, b2) = params
    return w2 @ activation(w1 @ x + b1) + b2


def max_pool(x):
    """Pool 2 by 2 windows of (C, H, W); the first maximum gets the whole gradient."""
    c, h, w = x.shape[0], x.shape[1] // 2, x.shape[2] // 2
    windows = x[:, : 2 * h, : 2 * w].reshape(c, h, 2, w, 2).transpose(0, 1, 3, 2, 4)
    windows = windows.reshape(c, h, w, 4)
    first = jnp.arange(4) == jnp.argmax(windows, -1)[..., None]
    return jnp.where(first, windows, 0).sum(-1)


def convolutional(pooled, params, x):
    convolutions, ((w1, b1), (w2, b2)) = params
    for (w, b), pool in zip(convolutions, pooled, strict=True):
        x = lax.conv_general_dilated(x[None], w, (1, 1), "VALID")[0] + b[:, None, None]
        x = jax.nn.relu(x)
        x = max_pool(x) if pool else x
    return w2 @ jax.nn.relu(w1 @ x.ravel() + b1) + b2


def weights(arrays, layer):
    return tuple(jnp.asarray(arrays[f"w.{layer}.{k}"], jnp.float64) for k in ("weight", "bias"))


def load_convolutional(reference, name):
    file, convolutions, heads = CONVOLUTIONAL[name]
    arrays = reference(file)
    params = [weights(arrays, i) for i, _ in convolutions], [weights(arrays, i) for i in heads]
    return Partial(partial(convolutional, tuple(pool for _, pool in convolutions)), params), arrays


@pytest.fixture(scope="module", params=DENSE)
def small(request, reference):
    file, activation = DENSE[request.param]
    arrays = reference(file)
    params = weights(arrays, 0), weights(arrays, 2)
    return Partial(partial(dense, ACTIVATIONS[activation]), params), arrays


@pytest.fixture(scope="module", params=CONVOLUTIONAL)
def large(request, reference):
    return load_convolutional(reference, request.param)


def over_points(f, model, xs, *rest):
    """Return f(model, x, ...) at every point; what follows xs is shared."""
    axes = (None, 0, *(None for _ in rest))
    return jax.jit(jax.vmap(f, in_axes=axes))(model, jnp.asarray(xs), *rest)


def over_directions(f):
    """Return f for a stack of flat directions."""

    def stacked(model, x, vs):
        at = jax.vmap(lambda v: f(model, x, v.reshape(x.shape)))(vs)
        return at.reshape(vs.shape)

    return stacked


def ranks(model, x, tols):
    return jnp.stack([foliax.rank(model, x, rtol=tol) for tol in tols])


def counted(singular_values, rtol):
    """Count as foliax does; singular values of the reference come unsquared."""
    return np.sum(singular_values**2 > rtol * singular_values[:, :1] ** 2, axis=1)


def check_values(model, arrays, *, rtol):
    """Check what every reference file holds."""
    xs, tols = arrays["x"], arrays["tols"].tolist()

    def at(model, x, vs):
        return {
            "logits": model(x),
            "trace": foliax.trace(model, x),
            "values": foliax.eigh(model, x).values,
            "Gv": over_directions(foliax.matvec)(model, x, vs),
            "tangent": over_directions(foliax.project_leaf)(model, x, vs),
            "kernel": over_directions(foliax.project_kernel)(model, x, vs),
            "rank_by_tol": ranks(model, x, tols),
            "rank": foliax.rank(model, x),
            "dimension": foliax.dimension(model, x),
        }

    got = over_points(at, model, xs, jnp.asarray(arrays["v"]))
    # Point by point: a saturated point must not hide behind a large one.
    for i in range(len(xs)):
        for name in ("logits", "trace", "Gv", "tangent"):
            assert_close(got[name][i], arrays[name][i], rtol=rtol)
        size = np.abs(arrays["v"]).max()
        assert_close(got["kernel"][i], arrays["kernel"][i], rtol=0, atol=rtol * size)
        squares = arrays["sv_factor"][i] ** 2
        m = got["values"].shape[1]
        assert_close(got["values"][i], squares[:m], rtol=rtol)
    np.testing.assert_array_equal(got["rank_by_tol"], arrays["rank_by_tol"])
    np.testing.assert_array_equal(got["dimension"], arrays["proj_rank"])
    num_classes = arrays["logits"].shape[1]
    default = (10 * num_classes * np.finfo(np.float64).eps) ** 2
    np.testing.assert_array_equal(got["rank"], counted(arrays["sv_factor"], default))
    assert int(got["rank"].max()) <= num_classes - 1


def test_small_networks(small):
    model, arrays = small
    check_values(model, arrays, rtol=1e-10)


def test_dense_matrices(small):
    model, arrays = small
    got = over_points(foliax.matrix, model, arrays["x"])
    for g, expected in zip(got, arrays["G"], strict=True):
        assert_close(g, expected)
    eigenvalues = np.linalg.eigvalsh(got)[:, ::-1]
    assert_close(eigenvalues, arrays["eig_G"])


def test_convolutional_networks(large):
    model, arrays = large
    check_values(model, arrays, rtol=1e-10)


def test_dense_matrix_of_an_image(reference):
    model, arrays = load_convolutional(reference, "fashion")
    got = jax.jit(foliax.matrix)(model, jnp.asarray(arrays["x"][0]))
    assert_close(got[np.triu_indices(784)], arrays["G_triu_0"])
    assert_close(jnp.diagonal(got), arrays["diag_G"][0])
    assert_close(jnp.linalg.eigvalsh(got)[::-1], arrays["eig_G"][0])


def test_images_with_pooling_ties(reference):
    model, arrays = load_convolutional(reference, "fashion")

    def at(model, x, vs):
        return foliax.trace(model, x), over_directions(foliax.matvec)(model, x, vs)

    trace, products = over_points(at, model, arrays["raw_x"], jnp.asarray(arrays["v"]))
    assert arrays["raw_n_ties"].min() > 0
    # A few windows tie only up to rounding, and there the choice is the program's.
    assert_close(trace / arrays["raw_trace_first"], np.ones(4), rtol=0.03)
    for got, expected in zip(products, arrays["raw_Gv_first"], strict=True):
        assert np.linalg.norm(got - expected) <= 0.05 * np.linalg.norm(expected)
    # The rule matters: the other two give other matrices.
    for other in (arrays["raw_Gv_avg"], arrays["raw_Gv_last"]):
        apart = np.linalg.norm(other - products, axis=2) / np.linalg.norm(products, axis=2)
        assert apart.max(axis=1).min() > 0.1


def test_published_walk(reference):
    model, _ = load_convolutional(reference, "fashion")
    arrays = reference("own/fmnist_path_tangent_4_16_first50")
    path = foliax.walk(
        model,
        arrays["start"],
        arrays["end"],
        scheme="published",
        box=foliax.Box(*arrays["bounds"]),
        step=float(arrays["step_size"]),
        max_steps=50,
        save_every=1,
    )
    points = np.asarray(path.points).reshape(51, 784)
    # Float64 on both sides: what is left after 50 steps is rounding, grown by the walk.
    assert_close(points, arrays["points"], rtol=0, atol=1e-11)
    assert_close(path.logits, arrays["logits"], rtol=1e-10)
    p = jax.nn.softmax(path.logits)
    np.testing.assert_array_equal(jnp.argmax(p, 1), arrays["predictions"])
    assert_close(jnp.max(p, 1), arrays["probabilities"], rtol=1e-10)
    clipped = (points <= arrays["bounds"][0]) | (points >= arrays["bounds"][1])
    assert clipped.sum(1)[0] == arrays["n_clipped"][0]
    assert path.status == foliax.Status.out_of_steps
    assert path.leaf_defect[-1] > 0  # clipping left the leaf, and the path says so
    assert float(path.box_excess.max()) == 0
