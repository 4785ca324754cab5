"""Train a network and watch trace and rank of the local data matrix as it learns.

    python -m experiments.train --dataset fashion_mnist --net cnn --preset paper --out out/train

leaves a checkpoint an epoch in the output folder, the picture of trace and rank against the step,
`results.json` (the same for the same seed), `run.json` (how it came about, and what the geometry
cost) and `report.html`. Stopped, even killed, it goes on where it was, and ends with the same
weights.
"""

import dataclasses
import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro
from flax import nnx

from experiments import dynamics
from experiments.harness.common import provenance, write_json
from experiments.harness.report import write_report
from experiments.harness.run import mesh, running
from experiments.rank_table import __main__ as rank_table
from foliax import zoo

_LOOSE_IMAGES = 100
_OVERRIDES = (
    "epochs", "batch_size", "learning_rate", "optimizer", "schedule", "track_per_epoch",
    "trace_penalty",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """What to train, how, and where to.

    Attributes:
        dataset: Data set; digits, xor and circles are embedded, the others are prepared by
            `python -m foliax.zoo.prepare NAME`.
        net: Network.
        preset: Settings that those below override: "paper" (SGD at 0.01, batches of 60, 30
            epochs), "foliations" (batches of 50), "vgg" (momentum, weight decay, cosine) or
            "quick" (AdamW, 5 epochs).
        epochs: Passes over the training set.
        batch_size: Images in a step.
        learning_rate: The rate; of a schedule, the highest.
        optimizer: How gradients become steps.
        schedule: How the rate changes.
        activation: Activation of the network.
        trace_penalty: λ of a penalty λ · mean trace G in the loss.
        hidden: Widths of the hidden layers of "mlp".
        track_per_epoch: How often in an epoch trace and rank are measured.
        reference_size: On how many training images.
        rule: How the partially trained checkpoint is chosen: the first at or after the peak of the
            mean trace with enough accuracy, the first with enough accuracy, the most accurate, or
            the epoch named by `chosen`.
        min_accuracy: Enough accuracy.
        chosen: The epoch, for the rule "epoch".
        seed: Seeds the initial weights and the order of the images.
        devices: How many devices share every batch, whose size is a multiple of it; None for all
            that JAX sees.
        out: Output folder.
    """

    dataset: Literal[
        "digits",
        "xor",
        "circles",
        "mnist",
        "fashion_mnist",
        "kmnist",
        "emnist/letters",
        "cifar10",
        "cifar100",
    ] = "digits"
    net: Literal[
        "mlp", "cnn", "colour_cnn", "vgg11", "vgg13", "vgg16", "vgg19", "xor_net", "circle_net"
    ] = "mlp"
    preset: Literal["paper", "foliations", "vgg", "quick"] = "paper"
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    optimizer: Literal["sgd", "momentum", "adam", "adamw"] | None = None
    schedule: Literal["constant", "cosine", "warmup-cosine", "step"] | None = None
    activation: Literal["relu", "gelu", "sigmoid"] = "relu"
    hidden: tuple[int, ...] = (48,)
    track_per_epoch: int | None = None
    trace_penalty: float | None = None
    reference_size: int = 1000
    rule: Literal["peak", "accuracy", "best", "epoch"] = "peak"
    min_accuracy: float = 0.9
    chosen: int | None = None
    seed: int = 0
    devices: int | None = 1
    out: Path = Path("out/train")


def training(config: Config) -> zoo.TrainConfig:
    """Return the settings of the preset, overridden by those that are given."""
    given = {name: getattr(config, name) for name in _OVERRIDES}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    preset = zoo.PRESETS[config.preset]
    if config.optimizer not in (None, preset.optimizer):  # momentum and decay were for the other
        settings |= {"momentum": None, "weight_decay": None}
    return dataclasses.replace(
        preset, **settings, seed=config.seed, reference_size=config.reference_size
    )


def network(config: Config, data: zoo.Dataset) -> nnx.Module:
    """Return the network, with the initial weights of the seed.

    Raises:
        ValueError: If the network is not one for inputs of this shape.
    """
    classes, shape = data.num_classes, data.shape
    match config.net:
        case "mlp":
            make = partial(zoo.MLP, (math.prod(shape), *config.hidden, classes))
        case "cnn":
            make = partial(zoo.CNN, shape, classes)
        case "colour_cnn":
            make = partial(zoo.colour_cnn, classes, shape=shape)
        case "xor_net":
            make = zoo.xor_net
        case "circle_net":
            make = partial(zoo.circle_net, classes)
        case _:
            make = partial(zoo.vgg, int(config.net.removeprefix("vgg")), classes, shape=shape)
    return make(activation=config.activation, rngs=nnx.Rngs(config.seed))


def run(config: Config) -> dict[str, Any]:
    """Train, choose a checkpoint, draw and write.

    Args:
        config: What to do.

    Returns:
        What results.json holds.

    Raises:
        ValueError: If the parts do not fit each other, or the folder holds another training.
        FileNotFoundError: If the data set is not prepared.
    """
    settings = training(config)
    if not settings.track_per_epoch:
        raise ValueError("track_per_epoch must be at least 1: trace and rank are what is drawn")
    data = zoo.load_dataset(config.dataset)
    model = network(config, data)
    seconds: dict[str, float] = {}
    _, history = zoo.train(model, data, settings, out=config.out, seconds=seconds, mesh=mesh())
    judged = dynamics.Config(rule=config.rule, accuracy=config.min_accuracy, epoch=config.chosen)
    choice = dynamics.choose(history, judged)
    loose = _loose_ranks(data, history, config)
    found = {"S2": dynamics.run(history, config.out, choice, judged, loose=loose)}
    results = {
        "setting": {
            "dataset": data.name,
            "num_train": len(data.train_x),
            "num_test": len(data.test_x),
            "preset": config.preset,
            "training": settings.settings(),
            "network": getattr(model, "config"),  # noqa: B009 (NNX modules declare no such thing)
        },
        "choice": asdict(choice),
        "history": history.to_dict(),
        "claims": {name: {k: v for k, v in s.items() if k != "table"} for name, s in found.items()},
    }
    intro = [_intro(config, settings, data, choice)]
    write_report(config.out, f"Training {config.net} on {data.name}", intro, found)
    write_json(config.out / "results.json", results)
    write_json(config.out / "run.json", {**provenance(config.seed, seconds), **_cost(seconds)})
    return results


def _loose_ranks(data: zoo.Dataset, history: zoo.History, config: Config) -> dict[int, float]:
    """Return the mean rank of G at a loose tolerance, by epoch, for about ten checkpoints."""
    last = len(history.epoch_steps)
    sizes = rank_table.Config(num_images=_LOOSE_IMAGES)
    epochs = sorted(range(last, 0, -max(1, last // 10)))
    there = set(zoo.epochs(config.out))
    return {
        epoch: rank_table.mean_loose_rank(zoo.restore(config.out, epoch), data, sizes)
        for epoch in epochs
        if epoch in there
    }


def _cost(seconds: dict[str, float]) -> dict[str, float]:
    """Return what the geometry cost beside the steps; nothing if all was there already."""
    if not seconds.get("steps"):
        return {}
    return {"tracking_over_steps": seconds.get("tracking", 0.0) / seconds["steps"]}


def _intro(
    config: Config, settings: zoo.TrainConfig, data: zoo.Dataset, choice: dynamics.Choice
) -> str:
    images = min(settings.reference_size, len(data.train_x))
    return (
        f"The network {config.net} was trained on {len(data.train_x)} inputs of {data.name} for "
        f"{settings.epochs} epochs with {settings.optimizer} at a rate of "
        f"{settings.learning_rate:g} ({settings.schedule}) in batches of {settings.batch_size}, "
        f"seed {settings.seed}. Trace and rank of G were measured {settings.track_per_epoch} times "
        f"an epoch on {images} training inputs. The partially trained checkpoint was chosen by the "
        f"rule “{config.rule}”. {choice.reason}"
    )


def main() -> None:
    """Run from the command line."""
    config = tyro.cli(Config, description=__doc__)
    with running("train", config.out, devices=config.devices):
        results = run(config)
    print(results["choice"]["reason"])
    print(f"report: {config.out / 'report.html'}")


if __name__ == "__main__":
    main()
