"""S8: the data leaf of a colour network, navigated on CIFAR-10 or on real photographs.

    python -m experiments.cifar --out out/cifar
    python -m experiments.cifar --weights cifar10_medium_cnn.npz --pairs 10
    python -m experiments.cifar --dataset cifar10 --checkpoint out/train --pairs 100

walks from one colour image toward another as `experiments.data_leaf` does. CIFAR-10 needs the
internet once (`python -m foliax.zoo.prepare cifar10`). Without it the images are 32×32 cuts of the
photographs that scikit-image carries: a small network is trained here to tell which photograph a
cut is of (`--net vgg11` for a VGG), or `--weights` names the papers' weights for CIFAR-10, which
see 20 test images of CIFAR-10 (extra `samples`), with their accuracy, trace and rank at each. With
`--dataset photographs` they see cuts instead; nobody has labelled these with its classes. Writes
what `data_leaf` does, and a checkpoint of its training.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

import foliax
from experiments import data_leaf
from experiments.harness import command
from experiments.harness.networks import (
    QUICK_PHOTOGRAPHS,
    Loaded,
    build,
    check_one_network,
    load,
    renormalised,
)
from experiments.harness.populations import predict
from experiments.harness.report import FAILS, HOLDS, section
from experiments.harness.study import Study, WalkCommand
from foliax import zoo
from foliax.zoo.data.names import CIFAR10

NAVIGATED = data_leaf.Claim(
    "S8",
    "test",
    "colour_leaf",
    "The data leaf of a colour network is navigated",
    "Moving on the data manifold of CIFAR10: we can connect any two data images.",
)


@dataclass(frozen=True)
class Command(WalkCommand):
    """Which network, which pairs, and how far they are walked."""

    # "cifar10" or "cifar100", which need the internet once, or "photographs", cuts of those of
    # scikit-image, or "samples", 20 test images of CIFAR-10; None for the data set of the
    # checkpoint, for samples with weights, and for photographs without either.
    dataset: Literal["photographs", "samples", "cifar10", "cifar100"] | None = None
    # Network that is trained on photographs, or that takes the weights.
    net: Literal["colour_cnn", "vgg11", "vgg13", "vgg16", "vgg19"] = "colour_cnn"
    epochs: int = 8  # Epochs of the training on photographs

    def load(self) -> Loaded:
        """Return the network and its data; train where there is no other."""
        if self.data is not None or self.model is not None:
            return super().load()
        check_one_network(self.checkpoint, self.epoch, self.weights)
        if self.weights is not None:
            return _with_weights(self, self.weights)
        if self.checkpoint is None and self.dataset in (None, "photographs"):
            return _trained(self)
        return load(self.dataset, checkpoint=self.checkpoint, epoch=self.epoch)


def _with_weights(options: Command, weights: Path) -> Loaded:
    """Return weights for CIFAR-10, and the images they are to see."""
    if options.dataset in (None, "samples"):
        data = renormalised(zoo.load_samples("cifar10"))
    elif options.dataset == "photographs":
        data = zoo.load_photographs(seed=options.seed, papers=True)
        # The labels of the cuts are those of photographs, which this network does not know.
        data = replace(data, num_classes=len(CIFAR10), class_names=CIFAR10)
    else:
        data = renormalised(zoo.load_dataset(options.dataset))
    model = zoo.load_torch(build(options.net, data, seed=options.seed), weights)
    return Loaded(model, data, weights.name)


def _trained(options: Command) -> Loaded:
    """Train on photographs, or take what an earlier run has trained."""
    data = zoo.load_photographs(seed=options.seed, **QUICK_PHOTOGRAPHS if options.quick else {})
    settings = zoo.TrainConfig(
        epochs=1 if options.quick else options.epochs, learning_rate=1e-3, optimizer="adam",
        batch_size=20, seed=options.seed, track_per_epoch=0,
    )  # fmt: skip
    folder = options.out / ("training_quick" if options.quick else "training")
    model = build(options.net, data, seed=options.seed)
    model, _ = zoo.train(model, data, settings, out=folder)
    return Loaded(model, data, f"{options.net}, epoch {settings.epochs} on photographs")


def measure_command(options: Command) -> command.Found:
    """Walk the pairs of a command."""
    loaded = options.load()
    study = Study(loaded.model, loaded.dataset, options.sizes(quick_steps=40))
    labelled = options.weights is None or loaded.dataset.name != "photographs"
    found = data_leaf.walked(study, loaded, options.out, NAVIGATED, labelled=labelled)
    if loaded.dataset.length("train"):
        return found
    return replace(found, sections={"S1": ranks(loaded), **found.sections})


def ranks(loaded: Loaded) -> dict[str, Any]:
    """Measure trace and rank of G at each of a few labelled images; return the section."""
    data = loaded.dataset
    spectra = foliax.map(foliax.spectrum, loaded.model, data.test_x)
    predicted = np.asarray(predict(loaded.model, data.test_x)[0])
    right, bound = int(np.sum(predicted == data.test_y)), data.num_classes - 1
    names = [f"{i} {data.class_names[y]}" for i, y in enumerate(data.test_y)]
    images = {
        name: {"predicted": data.class_names[p], "trace": float(t), "rank": int(r)}
        for name, p, t, r in zip(names, predicted, spectra.trace, spectra.rank, strict=True)
    }
    largest = int(np.max(spectra.rank))
    verdict = (
        f"{right} of {len(names)} images are classified as they are labelled; the largest rank is "
        f"{largest}, the bound {bound}."
    )
    return section(
        title="Trace and rank of G at test images",
        claim="rank G(x, w) < C.",
        verdict=(HOLDS if largest <= bound else FAILS, verdict),
        numbers={"right": right, "num_images": len(names), "bound": bound, "images": images},
        pictures={},
        columns=("", "trace", "rank"),
        rows=[(name, f"images.{name}.trace", f"images.{name}.rank") for name in names],
    )


if __name__ == "__main__":
    command.main(Command, measure_command, name="cifar", description=__doc__)
