"""Explanations of digits: their orders, their statistics, and the command."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import explain
from experiments.harness.classifier import Classifier
from experiments.harness.command import perform
from foliax import Status, zoo


@pytest.fixture(scope="module")
def found():
    """Return data, ten explained images, and the rivals that plainer means name."""
    with jax.enable_x64(False):
        model, data = zoo.load("digits_mlp"), zoo.load_digits()
        xs = data.test_x[:10]
        explained = explain.explain_images(model, xs, step=0.5, max_steps=200)
        return data, explained, explain.rivals(model, data, xs, explained.label)


def test_every_image_keeps_its_place_in_a_padded_batch(found):
    data, explained, _ = found
    assert explained.nearest.chord.shape == (10, 10)
    own = (np.arange(10), explained.label)
    np.testing.assert_array_equal(explained.nearest.end[own], data.test_x[:10])
    assert np.all(explained.nearest.status == Status.arrived)
    assert np.mean(explained.label == data.test_y[:10]) >= 0.9


def test_orders_begin_with_the_nearest_and_end_with_the_label(found):
    _, explained, _ = found
    by = explain.orders(explained)
    np.testing.assert_array_equal(by["bound"], by["probability"])
    for values in by.values():
        np.testing.assert_array_equal(values[:, -1], explained.label)
        np.testing.assert_array_equal(np.sort(values), np.tile(np.arange(10), (10, 1)))
    second = np.argsort(explained.probabilities, axis=1)[:, -2]
    np.testing.assert_array_equal(by["probability"][:, 0], second)


def test_rivals_are_other_classes(found):
    data, explained, rivals = found
    assert np.all(rivals["pixels"] != explained.label)
    assert np.all(rivals["confusion"] != explained.label)
    away = np.linalg.norm((data.train_x - data.test_x[0]).reshape(len(data.train_y), -1), axis=1)
    away[data.train_y == explained.label[0]] = np.inf
    assert rivals["pixels"][0] == data.train_y[np.argmin(away)]


def test_statistics_are_shares_of_what_was_counted(found):
    data, explained, rivals = found
    classifier = Classifier(
        lambda images: np.full(len(images), int(explained.label[0])), "one answer", 0.1
    )
    numbers = explain.summary(explained, data, np.asarray(explained.label), rivals, classifier)
    assert numbers["reached"] == {"input": 1, "metric": 1}
    assert numbers["second_probable_is"]["nearest by the bound"] == 1
    assert numbers["misclassified"]["count"] == 0
    assert numbers["misclassified"]["true_class_nearest_in_input"] is None
    assert numbers["length_over_chord"]["least"] >= 1 - 1e-5
    assert numbers["over_bound"]["input"]["least"] >= 1 - 1e-5
    assert numbers["over_bound"]["metric"]["median"] == pytest.approx(1, abs=1e-3)
    same = np.mean(explained.label == explained.label[0])
    assert numbers["classifier"]["sees_the_label"] == pytest.approx(same)
    assert 0 < numbers["rank_correlation"]["median"] <= 1


def test_the_command_writes_a_picture_and_every_image(tmp_path):
    command = explain.Command(pairs=2, step=0.5, steps=200, quick=True, out=tmp_path)
    with jax.enable_x64(False):
        results = perform(command, explain.measure_command, title="explain")
    assert results["claims"]["explain"]["numbers"]["num_images"] == 2
    written = json.loads((tmp_path / "paths.json").read_text())["explain"]
    assert len(written) == 2
    assert len(written[0]["orders"]["input"]) == 9
    assert written[0]["smallest_in_input"]["status"] == ["arrived"] * 10
    with Image.open(tmp_path / "explain.png") as image:
        assert min(image.size) > 100
    assert "rank correlation" in (tmp_path / "report.html").read_text()
