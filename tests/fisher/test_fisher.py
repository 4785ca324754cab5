"""F on the parameters against a dense F, its damped solve, and the natural gradient built on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import foliax
from foliax import fisher
from tests.cases import CASES, SATURATED, random_like, tanh_mlp
from tests.tolerance import assert_close

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMOOTH = ("tanh", "two_classes", "image")
PLAIN = (*SMOOTH, "relu", "dead")


def split(name, dtype=None):
    """Return (apply, params, inputs) of a case; the inputs are its point and two more."""
    case = CASES[name]
    xs = jnp.stack([case.x, 0.5 * case.x, case.x - 1])
    params, xs = jax.tree.map(lambda a: a.astype(dtype or a.dtype), (case.model.args[0], xs))
    return case.model.func, params, xs


def flat(tree):
    return ravel_pytree(tree)[0]


def dense(apply, params, x):
    """Return F = sum_i p_i g_i g_i^T, g_i = grad_w log p_i, as it is defined."""
    w, restore = ravel_pytree(params)

    def log_p(w):
        return jax.nn.log_softmax(apply(restore(w), x))

    g = jax.jacrev(log_p)(w)
    return jnp.einsum("i,ia,ib->ab", jnp.exp(log_p(w)), g, g)


def dense_by_pairs(apply, params, x):
    """Return F = 1/2 sum_ik p_i p_k D_ik D_ik^T: nothing cancels at saturation."""
    w, restore = ravel_pytree(params)
    j = jax.jacrev(lambda w: apply(restore(w), x))(w)
    p = jax.nn.softmax(apply(params, x))
    d = j[:, None, :] - j[None, :, :]
    return jnp.einsum("i,k,ika,ikb->ab", p, p, d, d) / 2


@functools.partial(jax.jit, static_argnums=0)
def everything(apply, params, xs, v):
    def over(f):
        return jax.vmap(lambda x: f(apply, params, x))(xs)

    return {
        "each": over(lambda *at: flat(fisher.matvec(*at, v))),
        "mean": flat(fisher.matvec(apply, params, xs, v, batched=True)),
        "quadratic": over(lambda *at: fisher.quadratic(*at, v)),
        "pairs": over(dense_by_pairs),
        "definition": over(dense),
    }


@functools.cache
def evaluated(name):
    apply, params, xs = split(name)
    v = random_like(params, 1)
    return np.asarray(flat(v)), jax.tree.map(np.asarray, everything(apply, params, xs, v))


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


def test_dead_network_still_learns():
    _, got = evaluated("dead")
    assert np.linalg.matrix_rank(got["pairs"][0]) == 2  # C - 1: its weights see x all the same


def test_result_is_a_pytree_like_params():
    apply, params, xs = split("tanh")
    out = jax.eval_shape(lambda *at: fisher.matvec(apply, *at), params, xs[0], params)
    assert jax.tree.structure(out) == jax.tree.structure(params)
    jax.tree.map(lambda a, w: np.testing.assert_array_equal(a.shape, w.shape), out, params)


@jax.custom_vjp
def custom_tanh(x):
    return jnp.tanh(x)


custom_tanh.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, u: (u * (1 - y**2),))


def test_a_layer_with_its_own_reverse_rule():
    def custom(params, x):
        (inner, shift), (outer, bias) = params
        return outer @ custom_tanh(inner @ x + shift) + bias

    _, params, xs = split("tanh")
    v, b = random_like(params, 1), random_like(params, 2)
    _, got = evaluated("tanh")

    @jax.jit
    def at(params, xs):
        return (
            flat(fisher.matvec(custom, params, xs, v, batched=True)),
            fisher.quadratic(custom, params, xs[0], v),
            flat(fisher.solve(custom, params, xs, b, damping=0.1, rtol=1e-10).value),
        )

    product, quadratic, solved = at(params, xs)
    assert_close(product, got["mean"])
    assert_close(quadratic, got["quadratic"][0])
    assert_close(solved, np.linalg.solve(damped("tanh", 0.1), flat(b)), rtol=1e-8)


@functools.partial(jax.jit, static_argnums=0)
def expansion(apply, params, x, v, sizes):
    def gap(size):
        at = apply, params, x, jax.tree.map(lambda a: size * a, v)
        return fisher.kl(*at) - fisher.quadratic(*at)

    return jax.vmap(gap)(sizes)


@pytest.mark.parametrize("name", ["tanh", "two_classes"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kl_departs_from_its_quadratic_by_the_third_order(name, seed):
    apply, params, xs = split(name)
    v = random_like(params, seed)
    v = jax.tree.map(lambda a: a / jnp.linalg.norm(flat(v)), v)
    sizes = 2.0 ** -np.arange(6, 11)

    gaps = np.abs(expansion(apply, params, xs[0], v, sizes))
    assert gaps.min() > 0
    assert np.polyfit(np.log(sizes), np.log(gaps), 1)[0] >= 2.8


# The damped solve, on the one shape that the cases "tanh" and "gap_…" share.


@functools.partial(jax.jit, static_argnames=("rtol", "max_steps"))
def solve(params, xs, b, damping, guess, *, rtol=1e-11, max_steps=200):
    return fisher.solve(
        tanh_mlp, params, xs, b, damping=damping, guess=guess, rtol=rtol, max_steps=max_steps
    )


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("guess", [None, 7])
def test_solve_is_the_dense_solve(damping, guess):
    _, params, xs = split("tanh")
    b = random_like(params, 2)
    start = None if guess is None else random_like(params, guess)
    found = solve(params, xs, b, damping, start)
    assert_close(flat(found.value), np.linalg.solve(damped("tanh", damping), flat(b)), rtol=1e-8)
    assert float(found.residual) < 1e-10


def test_residual_tells_what_is_missing():
    _, params, xs = split("tanh")
    b = random_like(params, 2)
    short = solve(params, xs, b, 1e-3, None, max_steps=2)
    left = damped("tanh", 1e-3) @ flat(short.value) - flat(b)
    assert_close(short.residual, np.linalg.norm(left) / np.linalg.norm(flat(b)), rtol=1e-9)
    assert float(short.residual) > 1e-3
    # Where a solve has stopped there is nothing left to do.
    whole = solve(params, xs, b, 1e-3, random_like(params, 7))
    again = solve(params, xs, b, 1e-3, whole.value)
    assert_close(flat(again.value), flat(whole.value), rtol=1e-9)


@pytest.mark.parametrize(("dtype", "guess"), [("float64", None), ("float64", 1), ("float32", 1)])
def test_nothing_to_solve_gives_zero(dtype, guess):
    _, params, xs = split("tanh", dtype)
    zero = jax.tree.map(jnp.zeros_like, params)
    start = None if guess is None else random_like(params, guess)
    found = solve(params, xs, zero, jnp.asarray(0.1, dtype), start)
    # Without a guess exactly; else up to the rounding of the guess, with no NaN on the way.
    eps = float(jnp.finfo(dtype).eps)
    assert_close(flat(found.value), flat(zero), atol=0 if guess is None else 100 * eps)
    assert found.value[0][0].dtype == dtype
    if guess is None:
        assert float(found.residual) == 0


def step(transformation, params, gradients, xs, state=None):
    state = transformation.init(params) if state is None else state
    return transformation.update(gradients, state, params, batch=xs)


@jax.jit
def all_of_fisher(params, xs, b):
    transformation = fisher.natural_gradient(tanh_mlp, 0.1, max_kl=1.0)
    return (
        fisher.matvec(tanh_mlp, params, xs, b, batched=True),
        fisher.kl(tanh_mlp, params, xs[0], b),
        fisher.quadratic(tanh_mlp, params, xs[0], b),
        step(transformation, params, b, xs),
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SATURATED)
def test_saturation_leaves_no_nan(name, dtype):
    _, params, xs = split(name, dtype)
    b = random_like(params, 2)
    got = all_of_fisher(params, xs, b)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(got))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(got)} == {dtype}
    if name == "gap_10000":  # F = 0 to the last digit: what is left is the damping
        assert_close(flat(got[3][1].direction), 10 * flat(b), rtol=1e-5)


# The natural gradient.


@functools.partial(jax.jit, static_argnames=("max_steps", "rate"))
def chained(params, g, xs, max_kl, *, max_steps=200, rate=0.5, state=None):
    preconditioned = fisher.natural_gradient(
        tanh_mlp, 0.1, max_kl=max_kl, rtol=1e-10, max_steps=max_steps
    )
    chain = optax.chain(preconditioned, optax.scale_by_learning_rate(rate))
    return step(chain, params, g, xs, state)


def test_natural_gradient_in_a_chain():
    _, params, xs = split("tanh")
    g = random_like(params, 2)
    updates, state = chained(params, g, xs, jnp.inf)
    expected = np.linalg.solve(damped("tanh", 0.1), flat(g))
    assert_close(flat(updates), -0.5 * expected, rtol=1e-8)
    assert_close(flat(state[0].direction), expected, rtol=1e-8)
    # The next solve starts from that direction; one iteration would not get there from zero.
    updates, _ = chained(params, g, xs, jnp.inf, max_steps=1, state=state)
    assert_close(flat(updates), -0.5 * expected, rtol=1e-8)


def test_max_kl_shortens_the_step():
    _, params, xs = split("tanh")
    g = random_like(params, 2)
    f = damped("tanh", 0.1)
    expected = np.linalg.solve(f, flat(g))
    size = expected @ f @ expected / 2
    short, state = chained(params, g, xs, 0.01)
    assert size > 0.01
    assert_close(flat(short), -0.5 * expected * np.sqrt(0.01 / size), rtol=1e-8)
    assert_close(flat(state[0].direction), expected, rtol=1e-8)  # the guess stays unscaled
    same, _ = chained(params, g, xs, 2 * size)
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

    def apply(params, x):
        return nnx.merge(graph, params, rest)(x)

    def loss(model, xs):
        logits = jax.vmap(model)(xs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    chain = optax.chain(fisher.natural_gradient(apply, 0.1), optax.scale_by_learning_rate(1.0))
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
    traces = []

    def counting(params, x):
        traces.append(None)
        return tanh_mlp(params, x)

    @jax.jit
    def everything(params, xs, b, damping):
        return (
            fisher.matvec(counting, params, xs, b, batched=True),
            fisher.solve(counting, params, xs, b, damping=damping),
            step(fisher.natural_gradient(counting, damping, max_kl=damping), params, b, xs),
        )

    _, params, xs = split("tanh")
    first = everything(params, xs, random_like(params, 2), 0.1)
    count = len(traces)
    second = everything(
        jax.tree.map(lambda a: 1.1 * a, params), xs + 1, random_like(params, 3), 0.2
    )
    assert len(traces) == count
    assert not np.allclose(flat(first[0]), flat(second[0]))
    solved = np.linalg.solve(damped("tanh", 0.1), flat(random_like(params, 2)))
    assert_close(flat(first[1].value), solved, rtol=1e-3)  # its own tolerance is 1e-4


# Errors.

W = {"w": jnp.ones((3, 2)), "b": jnp.zeros(3)}
X = jnp.ones(2)


def affine(params, x):
    return params["w"] @ x + params["b"]


ON_PARAMS = {
    "matvec": lambda apply, w, v: fisher.matvec(apply, w, X, v),
    "kl": lambda apply, w, v: fisher.kl(apply, w, X, v),
    "quadratic": lambda apply, w, v: fisher.quadratic(apply, w, X, v),
    "solve": lambda apply, w, v: fisher.solve(apply, w, X[None], v, damping=0.1),
}
NAMES = {"matvec": "v", "kl": "delta", "quadratic": "delta", "solve": "b"}


@pytest.mark.parametrize("function", ON_PARAMS)
def test_bad_tangents_and_params(function):
    call, name = ON_PARAMS[function], NAMES[function]
    with pytest.raises(ValueError, match=rf"{name} must be a pytree like params, .*'w'.*got"):
        call(affine, W, (W["w"], W["b"]))
    with pytest.raises(ValueError, match=rf"{name} must have the shapes of params.*\(2, 3\)"):
        call(affine, W, {**W, "w": W["w"].T})
    counted = {**W, "count": jnp.array(3)}
    with pytest.raises(ValueError, match=r"floating arrays only.*int.*\['count'\].*nnx.split"):
        call(affine, counted, counted)
    with pytest.raises(ValueError, match=r"vector \(C,\) of logits.*\(1, 3\)"):
        call(lambda w, x: affine(w, x)[None], W, W)
    with pytest.raises(ValueError, match=r"C >= 2 logits"):
        call(lambda w, x: affine(w, x)[:1], W, W)


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan")])
def test_damping_must_be_positive(damping):
    with pytest.raises(ValueError, match="damping must be a finite number > 0"):
        fisher.solve(affine, W, X[None], W, damping=damping)
    with pytest.raises(ValueError, match="damping must be a finite number > 0"):
        fisher.natural_gradient(affine, damping)
    with pytest.raises(ValueError, match="max_kl must be a finite number > 0"):
        fisher.natural_gradient(affine, 0.1, max_kl=damping)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="max_steps must be a whole number >= 1, got 0"):
        fisher.solve(affine, W, X[None], W, damping=0.1, max_steps=0)
    with pytest.raises(ValueError, match=r"x must be a floating-point array.*int"):
        fisher.matvec(affine, W, jnp.ones(2, int), W)
    with pytest.raises(ValueError, match="x must have a leading batch axis"):
        fisher.matvec(affine, W, jnp.array(1.0), W, batched=True)
    transformation = fisher.natural_gradient(affine, 0.1)
    state = transformation.init(W)
    with pytest.raises(ValueError, match=r"needs batch; call update\(grads, state, params, batch="):
        transformation.update(W, state, W)
    with pytest.raises(ValueError, match="needs params"):
        transformation.update(W, state, batch=X[None])


def test_f_and_g_are_one_construction():
    """With w = x and the input fixed, F is G."""
    case = CASES["tanh"]
    v = random_like(case.x, 1)

    def swapped(x, _):
        return case.model(x)

    @jax.jit
    def both(x, v):
        of_f = (f(swapped, x, jnp.zeros(1), v) for f in (fisher.matvec, fisher.kl))
        of_g = (f(case.model, x, v) for f in (foliax.matvec, foliax.kl))
        return list(zip(of_f, of_g, strict=True))

    for f, g in both(case.x, v):
        assert_close(f, g)
