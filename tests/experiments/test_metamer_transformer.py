"""Patches of a transformer's input: what moves, and what is kept."""

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.metamer import transformer
from experiments.metamer.transformer import Config, VisionTransformer

SIDE, PATCH = 8, 4


@pytest.fixture(scope="module")
def moved():
    """Return two images, what is free of them, and where both schemes end."""
    with jax.enable_x64(False):
        model = nnx.view(VisionTransformer(SIDE, 4, patch=PATCH, width=8, rngs=nnx.Rngs(0)))
        rng = np.random.default_rng(0)
        xs = rng.normal(size=(2, SIDE, SIDE, 1)).astype(np.float32)
        free = transformer.free_patches(rng, 2, SIDE, PATCH)
        keys = jax.random.split(jax.random.key(0), 2)
        ends = [
            transformer._all(way, model, xs, free, keys, 0.1, 30)
            for way in (transformer.simec, transformer.drift)
        ]
        return model, xs, free, ends


def test_half_of_the_patches_are_free_and_whole(moved):
    free = moved[2]
    cut = free.reshape(2, 2, PATCH, 2, PATCH).swapaxes(2, 3).reshape(2, 4, -1)
    np.testing.assert_array_equal(cut.any(axis=2), cut.all(axis=2))
    np.testing.assert_array_equal(cut.any(axis=2).sum(axis=1), [2, 2])


def test_only_the_free_patches_move_and_only_ours_keeps_p(moved):
    model, xs, free, ends = moved
    with jax.enable_x64(False):
        simec, ours = (transformer._numbers(model, xs, end) for end in ends)
    for end in ends:
        np.testing.assert_array_equal(end[~free], xs[~free])
        assert (end != xs)[free].mean() > 0.9
    assert ours["p_kept"] == 1
    assert ours["change_of_p"]["largest"] < 0.1 * simec["change_of_p"]["least"]


@pytest.mark.slow
def test_the_script_runs(tmp_path):
    pytest.importorskip("mlxtend")
    with jax.enable_x64(False):
        results = transformer.run(Config(quick=True, out=tmp_path))
    assert results["claims"]["transformer"]["outcome"] == "holds"
    assert (tmp_path / "transformer.png").stat().st_size
