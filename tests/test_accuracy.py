"""Float32 against float64 on trained networks, however saturated the softmax.

An image on whose float32 side a unit is active, or a pixel of a window the largest, that is not so
in float64, has another Jacobian there: such images are counted, and excepted from what is said of
every image.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

import foliax
from foliax.zoo import CNN, load, load_digits
from foliax.zoo.foreign import load_torch
from tests.test_reference import CONVOLUTIONAL

pytestmark = pytest.mark.usefixtures("full_optimization")

GAPS = (0.01, 1.0, 5.0, 20.0, 60.0)  # of the most confident image; the others' begin near 0


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def scaled(scale, model, x):
    """Return logits as if the last layer were scaled."""
    return scale * model(x)


@jax.jit
def spectra(model, scales, xs):
    def one(place):
        scale, x = place
        return foliax.eigh(Partial(scaled, scale, model), x).values

    return jax.lax.map(one, (scales, xs))


@jax.jit
def top_gaps(model, xs):
    top = jax.lax.top_k(jax.lax.map(model, xs), 2)[0]
    return top[:, 0] - top[:, 1]


def mlp_pattern(model, x):
    return model.layers[0](x.ravel()) > 0


def cnn_pattern(model, x):
    first = model.conv1(x)
    second = model.conv2(nnx.relu(first))
    h, w, c = second.shape[0] // 2, second.shape[1] // 2, second.shape[2]
    windows = nnx.relu(second)[: 2 * h, : 2 * w].reshape(h, 2, w, 2, c).transpose(0, 2, 4, 1, 3)
    windows = windows.reshape(h, w, c, 4)
    last = model.dense1(windows.max(-1).ravel())
    # Which of the pixels of a window is chosen matters only where its unit is active.
    chosen = jnp.where(windows.max(-1) > 0, jnp.argmax(windows, -1), -1)
    return jnp.concatenate([(first > 0).ravel(), chosen.ravel(), (last > 0).ravel()])


def errors(model, xs, pattern, gaps):
    """Return the largest relative error of an eigenvalue (gaps, images), and which images flip."""
    xs = jnp.asarray(xs, jnp.float32)
    single, double = ((cast(model, dtype), cast(xs, dtype)) for dtype in ("float32", "float64"))
    patterns = [np.asarray(jax.jit(jax.vmap(pattern, (None, 0)))(*at)) for at in (single, double)]
    flipped = np.any(patterns[0] != patterns[1], axis=1)
    scales = jnp.repeat(jnp.asarray(gaps) / top_gaps(*double).max(), len(xs)).astype(jnp.float32)

    def values(model, xs):
        over = jnp.concatenate([xs] * len(gaps))
        return np.asarray(spectra(model, scales.astype(over.dtype), over), np.float64)

    low, high = values(*single), values(*double)
    told = high > 1e-6 * high[:, :1]
    relative = np.abs(low - high) / np.where(told, high, 1)
    assert high[:, 0].min() > 0
    assert told.sum(axis=1).min() >= 1
    return np.where(told, relative, 0).max(axis=1).reshape(len(gaps), -1), flipped


def check(found, flipped, *, counted):
    assert found.shape[1] == len(flipped)
    assert np.all(np.median(found, axis=1) < 1e-3)
    assert np.all(found[:, ~flipped] < 1e-3)
    assert flipped.sum() <= counted


def test_digits():
    model, images = load("digits_mlp"), load_digits().test_x[:32]
    check(*errors(model, images, mlp_pattern, GAPS), counted=0)


def test_fashion_mnist(reference):
    arrays = reference(CONVOLUTIONAL["fashion"][0])
    weights = {key: value for key, value in arrays.items() if key.startswith("w.")}
    model = load_torch(CNN((28, 28, 1), 10, rngs=nnx.Rngs(0)), weights)
    images = arrays["x"].transpose(0, 2, 3, 1)
    double = cast(model, jnp.float64)
    assert np.allclose(jax.vmap(double)(images), arrays["logits"], rtol=1e-10)
    # The four images without dither have flat grounds, where windows tie up to rounding.
    check(*errors(model, images, cnn_pattern, (1.0, 60.0)), counted=4)
