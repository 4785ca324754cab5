"""The usual attacks go where the loss rises, as far as they may."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import foliax
from experiments.attack.baselines import fast_gradient, projected_gradient
from tests.cases import CASES


def test_the_fast_gradient_is_the_steepest():
    case = CASES["tanh"]
    label = int(jnp.argmax(case.model(case.x)))

    def loss(x):
        return -jax.nn.log_softmax(case.model(x))[label]

    slope = jax.grad(loss)(case.x)
    found = fast_gradient(case.model, case.x, 0.5)
    np.testing.assert_allclose(found - case.x, 0.5 * slope / jnp.linalg.norm(slope), rtol=1e-9)
    signs = fast_gradient(case.model, case.x, 0.5, signs=True)
    expected = 0.5 * jnp.sign(slope) / np.sqrt(case.n)
    np.testing.assert_allclose(signs - case.x, expected, rtol=1e-9)
    several = projected_gradient(case.model, case.x, 0.5, num_steps=50)
    assert loss(several) >= loss(found)


def test_a_saturated_network_has_a_slope():
    """1 − p is below the rounding of p here, and log p flat."""
    case = CASES["gap_60"]
    x = case.x.astype(jnp.float32)
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), case.model)
    assert np.linalg.norm(fast_gradient(model, x, 1.0) - x) == pytest.approx(1, rel=1e-5)


def test_they_keep_to_the_ball_and_the_box():
    case = CASES["tanh"]
    box = foliax.Box(case.x - 0.2, case.x + 0.2)
    for run in (fast_gradient, projected_gradient):
        for budget in (0.0, 0.3):
            away = np.linalg.norm(run(case.model, case.x, budget) - case.x)
            assert away <= budget * (1 + 1e-9)
        assert np.abs(run(case.model, case.x, 1.0, box=box) - case.x).max() <= 0.2 + 1e-12
