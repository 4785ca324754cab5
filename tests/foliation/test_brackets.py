"""Involutivity against a closed form, finite differences and the reference values."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import foliax
from tests.cases import linear
from tests.test_reference import ACTIVATIONS, DENSE, dense, weights
from tests.tolerance import assert_close

NETWORKS = {name: partial(dense, function) for name, function in ACTIVATIONS.items()}

involutivity = jax.jit(foliax.involutivity, static_argnames=("pairs", "atol", "chunk"))


def network(activation, seed, n, hidden, c):
    """Return a network wide enough that nothing but n and C bounds D, and a point."""
    rng = np.random.default_rng(seed)
    sizes = ((hidden, n), (c, hidden))
    params = tuple(
        (jnp.asarray(rng.normal(size=s) / np.sqrt(s[1])), jnp.asarray(0.3 * rng.normal(size=s[0])))
        for s in sizes
    )
    return Partial(NETWORKS[activation], params), jnp.asarray(rng.normal(size=n))


def counts(found):
    return int(found.dimension), int(found.dimension_with_brackets)


def twisted(a, x):
    return jnp.stack([x[0], x[1] + a * x[0] * x[2], 0 * x[0]])


@pytest.mark.parametrize("a", [1.0, 0.2, -3.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_closed_form(a, seed):
    x = jnp.asarray(np.random.default_rng(seed).normal(size=3))
    found = involutivity(Partial(twisted, jnp.asarray(a)), x)
    # With g1 = e0, g2 = e1 + a (x2 e0 + x0 e2) the contrasts are (g1 - g2)/√2 and (g1 + g2)/√6;
    # the second derivative of the first logit is zero, that of the second is h.
    g1, g2 = np.array([1.0, 0, 0]), np.array([a * x[2], 1, a * x[0]])
    h = a * np.array([[0.0, 0, 1], [0, 0, 0], [1, 0, 0]])
    ahead, back = h @ (g1 - g2) / np.sqrt(12), -h @ (g1 + g2) / np.sqrt(12)
    normal = np.array([0, -a * x[0], 1]) / np.sqrt(1 + (a * x[0]) ** 2)  # across D
    outside = abs(normal @ (ahead - back)) / np.sqrt(ahead @ ahead + back @ back)
    assert counts(found) == (2, 3)
    assert_close(found.outside, outside)
    assert found.outside > 0.01


def test_curved_fields_may_be_involutive():
    """Each logit of its own coordinates: the gradients turn, and D stays closed."""

    def separable(x):
        return jnp.stack([jnp.sin(x[0]) + x[1] ** 2, jnp.exp(x[2]) * x[3], 0 * x[0]])

    found = involutivity(Partial(separable), jnp.array([0.3, -1.0, 0.5, 2.0, 1.0]))
    assert counts(found) == (2, 2)
    assert float(found.outside) < 1e-14


@pytest.mark.parametrize(
    ("activation", "n", "c"), [("gelu", 20, 5), ("gelu", 5, 4), ("sigmoid", 20, 5)]
)
def test_brackets_of_smooth_networks_leave_d(activation, n, c):
    for seed in (1, 2):
        found = involutivity(*network(activation, seed, n, 32, c))
        assert counts(found) == (c - 1, min(n, (c - 1) + (c - 1) * (c - 2) // 2))
        assert float(found.outside) > 1e-3


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_inside_a_linear_region_d_is_involutive(seed):
    found = involutivity(*network("relu", seed, 20, 32, 5))
    assert counts(found) == (4, 4)
    assert float(found.outside) == 0


@pytest.mark.parametrize(("n", "c"), [(6, 2), (2, 3)])
def test_where_there_is_nothing_to_say(n, c):
    """A line, or all of input space."""
    found = involutivity(*network("gelu", 1, n, 32, c))
    assert counts(found) == (min(n, c - 1), min(n, c - 1))
    # Of an all-embracing D only rounding lies outside.
    assert float(found.outside) < 1e-12


def test_dead_network():
    model = Partial(linear, (jnp.zeros((4, 6)), jnp.ones(4)))
    found = involutivity(model, jnp.ones(6))
    assert counts(found) == (0, 0)
    assert float(found.outside) == 0


# Finite differences of the contrast gradients, and plain linear algebra.


def helmert(c):
    rows = [np.r_[np.ones(k), -k, np.zeros(c - k - 1)] / np.sqrt(k * (k + 1)) for k in range(1, c)]
    return np.stack(rows)


def by_differences(model, x, step=1e-3):
    """Return (dim D, dim (D + [D, D]), share outside) with nothing of foliax in it."""
    h = helmert(model(x).size)
    jacobian = jax.jit(jax.jacfwd(model))

    def fields(y):
        return h @ np.asarray(jacobian(y))

    c = fields(x)

    def along(v):
        at = [fields(x + t * step * v) for t in (-2, -1, 1, 2)]
        return (8 * (at[2] - at[1]) - (at[3] - at[0])) / (12 * step)

    turning = [along(v) for v in c]  # turning[i][j]: the derivative of c_j along c_i
    basis = np.linalg.qr(c.T)[0]
    outside, terms = [], []
    for i, j in itertools.combinations(range(len(c)), 2):
        bracket = turning[i][j] - turning[j][i]
        outside.append(bracket - basis @ (basis.T @ bracket))
        terms.append(np.sqrt(np.sum(turning[i][j] ** 2) + np.sum(turning[j][i] ** 2)))
    outside, terms = np.array(outside), np.array(terms)
    unit = c / np.linalg.norm(c, axis=1, keepdims=True)
    everything = np.concatenate([unit, outside / terms[:, None]])
    ranks = [int(np.linalg.matrix_rank(rows, tol=1e-7)) for rows in (unit, everything)]
    return ranks, np.sqrt(np.sum(outside**2) / np.sum(terms**2))


@pytest.mark.parametrize("activation", ["gelu", "sigmoid"])
@pytest.mark.parametrize("seed", [1, 2])
def test_finite_differences_agree(activation, seed):
    place = network(activation, seed, 9, 16, 5)
    found = involutivity(*place)
    ranks, outside = by_differences(*place)
    assert list(counts(found)) == ranks
    assert_close(found.outside, outside, rtol=1e-6)


def test_shifting_all_logits_changes_nothing():
    model, x = network("gelu", 1, 9, 16, 5)
    shifted = involutivity(Partial(lambda m, y: m(y) + jnp.sin(jnp.sum(y**2)), model), x)
    plain = involutivity(model, x)
    assert counts(shifted) == counts(plain)
    assert_close(shifted.outside, plain.outside, rtol=1e-9)


@pytest.mark.parametrize("name", DENSE)
def test_reference_ranks(reference, name):
    file, activation = DENSE[name]
    arrays = reference(file)
    model = Partial(NETWORKS[activation], (weights(arrays, 0), weights(arrays, 2)))
    f = jax.jit(jax.vmap(foliax.involutivity, in_axes=(None, 0)))
    found = f(model, jnp.asarray(arrays["x"]))
    np.testing.assert_array_equal(found.dimension, arrays["rank_gradp_exact"])
    np.testing.assert_array_equal(found.dimension_with_brackets, arrays["rank_sum_exact"])


# Options, batches, precision.


def test_fewer_pairs():
    model, x = network("gelu", 1, 20, 32, 5)
    found = {pairs: counts(involutivity(model, x, pairs=pairs)) for pairs in (1, 4)}
    assert found == {1: (4, 5), 4: (4, 8)}
    with pytest.raises(ValueError, match="pairs must be a whole number >= 1, got 0"):
        foliax.involutivity(model, x, pairs=0)


def test_tolerance_and_chunks():
    model, x = network("gelu", 1, 20, 32, 5)
    plain = involutivity(model, x)
    # Each part outside is at most √2 times its terms, all six together at most √12.
    other = involutivity(model, x, chunk=4, atol=4.0, pairs=100)
    assert counts(other) == (4, 4)
    assert_close(other.outside, plain.outside)


def test_under_jit_and_vmap_at_points_of_any_shape():
    model, x = network("sigmoid", 1, 12, 16, 4)
    xs = jnp.stack([x, 2 * x, x - 1])
    f = jax.jit(jax.vmap(foliax.involutivity, in_axes=(None, 0)))
    got = f(Partial(lambda m, x: m(x.ravel()), model), xs.reshape(3, 2, 3, 2))
    for outside, x in zip(got.outside, xs, strict=True):
        assert_close(outside, involutivity(model, x).outside)
    assert got.dimension_with_brackets.tolist() == [6, 6, 6]
    assert got.dimension.dtype == got.dimension_with_brackets.dtype == jnp.int32


@pytest.mark.parametrize(("activation", "reached"), [("gelu", 10), ("relu", 4)])
def test_float32(activation, reached):
    place = network(activation, 1, 20, 32, 5)
    exact = involutivity(*place)
    found = involutivity(*jax.tree.map(lambda a: a.astype(jnp.float32), place))
    assert found.outside.dtype == jnp.float32
    assert counts(found) == counts(exact) == (4, reached)
    assert_close(found.outside, exact.outside, rtol=1e-4, atol=1e-6)
