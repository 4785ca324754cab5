"""Bernoulli and Gaussian outputs: the same geometry, against the dense definition.

G = E[∇log q(y|x) ∇log q(y|x)ᵀ]: the expectation is taken by enumerating all labels, or by a
quadrature that is exact for the square of a Gaussian's score.
"""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats

import foliax
from foliax import Bernoulli, Categorical, Gaussian, fisher
from foliax._core.likelihood import Likelihood
from tests.tolerance import assert_close

SCALE = np.array([0.5, 2.0, 1.5])
KINDS = {"bernoulli": Bernoulli(), "gaussian": Gaussian(SCALE), "one scale": Gaussian(0.7)}


def network(num_outputs=3, size=6, seed=0, hidden=8):
    """Return a smooth network in float64."""
    first, second = jax.random.split(jax.random.key(seed))
    weights = {
        "in": jax.random.normal(first, (size, hidden), jnp.float64),
        "out": jax.random.normal(second, (hidden, num_outputs), jnp.float64),
    }
    return jax.tree_util.Partial(lambda w, x: jnp.tanh(x @ w["in"]) @ w["out"], weights)


def point(size=6, seed=3):
    return jax.random.normal(jax.random.key(seed), (size,), jnp.float64)


def outcomes(likelihood, s):
    """Return (y, weight) pairs over which the expectation is exact."""
    if isinstance(likelihood, Bernoulli):
        p = 1 / (1 + np.exp(-np.asarray(s)))
        for y in itertools.product((0, 1), repeat=len(s)):
            yield np.array(y, float), float(np.prod(np.where(y, p, 1 - p)))
        return
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    scale = np.broadcast_to(likelihood.scale, len(s))
    for picks in itertools.product(range(3), repeat=len(s)):
        y = np.asarray(s) + scale * nodes[list(picks)]
        yield y, float(np.prod(weights[list(picks)]) / math.sqrt(2 * math.pi) ** len(s))


def log_density(likelihood, s, y):
    if isinstance(likelihood, Bernoulli):
        return jnp.sum(y * jax.nn.log_sigmoid(s) + (1 - y) * jax.nn.log_sigmoid(-s))
    return jnp.sum(-0.5 * ((y - s) / jnp.asarray(likelihood.scale)) ** 2)


def dense(likelihood, model, x):
    """Return G by its definition."""
    score = jax.jit(jax.grad(lambda x, y: log_density(likelihood, model(x), y)))
    total = np.zeros((x.size, x.size))
    for y, weight in outcomes(likelihood, model(x)):
        g = np.asarray(score(x, jnp.asarray(y)))
        total += weight * np.outer(g, g)
    return total


@pytest.fixture(params=KINDS)
def likelihood(request):
    return KINDS[request.param]


def test_is_a_likelihood():
    for kind in (*KINDS.values(), Categorical()):
        assert isinstance(kind, Likelihood)


def test_matrix_is_that_of_the_definition(likelihood):
    model, x = network(), point()
    wanted = dense(likelihood, model, x)
    assert_close(foliax.matrix(model, x, likelihood=likelihood), wanted, rtol=1e-10, atol=1e-12)
    assert_close(foliax.trace(model, x, likelihood=likelihood), np.trace(wanted), rtol=1e-10)
    v = point(seed=9)
    assert_close(foliax.matvec(model, x, v, likelihood=likelihood), wanted @ v, rtol=1e-9)
    half = foliax.quadratic(model, x, v, likelihood=likelihood)
    assert_close(half, v @ wanted @ v / 2, rtol=1e-9)
    values = foliax.eigh(model, x, likelihood=likelihood).values
    assert_close(values, np.linalg.eigvalsh(wanted)[::-1][:3], rtol=1e-8)


def test_rank_reaches_c_and_no_more(likelihood):
    model, x = network(num_outputs=3, size=6), point()
    assert int(foliax.rank(model, x, likelihood=likelihood)) == 3
    assert int(foliax.dimension(model, x, likelihood=likelihood)) == 3
    assert np.linalg.matrix_rank(dense(likelihood, model, x), tol=1e-9) == 3


def test_one_output_will_do():
    model, x = network(num_outputs=1), point()
    for kind in (Bernoulli(), Gaussian(2.0)):
        found = foliax.matrix(model, x, likelihood=kind)
        assert_close(found, dense(kind, model, x), rtol=1e-10, atol=1e-12)
        assert int(foliax.rank(model, x, likelihood=kind)) == 1


def test_two_classes_are_one_label():
    one, x = network(num_outputs=1), point()
    two = lambda x: jnp.concatenate([jnp.zeros(1), one(x)])  # noqa: E731
    assert_close(
        foliax.matrix(one, x, likelihood=Bernoulli()), foliax.matrix(two, x), rtol=1e-12, atol=1e-14
    )


def test_kl_is_the_sum_over_outcomes(likelihood):
    model, x = network(), point()
    delta = 0.3 * point(seed=5)
    s, moved = model(x), model(x + delta)
    if isinstance(likelihood, Bernoulli):
        p, q = jax.nn.sigmoid(s), jax.nn.sigmoid(moved)
        wanted = sum(
            stats.entropy([float(b), 1 - float(b)], [float(a), 1 - float(a)])
            for a, b in zip(p, q, strict=True)
        )
    else:
        wanted = np.sum(((moved - s) / likelihood.scale) ** 2) / 2
    assert_close(foliax.kl(model, x, delta, likelihood=likelihood), wanted, rtol=1e-10)


def test_kl_and_quadratic_part_in_third_order(likelihood):
    model, x = network(), point()
    delta = point(seed=5)
    gaps = [
        abs(
            float(foliax.kl(model, x, h * delta, likelihood=likelihood))
            - float(foliax.quadratic(model, x, h * delta, likelihood=likelihood))
        )
        for h in (0.1, 0.01)
    ]
    assert math.log10(gaps[0] / gaps[1]) >= 2.8


def test_embedding_is_isometric(likelihood):
    s = jnp.array([0.3, -2.0, 1.1])
    weights, rows = likelihood.factor(s)
    m = likelihood.embedding(s)
    assert_close(m.T @ m, (rows.T * weights**2) @ rows, rtol=1e-12, atol=1e-15)


def test_embedding_of_the_categorical():
    s = jnp.array([0.3, -2.0, 1.1, 0.0])
    m = Categorical().embedding(s)
    u = lambda s: 2 * jnp.sqrt(jax.nn.softmax(s))  # noqa: E731
    assert_close(m, jax.jacfwd(u)(s), rtol=1e-12, atol=1e-15)
    p = jax.nn.softmax(s)
    assert_close(m.T @ m, jnp.diag(p) - jnp.outer(p, p), rtol=1e-12, atol=1e-15)


def test_bernoulli_keeps_its_digits_where_it_is_sure():
    weights, _ = Bernoulli().factor(jnp.array([60.0, -60.0, 200.0]))
    assert_close(weights, np.exp([-30.0, -30.0, -100.0]), rtol=1e-5)
    assert float(Bernoulli().kl(jnp.array([80.0]), jnp.array([0.1]))) >= 0


def test_projections_split_the_space(likelihood):
    model, x, v = network(), point(), point(seed=7)
    leaf = foliax.project_leaf(model, x, v, likelihood=likelihood)
    kernel = foliax.project_kernel(model, x, v, likelihood=likelihood)
    jacobian = jax.jacfwd(model)(x)
    assert_close(leaf, jnp.linalg.pinv(jacobian) @ jacobian @ v, rtol=1e-9, atol=1e-12)
    assert_close(jacobian @ kernel, jnp.zeros(3), atol=1e-12)


def test_kernel_drift_conserves_the_outputs(likelihood):
    model, x = network(), point()
    path = foliax.drift(
        model, x, point(seed=7), along="kernel", max_steps=50, likelihood=likelihood
    )
    assert path.status == foliax.Status.completed
    outputs = likelihood.probabilities(path.logits[-1]) - likelihood.probabilities(path.logits[0])
    assert_close(jnp.max(jnp.abs(outputs)), path.probability_change[-1], rtol=1e-9, atol=1e-15)
    assert float(path.probability_change[-1]) < 1e-8
    assert float(path.distance[-1]) > 1


def test_leaf_walk_ends_at_the_foot(likelihood):
    plane = jax.random.normal(jax.random.key(2), (3, 6), jnp.float64)
    x, target = point(), point(seed=8)
    path = foliax.walk(
        lambda x: plane @ x, x, target, stall=1e-6, arrival=1e-9, likelihood=likelihood
    )
    foot = x + jnp.linalg.pinv(plane) @ plane @ (target - x)
    assert path.status == foliax.Status.stalled
    assert_close(path.end, foot, atol=1e-5)


def test_brownian_in_gs_metric_on_a_flat_leaf():
    """Of a linear mean with an input a coordinate, u = x / scale moves as Brownian motion does."""
    scale = jnp.array([0.5, 2.0])
    run = partial(
        foliax.brownian, num_steps=20, save_every=20, metric="fisher", likelihood=Gaussian(scale)
    )
    keys = jax.random.split(jax.random.key(0), 4000)
    ends = jax.vmap(lambda k: run(lambda x: x[:2], jnp.zeros(3), k, 0.5).end)(keys)
    variance = jnp.mean(ends**2, axis=0)
    assert_close(variance[:2] / scale**2, jnp.full(2, 0.5), rtol=0.08)
    assert float(variance[2]) == 0


def test_brownian_of_bernoulli_stops_at_the_edge():
    path = foliax.brownian(
        lambda x: 8 * x, jnp.array([0.2]), jax.random.key(1), 9.0,
        metric="fisher", least=0.05, likelihood=Bernoulli(), num_steps=2000,
    )  # fmt: skip
    assert path.status == foliax.Status.boundary


def test_fisher_of_the_parameters(likelihood):
    """F v, against the dense definition over all outcomes."""
    x = point()
    params = network().args[0]
    apply = lambda w, x: jnp.tanh(x @ w["in"]) @ w["out"]  # noqa: E731
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    model = lambda w: apply(unravel(w), x)  # noqa: E731
    v = jax.random.normal(jax.random.key(4), flat.shape)
    found = fisher.matvec(
        Partial(apply, params), x, Partial(apply, unravel(v)), likelihood=likelihood
    )
    wanted = dense(likelihood, model, flat) @ v
    assert_close(jax.flatten_util.ravel_pytree(found)[0], wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), [1.0, 2.0]])
def test_scale_must_fit(scale):
    model = lambda x: x[:3]  # noqa: E731
    with pytest.raises(ValueError, match="scale must"):
        foliax.trace(model, jnp.ones(4), likelihood=Gaussian(jnp.asarray(scale)))


def test_scale_may_be_traced_and_differentiated():
    def trace(scale):
        return foliax.trace(lambda x: x[:3], jnp.ones(4), likelihood=Gaussian(scale))

    assert_close(jax.jit(trace)(2.0), 0.75, rtol=1e-6)
    assert_close(jax.grad(trace)(2.0), -2 * 3 / 8, rtol=1e-6)


def test_no_outputs():
    with pytest.raises(ValueError, match="C >= 1 outputs for a Bernoulli"):
        foliax.trace(lambda x: x[:0], jnp.ones(4), likelihood=Bernoulli())
