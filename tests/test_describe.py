"""What `describe` says of sound networks and of those that are not."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial
from PIL import Image

import foliax
from foliax import viz
from foliax.describe import Cost, _of_geometry
from tests.cases import CASES
from tests.tolerance import assert_close

CASE = CASES["tanh"]


@pytest.fixture(scope="module")
def found():
    return foliax.describe(CASE.model, CASE.x)


def test_numbers_are_those_of_the_functions(found):
    model, x = CASE.model, CASE.x
    assert_close(found.logits, model(x))
    assert_close(found.trace, foliax.trace(model, x))
    assert_close(found.eigenvalues, foliax.spectrum(model, x).eigenvalues)
    assert int(found.rank) == int(foliax.rank(model, x)) == 3
    assert int(found.dimension) == 3
    assert (int(found.saturated), int(found.dead)) == (0, 0)
    assert found.directions.shape == (3, *x.shape)
    assert found.num_weights == sum(leaf.size for leaf in jax.tree.leaves(model))
    assert_close(found.shares().sum(), 1.0)
    assert found.advice == ()


def test_it_prints_as_a_table_and_is_a_pytree(found):
    text = str(found)
    assert "rank of G" in text
    assert "3, at most min(n, C − 1) = 3" in text
    assert text == repr(found)
    assert len({line.index(line.split("  ", 1)[1].strip()) for line in text.split("\n")}) == 1
    moved = jax.tree.map(lambda leaf: leaf, found)
    assert str(moved) == text


def test_costs_grow_with_the_work():
    def wide(w, x):
        return w @ jnp.tanh(jnp.sum(w, axis=0) * x)

    small, large = (
        foliax.describe(Partial(wide, jnp.ones((3, n)) / n), jnp.ones(n)) for n in (10, 100_000)
    )
    assert large.factor.memory > 1000 * small.factor.memory
    assert large.walk.seconds > small.factor.seconds
    assert large.jacobian.seconds > large.factor.seconds


def dense(w, x):
    return w @ x.ravel()


W = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)))
X = jnp.asarray(np.random.default_rng(1).normal(size=8))
COUNT = iter(range(1000))


def noisy(x):
    return W @ x + next(COUNT)


ODD = {
    "two calls differ": (noisy, X),
    "logits are not finite": (Partial(dense, W * jnp.nan), X),
    "x is not finite": (Partial(dense, W), X * jnp.inf),
    "logits are all equal": (Partial(dense, 0 * W), X),
    "outputs look like probabilities": (lambda x: jax.nn.softmax(W @ x), X),
    "x holds whole numbers up to 255, as bytes": (Partial(dense, W / 255), jnp.arange(8.0) * 30),
    r"G = 0 and D = \{0\}: no logit depends on x": (lambda x: jnp.arange(3.0) + 0 * x[0], X),
    "G has rank 0 where D has dimension 2: the softmax is saturated": (Partial(dense, 1e4 * W), X),
    "D has dimension 1 of 2: a layer with few active units": (
        lambda x: jnp.outer(jnp.arange(3.0), W[0]) @ x, X),
    "1 class has a logit that does not depend on x": (Partial(dense, W.at[1].set(0)), X),
    "n = 2 is not above C − 1 = 2": (Partial(dense, W[:, :2]), X[:2]),
}  # fmt: skip


@pytest.mark.parametrize("line", ODD)
def test_what_looks_wrong_gets_a_line(line):
    model, x = ODD[line]
    found = foliax.describe(model, x)
    assert any(re.match(line, each) for each in found.advice), found.advice
    assert "look at" in str(found)


def test_the_box_and_large_factors():
    outside = foliax.describe(Partial(dense, W), X, box=foliax.Box(-0.1, 0.1))
    assert outside.advice[0].startswith("x leaves the box by")
    assert foliax.describe(Partial(dense, W), X, box=foliax.Box(-9.0, 9.0)).advice == ()
    measured = {"rank": 2, "dimension": 2, "dead": 0, "logits": jnp.zeros(3)}
    lines = _of_geometry(measured, X, Cost(2**32, 1.0), None)
    assert lines == [
        'a factor takes 4 GiB: chunk=… bounds it, and trace_estimate and eigh(…, method="lanczos") '
        "need none"
    ]


def test_a_module_in_training_mode_is_an_error():
    model = nnx.Sequential(nnx.Linear(8, 3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"it is in training mode; .*model\.eval\(\)"):
        foliax.describe(model, X.astype(jnp.float32))


def test_an_adapted_model_is_described():
    found = foliax.describe(foliax.adapt(dense, W), X)
    assert found.num_weights == W.size
    assert int(found.rank) == 2


@pytest.mark.parametrize("shape", [(8,), (4, 2), (2, 2, 2)])
def test_the_picture(tmp_path, shape):
    found = foliax.describe(Partial(dense, W), X.reshape(shape))
    path = viz.describe(found, tmp_path / "model.png", class_names=("a", "b", "c"))
    with Image.open(path) as picture:
        assert picture.size[0] > 1000
    with pytest.raises(ValueError, match="class_names must be 3, one for each class, got 2"):
        viz.describe(found, tmp_path / "no.png", class_names=("a", "b"))
    assert not (tmp_path / "no.png").exists()
