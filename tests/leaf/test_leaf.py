"""Lengths, distance and geodesics of a leaf against closed forms, and against each other."""

import itertools
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import foliax
from foliax import Status, leaf, zoo
from tests import cases
from tests.cases import CASES

# Leaves of full rank C − 1.
FULL = ("linear", "tanh", "image")
STEPS = 32
FINE = diffrax.Tsit5()

lifts = {n: jax.jit(partial(leaf.geodesic, num_steps=n)) for n in (8, 16, STEPS)}
geodesic = lifts[STEPS]
to_probabilities = jax.jit(
    lambda model, x, target: leaf.geodesic(model, x, log_probabilities=target, num_steps=STEPS)
)
exponential = jax.jit(partial(leaf.exponential, num_steps=STEPS))
by_connection = jax.jit(
    lambda model, x, target: leaf.geodesic(
        model, x, log_probabilities=target, method="connection", num_steps=STEPS, solver=FINE
    )
)
exponential_by_connection = jax.jit(
    partial(leaf.exponential, method="connection", num_steps=STEPS, solver=FINE)
)
fine_exponential = jax.jit(partial(leaf.exponential, num_steps=STEPS, solver=FINE))
distance = jax.jit(leaf.distance)
distance_by_connection = jax.jit(
    partial(leaf.distance, method="connection", num_steps=STEPS, solver=FINE)
)


def root(model, x):
    return np.sqrt(np.asarray(jax.nn.softmax(model(x)), np.float64))


def arc(model, x, y):
    """Return 2 arccos Σ √(p q), as it is defined."""
    return 2 * np.arccos(np.sum(root(model, x) * root(model, y)))


def other(case, seed=0, scale=1.0):
    return case.x + scale * cases.directions(case, seed)[0]


def great_circle(model, x, y, times):
    """Return √p along the great circle, by its formula."""
    a, b = root(model, x), root(model, y)
    angle = np.arccos(np.sum(a * b))
    times = np.asarray(times)[:, None]
    return (np.sin((1 - times) * angle) * a + np.sin(times * angle) * b) / np.sin(angle)


# --- length, energy, distance ------------------------------------------------------------------


def test_length_and_energy_by_hand():
    """On a line of a binary model with s = (x, 0): G = p(1 − p), length 2 arctan e^{x/2}."""
    model = Partial(lambda _, x: jnp.stack([x[0], 0 * x[0]]), None)
    line = jnp.linspace(-1.0, 2.0, 2001)[:, None]
    exact = 2 * (np.arctan(np.exp(1.0)) - np.arctan(np.exp(-0.5)))
    assert leaf.length(model, line) == pytest.approx(exact, rel=1e-6)
    p = 1 / (1 + np.exp(-np.linspace(-1, 2, 100_001)))
    energy = 3 * np.trapezoid(p * (1 - p), dx=3 / 100_000) / 2
    assert leaf.energy(model, line) == pytest.approx(energy, rel=1e-6)


@pytest.mark.parametrize("name", ["tanh", "image", "more_classes_than_inputs"])
def test_length_is_the_sum_of_quadratic_forms(name):
    case = CASES[name]
    points = jnp.linspace(0, 1, 6).reshape(-1, *[1] * case.x.ndim) * case.x
    flat = np.asarray(points).reshape(6, -1)
    squares = []
    for before, after in itertools.pairwise(flat):
        middle = jnp.asarray((before + after) / 2).reshape(case.x.shape)
        g = np.asarray(cases.pairwise_matrix(case.model, middle))
        squares.append((after - before) @ g @ (after - before))
    for chunk in (None, 2):
        found = leaf.length(case.model, points, chunk=chunk)
        assert found == pytest.approx(np.sum(np.sqrt(squares)), rel=1e-10)
    assert leaf.energy(case.model, points) == pytest.approx(5 * np.sum(squares) / 2, rel=1e-10)


def test_energy_is_least_at_constant_speed():
    case = CASES["tanh"]
    even = jnp.linspace(0, 1, 401)[:, None]
    slow_first = case.x + even**2 * (other(case) - case.x)
    length, energy = (f(case.model, slow_first) for f in (leaf.length, leaf.energy))
    assert energy > length**2 / 2 * 1.01
    path = geodesic(case.model, case.x, other(case))
    # At its own times, a geodesic has constant speed.
    pairs = jnp.stack([path.points[:-1], path.points[1:]], axis=1)
    parts = jax.vmap(leaf.length, in_axes=(None, 0))(case.model, pairs)
    np.testing.assert_allclose(parts / np.diff(path.times), path.length, rtol=5e-3)


def test_a_curve_in_the_kernel_has_no_length():
    model = Partial(lambda _, x: jnp.stack([x[0], 0 * x[0]]), None)
    points = jnp.stack([jnp.zeros(5), jnp.linspace(0, 3, 5)], axis=1)
    assert leaf.length(model, points) == 0
    assert leaf.energy(model, points) == 0
    slope = jax.grad(lambda points: leaf.length(model, points))(points)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("name", ["linear", "tanh", "image", "narrow_layer", "two_classes"])
def test_distance_is_the_angle_of_the_roots(name):
    case = CASES[name]
    y = other(case)
    found = distance(case.model, case.x, y)
    assert found == pytest.approx(arc(case.model, case.x, y), rel=1e-8)
    assert found == pytest.approx(float(distance(case.model, y, case.x)), rel=1e-12)
    # A curve between them is no shorter.
    straight = case.x + jnp.linspace(0, 1, 101).reshape(-1, *[1] * y.ndim) * (y - case.x)
    assert leaf.length(case.model, straight) >= found * (1 - 1e-6)


def test_distance_of_neighbours_is_the_quadratic_form():
    case = CASES["tanh"]
    direction = cases.directions(case)[0]
    for size in (1e-3, 1e-7, 1e-12):
        near = case.x + size * direction
        expected = jnp.sqrt(2 * foliax.quadratic(case.model, case.x, near - case.x))
        assert distance(case.model, case.x, near) == pytest.approx(
            float(expected), rel=2e-2 * size**0.5 + 1e-3
        )


@pytest.mark.parametrize("name", cases.SATURATED)
def test_distance_of_saturated_points_is_finite_and_bounded(name):
    case = CASES[name]
    found = distance(case.model, case.x, other(case, scale=3))
    assert 0 <= found <= np.pi
    assert distance(case.model, case.x, case.x) == 0


def test_distance_has_a_gradient_and_none_where_there_is_no_distance():
    case = CASES["tanh"]
    y = other(case)
    slope = jax.grad(leaf.distance, argnums=2)(case.model, case.x, y)
    direction = cases.directions(case, 3)[0]
    expected = cases.central_difference(
        lambda y: leaf.distance(case.model, case.x, y), y, direction
    )
    assert jnp.vdot(slope, direction) == pytest.approx(float(expected), rel=1e-7)
    at_start = jax.grad(leaf.distance, argnums=2)(case.model, case.x, case.x)
    np.testing.assert_array_equal(at_start, 0)


def test_triangles():
    case = CASES["tanh"]
    a, b, c = case.x, other(case, 1), other(case, 2)
    ab, bc, ac = (distance(case.model, *pair) for pair in ((a, b), (b, c), (a, c)))
    assert ac <= ab + bc
    assert ab <= ac + bc


# --- geodesics at full rank --------------------------------------------------------------------


@pytest.mark.parametrize("name", FULL)
def test_a_geodesic_is_a_lifted_great_circle(name):
    case = CASES[name]
    y = other(case)
    found = geodesic(case.model, case.x, y)
    assert found.status == Status.arrived
    roots = np.stack([root(case.model, x) for x in found.points])
    np.testing.assert_allclose(roots, great_circle(case.model, case.x, y, found.times), atol=1e-10)
    assert found.length == pytest.approx(float(distance(case.model, case.x, y)), rel=1e-12)
    assert np.max(found.defect) < 1e-9
    np.testing.assert_array_equal(found.points[0], case.x)
    np.testing.assert_array_equal(found.end, found.points[-1])
    assert leaf.length(case.model, found.points) == pytest.approx(float(found.length), rel=1e-3)


def test_it_is_the_horizontal_lift():
    """Its steps leave D at their middle by the square of their length only, and less by halves."""
    case = CASES["tanh"]
    outside = {}
    for num_steps in (16, STEPS):
        found = lifts[num_steps](case.model, case.x, other(case))
        i = num_steps // 2
        step, middle = (
            np.asarray(found.points[i + 1] - found.points[i]),
            (found.points[i + 1] + found.points[i]) / 2,
        )
        inside = cases.leaf_projector(case.model, middle) @ step
        outside[num_steps] = np.linalg.norm(step - inside) / np.linalg.norm(step)
    assert outside[STEPS] < 1e-3
    assert outside[STEPS] < outside[16] / 3


def test_a_linear_model_is_lifted_exactly():
    """D is constant: the end is x plus the move of least norm."""
    case = CASES["linear"]
    y = other(case)
    found = geodesic(case.model, case.x, y)
    inside = cases.leaf_projector(case.model, case.x) @ np.asarray(y - case.x)
    np.testing.assert_allclose(found.end, case.x + inside, atol=1e-9)


def test_the_lift_is_of_the_order_of_the_solver():
    case = CASES["tanh"]
    y = other(case)
    ends = {n: lift(case.model, case.x, y).end for n, lift in lifts.items()}
    errors = [np.linalg.norm(ends[n] - ends[STEPS]) for n in (8, 16)]
    assert errors[1] < errors[0] / 3  # Heun is of order 2


def test_the_velocity_is_that_of_the_exponential_map():
    case = CASES["tanh"]
    found = geodesic(case.model, case.x, other(case))
    speed = np.sqrt(2 * foliax.quadratic(case.model, case.x, found.velocity))
    assert speed == pytest.approx(float(found.length), rel=1e-9)
    back = exponential(case.model, case.x, found.velocity)
    assert back.status == Status.completed
    assert back.length == pytest.approx(float(found.length), rel=1e-9)
    np.testing.assert_allclose(root(case.model, back.end), root(case.model, found.end), atol=1e-9)
    np.testing.assert_allclose(back.end, found.end, atol=1e-6)


def test_only_the_part_in_the_leaf_of_a_velocity_counts():
    case = CASES["image"]
    v = 0.3 * cases.directions(case)[0]
    inside = foliax.project_leaf(case.model, case.x, v)
    first, second = (exponential(case.model, case.x, u) for u in (v, inside))
    np.testing.assert_allclose(first.points, second.points, atol=1e-9)
    np.testing.assert_allclose(first.velocity, inside, atol=1e-9)


def test_a_great_circle_that_leaves_the_simplex_ends_before():
    case = CASES["tanh"]
    v = 40 * foliax.project_leaf(case.model, case.x, cases.directions(case)[0])
    found = exponential(case.model, case.x, v)
    assert found.status in (Status.boundary, Status.stalled)
    assert np.isfinite(found.points).all()
    assert found.length < np.pi


def test_geodesic_to_given_probabilities():
    case = CASES["linear"]
    target = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
    found = to_probabilities(case.model, case.x, target + 5.0)
    assert found.status == Status.arrived
    np.testing.assert_allclose(root(case.model, found.end) ** 2, np.exp(target), atol=1e-9)


def test_geodesic_of_two_classes():
    case = CASES["two_classes"]
    y = other(case)
    found = geodesic(case.model, case.x, y)
    assert found.status == Status.arrived
    np.testing.assert_allclose(root(case.model, found.end), root(case.model, y), atol=1e-9)


def test_a_leaf_that_does_not_reach_the_target_stalls():
    """Logits of a tanh network are bounded: it cannot say what a sure target asks for."""
    case = CASES["tanh"]
    target = jnp.array([0.0, -200.0, -200.0, -200.0])
    found = to_probabilities(case.model, case.x, target)
    assert found.status == Status.stalled
    assert np.isfinite(found.points).all()


@pytest.mark.parametrize("name", ["deficient_weights", "narrow_layer", "dead"])
def test_where_the_rank_is_lower_great_circles_cannot_be_followed(name):
    case = CASES[name]
    found = geodesic(case.model, case.x, other(case))
    assert found.status == Status.stalled
    np.testing.assert_array_equal(found.end, case.x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["narrow_layer", "linear"])
def test_the_distance_by_either_method(name):
    """At full rank both agree; where the rank is lower the closed form is a lower bound."""
    case = CASES[name]
    velocity = 0.05 * cases.directions(case)[0]  # farther, hidden units saturate
    end = exponential_by_connection(case.model, case.x, velocity).end
    along = by_connection(case.model, case.x, jax.nn.log_softmax(case.model(end)))
    found = distance_by_connection(case.model, case.x, end)
    np.testing.assert_allclose(found, along.length, rtol=1e-9)
    np.testing.assert_allclose(found, leaf.length(case.model, along.points), rtol=1e-3)
    bound = distance(case.model, case.x, end)
    if name == "linear":
        np.testing.assert_allclose(found, bound, rtol=1e-6)
    else:
        assert found > bound * (1 + 1e-8)


@pytest.mark.slow
def test_no_distance_where_the_geodesic_does_not_arrive():
    case = CASES["linear"]
    assert np.isnan(distance_by_connection(case.model, case.x, other(case).at[0].set(jnp.nan)))
    # As far as this, in float64 the logits of y are those of a corner of the simplex.
    assert np.isnan(distance_by_connection(case.model, case.x, other(case, scale=1e4)))


def test_no_target_but_the_start():
    case = CASES["tanh"]
    found = geodesic(case.model, case.x, case.x)
    assert found.status == Status.arrived
    assert found.length == 0
    np.testing.assert_allclose(found.points, np.broadcast_to(case.x, found.points.shape))


@pytest.mark.parametrize("which", ["x", "y"])
def test_a_nan_is_invalid_and_never_arrives(which):
    case = CASES["tanh"]
    given = {"x": case.x, "y": other(case)}
    given[which] = given[which].at[0].set(jnp.nan)
    assert geodesic(case.model, given["x"], given["y"]).status == Status.invalid


def test_a_trained_network_in_float32():
    with jax.enable_x64(False):
        model, data = zoo.load("digits_mlp"), zoo.load_digits()
        xs = jnp.asarray(data.test_x[:8], jnp.float32)
        many = jax.jit(jax.vmap(partial(leaf.geodesic, num_steps=64), in_axes=(None, 0, 0)))
        found = many(model, xs[:4], xs[4:])
        assert found.points.dtype == jnp.float32
        assert (found.status == Status.arrived).all()
        for x, y, length, end in zip(xs[:4], xs[4:], found.length, found.end, strict=True):
            assert length == pytest.approx(arc(model, x, y), rel=1e-3)
            np.testing.assert_allclose(root(model, end), root(model, y), atol=2e-3)


# --- geodesics by the connection ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "tanh"])
def test_both_methods_agree_at_full_rank(name):
    case = CASES[name]
    v = 0.5 * foliax.project_leaf(case.model, case.x, cases.directions(case)[0])
    sphere = fine_exponential(case.model, case.x, v)
    found = exponential_by_connection(case.model, case.x, v)
    assert found.status == Status.completed
    np.testing.assert_allclose(root(case.model, found.end), root(case.model, sphere.end), atol=1e-6)
    np.testing.assert_allclose(found.end, sphere.end, atol=1e-5)
    assert found.length == pytest.approx(float(sphere.length), rel=1e-9)
    assert np.max(np.abs(found.defect)) < 1e-4


def four(_, x):
    return jnp.stack([0 * x[0], x[0], x[1], x[0] + x[1]])


@pytest.mark.slow
def test_geodesics_of_independent_outputs_are_products():
    """Two independent binary outputs as 2 × 2 classes: a flat leaf, a product of two circles."""

    def angle(x):
        return 2 * np.arctan(np.exp(np.asarray(x) / 2))  # arc length of one binary output

    model = Partial(four, None)
    x, y = jnp.array([0.3, -0.5]), jnp.array([1.5, 1.0])
    found = by_connection(model, x, model(y))
    assert found.status == Status.arrived
    np.testing.assert_allclose(found.end, y, atol=1e-6)
    exact = np.linalg.norm(angle(y) - angle(x))
    assert found.length == pytest.approx(exact, rel=1e-6)
    assert found.length > arc(model, x, y)  # which is a lower bound where the rank is lower
    straight = angle(x) + np.asarray(found.times)[:, None] * (angle(y) - angle(x))
    np.testing.assert_allclose(angle(found.points), straight, atol=1e-6)


def test_a_target_off_the_image_stalls():
    found = by_connection(
        Partial(four, None), jnp.zeros(2), jnp.log(jnp.array([0.4, 0.1, 0.1, 0.4]))
    )
    assert found.status == Status.stalled


# --- arguments ---------------------------------------------------------------------------------


def test_bad_arguments_are_named():
    case, few = CASES["tanh"], CASES["more_classes_than_inputs"]
    wrong: Any = "circle"
    refused = [
        (lambda: leaf.length(case.model, case.x[None]), "points must be at least two inputs"),
        (lambda: leaf.length(case.model, case.x), "points must be at least two inputs"),
        (lambda: leaf.distance(case.model, case.x, case.x[:2]), "y must have"),
        (lambda: leaf.geodesic(case.model, case.x), "either y or log_probabilities"),
        (
            lambda: leaf.geodesic(case.model, case.x, case.x, log_probabilities=jnp.zeros(4)),
            "either y or log_probabilities",
        ),
        (
            lambda: leaf.geodesic(case.model, case.x, log_probabilities=jnp.zeros(3)),
            "log_probabilities must have the shape of the logits",
        ),
        (
            lambda: leaf.geodesic(case.model, case.x, case.x, method=wrong),
            "method must be",
        ),
        (lambda: leaf.geodesic(case.model, case.x, case.x, num_steps=0), "num_steps must be"),
        (lambda: leaf.exponential(case.model, case.x, case.x[:1]), "v must have"),
        (lambda: leaf.geodesic(few.model, few.x, few.x), 'use method="connection"'),
    ]
    for call, match in refused:
        with pytest.raises(ValueError, match=match):
            call()
