"""The closest point of a leaf: projections on planes, level sets, the box, restarts."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import foliax
from foliax import Box, Status
from tests.cases import CASES, leaf_projector

PLANE = Partial(lambda weight, x: weight @ x, jnp.eye(3, 4).at[2].set(0))
START, TARGET = jnp.array([0.0, 0.0, -1.0, 0.0]), jnp.array([1.0, 2.0, 3.0, 4.0])
TANH, X = CASES["tanh"].model, CASES["tanh"].x
AWAY = X + 2 * jax.random.normal(jax.random.key(5), X.shape)
KEY = jax.random.key(1)


@pytest.mark.parametrize("restarts", [0, 3])
def test_on_a_plane_it_is_the_orthogonal_projection(restarts):
    along = jax.jit(partial(foliax.closest, PLANE, restarts=restarts, key=KEY))
    found = along(START, TARGET)
    np.testing.assert_allclose(found.point, [1, 2, -1, 0], atol=1e-5)
    np.testing.assert_allclose(found.distance, np.sqrt(32), rtol=1e-6)
    assert found.status == Status.stalled
    assert 0 <= float(found.spread) <= 1e-5
    assert int(found.num_steps) > 0


@pytest.mark.parametrize("restarts", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_along_the_kernel_of_a_plane(restarts):
    found = foliax.closest(PLANE, START, TARGET, along="kernel", restarts=restarts, key=KEY)
    np.testing.assert_allclose(found.point, [0, 0, 3, 4], atol=1e-5)
    np.testing.assert_allclose(found.distance, np.sqrt(5), rtol=1e-6)
    assert found.status == Status.arrived


@pytest.mark.parametrize("restarts", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_along_the_kernel_it_stays_in_the_box(restarts):
    """The closest point of a box in the plane that is left is the clipped one."""
    found = foliax.closest(
        PLANE, START, TARGET, along="kernel", box=Box(-2.0, 2.0), restarts=restarts, key=KEY
    )
    np.testing.assert_allclose(found.point, [0, 0, 2, 2], atol=1e-5)
    assert found.status == Status.arrived


@pytest.mark.parametrize(
    ("restarts", "box"),
    [
        (0, None),
        (3, Box(-2.5, 2.5)),
        pytest.param(0, Box(-2.5, 2.5), marks=pytest.mark.slow),
        pytest.param(3, None, marks=pytest.mark.slow),
    ],
)
def test_along_the_kernel_of_a_bent_network_p_is_kept(restarts, box):
    options = {"along": "kernel", "box": box, "max_steps": 100}
    found = foliax.closest(TANH, X, AWAY, restarts=restarts, key=KEY, **options)
    p = [jax.nn.softmax(TANH(x)) for x in (X, found.point)]
    np.testing.assert_allclose(*p, atol=1e-6)
    assert 0 < float(found.distance) < float(jnp.linalg.norm(AWAY - X))
    if box is not None:
        assert float(box.excess(found.point)) <= 1e-12


def test_at_the_closest_point_nothing_of_the_leaf_leads_nearer():
    found = foliax.closest(TANH, X, X + 0.4)
    rest = np.asarray(X + 0.4 - found.point)
    assert found.status == Status.stalled
    # The flow ends where its velocity turns round: a step beyond, to second order in that step.
    assert np.linalg.norm(leaf_projector(TANH, found.point) @ rest) < 1e-3 * np.linalg.norm(rest)
    np.testing.assert_allclose(found.distance, np.linalg.norm(rest), rtol=1e-12)


def test_restarts_find_what_is_nearer_and_say_how_far_they_differ():
    """It is never farther than the flow from the start itself."""
    options = {"max_steps": 60, "stall": 1e-4}
    alone = foliax.closest(TANH, X, AWAY, **options)
    found = foliax.closest(TANH, X, AWAY, restarts=4, spread=1.0, key=KEY, **options)
    assert float(found.distance) <= float(alone.distance)
    assert float(found.spread) >= float(alone.distance) - float(found.distance)
    np.testing.assert_allclose(
        found.distance, np.linalg.norm(np.asarray(found.point - AWAY)), rtol=1e-12
    )


def test_along_the_leaf_the_box_holds_nothing_but_the_start():
    box, options = Box(-1.5, 1.5), {"restarts": 2, "key": KEY, "spread": 3.0}
    free = foliax.closest(PLANE, START, TARGET, **options)
    held = foliax.closest(PLANE, START, TARGET, box=box, **options)
    np.testing.assert_allclose(held.point, free.point, atol=1e-12)
    with pytest.raises(ValueError, match="start must start inside the box"):
        foliax.closest(PLANE, 2 * START, TARGET, box=box, **options)


@pytest.mark.parametrize(
    ("along", "restarts"),
    [
        ("leaf", 1),
        ("kernel", 0),
        pytest.param("leaf", 0, marks=pytest.mark.slow),
        pytest.param("kernel", 1, marks=pytest.mark.slow),
    ],
)
def test_a_traced_start_outside_the_box_is_a_status(along, restarts):
    find = partial(
        foliax.closest, PLANE, target=TARGET, box=Box(-1.5, 1.5), along=along, restarts=restarts,
        key=KEY, max_steps=20,
    )  # fmt: skip
    found = jax.vmap(find)(jnp.stack([2 * START, START]))
    assert (found.status == Status.outside).tolist() == [True, False]


def test_restarts_do_not_batch():
    """One flow after the other: a batch within the caller's own could not be a loop on a CPU."""
    find = partial(foliax.closest, TANH, restarts=3, key=KEY, max_steps=5)
    program = str(jax.make_jaxpr(find)(X, AWAY))
    decompositions = re.findall(
        r"([\w\[\],:]+) = (?:qr|svd|eigh|geqrf|householder_product)\[", program
    )
    assert decompositions
    assert not [name for name in decompositions if re.search(r"\[\d+,\d+,\d+", name)]
    many = jax.jit(jax.vmap(find)).lower
    calls = [
        line
        for line in many(jnp.stack([X, AWAY]), jnp.stack([AWAY, X])).as_text().splitlines()
        if "@lapack_" in line
    ]
    assert not [line for line in calls if re.search(r"tensor<\d+x\d+x\d+x", line)]


def test_many_are_mapped():
    starts, targets = jnp.stack([START, START]), jnp.stack([TARGET, -TARGET])
    many = foliax.map(foliax.closest, PLANE, starts, targets, restarts=1, key=KEY)
    np.testing.assert_allclose(many.point, [[1, 2, -1, 0], [-1, -2, -1, 0]], atol=1e-5)
    assert (many.status == Status.stalled).all()


def test_restarts_need_a_key():
    with pytest.raises(ValueError, match="restarts=2 needs a key"):
        foliax.closest(PLANE, START, TARGET, restarts=2)
