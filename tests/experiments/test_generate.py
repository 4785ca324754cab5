"""New images of a label: the samples, what is measured of them, and the command."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from experiments.generate import __main__ as generate
from experiments.generate import samples as samples_of
from experiments.harness.classifier import Classifier
from experiments.harness.command import perform
from experiments.harness.populations import predict
from foliax import zoo

COMMAND = generate.Command(pairs=10, samples=2, steps=10)


@pytest.fixture(scope="module")
def made():
    """Return network, data, task and samples, in float32 as users run it."""
    with jax.enable_x64(False):
        model, data = zoo.load("digits_mlp"), zoo.load_digits()
        task = samples_of.prepare(data, COMMAND)
        return model, data, task, samples_of.make(model, data, task, COMMAND)


def all_of(label):
    return Classifier(lambda images: np.full(len(images), label), f"sees {label}", 1.0)


def test_starts_are_of_every_class_and_targets_of_the_same(made):
    _, data, task, _ = made
    np.testing.assert_array_equal(task.labels, np.arange(10))
    np.testing.assert_array_equal(data.test_y[task.places], task.labels)
    np.testing.assert_array_equal(
        data.train_y[task.targets], np.repeat(task.labels, 2).reshape(10, 2)
    )


def test_every_method_makes_samples_of_every_start(made):
    _, data, task, samples = made
    assert list(samples) == list(samples_of.LABELS)
    for name, one in samples.items():
        assert one.images.shape == (10, 2, 8, 8, 1), name
        assert np.isfinite(one.images).all(), name
    starts = data.test_x[task.places][:, None]

    def moved(name):
        return np.linalg.norm((samples[name].images - starts).reshape(20, -1), axis=1)

    np.testing.assert_allclose(moved("noise"), moved("leaf"), rtol=1e-4)
    np.testing.assert_allclose(moved("convex_short"), moved("walk"), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(2 * moved("convex"), moved("real"), rtol=1e-4)
    np.testing.assert_allclose(samples["real"].images, data.train_x[task.targets])
    assert np.all(moved("leaf") > 0)


def test_no_motion_but_the_free_one_passes_the_threshold(made):
    _, _, _, samples = made
    for name in ("leaf", "kernel", "walk"):
        motion = samples[name].motion
        floor = COMMAND.keep * np.asarray(motion.p_label[:, 0])
        assert np.all(np.asarray(motion.least) >= floor - 1e-6), name
    free = samples["leaf_free"].motion
    assert np.any(np.asarray(free.least) < COMMAND.keep * np.asarray(free.p_label[:, 0]))
    assert not np.asarray(free.refused).any()


def test_real_images_measure_one(made):
    model, data, task, samples = made
    with jax.enable_x64(False):
        found = samples_of.measure(model, data, task, samples, all_of(3))
    for numbers in found.values():
        assert numbers["agreement"] == pytest.approx(0.1)
        np.testing.assert_array_equal(numbers["kept_of_start"], np.arange(10) == 3)
    real = found["real"]
    assert real["diversity_of_class"] == pytest.approx(1, abs=0.3)
    assert real["nearest_training"] == pytest.approx(1, abs=0.3)
    assert real["noise"] < 0.02
    labels, _ = predict(model, data.train_x[task.targets.ravel()])
    assert real["model_agreement"] == np.mean(np.asarray(labels) == task.labels.repeat(2))
    assert found["noise"]["noise"] > real["noise"]
    assert found["convex"]["diversity_of_start"] == pytest.approx(real["diversity_of_start"] / 2)
    assert found["kernel"]["box_excess"] == 0
    assert samples_of.gain(found)["mean"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 1}, "samples must be at least 2"),
        ({"pairs": 15}, "images must be a multiple of the 10 classes, got 15"),
    ],
)
def test_sizes_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        samples_of.prepare(zoo.load_digits(), replace(COMMAND, **change))


def network(agreement, noise, spread, gain):
    measured = {
        "agreement": agreement, "noise": noise, "diversity_of_start": spread,
        "moved": {"median": 1.0},
    }  # fmt: skip
    methods = dict.fromkeys(samples_of.LABELS, measured)
    methods["noise"] = measured | {"agreement": agreement - gain, "noise": 0.2}
    return {"methods": methods, "gain": {"mean": gain, "error": 0.01}, "trace": 1.0}


@pytest.mark.parametrize(
    ("numbers", "outcome", "words"),
    [
        ((0.97, 0.0, 0.8, 0.1), "holds", "as clean as real"),
        ((0.97, 0.1, 0.8, 0.1), "holds in part", "are noisier than asked"),
        ((0.8, 0.1, 0.3, 0.1), "holds in part", "keep the label less and vary less and are nois"),
        ((0.8, 0.2, 0.3, 0.0), "does not hold", "no better than white noise"),
    ],
)
def test_the_verdict_says_what_was_measured(numbers, outcome, words):
    text = generate._verdict({
        "num_starts": 10, "samples": 2, "classifier": {"accuracy": 0.98}, "best": "a", "peak": None,
        "networks": {"a": network(*numbers)},
    })  # fmt: skip
    assert text[0] == outcome
    assert words in text[1]


def test_it_says_what_is_gained_by_epoch():
    networks = {name: network(0.9, 0.1, 0.5, gain) for name, gain in {"a": 0.1, "b": 0.02}.items()}
    assert generate._best(networks) == "a"
    text = generate._of_epochs({"networks": networks, "peak": "b", "best": "a"})
    assert "+10.0 ± 1.0 at a, +2.0 ± 1.0 at b; the peak of the trace is nearest to b" in text


@pytest.mark.slow
def test_the_command_compares_epochs(tmp_path):
    model = zoo.MLP((64, 8, 10), rngs=nnx.Rngs(0))
    config = zoo.TrainConfig(epochs=2, track_per_epoch=2, reference_size=16)
    command = generate.Command(
        checkpoint=tmp_path / "training", epochs=(1, 2), samples=2, steps=10, quick=True,
        out=tmp_path / "out",
    )  # fmt: skip
    with jax.enable_x64(False):
        zoo.train(model, zoo.load_digits(), config, out=tmp_path / "training", progress=False)
        perform(command, generate.measure_command, title="generate")
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    numbers = written["claims"]["S11"]["numbers"]
    assert list(numbers["networks"]) == ["epoch 1", "epoch 2"]
    assert numbers["peak"] in numbers["networks"]
    for picture in written["claims"]["S11"]["pictures"]:
        with Image.open(tmp_path / "out" / picture["file"]) as image:
            assert min(image.size) > 100
    assert "epoch 1: Brownian, leaf" in (tmp_path / "out" / "report.html").read_text()


def test_epochs_need_a_checkpoint(tmp_path):
    command = generate.Command(epochs=(1,), out=tmp_path)
    with pytest.raises(ValueError, match="epoch=1 needs --checkpoint"):
        generate.measure_command(command)
