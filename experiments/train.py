"""Train a network and watch trace and rank of the local data matrix as it learns.

    python -m experiments.train --dataset fashion_mnist --net cnn --preset paper --out out/train

leaves a checkpoint an epoch in the output folder, the picture of trace and rank against the step,
`results.json` (the same for the same seed), `run.json` (how it came about, and what the geometry
cost) and `report.html`. Stopped, even killed, it goes on where it was, and ends with the same
weights.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from experiments import dynamics
from experiments.harness import command
from experiments.harness.networks import build
from experiments.harness.own import as_dataset
from experiments.harness.report import write_results
from experiments.harness.run import mesh
from foliax import zoo

_LOOSE_IMAGES = 100
_OVERRIDES = (
    "epochs", "batch_size", "learning_rate", "optimizer", "schedule", "track_per_epoch",
)  # fmt: skip


@dataclass(frozen=True)
class Config(command.Run):
    """What to train, how, and where to."""

    # Data set; digits, xor and circles are embedded, the others are prepared by `python -m
    # foliax.zoo.prepare NAME`.
    dataset: Literal["xor", "circles"] | command.Named = "digits"
    # Your own images in place of it: an .npz file, or a folder of images for each class.
    data: Path | None = None
    # Network.
    net: Literal[
        "mlp", "cnn", "small_cnn", "colour_cnn", "vgg11", "vgg13", "vgg16", "vgg19", "xor_net",
        "circle_net",
    ] = "mlp"  # fmt: skip
    # Settings that those below override: "paper" (SGD at 0.01, batches of 60, 30 epochs),
    # "foliations" (batches of 50), "vgg" (momentum, weight decay, cosine) or "quick" (AdamW, 5
    # epochs).
    preset: Literal["paper", "foliations", "vgg", "quick"] = "paper"
    epochs: int | None = None  # Passes over the training set
    batch_size: int | None = None  # Images in a step
    learning_rate: float | None = None  # The rate; of a schedule, the highest
    # How gradients become steps.
    optimizer: Literal["sgd", "momentum", "adam", "adamw"] | None = None
    # How the rate changes.
    schedule: Literal["constant", "cosine", "warmup-cosine", "step"] | None = None
    activation: Literal["relu", "gelu", "sigmoid", "softplus"] = "relu"  # Activation of the network
    hidden: tuple[int, ...] = (48,)  # Widths of the hidden layers of "mlp"
    track_per_epoch: int | None = None  # How often in an epoch trace and rank are measured
    reference_size: int = 1000  # On how many training images
    # How many devices share every batch, whose size is a multiple of it; None for all that JAX
    # finds.
    devices: int | None = 1


def training(config: Config) -> zoo.TrainConfig:
    """Return the settings of the preset, overridden by those that are given."""
    given = {name: getattr(config, name) for name in _OVERRIDES}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if config.quick:
        settings["epochs"] = 1
    preset = zoo.PRESETS[config.preset]
    if config.optimizer not in (None, preset.optimizer):  # momentum and decay were for the other
        settings |= {"momentum": None, "weight_decay": None}
    return replace(preset, **settings, seed=config.seed, reference_size=config.reference_size)


def run(config: Config) -> dict[str, Any]:
    """Train, choose a checkpoint, draw and write; return what results.json holds."""
    settings = training(config)
    if not settings.track_per_epoch:
        raise ValueError("track_per_epoch must be at least 1: trace and rank are what is drawn")
    data = as_dataset(config.dataset) if config.data is None else zoo.load_files(config.data)
    model = build(
        config.net, data, seed=config.seed, activation=config.activation, hidden=config.hidden
    )
    seconds: dict[str, float] = {}
    _, history = zoo.train(model, data, settings, out=config.out, seconds=seconds, mesh=mesh())
    choice = dynamics.choose(history)
    epochs = tuple(e for e in zoo.epochs(config.out) if e <= len(history.epoch_steps))
    measured = dynamics.measure(config.out, dynamics.about_ten(epochs), data.test_x[:_LOOSE_IMAGES])
    found = dynamics.run(history, config.out, choice, loose=dynamics.mean_loose_ranks(measured))
    cost: dict[str, Any] = {"seed": config.seed, "seconds": seconds}
    if seconds.get("steps"):  # nothing was trained where all was there already
        cost["tracking_over_steps"] = seconds.get("tracking", 0.0) / seconds["steps"]
    return write_results(
        config.out,
        f"Training {config.net} on {data.name}",
        [_intro(config, settings, data, choice.reason)],
        {"S2": found},
        run=cost,
        setting={
            "dataset": data.name,
            "num_train": len(data.train_x),
            "num_test": len(data.test_x),
            "preset": config.preset,
            "training": settings.settings(),
            "network": model.config,
        },
        choice=choice._asdict(),
        history=history.to_dict(),
    )


def _intro(config: Config, settings: zoo.TrainConfig, data: zoo.Dataset, reason: str) -> str:
    images = min(settings.reference_size, len(data.train_x))
    return (
        f"The network {config.net} was trained on {len(data.train_x)} inputs of {data.name} for "
        f"{settings.epochs} epochs with {settings.optimizer} at a rate of "
        f"{settings.learning_rate:g} in batches of {settings.batch_size}, seed {settings.seed}. "
        f"Trace and rank of G were measured {settings.track_per_epoch} times an epoch on {images} "
        f"training inputs. {reason}"
    )


main = partial(command.script, Config, run, name="train", description=__doc__)

if __name__ == "__main__":
    main()
