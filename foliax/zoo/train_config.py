"""How to train: settings, the papers' presets, and the optax transformation that they name."""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any, Final

import optax

__all__ = ["OPTIMIZERS", "PRESETS", "SCHEDULES", "TrainConfig", "make_optimizer", "make_schedule"]

OPTIMIZERS: Final = ("sgd", "momentum", "adam", "adamw")
SCHEDULES: Final = ("constant", "cosine", "warmup-cosine", "step")


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are the papers'.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Images in a step. An epoch drops what does not fill a batch, other images in
            each epoch.
        learning_rate: The rate; of a schedule, the highest.
        optimizer: "sgd"; "momentum" for SGD with momentum; "adam"; or "adamw", Adam with weight
            decay of its own.
        momentum: Of SGD; None for 0.9 with "momentum" and 0 with "sgd".
        weight_decay: Added to the gradient by SGD, applied beside it by "adamw"; None for 1e-4 with
            "adamw" and 0 otherwise.
        schedule: "constant"; "cosine", down to 0 at the end; "warmup-cosine", the same after a
            linear rise; or "step", a tenth after half of the training and again after three
            quarters.
        warmup: Share of all steps that the rise takes.
        trace_penalty: λ of λ · mean trace G over the batch, added to the loss: a network that
            reacts less to small changes. Two random signs an image estimate it.
        seed: Of the order of the images, and of the signs.
        track_per_epoch: How often in an epoch trace and rank are measured; 0 for never.
        reference_size: On how many training images, always the same; all where there are fewer.
    """

    epochs: int = 30
    batch_size: int = 60
    learning_rate: float = 0.01
    optimizer: str = "sgd"
    momentum: float | None = None
    weight_decay: float | None = None
    schedule: str = "constant"
    warmup: float = 0.05
    trace_penalty: float = 0.0
    seed: int = 0
    track_per_epoch: int = 10
    reference_size: int = 256

    def __post_init__(self):
        least = {"epochs": 1, "batch_size": 1, "track_per_epoch": 0, "reference_size": 1}
        for name, bound in least.items():
            if (value := getattr(self, name)) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {value}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        for name, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if (value := getattr(self, name)) not in choices:
                listed = ", ".join(map(repr, choices))
                raise ValueError(f"{name} must be one of {listed}, got {value!r}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup}")
        if not 0 <= self.trace_penalty < math.inf:
            raise ValueError(f"trace_penalty must be a finite number ≥ 0, got {self.trace_penalty}")
        momentum, decay = self._momentum, self._weight_decay
        if not 0 <= momentum < 1 or (momentum and self.optimizer not in ("sgd", "momentum")):
            raise ValueError(
                f"momentum must be in [0, 1), and 0 unless the optimizer is 'sgd' or 'momentum'; "
                f"got {momentum} with {self.optimizer!r}"
            )
        if not decay >= 0 or (decay and self.optimizer == "adam"):
            raise ValueError(
                f"weight_decay must be at least 0, and 0 with 'adam' (take 'adamw'); got {decay} "
                f"with {self.optimizer!r}"
            )

    def settings(self) -> dict[str, Any]:
        """Return the settings by name, with None replaced by what it stands for."""
        resolved = {"momentum": self._momentum, "weight_decay": self._weight_decay}
        return {**dataclasses.asdict(self), **resolved}

    @property
    def _momentum(self) -> float:
        if self.momentum is None:
            return 0.9 if self.optimizer == "momentum" else 0.0
        return self.momentum

    @property
    def _weight_decay(self) -> float:
        if self.weight_decay is None:
            return 1e-4 if self.optimizer == "adamw" else 0.0
        return self.weight_decay


PRESETS: Final[dict[str, TrainConfig]] = {
    # Grementieri & Fioresi 2022: plain SGD, 30 epochs.
    "paper": TrainConfig(),
    # Tron & Fioresi 2024, by their published code: the same with batches of 50.
    "foliations": TrainConfig(batch_size=50),
    # The common recipe for VGG on CIFAR-10.
    "vgg": TrainConfig(
        epochs=100,
        batch_size=128,
        learning_rate=0.05,
        optimizer="momentum",
        weight_decay=5e-4,
        schedule="cosine",
    ),
    # A good network in few epochs; it saturates soon.
    "quick": TrainConfig(epochs=5, learning_rate=2e-3, optimizer="adamw", schedule="warmup-cosine"),
}


@functools.lru_cache
def make_optimizer(config: TrainConfig, num_steps: int) -> optax.GradientTransformation:
    """Return the transformation; the same one for the same arguments, so jit compiles once.

    Args:
        config: What to make.
        num_steps: Steps of the entire training, for the schedule.
    """
    rate = make_schedule(config, num_steps)
    settings = config.settings()
    if config.optimizer == "adam":
        return optax.adam(rate)
    if config.optimizer == "adamw":
        return optax.adamw(rate, weight_decay=settings["weight_decay"])
    sgd = optax.sgd(rate, momentum=settings["momentum"] or None)
    if not settings["weight_decay"]:
        return sgd
    return optax.chain(optax.add_decayed_weights(settings["weight_decay"]), sgd)


def make_schedule(config: TrainConfig, num_steps: int) -> float | optax.Schedule:
    """Return the rate, or the function from the step to the rate."""
    rate = config.learning_rate
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(rate, num_steps)
    if config.schedule == "warmup-cosine":
        rise = max(1, round(config.warmup * num_steps))
        return optax.warmup_cosine_decay_schedule(rate / rise, rate, rise, max(num_steps, rise + 1))
    if config.schedule == "step":
        drops = {num_steps // 2: 0.1, 3 * num_steps // 4: 0.1}
        return optax.piecewise_constant_schedule(rate, drops)
    return rate
