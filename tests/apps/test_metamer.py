"""Metamers on the way to references, and the radius at which somebody else sees another class."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import foliax
from foliax import Box
from foliax.apps.metamer import invariance_radius, metamers
from tests.cases import CASES, linear

TANH, X = CASES["tanh"].model, CASES["tanh"].x
RNG = np.random.default_rng(4)
REFERENCES = X + RNG.normal(size=(2, 5))


def test_of_a_linear_model_they_lie_on_straight_ways():
    """The nearest point of the plane to x + s (r − x) is s times that to r."""
    weight = RNG.normal(size=(3, 5))
    found = metamers(Partial(linear, (weight, np.zeros(3))), X, REFERENCES, num=3)
    rows = weight[1:] - weight[:1]
    kernel = np.eye(5) - np.linalg.pinv(rows) @ rows
    for i, reference in enumerate(REFERENCES):
        steps = np.arange(1, 4)[:, None] / 3 * (kernel @ (reference - X))
        np.testing.assert_allclose(found.points[i], X + steps, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.moved[i], np.linalg.norm(steps, axis=1), rtol=1e-8)
    np.testing.assert_allclose(
        found.left, np.linalg.norm(found.points - REFERENCES[:, None], axis=2), rtol=1e-12
    )
    assert float(found.probability_change.max()) <= 1e-12


def test_the_last_is_the_closest_point_and_all_keep_p_and_the_box():
    box, free = Box(-1.6, 1.6), np.array([True, True, True, True, False])
    found = metamers(TANH, X, REFERENCES, num=2, box=box, free=free)
    for i, reference in enumerate(REFERENCES):
        nearest = foliax.closest(TANH, X, reference, along="kernel", box=box, free=free)
        np.testing.assert_allclose(found.points[i, -1], nearest.point, rtol=1e-9, atol=1e-9)
    assert float(found.probability_change.max()) <= 1e-6
    assert float(jnp.abs(found.points).max()) <= 1.6
    np.testing.assert_array_equal(found.points[..., 4], np.full((2, 2), X[4]))


def test_the_radius_is_that_of_the_nearest_that_is_read_as_another():
    moved = jnp.array([[1.0, 2.0, 3.0], [0.5, 1.5, 2.5]])
    found = invariance_radius(moved, jnp.array([[3, 3, 7], [3, 3, 9]]), 3)
    assert (float(found.radius), found.place.tolist()) == (2.5, [1, 2])
    none = invariance_radius(moved, jnp.full((2, 3), 3), 3)
    assert float(none.radius) == np.inf


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="references must have shape"):
        metamers(TANH, X, X)
    with pytest.raises(ValueError, match="num must be a whole number >= 1"):
        metamers(TANH, X, REFERENCES, num=0)
    with pytest.raises(ValueError, match=r"moved and readings must have one shape"):
        invariance_radius(jnp.ones((2, 3)), jnp.ones(3, int), 0)
