"""Where the networks of `rank_table` come from, and what is said of those that are not at hand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness.populations import quartiles
from foliax import zoo
from foliax.zoo import checkpoints

# Of ranks, relative to the largest eigenvalue.
TOLERANCES = {"default": None, "1e-2": 1e-2, "1e-4": 1e-4, "1e-6": 1e-6}
_INTERNET = "needs the internet: "


class Known(NamedTuple):
    """A line of the slides' table: n, C, the network that is trained, and what comes before."""

    n: int
    num_classes: int
    net: str = "cnn"
    lacks: str = _INTERNET


KNOWN: Mapping[str, Known] = {
    "digits": Known(64, 10),
    "mnist": Known(784, 10),
    "fashion_mnist": Known(784, 10, lacks="python -m foliax.zoo.prepare fashion_mnist, "),
    "cifar10": Known(3072, 10, "colour_cnn"),
    "cifar100": Known(3072, 100, "colour_cnn"),
    "imagenet": Known(150_528, 1000),
}


class Source(NamedTuple):
    """A trained network, in words and itself, and stacked inputs to measure it at."""

    network: str
    model: Any
    xs: Any


def shipped(limit: int) -> Source:
    """Return the network that comes with foliax."""
    data, model = zoo.load_digits(), zoo.load("digits_mlp")
    return Source("digits_mlp, as shipped", model, data.test_x[:limit])


def from_training(name: str, folder: Path, limit: int) -> Source:
    """Return the newest network of a training of `experiments.train`, and test images.

    Raises:
        ValueError: If it is a training on another data set.
        FileNotFoundError: If there is none, or the data set is not prepared.
    """
    epoch = zoo.epochs(folder)[-1]
    stored = checkpoints.read(folder, epoch)
    assert stored is not None  # an epoch asked for is read, or an error is raised
    trained_on = stored.info.get("training", {}).get("dataset")
    if trained_on != name:
        raise ValueError(f"{name} must be a training on {name}, got one on {trained_on}")
    xs = zoo.load_dataset(name).test_x[:limit]
    kind = stored.architecture["kind"]
    return Source(f"{kind}, epoch {epoch}", zoo.restore(folder, epoch), xs)


def missing(name: str) -> str:
    """Say what makes the network that is not at hand."""
    known, option = KNOWN[name], name.replace("_", "-")
    if name == "imagenet":
        return (
            "pip install 'foliax[imagenet]', python -m experiments.imagenet --out DIR, then "
            "--imagenet DIR/results.json"
        )
    return (
        f"{known.lacks}python -m experiments.train --dataset {name} --net {known.net} --out DIR, "
        f"then --{option} DIR"
    )


def imagenet_row(file: Path) -> dict[str, Any]:
    """Return the line of ImageNet from a results.json.

    Raises:
        ValueError: If the file is another one.
    """
    try:
        images = json.loads(file.read_text(encoding="utf-8"))["claims"]["S1"]["numbers"]["images"]
        exact = {who: image for who, image in images.items() if "rank" in image}
        rows = exact.values()
        row: dict[str, Any] = {
            "network": "EfficientNet-Lite0",
            "num_inputs": len(exact),
            "rank": {k: quartiles([image["rank"][k] for image in rows]) for k in TOLERANCES},
            "dimension": quartiles([image["dimension"]["default"] for image in rows]),
            "trace": quartiles([image["trace"] for image in rows]),
        }
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"imagenet must be a results.json of experiments.imagenet, got {file}: {error}"
        ) from error
    if not exact:
        return {"missing": f"{file} was made without exact factors (--quick)"}
    return row
