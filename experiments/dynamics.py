"""S2: trace and rank of the local data matrix during optimisation.

    python -m experiments.dynamics --checkpoint out/train --images 100 --out out/dynamics
    python -m experiments.dynamics --start 3

draws what a training has tracked (`experiments.train`; without a checkpoint, digits are trained
here), and measures trace and rank at test images, one or many, for every epoch that has a
checkpoint; `--epoch` marks one of them.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import foliax
from experiments.harness import command
from experiments.harness.networks import Loaded, load, obtain
from experiments.harness.own import data_of
from experiments.harness.pictures import quartile_curve
from experiments.harness.populations import quartiles
from experiments.harness.report import FAILS, HOLDS, IN_PART, percent, section
from foliax import viz, zoo

_FALL = 0.9  # final over peak mean trace below which the trace has fallen
_ACCURACY = 0.9  # least test accuracy of the partially trained checkpoint
_LOOSE, _LOOSE_NAME = 1e-2, "mean rank above 1 %"
_MEASURED = ("trace", "rank", "loose_rank", "probability")


class Choice(NamedTuple):
    """A partially trained checkpoint: its epoch, the step at its end, and the rule in words."""

    epoch: int
    step: int
    reason: str


def choose(history: zoo.History, epoch: int | None = None) -> Choice:
    """Choose the epoch that is named, or the first accurate one at or after the peak of the trace.

    A training too short for that gives its most accurate epoch, and the reason says so.
    """
    rule = "peak" if epoch is None else "epoch"
    try:
        chosen = zoo.choose_epoch(history, rule=rule, min_accuracy=_ACCURACY, epoch=epoch)
    except ValueError:
        if epoch is not None:
            raise
        chosen = zoo.choose_epoch(history, rule="best")
    reason = zoo.describe_choice(history, chosen, rule=rule, min_accuracy=_ACCURACY)
    return Choice(chosen, int(history.epoch_steps[chosen - 1]), reason)


def run(
    history: zoo.History,
    out: Path,
    choice: Choice,
    *,
    loose: Mapping[int, float],
    measured: Mapping[int, Any] | None = None,
) -> dict[str, Any]:
    """Draw the dynamics, and say whether the trace rises and falls; return the section.

    `loose` is the mean rank of the test images at a loose tolerance by epoch, and `measured` what
    `measure` gave, to be drawn and reported beside the history.
    """
    values = list(loose.values())
    numbers = _numbers(history, choice)
    numbers["loose_rank"] = {"first": values[0], "last": values[-1], "by_epoch": dict(loose)}
    pictures = {
        "dynamics.png": "Mean trace of G over reference images, with quartiles, and test accuracy; "
        "right, the share of images at each rank, and the mean rank above 1 % of the largest "
        "eigenvalue."
    }
    if measured:
        numbers["test_images"] = {
            str(epoch): {name: quartiles(found[name]) for name in _MEASURED}
            for epoch, found in measured.items()
        }
        _draw_test_images(measured, out / "dynamics_test.png")
        pictures["dynamics_test.png"] = "Trace and rank of G at test images, by epoch."
    steps = [int(history.epoch_steps[epoch - 1]) for epoch in loose]
    marks, ranks = {"chosen checkpoint": choice.step}, {_LOOSE_NAME: (steps, values)}
    viz.dynamics(history, out / "dynamics.png", marks=marks, ranks=ranks)
    return section(
        title="Trace and rank of G during optimisation",
        claim="The mean trace rises, then falls: at equilibrium the information is lost, so the "
        "model must be partially trained.",
        verdict=_verdict(numbers),
        numbers=numbers,
        pictures=pictures,
        columns=("", "first", "at the peak", "last"),
        rows=[
            ("mean trace", "trace.first", "trace.peak", "trace.last"),
            ("mean rank", "rank.first", "rank.peak", "rank.last"),
            (_LOOSE_NAME, "loose_rank.first", "", "loose_rank.last"),
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


def _verdict(numbers: dict[str, Any]) -> tuple[str, str]:
    trace, rank, ratio = numbers["trace"], numbers["rank"], numbers["last_over_peak"]
    text = (
        f"Averaged over {numbers['window']} tracked steps, the mean trace goes from "
        f"{trace['first']:.3g} to a peak of {trace['peak']:.3g} at step {numbers['peak_step']} and "
        f"ends at {trace['last']:.3g} ({percent(ratio)} of the peak) after {numbers['steps']}; the "
        f"mean rank goes from {rank['first']:.3g} to {rank['last']:.3g}. "
    )
    if trace["peak"] <= trace["first"]:
        return FAILS, text + "The trace does not rise from its first value."
    if ratio < _FALL:
        return HOLDS, text + "The trace rises and falls, as the slides show."
    return IN_PART, text + f"The trace rises, and has fallen by less than {percent(1 - _FALL)}."


@jax.jit
def _at(model: Any, xs: Any) -> dict[str, Any]:
    def one(x: Any) -> dict[str, Any]:
        p = jax.nn.softmax(model(x))
        return {
            "trace": foliax.trace(model, x),
            "rank": foliax.rank(model, x),
            "loose_rank": foliax.rank(model, x, rtol=_LOOSE),
            "label": jnp.argmax(p),
            "probability": jnp.max(p),
        }

    return jax.lax.map(one, xs, batch_size=4)


def measure(folder: Path, epochs: Iterable[int], xs: Any) -> dict[int, dict[str, np.ndarray]]:
    """Measure trace, rank, label and probability at images, for epochs of a training."""
    bar = tqdm(epochs, desc="epochs", leave=False, dynamic_ncols=True)
    return {
        epoch: jax.tree.map(np.asarray, _at(zoo.restore(folder, epoch), jnp.asarray(xs)))
        for epoch in bar
    }


def mean_loose_ranks(measured: Mapping[int, Any]) -> dict[int, float]:
    """Return the mean rank at a loose tolerance, by epoch."""
    return {epoch: float(np.mean(found["loose_rank"])) for epoch, found in measured.items()}


def about_ten(epochs: tuple[int, ...]) -> tuple[int, ...]:
    """Return the last of some epochs and about nine others, evenly spread."""
    return epochs[:: -max(1, len(epochs) // 10)][::-1]


def _draw_test_images(measured: Mapping[int, Any], file: Path) -> None:
    def curve(label: str, name: str) -> viz.Curve:
        rows = np.stack([found[name] for found in measured.values()], axis=1)
        return quartile_curve(label, list(measured), rows)

    traces = [curve("trace of G", "trace")]
    ranks = [curve("rank of G", "rank"), curve("above 1 % of the largest", "loose_rank")]
    probability = [curve("of the predicted label", "probability")]
    panels = [
        viz.Panel("Trace at test images", "epoch", "trace", traces, log=True),
        viz.Panel("Rank at test images", "epoch", "rank", ranks, y_range=(0, None)),
        viz.Panel("Confidence", "epoch", "probability", probability, y_range=(0, 1.03)),
    ]
    viz.curves(panels, file)


def measure_command(options: command.Command) -> command.Found:
    """Look at the training of a command."""
    if options.weights is not None or options.model is not None:
        raise ValueError("a network alone has no training to look at; give a checkpoint")
    source = data_of(options.dataset, options.data)
    if options.checkpoint is not None:
        source = load(source, checkpoint=options.checkpoint).dataset
    trained = obtain(
        source or "digits", epochs=2 if options.quick else 30, learning_rate=0.01,
        seed=options.seed, out=options.out,
        checkpoint="auto" if options.checkpoint is None else str(options.checkpoint),
    )  # fmt: skip
    choice = choose(trained.history, options.epoch)
    data = trained.dataset
    starts = options.starts(len(data.test_x))
    measured = measure(trained.folder, trained.epochs, data.test_x[starts])
    found = run(
        trained.history, options.out, choice, loose=mean_loose_ranks(measured), measured=measured
    )
    loaded = Loaded(
        zoo.restore(trained.folder, choice.epoch), data, f"{trained.network}, epoch {choice.epoch}"
    )
    images = [
        {"start": int(place), "epoch": list(measured)}
        | {name: [each[name][i] for each in measured.values()] for name in measured[choice.epoch]}
        for i, place in enumerate(starts)
    ]
    return command.Found(loaded, {"S2": found}, {"S2": images}, choice.reason)


if __name__ == "__main__":
    command.main(command.Command, measure_command, name="dynamics", description=__doc__)
