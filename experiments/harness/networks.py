"""Networks: trained ones with their data, and new ones by name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from experiments.harness.own import as_dataset, load_model
from foliax import zoo
from foliax.zoo import checkpoints
from foliax.zoo.data import DATASETS
from foliax.zoo.shipped import SHIPPED

QUICK_PHOTOGRAPHS: dict[str, Any] = {"num_train": 140, "num_test": 70}  # for a quick look
_SMALL = 100  # inputs of no more pixels go to a dense network


class Loaded(NamedTuple):
    """A trained network and its data."""

    model: Any  # The classifier
    dataset: Any  # Its `foliax.zoo.Dataset`
    network: str  # In words, with the epoch or the file it came from


def load(
    dataset: str | zoo.Dataset | None = None,
    *,
    checkpoint: Path | None = None,
    epoch: int | None = None,
    weights: Path | None = None,
    model: str | None = None,
) -> Loaded:
    """Return a trained network with its data.

    The options are those of `command.Command`; `dataset` may be the data itself. With weights,
    colour images are normalised as the papers' code does; with no network named, "digits" and
    "mnist_5k" take the networks that come with foliax.

    Raises:
        ValueError: If there is no network for the data set, or two, or it is one for another.
        FileNotFoundError: If the checkpoint is missing, or the data set is not prepared.
    """
    check_one_network(checkpoint, epoch, weights, model)
    if checkpoint is not None:
        return _from_checkpoint(dataset, checkpoint, epoch)
    dataset = dataset or "digits"
    if model is not None:
        data = as_dataset(dataset)
        return Loaded(load_model(model, data), data, model)
    shipped = {trained_on: name for name, trained_on in SHIPPED.items()}
    if weights is None and dataset not in shipped:
        named = repr(dataset) if isinstance(dataset, str) else dataset.name
        raise ValueError(
            f"dataset={named} needs a network: --checkpoint (the folder of a training, which "
            "`experiments.train` makes), --weights, or --model module:function"
        )
    data = as_dataset(dataset)
    if weights is None:
        assert isinstance(dataset, str)
        name = shipped[dataset]
        return Loaded(zoo.load(name), data, f"{name}, as shipped")
    if data.shape[-1] == 3:
        data = renormalised(data)
    return Loaded(zoo.load_torch(papers_network(data), weights), data, weights.name)


def at_samples(name: str, weights: Path) -> Loaded:
    """Return the papers' network with weights from a file, and 20 test images of its data set."""
    data = renormalised(zoo.load_samples(name))
    return Loaded(zoo.load_torch(papers_network(data), weights), data, weights.name)


def check_one_network(
    checkpoint: Path | None, epoch: int | None, weights: Path | None, model: str | None = None
) -> None:
    """Refuse options that name two networks, or an epoch of none."""
    if model is not None and not (checkpoint is None and weights is None):
        raise ValueError(
            f"a network comes from --model or from a file, got both, {model} and "
            f"{weights if checkpoint is None else checkpoint}"
        )
    if checkpoint is not None and weights is not None:
        raise ValueError(
            f"a network comes from --checkpoint or from --weights, got both, {checkpoint} and "
            f"{weights}"
        )
    if epoch is not None and checkpoint is None:
        raise ValueError(f"epoch={epoch} needs --checkpoint (a training's folder)")


def _from_checkpoint(dataset: str | zoo.Dataset | None, folder: Path, epoch: int | None) -> Loaded:
    zoo.epochs(folder)  # says what is wrong with the folder
    stored = checkpoints.read(folder, epoch)
    if stored is None:
        raise ValueError(f"no checkpoint in {folder} can be read")
    training = stored.info.get("training", {})
    data = _trained_on(dataset, training, folder)
    words = f"{in_words(stored.architecture)}, epoch {stored.epoch} of {training_name(folder)}"
    return Loaded(zoo.restore(folder, stored.epoch), data, words)


def _trained_on(
    dataset: str | zoo.Dataset | None, training: Mapping[str, Any], folder: Path
) -> zoo.Dataset:
    """Return what a checkpoint was trained on, given what it says of it and what is asked for."""
    if isinstance(dataset, zoo.Dataset):
        check_same_data(dataset, training, folder)
        return dataset
    name = training.get("dataset", dataset)
    if name is None:
        raise ValueError(f"{folder} does not say what was trained on; name it with --dataset")
    if dataset not in (None, name):
        raise ValueError(
            f"checkpoint must hold a training on {dataset}, got one on {name} in {folder}"
        )
    if name == "photographs":
        return _photographs_of(training)
    if name not in DATASETS:
        raise ValueError(
            f"{folder} holds a training on data of your own, {name}, with the fingerprint "
            f"{training.get('dataset_hash')}; give the file with --data"
        )
    return zoo.load_dataset(name)


def check_same_data(data: zoo.Dataset, training: Mapping[str, Any], folder: Path) -> None:
    """Refuse a checkpoint that was trained on other images than these."""
    trained_on = training.get("dataset_hash")
    if trained_on not in (None, data.fingerprint()):
        raise ValueError(
            f"checkpoint must hold a training on {data.name} (fingerprint {data.fingerprint()}), "
            f"got one on {training.get('dataset')} ({trained_on}) in {folder}; give its data with "
            "--dataset or --data"
        )


def _photographs_of(training: Mapping[str, Any]) -> zoo.Dataset:
    """Return the cuts that a network was trained on, given what its checkpoint says of it."""
    for sizes in ({}, QUICK_PHOTOGRAPHS):
        data = zoo.load_photographs(seed=training["seed"], **sizes)
        if data.fingerprint() == training["dataset_hash"]:
            return data
    raise ValueError("checkpoint must hold a training on cuts of this version, got other cuts")


def training_history(folder: Path | None) -> zoo.History | None:
    """Return what a training has tracked; None without one."""
    stored = None if folder is None else checkpoints.read(folder)
    return None if stored is None else zoo.History.from_dict(stored.info["history"])


def renormalised(dataset: zoo.Dataset) -> zoo.Dataset:
    """Return the same images normalised as the papers' code does: pixels less 1/2, over 1/2."""
    train_x, test_x = (
        ((np.asarray(dataset.to_pixels(x)) - 0.5) / 0.5).astype(np.float32)
        for x in (dataset.train_x, dataset.test_x)
    )
    return replace(dataset, train_x=train_x, test_x=test_x, mean=0.5, std=0.5)


def training_name(folder: Path) -> str:
    """Return the name of a training: that of its folder."""
    folder = folder.expanduser().absolute()
    return folder.parent.name if folder.name == "checkpoints" else folder.name


def in_words(architecture: Mapping[str, Any]) -> str:
    """Name a network, e.g. MLP 64-48-10, relu."""
    sizes = architecture.get("sizes", architecture.get("shape", ()))
    parts = "-".join(str(size) for size in sizes)
    return f"{architecture['kind']} {parts}, {architecture.get('activation', 'relu')}"


def build(
    name: str,
    dataset: zoo.Dataset,
    *,
    seed: int = 0,
    activation: str = "relu",
    hidden: tuple[int, ...] = (48,),
) -> Any:
    """Return an untrained network of a name for a data set; `hidden` are the widths of "mlp".

    Raises:
        ValueError: If the network is not one for inputs of this shape.
    """
    classes, shape = dataset.num_classes, dataset.shape
    match name:
        case "mlp":
            make = partial(zoo.MLP, (math.prod(shape), *hidden, classes))
        case "cnn":
            make = partial(zoo.CNN, shape, classes)
        case "small_cnn":
            make = partial(zoo.small_cnn, classes, shape=shape)
        case "colour_cnn":
            make = partial(zoo.colour_cnn, classes, shape=shape)
        case "xor_net":
            make = zoo.xor_net
        case "circle_net":
            make = partial(zoo.circle_net, classes)
        case _:
            make = partial(zoo.vgg, int(name.removeprefix("vgg")), classes, shape=shape)
    return make(activation=activation, rngs=nnx.Rngs(seed))


def quick_network(dataset: Any, *, seed: int = 0) -> Any:
    """Return a network that trains on this data set within a minute, untrained."""
    small = math.prod(dataset.shape) <= _SMALL
    return build("mlp" if small else "small_cnn", dataset, seed=seed)


def papers_network(dataset: Any) -> Any:
    """Return the papers' network for inputs of this shape, untrained."""
    small, grey = math.prod(dataset.shape) <= _SMALL, dataset.shape[-1] == 1
    return build("mlp" if small else "cnn" if grey else "colour_cnn", dataset)


@dataclass(frozen=True)
class Trained:
    """A training that is over."""

    dataset: zoo.Dataset  # What it was trained on
    history: zoo.History  # Its `foliax.zoo.History`
    folder: Path  # Where its checkpoints are
    epochs: tuple[int, ...]  # Epochs that have one, ascending
    network: str  # The architecture in words
    settings: dict[str, Any]  # What the training says of itself

    def model(self, epoch: int) -> nnx.Module:
        """Return the network as it was at the end of an epoch."""
        return zoo.restore(self.folder, epoch)


def obtain(
    dataset: str | zoo.Dataset,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    out: Path,
    checkpoint: str,
    track_per_epoch: int = 10,
) -> Trained:
    """Return the training in the folder `checkpoint`, or with "auto" that in `out`.

    The latter is made, or continued, if need be: a small network by plain SGD.

    Raises:
        ValueError: If the earlier training was on another data set.
    """
    data = as_dataset(dataset)
    folder = out if checkpoint == "auto" else Path(checkpoint)
    if checkpoint == "auto":
        config = zoo.TrainConfig(
            epochs=epochs, learning_rate=learning_rate, seed=seed, track_per_epoch=track_per_epoch
        )
        zoo.train(quick_network(data, seed=seed), data, config, out=out)
    there = tuple(e for e in zoo.epochs(folder) if checkpoint != "auto" or e <= epochs)
    newest = checkpoints.read(folder, there[-1])
    assert newest is not None  # an epoch asked for is read, or an error is raised
    settings = newest.info["training"]
    check_same_data(data, settings, folder)
    history = zoo.History.from_dict(newest.info["history"])
    return Trained(data, history, folder, there, in_words(newest.architecture), settings)
