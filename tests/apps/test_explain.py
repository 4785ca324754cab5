"""The nearest images of every class: exact on linear models, and what holds on all others."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial
from scipy.optimize import minimize, nnls

import foliax
from foliax import Status
from foliax.apps.explain import (
    explain,
    nearest_distribution,
    order,
    reach,
)
from foliax.apps.explain.move import nearest
from tests.cases import CASES, leaf_projector, linear, name_of


def linear_model(seed, num_classes=5, n=8, dtype=jnp.float64):
    rng = np.random.default_rng(seed)
    weight, bias, x = (
        rng.normal(size=(num_classes, n)),
        rng.normal(size=num_classes),
        rng.normal(size=n),
    )
    return Partial(linear, (jnp.asarray(weight, dtype), jnp.asarray(bias, dtype))), jnp.asarray(
        x, dtype
    )


def least_distance(rows, bounds):
    """Return the shortest v with rows v >= bounds, by Lawson and Hanson's reduction to NNLS."""
    e = np.vstack([rows.T, bounds])
    f = np.append(np.zeros(rows.shape[1]), 1.0)
    residual = e @ nnls(e, f, maxiter=1000)[0] - f
    return None if abs(residual[-1]) < 1e-12 else -residual[:-1] / residual[-1]


def nearest_of_class(model, x, to):
    weight, bias = (np.asarray(part) for part in model.args[0])
    others = np.arange(len(bias)) != to
    rows, lead = weight[to] - weight[others], (weight @ np.asarray(x) + bias)
    return least_distance(rows, lead[others] - lead[to])


many_classes = jax.jit(jax.vmap(reach, in_axes=(None, None, 0)))


# --- linear models ---


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_on_a_linear_model_the_move_is_the_smallest_of_all(seed, dtype):
    model, x = linear_model(seed, dtype=dtype)
    label = int(jnp.argmax(model(x)))
    found = many_classes(model, x, jnp.arange(5))
    for to in range(5):
        if to == label:
            continue
        assert name_of(found.status)[to] == "arrived"
        best = nearest_of_class(model, x, to)
        np.testing.assert_allclose(found.end[to] - x, best, atol=2e-5)
        np.testing.assert_allclose(found.chord[to], np.linalg.norm(best), rtol=1e-5)
        np.testing.assert_allclose(found.length[to], found.chord[to], rtol=1e-5)  # straight
        assert int(jnp.argmax(found.logits[to])) == to
        move = np.asarray(found.end[to] - x, np.float64)
        outside = move - leaf_projector(model, x) @ move
        assert np.abs(outside).max() < 1e-5


def test_where_no_third_class_is_in_the_way_it_is_the_margin_over_the_slope():
    model, x = linear_model(4, num_classes=2)
    weight, _ = model.args[0]
    logits = model(x)
    label = int(jnp.argmax(logits))
    across = weight[1 - label] - weight[label]
    margin = float(logits[label] - logits[1 - label])
    found = reach(model, x, 1 - label)
    expected = margin * across / jnp.sum(across**2)
    np.testing.assert_allclose(found.end - x, expected, atol=1e-9)
    assert float(found.chord) == pytest.approx(margin / float(jnp.linalg.norm(across)), rel=1e-9)
    assert 0 < float(found.logits[1 - label] - found.logits[label]) < 1e-12


def test_a_third_class_that_wins_on_the_way_is_gone_round():
    # Classes at the places 0, 1, 2 of a line, each the nearest of its third of it, and a second
    # axis along which class 1 can be left behind.
    weight = jnp.array([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    model, x = Partial(linear, (weight, jnp.array([0.0, 0.5, -2.0]))), jnp.array([-1.0, 0.0])
    found = reach(model, x, 2)
    best = nearest_of_class(model, x, 2)
    assert np.linalg.norm(best) > 2 / 1.0 - 1e-9  # the boundary of 0 and 2 alone is 2 away
    np.testing.assert_allclose(found.end - x, best, atol=1e-9)


@pytest.mark.parametrize("step", [0.05, 1.0, float("inf")])
def test_on_a_linear_model_the_length_of_a_step_does_not_matter(step):
    model, x = linear_model(5)
    to = int(jnp.argmin(model(x)))
    found = reach(model, x, to, step=step)
    np.testing.assert_allclose(found.end - x, nearest_of_class(model, x, to), atol=1e-8)


@pytest.mark.parametrize("metric", ["euclidean", "fisher"])
def test_a_class_that_never_wins_is_not_reached(metric):
    # Class 1 is always the mean of the two others.
    weight = jnp.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    model, x = Partial(linear, (weight, jnp.array([0.5, 0.0, 0.5]))), jnp.array([0.3, 0.0])
    assert nearest_of_class(model, x, 1) is None
    found = reach(model, x, 1, metric=metric, max_steps=50)
    assert found.status in (Status.stalled, Status.out_of_steps)
    assert bool(jnp.all(jnp.isfinite(found.end)))


# --- the projection on a polyhedron ---


@pytest.mark.parametrize("shape", [(4, 6), (9, 9), (9, 4), (15, 12)])
def test_the_nearest_point_of_a_polyhedron(shape):
    rng = np.random.default_rng(shape[0])
    solve = jax.jit(nearest)
    for _ in range(25):
        rows = rng.normal(size=shape)
        inner = 3 * rng.normal(
            size=shape[1]
        )  # a point that fulfils all, so that there is a nearest
        lead = rng.exponential(size=shape[0]) * rng.integers(0, 2, shape[0]) - rows @ inner
        best = least_distance(rows, -lead)
        np.testing.assert_allclose(solve(rows, lead), best, atol=1e-6)


def test_rows_that_are_alike_or_zero_do_no_harm():
    rows = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(nearest(rows, jnp.array([-2.0, -2.0, 0.0, 1.0])), [2, 0], atol=1e-6)
    np.testing.assert_allclose(nearest(rows, jnp.array([2.0, 2.0, 0.0, 1.0])), [0, 0], atol=1e-12)


# --- the metric of G ---

probabilities = st.lists(st.floats(1e-6, 1.0), min_size=3, max_size=6).map(
    lambda values: np.array(values) / np.sum(values)
)
distribution = jax.jit(nearest_distribution)


@settings(deadline=None, max_examples=40)
@given(probabilities, st.integers(0, 2))
def test_the_nearest_distribution_is_the_projection_on_the_cone(p, to):
    q, u = np.asarray(distribution(p, to)), np.sqrt(p)
    assert q.sum() == pytest.approx(1)
    assert np.all(q[to] >= q - 1e-12)
    others = np.arange(len(p)) != to
    rows = np.eye(len(p))[to] - np.eye(len(p))[others]
    onto = u + least_distance(rows, -(rows @ u)) if np.any(rows @ u < 0) else u
    np.testing.assert_allclose(np.sqrt(q), onto / np.linalg.norm(onto), atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(probabilities)
def test_in_that_bound_the_more_probable_class_is_nearer(p):
    inner = [np.sum(np.sqrt(p * np.asarray(distribution(p, to)))) for to in range(len(p))]
    assert np.all(np.diff(np.asarray(inner)[np.argsort(p)]) >= -1e-9)


def test_where_one_class_is_ahead_the_bound_has_a_closed_form():
    p = jnp.array([0.7, 0.2, 0.1])
    q = nearest_distribution(p, 1)
    expected = 2 * np.arcsin((np.sqrt(0.7) - np.sqrt(0.2)) / np.sqrt(2))
    assert 2 * np.arccos(float(jnp.sum(jnp.sqrt(p * q)))) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(nearest_distribution(p, 0), p, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_at_full_rank_the_bound_is_reached(dtype):
    model, x = linear_model(6, dtype=dtype)
    found = jax.vmap(partial(reach, model, x, metric="fisher"))(jnp.arange(5))
    assert np.all(found.status == Status.arrived)
    np.testing.assert_allclose(
        found.fisher, found.bound, atol=1e-4 if dtype == jnp.float32 else 1e-8
    )
    goal = nearest_distribution(jax.nn.softmax(model(x)), 3)
    np.testing.assert_allclose(jax.nn.softmax(found.logits[3]), goal, atol=1e-4)
    by_length = jax.vmap(partial(reach, model, x))(jnp.arange(5))
    assert np.all(by_length.chord <= found.chord + 1e-5)
    assert np.all(by_length.fisher >= found.fisher - 1e-4)


# --- all networks ---


@pytest.mark.parametrize("name", ["tanh", "relu", "image", "gap_60", "more_classes_than_inputs"])
@pytest.mark.parametrize("metric", ["euclidean", "fisher"])
def test_what_is_reached_is_at_the_boundary(name, metric):
    model, x, *_ = CASES[name]
    p = jax.nn.softmax(model(x))
    label = int(jnp.argmax(p))
    classes = jnp.arange(p.size)
    found = jax.vmap(partial(reach, model, x, metric=metric, max_steps=300))(classes)
    arrived = np.asarray(found.status == Status.arrived)
    assert arrived[label]
    # Fewer inputs than classes leave no way to a given p, and tanh no way over a gap of 60.
    assert arrived.sum() >= 2 or name == "gap_60" or (metric, name[:4]) == ("fisher", "more")
    for to in np.flatnonzero(arrived & (np.arange(p.size) != label)):
        logits = model(found.end[to])
        others = float(jnp.max(jnp.delete(logits, to)))
        assert abs(float(logits[to]) - others) < 1e-8 * (1 + abs(others))
        assert 0 < float(found.chord[to]) <= float(found.length[to]) * (1 + 1e-9)
        assert float(found.fisher[to]) >= float(found.bound[to]) - 1e-9
    assert np.all(np.asarray(found.fisher) <= np.pi)
    assert bool(jnp.all(jnp.isfinite(found.end)))
    assert found.end.shape == (p.size, *x.shape)


def test_on_a_smooth_network_it_is_no_worse_than_a_general_solver():
    model, x, *_ = CASES["tanh"]
    label = int(jnp.argmax(model(x)))
    found = jax.vmap(partial(reach, model, x, step=0.02))(jnp.arange(4))
    lead = jax.jit(lambda z, to: model(z)[to] - model(z))
    slope = jax.jit(jax.jacobian(lead))
    for to in np.flatnonzero((found.status == Status.arrived) & (np.arange(4) != label)):
        # In all of input space: leaving the leaf does not make it much shorter here.
        best = minimize(
            lambda z: np.sum((z - np.asarray(x)) ** 2), np.asarray(found.end[to]), method="SLSQP",
            constraints=[{"type": "ineq", "fun": lambda z, to=to: np.asarray(lead(z, to)),
                          "jac": lambda z, to=to: np.asarray(slope(z, to))}],
        )  # fmt: skip
        assert np.sqrt(best.fun) <= float(found.chord[to]) * (1 + 1e-6)
        assert float(found.chord[to]) <= 1.1 * np.sqrt(best.fun)


def test_the_label_itself_is_reached_without_a_move():
    model, x = linear_model(7)
    label = int(jnp.argmax(model(x)))
    found = reach(model, x, label)
    assert found.status == Status.arrived
    assert float(found.chord) == float(found.length) == float(found.bound) == 0
    assert float(found.fisher) == pytest.approx(0, abs=1e-7)
    np.testing.assert_array_equal(found.end, x)


def test_what_is_not_a_number_is_invalid():
    model, x = linear_model(7)
    assert reach(model, x.at[0].set(jnp.nan), 1).status == Status.invalid


# --- all classes, many inputs ---


def test_classes_are_ordered_by_either_distance():
    model, x = linear_model(8)
    found = explain(model, x)
    label = int(found.label)
    assert label == int(jnp.argmax(model(x)))
    by_input = order(found.nearest.chord, found.nearest.status == Status.arrived, label)
    by_metric = order(found.fisher.fisher, found.fisher.status == Status.arrived, label)
    assert int(by_input[-1]) == int(by_metric[-1]) == label
    assert np.all(np.diff(np.asarray(found.nearest.chord)[np.asarray(by_input[:-1])]) >= 0)
    np.testing.assert_array_equal(by_metric[:-1], jnp.argsort(-found.probabilities)[1:])


def test_classes_that_are_not_reached_come_after_those_that_are():
    distances, reached = jnp.array([0.0, 1.0, 9.0, 3.0]), jnp.array([True, False, True, True])
    np.testing.assert_array_equal(order(distances, reached, 0), [3, 2, 1, 0])


@pytest.mark.parametrize("block", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_batch_is_its_members_whatever_its_size_and_order(block):
    model, x, *_ = CASES["relu"]
    xs = x + jax.random.normal(jax.random.key(0), (3, *x.shape))
    found = foliax.map(explain, model, xs, block=block, step=0.5, max_steps=100)
    turned = foliax.map(explain, model, xs[::-1], block=2, step=0.5, max_steps=100)
    for name in ("end", "chord", "length", "fisher", "bound", "num_steps"):
        for kind in ("nearest", "fisher"):
            mine, theirs = (getattr(getattr(each, kind), name) for each in (found, turned))
            np.testing.assert_allclose(mine, theirs[::-1], atol=1e-7, err_msg=f"{kind} {name}")
    for kind in ("nearest", "fisher"):
        mine, theirs = (name_of(getattr(each, kind).status) for each in (found, turned))
        assert mine == theirs[::-1]
    np.testing.assert_array_equal(found.label, turned.label[::-1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: reach(m, x, 5), "to must be a class, 0 … 4, got 5"),
        (lambda m, x: reach(m, x, 1.5), "to must be a class"),
        (lambda m, x: reach(m, x, 1, metric="hyperbolic"), "metric must be one of"),
        (lambda m, x: reach(m, x, 1, step=0.0), "step must be a finite number > 0"),
        (lambda m, x: reach(m, x, 1, max_steps=0), "max_steps must be a whole number >= 1"),
        (lambda m, x: foliax.map(explain, m, x[None], step=0.0), "step must be a finite number"),
        (lambda *_: nearest_distribution(jnp.ones(1), 0), "p must be .* C >= 2 classes"),
        (lambda *_: nearest_distribution(jnp.ones(3) / 3, 3), "to must be a class, 0 … 2"),
    ],
)  # fmt: skip
def test_bad_arguments_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call(*linear_model(1))
