"""Noise is read, converted and profiled alike for grey and colour images, small and large."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.harness import noise
from foliax import zoo

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
def test_large_images_are_read_by_wavelets(shape):
    white = RNG.normal(0.5, 0.1, (20, *shape))
    assert noise.estimator(shape) == "estimate_sigma"
    # Some 200 finest details an image: the mean over 20 is known to 2 %, and the edges take 5 %.
    assert noise.readings(white).mean() == pytest.approx(0.1, rel=0.1)
    assert noise.whole_readings(white).mean() == pytest.approx(0.1, rel=0.1)


def test_small_images_are_read_by_the_laplacian():
    images = RNG.random((4, 8, 8, 1))
    assert noise.estimator((8, 8, 1)) == "Laplacian"
    np.testing.assert_array_equal(noise.readings(images), noise.laplacian(images))
    np.testing.assert_array_equal(noise.whole_readings(images), noise.laplacian(images))


def test_flat_ground_counts_in_the_reading_of_the_whole():
    image = np.zeros((1, 28, 28, 1))
    image[:, 8:20, 8:20] = RNG.normal(0.5, 0.1, (12, 12, 1))
    assert noise.readings(image)[0] > 0.05  # the textured part alone
    assert noise.whole_readings(image)[0] < 0.02
    assert noise.readings(0 * image)[0] == 0  # nothing to read, and no warning


def test_rms_takes_a_deviation_for_each_channel():
    displacements = np.ones((2, 5, 4, 4, 3))
    std = np.array([1.0, 2.0, 3.0], np.float32)
    found = noise.rms(displacements, std)
    assert found.shape == (2, 5)
    np.testing.assert_allclose(found, np.sqrt(14 / 3))
    np.testing.assert_allclose(noise.rms(displacements, 0.5), 0.5)


def test_calibration_of_large_images_gives_back_the_noise_added():
    pixels = np.full((30, 28, 28, 1), 0.5) + RNG.normal(0, 0.01, (30, 28, 28, 1))
    labels = np.arange(30) % 2
    data = zoo.from_arrays("flat", (pixels, labels), (pixels, labels), class_names=("a", "b"))
    known = noise.calibrate(data, 0, 30, (0.0, 0.05, 0.1, 0.2))
    assert (np.diff(known.means) > 0).all()
    noisy = data.noisy(data.test_x, 0.07, jax.random.key(3))
    reading = noise.whole_readings(data.to_pixels(noisy)).mean()
    assert known.sigma(reading) == pytest.approx(0.07, abs=0.01)


def test_a_path_is_read_up_to_its_end_and_repeated():
    points = RNG.random((2, 4, 8, 8, 1))
    points[:, 3] = points[:, 2]
    paths = SimpleNamespace(points=points, steps=np.array([[0, 5, 7, 7], [0, 5, 7, 7]]))
    data = SimpleNamespace(to_pixels=lambda x: x)
    found = noise.path_readings(paths, data, whole=False)
    np.testing.assert_allclose(found, [noise.laplacian(row) for row in points])
