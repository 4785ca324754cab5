"""Data of TensorFlow Datasets: Fashion-MNIST for real, the others by their fake examples."""

import gzip
import importlib.util
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from foliax import zoo
from foliax.zoo import data
from foliax.zoo.data import preparing

tfds = pytest.importorskip(
    "tensorflow_datasets", reason="needs TensorFlow Datasets: pip install 'foliax[tfds]'"
)

FILES = Path("/usr/share/datasets/fashion-mnist")  # of the Debian package dataset-fashion-mnist
COUNT = 12  # fake examples of a data set
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None,
    reason="preparing needs TensorFlow: pip install 'foliax[tfds]'",
)
needs_files = pytest.mark.skipif(
    not FILES.is_dir(), reason=f"no {FILES}: apt install dataset-fashion-mnist"
)

# Reads what is prepared as on a machine without TensorFlow.
WITHOUT_TENSORFLOW = """
import importlib.machinery, sys, zlib

class Hiding(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] == "tensorflow"
        return None if hidden else super().find_spec(name, path, target)

here = sys.meta_path.index(importlib.machinery.PathFinder)
sys.meta_path[here] = Hiding
try:
    import tensorflow
except ModuleNotFoundError:
    from foliax import zoo

    fashion = zoo.load_dataset("fashion_mnist", data_dir=sys.argv[1])
    print(zlib.crc32(fashion.test_x), fashion, "tensorflow" in sys.modules)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    data.prepare("fashion_mnist", files=FILES, data_dir=root)
    return root


def _idx(name, header):
    """Read an idx file by its definition: a header, then bytes."""
    return np.frombuffer(gzip.decompress((FILES / name).read_bytes()), np.uint8)[header:]


@needs_tensorflow
@needs_files
@pytest.mark.slow
def test_fashion_mnist_is_what_the_files_hold(prepared):
    fashion = zoo.load_dataset("fashion_mnist", data_dir=prepared)
    assert fashion.train_x.shape == (60000, 28, 28, 1)
    assert fashion.test_x.shape == (10000, 28, 28, 1)
    assert fashion.train_x.dtype == np.float32
    assert fashion.class_names[9] == "Ankle boot"
    assert (fashion.mean, fashion.std) == (0.2860, 0.3530)
    assert abs(fashion.train_x.mean(dtype=np.float64)) < 2e-4  # published to four digits
    assert abs(fashion.train_x.std(dtype=np.float64) - 1) < 2e-4
    assert float(fashion.box.lower) == fashion.train_x.min()
    assert float(fashion.box.upper) == fashion.train_x.max()
    # Preparing shuffles; labels and images are compared as multisets.
    for part in ("train", "t10k"):
        y = fashion.train_y if part == "train" else fashion.test_y
        labels = _idx(f"{part}-labels-idx1-ubyte.gz", 8)
        np.testing.assert_array_equal(np.bincount(y), np.bincount(labels))
    images = _idx("t10k-images-idx3-ubyte.gz", 16).reshape(10000, 784)
    pixels = np.rint(np.asarray(fashion.to_pixels(fashion.test_x)) * 255).astype(np.uint8)
    found = {
        image.tobytes() + bytes([y])
        for image, y in zip(pixels.reshape(10000, 784), fashion.test_y, strict=True)
    }
    labels = _idx("t10k-labels-idx1-ubyte.gz", 8)
    assert found == {x.tobytes() + bytes([y]) for x, y in zip(images, labels, strict=True)}


@needs_tensorflow
@needs_files
@pytest.mark.slow
def test_reading_needs_no_tensorflow(prepared, tmp_path):
    shutil.copytree(prepared / "fashion_mnist", tmp_path / "fashion_mnist")
    next(tmp_path.rglob("foliax-test.npz")).unlink()
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    fashion = zoo.load_dataset("fashion_mnist", data_dir=prepared)
    checksum = zlib.crc32(np.ascontiguousarray(fashion.test_x))
    assert done.stdout == f"{checksum} {fashion!r} False\n"
    assert len(list(tmp_path.rglob("foliax-*.npz"))) == 2


@needs_tensorflow
@needs_files
@pytest.mark.slow
def test_command_line_says_what_is_there(prepared):
    command = [sys.executable, "-m", "foliax.zoo.prepare", "fashion_mnist", "--data-dir", prepared]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Dataset('fashion_mnist', 60000 training and 10000 test")


@needs_tensorflow
@needs_files
@pytest.mark.slow
def test_damaged_arrays_are_made_anew(prepared, tmp_path):
    shutil.copytree(prepared / "fashion_mnist", tmp_path / "fashion_mnist")
    kept = next(tmp_path.rglob("foliax-test.npz"))
    kept.write_bytes(kept.read_bytes()[:5000])
    fashion = zoo.load_dataset("fashion_mnist", data_dir=tmp_path)
    whole = zoo.load_dataset("fashion_mnist", data_dir=prepared)
    np.testing.assert_array_equal(fashion.test_x, whole.test_x)


@needs_files
def test_files_are_seeded_under_the_names_of_the_cache(tmp_path):
    copies = data.seed_downloads("fashion_mnist", FILES, tmp_path)
    assert len(copies) == 4
    for copy in copies:
        assert copy.parent == tmp_path / "downloads"
        assert copy.with_name(copy.name + ".INFO").is_file()
    assert data.seed_downloads("fashion_mnist", FILES, tmp_path) == copies


@pytest.fixture
def copied(tmp_path):
    return shutil.copytree(FILES, tmp_path / "files")


@needs_files
def test_a_missing_file_is_named_with_its_address(copied, tmp_path):
    (copied / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte.gz from http://"):
        data.seed_downloads("fashion_mnist", copied, tmp_path)


@needs_files
@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda raw: raw[: len(raw) // 2], "cannot be decompressed"),
        (lambda raw: raw[:100] + bytes(8) + raw[108:], "cannot be decompressed|SHA-256"),
        (lambda raw: b"no gzip" + raw[:0], "cannot be decompressed"),
        (lambda raw: gzip.compress(gzip.decompress(raw)[:-1]), "SHA-256 of its contents"),
        (lambda raw: gzip.compress(b"\0" + gzip.decompress(raw)[1:3] + b"\7"), "SHA-256 of its"),
    ],
    ids=["truncated", "damaged", "another format", "short", "wrong magic"],
)
def test_what_is_not_the_original_is_refused(copied, tmp_path, damage, match):
    path = copied / "train-labels-idx1-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"train-labels.* not the original file.*({match})"):
        data.seed_downloads("fashion_mnist", copied, tmp_path / "data")
    assert not (tmp_path / "data").exists()  # nothing is half done


@needs_files
def test_files_of_another_data_set_are_refused(tmp_path):
    # MNIST and KMNIST have the same file names.
    with pytest.raises(ValueError, match="not the original file of 'mnist'"):
        data.seed_downloads("mnist", FILES, tmp_path)


@pytest.mark.parametrize("name", ["fashion_mnist", "emnist/letters", "imagenet2012"])
def test_what_is_not_prepared_is_said_with_the_command(name, tmp_path):
    command = f"python -m foliax.zoo.prepare {name} --data-dir {tmp_path}"
    with pytest.raises(FileNotFoundError, match=f"not prepared under .* run: {command}"):
        zoo.load_dataset(name, data_dir=tmp_path)


def test_default_folder_needs_no_flag(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"under {tmp_path}; run: .*prepare cifar10$"):
        zoo.load_dataset("cifar10")


def test_preparing_without_tensorflow_is_said_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(ImportError, match=r"needs TensorFlow .*pip install 'foliax\[tfds\]'"):
        data.prepare("mnist", data_dir=tmp_path)


@needs_tensorflow
def test_preparing_without_the_network_is_said_at_once(tmp_path, monkeypatch):
    def unresolved(*args):
        raise OSError("Name or service not known")

    monkeypatch.setattr(preparing.socket, "getaddrinfo", unresolved)
    monkeypatch.setattr(preparing.urllib.request, "getproxies", dict)
    with pytest.raises(ConnectionError, match=r"kmnist/train-images[\s\S]*--files FOLDER"):
        data.prepare("kmnist", data_dir=tmp_path)


@needs_tensorflow
def test_imagenet_names_its_archives_and_their_folder(tmp_path):
    manual = tmp_path / "downloads" / "manual"
    with pytest.raises(FileNotFoundError, match=rf"img_train.tar and .*_val.tar in {manual} and"):
        data.prepare("imagenet2012", data_dir=tmp_path)
    manual.mkdir(parents=True)
    (manual / "ILSVRC2012_img_val.tar").touch()
    with pytest.raises(FileNotFoundError, match=rf"put ILSVRC2012_img_train.tar in {manual}"):
        data.prepare("imagenet2012", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"img_train\.tar and"):
        data.seed_downloads("imagenet2012", tmp_path)


def test_preparing_knows_its_names(tmp_path):
    with pytest.raises(ValueError, match=r"one of 'mnist', .* got 'digits'"):
        data.prepare("digits", data_dir=tmp_path)


@pytest.fixture
def fake(monkeypatch):
    # That of 4.9.10 takes the keys for its own first argument.
    read = lambda keys, generator: [generator[key] for key in keys]  # noqa: E731
    monkeypatch.setattr("tensorflow_datasets.testing.mocking._getitems", read)
    with tfds.testing.mock_data(COUNT, policy=tfds.testing.MockPolicy.USE_CODE):
        yield


@needs_tensorflow
@pytest.mark.parametrize(
    ("name", "shape", "num_classes", "first"),
    [
        ("mnist", (28, 28, 1), 10, "0"),
        ("kmnist", (28, 28, 1), 10, "o"),
        # Their names come with the files, so that fake ones have none.
        ("cifar10", (32, 32, 3), 10, "0"),
        ("cifar100", (32, 32, 3), 100, "0"),
    ],
)
def test_fake_examples_come_as_a_data_set(fake, tmp_path, name, shape, num_classes, first):
    dataset = zoo.load_dataset(name, data_dir=tmp_path)
    assert dataset.train_x.shape == dataset.test_x.shape == (COUNT, *shape)
    assert (dataset.num_classes, dataset.class_names[0]) == (num_classes, first)
    assert dataset.shape == shape
    assert float(dataset.box.excess(dataset.train_x)) == 0
    assert dataset.box.lower.shape == (() if shape[-1] == 1 else (3,))
    pixels = np.asarray(dataset.to_pixels(dataset.train_x)) * 255
    np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-3)
    if name == "cifar10":
        np.testing.assert_allclose(dataset.mean, [0.4914, 0.4822, 0.4465])
        np.testing.assert_allclose(dataset.std, [0.2470, 0.2435, 0.2616])


class _Examples(list):
    def __getitems__(self, keys):
        return [self[key] for key in keys]


@needs_tensorflow
def test_letters_are_upright_and_count_from_0(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (26, 28, 28, 1), dtype=np.uint8)
    stored = [{"image": x.swapaxes(0, 1), "label": 1 + k} for k, x in enumerate(images)]

    def source(self, split, **options):
        return _Examples(stored)

    policy = tfds.testing.MockPolicy.USE_CODE
    with tfds.testing.mock_data(policy=policy, as_data_source_fn=source):
        letters = zoo.load_dataset("emnist/letters", data_dir=tmp_path)
    assert letters.num_classes == 26
    assert letters.class_names[0] + letters.class_names[-1] == "AZ"
    assert letters.train_y.tolist() == list(range(26))
    pixels = np.asarray(letters.to_pixels(letters.train_x)) * 255
    np.testing.assert_allclose(pixels, images, atol=1e-3)


@needs_tensorflow
def test_imagenet_stays_on_disk(fake, tmp_path):
    dataset = zoo.load_dataset("imagenet2012", data_dir=tmp_path)
    assert isinstance(dataset, data.StreamedDataset)
    assert dataset.shape == (224, 224, 3)
    assert dataset.num_classes == 1000
    assert dataset.class_names[0] == "n01440764"
    assert (dataset.length("train"), dataset.length("test")) == (COUNT, COUNT)
    x, y = dataset.take([5, 2], split="test")
    assert (x.shape, x.dtype, y.dtype) == ((2, 224, 224, 3), np.float32, np.int32)
    assert float(dataset.box.excess(x)) == 0
    assert dataset.take([])[0].shape == (0, 224, 224, 3)
    assert "12 training and 12 test images" in repr(dataset)


@needs_tensorflow
def test_imagenet_comes_in_batches(fake, tmp_path):
    pytest.importorskip("grain", reason="batches need grain: pip install 'foliax[tfds]'")
    options = {"batch_size": 3, "shard_count": 2, "data_dir": tmp_path}
    hosts = [list(data.batches("imagenet2012", shard_index=k, **options)) for k in range(2)]
    assert [len(host) for host in hosts] == [2, 2]
    assert hosts[0][0][0].shape == (3, 224, 224, 3)
    means = [float(image.mean(dtype=np.float64)) for h in hosts for x, _ in h for image in x]
    whole = zoo.load_dataset("imagenet2012", data_dir=tmp_path).take(range(COUNT))[0]
    np.testing.assert_allclose(sorted(means), sorted(whole.mean(axis=(1, 2, 3), dtype=np.float64)))


def test_centre_crop_takes_the_middle():
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, 16:80] = 200  # the middle square; the crop is 0.875 of it
    np.testing.assert_array_equal(data.streamed.centre_crop(image, 56), 200)
    grey = data.streamed.centre_crop(image[..., :1], 30)
    assert grey.shape == (30, 30, 3)
    np.testing.assert_array_equal(data.streamed.centre_crop(image[..., 0], 30), grey)
