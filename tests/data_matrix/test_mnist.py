"""G of the network for MNIST on real images, against NumPy: all 784 tangents, pushed forward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import foliax
from foliax import zoo
from tests.tolerance import assert_close

NUM_IMAGES = 2


def correlated(x, kernel):
    """Correlate images (..., H, W, c) with a kernel (3, 3, c, d), without padding."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(-3, -2))
    return np.einsum("...hwcij,ijcd->...hwd", windows, kernel, optimize=True)


def windows_of_two(x):
    """Return the 2×2 windows of (..., H, W, c), row by row on the last axis."""
    h, w = x.shape[-3] // 2, x.shape[-2] // 2
    x = x[..., : 2 * h, : 2 * w, :].reshape(*x.shape[:-3], h, 2, w, 2, x.shape[-1])
    x = np.moveaxis(x, (-4, -2), (-2, -1))
    return x.reshape(*x.shape[:-2], 4)


def logits_and_jacobian(model, x):
    """Return s(x) and J (C, n), from the layers' weights alone, in float64."""
    value, tangents = x, np.eye(x.size).reshape(-1, *x.shape)
    for conv in model.convs:
        kernel, bias = (np.asarray(part[...], np.float64) for part in (conv.kernel, conv.bias))
        value, tangents = correlated(value, kernel) + bias, correlated(tangents, kernel)
        value, tangents = np.maximum(value, 0), tangents * (value > 0)
        windows = windows_of_two(value)
        first = np.argmax(windows, axis=-1)[..., None]  # of equal ones the first, as in PyTorch
        value = np.take_along_axis(windows, first, axis=-1)[..., 0]
        tangents = np.take_along_axis(windows_of_two(tangents), first[None], axis=-1)[..., 0]
    value, tangents = value.ravel(), tangents.reshape(len(tangents), -1)
    for layer in model.denses:
        kernel, bias = (np.asarray(part[...], np.float64) for part in (layer.kernel, layer.bias))
        value, tangents = value @ kernel + bias, tangents @ kernel
        if layer is not model.denses[-1]:
            value, tangents = np.maximum(value, 0), tangents * (value > 0)
    return value, tangents.T


def dense(model, x):
    """Return G = Σ p_i ∇log p_i ∇log p_iᵀ."""
    logits, jacobian = logits_and_jacobian(model, x)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    scores = jacobian - p @ jacobian
    return logits, (scores * p[:, None]).T @ scores


@pytest.fixture(scope="module")
def case():
    """Return the network in float64, images, and the dense G at each."""
    model = zoo.load("mnist_cnn")
    xs = np.asarray(zoo.load_mnist_5k().test_x[:NUM_IMAGES], np.float64)
    double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model)
    return double, xs, [dense(model, x) for x in xs]


def test_matrix_trace_and_spectrum_are_those_of_the_dense_formula(case):
    model, xs, expected = case
    for x, (logits, g) in zip(xs, expected, strict=True):
        assert_close(model(x), logits)
        assert_close(foliax.matrix(model, x), g, rtol=1e-9)
        assert_close(foliax.trace(model, x), np.trace(g), rtol=1e-9)
        values = np.linalg.eigvalsh(g)[::-1]
        assert_close(foliax.eigh(model, x).values, values[:9], rtol=1e-9)
        assert np.abs(values[9:]).max() < 1e-12 * values[0]
        assert foliax.rank(model, x) == foliax.dimension(model, x) == 9
