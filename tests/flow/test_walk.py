"""Walks and drifts: closed forms, what a path holds, how it ends, what is conserved, derivatives.

One model function and one plan serve nearly all tests, and everything that can be an argument is
one, so that few programs are compiled.
"""

from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import foliax
from foliax import Box, Status
from foliax.flow.path import as_code
from tests import cases
from tests.cases import CASES, central_difference, leaf_projector, name_of, random_like
from tests.tolerance import assert_close

MAX_STEPS, SAVE_EVERY = 40, 5
WIDE = 50.0
_traces = []


def network(params, x):
    """Return logits of a tanh network (bend = 1) or a linear one (0); NaN beyond the wall."""
    _traces.append(None)
    ((inner, shift), (outer, bias)), bend, wall = params
    h = inner @ x + shift
    logits = outer @ (bend * jnp.tanh(h) + (1 - bend) * h) + bias
    return jnp.where(x[0] > wall, jnp.nan, logits)


def make(*, bend=1.0, wall=np.inf, scale=1.0):
    params = CASES["tanh"].model.args[0]
    params = jax.tree.map(lambda a: scale * a, params)
    return Partial(network, (params, jnp.asarray(bend), jnp.asarray(wall)))


X = CASES["tanh"].x
V = random_like(X, 7)


@partial(jax.jit, static_argnames=("along", "scheme", "max_steps", "save_every"))
def _walk(model, x, target, box, step, arrival, stall, along, scheme, max_steps, save_every):
    return foliax.walk(
        model, x, target, box=box, step=step, arrival=arrival, stall=stall, along=along,
        scheme=scheme, max_steps=max_steps, save_every=save_every,
    )  # fmt: skip


@partial(jax.jit, static_argnames=("along", "scheme", "max_steps", "save_every"))
def _drift(model, x, direction, box, step, along, scheme, max_steps, save_every):
    return foliax.drift(
        model, x, direction, box=box, step=step, along=along,
        scheme=scheme, max_steps=max_steps, save_every=save_every,
    )  # fmt: skip


def walk(model, x, target, *, bound=WIDE, step=0.1, arrival=0.05, stall=0.01, scheme="exact",
         along="leaf", save_every=SAVE_EVERY):  # fmt: skip
    return _walk(model, x, target, Box(-bound, bound), step, arrival, stall, along, scheme,
                 MAX_STEPS, save_every)  # fmt: skip


def drift(model, x, direction, *, bound=WIDE, step=0.1, scheme="exact", along="kernel",
          save_every=SAVE_EVERY):  # fmt: skip
    box = None if bound is None else Box(-bound, bound)
    return _drift(model, x, direction, box, step, along, scheme, MAX_STEPS, save_every)


_project = jax.jit(foliax.project_leaf)


def ended(path):
    return name_of(path.status), int(path.num_steps)


# Closed forms: the leaves of a linear model are planes.


def test_exact_walk_on_a_plane_ends_at_the_foot():
    model = make(bend=0.0)
    projector = leaf_projector(model, X)
    path = walk(model, X, X + V)
    foot = X + projector @ V
    residual = np.linalg.norm(X + V - foot)
    length = np.linalg.norm(foot - X)
    assert ended(path) == ("stalled", int(np.ceil(length / 0.1)))
    assert_close(path.end, foot)
    assert_close(path.best, foot)
    assert_close(path.distance[-1], residual)
    assert_close(path.distance[0], np.linalg.norm(V))
    assert_close(path.tangent_fraction[0], length / np.linalg.norm(V))
    assert float(path.tangent_fraction[-1]) < 1e-10
    assert float(path.leaf_defect.max()) < 1e-12
    np.testing.assert_array_equal(path.dimension, 3)
    # Up to the foot every kept point lies on the segment, at the length walked.
    walked = np.minimum(0.1 * np.asarray(path.steps), length)
    assert_close(path.points, X + walked[:, None] * (foot - X) / length)


def test_walk_in_the_plane_arrives():
    model = make(bend=0.0)
    target = X + leaf_projector(model, X) @ V
    path = walk(model, X, target)
    status, steps = ended(path)
    assert status == "arrived"
    assert steps == int(np.ceil((np.linalg.norm(target - X) - 0.05) / 0.1))
    assert float(path.distance[-1]) <= 0.05


def test_exact_walk_of_a_bent_leaf_stalls_where_nothing_is_left():
    model = make()
    path = walk(model, X, X + 0.4 * V, stall=0.01)
    assert ended(path)[0] == "stalled"
    rest = X + 0.4 * V - path.end
    part = _project(model, path.end, rest)
    assert float(jnp.linalg.norm(part) / jnp.linalg.norm(rest)) < 0.01
    assert np.all(np.diff(path.distance) <= 0)


def test_kernel_drift_of_a_linear_model_is_a_straight_line():
    model = make(bend=0.0)
    direction = V - leaf_projector(model, X) @ V
    path = drift(model, X, V)
    line = np.outer(0.1 * np.asarray(path.steps), direction / np.linalg.norm(direction))
    assert ended(path) == ("completed", MAX_STEPS)
    assert_close(path.points, X + line)
    assert_close(path.distance, 0.1 * np.asarray(path.steps))
    assert float(path.probability_change.max()) < 1e-14


# What a path holds.


def test_shapes_and_the_repeat_rule():
    path = walk(make(bend=0.0), X, X + V)
    rows = 1 + MAX_STEPS // SAVE_EVERY
    numbers = vars(path) | {"status": as_code(path.status)}
    shapes = {name: leaf.shape for name, leaf in numbers.items()}
    table = ("steps", "distance", "tangent_fraction", "probability_change", "dimension",
             "box_excess", "leaf_defect")  # fmt: skip
    assert shapes == {
        "points": (rows, 5), "logits": (rows, 4), "probabilities": (rows, 4), "end": (5,),
        "best": (5,), "num_steps": (), "num_attempts": (), "status": (),
        **dict.fromkeys(table, (rows,)),
    }  # fmt: skip
    for name in ("steps", "dimension", "num_steps", "status"):
        assert numbers[name].dtype == jnp.int32
    steps = int(path.num_steps)
    assert 0 < steps < MAX_STEPS
    np.testing.assert_array_equal(path.steps, np.minimum(np.arange(rows) * SAVE_EVERY, steps))
    last = np.asarray(path.steps) == steps
    assert last.sum() > 1
    for name in ("points", "logits", "probabilities", *table):
        values = np.asarray(getattr(path, name))
        assert np.all(values[last] == values[-1]), name
    assert_close(path.points[-1], path.end, rtol=0)


def test_rows_tell_of_their_points():
    model = make()
    path = walk(model, X, X + 2 * V, scheme="published", bound=1.0, along="leaf")
    p0 = jax.nn.softmax(model(X))
    box = Box(-1.0, 1.0)
    for i in (0, 3, 8):
        x = path.points[i]
        part = _project(model, x, X + 2 * V - x)
        distance = jnp.linalg.norm(X + 2 * V - x)
        assert_close(path.logits[i], model(x))
        assert_close(path.probabilities[i], jax.nn.softmax(model(x)))
        assert_close(path.distance[i], distance)
        assert_close(path.tangent_fraction[i], jnp.linalg.norm(part) / distance)
        assert_close(path.probability_change[i], jnp.max(jnp.abs(jax.nn.softmax(model(x)) - p0)))
        assert_close(path.box_excess[i], box.excess(x))
        assert int(path.dimension[i]) == int(foliax.dimension(model, x))


def test_best_is_the_nearest_point_met():
    # A coarse step overshoots and dithers about the foot.
    path = walk(make(), X, X + V, scheme="published", step=0.7, save_every=1, arrival=0.0)
    assert ended(path)[0] == "out_of_steps"
    nearest = int(np.argmin(path.distance))
    assert nearest < MAX_STEPS
    assert_close(path.best, path.points[nearest], rtol=0)
    assert_close(path.end, path.points[-1], rtol=0)


def test_rows_do_not_depend_on_how_many_are_kept():
    fine = walk(make(), X, X + V, scheme="published", save_every=1)
    coarse = walk(make(), X, X + V, scheme="published")
    for name in ("points", "distance", "steps"):
        assert_close(getattr(coarse, name), getattr(fine, name)[::SAVE_EVERY], rtol=1e-13)
    # Here the defect is rounding, of a path this long.
    length = 0.1 * MAX_STEPS
    assert (
        float(jnp.max(jnp.abs(coarse.leaf_defect - fine.leaf_defect[::SAVE_EVERY])))
        < 1e-13 * length
    )


def test_published_steps_have_unit_speed_and_stay_in_the_box():
    free = walk(make(), X, X + 3 * V, scheme="published", save_every=1)
    assert_close(np.linalg.norm(np.diff(free.points, axis=0), axis=1), np.full(MAX_STEPS, 0.1))
    bound = 1.2 * float(jnp.max(jnp.abs(X)))
    held = walk(make(), X, X + 3 * V, scheme="published", save_every=1, bound=bound)
    assert float(jnp.max(jnp.abs(held.points))) == bound
    assert float(held.box_excess.max()) == 0
    assert float(held.leaf_defect[-1]) > 1e-3
    assert float(free.leaf_defect[-1]) < 1e-12
    # Euler and clip, step by step.
    for i in (0, 20, 39):
        x = held.points[i]
        part = _project(make(), x, X + 3 * V - x)
        expected = jnp.clip(x + 0.1 * part / jnp.linalg.norm(part), -bound, bound)
        assert_close(held.points[i + 1], expected)


def test_exact_walk_along_the_leaf_reports_the_box_and_is_not_held_by_it():
    bound = 1.2 * float(jnp.max(jnp.abs(X)))
    free, told = walk(make(), X, X + 3 * V), walk(make(), X, X + 3 * V, bound=bound)
    assert_close(told.points, free.points, rtol=0)
    assert float(told.box_excess[-1]) > 0
    assert float(free.box_excess[-1]) == 0


# How it ends. Everything runs under jit.


def test_arrived_at_the_start():
    path = walk(make(), X, X + 1e-3)
    assert ended(path) == ("arrived", 0)
    assert_close(path.points, jnp.broadcast_to(X, path.points.shape), rtol=0)
    assert_close(path.end, X, rtol=0)


def test_stalled_at_the_start():
    model = make(bend=0.0)
    across = V - leaf_projector(model, X) @ V
    assert ended(walk(model, X, X + across)) == ("stalled", 0)


def test_out_of_steps_and_published_never_stalls():
    assert ended(walk(make(), X, X + 30 * V, stall=0.0)) == ("out_of_steps", MAX_STEPS)
    model = make(bend=0.0)
    path = walk(model, X, X + V, scheme="published", arrival=0.0)
    assert ended(path) == ("out_of_steps", MAX_STEPS)
    # It dithers about the foot with its full step.
    foot = X + leaf_projector(model, X) @ V
    assert 0 < float(jnp.linalg.norm(path.end - foot)) <= 0.1


def test_a_dead_network_stalls_and_stands_still():
    dead = make(scale=0.0)
    path = walk(dead, X, X + V)
    assert ended(path) == ("stalled", 0)
    assert int(path.dimension.max()) == 0
    # All directions are in the kernel, and nothing needs correcting.
    path = drift(dead, X, V)
    assert ended(path) == ("completed", MAX_STEPS)
    assert_close(path.end, X + 0.1 * MAX_STEPS * V / jnp.linalg.norm(V))


def test_drift_along_the_leaf():
    path = drift(make(bend=0.0), X, V, along="leaf")
    part = leaf_projector(make(bend=0.0), X) @ V
    assert ended(path) == ("completed", MAX_STEPS)
    assert_close(path.end, X + 4 * part / np.linalg.norm(part))
    across = V - part
    assert ended(drift(make(bend=0.0), X, across, along="leaf")) == ("stalled", 0)


def test_boundary():
    # In the corner of the box, every way that the direction asks for is shut.
    x = jnp.ones(5)
    path = drift(make(scale=0.0), x, jnp.ones(5), bound=1.0)
    assert ended(path) == ("boundary", 0)
    # Inside it, the drift goes on until the corner.
    path = drift(make(scale=0.0), x / 2, jnp.ones(5), bound=1.0)
    assert ended(path)[0] == "boundary"
    assert_close(path.end, x)


@pytest.mark.parametrize("where", ["x", "target", "model"])
def test_invalid_at_the_start(where):
    model, x, target = make(), X, X + V
    if where == "x":
        x = x.at[1].set(jnp.nan)
    elif where == "target":
        target = target.at[2].set(jnp.inf)
    else:
        model = jax.tree.map(lambda a: a * jnp.nan, model)
    path = walk(model, x, target)
    assert ended(path) == ("invalid", 0)
    np.testing.assert_array_equal(path.points, jnp.broadcast_to(x, path.points.shape))
    np.testing.assert_array_equal(path.end, x)
    np.testing.assert_array_equal(path.steps, 0)


@pytest.mark.parametrize("start", [X, X.at[1].set(jnp.nan)])
def test_invalid_drift(start):
    direction = V.at[0].set(jnp.nan)
    path = drift(make(), start, direction)
    assert ended(path) == ("invalid", 0)
    np.testing.assert_array_equal(path.end, start)


def test_invalid_on_the_way_keeps_the_last_finite_point():
    target = X.at[0].add(30.0)
    free = walk(make(), X, target, save_every=1, scheme="published")
    wall = float(free.points[17, 0])  # the walk steps over it at step 18
    assert np.all(np.diff(free.points[:, 0])[:20] > 0)
    for save_every in (1, SAVE_EVERY):
        path = walk(make(wall=wall), X, target, save_every=save_every, scheme="published")
        assert ended(path) == ("invalid", 17)
        assert_close(path.end, free.points[17], rtol=1e-13)
        assert bool(jnp.all(jnp.isfinite(path.points)))
        assert bool(jnp.all(jnp.isfinite(path.logits)))
        last = np.asarray(path.steps) == 17
        assert last[-1]
        assert np.all(np.asarray(path.points)[last] == np.asarray(path.end))


def test_a_nan_jacobian_is_invalid():
    def kinked(x):
        return jnp.stack([jnp.sqrt(jnp.abs(x[0])), x[1], 0 * x[0]])

    path = foliax.walk(kinked, jnp.zeros(2), jnp.ones(2), max_steps=2, save_every=1)
    assert path.status == Status.invalid


# What is conserved.


def test_exact_kernel_drift_keeps_p_in_the_box():
    model = make()
    bound = 1.05 * float(jnp.max(jnp.abs(X)))
    for direction in (V, -V, random_like(X, 8)):
        exact = drift(model, X, direction, bound=bound)
        published = drift(model, X, direction, bound=bound, scheme="published")
        assert float(exact.probability_change.max()) <= 1e-6
        assert float(exact.leaf_defect.max()) <= 1e-5
        assert float(exact.box_excess.max()) == 0
        assert float(published.box_excess.max()) == 0
        assert float(published.probability_change.max()) > 100 * float(
            exact.probability_change.max()
        )
        assert float(published.probability_change.max()) > 1e-3
        assert float(jnp.linalg.norm(exact.end - X)) > 0.1  # it moves, too


def test_exact_kernel_drift_without_a_box():
    path = drift(make(), X, V, bound=None)
    assert ended(path)[0] == "completed"
    assert float(path.probability_change.max()) <= 1e-6
    assert float(path.box_excess.max()) == 0


OUTSIDE = jnp.where(jnp.arange(5) == 0, 2.0, X)


@pytest.mark.parametrize("along", ["leaf", pytest.param("kernel", marks=pytest.mark.slow)])
def test_a_start_outside_the_box_is_refused(along):
    message = r"inside the box, which runs from -1.5 to 1.5, got values from .* to 2; .* data.box"
    options = {"box": Box(-1.5, 1.5), "max_steps": 2, "along": along}
    with pytest.raises(ValueError, match=message):
        foliax.drift(make(), OUTSIDE, V, **options)
    with pytest.raises(ValueError, match=r"xs\[0\] must start inside the box"):
        foliax.map(
            foliax.walk, make(), jnp.stack([X, OUTSIDE]), jnp.stack([X, X]), box=Box(-1.5, 1.5)
        )
    rounded = jnp.where(jnp.arange(5) == 0, 1.5 * (1 + 4 * jnp.finfo(X.dtype).eps), X)
    assert int(foliax.drift(make(), rounded, V, **options).num_steps) > 0
    foliax.walk(make(), X, OUTSIDE, **options)  # a target may be


def test_a_traced_start_outside_the_box_is_a_status():
    traced = jax.vmap(lambda x: drift(make(), x, V, bound=1.5))
    path = traced(jnp.stack([OUTSIDE, X]))
    assert (path.status == Status.outside).tolist() == [True, False]
    assert path.num_steps.tolist()[0] == 0
    np.testing.assert_array_equal(path.end[0], OUTSIDE)


@pytest.mark.parametrize(
    ("n", "c"),
    [
        (2, 2),
        pytest.param(16, 10, marks=pytest.mark.slow),
        pytest.param(784, 10, marks=pytest.mark.slow),
        (150_528, 10),
    ],
)
def test_the_foot_is_one_at_any_size(n, c):
    """Of linear models, where it is known: relative to the way there, for thin leaves too."""
    rng = np.random.default_rng(n)
    weight = rng.normal(size=(c, n)) / np.sqrt(n)
    x, target = rng.normal(size=(2, n))
    frame, _ = np.linalg.qr((weight - weight.mean(0))[: c - 1].T)
    way = frame @ (frame.T @ (target - x))
    model = Partial(lambda w, x: w @ x, jnp.asarray(weight, "float32"))
    x32, target32 = (jnp.asarray(point, "float32") for point in (x, target))
    path = foliax.walk(model, x32, target32, max_steps=1000, save_every=1000, arrival=0.0)
    found = foliax.closest(model, x32, target32)
    for point, status, share in (
        (path.best, path.status, 0.03),
        (found.point, found.status, 1e-3),
    ):
        assert status == Status.stalled
        missed = np.linalg.norm(np.asarray(point, np.float64) - x - way)
        assert missed <= share * np.linalg.norm(way)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3])
def test_the_path_does_not_depend_on_the_unit_of_the_outputs(scale):
    (inner, outer) = CASES["tanh"].model.args[0]

    def drifted(scale):
        model = Partial(cases.tanh_mlp, (inner, jax.tree.map(lambda w: scale * w, outer)))
        return foliax.drift(
            model,
            X,
            V,
            along="kernel",
            max_steps=50,
            likelihood=foliax.Gaussian(jnp.asarray(scale)),
        )

    one, other = drifted(1.0), drifted(scale)
    assert one.status == other.status
    np.testing.assert_allclose(one.points, other.points, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(other.probability_change / scale, 0, atol=1e-9)


@pytest.mark.parametrize("condition", [1e3, 1e4])
def test_a_direction_in_the_kernel_is_not_followed_along_the_leaf(condition):
    rng = np.random.default_rng(0)
    right, _ = np.linalg.qr(rng.normal(size=(40, 6)))
    weight = jnp.asarray(np.diag(np.geomspace(1, 1 / condition, 5)) @ right[:, :5].T, "float32")
    model = Partial(lambda w, x: jnp.append(w @ x, 0.0), weight)
    path = foliax.drift(model, jnp.zeros(40, "float32"), jnp.asarray(right[:, 5], "float32"))
    assert path.status == Status.stalled
    assert int(path.num_steps) == 0


def test_kicks_are_not_the_same_for_all_walks():
    options = {"max_steps": 60, "save_every": 1, "arrival": 0.0, "kicks": 1, "kick": 0.5}
    xs, targets = jnp.stack([X, X]), jnp.stack([X + V, X + V])
    paths = foliax.map(foliax.walk, make(), xs, targets, key=jax.random.key(0), **options)
    assert float(jnp.max(jnp.abs(paths.points[0] - paths.points[1]))) > 1e-3


# Batches, compilation, derivatives.


def test_vmap_is_the_loop_and_new_weights_do_not_compile():
    xs = jnp.stack([X, X + 0.3, X, X.at[0].set(jnp.nan)])
    targets = jnp.stack([X + V, X + 0.4, X + 1e-4, X])
    box = Box(-2.0, 2.0)
    options = {"box": box, "max_steps": MAX_STEPS, "save_every": SAVE_EVERY, "arrival": 0.05}
    batched = jax.jit(jax.vmap(partial(foliax.walk, **options), in_axes=(None, 0, 0)))
    paths = batched(make(), xs, targets)
    assert paths.points.shape == (4, 1 + MAX_STEPS // SAVE_EVERY, 5)
    for i in range(4):
        alone = walk(make(), xs[i], targets[i], bound=2.0)
        lane = jax.tree.map(lambda a, i=i: a[i], paths)
        assert ended(lane) == ended(alone)
        np.testing.assert_allclose(lane.points, alone.points, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(
            lane.probability_change, alone.probability_change, rtol=1e-9, atol=1e-12
        )
    assert len({ended(jax.tree.map(lambda a, i=i: a[i], paths)) for i in range(4)}) == 4

    count = len(_traces)
    batched(make(scale=0.9), xs, 2 * targets)
    foliax.walk(make(scale=0.9), X, X - V, **options)  # the eager call compiles by itself, once
    single = len(_traces)
    foliax.walk(make(scale=0.8), X + 1, X + V, **options, step=0.2)
    # An eager call looks at the shapes of the logits; that is no compilation.
    assert single > count
    assert len(_traces) - single <= 1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_low_precision(dtype):
    model, x, target = jax.tree.map(lambda a: a.astype(dtype), (make(), X, X + V))
    kept = {"max_steps": 10, "save_every": 5}
    shapes = jax.eval_shape(partial(foliax.walk, **kept), model, x, target)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"float32", "int32"}
    if dtype == "float32":
        path = foliax.drift(model, x, target, along="kernel", **kept)
        assert float(path.probability_change.max()) <= 1e-5


def image_model(params, x):
    return network(params, x.ravel())


def test_points_have_the_shape_of_x():
    model = Partial(image_model, *make().args)
    shapes = jax.eval_shape(
        partial(foliax.drift, max_steps=7, save_every=3, box=Box(-1.0, jnp.ones((5, 1)))),
        model, X.reshape(1, 5, 1), V.reshape(1, 5, 1),
    )  # fmt: skip
    assert shapes.points.shape == (3, 1, 5, 1)
    assert shapes.end.shape == shapes.best.shape == (1, 5, 1)


def end_of(runner, options):
    weights = random_like(X, 9)

    def loss(arguments):
        model, x, goal = arguments
        return jnp.vdot(weights, runner(model, x, x + goal, **options).end)

    return loss


# The kernel's corrections are chord iterations: so is their derivative, and it is only as good as
# the last Jacobian but one.
WALKS = {
    "walk on the leaf": (walk, {}, 1e-6),
    "exact kernel drift": (drift, {}, 1e-3),
}


@pytest.mark.parametrize("name", WALKS)
@pytest.mark.slow
def test_reverse_mode_through_a_path(name):
    runner, options, rtol = WALKS[name]
    loss = end_of(runner, options)
    arguments = (make(), X, 30 * V)  # too far to reach: no kink at the foot
    toward = random_like(arguments, 10)
    model, *rest = toward
    params, bend, wall = model.args[0]
    toward = (Partial(network, (params, bend, jnp.zeros_like(wall))), *rest)
    gradient = jax.jit(jax.grad(loss))(arguments)
    products = jax.tree.map(jnp.vdot, gradient, toward)
    got = sum(jax.tree.leaves(products))
    assert_close(got, central_difference(loss, arguments, toward, 1e-4), rtol=rtol)


def test_forward_mode_through_a_path():
    options = {"box": Box(-WIDE, WIDE), "max_steps": MAX_STEPS, "arrival": 0.05}
    loss = end_of(foliax.walk, options | {"adjoint": diffrax.ForwardMode()})
    arguments = (make(), X, 30 * V)
    toward = random_like(arguments, 10)
    model, *rest = toward
    params, bend, wall = model.args[0]
    toward = (Partial(network, (params, bend, jnp.zeros_like(wall))), *rest)
    _, got = jax.jvp(loss, (arguments,), (toward,))
    assert_close(got, central_difference(loss, arguments, toward, 1e-4), rtol=1e-6)


# Solvers.


@pytest.mark.parametrize("solver", [diffrax.Heun(), diffrax.Tsit5()])
def test_better_solvers_take_the_same_path_to_their_order(solver):
    """On the bent leaf Euler's end moves toward theirs as its steps shrink, at first order."""
    goal, options = X + 30 * V, {"arrival": 0.0, "save_every": 20}
    better = foliax.walk(make(), X, goal, step=0.1, max_steps=20, solver=solver, **options)
    gaps = []
    for refine in (1, 2, 4):  # one program, of which the row is kept that is as far
        euler = foliax.walk(make(), X, goal, step=0.1 / refine, max_steps=80, **options)
        assert int(euler.steps[refine]) == 20 * refine
        gaps.append(float(jnp.linalg.norm(euler.points[refine] - better.end)))
    assert 1.7 < gaps[0] / gaps[1] < 2.3
    assert 1.7 < gaps[1] / gaps[2] < 2.3


def adaptive(tolerance):
    return {
        "solver": diffrax.Tsit5(),
        "controller": diffrax.PIDController(rtol=tolerance, atol=tolerance),
    }


def test_adaptive_drift_keeps_p_and_counts_what_it_tried():
    path = foliax.drift(make(), X, V, along="kernel", max_steps=40, **adaptive(1e-4))
    assert ended(path)[0] == "completed"
    assert 0 < int(path.num_steps) <= int(path.num_attempts) <= 40
    assert float(path.probability_change.max()) <= 1e-6


def test_adaptive_drift_out_of_attempts_says_so():
    path = foliax.drift(make(), X, V, along="kernel", max_steps=15, **adaptive(1e-15))
    assert path.status == Status.out_of_steps
    assert int(path.num_attempts) == 15
    assert int(path.num_steps) < 15


def test_attempts_are_the_steps_where_none_is_rejected():
    path = drift(make(), X, V)
    assert int(path.num_attempts) == int(path.num_steps) == MAX_STEPS


def test_a_progress_meter_reports(capsys):
    path = foliax.drift(make(), X, V, max_steps=30, progress_meter=diffrax.TextProgressMeter())
    jax.block_until_ready(path)
    jax.effects_barrier()
    assert "100.00%" in capsys.readouterr().out


def test_a_walk_asks_nothing_of_the_host():
    """A program with a callback could not be kept in the persistent compilation cache."""
    options = {"max_steps": MAX_STEPS, "save_every": SAVE_EVERY}
    for runner in (foliax.walk, partial(foliax.drift, along="kernel")):
        program = str(jax.make_jaxpr(partial(runner, **options))(make(), X, X + V))
        assert "callback" not in program
