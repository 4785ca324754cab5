"""Derivatives where singular values vanish or meet: right where they exist, an error elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import foliax
from foliax import equivariance, leaf
from foliax.apps import ood
from tests.cases import central_difference, layer


def network(params, x):
    (inner, shift), (outer, bias), kinked = params
    hidden = inner @ x.ravel() + shift
    return outer @ jnp.where(kinked, jax.nn.relu(hidden), jnp.tanh(hidden)) + bias


def with_outer(change, *, shift=0.0, kinked=False, bias=0.0):
    rng = np.random.default_rng(3)
    (inner, first), (outer, last) = layer(rng, 6, 16), layer(rng, 4, 6)
    params = (inner, first + shift), (change(outer), last + bias), np.asarray(kinked)
    return Partial(network, jax.tree.map(jnp.asarray, params))


MODELS = {
    "full rank": with_outer(lambda w: w),
    "rank 0": with_outer(lambda w: 0 * w),
    "rank 1": with_outer(lambda w: w * np.eye(4)[0][:, None]),
    "dead units": with_outer(lambda w: w, shift=-100.0, kinked=True),
    "some dead units": with_outer(
        lambda w: w, shift=np.array([-100.0, -100, -100, -100, 0, 9]), kinked=True),
    "saturated": with_outer(lambda w: w, bias=np.array([200.0, 0, 0, 0])),
}  # fmt: skip
X, Y, V, W = jnp.asarray(np.random.default_rng(5).normal(size=(4, 4, 4)))
KEY = jax.random.key(0)


def ratio(values):
    """Return a function of all eigenvalues that does not depend on their order."""
    return jnp.sum(values**2)


FUNCTIONS = {
    "trace": foliax.trace,
    "trace beside a rank": lambda m, x: foliax.spectrum(m, x).trace,
    "largest eigenvalue": lambda m, x: foliax.eigh(m, x, 1).values[0],
    "eigenvalues": lambda m, x: ratio(foliax.eigh(m, x).values),
    "by Lanczos": lambda m, x: foliax.eigh(m, x, 1, method="lanczos").values[0],
    "estimated trace": lambda m, x: foliax.trace_estimate(m, x, KEY, num_samples=4),
    "projections": lambda m, x: (foliax.project_leaf(m, x, V), foliax.project_kernel(m, x, V)),
    "KL": lambda m, x: (foliax.kl(m, x, V), foliax.quadratic(m, x, V)),
    "involutivity": lambda m, x: foliax.involutivity(m, x).outside,
    "distance": lambda m, x: leaf.distance(m, x, Y),
    "length": lambda m, x: leaf.length(m, jnp.stack([x, Y])),
    "extrinsic": lambda m, x: leaf.extrinsic(m, x)[:3],
    "principal curvatures": lambda m, x: ratio(leaf.principal_curvatures(m, x, V).values),
    "second form": lambda m, x: leaf.second_fundamental_form(m, x, V, W),
    "curvature": lambda m, x: leaf.curvature(m, x).mean,
    "defect": lambda m, x: equivariance.defect(m, x, equivariance.mirror)[:3],
    "scores": lambda m, x: ood.score(m, x, Y[None], feet=False)[:-1],
}  # fmt: skip
# Of size 1e57: near a corner of the simplex curvature grows like 1 / (1 − max p).
STEEP = {("curvature", "saturated")}


def total(name, model, x):
    """Return one number from all floating-point results, weighted apart."""
    leaves = jax.tree.leaves(FUNCTIONS[name](model, x))
    flat = jnp.concatenate([jnp.ravel(a) for a in leaves if jnp.issubdtype(a.dtype, jnp.floating)])
    return jnp.sum(flat * jnp.cos(jnp.arange(flat.size)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_at_any_rank(name):
    """By reverse and forward mode as by differences, for every model by one program."""

    @jax.jit
    def derivatives(model, x):
        def value(x):
            return total(name, model, x)

        return *jax.value_and_grad(value)(x), jax.jvp(value, (x,), (W,))[1]

    for kind, model in MODELS.items():
        _, gradient, along = derivatives(model, X)
        got = jnp.vdot(gradient, W)
        if (name, kind) in STEEP:
            assert bool(jnp.isfinite(got))
            continue
        np.testing.assert_allclose(along, got, rtol=1e-8, atol=1e-10, err_msg=kind)
        expected = central_difference(lambda x, model=model: derivatives(model, x)[0], X, W)
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-8, err_msg=kind)


# --- eigenvalues ----------------------------------------------------------------------------------


def lone(x):
    """Return logits of which G has one eigenvalue that is not 0."""
    return jnp.stack([x[0] ** 2, 0 * x[0], 0 * x[1]])


@pytest.mark.parametrize("method", ["factor", "lanczos"])
def test_an_eigenvalue_beside_zeros(method):
    """λ = 4 x₀² p₀ (1 − p₀) with p₀ = e^(x₀²) / (e^(x₀²) + 2), at x₀ = 1."""

    def largest(x):
        return foliax.eigh(lone, x, k=1, method=method).values[0]

    def exact(t):
        p = jnp.exp(t**2) / (jnp.exp(t**2) + 2)
        return 4 * t**2 * p * (1 - p)

    expected = jnp.zeros(6).at[0].set(jax.grad(exact)(1.0))
    assert f"{expected[0]:.5f}" == "1.65624"
    x = jnp.ones(6)
    for slope in (jax.grad(largest), jax.jit(jax.grad(largest)), jax.jacfwd(largest)):
        np.testing.assert_allclose(slope(x), expected, rtol=1e-12, atol=1e-14)
    many = jax.vmap(jax.grad(largest))(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(many[1, 0], jax.grad(exact)(2.0), rtol=1e-11)
    if method == "factor":
        second = jax.hessian(largest)(x)[0, 0]
        np.testing.assert_allclose(second, jax.grad(jax.grad(exact))(1.0), rtol=1e-10)
    else:
        with pytest.raises(TypeError, match="has no derivative"):
            jax.hessian(largest)(x)


def test_the_sum_of_eigenvalues_that_meet():
    """Of two labels whose odds change along two axes, equally fast at 0 alone."""

    def model(x):
        return jnp.stack([jnp.sin(x[0]) + x[1] ** 2, x[1] + x[0] * x[1]])

    labels = foliax.Bernoulli()

    def values(x):
        return foliax.eigh(model, x, likelihood=labels).values

    x = jnp.zeros(3)
    np.testing.assert_allclose(values(x), [0.25, 0.25], rtol=1e-14)
    slope = jax.grad(lambda x: jnp.sum(values(x)))(x)
    trace = jax.grad(lambda x: foliax.trace(model, x, likelihood=labels))(x)
    np.testing.assert_allclose(slope, trace, atol=1e-14)
    # Each alone: vᵀ(∂G)v along the eigenvector that was found.
    pairs = foliax.eigh(model, x, likelihood=labels)
    change = jax.jacfwd(lambda x: foliax.matrix(model, x, likelihood=labels))(x)
    along = jnp.einsum("ka,abx,kb->kx", pairs.vectors, change, pairs.vectors)
    np.testing.assert_allclose(jax.jacrev(values)(x), along, atol=1e-14)


# --- what has none --------------------------------------------------------------------------------

MODEL = MODELS["full rank"]
WITHOUT = {
    "foliax.frame": lambda m, x: jnp.sum(foliax.frame(m, x).vectors),
    "foliax.dimension": lambda m, x: 1.0 * foliax.dimension(m, x),
    "foliax.rank": lambda m, x: 1.0 * foliax.rank(m, x),
    "foliax.eigh(…).vectors": lambda m, x: jnp.sum(foliax.eigh(m, x).vectors),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_what_has_no_derivative_says_so(name):
    call = WITHOUT[name]
    plain, many = jax.grad(call, argnums=1), jax.vmap(jax.grad(call, argnums=1), (None, 0))
    weights = jax.grad(lambda w: call(Partial(network, w), X), allow_int=True)
    sentence = name.replace("(", r"\(").replace(")", r"\)") + " has no derivative.*project_leaf"
    for differentiate in (
        lambda: plain(MODEL, X),
        lambda: jax.jit(plain)(MODEL, X),
        lambda: many(MODEL, jnp.stack([X, Y])),
        lambda: weights(MODEL.args[0]),
    ):
        with pytest.raises(TypeError, match=sentence):
            differentiate()


@pytest.mark.parametrize("name", WITHOUT)
def test_what_is_held_fixed_disturbs_nothing(name):
    call = WITHOUT[name]
    fixed = jax.lax.stop_gradient

    def beside(x):
        return foliax.trace(MODEL, x) * call(MODEL, fixed(x))

    expected = jax.grad(foliax.trace, argnums=1)(MODEL, X) * call(MODEL, X)
    np.testing.assert_allclose(jax.jit(jax.grad(beside))(X), expected, rtol=1e-10)
    scaled = jax.jvp(lambda t: t * call(MODEL, X), (2.0,), (1.0,))[1]
    np.testing.assert_allclose(scaled, call(MODEL, X), rtol=1e-12)
    many = jax.jit(jax.vmap(call, (None, 0)))(MODEL, jnp.stack([X, Y]))
    np.testing.assert_allclose(many[0], call(MODEL, X), rtol=1e-10)


def test_forward_mode_of_eigenvectors_is_no_number():
    _, (values, vectors) = jax.jvp(lambda x: foliax.eigh(MODEL, x), (X,), (V,))
    assert bool(jnp.all(jnp.isfinite(values)))
    assert bool(jnp.all(jnp.isnan(vectors)))


def test_vectors_in_the_kernel_span_no_plane_of_the_leaf():
    """Whatever their length: what rounding leaves of them in D is no direction."""
    inside = [foliax.project_kernel(MODEL, X, v) for v in (V, W)]
    for scale in (1e-6, 1.0, 1e6):
        assert not bool(leaf.sectional(MODEL, X, *(scale * v for v in inside)).defined)
        assert bool(leaf.sectional(MODEL, X, scale * V, scale * W).defined)
        tangent = scale * foliax.project_leaf(MODEL, X, V)
        assert not np.any(leaf.principal_curvatures(MODEL, X, tangent).values)
        assert np.any(leaf.principal_curvatures(MODEL, X, scale * inside[0]).values)
