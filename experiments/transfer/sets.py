"""The labelled data sets that one network is shown: its own, changed ones, and others.

All are in the units that the network takes, (pixels − mean) / std with its own constants.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter

from experiments.harness.photographs import photographs
from experiments.ood.baselines import outputs
from experiments.ood.data import resized
from foliax import zoo

OWN, PADDED = "own", "digits, padded"
_NOISE = {"noisy": 0.1, "very noisy": 0.4}  # deviations, pixel units
_BLUR = 20  # the side over this is the deviation of the blur, at least 0.75 pixels
_BLOCK = 256  # images of one compiled program
_SMALL = 28  # digits are enlarged and padded where there is room
_OF_OTHERS = ("mirrored", "permuted", "noisy", "adversarial")  # the papers' changes, of others too


class Labelled(NamedTuple):
    """A labelled data set.

    Attributes:
        train_x: (N, H, W, channels).
        train_y: (N,).
        test_x: (M, H, W, channels).
        test_y: (M,).
        says: What it is.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    says: str


class Wanted(NamedTuple):
    """How much of every set, and how it is drawn.

    Attributes:
        train: Training images at most.
        test: Test images at most.
        budget: Length of the adversarial step over √n.
        seed: Draws everything.
    """

    train: int
    test: int
    budget: float
    seed: int


def labelled_sets(
    model: Any, dataset: Any, wanted: Wanted, others: tuple[str, ...]
) -> tuple[dict[str, Labelled], dict[str, str]]:
    """Return the sets by name, the network's own first, and why others are left out.

    Args:
        model: The network; the adversarial steps are against it.
        dataset: What it was trained on.
        wanted: How much is drawn.
        others: Names of `foliax.zoo` data sets beside those that need nothing.

    Raises:
        ValueError: If one of the others is the network's own.
        FileNotFoundError: If one of the others is not prepared.
    """
    if dataset.name in others:
        raise ValueError(f"others must not name the network's own data, {dataset.name!r}")
    own = Labelled(*_drawn(dataset, wanted), f"{dataset.name}, as it is")
    says = _changes(dataset, wanted)
    train = _changed(model, dataset, own.train_x, own.train_y, wanted, 0, names=tuple(says))
    test = _changed(model, dataset, own.test_x, own.test_y, wanted, 1, names=tuple(says))
    found = {OWN: own} | {
        name: Labelled(train[name], own.train_y, test[name], own.test_y, says[name])
        for name in says
    }
    foreign, left_out = _foreign(dataset, wanted, others)
    if PADDED in foreign:
        foreign |= _versions(model, dataset, "padded", foreign[PADDED], wanted)
    return found | foreign, left_out


def _drawn(dataset: Any, wanted: Wanted) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw images of both parts; the test images begin with those of `Command.starts`."""
    parts = []
    for split, most in (("train", wanted.train), ("test", wanted.test)):
        order = np.random.default_rng(wanted.seed).permutation(dataset.length(split))
        parts += dataset.take(order[:most], split=split)
    return tuple(parts)


# --- changed -----------------------------------------------------------------------------------


def _changes(dataset: Any, wanted: Wanted) -> dict[str, str]:
    """Say what each change is, by name."""
    says = {
        "mirrored": "left and right exchanged",
        "turned": "turned by 90 degrees",
        "inverted": "black and white exchanged",
        "permuted": "pixels in another order, the same in all images",
        **{name: f"Gaussian noise of {sigma} in pixel units" for name, sigma in _NOISE.items()},
        "adversarial": f"one step of length {_length(dataset, wanted):.3g}, normalised units, "
        "against the log odds of the label",
        "blurred": f"blurred by a Gaussian of {_blur(dataset):.3g} pixels",
    }
    if dataset.shape[0] != dataset.shape[1]:
        del says["turned"]
    return says


def _changed(
    model: Any, dataset: Any, xs: np.ndarray, labels: np.ndarray, wanted: Wanted, part: int, *,
    names: tuple[str, ...],
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return the images of the training part (0) or the test part (1), changed, by name."""
    order = np.random.default_rng((wanted.seed, 1)).permutation(xs[0, ..., 0].size)
    pixels = xs.reshape(len(xs), len(order), -1)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(wanted.seed), part), len(_NOISE))
    length, blur = _length(dataset, wanted), _blur(dataset)
    blocks = [slice(i, i + _BLOCK) for i in range(0, len(xs), _BLOCK)]
    ways: dict[str, Any] = {
        "mirrored": lambda: dataset.mirrored(xs),
        "turned": lambda: np.rot90(xs, axes=(1, 2)),
        "inverted": lambda: dataset.from_pixels(1 - dataset.to_pixels(xs)),
        "permuted": lambda: pixels[:, order].reshape(xs.shape),
        **{
            name: partial(dataset.noisy, xs, sigma, key)
            for (name, sigma), key in zip(_NOISE.items(), keys, strict=True)
        },
        "adversarial": lambda: np.concatenate(
            [_attacked(model, xs[b], labels[b], length) for b in blocks]
        ),
        "blurred": lambda: gaussian_filter(xs, (0, blur, blur, 0), mode="nearest"),
    }
    return {name: np.asarray(ways[name](), np.float32) for name in names}


def _versions(
    model: Any, dataset: Any, name: str, known: Labelled, wanted: Wanted
) -> dict[str, Labelled]:
    """Return another data set, changed; the adversarial steps are against the class predicted."""
    train, test = (
        _changed(
            model,
            dataset,
            xs,
            np.argmax(outputs(model, xs), axis=1),
            wanted,
            part,
            names=_OF_OTHERS,
        )
        for part, xs in enumerate((known.train_x, known.test_x))
    )
    says = _changes(dataset, wanted)
    return {
        f"{name}, {change}": Labelled(
            train[change], known.train_y, test[change], known.test_y,
            f"the same, {says[change].replace('the label', 'the class predicted')}",
        )
        for change in _OF_OTHERS
    }  # fmt: skip


def _length(dataset: Any, wanted: Wanted) -> float:
    return float(wanted.budget * np.sqrt(np.prod(dataset.shape)))


def _blur(dataset: Any) -> float:
    return max(dataset.shape[0] / _BLUR, 0.75)


@jax.jit
def _attacked(model: Any, xs: Any, labels: Any, length: Any) -> jax.Array:
    def odds(x: jax.Array, label: jax.Array) -> jax.Array:
        # Along its gradient lies that of the cross-entropy, which is rounded to zero where p = 1.
        logits = model(x)
        others = jnp.where(jnp.arange(len(logits)) == label, -jnp.inf, logits)
        return logits[label] - jax.nn.logsumexp(others)

    def one(x: jax.Array, label: jax.Array) -> jax.Array:
        slope = jax.grad(odds)(x, label)
        size = jnp.linalg.norm(slope.ravel())
        return x - length * slope / jnp.where(size > 0, size, 1)

    return jax.vmap(one)(jnp.asarray(xs), jnp.asarray(labels)).astype(xs.dtype)


# --- others ------------------------------------------------------------------------------------


def _foreign(
    dataset: Any, wanted: Wanted, others: tuple[str, ...]
) -> tuple[dict[str, Labelled], dict[str, str]]:
    found, left_out = {}, {}
    side = min(dataset.shape[:2])
    if dataset.name != "digits":
        digits = zoo.load_digits()
        found["digits"] = _fitted(digits, dataset, wanted, "scikit-learn's digits, enlarged")
        if side >= _SMALL:
            says = "scikit-learn's digits, in the middle of a black image"
            found[PADDED] = _fitted(digits, dataset, wanted, says, pad=True)
    else:
        try:
            fashion = zoo.load_dataset("fashion_mnist")
        except (ImportError, FileNotFoundError) as error:
            left_out["fashion_mnist"] = str(error)
        else:
            found["fashion_mnist"] = _fitted(fashion, dataset, wanted, "Fashion-MNIST, shrunk")
    cuts = photographs(num_train=wanted.train, num_test=wanted.test, seed=wanted.seed)
    says = "squares of scikit-image's photographs, labelled by photograph"
    found["photographs"] = _fitted(cuts, dataset, wanted, says)
    for name in others:
        if name not in found:
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
    """Return images with the sides and channels wanted.

    Args:
        pixels: (N, h, w, 1 or 3) in [0, 1].
        shape: (H, W, 1 or 3).
        pad: Leave them as they are in the middle of a black image, rather than resize them.

    Returns:
        (N, H, W, 1 or 3) in float32.
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
        pixels = np.concatenate(
            [resized(pixels[..., c], shape) for c in range(pixels.shape[3])], axis=-1
        )
    return np.broadcast_to(pixels, (*pixels.shape[:3], shape[2])).astype(np.float32)
