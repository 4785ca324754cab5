"""The data: normalisation, the box, noise, and a split that never changes."""

import hashlib

import jax
import numpy as np
import pytest

from foliax import zoo


@pytest.fixture(scope="module")
def digits():
    return zoo.load_digits()


def test_split_is_fixed(digits):
    labels = np.concatenate([digits.train_y, digits.test_y]).astype(np.uint8).tobytes()
    assert hashlib.sha256(labels).hexdigest()[:16] == "99c3fa75ee18cae9"
    assert digits.fingerprint() == zoo.load_dataset("digits").fingerprint()


def test_shapes_and_types(digits):
    assert digits.train_x.shape == (1437, 8, 8, 1)
    assert digits.test_x.shape == (360, 8, 8, 1)
    assert digits.shape == (8, 8, 1)
    assert digits.train_x.dtype == digits.test_x.dtype == np.float32
    assert digits.train_y.dtype == digits.test_y.dtype == np.int32
    assert digits.num_classes == len(digits.class_names) == 10
    assert set(digits.test_y) == set(range(10))


def test_training_images_are_standardised(digits):
    assert abs(digits.train_x.mean(dtype=np.float64)) < 1e-6
    assert abs(digits.train_x.std(dtype=np.float64) - 1) < 1e-6


def test_box_is_what_pixels_reach(digits):
    assert float(digits.box.lower) == digits.train_x.min()
    assert float(digits.box.upper) == digits.train_x.max()
    for images in (digits.train_x, digits.test_x):
        assert float(digits.box.excess(images)) == 0


def test_pixels_round_trip(digits):
    pixels = digits.to_pixels(digits.test_x)
    np.testing.assert_allclose(pixels * 16, np.rint(pixels * 16), atol=1e-5)
    np.testing.assert_allclose(digits.from_pixels(pixels), digits.test_x, atol=1e-6)
    assert float(digits.to_pixels(digits.box.upper + 1.0)) > 1  # nothing is clipped


def test_mirrored_exchanges_left_and_right(digits):
    x = digits.test_x[:3]
    np.testing.assert_array_equal(digits.mirrored(x)[:, :, 0], x[:, :, 7])
    np.testing.assert_array_equal(digits.mirrored(digits.mirrored(x[0])), x[0])
    with pytest.raises(ValueError, match="H, W, channels"):
        digits.mirrored(x[0, ..., 0])


def test_noise_has_the_deviation_asked_for_in_pixels(digits):
    x = digits.test_x
    key = jax.random.key(0)
    noise = digits.to_pixels(digits.noisy(x, 0.2, key)) - digits.to_pixels(x)
    assert abs(float(noise.std()) - 0.2) < 0.004  # 23,040 numbers: four standard errors
    assert digits.noisy(x, 0.2, key).dtype == x.dtype
    np.testing.assert_array_equal(digits.noisy(x, 0.2, key), digits.noisy(x, 0.2, key))
    np.testing.assert_array_equal(digits.noisy(x, 0.0, key), x)


def test_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match="one of 'digits', got 'mnist'"):
        zoo.load_dataset("mnist")


@pytest.mark.parametrize(
    ("pixels", "labels", "match"),
    [
        (np.zeros((2, 6, 6)), np.zeros(2, int), "N, H, W, channels"),
        (np.zeros((2, 6, 6, 1)), np.zeros(3, int), r"\(N,\) labels"),
        (np.full((2, 6, 6, 1), 255.0), np.zeros(2, int), "divide bytes by 255"),
        (np.full((2, 6, 6, 1), np.nan), np.zeros(2, int), r"lie in \[0, 1\]"),
        (np.zeros((2, 6, 6, 1)), np.array([0, 2]), "labels must lie in 0 … 1"),
    ],
)
def test_wrong_arrays_are_named(pixels, labels, match):
    good = np.random.default_rng(0).random((2, 6, 6, 1)), np.array([0, 1])
    with pytest.raises(ValueError, match=match):
        zoo.from_arrays("toy", good, (pixels, labels), class_names=("a", "b"))
