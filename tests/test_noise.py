"""G of the Bayes classifier of noisy inputs, against what Tweedie and de Bruijn say of it.

The classifier is Parzen's: y = x + σ ε, with x drawn evenly from known points, each of one class.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import logsumexp
from jax.tree_util import Partial

import foliax
from foliax import zoo

SIGMAS = (0.4, 0.6, 0.8)


def parzen(points, labels, num_classes, sigma):
    """Return the classifier: the logits are the log densities of the classes with their priors."""
    return Partial(logits, points, labels == np.arange(num_classes)[:, None], sigma)


def logits(points, of_class, sigma, y):
    distances = jnp.sum((points - y).reshape(len(points), -1) ** 2, axis=1)
    return logsumexp(jnp.where(of_class, -distances / (2 * sigma**2), -jnp.inf), axis=1)


@pytest.fixture(scope="module")
def digits():
    """Return points of the digits in float64, normalised, and their labels."""
    data = zoo.load_digits()
    return data.train_x[:300].astype(np.float64), data.train_y[:300]


@pytest.mark.parametrize("sigma", SIGMAS)
def test_g_is_the_covariance_of_the_denoised_images_of_the_classes(digits, sigma):
    """G(y) = σ⁻⁴ Cov over c|y of E[x | y, c]."""
    points, labels = digits
    y = points[7] + sigma * np.random.default_rng(0).normal(size=points[7].shape)
    model = parzen(points, labels, 10, sigma)
    weights = np.exp(-np.sum((points - y) ** 2, axis=(1, 2, 3)) / (2 * sigma**2))
    of_class = labels == np.arange(10)[:, None]
    mass = of_class @ weights
    flat = points.reshape(len(points), -1)
    means = (of_class * weights) @ flat / mass[:, None]
    p = mass / mass.sum()
    away = means - p @ means
    expected = away.T @ (p[:, None] * away) / sigma**4
    found = foliax.matrix(model, y)
    np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_trace_is_what_noise_costs_in_information(sigma):
    """dH(C|Y)/dσ² = ½ E tr G(Y), in one dimension by quadrature."""
    rng = np.random.default_rng(1)
    points, labels = rng.normal(size=(9, 1)), np.arange(9) % 3
    grid = jnp.linspace(-9, 9, 6001)[:, None]

    def density(sigma):
        away = (grid - points.T) / sigma
        return jnp.mean(jnp.exp(-(away**2) / 2), axis=1) / (sigma * np.sqrt(2 * np.pi))

    def entropy(sigma):
        model = parzen(points, labels, 3, sigma)
        p = jax.vmap(lambda y: jax.nn.softmax(model(y)))(grid)
        each = -jnp.sum(jax.scipy.special.xlogy(p, p), axis=1)
        return jnp.trapezoid(each * density(sigma), grid[:, 0])

    step = 1e-4
    slope = (entropy(jnp.sqrt(sigma**2 + step)) - entropy(jnp.sqrt(sigma**2 - step))) / (2 * step)
    model = parzen(points, labels, 3, sigma)
    traces = jax.vmap(lambda y: foliax.trace(model, y))(grid)
    half = jnp.trapezoid(traces * density(sigma), grid[:, 0]) / 2
    np.testing.assert_allclose(half, slope, rtol=1e-6)
    assert float(half) > 0.01


def test_the_same_on_digits_within_the_error_of_the_sample(digits):
    points, labels = digits
    sigma, step, rng = 2.0, 0.05, np.random.default_rng(2)
    starts = points[rng.integers(0, len(points), 1500)]
    noise = rng.normal(size=starts.shape)

    def entropies(sigma):
        model = parzen(points, labels, 10, sigma)
        p = jax.lax.map(lambda y: jax.nn.softmax(model(y)), starts + sigma * noise, batch_size=50)
        return -jnp.sum(jax.scipy.special.xlogy(p, p), axis=1)

    slopes = entropies(np.sqrt(sigma**2 + step)) - entropies(np.sqrt(sigma**2 - step))
    model = parzen(points, labels, 10, sigma)
    traces = foliax.map(foliax.trace, model, starts + sigma * noise, block=10)
    off = np.asarray(slopes / (2 * step) - traces / 2)
    error = off.std() / np.sqrt(len(off))
    assert abs(off.mean()) < 4 * error
    assert error < 0.1 * float(traces.mean() / 2)
