"""The comparison of optimisers at smoke size, and how it counts."""

import json

import numpy as np
import pytest

from experiments import natural_gradient as ng


@pytest.fixture(scope="module")
def smoke(run_small):
    """Return the folder of a small run, and its results."""
    return run_small(ng.run, ng.Config, quick=True)


def test_everything_promised_is_written(smoke):
    out, results = smoke
    assert json.loads((out / "results.json").read_text()) == results
    seconds = json.loads((out / "run.json").read_text())["seconds"]
    for name in ("sgd_step", "natural_step"):
        assert 0 < seconds[f"per_{name}"] < 10
    assert (out / "steps.png").stat().st_size
    table = (out / "table.md").read_text()
    assert results["verdict"] in table


def test_natural_gradient_needs_fewer_steps(smoke):
    methods = smoke[1]["methods"]
    ours, best = methods[ng.NATURAL], methods[smoke[1]["best_sgd"]]
    assert best["median_steps"] == min(
        one["median_steps"]
        for name, one in methods.items()
        if name != ng.NATURAL and "momentum" not in name
    )
    assert ours["median_steps"] < 0.6 * best["median_steps"]  # a third at the full size
    assert smoke[1]["outcome"] in ("holds", "holds in part")


@pytest.mark.parametrize(
    ("losses", "steps"), [([0.5, 0.2, 0.3], 2), ([0.1], 1), ([0.9, np.nan], None)]
)
def test_first_below(losses, steps):
    assert ng.first_below(np.array(losses), 0.25) == steps


@pytest.mark.parametrize(
    ("natural", "sgd", "outcome"),
    [(10, 30, "holds"), (11, 30, "holds in part"), (30, 30, "does not hold"),
     (None, 30, "does not hold"), (10, None, "holds in part")],
)  # fmt: skip
def test_verdict(natural, sgd, outcome):
    found = {"plain": {"median_steps": sgd}, "second": {"median_steps": 20}}
    found |= {ng.NATURAL: {"median_steps": natural}}
    got, text = ng._verdict(found, sgd and "plain", "second", ng.Config())
    assert got == outcome
    if outcome == "holds":
        assert "the best plain SGD 30 (plain), second 20" in text
