"""How noisy an image looks: a Laplacian reading, calibrated on known noise.

On 8x8 digits no estimator reads noise absolutely: strokes are as fine as noise. So a reading is
compared with those of clean images to which noise of known sigma was added, over a whole
population, and turned into the sigma that would have given it.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import foliax

# Immerkær, Fast noise variance estimation, Computer Vision and Image Understanding 64(2), 1996:
# the difference of two Laplacians; blind to constants and slopes, of norm 6 on white noise.
_MASK = np.array([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])


def readings(images: Any) -> np.ndarray:
    """Return the Laplacian reading of each image, (N, H, W, channels) in pixel units.

    Of a flat image with white noise of deviation sigma it is sigma on average; strokes add to it.
    """
    images = np.asarray(images, dtype=np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2))
    filtered = np.einsum("nhwcij,ij->nhwc", windows, _MASK)
    return np.sqrt(np.pi / 2) / 6 * np.abs(filtered).mean(axis=(1, 2, 3))


@dataclass(frozen=True)
class Calibration:
    """The mean reading of a population against the sigma that was added to it.

    Attributes:
        sigmas: Deviations of the added noise, pixel units, from 0 upwards.
        means: Mean reading at each.
    """

    sigmas: np.ndarray
    means: np.ndarray

    def sigma(self, mean_reading: Any) -> np.ndarray:
        """Return the sigma equivalent to a mean reading; 0 at or below that of clean images."""
        return np.interp(np.asarray(mean_reading, dtype=np.float64), self.means, self.sigmas)


def calibrate(dataset: Any, seed: int, num_images: int, sigmas: tuple[float, ...]) -> Calibration:
    """Measure the calibration on the first test images of a data set."""
    images, means = jnp.asarray(dataset.test_x[:num_images]), []
    for i, sigma in enumerate(sigmas):
        key = jax.random.fold_in(jax.random.key(seed), i)
        noisy = dataset.noisy(images, sigma, key) if sigma else images
        means.append(readings(dataset.to_pixels(noisy)).mean())
    # A mean over few images may dip by chance; np.interp needs an increasing curve.
    return Calibration(np.asarray(sigmas), np.maximum.accumulate(means))


def path_readings(paths: Any, dataset: Any) -> np.ndarray:
    """Return the reading of every point of a population of paths, (paths, rows)."""
    points = dataset.to_pixels(np.asarray(paths.points))
    flat = readings(points.reshape(-1, *points.shape[2:]))
    return flat.reshape(points.shape[:2])


def rms(displacements: Any, std: float) -> np.ndarray:
    """Return root mean squares over the pixels of (..., H, W, channels), in pixel units."""
    squares = np.square(np.asarray(displacements, dtype=np.float64)).mean(axis=(-3, -2, -1))
    return std * np.sqrt(squares)


@jax.jit
def kernel_parts(model: Any, origins: Any, points: Any) -> Any:
    """Split off the noise of each path: the part of x - origin in ker G at its origin.

    Args:
        model: The classifier.
        origins: (paths, H, W, channels).
        points: (paths, rows, H, W, channels).

    Returns:
        As points.
    """

    def one(pair: Any) -> Any:
        origin, rows = pair
        return jax.vmap(lambda x: foliax.project_kernel(model, origin, x - origin))(rows)

    return jax.lax.map(one, (origins, points), batch_size=16)


def at_displacement(displacement: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return, for each path, the row whose displacement is nearest to the one wanted."""
    return np.abs(displacement - wanted[:, None]).argmin(axis=1)
