"""The labelled data sets that one network is shown: its own, changed ones, and others.

All are in the units that the network takes, (pixels − mean) / std with its own constants.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.ndimage import gaussian_filter

from experiments.attack.baselines import fast_gradient
from experiments.ood.baselines import outputs
from foliax import zoo
from foliax.zoo.data.outliers import resized

OWN, PADDED = "own", "digits, padded"
_NOISE = {"noisy": 0.1, "very noisy": 0.4}  # deviations, pixel units
_BLUR = 20  # the side over this is the deviation of the blur, at least 0.75 pixels
_BLOCK = 256  # images of one compiled program
_SMALL = 28  # digits are enlarged and padded where there is room
_OF_OTHERS = ("mirrored", "permuted", "noisy", "adversarial")  # the papers' changes, of others too


class Labelled(NamedTuple):
    """Images (N, H, W, channels) and labels (N,) of both parts, and what they are in words."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    says: str


class Wanted(NamedTuple):
    """Images of both parts at most, length of the adversarial step over √n, and the seed."""

    train: int
    test: int
    budget: float
    seed: int


def labelled_sets(
    model: Any, dataset: Any, wanted: Wanted, others: tuple[str, ...]
) -> tuple[dict[str, Labelled], dict[str, str]]:
    """Return the sets by name, the network's own first, and why others are left out.

    `others` are names of `foliax.zoo` data sets beside those that need nothing.

    Raises:
        ValueError: If one of the others is the network's own.
        FileNotFoundError: If one of the others is not prepared.
    """
    if dataset.name in others:
        raise ValueError(f"others must not name the network's own data, {dataset.name!r}")
    train_x, train_y, test_x, test_y = _drawn(dataset, wanted)
    own = Labelled(train_x, train_y, test_x, test_y, f"{dataset.name}, as it is")
    changed = versions(model, dataset, own, wanted, (own.train_y, own.test_y))
    others_found, left_out = foreign(dataset, wanted, others)
    if PADDED in others_found:
        others_found |= padded_versions(model, dataset, others_found[PADDED], wanted)
    return {OWN: own} | changed | others_found, left_out


def _drawn(dataset: Any, wanted: Wanted) -> list[np.ndarray]:
    """Draw images of both parts; the test images begin with those of `Command.starts`."""
    parts = []
    for split, most in (("train", wanted.train), ("test", wanted.test)):
        order = np.random.default_rng(wanted.seed).permutation(dataset.length(split))
        parts += dataset.take(order[:most], split=split)
    return parts


def versions(
    model: Any, dataset: Any, known: Labelled, wanted: Wanted, against: tuple[Any, Any]
) -> dict[str, Labelled]:
    """Return a set changed in every way; adversarial steps are against given labels."""
    length = float(wanted.budget * np.sqrt(np.prod(dataset.shape)))
    blur = max(dataset.shape[0] / _BLUR, 0.75)
    says = {
        "mirrored": "left and right exchanged",
        "turned": "turned by 90 degrees",
        "inverted": "black and white exchanged",
        "permuted": "pixels in another order, the same in all images",
        **{name: f"Gaussian noise of {sigma} in pixel units" for name, sigma in _NOISE.items()},
        "adversarial": f"one step of length {length:.3g}, normalised units, against the log odds "
        "of the label",
        "blurred": f"blurred by a Gaussian of {blur:.3g} pixels",
    }
    if dataset.shape[0] != dataset.shape[1]:
        del says["turned"]
    train, test = (
        _changed(model, dataset, xs, labels, key, wanted.seed, length, blur)
        for xs, labels, key in zip(
            (known.train_x, known.test_x),
            against,
            (jax.random.fold_in(jax.random.key(wanted.seed), part) for part in range(2)),
            strict=True,
        )
    )
    return {
        name: Labelled(train[name], known.train_y, test[name], known.test_y, words)
        for name, words in says.items()
    }


def _changed(
    model: Any, dataset: Any, xs: Any, labels: Any, key: Any, seed: int, length: float, blur: float
) -> dict[str, np.ndarray]:
    """Return the images of one part in every version, by name."""
    order = np.random.default_rng((seed, 1)).permutation(xs[0, ..., 0].size)
    keys = jax.random.split(key, len(_NOISE))
    blocks = [slice(i, i + _BLOCK) for i in range(0, len(xs), _BLOCK)]
    found = {
        "mirrored": dataset.mirrored(xs),
        "turned": np.rot90(xs, axes=(1, 2)),
        "inverted": dataset.from_pixels(1 - dataset.to_pixels(xs)),
        "permuted": xs.reshape(len(xs), len(order), -1)[:, order].reshape(xs.shape),
        **{name: dataset.noisy(xs, _NOISE[name], k) for name, k in zip(_NOISE, keys, strict=True)},
        "adversarial": np.concatenate(
            [_attacked(model, xs[block], labels[block], length) for block in blocks]
        ),
        "blurred": gaussian_filter(xs, (0, blur, blur, 0), mode="nearest"),
    }
    return {name: np.asarray(images, np.float32) for name, images in found.items()}


def padded_versions(
    model: Any, dataset: Any, known: Labelled, wanted: Wanted
) -> dict[str, Labelled]:
    """Return the padded digits, changed; the adversarial steps are against the class predicted."""
    predicted = [np.argmax(outputs(model, xs), axis=1) for xs in (known.train_x, known.test_x)]
    found = versions(model, dataset, known, wanted, (predicted[0], predicted[1]))
    return {
        f"padded, {change}": found[change]._replace(
            says=f"the same, {found[change].says.replace('the label', 'the class predicted')}"
        )
        for change in _OF_OTHERS
    }


@jax.jit
def _attacked(model: Any, xs: Any, labels: Any, length: Any) -> jax.Array:
    step = partial(fast_gradient, model, budget=length)
    return jax.vmap(lambda x, label: step(x, label=label))(xs, labels).astype(xs.dtype)


def foreign(
    dataset: Any, wanted: Wanted, others: tuple[str, ...]
) -> tuple[dict[str, Labelled], dict[str, str]]:
    """Return other data sets in the shape of the network's own, and why some are left out."""
    found, left_out = {}, {}
    if dataset.name != "digits":
        digits = zoo.load_digits()
        found["digits"] = _fitted(digits, dataset, wanted, "scikit-learn's digits, enlarged")
        if min(dataset.shape[:2]) >= _SMALL:
            says = "scikit-learn's digits, in the middle of a black image"
            found[PADDED] = _fitted(digits, dataset, wanted, says, pad=True)
    else:
        try:
            fashion = zoo.load_dataset("fashion_mnist")
            found["fashion_mnist"] = _fitted(fashion, dataset, wanted, "Fashion-MNIST, shrunk")
        except (ImportError, FileNotFoundError) as error:
            left_out["fashion_mnist"] = str(error)
    cuts = zoo.load_photographs(num_train=wanted.train, num_test=wanted.test, seed=wanted.seed)
    says = "squares of scikit-image's photographs, labelled by photograph"
    found["photographs"] = _fitted(cuts, dataset, wanted, says)
    for name in (name for name in others if name not in found):
        found[name] = _fitted(zoo.load_dataset(name), dataset, wanted, f"{name}, resized")
    return found, left_out


def _fitted(source: Any, dataset: Any, wanted: Wanted, says: str, *, pad: bool = False) -> Labelled:
    """Return images of another data set in the shape and the units of the network's own."""
    train_x, train_y, test_x, test_y = _drawn(source, wanted)
    train_x, test_x = (
        np.asarray(dataset.from_pixels(in_shape(source.to_pixels(xs), dataset.shape, pad=pad)))
        for xs in (train_x, test_x)
    )
    return Labelled(train_x, train_y, test_x, test_y, says)


def in_shape(pixels: Any, shape: tuple[int, ...], *, pad: bool = False) -> np.ndarray:
    """Return images in [0, 1] with the sides and channels wanted, in float32.

    They are resized, or with `pad` left as they are in the middle of a black image.
    """
    from skimage.color import rgb2gray  # slow to import

    pixels = np.clip(np.asarray(pixels), 0, 1)
    if shape[2] == 1 and pixels.shape[3] == 3:
        pixels = rgb2gray(pixels)[..., None]
    if pad:
        spare = [extent - had for extent, had in zip(shape[:2], pixels.shape[1:3], strict=True)]
        edges = [(gap // 2, gap - gap // 2) for gap in spare]
        pixels = np.pad(pixels, [(0, 0), *edges, (0, 0)])
    elif pixels.shape[1:3] != shape[:2]:
        channels = [resized(pixels[..., c], shape) for c in range(pixels.shape[3])]
        pixels = np.concatenate(channels, axis=-1)
    return np.broadcast_to(pixels, (*pixels.shape[:3], shape[2])).astype(np.float32)
