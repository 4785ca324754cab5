"""The nearest point of a level set, and parts of the input that may not move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.tree_util import Partial

import foliax
from foliax import Box, Status
from tests.cases import CASES, linear

TANH, X = CASES["tanh"].model, CASES["tanh"].x
RNG = np.random.default_rng(3)
AWAY = X + 2 * RNG.normal(size=X.shape)


def nearest(model, start, target, **options):
    return foliax.closest(model, start, target, along="kernel", **options)


def test_of_a_linear_model_it_is_the_orthogonal_projection():
    weight, start, target = RNG.normal(size=(4, 9)), RNG.normal(size=9), RNG.normal(size=9)
    found = nearest(Partial(linear, (weight, np.zeros(4))), start, target)
    rows = weight[1:] - weight[:1]
    expected = target - np.linalg.pinv(rows) @ (rows @ (target - start))
    np.testing.assert_allclose(found.point, expected, rtol=1e-9, atol=1e-9)
    assert found.status == Status.arrived
    assert float(found.probability_change) <= 1e-12
    assert float(found.optimality) <= 1e-5 * float(found.distance)


@pytest.mark.parametrize("outside", [0.5, 3.0])
def test_of_a_sphere_it_is_the_target_scaled(outside):
    """The logits (‖x‖², 0): the level sets are spheres."""
    start, toward = RNG.normal(size=(2, 6))
    radius = np.linalg.norm(start)
    target = outside * radius * toward / np.linalg.norm(toward)
    found = nearest(lambda x: jnp.stack([x @ x, 0 * x[0]]), start, target)
    np.testing.assert_allclose(found.point, target / outside, rtol=1e-6, atol=1e-6)
    assert found.status == Status.arrived


def test_a_box_may_hold_it_in_a_corner():
    weight = np.zeros((3, 4))
    weight[1, 0] = 1.0
    start, target = np.array([0.5, -0.5, 0.0, 0.3]), np.array([3.0, 4.0, -5.0, 6.0])
    found = nearest(Partial(linear, (weight, np.zeros(3))), start, target, box=Box(-1.0, 1.0))
    np.testing.assert_allclose(found.point, [0.5, 1, -1, 1], atol=1e-9)
    assert found.status == Status.arrived
    assert int(found.active_bounds) == 3


def test_in_a_box_it_solves_the_quadratic_programme():
    """Of a linear model, held against SciPy's solver."""
    weight, start = RNG.normal(size=(4, 9)), 0.3 * RNG.normal(size=9)
    target = 3 * RNG.normal(size=9)
    rows = weight[1:] - weight[:1]
    expected = scipy.optimize.minimize(
        lambda z: 0.5 * np.sum((z - target) ** 2),
        start,
        jac=lambda z: z - target,
        bounds=[(-1, 1)] * 9,
        constraints={"type": "eq", "fun": lambda z: rows @ (z - start), "jac": lambda _: rows},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    found = nearest(Partial(linear, (weight, np.zeros(4))), start, target, box=Box(-1.0, 1.0))
    np.testing.assert_allclose(found.point, expected.x, atol=1e-6)
    assert found.status == Status.arrived


@pytest.mark.parametrize("box", [None, Box(-1.6, 1.6)])
def test_on_a_smooth_network_nothing_allowed_leads_nearer(box):
    """First-order optimality, with the gradient of the contrasts by finite differences."""
    found = nearest(TANH, X, AWAY, box=box, max_steps=200)
    z = np.asarray(found.point)

    def contrasts(y):
        return np.asarray(TANH(jnp.asarray(y)))[1:] - np.asarray(TANH(jnp.asarray(y)))[0]

    eye = 1e-5 * np.eye(z.size)
    rows = np.stack([(contrasts(z + e) - contrasts(z - e)) / 2e-5 for e in eye], axis=1)
    inside = np.ones(z.size, bool) if box is None else (z > -1.6) & (z < 1.6)
    multipliers, *_ = np.linalg.lstsq(rows[:, inside].T, (AWAY - z)[inside], rcond=None)
    rest = AWAY - z - rows.T @ multipliers
    assert np.linalg.norm(rest[inside]) <= 1e-4 * np.linalg.norm(AWAY - z)
    assert (rest[~inside] * z[~inside] >= 0).all()  # what would leave the box alone leads nearer
    np.testing.assert_allclose(contrasts(z), contrasts(X), atol=1e-9)
    np.testing.assert_allclose(found.distance, np.linalg.norm(AWAY - z), rtol=1e-12)


def test_it_is_no_farther_than_another_method_finds():
    """Held against sequential least squares, started at the same point."""

    def shift(y):
        return TANH(y)[1:] - TANH(y)[0] - (TANH(X)[1:] - TANH(X)[0])

    jacobian, shift = jax.jit(jax.jacrev(shift)), jax.jit(shift)
    other = scipy.optimize.minimize(
        lambda z: 0.5 * np.sum((z - AWAY) ** 2),
        X,
        jac=lambda z: z - AWAY,
        constraints={"type": "eq", "fun": shift, "jac": jacobian},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert np.abs(shift(other.x)).max() <= 1e-8
    found = nearest(TANH, X, AWAY, max_steps=200)
    assert float(found.distance) <= np.linalg.norm(other.x - AWAY) * (1 + 1e-6)


def test_a_target_with_the_same_probabilities_is_reached():
    there = foliax.drift(TANH, X, AWAY - X, along="kernel", max_steps=20).end
    for target in (X, there):
        found = nearest(TANH, X, target)
        np.testing.assert_allclose(found.point, target, atol=1e-6)
        assert found.status == Status.arrived


def test_a_model_that_tells_nothing_lets_everything_through():
    found = nearest(lambda x: jnp.zeros(3) + 0 * x[0], X, AWAY, box=Box(-2.0, 2.0))
    np.testing.assert_allclose(found.point, np.clip(AWAY, -2, 2), atol=1e-12)
    assert found.status == Status.arrived
    assert float(found.probability_change) == 0


def test_a_masked_class_is_as_if_it_were_not_there():
    kept = [0, 2, 3]

    def masked(x):
        return TANH(x).at[1].set(-jnp.inf)

    with_mask = nearest(masked, X, AWAY, max_steps=200)
    without = nearest(lambda x: TANH(x)[jnp.array(kept)], X, AWAY, max_steps=200)
    np.testing.assert_allclose(with_mask.distance, without.distance, rtol=1e-6)
    assert float(with_mask.probability_change) <= 1e-9


@pytest.mark.parametrize("which", ["start", "target"])
def test_what_is_no_number_is_invalid(which):
    broken = {"start": X, "target": AWAY}
    broken[which] = broken[which] * np.nan
    assert nearest(TANH, broken["start"], broken["target"]).status == Status.invalid


def test_in_single_precision_p_is_kept():
    model, start, target = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (TANH, X, AWAY))
    found = nearest(model, start, target, box=Box(-2.0, 2.0))
    assert float(found.probability_change) <= 1e-5
    assert found.point.dtype == jnp.float32


# Parts of the input that may not move.

FREE = np.array([True, False, True, True, False])
PLACES = np.flatnonzero(FREE)


def of_the_free(model, x):
    """Return the model as one of the free entries alone, the others as in x."""
    return lambda part: model(jnp.asarray(x).at[PLACES].set(part))


@pytest.mark.parametrize("along", ["leaf", "kernel"])
@pytest.mark.parametrize("move", [foliax.walk, foliax.drift], ids=["walk", "drift"])
def test_a_walk_of_a_part_is_that_of_the_model_of_that_part(move, along):
    options = {"along": along, "max_steps": 20, "save_every": 10}
    path = move(TANH, X, AWAY, free=FREE, **options)
    part = move(of_the_free(TANH, X), X[FREE], AWAY[FREE], **options)
    np.testing.assert_array_equal(path.points[:, ~FREE], np.broadcast_to(X[~FREE], (3, 2)))
    np.testing.assert_allclose(path.points[:, FREE], part.points, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(path.distance, part.distance, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(path.dimension, part.dimension)
    assert path.status == part.status


@pytest.mark.parametrize("along", ["leaf", "kernel"])
def test_the_closest_point_of_a_part_is_that_of_the_model_of_that_part(along):
    found = foliax.closest(TANH, X, AWAY, along=along, free=FREE)
    part = foliax.closest(of_the_free(TANH, X), X[FREE], AWAY[FREE], along=along)
    np.testing.assert_array_equal(found.point[~FREE], X[~FREE])
    np.testing.assert_allclose(found.point[FREE], part.point, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("free", "message"),
    [
        (np.ones(3, bool), "free must broadcast to the shape of x"),
        (np.ones(5), "free must be a mask of booleans"),
        (np.zeros(5, bool), "free must let some entry of x move"),
    ],
)
def test_a_mask_that_is_none_is_refused(free, message):
    with pytest.raises(ValueError, match=message):
        foliax.walk(TANH, X, AWAY, free=free)
