"""F on the weights against a dense F, its damped solve, and the natural gradient built on it."""

import functools
from collections.abc import Callable

import equinox as eqx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

import foliax
from foliax import fisher
from tests.cases import CASES, SATURATED, counted, layer, random_like, tanh_mlp
from tests.tolerance import assert_close

SMOOTH = ("tanh", "two_classes", "image")
PLAIN = (*SMOOTH, "relu", "dead")


def at(name, dtype=None):
    """Return (model, inputs) of a case; the inputs are its point and two more."""
    case = CASES[name]
    xs = jnp.stack([case.x, 0.5 * case.x, case.x - 1])
    return jax.tree.map(lambda a: a.astype(dtype or a.dtype), (case.model, xs))


def flat(tree):
    return ravel_pytree(tree)[0]


def dense(model, x):
    """Return F = sum_i p_i g_i g_i^T, g_i = grad_w log p_i, as it is defined."""
    w, restore = ravel_pytree(model)

    def log_p(w):
        return jax.nn.log_softmax(restore(w)(x))

    g = jax.jacrev(log_p)(w)
    return jnp.einsum("i,ia,ib->ab", jnp.exp(log_p(w)), g, g)


def dense_by_pairs(model, x):
    """Return F = 1/2 sum_ik p_i p_k D_ik D_ik^T: nothing cancels at saturation."""
    w, restore = ravel_pytree(model)
    j = jax.jacrev(lambda w: restore(w)(x))(w)
    p = jax.nn.softmax(model(x))
    d = j[:, None, :] - j[None, :, :]
    return jnp.einsum("i,k,ika,ikb->ab", p, p, d, d) / 2


@jax.jit
def everything(model, xs, v):
    def over(f):
        return jax.vmap(lambda x: f(model, x))(xs)

    return {
        "each": over(lambda *at: flat(fisher.matvec(*at, v))),
        "mean": flat(fisher.matvec(model, xs, v, batched=True)),
        "quadratic": over(lambda *at: fisher.quadratic(*at, v)),
        "factor": over(fisher.factor),
        "chunks": over(functools.partial(fisher.factor, chunk=2)),
        "trace": over(fisher.trace),
        "traced in chunks": over(functools.partial(fisher.trace, chunk=2)),
        "eigh": over(fisher.eigh),
        "pairs": over(dense_by_pairs),
        "definition": over(dense),
    }


@functools.cache
def evaluated(name):
    model, xs = at(name)
    v = random_like(model, 1)
    return np.asarray(flat(v)), jax.tree.map(np.asarray, everything(model, xs, v))


def damped(name, damping):
    f = evaluated(name)[1]["pairs"].mean(axis=0)
    return f + damping * np.eye(len(f))


@pytest.mark.parametrize("name", PLAIN)
def test_dense_matrix_has_two_formulas(name):
    _, got = evaluated(name)
    assert_close(got["definition"], got["pairs"])


@pytest.mark.parametrize("name", [*PLAIN, *SATURATED])
def test_products_and_quadratic_form(name):
    v, got = evaluated(name)
    for one, f in zip(got["each"], got["pairs"], strict=True):  # batched by vmap
        assert_close(one, f @ v)
    assert_close(got["mean"], got["pairs"].mean(axis=0) @ v)
    assert_close(got["quadratic"], v @ got["pairs"] @ v / 2)
    if name != "gap_10000":
        assert np.linalg.norm(got["mean"]) > 0


@pytest.mark.parametrize("name", [*PLAIN, *SATURATED])
def test_factor_and_trace(name):
    _, got = evaluated(name)
    for which in ("factor", "chunks"):
        assert_close(np.einsum("bri,brj->bij", got[which], got[which]), got["pairs"])
    for which in ("trace", "traced in chunks"):
        assert_close(got[which], np.trace(got["pairs"], axis1=1, axis2=2))


@pytest.mark.parametrize("name", [*PLAIN, *SATURATED])
def test_eigenpairs(name):
    _, got = evaluated(name)
    values, trees = got["eigh"]
    case = CASES[name]
    rows = case.model(case.x).size - 1
    assert values.shape == (3, rows)
    assert jax.tree.structure(trees) == jax.tree.structure(case.model)
    for at, (f, found) in enumerate(zip(got["pairs"], values, strict=True)):
        expected = np.linalg.eigvalsh(f)[::-1]
        assert_close(found, expected[:rows], atol=1e-12 * max(1, expected[0]))
        leaves = (leaf[at].reshape(rows, -1) for leaf in jax.tree.leaves(trees))
        vectors = np.concatenate(list(leaves), axis=1)
        assert_close(vectors @ vectors.T, np.eye(rows))
        assert_close(vectors @ f, found[:, None] * vectors, atol=1e-12 * max(1, expected[0]))


@hypothesis.given(
    seed=st.integers(0, 2**31 - 1), scale=st.floats(0.01, 30.0), classes=st.sampled_from([2, 4, 7])
)
@hypothesis.settings(deadline=None, max_examples=25)
def test_f_is_positive_of_rank_c_minus_1_with_its_trace(seed, scale, classes):
    rng = np.random.default_rng(seed)
    inner, outer = layer(rng, 3, 4), layer(rng, classes, 3)
    model = Partial(tanh_mlp, jax.tree.map(lambda a: jnp.asarray(scale * a), (inner, outer)))
    x, v = jnp.asarray(rng.normal(size=4)), random_like(model, seed % 1000)
    values, trace = fisher.eigh(model, x).values, fisher.trace(model, x)
    assert values.shape == (classes - 1,)
    assert np.all(values >= 0)
    assert_close(jnp.sum(values), trace, atol=1e-300)
    assert float(jnp.vdot(flat(v), flat(fisher.matvec(model, x, v)))) >= -1e-12 * float(trace)
    gram = fisher.factor(model, x)
    assert_close(jnp.sum(gram**2), trace, atol=1e-300)


def test_leading_pairs_alone():
    model, xs = at("tanh")
    every, two = fisher.eigh(model, xs[0]), fisher.eigh(model, xs[0], 2)
    assert_close(two.values, every.values[:2])
    assert jax.tree.leaves(two.vectors)[0].shape == (2, *jax.tree.leaves(model)[0].shape)


def test_eigenvectors_are_vectors_of_weights():
    model, xs = at("tanh")
    found = fisher.eigh(model, xs[0])
    first = jax.tree.map(lambda leaf: leaf[0], found.vectors)
    assert_close(flat(fisher.matvec(model, xs[0], first)), found.values[0] * flat(first))


@pytest.mark.parametrize("function", [fisher.trace, fisher.factor, fisher.eigh])
def test_many_inputs(function):
    model, xs = at("tanh")
    one_by_one = jax.tree.map(lambda *rows: jnp.stack(rows), *(function(model, x) for x in xs))
    for found in (
        jax.jit(jax.vmap(function, in_axes=(None, 0)))(model, xs),
        foliax.map(function, model, xs, block=2),
    ):
        if function is fisher.eigh:  # a vector's sign is free
            found, other = found.values, one_by_one.values
        else:
            other = one_by_one
        assert_close(found, other, rtol=1e-9)


def test_dead_network_still_learns():
    _, got = evaluated("dead")
    assert np.linalg.matrix_rank(got["pairs"][0]) == 2  # C - 1: its weights see x all the same


def test_result_is_a_pytree_like_the_weights():
    model, xs = at("tanh")
    out = jax.eval_shape(fisher.matvec, model, xs[0], model)
    assert jax.tree.structure(out) == jax.tree.structure(model)
    jax.tree.map(lambda a, w: np.testing.assert_array_equal(a.shape, w.shape), out, model)


@jax.custom_vjp
def custom_tanh(x):
    return jnp.tanh(x)


custom_tanh.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, u: (u * (1 - y**2),))


def test_a_layer_with_its_own_reverse_rule():
    def custom(params, x):
        (inner, shift), (outer, bias) = params
        return outer @ custom_tanh(inner @ x + shift) + bias

    model, xs = at("tanh")
    model = Partial(custom, *model.args)
    v, b = random_like(model, 1), random_like(model, 2)
    _, got = evaluated("tanh")

    @jax.jit
    def found(model, xs):
        return (
            flat(fisher.matvec(model, xs, v, batched=True)),
            fisher.quadratic(model, xs[0], v),
            flat(fisher.solve(model, xs, b, damping=0.1, rtol=1e-10).value),
        )

    product, quadratic, solved = found(model, xs)
    assert_close(product, got["mean"])
    assert_close(quadratic, got["quadratic"][0])
    assert_close(solved, np.linalg.solve(damped("tanh", 0.1), flat(b)), rtol=1e-8)


@jax.jit
def expansion(model, x, v, sizes):
    def gap(size):
        at = model, x, jax.tree.map(lambda a: size * a, v)
        return fisher.kl(*at) - fisher.quadratic(*at)

    return jax.vmap(gap)(sizes)


@pytest.mark.parametrize("name", ["tanh", "two_classes"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kl_departs_from_its_quadratic_by_the_third_order(name, seed):
    model, xs = at(name)
    v = random_like(model, seed)
    v = jax.tree.map(lambda a: a / jnp.linalg.norm(flat(v)), v)
    sizes = 2.0 ** -np.arange(6, 11)

    gaps = np.abs(expansion(model, xs[0], v, sizes))
    assert gaps.min() > 0
    assert np.polyfit(np.log(sizes), np.log(gaps), 1)[0] >= 2.8


# The damped solve, on the one shape that the cases "tanh" and "gap_…" share.


@functools.partial(jax.jit, static_argnames=("rtol", "max_steps"))
def solve(model, xs, b, damping, guess, *, rtol=1e-11, max_steps=200):
    return fisher.solve(model, xs, b, damping=damping, guess=guess, rtol=rtol, max_steps=max_steps)


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("guess", [None, 7])
def test_solve_is_the_dense_solve(damping, guess):
    model, xs = at("tanh")
    b = random_like(model, 2)
    start = None if guess is None else random_like(model, guess)
    found = solve(model, xs, b, damping, start)
    assert_close(flat(found.value), np.linalg.solve(damped("tanh", damping), flat(b)), rtol=1e-8)
    assert float(found.residual) < 1e-10


def test_residual_tells_what_is_missing():
    model, xs = at("tanh")
    b = random_like(model, 2)
    short = solve(model, xs, b, 1e-3, None, max_steps=2)
    left = damped("tanh", 1e-3) @ flat(short.value) - flat(b)
    assert_close(short.residual, np.linalg.norm(left) / np.linalg.norm(flat(b)), rtol=1e-9)
    assert float(short.residual) > 1e-3
    # Where a solve has stopped there is nothing left to do.
    whole = solve(model, xs, b, 1e-3, random_like(model, 7))
    again = solve(model, xs, b, 1e-3, whole.value)
    assert_close(flat(again.value), flat(whole.value), rtol=1e-9)


@pytest.mark.parametrize(("dtype", "guess"), [("float64", None), ("float64", 1), ("float32", 1)])
def test_nothing_to_solve_gives_zero(dtype, guess):
    model, xs = at("tanh", dtype)
    zero = jax.tree.map(jnp.zeros_like, model)
    start = None if guess is None else random_like(model, guess)
    found = solve(model, xs, zero, jnp.asarray(0.1, dtype), start)
    # Without a guess exactly; else up to the rounding of the guess, with no NaN on the way.
    eps = float(jnp.finfo(dtype).eps)
    assert_close(flat(found.value), flat(zero), atol=0 if guess is None else 100 * eps)
    assert flat(found.value).dtype == dtype
    if guess is None:
        assert float(found.residual) == 0


def step(transformation, model, gradients, xs, state=None):
    state = transformation.init(model) if state is None else state
    return transformation.update(gradients, state, model, batch=xs)


@jax.jit
def all_of_fisher(model, xs, b):
    transformation = fisher.natural_gradient(model, 0.1, max_kl=1.0)
    return (
        fisher.matvec(model, xs, b, batched=True),
        fisher.kl(model, xs[0], b),
        fisher.quadratic(model, xs[0], b),
        step(transformation, model, b, xs),
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SATURATED)
def test_saturation_leaves_no_nan(name, dtype):
    model, xs = at(name, dtype)
    b = random_like(model, 2)
    got = all_of_fisher(model, xs, b)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(got))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(got)} == {dtype}
    if name == "gap_10000":  # F = 0 to the last digit: what is left is the damping
        assert_close(flat(got[3][1].direction), 10 * flat(b), rtol=1e-5)


# The natural gradient.


@functools.partial(jax.jit, static_argnames=("max_steps", "rate"))
def chained(model, g, xs, max_kl, *, max_steps=200, rate=0.5, state=None):
    preconditioned = fisher.natural_gradient(
        model, 0.1, max_kl=max_kl, rtol=1e-10, max_steps=max_steps
    )
    chain = optax.chain(preconditioned, optax.scale_by_learning_rate(rate))
    return step(chain, model, g, xs, state)


def test_natural_gradient_in_a_chain():
    model, xs = at("tanh")
    g = random_like(model, 2)
    updates, state = chained(model, g, xs, jnp.inf)
    expected = np.linalg.solve(damped("tanh", 0.1), flat(g))
    assert_close(flat(updates), -0.5 * expected, rtol=1e-8)
    assert_close(flat(state[0].direction), expected, rtol=1e-8)
    # The next solve starts from that direction; one iteration would not get there from zero.
    updates, _ = chained(model, g, xs, jnp.inf, max_steps=1, state=state)
    assert_close(flat(updates), -0.5 * expected, rtol=1e-8)


def test_max_kl_shortens_the_step():
    model, xs = at("tanh")
    g = random_like(model, 2)
    f = damped("tanh", 0.1)
    expected = np.linalg.solve(f, flat(g))
    size = expected @ f @ expected / 2
    short, state = chained(model, g, xs, 0.01)
    assert size > 0.01
    assert_close(flat(short), -0.5 * expected * np.sqrt(0.01 / size), rtol=1e-8)
    assert_close(flat(state[0].direction), expected, rtol=1e-8)  # the guess stays unscaled
    same, _ = chained(model, g, xs, 2 * size)
    assert_close(flat(same), -0.5 * expected, rtol=1e-8)


class Normed(nnx.Module):
    """A network with state that is no parameter: statistics, and a whole number."""

    def __init__(self, rngs):
        self.inner = nnx.Linear(5, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.outer = nnx.Linear(8, 4, rngs=rngs)
        self.count = nnx.Variable(jnp.array(3))

    def __call__(self, x):
        return self.outer(jnp.tanh(self.norm(self.inner(x))))


def test_natural_gradient_in_an_nnx_optimizer():
    model = Normed(nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    xs, labels = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5))), jnp.arange(6) % 4
    xs = xs.astype(jnp.float32)

    def loss(model, xs):
        logits = jax.vmap(model)(xs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    chain = optax.chain(fisher.natural_gradient(model, 0.1), optax.scale_by_learning_rate(1.0))
    optimizer = nnx.Optimizer(model, chain, wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer, xs):
        value, gradients = nnx.value_and_grad(loss)(model, xs)
        optimizer.update(model, gradients, batch=xs)
        return value

    @jax.jit
    def plain_step(params, rest, xs):
        gradients = jax.grad(lambda params: loss(nnx.merge(graph, params, rest), xs))(params)
        updates, _ = step(chain, params, gradients, xs)
        return optax.apply_updates(params, updates)

    others = flat(nnx.state(model, nnx.Not(nnx.Param)))
    expected = plain_step(params, rest, xs)
    before = train_step(model, optimizer, xs)
    assert_close(flat(nnx.state(model, nnx.Param)), flat(expected), rtol=1e-4)
    losses = [float(train_step(model, optimizer, xs)) for _ in range(4)]
    assert losses[0] < float(before)
    assert losses[-1] < 0.5 * float(before)
    assert_close(flat(nnx.state(model, nnx.Not(nnx.Param))), others, rtol=0)


def test_new_weights_inputs_and_damping_do_not_compile():
    counting, traces = counted(tanh_mlp)

    @jax.jit
    def everything(model, xs, b, damping):
        return (
            fisher.matvec(model, xs, b, batched=True),
            fisher.solve(model, xs, b, damping=damping),
            step(fisher.natural_gradient(model, damping, max_kl=damping), model, b, xs),
        )

    model, xs = at("tanh")
    model = Partial(counting, *model.args)
    first = everything(model, xs, random_like(model, 2), 0.1)
    count = len(traces)
    second = everything(jax.tree.map(lambda a: 1.1 * a, model), xs + 1, random_like(model, 3), 0.2)
    assert len(traces) == count
    assert not np.allclose(flat(first[0]), flat(second[0]))
    solved = np.linalg.solve(damped("tanh", 0.1), flat(random_like(model, 2)))
    assert_close(flat(first[1].value), solved, rtol=1e-3)  # its own tolerance is 1e-4


def test_weights_of_an_equinox_module():
    """Functions among its leaves are none, nor are whole numbers; a whole model is a vector."""

    class Net(eqx.Module):
        inner: eqx.nn.Linear
        activation: Callable
        outer: eqx.nn.Linear
        times: jax.Array

        def __call__(self, x):
            return self.times * self.outer(self.activation(self.inner(x)))

    scale, keys = jnp.array(1.5), jax.random.split(jax.random.key(0))
    net = Net(
        eqx.nn.Linear(5, 3, key=keys[0]),
        lambda z: jnp.tanh(scale * z),
        eqx.nn.Linear(3, 4, key=keys[1]),
        jnp.array(2),
    )
    x, xs = jnp.arange(5.0), jnp.ones((3, 5))
    weights = eqx.filter(net, eqx.is_inexact_array)
    w, restore = ravel_pytree(weights)
    j = jax.jacrev(lambda w: jax.nn.log_softmax(eqx.combine(restore(w), net)(x)))(w)
    f = jnp.einsum("i,ia,ib->ab", jax.nn.softmax(net(x)), j, j)
    v = random_like(weights, 1)
    found = fisher.matvec(net, x, v)
    assert jax.tree.structure(found) == jax.tree.structure(weights)
    assert_close(flat(found), f @ flat(v))
    assert_close(flat(fisher.matvec(net, x, net)), f @ w)
    assert_close(fisher.trace(net, x), jnp.trace(f))
    assert_close(flat(fisher.matvec(foliax.with_options(net), x, v)), f @ flat(v))

    rule = optax.chain(fisher.natural_gradient(net, 0.1), optax.scale_by_learning_rate(1.0))

    @eqx.filter_jit
    def step(net, state, g):
        updates, state = rule.update(g, state, eqx.filter(net, eqx.is_inexact_array), batch=xs)
        return eqx.apply_updates(net, updates), state

    moved, state = step(net, rule.init(weights), v)
    solved = fisher.solve(net, xs, v, damping=0.1, rtol=1e-3, max_steps=20).value
    assert_close(flat(eqx.filter(moved, eqx.is_inexact_array)), w - flat(solved), rtol=1e-6)
    assert jax.tree.structure(state[0].direction) == jax.tree.structure(weights)


def test_weights_of_an_nnx_module_are_its_parameters():
    model = jax.tree.map(
        lambda a: a.astype(float) if a.dtype == jnp.float32 else a, Normed(nnx.Rngs(0))
    )
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    x, v = jnp.arange(5.0), random_like(params, 1)
    one = Partial(lambda params, x: nnx.merge(graph, params, rest)(x), params)
    expected = fisher.matvec(one, x, Partial(one.func, v))
    for given in (v, nnx.merge(graph, v, rest)):
        found = fisher.matvec(model, x, given)
        assert jax.tree.structure(found) == jax.tree.structure(params)
        assert_close(flat(found), flat(expected))
    assert_close(fisher.trace(model, x), fisher.trace(one, x))
    held = Partial(lambda net, x: net(x), model)  # as part of another pytree
    assert_close(fisher.trace(held, x), fisher.trace(one, x))
    assert fisher.factor(held, x).shape == (3, flat(params).size)


# Errors.

W = {"w": jnp.ones((3, 2)), "b": jnp.zeros(3)}
X = jnp.ones(2)


def affine(params, x):
    return params["w"] @ x + params["b"]


MODEL = Partial(affine, W)
ON_VECTORS = {
    "matvec": lambda model, v: fisher.matvec(model, X, v),
    "kl": lambda model, v: fisher.kl(model, X, v),
    "quadratic": lambda model, v: fisher.quadratic(model, X, v),
    "solve": lambda model, v: fisher.solve(model, X[None], v, damping=0.1),
}
ON_WEIGHTS = ON_VECTORS | {
    "factor": lambda model, _: fisher.factor(model, X),
    "trace": lambda model, _: fisher.trace(model, X),
    "eigh": lambda model, _: fisher.eigh(model, X),
}
NAMES = {"matvec": "v", "kl": "delta", "quadratic": "delta", "solve": "b"}


@pytest.mark.parametrize("function", ON_VECTORS)
def test_bad_tangents(function):
    call, name = ON_VECTORS[function], NAMES[function]
    with pytest.raises(ValueError, match=rf"{name} must be a pytree like the weights.*'w'.*got"):
        call(MODEL, (W["w"], W["b"]))
    with pytest.raises(ValueError, match=rf"{name} must have the shapes of the weights.*\(2, 3\)"):
        call(MODEL, Partial(affine, {**W, "w": W["w"].T}))


@pytest.mark.parametrize("function", ON_WEIGHTS)
def test_bad_models(function):
    call = ON_WEIGHTS[function]
    with pytest.raises(ValueError, match=r"vector \(C,\) of logits.*\(1, 3\)"):
        call(Partial(lambda w, x: affine(w, x)[None], W), MODEL)
    with pytest.raises(ValueError, match=r"C >= 2 logits"):
        call(Partial(lambda w, x: affine(w, x)[:1], W), MODEL)
    with pytest.raises(ValueError, match=r"must hold weights.*none in a plain function.*Partial"):
        call(lambda x: affine(W, x), MODEL)
    with pytest.raises(ValueError, match="real numbers, got complex"):
        call(Partial(lambda w, x: affine(W, x) + w.real, jnp.ones(3, complex)), MODEL)


def test_whole_numbers_are_no_weights():
    counted = Partial(affine, {**W, "count": jnp.array(3)})
    found = fisher.matvec(counted, X, counted)
    assert found.args[0]["count"] is None
    assert_close(found.args[0]["w"], fisher.matvec(MODEL, X, MODEL).args[0]["w"])


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan")])
def test_damping_must_be_positive(damping):
    with pytest.raises(ValueError, match="damping must be a finite number > 0"):
        fisher.solve(MODEL, X[None], MODEL, damping=damping)
    with pytest.raises(ValueError, match="damping must be a finite number > 0"):
        fisher.natural_gradient(MODEL, damping)
    with pytest.raises(ValueError, match="max_kl must be a finite number > 0"):
        fisher.natural_gradient(MODEL, 0.1, max_kl=damping)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="max_steps must be a whole number >= 1, got 0"):
        fisher.solve(MODEL, X[None], MODEL, damping=0.1, max_steps=0)
    with pytest.raises(ValueError, match=r"x must be a floating-point array.*int"):
        fisher.matvec(MODEL, jnp.ones(2, int), MODEL)
    with pytest.raises(ValueError, match="x must have a leading batch axis"):
        fisher.matvec(MODEL, jnp.array(1.0), MODEL, batched=True)
    with pytest.raises(ValueError, match=r"k must be a whole number from 1 to min.* = 2, got 3"):
        fisher.eigh(MODEL, X, 3)
    with pytest.raises(ValueError, match="model must hold weights"):
        fisher.natural_gradient(lambda x: x, 0.1)
    transformation = fisher.natural_gradient(MODEL, 0.1)
    state = transformation.init(MODEL)
    with pytest.raises(ValueError, match=r"needs batch; call update\(grads, state, params, batch="):
        transformation.update(MODEL, state, MODEL)
    with pytest.raises(ValueError, match="needs params"):
        transformation.update(MODEL, state, batch=X[None])


def test_f_and_g_are_one_construction():
    """With w = x and the input fixed, F is G."""
    case = CASES["tanh"]
    v = random_like(case.x, 1)

    @jax.jit
    def both(x, v):
        swapped = Partial(lambda x, _: case.model(x), x)
        given = jnp.zeros(1), Partial(swapped.func, v)
        of_f = [fisher.matvec(swapped, *given).args[0], fisher.kl(swapped, *given)]
        of_g = [f(case.model, x, v) for f in (foliax.matvec, foliax.kl)]
        alone = [
            (getattr(fisher, name)(swapped, given[0]), getattr(foliax, name)(case.model, x))
            for name in ("factor", "trace")
        ]
        return [*zip(of_f, of_g, strict=True), *alone]

    for f, g in both(case.x, v):
        assert_close(f, g)
