"""Both decompositions of a wide matrix: the same projections, and the branch between them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from foliax._linalg.row_space import RowSpace, _by_gram, _by_svd, _decomposed


def matrix_of(rows, columns, condition, seed=0):
    """Return a matrix with singular values from 1 to 1 / condition."""
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(rows, rows)))
    right, _ = np.linalg.qr(rng.normal(size=(columns, rows)))
    return jnp.asarray(left @ np.diag(np.geomspace(1, 1 / condition, rows)) @ right.T)


@pytest.mark.parametrize(("rows", "columns"), [(1, 4), (3, 3), (9, 64), (30, 200)])
@pytest.mark.parametrize("condition", [1, 30, 1e3])
def test_both_ways_span_the_same(rows, columns, condition):
    k = matrix_of(rows, columns, condition)
    (basis, inverse, mask), good = jax.jit(_by_gram)(k)
    rounding = float(jnp.max(RowSpace(basis, inverse, mask, jnp.linalg.norm(k)).rounding()))
    assert good
    assert bool(jnp.all(mask))
    expected, *_ = _by_svd(k)
    size = 10 * rounding
    np.testing.assert_allclose(basis @ basis.T, np.eye(rows), atol=size)
    np.testing.assert_allclose(basis.T @ basis, expected.T @ expected, atol=size)
    np.testing.assert_allclose(inverse @ k, basis, atol=size)
    assert rounding <= 2 * np.sqrt(rows) * condition * np.finfo(float).eps


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_accepted_is_orthonormal(dtype):
    """Over all conditions: either the rows are orthonormal to a few eps, or SVD is asked."""
    taken, by_gram = [], jax.jit(_by_gram)
    for condition in np.geomspace(1, 1e12, 37):
        k = matrix_of(5, 40, condition).astype(dtype)
        (basis, *_), good = by_gram(k)
        taken.append(bool(good))
        if good:
            np.testing.assert_allclose(basis @ basis.T, np.eye(5), atol=16 * jnp.finfo(dtype).eps)
    assert taken[0]
    assert not taken[-1]
    assert taken == sorted(taken, reverse=True)


DEFECTIVE = {
    "dependent rows": jnp.array([[1.0, 2, 3], [2, 4, 6]]),
    "zero": jnp.zeros((2, 3)),
    "nearly dependent": jnp.array([[1.0, 0, 0], [1, 1e-9, 0]]),
    "not a number": jnp.full((2, 3), jnp.nan),
    "tall": jnp.arange(6.0).reshape(3, 2),
}


@pytest.mark.parametrize("name", DEFECTIVE)
@pytest.mark.parametrize("jit", [False, True])
def test_the_rest_is_left_to_svd(name, jit):
    k = DEFECTIVE[name]
    of = jax.jit(RowSpace.of) if jit else RowSpace.of
    space = of(k)
    for found, expected in zip((space.basis, space.inverse, space.mask), _by_svd(k), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_batch_with_a_defective_matrix_is_right_for_all():
    good = jnp.stack([matrix_of(2, 3, 5, seed) for seed in range(3)])
    ks = jnp.concatenate([good, DEFECTIVE["dependent rows"][None]])
    many = jax.jit(jax.vmap(RowSpace.of))
    for batch in (good, ks):
        space = many(batch)
        for i, k in enumerate(batch):
            alone = RowSpace.of(k)
            np.testing.assert_allclose(
                space.basis[i].T @ space.basis[i], alone.basis.T @ alone.basis, atol=1e-12
            )
            np.testing.assert_array_equal(space.mask[i], alone.mask)


def test_nan_in_a_batch_is_never_taken_for_good():
    """A compiled maximum may lose a NaN; rank-deficient Gram matrices give them often."""
    rng = np.random.default_rng(0)
    ks = jnp.asarray(rng.normal(size=(500, 3, 2)) @ rng.normal(size=(500, 2, 3)))
    space = jax.jit(jax.vmap(RowSpace.of))(ks)
    assert bool(jnp.all(jnp.isfinite(space.basis)))
    np.testing.assert_array_equal(jnp.sum(space.mask, axis=1), 2)


def test_a_batch_branches_once():
    """The slow way is inside a conditional, not computed beside the fast one for all lanes."""
    ks = jnp.stack([matrix_of(3, 8, 4, seed) for seed in range(4)])
    program = jax.jit(jax.vmap(_decomposed)).lower(ks).compile().as_text()
    assert "conditional" in program
    outside = [line for line in program.splitlines() if "svd" in line.lower() and "ENTRY" in line]
    assert not outside


def test_a_derivative_passes_through_the_projection_alone():
    k, v = matrix_of(3, 8, 4), jnp.arange(8.0)

    @jax.jit
    def projected(k):
        return jnp.sum(RowSpace.of(k).project_through(k, v) ** 3)

    direction = matrix_of(3, 8, 2, seed=1)
    step = 1e-5
    numeric = (projected(k + step * direction) - projected(k - step * direction)) / (2 * step)
    for gradient in (
        jnp.vdot(jax.grad(projected)(k), direction),
        jax.jvp(projected, (k,), (direction,))[1],
        jax.jvp(jax.jit(jax.vmap(projected)), (k[None],), (direction[None],))[1][0],
    ):
        np.testing.assert_allclose(gradient, numeric, rtol=1e-7)


def test_a_derivative_passes_by_it_in_a_loop():
    k, v = matrix_of(3, 8, 4), jnp.arange(8.0)

    @jax.jit
    def looped(scale):
        def body(x, _):
            space = RowSpace.of(k * (1 + x[0]))
            return x + 0.1 * space.project_through(k * (1 + x[0]), v), None

        return jnp.sum(lax.scan(body, scale * v, length=3)[0])

    step = 1e-6
    numeric = (looped(1 + step) - looped(1 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(looped)(1.0), numeric, rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(looped, (1.0,), (1.0,))[1], numeric, rtol=1e-6)


def test_an_rtol_is_counted_by_svd():
    k = matrix_of(4, 9, 1e3)
    found = jax.jit(partial(RowSpace.of, rtol=1e-3))(k)
    assert int(jnp.sum(found.mask)) == 2


@pytest.mark.parametrize("rows", [3, 9])
@pytest.mark.parametrize("condition", [1, 1e2, 1e3, 1e4])
def test_rounding_says_how_far_the_basis_leaves_the_row_space(rows, condition):
    """By either way, against the row space in float64: within 4 times what is said, and near it."""
    k = matrix_of(rows, 64, condition).astype("float32")
    exact, _ = np.linalg.qr(np.asarray(k, np.float64).T)
    (gram, good), by_svd = _by_gram(k), _by_svd(k)
    for parts in [gram, by_svd] if good else [by_svd]:
        basis, said = parts[0], np.asarray(RowSpace(*parts, jnp.linalg.norm(k)).rounding())
        basis = np.asarray(basis, np.float64)
        outside = np.linalg.norm(basis - basis @ exact @ exact.T, axis=1)
        assert np.all(outside <= 4 * said)
        assert np.max(said) <= 200 * np.max(outside)
        assert np.max(said) <= 4 * np.sqrt(rows) * condition * np.finfo("float32").eps


@pytest.mark.parametrize("condition", [1, 1e3, 1e4])
def test_what_is_held_and_what_is_missed_is_more_than_rounding(condition):
    k = matrix_of(5, 40, condition).astype("float32")
    space = RowSpace.of(k)
    exact, _ = np.linalg.qr(np.asarray(k, np.float64).T)
    v = np.random.default_rng(1).normal(size=40)
    inside, across = exact @ (exact.T @ v), v - exact @ (exact.T @ v)
    for vector, held, missed in ((v, True, True), (inside, True, False), (across, False, True)):
        vector = jnp.asarray(vector, "float32")
        assert bool(space.holds_part(vector)) is held
        assert bool(space.misses_part(vector, vector - space.project(vector))) is missed
    assert not space.holds_part(jnp.zeros(40, "float32"))
