"""Many inputs by `foliax.map`: what a loop would give, block by block, in one program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import foliax
from tests.cases import CASES, compilations, name_of

MODEL, X = CASES["tanh"].model, CASES["tanh"].x
XS = X + 0.3 * jax.random.normal(jax.random.key(0), (5, *X.shape))
YS = XS + jnp.array([0.1, 0.5, 1.0, 3.0, 30.0])[:, None]
BOX = foliax.Box(-20.0, 20.0)
OPTIONS = {"max_steps": 30, "save_every": 10, "arrival": 0.3}


def same(many, singles, rtol=1e-9):
    """Assert that a batch is its members, statuses and all."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *singles)
    assert jax.tree.structure(many) == jax.tree.structure(stacked)
    for one, other in zip(jax.tree.leaves(many), jax.tree.leaves(stacked), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    "block", [1, 2, *(pytest.param(block, marks=pytest.mark.slow) for block in (5, 8))]
)
def test_walks_are_those_of_a_loop(block):
    many = foliax.map(foliax.walk, MODEL, XS, YS, block=block, box=BOX, **OPTIONS)
    same(many, [foliax.walk(MODEL, x, y, box=BOX, **OPTIONS) for x, y in zip(XS, YS, strict=True)])
    assert len(set(name_of(many.status))) > 1  # they do not all end alike


def test_drifts_along_the_kernel_are_those_of_a_loop():
    options = {"along": "kernel", "box": BOX, "max_steps": 10, "save_every": 5}
    many = foliax.map(foliax.drift, MODEL, XS, YS, **options)
    same(many, [foliax.drift(MODEL, x, y, **options) for x, y in zip(XS, YS, strict=True)])


@pytest.mark.parametrize("fn", [foliax.trace, foliax.factor, partial(foliax.eigh, k=2)])
def test_any_function_of_a_model_and_an_input(fn):
    same(foliax.map(fn, MODEL, XS, block=2), [fn(MODEL, x) for x in XS])


def test_inputs_and_results_are_pytrees():
    def fn(model, pair, scale, *, shift):
        return {"logits": model(pair["x"] + shift) * scale, "length": jnp.sum(pair["y"][0])}

    pairs, scales = {"x": XS, "y": (YS,)}, jnp.arange(5)
    many = foliax.map(fn, MODEL, pairs, scales, shift=jnp.ones(5), block=2)
    same(many, [
        fn(MODEL, {"x": x, "y": (y,)}, scale, shift=jnp.ones(5))
        for x, y, scale in zip(XS, YS, scales, strict=True)
    ])  # fmt: skip
    same(  # a box says something of arrays alone
        foliax.map(lambda bound, pair, box: box.clip(pair["x"]) + bound, 0.0, pairs, box=BOX),
        list(XS),
    )


@pytest.mark.parametrize("block", [1, 3])
def test_the_key_is_split(block):
    key = jax.random.key(3)
    options = {"time": 0.5, "num_steps": 10, "save_every": 5}
    xs = jnp.stack([X, X, X])
    moved = lambda model, x, *, key: foliax.brownian(model, x, key, **options)  # noqa: E731
    many = foliax.map(moved, MODEL, xs, key=key, block=block)
    same(many, [moved(MODEL, X, key=one) for one in jax.random.split(key, 3)])
    assert len(np.unique(np.asarray(many.end), axis=0)) == 3


def test_no_key_is_none():
    paths = foliax.map(foliax.walk, MODEL, XS, YS, key=None, **OPTIONS)
    same(paths, [foliax.walk(MODEL, x, y, **OPTIONS) for x, y in zip(XS, YS, strict=True)])


def test_other_weights_and_inputs_are_the_same_program():
    traced = []

    def network(weight, x):
        traced.append(None)
        return jnp.tanh(weight @ x)

    weight = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)))
    foliax.map(foliax.trace, Partial(network, weight), XS)
    count = len(traced)
    foliax.map(foliax.trace, Partial(network, 2 * weight), YS)
    assert count > 0
    assert len(traced) == count


def test_another_number_compiles_nothing():
    none = len(compilations())
    many = partial(foliax.map, foliax.walk, MODEL, XS, YS, max_steps=20)
    first = many(step=0.1, arrival=1e-3)
    count = len(compilations())
    again = many(step=0.3, arrival=0.2)
    assert len(compilations()) == count > none
    options = {"step": 0.3, "arrival": 0.2}
    # A partial made again is no other function.
    bound = partial(foliax.map, partial(foliax.walk, max_steps=20), MODEL, XS, YS)
    jax.tree.map(np.testing.assert_array_equal, bound(**options), again)
    assert len(compilations()) == count
    walks = (foliax.walk(MODEL, x, y, max_steps=20, **options) for x, y in zip(XS, YS, strict=True))
    same(again, list(walks))
    assert not np.allclose(first.end, again.end)


def test_a_number_that_shapes_the_program_is_part_of_it():
    def power(model, x, *, exponent: float):
        return model(x) ** (2 if exponent > 1 else 1)

    for exponent in (1.0, 2.0):
        same(
            foliax.map(power, MODEL, XS, exponent=exponent),
            [power(MODEL, x, exponent=exponent) for x in XS],
        )


def test_it_is_differentiated_and_batched():
    def total(xs):
        return jnp.sum(foliax.map(foliax.trace, MODEL, xs, block=2))

    one = jax.vmap(jax.grad(lambda x: foliax.trace(MODEL, x)))(XS)
    np.testing.assert_allclose(jax.grad(total)(XS), one, rtol=1e-9, atol=1e-12)
    both = jax.jit(jax.vmap(lambda xs: foliax.map(foliax.trace, MODEL, xs)))(
        jnp.stack([XS, XS + 0.1])
    )
    np.testing.assert_allclose(both[1], foliax.map(foliax.trace, MODEL, XS + 0.1), rtol=1e-9)


def test_a_block_of_one_is_no_batch():
    """No vmap: a branch that is not taken costs nothing, and no decomposition is batched."""

    def branching(model, x):
        return jax.lax.cond(x[0] > 0, lambda: jnp.sum(x), lambda: jnp.prod(x))

    programs = [
        str(jax.make_jaxpr(partial(foliax.map, branching, MODEL, block=block))(XS))
        for block in (1, 2)
    ]
    assert ["cond[" in program for program in programs] == [True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: foliax.map(foliax.walk, MODEL, XS, YS[:3]), r"got \(5, 5\), \(3, 5\)"),
        (lambda: foliax.map(foliax.trace, MODEL, jnp.zeros((0, 5))), "at least one input"),
        (lambda: foliax.map(foliax.trace, MODEL), "one entry an input, got none"),
        (lambda: foliax.map(foliax.trace, MODEL, XS, block=0), "block must be a whole number"),
        (lambda: foliax.map(3, MODEL, XS), "fn must be a function .*, got int"),
        (lambda: foliax.map(foliax.walk, MODEL, XS, YS, step=0.0), "step must be a finite number"),
        (lambda: foliax.map(foliax.walk, MODEL, XS, YS, key=jnp.ones(3), kicks=1), "key must be"),
        (
            lambda: foliax.map(foliax.walk, MODEL, XS, YS, box=foliax.Box(-0.1, 0.1)),
            r"xs\[0\] must start inside the box, which runs from -0\.1 to 0\.1",
        ),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
