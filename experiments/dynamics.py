"""S2: trace and rank of the local data matrix during optimisation."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments._common import FAILS, HOLDS, IN_PART
from experiments._report import section
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
) -> dict[str, Any]:
    """Draw and judge the dynamics.

    Args:
        history: The `foliax.zoo.History` of a training.
        out: Folder for the picture.
        choice: The checkpoint to mark.
        config: What counts as a fall.
        loose: Mean rank of the test images at a loose tolerance, by epoch.

    Returns:
        The section of the report; see `_report.section`.
    """
    numbers = _numbers(history, choice)
    more = {}
    if loose:
        values = list(loose.values())
        numbers["loose_rank"] = {"first": values[0], "last": values[-1], "by_epoch": dict(loose)}
        more[_LOOSE] = ([int(history.epoch_steps[epoch - 1]) for epoch in loose], values)
    marks = {"chosen checkpoint": choice.step}
    viz.dynamics(history, out / "dynamics.png", marks=marks, ranks=more)
    return section(
        title="Trace and rank of G during optimisation",
        claim="The mean trace rises, then falls: at equilibrium the information is lost, so the "
        "model must be partially trained.",
        verdict=_judge(numbers, config),
        numbers=numbers,
        pictures=[
            (
                "dynamics.png",
                "Mean trace of G over reference images with quartiles, and test accuracy, against "
                "the optimisation step; right, the share of reference images at each rank, and the "
                "mean rank of test images counted above 1 % of the largest eigenvalue.",
            )
        ],
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
