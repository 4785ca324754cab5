"""S8: the data leaf of a colour network, navigated on CIFAR-10 or on real photographs.

    python -m experiments.cifar --out out/cifar
    python -m experiments.cifar --weights cifar10_medium_cnn.npz --pairs 20
    python -m experiments.cifar --dataset cifar10 --checkpoint out/train --pairs 100

walks from one colour image toward another as `experiments.data_leaf` does. CIFAR-10 needs the
internet once (`python -m foliax.zoo.prepare cifar10`). Without it the images are 32×32 cuts of the
photographs that scikit-image carries: a small network is trained here to tell which photograph a
cut is of (`--net vgg11` for a VGG), or `--weights` names the papers' weights for CIFAR-10, which
then see cuts instead of CIFAR's images; nobody has labelled these with its classes, so that their
accuracy is not known. Writes what `data_leaf` does, and a checkpoint of its training.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import nnx

from experiments import data_leaf
from experiments.harness import command as _command
from experiments.harness.common import Loaded, check_one_network, load
from experiments.harness.photographs import PAPERS_CENTRE, QUICK, photographs, renormalised
from experiments.harness.population import records
from foliax import zoo

NAVIGATED = data_leaf.Claim(
    "S8",
    "colour_leaf",
    "The data leaf of a colour network is navigated",
    "Moving on the data manifold of CIFAR10: we can connect any two data images.",
    "the other image",
)
CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@dataclass(frozen=True)
class Command(_command.PairCommand):
    """Which network, which pairs, and how far they are walked.

    Attributes:
        dataset: "cifar10" or "cifar100", which need the internet once, or "photographs", cuts of
            those of scikit-image; None for the data set of the checkpoint, and for photographs
            without one.
        net: Network that is trained on photographs, or that takes the weights.
        epochs: Epochs of the training on photographs.
        steps: Steps at most.
        step: Length of a step, normalised units.
        save_every: Steps between the points kept.
    """

    dataset: Literal["photographs", "cifar10", "cifar100"] | None = None
    net: Literal["colour_cnn", "vgg11", "vgg13", "vgg16", "vgg19"] = "colour_cnn"
    epochs: int = 8
    steps: int = 1000
    step: float = 0.1
    save_every: int = 10
    out: Path = Path("out/cifar")

    def load(self) -> Loaded:
        """Return the network and its data; train where there is no other."""
        check_one_network(self.checkpoint, self.epoch, self.weights)
        if self.weights is not None:
            return _with_weights(self)
        if self.checkpoint is None and self.dataset in (None, "photographs"):
            return _trained(self)
        return load(self.dataset, checkpoint=self.checkpoint, epoch=self.epoch)


def network(name: str, num_classes: int, seed: int) -> nnx.Module:
    """Return a colour network, untrained."""
    rngs = nnx.Rngs(seed)
    if name == "colour_cnn":
        return zoo.colour_cnn(num_classes, rngs=rngs)
    return zoo.vgg(int(name.removeprefix("vgg")), num_classes, rngs=rngs)


def _with_weights(command: Command) -> Loaded:
    """Return weights for CIFAR-10, and its images where they are at hand, else photographs."""
    assert command.weights is not None
    if command.dataset in (None, "photographs"):
        data = photographs(seed=command.seed, mean=PAPERS_CENTRE, std=PAPERS_CENTRE)
        # The labels of the cuts are those of photographs, which this network does not know.
        data = replace(data, num_classes=len(CIFAR10), class_names=CIFAR10)
    else:
        data = zoo.load_dataset(command.dataset)
        data = renormalised(data, PAPERS_CENTRE, PAPERS_CENTRE)
    blank = network(command.net, data.num_classes, command.seed)
    return Loaded(zoo.load_torch(blank, command.weights), data, command.weights.name)


def _trained(command: Command) -> Loaded:
    """Train on photographs, or take what an earlier run has trained."""
    data = photographs(seed=command.seed, **QUICK if command.quick else {})
    model = network(command.net, data.num_classes, command.seed)
    settings = zoo.TrainConfig(
        epochs=1 if command.quick else command.epochs, learning_rate=1e-3, optimizer="adam",
        batch_size=20, seed=command.seed, track_per_epoch=0,
    )  # fmt: skip
    folder = command.out / ("training_quick" if command.quick else "training")
    model, _ = zoo.train(model, data, settings, out=folder)
    return Loaded(model, data, f"{command.net}, epoch {settings.epochs} on photographs")


def measure_command(command: Command) -> _command.Found:
    """Walk the pairs of a command."""
    loaded = command.load()
    model, dataset = loaded.model, loaded.dataset
    config = data_leaf.Config(
        num_pairs=command.pairs, step=command.step, save_every=command.save_every,
        max_steps=min(command.steps, 40) if command.quick else command.steps,
        seed=command.seed, start=command.start, end=command.end,
    )  # fmt: skip
    starts, ends = data_leaf.places(dataset, config)
    xs, targets = np.asarray(dataset.test_x[starts]), np.asarray(dataset.test_x[ends])
    paths = data_leaf.walk_pairs(model, dataset, xs, targets, config)
    found = data_leaf.run(model, dataset, command.out, config, claim=NAVIGATED, paths=paths)
    walks: dict[str, Any] = {NAVIGATED.name: records(paths, dataset, starts, ends)}
    labelled = command.weights is None or dataset.name != "photographs"
    return _command.Found(loaded, {NAVIGATED.name: found}, walks, labelled=labelled)


if __name__ == "__main__":
    _command.main(Command, measure_command, name="cifar", description=__doc__)
