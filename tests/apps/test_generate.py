"""Motions that keep a label: on planes, spheres and intervals where the answer is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.optimize import minimize

import foliax
from foliax import Box, Status
from foliax.apps.generate import approach, diffuse
from tests.cases import CASES, compilations, leaf_projector, name_of

PLANE = Partial(
    lambda params, x: params @ x, jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)))
)
X = jnp.linalg.pinv(PLANE.args[0])[:, 0] * 2  # logits (2, 0, 0)
NAMES = ("points", "p_label", "distance", "end", "accepted", "refused")


@partial(jax.jit)
def p_of(model, points):
    return jax.nn.softmax(jax.vmap(model)(points))


def outside_leaf(model, x, points):
    away = np.asarray(points - x).reshape(len(points), -1)
    return np.abs(away - away @ leaf_projector(model, x)).max()


def off_center(x):
    """Logits of which class 0 is above 0.5 exactly where |x| < 2 log 2 - ..., a bounded set."""
    return jnp.stack([0 * x[0], x[0] - 1, -x[0] - 1])


def agrees(samples, expected, *, bias=0.0):
    error = abs(float(jnp.mean(samples)) - expected)
    assert error <= 4 * float(jnp.std(samples)) / np.sqrt(len(samples)) + bias


# --- Brownian motion ---


def many(model, x, seed, num, **options):
    """Return so many motions from one point."""
    keys = jax.random.split(jax.random.key(seed), num)
    return foliax.map(diffuse, model, jnp.tile(x, (num, 1)), keys, block=num, **options)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_on_a_plane_the_motion_stays_in_it_and_above_the_threshold(dtype):
    model, x = jax.tree.map(lambda leaf: leaf.astype(dtype), (PLANE, X))
    found = diffuse(model, x, jax.random.key(0), 5.0, threshold=0.6, num_steps=100, save_every=1)
    assert found.points.dtype == dtype
    assert outside_leaf(model, x, found.points) < 1e-5
    assert int(found.refused) > 0
    assert int(found.accepted + found.refused) == 100
    p = p_of(model, found.points)[:, 0]
    np.testing.assert_allclose(found.p_label, p, atol=1e-6)
    assert float(found.p_label.min()) >= 0.6
    assert float(found.least) == float(found.p_label.min())
    moved = np.any(np.diff(np.asarray(found.points), axis=0) != 0, axis=1)
    assert moved.sum() == int(found.accepted)  # refused steps stand still
    assert found.status == Status.completed
    np.testing.assert_allclose(found.distance, np.linalg.norm(found.points - x, axis=1), rtol=1e-5)


@pytest.mark.parametrize(("along", "dimension"), [("leaf", 2), ("kernel", 4)])
def test_without_a_threshold_it_is_brownian_motion(along, dimension):
    options = {"along": along, "threshold": 0.0, "num_steps": 20, "save_every": 20}
    found = many(PLANE, X, 1, 1000, time=0.7, **options)
    assert not found.refused.any()
    agrees(found.distance[:, -1] ** 2, dimension * 0.7)


def test_the_kernel_motion_is_right_on_a_sphere():
    model = Partial(lambda x: jnp.stack([jnp.sum(x**2), 0 * x[0]]))
    x, time = jnp.array([1.0, 0.0, 0.0]), 0.8
    found = many(model, x, 2, 1000, time=time, along="kernel", num_steps=60)
    np.testing.assert_allclose(jnp.linalg.norm(found.end, axis=1), 1, rtol=1e-4)
    agrees(jnp.sum((found.end - x) ** 2, axis=1), 2 * (1 - np.exp(-time)), bias=0.03)


def test_heun_takes_the_noise_as_stratonovich_does():
    """On the leaf of x + y²/2, a curve y = y0 eˢ, x = s, in the arc length of the plane."""
    model = Partial(lambda x: jnp.stack([x[0] + x[1] ** 2 / 2, 0 * x[0]]))
    x, time = jnp.array([0.0, 1.0]), 0.3
    found = many(model, x, 3, 1500, time=time, threshold=0.0, num_steps=40)
    np.testing.assert_allclose(found.end[:, 1], jnp.exp(found.end[:, 0]), rtol=2e-2)
    sample = partial(foliax.brownian, model, x, time=time, num_steps=40, save_every=40)
    other = jax.vmap(lambda key: sample(key).end)(jax.random.split(jax.random.key(4), 1500))
    for axis in (0, 1):
        spread = float(jnp.std(other[:, axis])) / np.sqrt(1500)
        assert abs(float(jnp.mean(found.end[:, axis] - other[:, axis]))) < 6 * spread


def test_in_the_long_run_the_allowed_part_is_visited_evenly():
    x, threshold = jnp.array([0.2]), 0.5
    # p_0 = 1 / (1 + 2 cosh(x) / e): at the threshold cosh(x) = e / 2.
    edge = np.arccosh(np.e / 2)
    found = many(Partial(off_center), x, 5, 1500, time=3.0, threshold=threshold, num_steps=300)
    assert float(jnp.abs(found.points).max()) <= edge + 1e-9
    agrees(found.end[:, 0], 0.0)
    agrees(found.end[:, 0] ** 2, edge**2 / 3)


def test_along_the_kernel_p_and_the_box_are_held():
    model, x = CASES["tanh"].model, CASES["tanh"].x
    box = Box(x - 0.3, x + 0.2)
    found = diffuse(model, x, jax.random.key(0), 1.0, along="kernel", box=box, save_every=1)
    assert float(jnp.max(jax.vmap(box.excess)(found.points))) == 0
    np.testing.assert_allclose(
        p_of(model, found.points), p_of(model, jnp.tile(x, (201, 1))), atol=1e-4
    )
    assert float(found.distance.max()) > 0.2
    assert found.status == Status.completed


@pytest.mark.parametrize("name", ["relu", "tanh", "image"])
@pytest.mark.parametrize("along", ["leaf", "kernel"])
def test_no_network_takes_it_below_the_threshold(name, along):
    model, x, *_ = CASES[name]
    p = jax.nn.softmax(model(x))
    label = int(jnp.argmax(p))
    threshold = 0.95 * float(p[label])
    found = diffuse(
        model, x, jax.random.key(7), 2.0, along=along, threshold=threshold, num_steps=60,
        save_every=1,
    )  # fmt: skip
    assert np.all(np.asarray(p_of(model, found.points)[:, label]) >= threshold - 1e-12)
    assert found.points.shape == (61, *x.shape)


@pytest.mark.parametrize("motion", ["diffuse", "approach"])
def test_a_start_below_the_threshold_does_not_move(motion):
    if motion == "diffuse":
        found = diffuse(PLANE, X, jax.random.key(0), 1.0, label=1, num_steps=9, save_every=4)
    else:
        found = approach(PLANE, X, X + 1, label=1, max_steps=9, save_every=4)
    assert found.status == Status.boundary
    assert int(found.accepted) == int(found.refused) == 0
    np.testing.assert_array_equal(found.points, jnp.tile(X, (3, 1)))


@pytest.mark.parametrize("motion", ["diffuse", "approach"])
def test_what_is_not_a_number_is_invalid(motion):
    x = X.at[0].set(jnp.nan)
    if motion == "diffuse":
        found = diffuse(PLANE, x, jax.random.key(0), 1.0, num_steps=9)
    else:
        found = approach(PLANE, X, x, max_steps=9)
    assert found.status == Status.invalid
    assert int(found.accepted) == 0


# --- the walk ---


def test_without_a_threshold_the_walk_ends_at_the_foot():
    target = jnp.asarray(np.random.default_rng(1).normal(size=6))
    found = approach(PLANE, X, target, threshold=0.0, max_steps=100, save_every=10)
    foot = X + leaf_projector(PLANE, X) @ (target - X)
    np.testing.assert_allclose(found.end, foot, atol=1e-5)
    np.testing.assert_allclose(found.end, foliax.closest(PLANE, X, target).point, atol=1e-5)
    assert found.status == Status.stalled
    np.testing.assert_allclose(found.distance[-1], jnp.linalg.norm(target - foot), rtol=1e-6)
    inside = approach(PLANE, X, foot, threshold=0.0, max_steps=100)
    assert inside.status == Status.arrived


def test_a_far_target_does_not_stall_a_walk_of_short_steps():
    target = X + 100 * leaf_projector(PLANE, X)[0]
    found = approach(PLANE, X, target, threshold=0.0, stall=0.01, max_steps=20)
    assert found.status == Status.out_of_steps
    assert float(jnp.linalg.norm(found.end - X)) == pytest.approx(20 * 0.1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_threshold_in_the_way_gives_the_nearest_point_that_it_allows(seed):
    away = jnp.asarray(np.random.default_rng(seed).normal(size=6))
    gradient = jax.grad(lambda x: jax.nn.log_softmax(PLANE(x))[0])(X)
    target = X - 2 * gradient / jnp.linalg.norm(gradient) + 0.7 * away
    found = approach(PLANE, X, target, threshold=0.6, max_steps=1000, save_every=1)
    assert found.status == Status.boundary
    assert float(found.least) >= 0.6
    assert outside_leaf(PLANE, X, found.points) < 1e-5

    w = np.asarray(PLANE.args[0])
    basis = np.linalg.svd(w - w.mean(0), full_matrices=False)[2][:2]

    def room(c):
        return float(jax.nn.log_softmax(w @ (np.asarray(X) + c @ basis))[0] - np.log(0.6))

    def gap(c):
        return float(np.sum((np.asarray(X) + c @ basis - np.asarray(target)) ** 2))

    best = minimize(
        gap, np.zeros(2), method="SLSQP", constraints=[{"type": "ineq", "fun": room}],
        options={"ftol": 1e-14},
    )  # fmt: skip
    assert float(found.distance[-1]) == pytest.approx(np.sqrt(best.fun), rel=1e-4)
    np.testing.assert_allclose(found.end, np.asarray(X) + best.x @ basis, atol=2e-2)


@pytest.mark.parametrize("name", ["relu", "tanh", "image", "narrow_layer"])
def test_every_step_comes_nearer_and_keeps_the_label(name):
    model, x, *_ = CASES[name]
    p = jax.nn.softmax(model(x))
    label = int(jnp.argmax(p))
    threshold = 0.98 * float(p[label])
    target = x + 2 * jnp.asarray(np.random.default_rng(3).normal(size=x.shape))
    found = approach(model, x, target, threshold=threshold, max_steps=80, save_every=1)
    p = np.asarray(p_of(model, found.points)[:, label])
    assert np.all(p >= threshold - 1e-12)
    count = int(found.accepted)
    assert np.all(np.diff(np.asarray(found.distance))[:count] < 0)
    np.testing.assert_array_equal(
        found.points[count:], found.points[count][None].repeat(81 - count, 0)
    )
    assert found.status in (Status.boundary, Status.stalled, Status.out_of_steps)


def test_rows_are_kept_every_so_many_steps():
    target = X + 10 * leaf_projector(PLANE, X)[0]
    options = {"threshold": 0.0, "step": 0.1, "max_steps": 20}
    all_rows = approach(PLANE, X, target, save_every=1, **options)
    some = approach(PLANE, X, target, save_every=8, **options)
    assert some.points.shape == (3, 6)
    np.testing.assert_array_equal(some.points, all_rows.points[::8])
    np.testing.assert_array_equal(some.p_label, all_rows.p_label[::8])
    np.testing.assert_array_equal(some.end, all_rows.end)


# --- many at once ---


@pytest.mark.parametrize("block", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_batch_is_its_members_whatever_its_size_and_order(block):
    xs = X + 0.1 * jax.random.normal(jax.random.key(0), (4, 6))
    keys = jax.random.split(jax.random.key(1), 4)
    labels, thresholds = jnp.array([0, 0, 1, 0]), jnp.array([0.5, 0.6, 0.6, 0.5])

    def moved(model, x, key, label, threshold):
        return diffuse(
            model, x, key, 2.0, label=label, threshold=threshold, num_steps=20, save_every=5
        )

    def towards(model, x, target, label):
        return approach(model, x, target, label=label, max_steps=30)

    given = xs, keys, labels, thresholds
    many = foliax.map(moved, PLANE, *given, block=block)
    turned = foliax.map(moved, PLANE, *(rows[::-1] for rows in given), block=1)
    walked = foliax.map(towards, PLANE, xs, xs[::-1] + 1, labels, block=block)
    back = foliax.map(towards, PLANE, xs[::-1], xs + 1, labels[::-1], block=1)
    for found, other in ((many, turned), (walked, back)):
        for name in NAMES:
            mine, theirs = getattr(found, name), getattr(other, name)[::-1]
            np.testing.assert_allclose(mine, theirs, atol=1e-9, err_msg=name)
        assert name_of(found.status) == name_of(other.status)[::-1]
    # The label of the third is not there.
    assert name_of(many.status) == ["completed", "completed", "boundary", "completed"]
    again = foliax.map(moved, PLANE, *given, block=block)
    np.testing.assert_array_equal(many.points, again.points)


def test_the_model_is_an_argument_and_new_weights_do_not_compile_again():
    keys = jax.random.split(jax.random.key(0), 2)
    xs, ys, zs = (jnp.stack([X, X]) + shift for shift in (0, 1, 2))
    first, other = PLANE, jax.tree.map(lambda w: 1.1 * w, PLANE)
    steps = {"num_steps": 4, "save_every": 2}
    foliax.map(diffuse, first, xs, keys, time=1.0, **steps)
    foliax.map(approach, first, xs, ys, max_steps=4, threshold=0.5)
    count = len(compilations())
    foliax.map(diffuse, other, xs, keys, time=2.0, **steps)
    foliax.map(approach, other, xs, zs, max_steps=4, threshold=0.4)
    assert len(compilations()) == count


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: diffuse(PLANE, X, k, 0.0), "time must be a finite number > 0"),
        (lambda k: diffuse(PLANE, X, k, 1.0, along="across"), "along must be one of"),
        (lambda k: diffuse(PLANE, X, k, 1.0, threshold=1.0), r"threshold must be .*\[0, 1\)"),
        (lambda k: diffuse(PLANE, X, k, 1.0, label=3), "label must be a class, 0 … 2"),
        (lambda k: diffuse(PLANE, X, k, 1.0, label=0.5), "label must be a class, 0 … 2"),
        (lambda k: diffuse(PLANE, X, k, 1.0, box=Box(-1.0, 1.0)), 'box goes with along="kernel"'),
        (lambda k: diffuse(PLANE, X, k, 1.0, num_steps=0), "num_steps must be a whole number"),
        (lambda _: approach(PLANE, X, X[:2]), "target must have the shape of x"),
        (lambda _: approach(PLANE, X, X, step=0.0), "step must be a finite number > 0"),
        (lambda _: approach(PLANE, X, X, max_steps=0), "max_steps must be a whole number >= 1"),
        (lambda k: foliax.map(diffuse, PLANE, X[None], k[None], time=0.0), "time must be a finite"),
        (lambda _: foliax.map(approach, PLANE, X[None], X[None], threshold=1.0), "probability in"),
    ],
)  # fmt: skip
def test_bad_arguments_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0))
