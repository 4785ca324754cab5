"""The colour path runs on cuts of photographs, with a training of its own or foreign weights."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import cifar
from experiments.harness import command
from experiments.harness.networks import QUICK_PHOTOGRAPHS, Loaded, build, load, renormalised
from foliax import zoo


@pytest.fixture(scope="module")
def cuts():
    return zoo.load_photographs(num_train=28, num_test=14)


def test_images_can_be_normalised_anew(cuts):
    again = renormalised(cuts)
    np.testing.assert_allclose(
        again.to_pixels(again.test_x), cuts.to_pixels(cuts.test_x), atol=1e-5
    )
    assert float(again.box.lower) == -1
    assert float(again.box.upper) == 1


def test_a_network_is_trained_and_its_leaf_walked(tmp_path, monkeypatch):
    small = zoo.MLP((3072, 4, 7), rngs=nnx.Rngs(0))  # compiles in a moment
    monkeypatch.setattr(cifar, "build", lambda *_, **__: small)
    options = cifar.Command(out=tmp_path, quick=True, steps=4, save_every=2)
    with jax.enable_x64(False):
        results = command.perform(options, cifar.measure_command, title="cifar")
    assert results["setting"]["network"] == "colour_cnn, epoch 1 on photographs"
    numbers = results["claims"]["S8"]["numbers"]
    assert numbers["exact"]["noise"]["estimator"] == "estimate_sigma"
    paths = json.loads((tmp_path / "paths.json").read_text())["S8"]
    assert {path["kind"] for path in paths} == {"exact", "published"}
    assert (tmp_path / "colour_leaf.gif").exists()
    again = load(checkpoint=tmp_path / "training_quick")  # by any other script
    assert again.dataset.name == "photographs"
    np.testing.assert_array_equal(
        again.dataset.test_x, zoo.load_photographs(**QUICK_PHOTOGRAPHS).test_x
    )


def test_published_weights_see_photographs(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"0": (32, 3, 3, 3), "3": (64, 32, 3, 3), "6": (128, 64, 3, 3)}
    shapes |= {"10": (128, 512), "12": (10, 128)}
    weights = {f"w.{name}.weight": rng.standard_normal(shape) for name, shape in shapes.items()}
    weights |= {f"w.{name}.bias": np.zeros(shape[0]) for name, shape in shapes.items()}
    np.savez(tmp_path / "net.npz", **weights)
    command = cifar.Command(weights=tmp_path / "net.npz")
    loaded = command.load()
    assert (loaded.dataset.name, loaded.dataset.length("test")) == ("cifar10", 20)
    loaded = replace(command, dataset="photographs").load()
    assert loaded.network == "net.npz"
    assert loaded.dataset.class_names == cifar.CIFAR10
    assert loaded.model(loaded.dataset.test_x[0]).shape == (10,)


def test_the_papers_weights_give_their_logits(reference, tmp_path):
    arrays = reference("papers/cifar10_medium_cnn")
    np.savez(tmp_path / "papers.npz", **{k: v for k, v in arrays.items() if k.startswith("w.")})
    loaded = cifar.Command(weights=tmp_path / "papers.npz").load()
    xs = np.moveaxis(arrays["x"], 1, -1).astype(np.float32)
    # The reference images are normalised as the command does it: pixels less 1/2, over 1/2.
    pixels = arrays["images_u8"] / 255
    np.testing.assert_allclose(loaded.dataset.from_pixels(pixels), xs, atol=1e-5)
    logits = np.stack([loaded.model(x) for x in xs[:2]])
    np.testing.assert_allclose(logits, arrays["logits"][:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "layers"), [("colour_cnn", 3), ("vgg11", 8)])
def test_networks_of_colour_are_made_by_name(name, layers, cuts):
    model = nnx.eval_shape(lambda: build(name, cuts))
    assert len(model.convs) == layers


def test_cifar_itself_needs_a_network():
    with pytest.raises(ValueError, match=r"--checkpoint .*, --weights, or --model"):
        cifar.Command(dataset="cifar10").load()


def test_samples_are_measured_one_by_one():
    model = zoo.colour_cnn(rngs=nnx.Rngs(0))
    data = renormalised(zoo.load_samples("cifar10"))
    with jax.enable_x64(False):
        found = cifar.ranks(Loaded(model, data, "net.npz"))
    numbers = found["numbers"]
    assert (numbers["num_images"], numbers["bound"]) == (20, 9)
    images = numbers["images"].items()
    right = sum(name.split(" ", 1)[1] == image["predicted"] for name, image in images)
    assert right == numbers["right"]
    for image in numbers["images"].values():
        assert 0 < image["rank"] <= 9
        assert image["trace"] > 0
