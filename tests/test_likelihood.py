"""The categorical metric and KL against exact decimal arithmetic."""

from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foliax import Categorical
from foliax._core.likelihood import Likelihood
from tests.tolerance import assert_close

LOGITS = {
    "even": [0.0, 0.0, 0.0, 0.0],
    "mild": [0.3, -1.2, 2.0, 0.7, -0.4],
    "two": [0.25, -0.5],
    "first_wins_by_60": [60.0, 0.0, -1.0, 0.5],
    "last_wins_by_60": [0.0, -1.0, 0.5, 60.0],
    "ladder": [0.0, -30.0, -60.0, -90.0, 5.0],
    "gap_10000": [1e4, 0.0, 5e3, -1e4],
}


def exact_probabilities(logits):
    with localcontext() as context:
        context.prec = 60
        shift = max(map(Decimal, logits))
        weights = [(Decimal(s) - shift).exp() for s in logits]
        total = sum(weights)
        return [w / total for w in weights]


def exact_metric(logits):
    with localcontext() as context:
        context.prec = 60
        p = exact_probabilities(logits)
        return np.array(
            [[float(a * ((i == j) - b)) for j, b in enumerate(p)] for i, a in enumerate(p)]
        )


def exact_kl(logits, change):
    with localcontext() as context:
        context.prec = 80
        moved = [Decimal(s) + Decimal(c) for s, c in zip(logits, change, strict=True)]
        shift, shift_moved = max(map(Decimal, logits)), max(moved)
        norm = sum((Decimal(s) - shift).exp() for s in logits).ln() + shift
        norm_moved = sum((s - shift_moved).exp() for s in moved).ln() + shift_moved
        pairs = zip(moved, map(Decimal, logits), strict=True)
        return float(sum((m - norm_moved).exp() * (m - norm_moved - s + norm) for m, s in pairs))


@jax.jit
def metric_factor(logits):
    weights, rows = Categorical().factor(logits)
    return rows.T * weights


_jacobian = jax.jit(jax.jacrev(metric_factor))
_kl = jax.jit(Categorical().kl)
_kl_gradient = jax.jit(jax.grad(Categorical().kl, argnums=(0, 1)))
_kl_hessian = jax.jit(jax.hessian(Categorical().kl, argnums=1))


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_factor_gives_the_metric(name, dtype):
    logits = np.asarray(LOGITS[name], dtype)
    expected = exact_metric([float(s) for s in logits])
    factor = metric_factor(logits)
    assert factor.dtype == dtype
    assert factor.shape == (logits.size, logits.size - 1)
    got = np.asarray(factor, np.float64)
    # Entry by entry against its own size, so that a saturated class counts as much as any.
    size = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    tiny = np.finfo(dtype).tiny  # of what underflows, nothing is asked
    # log p carries an absolute rounding of eps times the gap, which p inherits.
    spread = 1 + logits.max() - logits.min()
    assert np.all(np.abs(got @ got.T - expected) <= 8 * spread * np.finfo(dtype).eps * size + tiny)


@pytest.mark.parametrize("gap", [0.0, 60.0, 1e4])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gradients_of_the_factor_are_finite(gap, dtype):
    for order in ([gap, 0, -gap, 1.0], [-gap, 1.0, 0, gap]):
        jacobian = _jacobian(jnp.asarray(order, dtype))
        assert bool(jnp.all(jnp.isfinite(jacobian)))


def test_gradient_of_the_metric():
    logits = jnp.asarray(LOGITS["mild"])

    def through_factor(s):
        return metric_factor(s) @ metric_factor(s).T

    def plain(s):
        p = jax.nn.softmax(s)
        return jnp.diag(p) - jnp.outer(p, p)

    assert_close(jax.jit(jax.jacrev(through_factor))(logits), jax.jit(jax.jacfwd(plain))(logits))


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
def test_contrasts_are_orthonormal_and_sum_to_zero(num_classes):
    rows = Categorical().contrasts(jnp.zeros(num_classes))
    assert_close(rows @ rows.T, np.eye(num_classes - 1))
    assert_close(rows.sum(1), np.zeros(num_classes - 1), atol=1e-14 * num_classes)


def test_log_probabilities_serve_as_logits():
    logits = jnp.asarray(LOGITS["mild"])
    shifted = metric_factor(jax.nn.log_softmax(logits))
    assert_close(shifted, metric_factor(logits))


CHANGES = {
    "1e-9": [1e-9, -2e-9, 3e-9, 0.5e-9],
    "1e-4": [1e-4, 2e-4, -1e-4, 3e-4],
    "around_the_switch": [0.2, -0.3, 0.26, 0.9],
    "1": [1.0, -1.0, 0.5, 2.0],
    "50": [50.0, -20.0, 10.0, 0.0],
    "common": [7.0, 7.0, 7.0, 7.0],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["even", "first_wins_by_60", "last_wins_by_60", "gap_10000"])
def test_kl_loses_no_digits(name, change):
    logits, change = LOGITS[name], CHANGES[change]
    expected = exact_kl(logits, change)
    got = float(_kl(jnp.asarray(logits), jnp.asarray(change)))
    assert got >= 0
    assert_close(got, expected, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("scale", [1e-3, 1e-2, 0.3, 3.0])
def test_kl_in_float32(scale):
    logits = np.asarray(LOGITS["mild"], np.float32)
    change = np.asarray(scale * np.array([1.0, -0.7, 0.4, 0.0, 0.9]), np.float32)
    expected = exact_kl([float(s) for s in logits], [float(c) for c in change])
    got = _kl(logits, change)
    assert got.dtype == jnp.float32
    assert_close(got, expected)


@pytest.mark.parametrize("change", [[2e4, 0.0, 0.0], [-2e4, 0.0, 0.0], [0.0, 0.0, 2e4]])
def test_kl_where_the_class_changes_by_a_large_gap(change):
    logits = [1e4, 0.0, -1.0]
    assert_close(
        _kl(jnp.asarray(logits), jnp.asarray(change)),
        exact_kl(logits, change),
        atol=1e-300,
    )
    gradient = _kl_gradient(jnp.asarray(logits), jnp.asarray(change))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradient)


def test_kl_has_the_metric_as_its_hessian():
    logits = jnp.asarray(LOGITS["mild"])
    zero = jnp.zeros_like(logits)
    assert_close(_kl_gradient(logits, zero)[1], zero, atol=1e-15)
    hessian = _kl_hessian(logits, zero)
    assert_close(hessian, exact_metric(LOGITS["mild"]))


def test_an_excluded_class_counts_for_nothing():
    for order in ([0.5, 0.0, -jnp.inf], [-jnp.inf, 0.5, 0.0]):
        factor = metric_factor(jnp.asarray(order))
        assert_close(factor @ factor.T, exact_metric(order))


def test_categorical_is_a_likelihood():
    assert isinstance(Categorical(), Likelihood)
    with pytest.raises(ValueError, match=r"C >= 2 logits.*got C = 1.*\(0, z\)"):
        Categorical().check(1)
