"""Trained weights that come with foliax."""

import importlib.resources
from typing import Any, Final

from flax import nnx

from foliax.zoo.checkpoints import load_npz

# Each with the data set that it was trained on.
SHIPPED: Final = {"digits_mlp": "digits", "mnist_cnn": "mnist_5k"}


def load(name: str) -> nnx.Module:
    """Return a trained model that comes with foliax.

    Args:
        name: "mnist_cnn", a small convolutional network for `load_mnist_5k` (`zoo.small_cnn`), or
            "digits_mlp", an MLP 64-48-10 for `load_digits`; both partially trained.

    Returns:
        The model.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> load("digits_mlp").config["sizes"]
        [64, 48, 10]
    """
    return _load_shipped(name)[0]


def load_metadata(name: str) -> dict[str, Any]:
    """Return how a shipped model was trained and chosen.

    Args:
        name: As in `load`.

    Returns:
        Data set, training configuration, epoch, test accuracy, mean trace and the rule of choice.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> load_metadata("digits_mlp")["dataset"]
        'digits'
    """
    return _load_shipped(name)[1]


def _load_shipped(name: str) -> tuple[nnx.Module, dict[str, Any]]:
    if name not in SHIPPED:
        raise ValueError(f"name must be one of {', '.join(map(repr, SHIPPED))}, got {name!r}")
    file = importlib.resources.files("foliax.zoo") / "weights" / f"{name}.npz"
    with importlib.resources.as_file(file) as path:
        return load_npz(path)
