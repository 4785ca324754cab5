"""The sampled trace and Lanczos' eigenpairs, against the factor."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import foliax
from tests.cases import CASES, layer, tanh_mlp
from tests.tolerance import assert_close


def network(seed, n, hidden, c, *, rank=None, decay=0.0, gaps=0.0):
    """Return a tanh network and a point; `decay` spreads the spectrum, `rank` cuts it."""
    rng = np.random.default_rng(seed)
    inner, (outer, bias) = layer(rng, hidden, n), layer(rng, c, hidden)
    outer = outer * np.exp(-decay * np.arange(hidden))
    if rank is not None:
        outer[:, rank:] = 0
    params = jax.tree.map(jnp.asarray, (inner, (2 * outer, bias - gaps * np.arange(c))))
    return Partial(tanh_mlp, params), jnp.asarray(rng.normal(size=n))


WIDE = network(0, 60, 50, 120, decay=0.15)  # more classes than Lanczos takes steps
SMALL = network(1, 12, 16, 9)

estimate = jax.jit(foliax.trace_estimate, static_argnames=("num_samples", "chunk"))


# The trace.


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("place", [SMALL, WIDE], ids=["small", "wide"])
def test_trace_estimate_is_unbiased(place, seed):
    exact = float(jax.jit(foliax.trace)(*place))
    got = estimate(*place, jax.random.key(seed), num_samples=8000)
    assert abs(float(got.value) - exact) <= 4 * float(got.standard_error)
    assert 0 < float(got.standard_error) < 0.02 * exact
    assert got.value.shape == got.standard_error.shape == ()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_standard_error_is_hutchinsons(seed):
    a = np.asarray(jax.jit(foliax.factor)(*SMALL))
    gram = a @ a.T
    variance = 2 * (np.sum(gram**2) - np.sum(np.diag(gram) ** 2))
    for num_samples in (500, 8000):
        got = estimate(*SMALL, jax.random.key(seed), num_samples=num_samples)
        # Known to about 1 / sqrt(2 · 500) times a kurtosis of a few.
        assert_close(got.standard_error, np.sqrt(variance / num_samples), rtol=0.15)


def test_one_row_is_exact():
    case = CASES["two_classes"]
    got = estimate(case.model, case.x, jax.random.key(0), num_samples=8, chunk=3)
    assert_close(got.value, jax.jit(foliax.trace)(case.model, case.x))
    assert_close(got.standard_error, 0.0, atol=1e-15)


def test_dead_network_has_no_trace():
    case = CASES["dead"]
    got = estimate(case.model, case.x, jax.random.key(0))
    assert float(got.value) == float(got.standard_error) == 0


def test_trace_estimate_under_vmap_and_in_chunks():
    case = CASES["image"]
    xs = jnp.stack([case.x, 2 * case.x])
    keys = jax.random.split(jax.random.key(0))
    mapped = jax.jit(jax.vmap(foliax.trace_estimate, in_axes=(None, 0, 0)))(case.model, xs, keys)
    for i in range(2):
        alone = estimate(case.model, xs[i], keys[i], chunk=5)
        assert_close(mapped.value[i], alone.value)
        assert_close(mapped.standard_error[i], alone.standard_error, rtol=1e-9)


@pytest.mark.parametrize("num_samples", [1, 0, -3])
def test_too_few_samples(num_samples):
    message = "num_samples must be (at least 2|a whole number >= 1, got)"
    with pytest.raises(ValueError, match=message):
        foliax.trace_estimate(*SMALL, jax.random.key(0), num_samples=num_samples)


# Lanczos.


@functools.partial(jax.jit, static_argnames=("k", "num_iterations"))
def both(model, x, k, num_iterations):
    krylov = foliax.eigh(model, x, k, method="lanczos", num_iterations=num_iterations)
    return foliax.eigh(model, x), krylov


def check(model, x, k, num_iterations=None, *, values=1e-4, subspace=1e-4):
    """Compare the leading k pairs with those of the factor; return how many spaces were told."""
    exact, got = both(model, x, k, num_iterations)
    top = float(exact.values[0])
    assert got.values.shape == (k,)
    assert got.vectors.shape == (k, *x.shape)
    assert_close(got.values, exact.values[:k], rtol=0, atol=values * max(top, 1e-300))
    assert np.all(np.diff(got.values) <= 0)
    assert np.all(got.values >= 0)
    eps = jnp.finfo(got.values.dtype).eps
    vectors = np.asarray(got.vectors).reshape(k, -1)
    assert_close(vectors @ vectors.T, np.eye(k), rtol=0, atol=1e3 * float(eps))
    # Where a gap follows, the space of the leading vectors is determined.
    whole = np.append(np.asarray(exact.values), 0)
    gaps = -np.diff(whole)[:k]
    leading = [i + 1 for i in range(k) if gaps[i] > 0.05 * top]
    expected = np.asarray(exact.vectors).reshape(len(exact.values), -1)
    for count in leading:
        cosines = np.linalg.svd(vectors[:count] @ expected[:count].T, compute_uv=False)
        assert cosines.min() > 1 - subspace
    return len(leading)


@pytest.mark.parametrize(
    ("k", "num_iterations", "dtype"),
    [(6, None, "float32"), (6, None, "float64"), (5, 20, "float32")],
)
def test_lanczos_has_the_eigenpairs_of_the_factor(k, num_iterations, dtype):
    model, x = jax.tree.map(lambda a: a.astype(dtype), WIDE)
    assert min(x.size, model(x).size - 1) > 2 * 6 + 20  # the Krylov space is not all there is
    assert check(model, x, k, num_iterations) >= 1


EARLY = {  # all but two of one shape
    "rank 15 of 15": network(2, 30, 16, 16),
    "rank 3 of 15": network(2, 30, 16, 16, rank=3),
    "dead": network(2, 30, 16, 16, rank=0),
    "gaps of 60": network(2, 30, 16, 16, gaps=60.0),
    "gaps of 10000": network(2, 30, 16, 16, gaps=1e4),
    "more classes than inputs": network(3, 5, 16, 12),
    "one row": CASES["two_classes"][:2],
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", EARLY)
def test_lanczos_where_the_krylov_space_ends_early(name, dtype):
    model, x = jax.tree.map(lambda a: a.astype(dtype), EARLY[name])
    k = min(x.size, model(x).size - 1)
    check(model, x, k)
    got = both(model, x, k, None)[1]
    if name in ("dead", "gaps of 10000"):
        assert got.values.tolist() == [0] * k
    if name == "rank 3 of 15":
        assert np.all(got.values[:3] > 1e-3 * got.values[0])
        # What the floor of the iteration alone explains is set to zero.
        assert np.all(got.values[3:] <= 100 * jnp.finfo(dtype).eps * got.values[0])


def test_lanczos_under_vmap():
    case = CASES["image"]
    xs = jnp.stack([case.x, 2 * case.x])
    options = {"k": 2, "num_iterations": 3, "method": "lanczos"}
    mapped = jax.vmap(functools.partial(foliax.eigh, **options), in_axes=(None, 0))
    got = jax.jit(mapped)(case.model, xs)
    assert got.vectors.shape == (2, 2, *case.x.shape)
    for values, x in zip(got.values, xs, strict=True):
        assert_close(values, both(case.model, x, 2, 3)[0].values[:2], rtol=1e-9)


@pytest.mark.parametrize("num_iterations", [2, 9])
def test_number_of_iterations_out_of_range(num_iterations):
    message = rf"num_iterations must lie between k = 3 and .* = 8, got {num_iterations}"
    with pytest.raises(ValueError, match=message):
        foliax.eigh(*SMALL, 3, method="lanczos", num_iterations=num_iterations)
