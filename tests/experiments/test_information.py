"""Both sides of dH/dσ² = ½ E tr G, of a classifier for which they are known."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from experiments import information


def test_both_sides_of_a_logistic_model_by_hand():
    """Of s = (x, 0): the slope of the mean cross-entropy is ½ E p(1 − p), as is ½ mean trace."""
    rng = np.random.default_rng(0)
    xs, noise = np.zeros((4096, 1)), rng.normal(size=(4096, 1))
    labels = rng.integers(0, 2, 4096)
    model = Partial(lambda x: jnp.stack([x[0], 0 * x[0]]))
    with jax.enable_x64(False):
        found = information.both_sides(
            lambda _: model, information._cross_entropy, xs, labels, noise, 0.5
        )
    p = 1 / (1 + np.exp(-0.5 * noise))
    np.testing.assert_allclose(found["half_trace"], np.mean(p * (1 - p)) / 2, rtol=1e-5)
    assert abs(found["slope"] - found["half_trace"]) < 4 * found["error"]


@pytest.mark.slow
def test_the_script_finds_them_equal_for_the_bayes_classifier(tmp_path):
    with jax.enable_x64(False):
        results = information.run(information.Config(out=tmp_path, quick=True, sigmas=(2.0,)))
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["claims"]["bayes"]["outcome"] == "holds"
    assert set(results["claims"]["network"]["numbers"]) == {"1", "2", "3"}
    assert (tmp_path / "information.png").stat().st_size
