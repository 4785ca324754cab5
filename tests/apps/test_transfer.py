"""Data sets compared: spectra in closed form, a distance held against SciPy, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.tree_util import Partial
from scipy.stats import wasserstein_distance

import foliax
from foliax.apps.transfer import log_spectra, spectral_distance, summary
from tests.cases import CASES, SATURATED, linear, pairwise_matrix


def spectra(model, xs):
    return foliax.map(foliax.spectrum, model, xs).eigenvalues


def closed_form(weight, logits):
    """Return the eigenvalues of W^T (diag p - p p^T) W, the largest first."""
    p = np.exp(logits - np.logaddexp.reduce(logits))
    g = weight.T @ (np.diag(p) - np.outer(p, p)) @ weight
    return np.linalg.eigvalsh(g)[::-1]


def sets(*sizes, k=3):
    """Return a strategy for log eigenvalues of data sets of these sizes."""
    values = st.floats(-8, 3, allow_nan=False, width=32)
    return st.tuples(*[hnp.arrays(np.float64, (n, k), elements=values) for n in sizes])


distance = jax.jit(spectral_distance)


# --- spectra -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_spectra_of_a_linear_model_are_those_of_its_weights(seed, dtype):
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(5, 7)), rng.normal(size=5)
    xs = rng.normal(size=(6, 7))
    model = Partial(linear, (jnp.asarray(weight, dtype), jnp.asarray(bias, dtype)))
    found = spectra(model, jnp.asarray(xs, dtype))
    assert found.shape == (6, 4)
    assert found.dtype == dtype
    expected = [closed_form(weight, weight @ x + bias)[:4] for x in xs]
    np.testing.assert_allclose(found, expected, rtol=5e-4 if dtype == jnp.float32 else 1e-10)


def test_with_equal_logits_the_spectrum_is_that_of_the_centred_weights():
    # p is uniform: G = W^T (1 - 11^T / C) W / C, with singular values of the centred W.
    weight = np.random.default_rng(0).normal(size=(4, 6))
    model = Partial(linear, (jnp.asarray(weight), jnp.zeros(4)))
    found = spectra(model, jnp.zeros((2, 6)))
    s = np.linalg.svd(weight - weight.mean(axis=0), compute_uv=False)[:3]
    np.testing.assert_allclose(found, np.tile(s**2 / 4, (2, 1)), rtol=1e-12)


DENSE = ("dead", "deficient_weights", "gap_10000", "image", "more_classes_than_inputs", "tanh")


@pytest.mark.parametrize("name", DENSE)
def test_spectra_are_those_of_the_dense_matrix(name):
    case = CASES[name]
    xs = jnp.stack([case.x, case.x + 0.1, -case.x])
    found = spectra(case.model, xs)
    assert np.all(np.diff(found, axis=1) <= 0)
    dense = jax.jit(jax.vmap(pairwise_matrix, in_axes=(None, 0)))(case.model, xs)
    expected = np.linalg.eigvalsh(dense)[:, ::-1]
    scale = np.maximum(expected[:, :1], 1e-300)
    np.testing.assert_allclose(found / scale, expected[:, : found.shape[1]] / scale, atol=1e-10)
    np.testing.assert_allclose(found.sum(axis=1), expected.sum(axis=1), rtol=1e-9)


def test_what_is_not_a_number_stays_in_its_row():
    case = CASES["tanh"]
    xs = jnp.stack([case.x, case.x.at[0].set(jnp.nan), -case.x])
    values = spectra(case.model, xs)
    logs = np.asarray(log_spectra(values))
    assert np.isnan(logs[1]).all()
    assert np.isfinite(logs[::2]).all()
    assert np.isnan(spectral_distance(logs, logs[:1]))


# --- logarithms --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logarithms_stop_at_the_rounding_of_the_largest(dtype):
    values = jnp.asarray([[100.0, 1.0, 0.0], [1e-20, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype)
    logs = np.asarray(log_spectra(values))
    eps, tiny = np.finfo(dtype).eps, np.finfo(dtype).tiny
    floor = 2 * np.log10(10 * 4 * eps)
    np.testing.assert_allclose(logs[0], [2, 0, 2 + floor], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logs[1], [-20, *[-20 + floor] * 2], rtol=1e-5)
    np.testing.assert_allclose(logs[2], np.log10(tiny), rtol=1e-5)
    assert logs.dtype == dtype


@pytest.mark.parametrize("name", SATURATED)
def test_a_saturated_input_keeps_its_own_scale(name):
    values = spectra(CASES[name].model, CASES[name].x[None])
    assert np.isfinite(log_spectra(values)).all()


def test_a_floor_can_be_given():
    found = log_spectra(jnp.array([[1.0, 1e-3, 1e-9], [1e-6, 1e-6, 0.0]]), floor=1e-4)
    np.testing.assert_allclose(found, [[0, -3, -4], [-6, -6, -10]], atol=1e-12)


@pytest.mark.parametrize(
    ("values", "floor", "match"),
    [
        (jnp.ones(()), None, r"eigenvalues must have shape \(\.\.\., k\), got \(\)"),
        (jnp.ones((2, 0)), None, "eigenvalues must hold at least one number"),
        (jnp.ones((2, 3)), 0.0, "floor must be a finite number > 0, got 0.0"),
    ],
)
def test_logarithms_refuse(values, floor, match):
    with pytest.raises(ValueError, match=match):
        log_spectra(values, floor=floor)


# --- the distance ------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.one_of(sets(4, 6), sets(3, 7), sets(5, 1)))
def test_the_distance_is_the_mean_of_scipys(pair):
    a, b = pair
    expected = np.mean([wasserstein_distance(a[:, k], b[:, k]) for k in range(a.shape[1])])
    np.testing.assert_allclose(distance(a, b), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(sets(4, 6, 5), st.permutations(range(4)))
def test_the_distance_is_a_metric_on_sets(triple, order):
    a, b, c = triple
    ab, bc, ac = (float(distance(*pair)) for pair in ((a, b), (b, c), (a, c)))
    assert ab >= 0
    assert ab == pytest.approx(float(distance(b, a)), abs=1e-12)
    assert ac <= ab + bc + 1e-9
    assert float(distance(a, a[order])) == 0
    assert float(distance(a, np.repeat(a, 3, axis=0))) == pytest.approx(0, abs=1e-12)
    assert float(distance(a, a + 0.25)) == pytest.approx(0.25)


def test_large_sets_of_sizes_that_share_nothing():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(499, 2)), rng.normal(size=(301, 2)) + 0.5
    expected = np.mean([wasserstein_distance(a[:, k], b[:, k]) for k in range(2)])
    assert float(spectral_distance(a, b)) == pytest.approx(expected, rel=1e-12)
    single = float(spectral_distance(a.astype(np.float32), b.astype(np.float32)))
    assert single == pytest.approx(expected, rel=1e-5)


def test_the_distance_can_be_compiled_and_differentiated():
    rng = np.random.default_rng(0)
    a, b = jnp.asarray(rng.normal(size=(4, 3))), jnp.asarray(rng.normal(size=(6, 3)))
    assert float(jax.jit(spectral_distance)(a, b)) == pytest.approx(float(spectral_distance(a, b)))
    slope = jax.grad(spectral_distance)(a, b)
    step = 1e-6 * jnp.asarray(rng.normal(size=a.shape))
    change = spectral_distance(a + step, b) - spectral_distance(a - step, b)
    assert float(change) == pytest.approx(float(2 * jnp.sum(slope * step)), rel=1e-5)


def test_scaling_the_inputs_of_a_model_moves_a_data_set_by_its_square():
    rng = np.random.default_rng(0)
    weight, xs = jnp.asarray(rng.normal(size=(4, 5))), jnp.asarray(rng.normal(size=(9, 5)))
    model = Partial(linear, (weight, jnp.zeros(4)))
    wider = Partial(linear, (weight / 10, jnp.zeros(4)))  # the same p at ten times the input
    near, far = (log_spectra(v) for v in (spectra(model, xs), spectra(wider, 10 * xs)))
    assert float(spectral_distance(near, far)) == pytest.approx(2, rel=1e-9)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (jnp.ones((2, 3)), jnp.ones((2, 4))),
        (jnp.ones(3), jnp.ones(3)),
    ],
)
def test_the_distance_refuses_what_does_not_fit(a, b):
    with pytest.raises(ValueError, match=r"a and b must have shapes \(N, k\) and \(M, k\)"):
        spectral_distance(a, b)


# --- the summary -------------------------------------------------------------------------------


def test_a_summary_holds_quartiles():
    rng = np.random.default_rng(0)
    values = np.sort(10 ** rng.normal(size=(21, 4)), axis=1)[:, ::-1].copy()
    found = summary(values)
    levels = (0.25, 0.5, 0.75)
    np.testing.assert_allclose(
        found.log_eigenvalues, np.quantile(np.log10(values), levels, axis=0), rtol=1e-10
    )
    np.testing.assert_allclose(
        found.log_trace, np.quantile(np.log10(values.sum(axis=1)), levels), rtol=1e-10
    )


def test_a_summary_refuses_a_lone_input():
    with pytest.raises(ValueError, match=r"eigenvalues must have shape \(N, k\), got"):
        summary(jnp.ones(3))
