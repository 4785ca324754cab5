"""Metamers from gradients alone, against closed forms and against the exact search."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import foliax
from foliax import Box
from foliax.apps.metamer import at_scale
from tests.cases import CASES, linear

TANH, X = CASES["tanh"].model, CASES["tanh"].x
RNG = np.random.default_rng(7)
TARGET = X + RNG.normal(size=5)
KEEP = 1e-7  # of a probability; points are compared to about its root


def _search(model, start, target, **options):
    return at_scale(model, start, target, progress=False, **{"keep": KEEP, **options})


def _name(found):
    return foliax.Status[found.status]


def test_of_a_linear_model_it_is_the_projection_onto_the_kernel():
    weight = RNG.normal(size=(3, 5))
    found = _search(Partial(linear, (weight, np.zeros(3))), X, TARGET)
    rows = weight[1:] - weight[:1]
    expected = X + (np.eye(5) - np.linalg.pinv(rows) @ rows) @ (TARGET - X)
    np.testing.assert_allclose(found.point, expected, atol=1e-4 * float(np.linalg.norm(TARGET - X)))
    assert found.probability_change <= KEEP


@pytest.mark.parametrize("options", [
    {},
    {"box": Box(-1.6, 1.6)},
    {"free": np.array([True, True, True, True, False])},
], ids=str)  # fmt: skip
def test_it_is_the_point_of_the_exact_search(options):
    found = _search(TANH, X, TARGET, **options)
    exact = foliax.closest(TANH, X, TARGET, along="kernel", **options)
    way = float(np.linalg.norm(TARGET - X))
    np.testing.assert_allclose(found.point, exact.point, atol=1e-3 * way)
    np.testing.assert_allclose(found.distance, exact.distance, rtol=1e-5)
    assert found.probability_change <= KEEP
    assert found.active_bounds == exact.active_bounds
    if "free" in options:
        assert found.point[4] == X[4]


def test_where_the_target_is_the_start_nothing_moves():
    found = _search(TANH, X, X)
    np.testing.assert_array_equal(found.point, X)
    assert (_name(found), float(found.distance)) == (foliax.Status[foliax.Status.arrived], 0)


def test_where_the_model_is_constant_it_is_the_target():
    found = _search(lambda x: 0 * x[:3], X, TARGET)
    np.testing.assert_allclose(found.point, TARGET, atol=1e-9)
    assert _name(found) == foliax.Status[foliax.Status.arrived]


def test_p_is_kept_where_the_search_ends_early():
    """The last search returns p, and the status says that the point may not be the nearest."""
    found = _search(TANH, X, TARGET, rounds=2, keep=1e-3)
    assert found.probability_change <= 1e-3
    assert _name(found) == foliax.Status[foliax.Status.out_of_steps]


def test_masked_classes_stay_masked():
    def model(x):
        return jnp.where(jnp.arange(4) < 3, TANH(x)[jnp.arange(4) % 3], -jnp.inf)

    found = _search(model, X, TARGET)
    expected = _search(lambda x: TANH(x)[:3], X, TARGET)
    np.testing.assert_allclose(found.point, expected.point, atol=1e-4)


def test_what_is_not_finite_is_invalid_and_gives_the_start():
    found = _search(lambda x: jnp.where(x[0] == X[0], jnp.nan, x[:3]), X, TARGET)
    assert _name(found) == foliax.Status[foliax.Status.invalid]
    np.testing.assert_array_equal(found.point, X)


@pytest.mark.parametrize(("options", "message"), [
    ({"keep": 0.0}, "keep must be a finite number > 0"),
    ({"rounds": 0}, "rounds must be a whole number >= 1"),
    ({"steps": 0}, "steps must be a whole number >= 1"),
    ({"target": np.zeros(3)}, "target must have"),
    ({"box": Box(10.0, 11.0)}, "start"),
    ({"free": np.ones(3, bool)}, "free"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        at_scale(**{"model": TANH, "start": X, "target": TARGET, **options})
