"""The two routes of a walk, the plain loop and diffrax: the same bits, and small programs."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import foliax
from tests.cases import CASES, compilations

MODEL = CASES["tanh"].model
START, GOAL = np.random.default_rng(5).normal(size=(2, 5)).astype(np.float32)
BOX = foliax.Box(-4.0, 4.0)
OPTIONS = {"max_steps": 23, "save_every": 5}  # the last steps come after the last row
DIFFRAX = {"adjoint": diffrax.RecursiveCheckpointAdjoint(checkpoints=5)}

WALKS = {
    "along the leaf": lambda **more: foliax.walk(MODEL, START, GOAL, **OPTIONS, **more),
    "to its end": lambda **more: foliax.walk(MODEL, START, START, **OPTIONS, **more),
    "published": lambda **more: foliax.walk(
        MODEL, START, GOAL, scheme="published", box=BOX, **OPTIONS, **more
    ),
    "gradient": lambda **more: foliax.walk(MODEL, START, GOAL, speed="gradient", **OPTIONS, **more),
    "kicked": lambda **more: foliax.walk(
        MODEL, START, GOAL, kicks=2, key=jax.random.key(0), stall=0.9, step=1.0, **OPTIONS, **more
    ),
    "across": lambda **more: foliax.walk(MODEL, START, GOAL, along="kernel", **OPTIONS, **more),
    "drift": lambda **more: foliax.drift(MODEL, START, GOAL, along="kernel", **OPTIONS, **more),
    "into the box": lambda **more: foliax.drift(
        MODEL, START, GOAL, along="kernel", box=BOX, step=1.0, **OPTIONS, **more
    ),
    "no number": lambda **more: foliax.walk(MODEL, START * np.nan, GOAL, **OPTIONS, **more),
}  # fmt: skip


@pytest.mark.parametrize("name", WALKS)
def test_both_routes_take_the_same_path_to_the_bit(name):
    plain, by_diffrax = WALKS[name](), WALKS[name](**DIFFRAX)
    jax.tree.map(np.testing.assert_array_equal, plain, by_diffrax)


def test_a_batch_of_walks_takes_the_same_path_on_both_routes():
    starts = START + np.linspace(0, 1, 3, dtype=np.float32)[:, None]

    def many(**more):
        return jax.vmap(lambda x: foliax.walk(MODEL, x, GOAL, **OPTIONS, **more))(starts)

    jax.tree.map(np.testing.assert_array_equal, many(), many(**DIFFRAX))


def test_starts_outside_a_box_unknown_before_have_the_status_on_both_routes():
    def run(**more):
        def walk(box):
            return foliax.walk(MODEL, START, GOAL, box=box, **OPTIONS, **more)

        return jax.jit(walk)(foliax.Box(10.0, 11.0))

    assert run().status == run(**DIFFRAX).status == foliax.Status.outside


def test_the_reverse_derivatives_are_those_of_diffrax():
    def slopes(**more):
        def end(start, target):
            return jnp.sum(foliax.walk(MODEL, start, target, stall=0.0, **OPTIONS, **more).end ** 2)

        return jax.grad(end, argnums=(0, 1))(START, GOAL)

    for plain, by_diffrax in zip(slopes(), slopes(**DIFFRAX), strict=True):
        np.testing.assert_allclose(plain, by_diffrax, rtol=1e-5)


def test_other_numbers_compile_nothing():
    def walk(max_steps=40, save_every=10, step=0.1, stall=0.01, arrival=1.0, **more):
        return foliax.walk(
            MODEL, START, GOAL, max_steps=max_steps, save_every=save_every, step=step,
            stall=stall, arrival=arrival, **more,
        )  # fmt: skip

    compilations()
    walk(box=BOX, scheme="published")
    walk()
    before = len(compilations())
    walk(max_steps=43)
    walk(max_steps=95, save_every=20)
    walk(step=0.05, stall=0.1, arrival=0.5)
    walk(box=foliax.Box(-3.0, 3.5), scheme="published")
    assert len(compilations()) == before


@pytest.mark.parametrize(
    ("run", "most"),
    [
        (lambda x: foliax.walk(MODEL, x, GOAL), 1000),
        (lambda x: foliax.drift(MODEL, x, GOAL, along="kernel"), 1500),
        (lambda x: foliax.drift(MODEL, x, GOAL, along="kernel", box=BOX), 2100),
    ],
)
def test_a_program_is_small(run, most):
    """XLA compiles each line: the first point, and the last row, have no copies of their own."""
    assert len(jax.jit(run).lower(START).as_text().splitlines()) <= most
