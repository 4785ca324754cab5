"""The geometry of invariant models moves with the input; the defect of others is the dense one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import foliax
from foliax import equivariance, zoo
from foliax.equivariance import MIRRORS, QUARTER_TURNS, SYMMETRIES, mirror, quarter_turn
from tests import cases

SHAPE = (3, 3, 1)
GROUPS = {"mirrors": MIRRORS, "turns": QUARTER_TURNS, "all": SYMMETRIES}
defect = jax.jit(equivariance.defect, static_argnums=2)


def network(seed=0):
    rng = np.random.default_rng(seed)
    params = (cases.layer(rng, 7, 9), cases.layer(rng, 4, 7))
    return Partial(cases.tanh_mlp, jax.tree.map(jnp.asarray, params))


def image(seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=SHAPE))


def dense(transformation):
    """Return the matrix of a transformation on flat inputs."""
    units = np.eye(9).reshape(9, *SHAPE)
    return np.stack([np.ravel(transformation(jnp.asarray(unit))) for unit in units], axis=1)


@pytest.mark.parametrize("name", GROUPS)
def test_groups_are_groups(name):
    matrices = [dense(g) for g in GROUPS[name]]
    assert len({m.tobytes() for m in matrices}) == len(matrices)
    for a in matrices:
        np.testing.assert_array_equal(a @ a.T, np.eye(9))
        for b in matrices:
            assert any(np.array_equal(a @ b, c) for c in matrices)


@pytest.mark.parametrize("name", GROUPS)
def test_the_geometry_of_an_averaged_model_moves_with_the_input(name):
    model, x = equivariance.averaged(network(), GROUPS[name]), image()
    for g in GROUPS[name]:
        matrix = dense(g)
        moved = cases.pairwise_matrix(model, g(x))
        here = matrix @ cases.pairwise_matrix(model, x) @ matrix.T
        np.testing.assert_allclose(moved, here, atol=1e-12)
        found = defect(model, x, g)
        assert max(map(float, found)) < 1e-10


@pytest.mark.parametrize("g", [mirror, quarter_turn])
def test_the_defect_of_any_model_is_the_dense_one(g):
    model, x, matrix = network(), image(), dense(g)
    here, there = (cases.pairwise_matrix(model, at) for at in (x, g(x)))
    moved = matrix @ here @ matrix.T
    expected = np.linalg.norm(there - moved) / max(np.linalg.norm(here), np.linalg.norm(there))
    found = defect(model, x, g)
    assert expected > 0.1
    assert float(found.matrix) == pytest.approx(expected, rel=1e-10)
    p, q = (cases.leaf_projector(model, at) for at in (x, g(x)))
    leaf = np.linalg.norm(q - matrix @ p @ matrix.T) / np.sqrt(6)
    assert float(found.leaf) == pytest.approx(leaf, rel=1e-10)
    change = jax.nn.softmax(model(g(x))) - jax.nn.softmax(model(x))
    assert float(found.probabilities) == pytest.approx(float(jnp.max(jnp.abs(change))), rel=1e-10)
    assert float(found.stretch) < 1e-12


@pytest.mark.parametrize("g", [lambda x: 1 - x, lambda x: mirror(x) + 2])
def test_tangent_vectors_move_by_the_derivative(g):
    """Inversion, an isometry that is no linear map, and a shift: against the dense matrices."""
    model, x = network(), image()
    matrix = np.asarray(jax.jacobian(g)(x)).reshape(9, 9)
    here, there = (cases.pairwise_matrix(model, at) for at in (x, g(x)))
    moved = matrix @ here @ matrix.T
    expected = np.linalg.norm(there - moved) / max(np.linalg.norm(here), np.linalg.norm(there))
    found = defect(model, x, g)
    assert float(found.matrix) == pytest.approx(expected, rel=1e-10)
    assert float(found.stretch) < 1e-12
    inverted = equivariance.averaged(model, (equivariance.identity, lambda x: 1 - x))
    assert max(map(float, defect(inverted, x, lambda x: 1 - x))) < 1e-10


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_measured_in_single(dtype):
    model = Partial(cases.linear, (jnp.ones((2, 9), dtype).at[0, 0].set(2), jnp.zeros(2, dtype)))
    found = defect(model, jnp.full(SHAPE, 0.5, dtype), mirror)
    assert found.matrix.dtype == jnp.float32
    assert 0 < float(found.matrix) < 2
    assert float(found.stretch) < 1e-6


def test_leaves_map_to_leaves():
    model, x, target = equivariance.averaged(network(), QUARTER_TURNS), image(), image(2)
    options = {"step": 0.05, "max_steps": 40, "save_every": 20}
    walk = jax.jit(partial(foliax.walk, **options))
    path = walk(model, x, target)
    turned = walk(model, quarter_turn(x), quarter_turn(target))
    np.testing.assert_allclose(turned.points, jax.vmap(quarter_turn)(path.points), atol=1e-9)
    plain = walk(network(), quarter_turn(x), quarter_turn(target))
    other = walk(network(), x, target)
    apart = np.abs(plain.points - jax.vmap(quarter_turn)(other.points)).max()
    assert apart > 1e-2


def test_averaging_over_one_element_is_the_model():
    model, x = network(), image()
    same = equivariance.averaged(model, (equivariance.identity,))
    np.testing.assert_allclose(same(x), model(x), atol=1e-15)


def test_a_stretching_transformation_says_so():
    found = equivariance.defect(network(), image(), lambda x: 2 * x)
    assert float(found.stretch) == pytest.approx(1.0)


def test_a_model_without_geometry_has_no_defect():
    model = Partial(lambda b, x: b + 0 * x.sum(), jnp.arange(3.0))
    found = equivariance.defect(model, image(), mirror)
    assert max(map(float, found)) == 0


def test_batches_in_float32():
    with jax.enable_x64(False):
        model, data = zoo.load("digits_mlp"), zoo.load_digits()
        symmetric = equivariance.averaged(model, SYMMETRIES)
        many = jax.jit(jax.vmap(partial(equivariance.defect, transformation=mirror), (None, 0)))
        found = many(symmetric, data.test_x[:4])
        plain = many(equivariance.averaged(model, (equivariance.identity,)), data.test_x[:4])
    assert found.matrix.dtype == jnp.float32
    assert np.max(found.matrix) < 1e-4
    assert np.min(plain.matrix) > 1e-2


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="transformations must be the elements of a group"):
        equivariance.averaged(network(), ())
    with pytest.raises(ValueError, match=r"must keep the shape of x, \(2, 3\), got \(3, 2\)"):
        equivariance.defect(lambda x: x[0], jnp.ones((2, 3)), quarter_turn)
    with pytest.raises(ValueError, match="x must be a floating-point array"):
        equivariance.defect(lambda x: x[0], jnp.ones((2, 2), int), mirror)
