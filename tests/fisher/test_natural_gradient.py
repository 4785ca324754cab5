"""Every step of a training by the natural gradient: inside its trust region, and downhill."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from foliax import fisher, zoo
from tests.tolerance import assert_close

MAX_KL, RATE, STEPS, BATCH = 1e-2, 0.5, 120, 60


def vector(tree):
    return ravel_pytree(tree)[0]


@functools.cache
def trainer():
    """Return a compiled training of a digits network, with what each step measures."""
    data = zoo.load_digits()
    x, y = jnp.asarray(data.train_x), jnp.asarray(data.train_y)
    model = zoo.MLP((64, 48, 10), rngs=nnx.Rngs(0))
    graph, first = nnx.split(model, nnx.Param)

    def logits(w, x):
        return jax.vmap(lambda one: nnx.merge(graph, w)(one))(x)

    def loss(w, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(logits(w, x), y).mean()

    def mean_kl(w, moved, x):
        new, old = (jax.nn.log_softmax(logits(at, x)) for at in (moved, w))
        return jnp.sum(jnp.exp(new) * (new - old), axis=-1).mean()

    @jax.jit
    def go(damping, key):
        rule = fisher.natural_gradient(model, damping, max_kl=MAX_KL)

        def step(carry, key):
            w, state = carry
            chosen = jax.random.choice(key, len(x), (BATCH,), replace=False)
            gradient = jax.grad(loss)(w, x[chosen], y[chosen])
            v, state = rule.update(gradient, state, w, batch=x[chosen])
            kl = mean_kl(w, jax.tree.map(jnp.subtract, w, v), x[chosen])
            slope = vector(v) @ vector(gradient)
            moved = jax.tree.map(lambda a, b: a - RATE * b, w, v)
            return (moved, state), {"kl": kl, "slope": slope}

        (w, _), seen = jax.lax.scan(step, (first, rule.init(first)), jax.random.split(key, STEPS))
        right = logits(w, data.test_x).argmax(axis=-1) == jnp.asarray(data.test_y)
        return seen, loss(w, x, y), right.mean()

    return go


@pytest.mark.parametrize("damping", [1e-2, 1e-3, 1e-4])
def test_every_step_of_a_training_stays_in_its_region(damping):
    seen, loss, accuracy = trainer()(damping, jax.random.key(0))
    assert np.max(seen["kl"]) <= 1.2 * MAX_KL
    assert np.min(seen["slope"]) > 0
    assert loss < 0.1
    assert accuracy > 0.95


def affine(w):
    return Partial(jnp.matmul, w)


@functools.partial(jax.jit, static_argnames="max_steps")
def step_from(guess, gradient, w, xs, damping, max_kl, max_steps=1):
    rule = fisher.natural_gradient(affine(w), damping, max_kl=max_kl, max_steps=max_steps)
    state = fisher.NaturalGradientState(affine(guess))
    v, state = rule.update(affine(gradient), state, affine(w), batch=xs)
    return v.args[0], fisher.NaturalGradientState(state.direction.args[0])


@pytest.mark.parametrize("guess", ["far", "against", "NaN", "zero"])
def test_no_guess_leads_uphill_or_out_of_the_region(guess):
    keys = jax.random.split(jax.random.key(0), 3)
    w, gradient = (jax.random.normal(k, (4, 6)) for k in keys[:2])
    xs = 3 * jax.random.normal(keys[2], (5, 6))
    start = {"far": 1e5 * w, "against": -1e3 * gradient, "NaN": jnp.nan * w, "zero": 0 * w}[guess]
    v, state = step_from(start, gradient, w, xs, 1e-4, 1e-2)
    assert jnp.vdot(v, gradient) > 0
    length = fisher.matvec(affine(w), xs, affine(v), batched=True).args[0] + 1e-4 * v
    assert jnp.vdot(v, length) / 2 <= 1e-2 * (1 + 1e-4)
    assert np.isfinite(state.direction).all()


def test_a_saturated_output_shortens_what_its_fisher_length_would_not():
    w, xs = jnp.array([[20.0], [0.0]]), jnp.ones((1, 1))  # p = 1 - 2e-9: F is nearly zero
    gradient = jnp.array([[1.0], [-1.0]])
    free, _ = step_from(0 * w, gradient, w, xs, 1e-2, jnp.inf, 5)
    assert_close(free, gradient / 1e-2, rtol=1e-4)
    v, _ = step_from(0 * w, gradient, w, xs, 1e-2, 100.0, 5)
    assert_close(v, gradient * 1e2, rtol=1e-4)  # 100 nats are far
    v, _ = step_from(0 * w, gradient, w, xs, 1e-2, 0.5, 5)
    kl = -jax.nn.log_softmax(affine(w)(xs[0]))  # of the outputs at w
    new = jax.nn.log_softmax(affine(w - v)(xs[0]))
    assert jnp.sum(jnp.exp(new) * (new + kl)) <= 1.1 * 0.5


def test_the_dtypes_are_those_of_the_weights():
    w, xs = jnp.ones((3, 2), jnp.float32), jnp.ones((4, 2), jnp.float32)
    wide = affine(jnp.ones((3, 2), jnp.float64))
    for call in (
        lambda: fisher.matvec(affine(w), xs[0], wide),
        lambda: fisher.solve(affine(w), xs, wide, damping=0.1),
    ):
        with pytest.raises(ValueError, match=r"the dtypes of the weights.*'float32'.*'float64'"):
            call()
