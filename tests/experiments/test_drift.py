"""The comparison of integrators runs small, and finds what it is there to find."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments import drift
from experiments.drift import TSIT5


@pytest.fixture(scope="module")
def smoke(run_small):
    """Return the folder of a small run, and its results."""
    return run_small(drift.run, drift.Config, images=2, steps=60, quick=True)


@pytest.mark.slow
def test_exact_steps_keep_p_and_published_ones_do_not(smoke):
    _, results = smoke
    published, euler = (results["kernel"][name] for name in ("published", "euler"))
    assert euler["drift"]["largest"] <= 1e-4 < published["drift"]["median"]
    assert euler["within"]["0.0001"] == 1
    assert euler["box_excess"] <= 1e-5
    assert results["kernel"]["adaptive_0.001"]["drift"]["largest"] <= 1e-4


@pytest.mark.slow
def test_jacobians_are_counted_with_rejected_steps(smoke):
    _, results = smoke
    rows = results["kernel"]
    assert rows["published"]["jacobians"] == 61
    assert rows["euler"]["jacobians"] <= 61
    adaptive = rows["adaptive_0.001"]
    assert adaptive["jacobians"] >= 1 + TSIT5
    assert adaptive["jacobians"] <= 1 + TSIT5 * 60
    assert (adaptive["jacobians"] - 1) * 2 % TSIT5 == 0  # whole steps, of two images


@pytest.mark.slow
def test_walks_come_nearer(smoke):
    _, results = smoke
    for row in results["toward_target"].values():
        assert 0 < row["residual"] < 1
        assert row["jacobians"] <= 61


@pytest.mark.slow
def test_what_is_promised_is_written(smoke):
    out, results = smoke
    written = json.loads((out / "results.json").read_text())
    assert "timing" not in written  # the file is the same for the same seed
    assert written["images"] == results["images"] == 2
    assert json.loads((out / "run.json").read_text())["timing"]["kernel"]["euler"]
    with Image.open(out / "drift.png") as image:
        assert min(image.size) > 300


def test_fashion_mnist_needs_a_network():
    with pytest.raises(ValueError, match=r"--checkpoint .*, --weights, or --model"):
        drift.run(drift.Config(dataset="fashion_mnist"))


def test_times_are_compared_step_by_step():
    def ran(steps):
        return type("Path", (), {"num_steps": np.full(2, 10), "num_attempts": np.full(2, steps)})()

    table = drift.times({"published": [(ran(10), 2.0)], "other": [(ran(10), 6.0)]})
    assert table["other"]["per_step_to_published"] == pytest.approx(3)
    assert table["published"]["ms_per_step"] == pytest.approx(100)
