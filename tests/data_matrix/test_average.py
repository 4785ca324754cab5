"""The mean of G over data, against the mean of dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import foliax
from tests.cases import CASES

IMAGE = CASES["image"].model
RNG = np.random.default_rng(3)
XS = jnp.asarray(RNG.normal(size=(21, *CASES["image"].x.shape)))
N = XS[0].size


def dense(model, xs):
    """Return eigenvalues, descending, and eigenvectors as rows of the mean of dense matrices."""
    mean = np.mean([foliax.matrix(model, x) for x in xs], axis=0)
    values, vectors = np.linalg.eigh(mean)
    return mean, values[::-1], vectors.T[::-1]


@pytest.mark.parametrize("block", [1, 8, 30])
def test_it_is_the_mean_of_dense_matrices(block):
    found = foliax.average(IMAGE, XS, block=block)
    mean, values, _ = dense(IMAGE, XS)
    flat = found.vectors.reshape(len(found.values), -1)
    np.testing.assert_allclose(found.values, values[: len(flat)], atol=1e-12 * values[0])
    np.testing.assert_allclose(flat.T * found.values @ flat, mean, atol=1e-12 * values[0])
    np.testing.assert_allclose(flat @ flat.T, np.eye(len(flat)), atol=1e-10)
    np.testing.assert_allclose(found.trace, np.trace(mean), rtol=1e-12)
    assert float(found.error) == 0
    assert int(found.num_inputs) == len(XS)


def test_parts_are_averaged_as_one():
    first = foliax.average(IMAGE, XS[:6])
    both = foliax.average(IMAGE, XS[6:], start=first)
    whole = foliax.average(IMAGE, XS)
    np.testing.assert_allclose(both.values, whole.values, atol=1e-12 * float(whole.values[0]))
    np.testing.assert_allclose(both.trace, whole.trace, rtol=1e-12)
    assert int(both.num_inputs) == len(XS)


@pytest.mark.parametrize("size", [2, 4, 6])
def test_a_small_sketch_says_how_far_it_is_off(size):
    found = foliax.average(IMAGE, XS, size=size, block=1)
    _, values, _ = dense(IMAGE, XS)
    rounding = 1e-12 * values[0]
    assert np.all(found.values <= values[:size] + rounding)
    assert np.all(values[:size] <= found.values + found.error + rounding)
    np.testing.assert_allclose(found.trace, values.sum(), rtol=1e-12)
    assert float(found.error) > 0


def test_of_one_input_it_is_eigh():
    pairs, found = foliax.eigh(IMAGE, XS[0]), foliax.average(IMAGE, XS[:1], 3)
    np.testing.assert_allclose(found.values, pairs.values[:3], rtol=1e-9)
    np.testing.assert_allclose(
        jnp.abs(jnp.sum(found.vectors * pairs.vectors[:3], axis=tuple(range(1, XS.ndim)))), 1,
        rtol=1e-9,
    )  # fmt: skip


def test_a_masked_class_changes_nothing():
    def masked(x):
        return jnp.concatenate([IMAGE(x), jnp.full(1, -jnp.inf)])

    found, expected = foliax.average(masked, XS, 3), foliax.average(IMAGE, XS, 3)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-9)


def test_nan_is_not_hidden():
    found = foliax.average(IMAGE, XS.at[4].set(jnp.nan), 2)
    assert jnp.isnan(found.trace)
    assert jnp.all(jnp.isnan(found.values))


def test_derivatives_are_refused():
    with pytest.raises(TypeError, match=r"foliax\.average"):
        jax.grad(lambda xs: foliax.average(IMAGE, xs).trace)(XS)


@pytest.mark.parametrize(("options", "message"), [
    ({"xs": XS[:0]}, "xs must be a stack of at least one input"),
    ({"xs": jnp.zeros((2, 3), int)}, "xs must be"),
    ({"k": 0}, "k must be a whole number from 1 to size"),
    ({"k": N + 1}, "k must be a whole number from 1 to size"),
    ({"size": 0}, "size must be a whole number >= 1"),
    ({"block": 0}, "block must be a whole number >= 1"),
    ({"start": foliax.average(IMAGE, XS, 2)}, "start must hold all"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        foliax.average(**{"model": IMAGE, "xs": XS, **options})
