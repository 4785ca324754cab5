"""Metamers of an ImageNet network, on an untrained network of the same kind."""

import json

import pytest

from experiments.metamer import imagenet
from experiments.metamer.imagenet import Config
from tests.experiments.test_imagenet import tiny

KEEP = 1e-4


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    config = Config(
        out=tmp_path_factory.mktemp("metamer"), photographs=("chelsea", "coffee"), keep=KEEP,
        rounds=14, steps=20,
    )  # fmt: skip
    return config, imagenet.run(config, tiny())


def test_p_is_kept_on_the_way_to_the_other_photograph(ran):
    config, results = ran
    assert json.loads((config.out / "results.json").read_text()) == results
    found = results["claims"]["metamer"]
    assert found["outcome"] == "holds"
    assert set(found["numbers"]) == {"chelsea to coffee", "coffee to chelsea"}
    for numbers in found["numbers"].values():
        assert numbers["probability_change"] <= KEEP
        assert numbers["left"] < 0.5
        assert list(numbers["before"]) == list(numbers["after"])
    for name in ("run.json", "report.html", "metamer.png"):
        assert (config.out / name).stat().st_size


def test_pairs_that_were_found_are_not_searched_again(ran, monkeypatch):
    config, results = ran
    monkeypatch.setattr(imagenet, "at_scale", None)
    assert imagenet.run(config, tiny()) == results
