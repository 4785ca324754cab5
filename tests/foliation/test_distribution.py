"""The distribution D and its complement: frames, projectors, dimensions, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import foliax
from tests.cases import (
    CASES,
    NAMES,
    SATURATED,
    central_difference,
    directions,
    leaf_projector,
    random_like,
)
from tests.tolerance import assert_close


@jax.jit
def everything(model, x, v, w):
    def p(y):
        return jax.nn.softmax(model(y))

    leaf = foliax.project_leaf(model, x, v)
    kernel = foliax.project_kernel(model, x, v)
    return {
        "frame": foliax.frame(model, x),
        "dimension": foliax.dimension(model, x),
        "rank": foliax.rank(model, x),
        "leaf": leaf,
        "kernel": kernel,
        "leaf twice": foliax.project_leaf(model, x, leaf),
        "leaf of w": foliax.project_leaf(model, x, w),
        "kernel twice": foliax.project_kernel(model, x, kernel),
        "G kernel": foliax.matvec(model, x, kernel),
        "change of p": jax.jvp(p, (x,), (kernel,))[1],
        "change of p along v": jax.jvp(p, (x,), (v,))[1],
    }


@pytest.fixture(scope="module", params=NAMES)
def seen(request):
    case = CASES[request.param]
    v, w = directions(case, count=2)
    got = jax.tree.map(np.asarray, everything(case.model, case.x, v, w))
    return request.param, case, np.asarray(v), np.asarray(w), got


def test_frame_is_orthonormal_and_masked(seen):
    _, case, _, _, got = seen
    m = min(case.n, case.model(case.x).size - 1)
    vectors, mask = got["frame"]
    assert vectors.shape == (m, *case.x.shape)
    assert mask.shape == (m,)
    assert mask.sum() == got["dimension"] == case.dimension
    rows = vectors.reshape(m, -1)
    assert_close(rows @ rows.T, np.diag(mask.astype(float)), atol=1e-14)
    assert np.all(rows[~mask] == 0)
    assert_close(rows.T @ rows, leaf_projector(case.model, case.x), rtol=1e-9)


def test_projections(seen):
    _, case, v, w, got = seen
    leaf, kernel = got["leaf"], got["kernel"]
    size = np.linalg.norm(v)
    assert leaf.shape == kernel.shape == case.x.shape
    assert_close(leaf.ravel(), leaf_projector(case.model, case.x) @ v.ravel(), rtol=1e-9)
    assert_close(leaf + kernel, v, rtol=1e-14)
    assert_close(got["leaf twice"], leaf, atol=1e-13 * size)
    assert_close(got["kernel twice"], kernel, atol=1e-13 * size)
    assert abs(np.vdot(leaf, kernel)) <= 1e-13 * size**2
    assert_close(np.vdot(got["leaf of w"], v), np.vdot(w, leaf), atol=1e-13 * size)


def test_kernel_does_not_move_p(seen):
    name, _, _, _, got = seen
    assert np.linalg.norm(got["G kernel"]) <= 1e-12
    assert np.linalg.norm(got["change of p"]) <= 1e-13
    if name not in (*SATURATED, "dead"):
        assert np.linalg.norm(got["change of p along v"]) > 1e-3  # the test would see a change


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SATURATED)
def test_saturation_dims_g_and_not_d(name, dtype):
    case = CASES[name]
    model, x = jax.tree.map(lambda a: a.astype(dtype), (case.model, case.x))
    assert int(foliax.dimension(model, x)) == case.dimension
    if name == "gap_10000":
        assert int(foliax.rank(model, x)) == 0


def test_no_direction_of_a_dead_network_is_tangent():
    case = CASES["dead"]
    v = directions(case)[0]
    assert_close(foliax.project_leaf(case.model, case.x, v), jnp.zeros_like(v))
    assert_close(foliax.project_kernel(case.model, case.x, v), v)
    assert not foliax.frame(case.model, case.x).mask.any()


def test_rtol_drops_weak_directions():
    slopes = jnp.array([1.0, 1e-2, 1e-8])
    model = Partial(lambda a, x: jnp.concatenate([a * x, 0 * x[:1]]), slopes)
    x = jnp.zeros(3)
    found = [int(foliax.dimension(model, x, rtol=rtol)) for rtol in (None, 1e-10, 1e-2, 0.5)]
    assert found == [3, 2, 1, 1]
    assert foliax.frame(model, x, rtol=1e-10).mask.tolist() == [True, True, False]


def meeting(weights, x):
    """Return logits whose centred Jacobian has equal singular values at x = 0."""
    contrasts = foliax.Categorical().contrasts(jnp.zeros(4))
    curved = jnp.stack([x @ (w @ x) for w in weights])
    return contrasts.T @ (x[:3] + curved)


MEETING = (
    Partial(meeting, jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 5)))),
    jnp.zeros(5),
)


def _place(name):
    return MEETING if name == "singular values meet" else CASES[name][:2]


@jax.jit
def _projections(arguments):
    """Return both projections at (model, x, v), each summed with random weights."""
    model, x, v = arguments
    weights = random_like(x, 1)
    leaf, kernel = foliax.project_leaf(model, x, v), foliax.project_kernel(model, x, v)
    return jnp.stack([jnp.vdot(weights, leaf), jnp.vdot(weights, kernel)])


@pytest.mark.parametrize("name", ["tanh", "narrow_layer", "gap_10000", "singular values meet"])
def test_gradients_of_the_projections(name):
    model, x = _place(name)
    at = model, x, random_like(x, 2)
    toward = random_like(at, 3)
    expected = central_difference(_projections, at, toward, 2e-4)
    gradients = jax.jit(jax.jacrev(_projections))(at)
    for k in range(2):
        products = jax.tree.map(lambda g, d, k=k: jnp.vdot(g[k], d), gradients, toward)
        assert_close(sum(jax.tree.leaves(products)), expected[k], rtol=1e-7)
    _, forward = jax.jit(lambda at, d: jax.jvp(_projections, (at,), (d,)))(at, toward)
    assert_close(forward, expected, rtol=1e-7)


def test_equal_singular_values_do_meet():
    model, x = MEETING
    got = np.linalg.svd(jax.jacfwd(model)(x), compute_uv=False)
    assert_close(got[:3], np.ones(3))


def test_second_derivative_of_a_projection():
    model, x = _place("tanh")
    v, w, along = random_like((x, x, x), 3)

    def loss(t):
        return jnp.vdot(w, foliax.project_leaf(model, x + t * along, v))

    slope = jax.jit(jax.grad(loss))
    second = jax.jit(jax.grad(jax.grad(loss)))(0.0)
    assert_close(second, central_difference(slope, 0.0, 1.0, 1e-3), rtol=1e-6)


def test_nan_is_not_taken_for_a_dead_network():
    case = CASES["tanh"]
    v = directions(case)[0]
    x = case.x.at[0].set(jnp.nan)
    assert bool(jnp.any(jnp.isnan(foliax.project_leaf(case.model, x, v))))
    assert bool(jnp.any(jnp.isnan(foliax.project_kernel(case.model, x, v))))
