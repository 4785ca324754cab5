"""The claims are measured cell by cell, kept, and put in a table that quotes what was measured."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from experiments import claims


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return the configuration of a small run, and its results."""
    out = tmp_path_factory.mktemp("claims")
    config = claims.Config(pairs=2, steps=20, noise=0.09, claims=("S3", "S5", "S6"), out=out)
    with jax.enable_x64(False):
        return config, claims.run(config)


@pytest.mark.slow
def test_every_cell_is_written_with_its_pictures(small):
    config, results = small
    folder = config.out / "cells" / "digits_mlp"
    network = results["networks"]["digits_mlp"]
    assert list(network["claims"]) == ["S3", "S5", "S6"]
    for claim, section in network["claims"].items():
        stored = json.loads((folder / f"{claim}.json").read_text())
        assert stored["section"]["numbers"] == section["numbers"]
        assert (folder / f"{claim}.run.json").exists()
        for picture in section["pictures"]:
            assert (folder / picture["file"]).exists()
    assert (folder / "report.html").exists()


@pytest.mark.slow
def test_what_is_measured_is_not_measured_again(small, monkeypatch):
    config, results = small

    def never(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(claims, "MEASURES", dict.fromkeys(claims.CLAIMS, never))
    before = (config.out / "results.json").read_bytes()
    with jax.enable_x64(False):
        assert claims.run(config) == results
        assert (config.out / "results.json").read_bytes() == before
        with pytest.raises(AssertionError, match="measured again"):  # of other sizes
            claims.run(replace(config, pairs=3))


@pytest.mark.slow
def test_the_table_quotes_the_numbers(small):
    config, results = small
    text = (config.out / "table.md").read_text()
    numbers = results["networks"]["digits_mlp"]["claims"]["S6"]["numbers"]
    assert f"| {100 * numbers['exact']['label_kept']:.3g} % / " in text
    assert text.count("| digits_mlp") == 3
    widths = {len(line) for line in text.splitlines() if line.startswith("| digits_mlp")}
    assert len(widths) <= 3  # lines of a table are as long as each other


def test_networks_are_named_with_their_epochs(tmp_path):
    for epoch in ("1", "2"):
        folder = tmp_path / "mine" / "checkpoints" / epoch
        (folder / "arrays").mkdir(parents=True)
        (folder / "_CHECKPOINT_METADATA").write_text("{}")
    place = str(tmp_path / "mine")
    config = claims.Config(networks=(f"{place}@1,2", "digits_mlp", "cnn.npz"))
    assert list(claims.sources(config)) == ["mine-1", "mine-2", "digits_mlp", "cnn"]
    newest = claims.sources(claims.Config(networks=(place,)))
    assert newest == {"mine-2": {"checkpoint": Path(place), "epoch": 2}}
    assert len(claims.sources(claims.Config(networks=(f"{place}@all",)))) == 2
    with pytest.raises(ValueError, match="got twice"):
        claims.sources(claims.Config(networks=(f"{place}@1", f"{place}@1")))
    with pytest.raises(ValueError, match="FOLDER@1,3 or FOLDER@all"):
        claims.sources(claims.Config(networks=(f"{place}@first",)))


def test_quick_is_small():
    config = claims.Config(quick=True)
    assert config.pairs < claims.Config().pairs
    assert config.steps < claims.Config().steps
