"""Data sets compared by one trained network: spectra of G, and the distance of two sets.

The eigenvalues of G at an input say how fast the output changes there, direction by direction. Over
a data set the k-th largest has a distribution; two sets are compared by these, order by order, on
a logarithmic scale. Labels are not used. `map(foliax.spectrum, model, xs).eigenvalues` are the
eigenvalues at many inputs, and `foliax.sweep` takes them over sets that do not fit in memory.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from foliax._core.checks import as_point, check_positive
from foliax._linalg.rank import default_rtol

__all__ = ["Summary", "log_spectra", "spectral_distance", "summary"]

_LEVELS = (0.25, 0.5, 0.75)


class Summary(NamedTuple):
    """Quartiles over a data set: lower, median, upper.

    Attributes:
        log_eigenvalues: (3, k) of the decimal logarithm of each eigenvalue, in descending order.
        log_trace: (3,) of that of the trace.
    """

    log_eigenvalues: Float[Array, "3 k"]
    log_trace: Float[Array, "3"]


def log_spectra(eigenvalues: ArrayLike, *, floor: float | None = None) -> Float[Array, "*n k"]:
    """Return decimal logarithms of eigenvalues, those that are rounding raised to a floor.

    The floor of an input is relative to its own largest eigenvalue: a saturated softmax makes all
    of them small and none of them wrong. Where G vanishes altogether, it is the least normal number
    of the dtype.

    Args:
        eigenvalues: (…, k) from `foliax.spectrum`, ≥ 0, descending or not.
        floor: Least eigenvalue that counts, relative to the largest of the input, > 0; None for
            (10 (k + 1) eps)², as in `foliax.rank`.

    Returns:
        (…, k), finite where the eigenvalues are.

    Raises:
        ValueError: If eigenvalues has no axis, or floor is not a finite positive number.

    Example:
        >>> import jax.numpy as jnp
        >>> log_spectra(jnp.array([100.0, 1.0, 0.0]), floor=1e-6).tolist()
        [2.0, 0.0, -4.0]
    """
    values = as_point(eigenvalues, name="eigenvalues")
    if values.ndim < 1:
        raise ValueError(f"eigenvalues must have shape (..., k), got {values.shape}")
    if floor is None:
        floor = default_rtol(values.shape[-1], values.dtype)
    check_positive(floor, name="floor")
    tiny = jnp.finfo(values.dtype).tiny
    # A sum of logarithms: the product would be zero where the largest is near the least number.
    log_largest = jnp.log10(jnp.maximum(jnp.max(values, axis=-1, keepdims=True), tiny))
    least = jnp.maximum(log_largest + jnp.log10(floor), jnp.log10(tiny)).astype(values.dtype)
    return jnp.maximum(jnp.log10(jnp.maximum(values, tiny)), least)


def spectral_distance(a: ArrayLike, b: ArrayLike) -> Float[Array, ""]:
    """Return the distance of two data sets by the spectra of G, in decades.

    For each order k, the 1-Wasserstein distance between the k-th log eigenvalue over one set and
    that over the other, ∫₀¹ |Q_a(t) − Q_b(t)| dt with the quantile functions Q, exact for any two
    sizes; then the mean over k. It is a metric on the marginal distributions: it ignores which
    eigenvalues occur together in one input.

    Args:
        a: (N, k) log eigenvalues of one set, from `log_spectra`; in any order.
        b: (M, k) of the other.

    Returns:
        A number ≥ 0; not-a-number where an entry is.

    Raises:
        ValueError: If the sets are not of shapes (N, k) and (M, k).

    Source: after Tron & Fioresi 2024, arXiv 2409.07412, who compare the ordered eigenvalues.

    Example:
        >>> import jax.numpy as jnp
        >>> a, b = jnp.array([[1.0, 0.0], [3.0, 0.0]]), jnp.array([[2.0, 0.5]])
        >>> float(spectral_distance(a, b))
        0.75
    """
    a, b = as_point(a, name="a"), as_point(b, name="b")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            "a and b must have shapes (N, k) and (M, k), log eigenvalues at N and M inputs, got "
            f"{a.shape} and {b.shape}"
        )
    # The quantile functions are constant between the levels i / N and j / M. In units of 1 / (NM)
    # all levels are integers.
    n, m = len(a), len(b)
    levels = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    widths, start = np.diff(levels) / (n * m), levels[:-1]
    apart = jnp.abs(jnp.sort(a, axis=0)[start // m] - jnp.sort(b, axis=0)[start // n])
    return jnp.mean(jnp.sum(jnp.asarray(widths, apart.dtype)[:, None] * apart, axis=0))


def summary(eigenvalues: ArrayLike, *, floor: float | None = None) -> Summary:
    """Return quartiles of the ordered log eigenvalues, and of the log trace, over a data set.

    Args:
        eigenvalues: (N, k) from `foliax.spectrum` at N inputs.
        floor: As in `log_spectra`.

    Returns:
        A `Summary`.

    Raises:
        ValueError: As `log_spectra`; or if there is no leading axis of inputs.

    Example:
        >>> import jax.numpy as jnp
        >>> found = summary(jnp.array([[90.0, 10.0], [1000.0, 0.0], [9.0, 1.0]]))
        >>> f"{found.log_trace[1]:.2f}", found.log_eigenvalues.shape
        ('2.00', (3, 2))
    """
    values = as_point(eigenvalues, name="eigenvalues")
    if values.ndim != 2:
        raise ValueError(f"eigenvalues must have shape (N, k), got {values.shape}")
    levels = jnp.asarray(_LEVELS, values.dtype)
    logs = log_spectra(values, floor=floor)
    trace = log_spectra(jnp.sum(values, axis=1, keepdims=True))[:, 0]
    return Summary(jnp.quantile(logs, levels, axis=0), jnp.quantile(trace, levels))
