"""Curvature is told with its numbers, and beside what is cheaper."""

import json
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.curvature import __main__ as curvature
from experiments.curvature import measures
from experiments.harness.command import perform
from foliax import zoo


@pytest.fixture(scope="module")
def smoke(run_small):
    """Return the folder of a small run, and its results."""
    run = partial(perform, measure=curvature.measure_command, title="curvature")
    out, found = run_small(run, curvature.Command, pairs=16, hidden=12, epochs=2, steps=20)
    return out, found["claims"]


@pytest.mark.slow
def test_full_rank_has_a_quarter_and_less_has_not(smoke):
    numbers = smoke[1]["intrinsic"]["numbers"]
    assert numbers["given"]["full_rank"]["count"] > 10
    for network in ("given", "smooth"):
        assert numbers["routes"][network]["num_images"] == 16
        assert numbers["routes"][network]["off_a_quarter"]["largest"] < 1e-8
    assert numbers["routes"]["narrow"]["apart"]["largest"] < 1e-6
    assert set(numbers["narrow"]["images_by_dimension"]) == {"2"}
    curvatures = numbers["narrow"]["lower_rank"]["curvature"]
    assert curvatures["largest"] - curvatures["least"] > 0.01
    assert smoke[1]["intrinsic"]["outcome"] == "holds"


@pytest.mark.slow
def test_linear_regions_do_not_bend_and_smooth_leaves_do(smoke):
    numbers = smoke[1]["extrinsic"]["numbers"]
    assert numbers["given"]["norm"]["largest"] < 1e-4
    assert numbers["smooth"]["norm"]["least"] > 1e-3
    assert numbers["along"]["num_paths"] == 8


@pytest.mark.slow
def test_everything_is_written(smoke):
    out, claims = smoke
    with Image.open(out / "curvature.png") as image:
        assert image.width > 1000
    records = json.loads((out / "paths.json").read_text())["images"]
    assert len(records) == 16
    assert all(record["curvature"] == pytest.approx(0.25, abs=1e-3) for record in records)
    written = json.loads((out / "results.json").read_text())["claims"]
    assert written["extrinsic"]["verdict"] == claims["extrinsic"]["verdict"]
    assert "second fundamental form" in (out / "report.html").read_text()


def test_a_trained_network_repeats():
    data = zoo.load_digits()
    with jax.enable_x64(False):
        models = [measures.trained(data, (64, 8, 10), epochs=1, seed=3) for _ in range(2)]
    for a, b in zip(*map(jax.tree.leaves, models), strict=True):
        np.testing.assert_array_equal(a, b)
