"""How noisy an image looks: an estimate of its noise, calibrated on known noise.

From 16 pixels a side on, scikit-image's `estimate_sigma` reads the finest wavelet details (Donoho &
Johnstone 1994). It leaves exact zeros out, that is flat ground, of which a clean image may have
much and a point beside it none: the two are then read on different pixels. So there is a second
reading, of the whole image, for which pixels are first moved at random within one grey level.

Smaller images have no details to spare, as strokes are as fine as noise; there a Laplacian reads,
always of the whole image. No reading is absolute: texture counts as noise. So it is compared with
those of clean images to which noise of known sigma was added, over a whole population, and turned
into the sigma that would have given it.
"""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import foliax

SAME = 0.025  # largest change of a level that still counts as none, pixel range
SIGMAS = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)  # of the known noise, pixel range
_WAVELETS_FROM = 16  # pixels a side
_CALIBRATED_ON = 1000  # images at most
_GREY_LEVEL = 1 / 255

# Immerkær, Fast noise variance estimation, Computer Vision and Image Understanding 64(2), 1996:
# the difference of two Laplacians; blind to constants and slopes, of norm 6 on white noise.
_MASK = np.array([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])


def estimator(shape: tuple[int, ...]) -> str:
    """Return the name of the estimator that reads images (…, H, W, channels) of this shape."""
    return "estimate_sigma" if min(shape[-3:-1]) >= _WAVELETS_FROM else "Laplacian"


def readings(images: Any) -> np.ndarray:
    """Return the reading of each image, (N, H, W, channels) in pixel units.

    Of a flat image with white noise of deviation sigma it is sigma; strokes and texture add to it.
    """
    images = np.asarray(images, dtype=np.float64)
    if estimator(images.shape) == "Laplacian":
        return laplacian(images)
    return np.array([_wavelets(image) for image in images])


def whole_readings(images: Any) -> np.ndarray:
    """Return the reading of each image with flat ground counted, the same pixels in all."""
    images = np.asarray(images, dtype=np.float64)
    if estimator(images.shape) == "Laplacian":
        return laplacian(images)
    # The same in all images, and always: equal images read alike.
    moves = _GREY_LEVEL * np.random.default_rng(0).uniform(-0.5, 0.5, images.shape[1:])
    return readings(images + moves)


def _wavelets(image: np.ndarray) -> float:
    """Return `estimate_sigma` of one image, the mean over its channels; 0 of a flat one."""
    from skimage.restoration import estimate_sigma  # slow to import

    with warnings.catch_warnings():
        # Exact zeros are left out as flat ground; where nothing is left, a median of nothing.
        warnings.simplefilter("ignore", RuntimeWarning)
        sigmas = estimate_sigma(image, channel_axis=-1, average_sigmas=False)
    return float(np.mean(np.nan_to_num(sigmas)))


def laplacian(images: Any) -> np.ndarray:
    """Return the mean absolute Laplacian of each image, scaled to read white noise as its sigma."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2))
    filtered = np.einsum("nhwcij,ij->nhwc", windows, _MASK)
    return np.sqrt(np.pi / 2) / 6 * np.abs(filtered).mean(axis=(1, 2, 3))


class Calibration(NamedTuple):
    """The mean reading of whole images against the deviation of the noise added, from 0 up."""

    sigmas: np.ndarray
    means: np.ndarray

    def sigma(self, mean_reading: Any) -> np.ndarray:
        """Return the sigma equivalent to a mean reading; 0 at or below that of clean images."""
        return np.interp(np.asarray(mean_reading, dtype=np.float64), self.means, self.sigmas)


def calibrate(
    dataset: Any, seed: int, num_images: int, sigmas: tuple[float, ...] = SIGMAS
) -> Calibration:
    """Measure the calibration on the first test images of a data set, a thousand at most."""
    images, means = jnp.asarray(dataset.test_x[: min(num_images, _CALIBRATED_ON)]), []
    for i, sigma in enumerate(sigmas):
        key = jax.random.fold_in(jax.random.key(seed), i)
        noisy = dataset.noisy(images, sigma, key) if sigma else images
        means.append(whole_readings(dataset.to_pixels(noisy)).mean())
    # A mean over few images may dip by chance; np.interp needs an increasing curve.
    return Calibration(np.asarray(sigmas), np.maximum.accumulate(means))


def path_readings(paths: Any, dataset: Any, *, whole: bool) -> np.ndarray:
    """Return the reading of every point, (paths, rows); `whole` counts flat ground."""
    read = whole_readings if whole else readings
    points = np.asarray(dataset.to_pixels(np.asarray(paths.points)))
    found = np.empty(points.shape[:2])
    for one, steps, row in zip(points, np.asarray(paths.steps), found, strict=True):
        # Past its end a path repeats its last point: read that once.
        live = 1 + int(np.argmax(steps == steps[-1]))
        row[:live] = read(one[:live])
        row[live:] = row[live - 1]
    return found


def rms(displacements: Any, std: Any) -> np.ndarray:
    """Return root mean squares over the pixels of (..., H, W, channels), in pixel units."""
    squares = np.square(np.asarray(displacements, dtype=np.float64) * np.asarray(std))
    return np.sqrt(squares.mean(axis=(-3, -2, -1)))


@jax.jit
def kernel_parts(model: Any, origins: Any, points: Any) -> Any:
    """Return the part of x − origin in ker G at the origin, for points (paths, rows, …)."""

    def one(pair: Any) -> Any:
        origin, rows = pair
        return jax.vmap(lambda x: foliax.project_kernel(model, origin, x - origin))(rows)

    return jax.lax.map(one, (origins, points), batch_size=16)
