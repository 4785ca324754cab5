"""Metamers of a population: what is counted, and the command."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import foliax
from experiments.attack.baselines import projected_gradient
from experiments.harness.classifier import Classifier
from experiments.harness.command import perform
from experiments.harness.populations import norms
from experiments.metamer import __main__ as metamer
from experiments.metamer.trainings import ADVERSARIAL, PENALTY, PLAIN, trained
from foliax import zoo


@pytest.fixture(scope="module")
def found():
    """Return the digits, their network, six pairs and their metamers."""
    with jax.enable_x64(False):
        model, data = zoo.load("digits_mlp"), zoo.load_digits()
        starts, targets = metamer.drawn(model, data, 6, seed=0)
        return model, data, starts, targets, metamer.nearest(model, data, starts, targets, steps=20)


def test_pairs_are_rightly_classified_and_of_two_classes(found):
    model, data, starts, targets, _ = found
    for places in (starts, targets):
        labels = np.argmax(jax.vmap(model)(data.test_x[places]), axis=1)
        np.testing.assert_array_equal(labels, data.test_y[places])
    assert np.all(data.test_y[starts] != data.test_y[targets])
    with pytest.raises(ValueError, match="pairs must be at most the"):
        metamer.drawn(model, data, 10_000, seed=0)


def test_statistics_are_shares_of_what_was_counted(found):
    model, data, starts, targets, nearest = found
    truth = data.test_y[targets]
    classifier = Classifier(lambda images: truth[: len(images)], "the target's", 1.0)
    numbers = metamer.summary(model, data, starts, targets, nearest, classifier)
    assert numbers["seen_as_target"] == 1
    assert numbers["seen_as_start"] == 0
    assert numbers["label_kept"] == 1
    assert numbers["change_of_p"]["largest"] <= 1e-5
    assert numbers["p_kept"] == 1
    way = norms(data.test_x[targets] - data.test_x[starts])
    np.testing.assert_allclose(numbers["left"]["largest"], np.max(nearest.distance / way))
    assert all(0 <= auroc <= 1 for auroc in numbers["told_apart"].values())


def test_the_sensitivity_radius_changes_the_label(found):
    model, data, starts, _, _ = found
    x = data.test_x[starts[0]]
    radius = float(metamer.sensitivity_radius(model, x))
    assert 0 < radius < np.linalg.norm(x)


def test_the_command_writes_numbers_and_pictures(tmp_path):
    command = metamer.Command(quick=True, steps=10, references=1, radii=1, pairs=3, out=tmp_path)
    perform(command, metamer.measure_command, title="metamer")
    claims = json.loads((tmp_path / "results.json").read_text())["claims"]
    numbers = claims["metamer"]["numbers"]["network"]
    assert numbers["num_pairs"] == 3
    assert numbers["change_of_p"]["largest"] <= 1e-5
    assert numbers["radii"]["sensitivity"]["median"] > 0
    pairs = json.loads((tmp_path / "paths.json").read_text())["pairs"]
    assert len(pairs) == 3
    for name in ("metamer.png", "metamer_classes.png", "metamer.gif"):
        with Image.open(tmp_path / name) as image:
            assert image.size[0] > 100


@pytest.mark.slow
def test_an_adversarial_training_withstands_attacks_that_a_plain_one_does_not():
    with jax.enable_x64(False):
        data = zoo.load_digits()
        networks = trained(data, epochs=3, budget=2.0, seed=0)
        x, y = data.test_x[:100], data.test_y[:100]

        def share(model):
            def logits(x, y):
                return model(projected_gradient(model, x, 2.0, label=y, box=data.box))

            return np.mean(np.argmax(jax.vmap(logits)(x, y), axis=1) == y)

        assert set(networks) == {PLAIN, PENALTY, ADVERSARIAL}
        assert share(networks[ADVERSARIAL].model) > share(networks[PLAIN].model)
        traces = {
            name: np.mean(jax.vmap(foliax.trace, (None, 0))(one.model, x))
            for name, one in networks.items()
        }
        assert traces[PENALTY] < traces[PLAIN]
