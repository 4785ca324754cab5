"""S2: trace and rank of the local data matrix during optimisation.

    python -m experiments.dynamics --checkpoint out/train --images 100 --out out/dynamics
    python -m experiments.dynamics --start 3

draws what a training has tracked (`experiments.train`; without a checkpoint, digits are trained
here), and measures trace and rank at test images, one or many, for every epoch that has a
checkpoint. Writes pictures, `results.json`, `paths.json` (every image epoch by epoch), `run.json`
and `report.html`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import foliax
from experiments.harness import command as _command
from experiments.harness.common import FAILS, HOLDS, IN_PART, Loaded, load, quartiles
from experiments.harness.report import section
from experiments.harness.training import Trained, obtain
from foliax import viz, zoo

_LOOSE = "mean rank above 1 %"


@dataclass(frozen=True)
class Config:
    """What counts as a fall, and how a checkpoint is chosen.

    Attributes:
        fall: Final over peak mean trace below which the trace has fallen.
        rule: How `foliax.zoo.choose_epoch` chooses the checkpoint that the other claims use.
        accuracy: Its least test accuracy, for the rules "peak" and "accuracy".
        epoch: The epoch, for the rule "epoch".
    """

    fall: float = 0.9
    rule: Literal["peak", "accuracy", "best", "epoch"] = "peak"
    accuracy: float = 0.9
    epoch: int | None = None


@dataclass(frozen=True)
class Choice:
    """A partially trained checkpoint, and why it.

    Attributes:
        epoch: Epoch of the checkpoint, counted from 1.
        step: Optimisation step at its end.
        reason: The rule in words, with its numbers.
    """

    epoch: int
    step: int
    reason: str


def choose(history: zoo.History, config: Config) -> Choice:
    """Choose the partially trained checkpoint, by `foliax.zoo.choose_epoch`.

    A training too short for the rule gives its most accurate epoch, and the reason says so.
    """
    rule, accuracy = config.rule, config.accuracy
    try:
        epoch = zoo.choose_epoch(history, rule=rule, min_accuracy=accuracy, epoch=config.epoch)
    except ValueError:
        if rule not in ("peak", "accuracy"):
            raise
        epoch = zoo.choose_epoch(history, rule="best")
    reason = zoo.describe_choice(history, epoch, rule=rule, min_accuracy=accuracy)
    return Choice(epoch, int(history.epoch_steps[epoch - 1]), reason)


def run(
    history: zoo.History,
    out: Path,
    choice: Choice,
    config: Config,
    *,
    loose: Mapping[int, float] | None = None,
    watched: Mapping[int, Any] | None = None,
) -> dict[str, Any]:
    """Draw and judge the dynamics.

    Args:
        history: The `foliax.zoo.History` of a training.
        out: Folder for the picture.
        choice: The checkpoint to mark.
        config: What counts as a fall.
        loose: Mean rank of the test images at a loose tolerance, by epoch.
        watched: What `watch` gave, to be drawn and reported beside the history.

    Returns:
        The section of the report; see `_report.section`.
    """
    numbers = _numbers(history, choice)
    more = {}
    if loose:
        values = list(loose.values())
        numbers["loose_rank"] = {"first": values[0], "last": values[-1], "by_epoch": dict(loose)}
        more[_LOOSE] = ([int(history.epoch_steps[epoch - 1]) for epoch in loose], values)
    pictures = [
        (
            "dynamics.png",
            "Mean trace of G over reference images with quartiles, and test accuracy, against the "
            "optimisation step; right, the share of reference images at each rank, and the mean "
            "rank of test images counted above 1 % of the largest eigenvalue.",
        )
    ]
    if watched:
        numbers["test_images"] = _by_epoch(watched)
        _draw_watched(watched, out / "dynamics_test.png")
        text = "Trace and rank of G at test images, by epoch: medians and quartiles."
        pictures.append(("dynamics_test.png", text))
    marks = {"chosen checkpoint": choice.step}
    viz.dynamics(history, out / "dynamics.png", marks=marks, ranks=more)
    return section(
        title="Trace and rank of G during optimisation",
        claim="The mean trace rises, then falls: at equilibrium the information is lost, so the "
        "model must be partially trained.",
        verdict=_judge(numbers, config),
        numbers=numbers,
        pictures=pictures,
        columns=("", "first", "at the peak", "last"),
        rows=[
            ("mean trace", "trace.first", "trace.peak", "trace.last"),
            ("mean rank", "rank.first", "rank.peak", "rank.last"),
            *([(_LOOSE, "loose_rank.first", "", "loose_rank.last")] if loose else []),
            ("test accuracy (chosen, final)", "", "chosen_accuracy", "final_accuracy"),
            ("step", "", "peak_step", "steps"),
        ],
    )


def _numbers(history: zoo.History, choice: Choice) -> dict[str, Any]:
    # A twentieth of the training is averaged: one lucky batch makes neither a peak nor a fall.
    window = max(1, len(history.steps) // 20)
    steps, trace, ranks = (
        np.convolve(values, np.full(window, 1 / window), mode="valid")
        for values in (history.steps, history.trace_mean, history.rank_mean)
    )
    top = int(np.argmax(trace))
    return {
        "window": window,
        "steps": int(history.steps[-1]),
        "peak_step": round(steps[top]),
        "trace": {"first": trace[0], "peak": trace[top], "last": trace[-1]},
        "rank": {"first": ranks[0], "peak": ranks[top], "last": ranks[-1]},
        "last_over_peak": trace[-1] / trace[top],
        "chosen_epoch": choice.epoch,
        "chosen_step": choice.step,
        "chosen_reason": choice.reason,
        "chosen_accuracy": history.test_accuracy[choice.epoch - 1],
        "final_accuracy": history.test_accuracy[-1],
    }


def _judge(numbers: dict[str, Any], config: Config) -> tuple[str, str]:
    trace, rank, ratio = numbers["trace"], numbers["rank"], numbers["last_over_peak"]
    rises, falls = trace["peak"] > trace["first"], ratio < config.fall
    told = (
        f"Averaged over {numbers['window']} tracked steps, the mean trace goes from "
        f"{trace['first']:.3g} to a peak of {trace['peak']:.3g} at step "
        f"{numbers['peak_step']} and ends at {trace['last']:.3g} "
        f"({100 * ratio:.3g} % of the peak) after {numbers['steps']} steps; the mean rank goes "
        f"from {rank['first']:.3g} over {rank['peak']:.3g} to {rank['last']:.3g}. "
    )
    if "loose_rank" in numbers:
        loose = numbers["loose_rank"]
        told += (
            f"Counted above 1 % of the largest eigenvalue, it goes from {loose['first']:.3g} to "
            f"{loose['last']:.3g}. "
        )
    if rises and falls:
        return HOLDS, told + "It rises and falls, as the slides show."
    if rises:
        less = f"less than {100 * (1 - config.fall):.3g} %"
        return IN_PART, told + f"It rises; by the end of this training it has fallen by {less}."
    return FAILS, told + "It does not rise from its first value."


# --- test images by epoch -----------------------------------------------------------------------


@dataclass(frozen=True)
class Command(_command.Command):
    """Which training, and at which test images G is measured.

    Attributes:
        epochs: Epochs of the training made here, where there is no checkpoint.
        learning_rate: Its rate.
        rule: How the partially trained checkpoint is chosen: the first at or after the peak of the
            mean trace with enough accuracy, the first with enough accuracy, the most accurate, or
            the epoch named by `epoch`.
        accuracy: Enough accuracy.
    """

    epochs: int = 30
    learning_rate: float = 0.01
    rule: Literal["peak", "accuracy", "best"] = "peak"
    accuracy: float = 0.9
    out: Path = Path("out/dynamics")


@jax.jit
def _at(model: Any, xs: Any) -> dict[str, Any]:
    def one(x: Any) -> dict[str, Any]:
        p = jax.nn.softmax(model(x))
        return {
            "trace": foliax.trace(model, x),
            "rank": foliax.rank(model, x),
            "loose_rank": foliax.rank(model, x, rtol=1e-2),
            "label": jnp.argmax(p),
            "probability": jnp.max(p),
        }

    return jax.lax.map(one, xs, batch_size=4)


def watch(trained: Trained, xs: Any) -> dict[int, dict[str, np.ndarray]]:
    """Measure trace, rank, label and probability at images, for every epoch of a training."""
    bar = tqdm(trained.epochs, desc="epochs", leave=False, dynamic_ncols=True)
    return {e: jax.tree.map(np.asarray, _at(trained.model(e), jnp.asarray(xs))) for e in bar}


def _by_epoch(watched: Mapping[int, Any]) -> dict[str, Any]:
    names = ("trace", "rank", "loose_rank", "probability")
    return {
        str(epoch): {name: quartiles(found[name]) for name in names}
        for epoch, found in watched.items()
    }


def _draw_watched(watched: Mapping[int, Any], file: Path) -> None:
    epochs = list(watched)

    def curve(label: str, name: str) -> viz.Curve:
        rows = (np.quantile(found[name], (0.25, 0.5, 0.75)) for found in watched.values())
        low, middle, high = np.stack(list(rows), axis=1)
        return viz.Curve(label, epochs, middle, low, high)

    traces = [curve("trace of G", "trace")]
    ranks = [curve("rank of G", "rank"), curve("above 1 % of the largest", "loose_rank")]
    probability = [curve("of the predicted label", "probability")]
    viz.curves(
        [
            viz.Panel("Trace at test images", "epoch", "trace", traces, log=True),
            viz.Panel("Rank at test images", "epoch", "rank", ranks, y_range=(0, None)),
            viz.Panel("Confidence", "epoch", "probability", probability, y_range=(0, 1.03)),
        ],
        file,
    )


def measure_command(command: Command) -> _command.Found:
    """Look at the training of a command."""
    if command.weights is not None:
        raise ValueError("weights alone have no training to look at; give a checkpoint")
    dataset = command.dataset or "digits"
    if command.checkpoint is not None:
        dataset = load(command.dataset, checkpoint=command.checkpoint).dataset.name
    elif dataset != "digits":
        raise ValueError(f"dataset={dataset!r} needs --checkpoint (a training's folder)")
    trained = obtain(
        dataset, epochs=min(command.epochs, 2) if command.quick else command.epochs,
        learning_rate=command.learning_rate, seed=command.seed, out=command.out,
        checkpoint="auto" if command.checkpoint is None else str(command.checkpoint),
    )  # fmt: skip
    rule = command.rule if command.epoch is None else "epoch"
    config = Config(rule=rule, accuracy=command.accuracy, epoch=command.epoch)
    choice = choose(trained.history, config)
    starts = command.starts(len(trained.dataset.test_x))
    watched = watch(trained, trained.dataset.test_x[starts])
    loose = {epoch: float(np.mean(found["loose_rank"])) for epoch, found in watched.items()}
    found = run(trained.history, command.out, choice, config, loose=loose, watched=watched)
    words = f"{trained.network}, epoch {choice.epoch}"
    loaded = Loaded(trained.model(choice.epoch), trained.dataset, words)
    images = [
        {"start": int(place), "epoch": list(watched)}
        | {name: [found[name][i] for found in watched.values()] for name in watched[choice.epoch]}
        for i, place in enumerate(starts)
    ]
    return _command.Found(loaded, {"S2": found}, {"S2": images}, choice.reason)


if __name__ == "__main__":
    _command.main(Command, measure_command, name="dynamics", description=__doc__)
