"""One's own images: files of arrays and folders of images, and what is wrong with them."""

import pickle

import numpy as np
import pytest
from PIL import Image

from foliax import zoo

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (40, 6, 5), dtype=np.uint8)
LABELS = np.arange(40) % 4


def written(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_four_arrays(tmp_path):
    file = written(tmp_path / "mine.npz", train_x=BYTES[:30], train_y=LABELS[:30],
                   test_x=BYTES[30:], test_y=LABELS[30:])  # fmt: skip
    data = zoo.load_files(file)
    assert (data.name, data.shape, data.num_classes) == ("mine.npz", (6, 5, 1), 4)
    assert data.class_names == ("0", "1", "2", "3")
    pixels = np.asarray(data.to_pixels(data.test_x))[..., 0]
    np.testing.assert_allclose(pixels, BYTES[30:] / 255, atol=1e-6)
    np.testing.assert_array_equal(data.test_y, LABELS[30:])
    assert abs(float(data.train_x.mean())) < 1e-5


def test_two_arrays_are_cut_the_same_way_each_time(tmp_path):
    colour = RNG.random((40, 6, 5, 3))
    names = np.array(["ant", "bee", "cat", "dog"])[LABELS]
    file = written(tmp_path / "mine.npz", x=colour, y=names)
    data, again = zoo.load_files(file), zoo.load_files(file)
    assert data.shape == (6, 5, 3)
    assert data.class_names == ("ant", "bee", "cat", "dog")
    assert (data.length("train"), data.length("test")) == (32, 8)
    assert np.bincount(data.test_y).tolist() == [2, 2, 2, 2]
    assert data.fingerprint() == again.fingerprint()
    whole = np.concatenate([data.to_pixels(data.train_x), data.to_pixels(data.test_x)])
    assert np.sort(whole.ravel()) == pytest.approx(np.sort(colour.ravel()), abs=1e-5)
    for image, label in zip(data.test_x, data.test_y, strict=True):
        place = np.abs(colour - np.asarray(data.to_pixels(image))).reshape(40, -1).max(1).argmin()
        assert names[place] == data.class_names[label]


def test_names_of_classes(tmp_path):
    file = written(tmp_path / "a.npz", x=BYTES, y=LABELS, class_names=np.array(list("abcd")))
    assert zoo.load_files(file).class_names == ("a", "b", "c", "d")


def folder_of(path, classes=("bee", "ant"), count=5, size=(5, 6), mode="L"):
    for label, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for k in range(count):
            colour = 40 * label + k if mode == "L" else (40 * label + k, 3, 4)
            Image.new(mode, size, colour).save(path / name / f"{k}.png")
    return path


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_a_folder_of_images_for_each_class(tmp_path, mode, channels):
    data = zoo.load_files(folder_of(tmp_path / "pictures", mode=mode))
    assert (data.name, data.shape) == ("pictures", (6, 5, channels))
    assert data.class_names == ("ant", "bee")
    assert (data.length("train"), data.length("test")) == (8, 2)
    red = np.asarray(data.to_pixels(data.test_x))[:, 0, 0, 0] * 255
    assert [round(float(value)) // 40 for value in red] == [1 - label for label in data.test_y]


def test_a_folder_with_a_test_set(tmp_path):
    folder_of(tmp_path / "mine" / "train")
    folder_of(tmp_path / "mine" / "test", count=2)
    data = zoo.load_files(tmp_path / "mine")
    assert (data.length("train"), data.length("test")) == (10, 4)


def odd_size(path):
    folder_of(path)
    Image.new("L", (9, 9)).save(path / "ant" / "7.png")
    return path


def broken(path):
    folder_of(path)
    (path / "ant" / "7.png").write_bytes(b"no image")
    return path


def pickled(path):
    np.savez(path, x=np.array([{"a": 1}] * 4, dtype=object), y=LABELS[:4])
    return path


def no_zip(path):
    path.write_bytes(pickle.dumps([1, 2]))
    return path


@pytest.mark.parametrize(("make", "message"), [
    (lambda path: path / "none.npz", "does not exist; give an .npz file, or a folder of images"),
    (lambda path: no_zip(path / "a.npy"), "must be an .npz file, or a folder of images"),
    (lambda path: no_zip(path / "a.npz"), "is not an .npz file of arrays of numbers"),
    (lambda path: pickled(path / "a.npz"), "is not an .npz file of arrays.*nothing pickled is"),
    (lambda path: written(path / "a.npz", x=BYTES), "must hold train_x.*got x; y missing"),
    (lambda path: written(path / "a.npz", images=BYTES), "got images; train_x, train_y, test_x"),
    (lambda path: written(path / "a.npz", x=BYTES, y=LABELS[:9]), r"y must be \(N,\) labels"),
    (lambda path: written(path / "a.npz", x=BYTES / 9.0, y=LABELS), r"pixels must lie in \[0, 1\]"),
    (lambda path: written(path / "a.npz", x=BYTES[:, 0, 0], y=LABELS), r"\(N, H, W, channels\)"),
    (lambda path: written(path / "a.npz", x=BYTES, y=LABELS - 1), "labels must lie in 0 … 2, got"),
    (lambda path: written(path / "a.npz", x=BYTES, y=LABELS / 2), "labels must be whole numbers"),
    (lambda path: written(path / "a.npz", x=BYTES, y=LABELS * 999), "got one of 2997; number them"),
    (lambda path: written(path / "a.npz", x=BYTES[:4], y=LABELS[:4]), "at least 5 images of a"),
    (lambda path: written(path / "a.npz", x=BYTES, y=LABELS, class_names=np.array(["a"])),
     "labels must lie in 0 … 0"),
    (lambda path: path, "must hold one folder of images for each class, got no image"),
    (lambda path: odd_size(path / "a"), r"images must be of one size, got .* in 7\.png; resize"),
    (lambda path: broken(path / "a"), r"7\.png cannot be read as an image"),
])  # fmt: skip
def test_what_cannot_be_read_is_told(tmp_path, make, message):
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}"):
        zoo.load_files(make(tmp_path))
