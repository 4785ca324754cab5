"""Brownian motion against closed forms: a plane, a sphere, and the simplex in G's metric."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import foliax
from foliax import Status

NUM_PATHS = 1500


def plane(x):
    return jnp.stack([x[0], x[1], 0 * x[0]])


def sphere(x):
    return jnp.stack([jnp.sum(x**2), 0 * x[0]])


def simplex(x):
    return x


@cache
def sampler(model, **options):
    sample = partial(foliax.brownian, model, num_steps=100, save_every=100, **options)
    return jax.jit(jax.vmap(sample, in_axes=(None, 0, None)))


def ends(model, x, time, seed, **options):
    return sampler(model, **options)(x, jax.random.split(jax.random.key(seed), NUM_PATHS), time)


def agrees(samples, expected, *, bias=0.0):
    error = abs(float(jnp.mean(samples)) - expected)
    assert error <= 4 * float(jnp.std(samples)) / np.sqrt(len(samples)) + bias


@pytest.mark.parametrize(("along", "dimension"), [("leaf", 2), ("kernel", 3)])
@pytest.mark.parametrize("seed", [1, 2])
def test_mean_square_displacement_on_a_plane(along, dimension, seed):
    x, time = jnp.zeros(5), 0.7
    found = ends(plane, x, time, seed, along=along)
    assert np.all(found.status == Status.completed)
    agrees(jnp.sum((found.end - x) ** 2, axis=1), dimension * time)


@pytest.mark.parametrize("radius", [1.0, 2.0])
def test_mean_square_displacement_on_a_sphere(radius):
    x, time, dimension = jnp.array([radius, 0.0, 0.0]), 0.8, 2
    found = ends(sphere, x, time, 1, along="kernel")
    np.testing.assert_allclose(jnp.linalg.norm(found.end, axis=1), radius, rtol=1e-4)
    expected = 2 * radius**2 * (1 - np.exp(-dimension * time / (2 * radius**2)))
    agrees(jnp.sum((found.end - x) ** 2, axis=1), expected, bias=0.01)  # of 100 steps


def test_in_the_metric_of_g_it_is_brownian_motion_on_the_sphere_of_radius_two():
    x, time, dimension, radius = jnp.zeros(3), 0.2, 2, 2.0
    found = ends(simplex, x, time, 1, metric="fisher", least=1e-9)
    u = 2 * jnp.sqrt(jax.nn.softmax(found.end))
    cosine = u @ (2 * jnp.sqrt(jax.nn.softmax(x))) / radius**2
    agrees(cosine, np.exp(-dimension * time / (2 * radius**2)), bias=1e-3)


def test_the_edge_of_the_simplex_is_a_boundary():
    x = jnp.array([0.0, 0.0, -8.0])
    found = ends(simplex, x, 3.0, 1, metric="fisher", least=1e-4)
    assert np.mean(found.status == Status.boundary) > 0.9


def test_rows_times_and_nan():
    path = foliax.brownian(plane, jnp.zeros(3), jax.random.key(0), 1.0, num_steps=10, save_every=4)
    assert path.points.shape == (3, 3)
    np.testing.assert_allclose(path.times, [0, 0.4, 0.8])
    bad = foliax.brownian(plane, jnp.full(3, jnp.nan), jax.random.key(0), 1.0, num_steps=3)
    assert bad.status == Status.invalid


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "fisher", "along": "kernel"}, "G vanishes along the kernel"),
        ({"along": "across"}, "along must be one of"),
        ({"metric": "hyperbolic"}, "metric must be one of"),
        ({"num_steps": 0}, "num_steps must be a whole number >= 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        foliax.brownian(plane, jnp.zeros(3), jax.random.key(0), 1.0, **options)
    with pytest.raises(ValueError, match="time must be a finite number > 0"):
        foliax.brownian(plane, jnp.zeros(3), jax.random.key(0), 0.0)


# Kicks.


def test_kicks_send_a_stalled_walk_on():
    options = {"max_steps": 80, "save_every": 1, "arrival": 0.0}
    x, target = jnp.zeros(3), jnp.array([1.0, 0.0, 1.0])
    still = foliax.walk(plane, x, target, **options)
    sent = foliax.walk(plane, x, target, kicks=2, kick=0.5, key=jax.random.key(0), **options)
    assert still.status == sent.status == Status.stalled
    assert int(sent.num_steps) > int(still.num_steps)
    np.testing.assert_allclose(sent.best, still.best, atol=1e-6)
    assert float(jnp.max(jnp.abs(sent.points[:, 2]))) == 0.0  # kicks stay inside D
    with pytest.raises(ValueError, match="kicks=1 needs a key"):
        foliax.walk(plane, x, target, kicks=1)
