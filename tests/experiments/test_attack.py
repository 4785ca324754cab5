"""Attacks are counted, drawn and written; a penalty on the trace is trained beside none."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from experiments.attack import __main__ as attack
from experiments.attack import runs
from experiments.harness.command import perform
from foliax import zoo


@pytest.fixture(scope="module")
def smoke(run_small):
    """Return the folder of a small run, and its results."""
    out, found = run_small(
        partial(perform, measure=attack.measure_command, title="attack"), attack.Command,
        pairs=20, penalties=(1.0,), hidden=16, epochs=2, rate=3e-3, steps=4,
    )  # fmt: skip
    return out, found["claims"]


@pytest.mark.slow
def test_farther_fools_more_and_the_gradient_more_than_chance(smoke):
    numbers = smoke[1]["spectral"]["numbers"]
    rates = numbers["attacks"]
    assert 10 < numbers["num_images"] <= 20
    assert set(rates) == set(runs.attacks(4))
    for one in rates.values():
        assert len(one["fooled"]) == len(numbers["budgets"]) == 8
        assert one["fooled_mean"] == pytest.approx(np.mean(one["fooled"]))
        assert one["fooled_at_most"] == one["fooled"][-1]
    projected = rates["projected gradient (PGD)"]["fooled"]
    assert projected == sorted(projected)
    assert projected[-1] > 0.5 > rates["random direction"]["fooled"][-1]


def test_the_networks_are_compared(smoke):
    networks = smoke[1]["penalty"]["numbers"]["networks"]
    assert set(networks) == {"none", "penalty_1", "stopped_1"}
    assert networks["penalty_1"]["penalty"] == 1
    assert networks["stopped_1"]["penalty"] == 0
    assert networks["none"]["epoch"] == 2
    assert networks["penalty_1"]["trace_train"]["mean"] < networks["none"]["trace_train"]["mean"]


def test_everything_is_written(smoke):
    out, claims = smoke
    for name in ("attack.png", "attack_images.png"):
        with Image.open(out / name) as image:
            assert image.width > 600
    records = json.loads((out / "paths.json").read_text())["images"]
    assert len(records) == claims["spectral"]["numbers"]["num_images"]
    assert len(records[0]["geodesic"]) == 8
    assert "projected gradient" in (out / "report.html").read_text()


def test_the_control_is_as_accurate():
    networks = [runs.Penalised(None, 0.0, i + 1, a) for i, a in enumerate((0.5, 0.8, 0.9))]
    assert runs.as_accurate(networks, 0.78).epoch == 2


def test_seeds_do_not_depend_on_the_number_of_images():
    np.testing.assert_array_equal(runs.seeds_of(3, 5), runs.seeds_of(3, 9)[:5])
    assert len(set(runs.seeds_of(0, 100).tolist() + runs.seeds_of(1, 100).tolist())) == 200


def test_the_largest_budget_is_a_distance_to_the_training_set():
    data = zoo.load_digits()
    xs = data.train_x[:4] + 0.25  # 64 pixels: 2 away from itself, if nothing is nearer
    assert runs.largest_budget(data, xs) == pytest.approx(2, rel=1e-4)
