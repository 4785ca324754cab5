"""Holonomy against an independent integration, brackets, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.integrate import solve_ivp

import foliax
from foliax import Status
from tests.cases import CASES, layer, linear, relu_mlp

TANH, X = CASES["tanh"].model, CASES["tanh"].x
RNG = np.random.default_rng(11)
U, V = jnp.asarray(RNG.normal(size=(2, X.size)))


def contrasts(model, x):
    logits = model(x)
    return logits[1:] - logits[0]


def plane(model, x, u, v):
    """Return an orthonormal basis of the plane that u and v have in D, by a dense QR."""
    rows = np.asarray(jax.jacobian(lambda x: contrasts(model, x))(x)).reshape(-1, x.size)
    basis = np.linalg.qr(rows.T)[0]
    q, r = np.linalg.qr(np.stack([basis @ (basis.T @ np.asarray(w)) for w in (u, v)], axis=1))
    return rows, (q * np.sign(np.diag(r))).T


def lifted_by_scipy(model, x, u, v, side):
    """Return the end of the lifted square, by an adaptive solver of another library."""
    jacobian = jax.jit(jax.jacobian(lambda x: contrasts(model, x)))
    rows, e = plane(model, x, u, v)
    first, second = side * rows @ e[0], side * rows @ e[1]
    for change in (first, second, -first, -second):
        found = solve_ivp(
            lambda _, x, change=change: np.linalg.pinv(np.asarray(jacobian(x))) @ change,
            (0, 1), np.asarray(x), method="DOP853", rtol=1e-11, atol=1e-12,
        )  # fmt: skip
        x = found.y[:, -1]
    return x


def test_a_loop_ends_where_another_library_ends():
    found = foliax.holonomy(TANH, X, U, V, 0.5, num_steps=100)
    end = lifted_by_scipy(TANH, X, U, V, 0.5)
    gap = np.linalg.norm(end - X)
    np.testing.assert_allclose(found.end, end, atol=1e-3 * float(gap))
    assert gap > 0.01
    assert found.status == Status.completed
    assert found.probability_change <= 1e-12
    np.testing.assert_allclose(found.gap * found.length, gap, rtol=1e-3)


def test_the_gap_of_a_small_loop_is_the_bracket_of_the_lifted_fields():
    _, e = plane(TANH, X, U, V)

    def field(w):
        """Return the lift of a constant change of the contrasts: J⁺ (J(X) w)."""
        change = jax.jacobian(lambda x: contrasts(TANH, x))(X) @ w

        def at(x):
            rows = jax.jacobian(lambda x: contrasts(TANH, x))(x)
            return rows.T @ jnp.linalg.solve(rows @ rows.T, change)

        return at

    first, second = field(e[0]), field(e[1])
    bracket = (
        jax.jvp(second, (X,), (first(X),))[1] - jax.jvp(first, (X,), (second(X),))[1]
    )  # fmt: skip
    side = 1e-3
    found = foliax.holonomy(TANH, X, U, V, side)
    np.testing.assert_allclose(
        (found.end - X) / side**2, bracket, atol=20 * side * float(jnp.linalg.norm(bracket))
    )
    assert float(jnp.linalg.norm(bracket)) > 1e-2
    np.testing.assert_allclose(
        found.gap, side * float(jnp.linalg.norm(bracket)) / 4, rtol=20 * side
    )


def test_a_square_in_the_simplex_ends_where_another_library_ends():
    side = 0.3
    found = foliax.holonomy(TANH, X, U, V, side, straight="p", num_steps=100)
    jacobian = jax.jit(jax.jacobian(lambda x: jax.nn.softmax(TANH(x))))
    _, e = plane(TANH, X, U, V)
    first, second = side * jacobian(X) @ e[0], side * jacobian(X) @ e[1]
    end = np.asarray(X)
    for change in (first, second, -first, -second):
        end = solve_ivp(
            lambda _, x, change=change: np.linalg.pinv(np.asarray(jacobian(x))) @ change,
            (0, 1), end, method="DOP853", rtol=1e-11, atol=1e-12,
        ).y[:, -1]  # fmt: skip
    gap = float(np.linalg.norm(end - X))
    np.testing.assert_allclose(found.end, end, atol=1e-3 * gap)
    assert gap > 1e-3
    assert found.status == Status.completed


def test_a_square_that_leaves_the_simplex_is_not_lifted():
    found = foliax.holonomy(TANH, X, U, V, 20.0, straight="p")
    assert found.status == Status.boundary
    np.testing.assert_array_equal(found.end, X)


def test_an_input_of_weak_type_is_one_like_others():
    weak = jnp.full(X.shape, 0.1)
    assert weak.weak_type
    found = foliax.holonomy(TANH, weak, U, V, 0.3)
    np.testing.assert_array_equal(found.end, foliax.holonomy(TANH, np.asarray(weak), U, V, 0.3).end)


def test_the_other_way_round_it_opens_to_the_other_side():
    # Of equal planes: v first gives another basis of the plane, so the directions are orthonormal.
    _, (u, v) = plane(TANH, X, U, V)
    one, other = (foliax.holonomy(TANH, X, *pair, 1e-3) for pair in ((u, v), (v, u)))
    size = float(jnp.linalg.norm(one.end - X))
    np.testing.assert_allclose(one.end - X, X - other.end, atol=0.02 * size)


def test_of_a_linear_model_every_loop_is_closed():
    weight = RNG.normal(size=(3, 5))
    found = foliax.holonomy(Partial(linear, (weight, np.zeros(3))), X, U, V, 2.0)
    assert float(found.gap) <= 1e-12
    assert found.status == Status.completed


def test_where_the_kernel_is_zero_every_loop_is_closed():
    """As many inputs as contrasts: p determines x near by."""
    (inner, shift), outer = layer(RNG, 6, 2), layer(RNG, 3, 6)
    model = Partial(lambda w, x: linear(w[1], jnp.tanh(linear(w[0], x))), ((inner, shift), outer))
    found = foliax.holonomy(model, X[:2], U[:2], V[:2], 0.2)
    assert float(found.gap) <= 1e-6


def test_a_relu_network_is_closed_in_a_linear_region_and_open_across_its_faces():
    params = layer(RNG, 40, 5), layer(RNG, 3, 40)
    model = Partial(relu_mlp, params)
    (inner, shift), _ = params
    near = float(np.min(np.abs(inner @ X + shift) / np.linalg.norm(inner, axis=1)))
    small, large = (foliax.holonomy(model, X, U, V, side) for side in (near / 10, 3.0))
    assert float(small.gap) <= 1e-10
    assert float(large.gap) >= 1e-3
    assert float(foliax.involutivity(model, X).outside) == 0


def test_a_batch_is_the_loops_one_by_one():
    xs = X + jnp.asarray(RNG.normal(size=(3, X.size))) / 4
    many = foliax.map(foliax.holonomy, TANH, xs, u=U, v=V, side=0.5)
    for i, x in enumerate(xs):
        one = foliax.holonomy(TANH, x, U, V, 0.5)
        np.testing.assert_allclose(many.end[i], one.end, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("u", "v"), [(0 * U, V), (U, 2 * U), (U, 0 * V)], ids=str)
def test_directions_that_span_no_plane_stall(u, v):
    found = foliax.holonomy(TANH, X, u, v, 0.5)
    assert found.status == Status.stalled
    np.testing.assert_array_equal(found.end, X)
    assert float(found.gap) == 0


def test_where_the_rank_falls_it_stalls():
    model = Partial(lambda x: jnp.stack([x[0], x[1], x[0] + x[1], 0 * x[0]]))
    assert foliax.holonomy(model, X, U, V, 0.5).status == Status.stalled


def test_a_masked_class_changes_nothing():
    def masked(x):
        return jnp.concatenate([TANH(x), jnp.full(1, -jnp.inf)])

    found, expected = (foliax.holonomy(m, X, U, V, 0.5) for m in (masked, TANH))
    np.testing.assert_allclose(found.end, expected.end, rtol=1e-9, atol=1e-9)


def test_what_is_not_finite_is_invalid():
    assert foliax.holonomy(TANH, X * jnp.nan, U, V, 0.5).status == Status.invalid


@pytest.mark.parametrize(("change", "message"), [
    ({"side": 0.0}, "side must be a finite number > 0"),
    ({"straight": "x"}, "straight must be one of 'logits', 'p', got 'x'"),
    ({"num_steps": 0}, "num_steps must be a whole number >= 1"),
    ({"u": U[:2]}, "u must have the shape of x"),
    ({"v": V[:2]}, "v must have the shape of x"),
    ({"x": X[:1], "u": U[:1], "v": V[:1], "model": lambda x: jnp.stack([x[0], x[0] ** 2, 0 * x[0]])
      }, "needs n >= C - 1"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        foliax.holonomy(**{"model": TANH, "x": X, "u": U, "v": V, "side": 0.5} | change)
