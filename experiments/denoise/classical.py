"""Noises, the denoisers that people use, and how all are tuned and measured.

Everything here is scikit-image's, scikit-learn's or SciPy's, and works on pixels: images
(N, H, W, channels) with 0 for black and 1 for white.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

NOISES = {
    "gaussian": "white noise of this deviation, pixel range",
    "salt": "salt and pepper, share of the pixels",
    "blur": "Gaussian blur of this radius, pixels",
}
_MOST_COMPONENTS = 300


def corrupt(pixels: Any, noise: str, strength: float, seed: int) -> np.ndarray:
    """Return images with a noise of `NOISES`; white noise is not clipped, as denoisers assume."""
    from skimage.filters import gaussian  # slow to import
    from skimage.util import random_noise

    pixels = np.asarray(pixels, dtype=np.float64)
    if noise == "gaussian":
        return random_noise(pixels, mode="gaussian", var=strength**2, clip=False, rng=seed)
    if noise == "salt":
        return random_noise(pixels, mode="s&p", amount=strength, rng=seed)
    return np.stack([gaussian(image, strength, channel_axis=-1) for image in pixels])


class Denoiser(NamedTuple):
    """A way to denoise, with the one parameter that is tuned."""

    # From (noisy pixels, parameter) to denoised pixels.
    apply: Callable[[np.ndarray, Any], np.ndarray]
    grid: Sequence[Any]  # Values of the parameter to choose from

    def tuned(self, noisy: np.ndarray, clean: np.ndarray) -> Any:
        """Return the parameter of the highest mean PSNR on training images."""
        if len(self.grid) == 1:
            return self.grid[0]
        return max(self.grid, key=lambda value: psnr(self.apply(noisy, value), clean).mean())


def denoisers(training: np.ndarray) -> dict[str, Denoiser]:
    """Return the classical denoisers by name; clean training images give principal components."""
    from scipy.ndimage import median_filter
    from skimage import filters, restoration

    small = min(training.shape[1:3]) < 16
    patches = {"patch_size": 3, "patch_distance": 4 if small else 8, "fast_mode": True}
    wavelet = partial(restoration.denoise_wavelet, wavelet="haar", rescale_sigma=False)
    strengths = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)
    weights = (0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8)
    deviations = (0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
    means = partial(restoration.denoise_nl_means, **patches)
    return {
        "noisy input": Denoiser(lambda images, _: images, (None,)),
        "Gaussian filter": _each(filters.gaussian, "sigma", (0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0)),
        "median filter": Denoiser(
            lambda images, size: median_filter(images, size=(1, size, size, 1), mode="nearest"),
            (1, 3, 5),
        ),
        "total variation (Chambolle)": _each(restoration.denoise_tv_chambolle, "weight", weights),
        "non-local means": _each(means, "h", strengths),
        "wavelets (BayesShrink)": _each(wavelet, "sigma", deviations),
        "PCA of the training set": _components(training),
    }


def _each(function: Callable, name: str, grid: Sequence[float]) -> Denoiser:
    """Return what applies a function with a named parameter to one image after the other."""

    def apply(images: np.ndarray, value: Any) -> np.ndarray:
        made = [function(image, channel_axis=-1, **{name: value}) for image in images]
        return np.reshape(made, images.shape)  # some leave out a single channel

    return Denoiser(apply, grid)


def deconvolution(blur: float, shape: Sequence[int]) -> Denoiser:
    """Return Richardson-Lucy deconvolution with the radius of the blur known."""
    from skimage.filters import gaussian
    from skimage.restoration import richardson_lucy

    point = np.zeros([2 * (side // 2) + 1 for side in shape[:2]])
    point[tuple(side // 2 for side in point.shape)] = 1
    spread = gaussian(point, blur)[..., None]

    def apply(images: np.ndarray, steps: int) -> np.ndarray:
        return np.stack([richardson_lucy(image, spread, num_iter=steps) for image in images])

    return Denoiser(apply, (1, 3, 10, 30, 100))


def _components(training: np.ndarray) -> Denoiser:
    from sklearn.decomposition import PCA

    flat = training.reshape(len(training), -1)
    most = min(_MOST_COMPONENTS, *flat.shape)
    solver = "full" if most == flat.shape[1] else "randomized"
    fitted = PCA(most, svd_solver=solver, random_state=0).fit(flat)

    def apply(images: np.ndarray, count: int) -> np.ndarray:
        codes = fitted.transform(images.reshape(len(images), -1))
        codes[:, count:] = 0
        return fitted.inverse_transform(codes).reshape(images.shape)

    grid = [count for count in (2, 4, 6, 9, 13, 18, 25, 35, 50, 80, 120, 200, 300) if count <= most]
    return Denoiser(apply, grid)


def psnr(images: Any, clean: Any) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each image in dB, after clipping to [0, 1].

    At most 60 dB, which an image reaches that comes back to a thousandth of the pixel range.
    """
    errors = (np.clip(images, 0, 1) - np.asarray(clean, np.float64)) ** 2
    return -10 * np.log10(np.maximum(errors.reshape(len(errors), -1).mean(axis=1), 1e-6))


def ssim(images: Any, clean: Any) -> np.ndarray:
    """Return the structural similarity of each image, after clipping to [0, 1]."""
    from skimage.metrics import structural_similarity

    pairs = zip(np.asarray(clean, np.float64), np.clip(images, 0, 1), strict=True)
    return np.array([structural_similarity(a, b, data_range=1, channel_axis=-1) for a, b in pairs])
