import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import RTOL, assert_close


@pytest.mark.parametrize("dtype", sorted(RTOL))
def test_table_separates_rounding_from_error(dtype):
    expected = jnp.array([1.0, -2.0, 0.0], dtype)
    allowed = RTOL[dtype] * 2
    assert RTOL[dtype] > 4 * jnp.finfo(dtype).eps
    assert_close(expected, np.asarray(expected, float) + 0.4 * allowed)
    with pytest.raises(AssertionError, match=r"worst entry \(0,\)"):
        assert_close(expected, np.asarray(expected, float) + np.array([2 * allowed, 0, 0]))


@pytest.mark.parametrize(
    ("actual", "expected", "options", "message"),
    [
        ([1.0, np.nan], [1.0, 2.0], {}, "worst entry"),
        ([1.0], [np.nan], {}, "worst entry"),
        ([1.0], [[1.0]], {}, "shape"),
        ([3], [4], {}, "allowed 0"),
        ([1.0], [1.0 + 1e-15], {"rtol": 0.0}, "allowed 0"),
        ([0.0], [1e-3], {"rtol": 0.1, "atol": 0.0}, "worst entry"),
    ],
)
def test_what_must_fail_fails(actual, expected, options, message):
    with pytest.raises(AssertionError, match=message):
        assert_close(actual, expected, **options)


def test_absolute_tolerance_is_added():
    assert_close([1e-9], [0.0], atol=1e-8)
