"""G against formulas that do not share the factor, its identities, every function's contract."""

import functools
from functools import partial

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.tree_util import Partial

import foliax
from tests.cases import (
    CASES,
    NAMES,
    SATURATED,
    central_difference,
    counted,
    definition_matrix,
    directions,
    layer,
    pairwise_matrix,
    random_like,
    tanh_mlp,
)
from tests.tolerance import assert_close

# Each function as f(model, x, v), so that one suite serves all; the first seven promise gradients.
FUNCTIONS = {
    "factor": lambda model, x, _: foliax.factor(model, x),
    "matrix": lambda model, x, _: foliax.matrix(model, x),
    "matvec": foliax.matvec,
    "trace": lambda model, x, _: foliax.trace(model, x),
    "kl": lambda model, x, v: foliax.kl(model, x, 0.3 * v),
    "quadratic": foliax.quadratic,
    "solve": lambda model, x, v: foliax.solve(model, x, v, 0.1),
    "eigenvalues": lambda model, x, _: foliax.eigh(model, x).values,
    "rank": lambda model, x, _: foliax.rank(model, x),
    "frame": lambda model, x, _: foliax.frame(model, x).mask,
    "dimension": lambda model, x, _: foliax.dimension(model, x),
    "project_leaf": foliax.project_leaf,
    "project_kernel": foliax.project_kernel,
}
DIFFERENTIABLE = ("factor", "matrix", "matvec", "trace", "kl", "quadratic", "solve")


@jax.jit
def everything(model, x, v):
    pairs = foliax.eigh(model, x)
    return {
        "factor": foliax.factor(model, x),
        "matrix": foliax.matrix(model, x),
        "matvec": foliax.matvec(model, x, v),
        "trace": foliax.trace(model, x),
        "values": pairs.values,
        "vectors": pairs.vectors,
        "rank": foliax.rank(model, x),
        "loose_rank": foliax.rank(model, x, rtol=1e-3),
        "dimension": foliax.dimension(model, x),
        "spectrum": foliax.spectrum(model, x),
        "quadratic": foliax.quadratic(model, x, v),
        "solve": foliax.solve(model, x, v, 0.1),
        "pairwise": pairwise_matrix(model, x),
        "definition": definition_matrix(model, x),
    }


@functools.cache
def evaluated(name):
    case = CASES[name]
    v = directions(case)[0]
    return (
        case,
        v,
        {k: jax.tree.map(np.asarray, a) for k, a in everything(case.model, case.x, v).items()},
    )


@pytest.mark.parametrize("name", NAMES)
def test_matrix_is_the_sum_over_pairs_of_classes(name):
    case, _, got = evaluated(name)
    assert got["factor"].shape == (case.model(case.x).size - 1, case.n)
    assert_close(got["matrix"], got["pairwise"])


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(SATURATED)))
def test_matrix_is_its_definition(name):
    _, _, got = evaluated(name)
    assert_close(got["matrix"], got["definition"])


@pytest.mark.parametrize("name", NAMES)
def test_functions_agree(name):
    case, v, got = evaluated(name)
    g = got["pairwise"]
    assert_close(got["factor"].T @ got["factor"], g)
    assert got["matvec"].shape == case.x.shape
    assert_close(got["matvec"].ravel(), g @ v.ravel())
    assert_close(got["trace"], np.trace(g))
    assert_close(got["quadratic"], v.ravel() @ g @ v.ravel() / 2)
    spectrum, leading = got["spectrum"], np.max(got["values"])
    np.testing.assert_allclose(spectrum.trace, got["trace"], rtol=1e-10)
    np.testing.assert_allclose(spectrum.eigenvalues, got["values"], rtol=1e-7, atol=1e-13 * leading)
    assert (spectrum.rank, spectrum.dimension) == (got["rank"], got["dimension"])


@pytest.mark.parametrize("name", NAMES)
def test_eigenpairs(name):
    case, _, got = evaluated(name)
    values, vectors = got["values"], got["vectors"]
    m = min(case.n, case.model(case.x).size - 1)
    assert values.shape == (m,)
    assert vectors.shape == (m, *case.x.shape)
    flat = vectors.reshape(m, -1)
    assert np.all(np.diff(values) <= 0)
    assert np.all(values >= 0)
    assert_close(values, np.linalg.eigvalsh(got["pairwise"])[::-1][:m])
    assert_close(flat @ flat.T, np.eye(m))
    assert_close(flat.T * values @ flat, got["pairwise"])


def test_leading_pairs_are_the_first_of_all():
    case, _, got = evaluated("image")
    for k in (1, 2):
        pairs = foliax.eigh(case.model, case.x, k)
        assert pairs.vectors.shape == (k, *case.x.shape)
        assert_close(pairs.values, got["values"][:k])


@pytest.mark.parametrize("name", NAMES)
def test_solve_inverts_the_damped_matrix(name):
    case, v, got = evaluated(name)
    dense = np.linalg.solve(got["pairwise"] + 0.1 * np.eye(case.n), np.ravel(v))
    assert_close(got["solve"].ravel(), dense, rtol=1e-9)


@pytest.mark.parametrize("damping", [1e-12, 1e-6, 1.0, 1e6])
def test_solve_at_any_damping(damping):
    """Along an eigenvector it is exact where (G + damping)⁻¹ written as a difference is not."""
    case = CASES["tanh"]
    values, vectors = foliax.eigh(case.model, case.x)
    for value, vector in zip(values, vectors, strict=True):
        got = foliax.solve(case.model, case.x, vector, damping)
        left = jnp.linalg.norm(got - vector / (value + damping))
        assert float(left * (value + damping)) < 1e-13 * float(value / damping + 1)
    across = foliax.project_kernel(case.model, case.x, directions(case)[0])
    got = foliax.solve(case.model, case.x, across, damping)
    assert_close(got, across / damping, rtol=1e-10)


def test_a_damped_step_raises_one_logit_and_changes_the_rest_least():
    case = CASES["tanh"]
    gradient = jax.grad(lambda x: case.model(x)[1])(case.x)
    natural = foliax.solve(case.model, case.x, gradient, 1e-4)
    costs = [
        float(foliax.quadratic(case.model, case.x, move / jnp.vdot(gradient, move)))
        for move in (natural, gradient)
    ]
    assert costs[0] < 0.5 * costs[1]


def test_small_eigenvalues_keep_their_digits():
    # Squaring the factor would lose all below 1e-16 of the first.
    slopes = jnp.array([1.0, 1e-6, 1e-11])
    model = Partial(lambda a, x: jnp.concatenate([a * x, 0 * x[:1]]), slopes)
    got = foliax.eigh(model, jnp.zeros(3)).values
    assert_close(got[1] / got[0], 8 / 9 * 1e-12, rtol=1e-9)
    assert_close(got[2] / got[1], 3 / 4 * 1e-10, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_rank(name):
    case, _, got = evaluated(name)
    if name == "gap_10000":
        assert got["rank"] == 0  # every p p' underflows: G = 0, whatever D is
    elif name == "gap_60":
        assert 1 <= got["rank"] <= 3
    else:
        assert got["rank"] == case.dimension
    values = np.linalg.eigvalsh(got["pairwise"])
    assert got["loose_rank"] == np.sum(values > 1e-3 * max(values.max(), 0))
    assert got["rank"].dtype == np.int32


def test_float64_rank_counts_beyond_the_rounding_of_g():
    slopes = jnp.array([1.0, 1e-7, 1e-10])
    model = Partial(lambda a, x: jnp.concatenate([a * x, 0 * x[:1]]), slopes)
    assert int(foliax.rank(model, jnp.zeros(3))) == 3
    assert int(foliax.rank(model, jnp.zeros(3), rtol=1e-16)) == 2
    lowered = jax.tree.map(lambda a: a.astype(jnp.float32), model)
    assert int(foliax.rank(lowered, jnp.zeros(3, jnp.float32))) == 1


# Properties, on one network shape so that they compile once.

_N, _HIDDEN, _C = 7, 6, 4


def _draw(seed, scale, gap):
    rng = np.random.default_rng(seed)
    inner, (outer, bias) = layer(rng, _HIDDEN, _N), layer(rng, _C, _HIDDEN)
    bias = bias + np.array([gap, 0, 0, 0])
    params = jax.tree.map(jnp.asarray, (inner, (scale * outer, bias)))
    return Partial(tanh_mlp, params), jnp.asarray(rng.normal(size=_N)), rng


networks = st.builds(
    _draw,
    st.integers(0, 2**31),
    st.sampled_from([0.1, 1.0, 10.0]),
    st.sampled_from([0.0, 5.0, 20.0]),
)
few = hypothesis.settings(max_examples=12, deadline=None, derandomize=True, database=None)


@jax.jit
def _identities(model, x, linear_map):
    def shifted(y):
        return model(y) + 100 * jnp.sin(jnp.sum(y**2))

    def pulled(y):
        return model(linear_map @ y)

    y = jnp.linalg.solve(linear_map, x)
    g = foliax.matrix(model, x)
    return {
        "matrix": g,
        "pairwise": pairwise_matrix(model, x),
        "shifted": foliax.matrix(shifted, x),
        "pulled": foliax.matrix(pulled, y),
        "pull-back": linear_map.T @ g @ linear_map,
    }


@few
@hypothesis.given(networks)
def test_identities(network):
    model, x, rng = network
    linear_map = np.eye(_N) + 0.2 * rng.normal(size=(_N, _N))
    got = _identities(model, x, linear_map)
    g, dense = got["matrix"], got["pairwise"]
    assert_close(g, dense)
    assert_close(g, g.T, rtol=1e-15)
    # Semidefinite, and of rank <= C - 1, told on the matrix that never saw the factor.
    values = np.linalg.eigvalsh(dense)
    assert values[0] >= -1e-14 * values[-1]
    assert np.all(np.abs(values[: _N - (_C - 1)]) <= 1e-13 * values[-1])
    # Rounding of the common function in the logits is what is left of it.
    assert_close(got["shifted"], g, rtol=1e-8)
    assert_close(got["pulled"], got["pull-back"], rtol=1e-9)


@jax.jit
def _expansion(model, x, v, sizes):
    def gap(size):
        return foliax.kl(model, x, size * v) - foliax.quadratic(model, x, size * v)

    return jax.vmap(gap)(sizes)


@few
@hypothesis.given(networks)
def test_kl_departs_from_its_quadratic_by_the_third_order(network):
    model, x, rng = network
    v = rng.normal(size=_N)
    sizes = jnp.asarray(2.0 ** -np.arange(9, 14))
    gaps = np.abs(_expansion(model, x, v / np.linalg.norm(v), sizes))
    slope = np.polyfit(np.log(sizes), np.log(gaps), 1)[0]
    assert slope >= 2.8


def test_both_kls_have_g_as_hessian():
    case, _, got = evaluated("tanh")
    model, x = case.model, case.x

    def forward(d):
        return foliax.kl(model, x, d.reshape(x.shape))

    def plain(d):
        log_p, log_q = (jax.nn.log_softmax(model(y)) for y in (x, x + d.reshape(x.shape)))
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q))

    zero = jnp.zeros(x.size)
    assert_close(jax.jit(jax.hessian(forward))(zero), got["pairwise"])
    assert_close(jax.jit(jax.hessian(plain))(zero), got["pairwise"])


# The contract: what every function must do.


# The idiom for options in a batch: bound by partial, since vmap would map a keyword over an axis.
WITH_OPTIONS = {
    "factor": partial(foliax.factor, chunk=2),
    "matrix": partial(foliax.matrix, chunk=1),
    "trace": partial(foliax.trace, likelihood=foliax.Categorical()),
    "eigh": partial(foliax.eigh, k=1),
    "rank": partial(foliax.rank, rtol=1e-2),
    "dimension": partial(foliax.dimension, rtol=1e-2),
    "frame": partial(foliax.frame, chunk=1),
}
WITH_OPTIONS_AND_VECTOR = {
    "matvec": partial(foliax.matvec, likelihood=foliax.Categorical()),
    "kl": partial(foliax.kl, likelihood=foliax.Categorical()),
    "quadratic": partial(foliax.quadratic, likelihood=foliax.Categorical()),
    "project_leaf": partial(foliax.project_leaf, chunk=2),
    "project_kernel": partial(foliax.project_kernel, chunk=2),
}


def test_compiles_once_and_maps_over_a_batch():
    counting, traces = counted(tanh_mlp)

    @jax.jit
    def single(model, x, v):
        return (
            {name: f(model, x, v) for name, f in FUNCTIONS.items()},
            {name: f(model, x) for name, f in WITH_OPTIONS.items()},
            {name: f(model, x, v) for name, f in WITH_OPTIONS_AND_VECTOR.items()},
        )

    @jax.jit
    def mapped(model, xs, vs):
        def over(f, *rest):
            return jax.vmap(f, in_axes=(None, 0, *(0 for _ in rest)))(model, xs, *rest)

        return (
            {name: over(f, vs) for name, f in FUNCTIONS.items()},
            {name: over(f) for name, f in WITH_OPTIONS.items()},
            {name: over(f, vs) for name, f in WITH_OPTIONS_AND_VECTOR.items()},
        )

    case = CASES["tanh"]
    first = Partial(counting, *case.model.args)
    second = jax.tree.map(lambda a: 1.1 * a, first)
    xs = jnp.stack([case.x, 0.5 * case.x, case.x - 1])
    vs = directions(case, seed=1, count=3)
    loop = [single(first, x, v) for x, v in zip(xs, vs, strict=True)]
    count = len(traces)
    changed, *_ = single(second, xs[0], vs[0])
    assert len(traces) == count, "new weights compiled anew"
    for name, value in changed.items():
        if jnp.issubdtype(value.dtype, jnp.floating):
            assert not np.allclose(value, loop[0][0][name], rtol=1e-6), name

    def compare(batched, *alone):
        # Singular vectors are determined up to their sign.
        assert_close(np.abs(batched), np.abs(np.stack(alone)))

    jax.tree.map(compare, mapped(first, xs, vs), *loop)


def _scalars(arguments):
    """Return each differentiable function at (model, x, v), summed with random weights."""
    outs = {name: FUNCTIONS[name](*arguments) for name in DIFFERENTIABLE}
    return {name: jnp.vdot(random_like(out, 5), out) for name, out in outs.items()}


_gradients = jax.jit(jax.jacrev(_scalars))


@pytest.mark.parametrize("name", ["tanh", "gap_60"])
def test_gradients_are_those_of_finite_differences(name):
    case = CASES[name]
    arguments = case.model, case.x, directions(case, 4)[0]
    toward = random_like(arguments, 6)
    scalars = jax.jit(_scalars)
    for function in DIFFERENTIABLE:
        got = _gradients(arguments)[function]
        got = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, got, toward)))

        def value(arguments, function=function):
            return scalars(arguments)[function]

        expected = central_difference(value, arguments, toward, 1e-3)
        assert abs(expected) > 0, function
        assert_close(got, expected, rtol=1e-7)


@pytest.mark.parametrize("name", ["gap_10000", "dead"])
def test_gradients_are_finite_where_g_vanishes(name):
    case = CASES[name]
    gradients = _gradients((case.model, case.x, directions(case)[0]))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_chunks_change_nothing(chunk):
    case, _, got = evaluated("more_classes_than_inputs")
    assert_close(foliax.factor(case.model, case.x, chunk=chunk), got["factor"], rtol=1e-14)
    assert_close(foliax.matrix(case.model, case.x, chunk=chunk), got["matrix"], rtol=1e-14)
    assert_close(foliax.trace(case.model, case.x, chunk=chunk), got["trace"], rtol=1e-14)


@jax.custom_vjp
def _custom_tanh(x):
    return jnp.tanh(x)


_custom_tanh.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, u: (u * (1 - y**2),))


def test_a_layer_with_its_own_reverse_rule():
    case, v, got = evaluated("tanh")

    def custom(params, x):
        (inner, shift), (outer, bias) = params
        return outer @ _custom_tanh(inner @ x + shift) + bias

    model = Partial(custom, *case.model.args)
    assert_close(foliax.matvec(model, case.x, v), got["matvec"])
    assert_close(foliax.quadratic(model, case.x, v), got["quadratic"])
    assert_close(foliax.factor(model, case.x), got["factor"])
    batched = jax.vmap(foliax.matvec, in_axes=(None, 0, 0))(model, case.x[None], v[None])
    assert_close(batched[0], got["matvec"])


@pytest.mark.parametrize("x_dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("model_dtype", ["x", "float32", "float64"])
def test_results_have_the_larger_dtype_and_at_least_float32(x_dtype, model_dtype):
    case = CASES["tanh"]
    weights = x_dtype if model_dtype == "x" else model_dtype
    model = jax.tree.map(lambda a: a.astype(weights), case.model)
    x, v = case.x.astype(x_dtype), directions(case)[0].astype(x_dtype)
    expected = jnp.result_type(jnp.float32, x_dtype, weights)
    for name, function in FUNCTIONS.items():
        out = jax.eval_shape(function, model, x, v)
        if name in ("rank", "dimension"):
            assert out.dtype == jnp.int32
        elif name != "frame":
            assert out.dtype == expected, name


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_in_lower_precision(dtype):
    case, v, got = evaluated("tanh")
    lower = partial(jax.tree.map, lambda a: a.astype(dtype))
    low = everything(lower(case.model), case.x.astype(dtype), lower(v))
    for name in ("matrix", "matvec", "trace", "quadratic", "values"):
        # Logits of a half-precision network are themselves off by a few roundings.
        assert_close(low[name], got[name], rtol={"float32": 1e-5}.get(dtype, 0.1))


def test_matvec_of_a_saturated_half_precision_model():
    x = jnp.zeros(2, jnp.float16)

    def model(x):
        return jnp.stack([x[0] + 20, 2 * x[1], 0 * x[0]])

    assert_close(foliax.matvec(model, x, x + 1), foliax.matrix(model, x) @ jnp.ones(2))
