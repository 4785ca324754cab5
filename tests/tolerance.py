"""One comparison for the whole suite: relative to the largest entry, keyed by the dtype."""

from types import MappingProxyType

import jax.numpy as jnp
import numpy as np

RTOL = MappingProxyType({"float64": 1e-11, "float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2})


def assert_close(actual, expected, *, rtol=None, atol=0.0, precision=None):
    """Assert |actual - expected| <= atol + rtol * max|expected|, entry by entry.

    rtol defaults to the entry of the table for `precision`, the coarsest dtype that took part
    (that of `actual` unless told).
    """
    precision = jnp.dtype(precision or jnp.asarray(actual).dtype).name
    exact = not jnp.issubdtype(precision, jnp.floating)  # counts and masks
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    if actual.size == 0:
        return
    rtol = (0.0 if exact else RTOL[precision]) if rtol is None else rtol
    allowed = atol + rtol * np.max(np.abs(expected))
    error = np.abs(actual - expected)
    # Written so that a NaN on either side fails.
    if not np.all(error <= allowed):
        worst = np.unravel_index(np.argmax(np.nan_to_num(error, nan=np.inf)), error.shape)
        raise AssertionError(
            f"worst entry {tuple(map(int, worst))}: got {actual[worst]!r}, "
            f"expected {expected[worst]!r}, error {error[worst]:.3g}, allowed {allowed:.3g}"
        )
