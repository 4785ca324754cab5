"""The training script: what it writes, that a second run repeats it, and what its options mean."""

import json
from dataclasses import replace

import pytest
from flax import nnx
from PIL import Image

from experiments import train
from experiments.harness.networks import build
from foliax import zoo

SMALL = train.Config(epochs=2, hidden=(8,), track_per_epoch=3, reference_size=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the output folder of a short training."""
    out = tmp_path_factory.mktemp("train")
    train.run(replace(SMALL, out=out))
    return out


def test_everything_promised_is_written(folder):
    results = json.loads((folder / "results.json").read_text())
    assert results["setting"]["network"]["sizes"] == [64, 8, 10]
    assert results["setting"]["training"]["learning_rate"] == 0.01
    assert results["history"]["steps"] == [0, 8, 15, 23, 31, 38, 46]
    assert results["choice"]["reason"] in (folder / "report.html").read_text()
    assert results["claims"]["S2"]["pictures"][0]["file"] == "dynamics.png"
    with Image.open(folder / "dynamics.png") as image:
        assert min(image.size) > 100
    run = json.loads((folder / "run.json").read_text())
    assert set(run["seconds"]) == {"steps", "tracking", "evaluation", "checkpoints"}
    assert run["tracking_over_steps"] > 0
    assert zoo.epochs(folder) == [1, 2]


def test_second_run_trains_no_more_and_says_the_same(folder):
    before = (folder / "results.json").read_bytes()
    train.run(replace(SMALL, out=folder))
    assert (folder / "results.json").read_bytes() == before
    assert "tracking_over_steps" not in json.loads((folder / "run.json").read_text())


def test_preset_is_overridden_by_what_is_given():
    assert train.training(train.Config(reference_size=256)) == zoo.PRESETS["paper"]
    changed = train.training(train.Config(preset="vgg", epochs=3, optimizer="adam", seed=4))
    assert (changed.epochs, changed.batch_size, changed.seed) == (3, 128, 4)
    assert changed.schedule == "cosine"
    assert changed.settings()["weight_decay"] == 0.0
    assert train.training(train.Config(preset="vgg")).settings()["momentum"] == 0.9


@pytest.mark.parametrize(
    ("net", "dataset", "expected"),
    [
        ("mlp", "digits", {"sizes": [64, 48, 10]}),
        ("cnn", "digits", {"shape": [8, 8, 1], "num_classes": 10}),
        ("xor_net", "xor", {"sizes": [2, 8, 2]}),
        ("circle_net", "circles", {"sizes": [2, 16, 3]}),
    ],
)
def test_networks_fit_their_data(net, dataset, expected):
    data = zoo.load_dataset(dataset)
    model = nnx.eval_shape(lambda: build(net, data, activation="gelu"))
    assert {**model.config, **expected, "activation": "gelu"} == model.config


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"net": "vgg11"}, "H, W ≥ 32"),
        ({"net": "colour_cnn"}, "H, W ≥ 22"),
        ({"net": "xor_net"}, "2 numbers"),
        ({"track_per_epoch": 0}, "track_per_epoch must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        train.run(replace(SMALL, out=tmp_path, **options))
