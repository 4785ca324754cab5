"""What a training records, and which of its epochs to choose."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int

_INTEGER: Final = frozenset({"steps", "ranks", "epoch_steps"})


@dataclass(frozen=True, eq=False, repr=False)
class History:
    """Trace and rank of G over the reference images, and how well the network does.

    The rows of the first group belong to K tracked steps, from 0 (the untrained network) on; those
    of the second to E epochs.

    Attributes:
        steps: (K,) optimisation steps done.
        loss: (K,) mean cross-entropy of the reference images, in nats.
        trace_mean: (K,) mean trace of G, in nats per squared input unit.
        trace_low: (K,) first quartile of the traces.
        trace_high: (K,) third quartile.
        rank_mean: (K,) mean numerical rank of G.
        ranks: (K, C) how many reference images have rank 0, …, C − 1.
        epoch_steps: (E,) steps done at the end of each epoch.
        train_loss: (E,) mean loss of the epoch's batches, each before its step.
        test_accuracy: (E,) share of the test images classified rightly at the epoch's end.
    """

    steps: Int[np.ndarray, " k"]
    loss: Float[np.ndarray, " k"]
    trace_mean: Float[np.ndarray, " k"]
    trace_low: Float[np.ndarray, " k"]
    trace_high: Float[np.ndarray, " k"]
    rank_mean: Float[np.ndarray, " k"]
    ranks: Int[np.ndarray, "k c"]
    epoch_steps: Int[np.ndarray, " e"]
    train_loss: Float[np.ndarray, " e"]
    test_accuracy: Float[np.ndarray, " e"]

    def to_dict(self) -> dict[str, list]:
        """Return the arrays as lists, ready for JSON."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @classmethod
    def from_dict(cls, lists: Mapping[str, Any]) -> "History":
        """Return the history that `to_dict` described; its numbers are the same to the last bit."""
        return cls(**{field.name: _array(field.name, lists[field.name]) for field in fields(cls)})

    def __repr__(self) -> str:
        text = f"History({len(self.epoch_steps)} epochs, {len(self.steps)} tracked steps"
        if len(self.epoch_steps):
            text += f", test accuracy {self.test_accuracy[-1]:.3f}"
        if len(self.steps):
            text += f", mean trace {self.trace_mean[-1]:.3g}, mean rank {self.rank_mean[-1]:.3g}"
        return text + ")"


class Recorder:
    """Collects a `History` row by row.

    Args:
        history: What was recorded before; None for nothing.
    """

    def __init__(self, history: History | None = None):
        names = [field.name for field in fields(History)]
        self._lists = history.to_dict() if history is not None else {name: [] for name in names}

    def track(
        self,
        *,
        step: int,
        loss: Float[np.ndarray, " r"],
        trace: Float[np.ndarray, " r"],
        rank: Int[np.ndarray, " r"],
        num_classes: int,
    ) -> None:
        """Add a tracked step from what each reference image gave."""
        low, high = np.quantile(trace.astype(np.float64), (0.25, 0.75))
        self._append(
            steps=step,
            loss=float(np.mean(loss, dtype=np.float64)),
            trace_mean=float(np.mean(trace, dtype=np.float64)),
            trace_low=float(low),
            trace_high=float(high),
            rank_mean=float(np.mean(rank)),
            ranks=np.bincount(rank, minlength=num_classes).tolist(),
        )

    def epoch(self, *, step: int, train_loss: float, test_accuracy: float) -> None:
        """Add the end of an epoch."""
        self._append(epoch_steps=step, train_loss=train_loss, test_accuracy=test_accuracy)

    def latest(self) -> dict[str, str]:
        """Return the newest values, as a progress bar shows them."""
        shown = {
            "loss": ("loss", "train_loss"),
            "accuracy": ("test_accuracy",),
            "trace": ("trace_mean",),
            "rank": ("rank_mean",),
        }
        values = {
            label: next((self._lists[name][-1] for name in names if self._lists[name]), None)
            for label, names in shown.items()
        }
        return {label: f"{value:.3g}" for label, value in values.items() if value is not None}

    def history(self) -> History:
        """Return what has been recorded."""
        return History.from_dict(self._lists)

    def _append(self, **row: Any) -> None:
        for name, value in row.items():
            self._lists[name].append(value)


def _array(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=np.int64 if name in _INTEGER else np.float64)
    return (
        array.reshape(len(values), -1)
        if name == "ranks" and len(values)
        else (np.zeros((0, 0), np.int64) if name == "ranks" else array)
    )


RULES: Final = ("peak", "accuracy", "best", "epoch")


def choose_epoch(
    history: History, *, rule: str = "peak", min_accuracy: float = 0.9, epoch: int | None = None
) -> int:
    """Return the partially trained epoch at which to study the geometry.

    - "peak": the first that ends at or after the peak of the mean trace and has enough test
      accuracy. Before the peak the network has not learnt, long after it the softmax saturates and
      G vanishes.
    - "accuracy": the first with enough test accuracy.
    - "best": the most accurate one, the first of several.
    - "epoch": the one named by `epoch`.

    Args:
        history: Of a training; of one with tracking for "peak".
        rule: Which of the above.
        min_accuracy: Least test accuracy, for "peak" and "accuracy".
        epoch: For "epoch", counted from 1.

    Returns:
        The epoch, counted from 1.

    Raises:
        ValueError: If no epoch fits, the rule is unknown, or "peak" is asked of a history without
            traces.
    """
    accuracy, total = history.test_accuracy, len(history.epoch_steps)
    if rule == "epoch":
        if epoch is None or not 1 <= epoch <= total:
            raise ValueError(f"epoch must be in 1 … {total}, the epochs trained, got {epoch}")
        return int(epoch)
    if rule == "best":
        return int(np.argmax(accuracy)) + 1
    if rule == "accuracy":
        fits, text = accuracy >= min_accuracy, "has"
    elif rule == "peak":
        peak = peak_step(history)
        fits = (history.epoch_steps >= peak) & (accuracy >= min_accuracy)
        text = f"ends at or after the peak of the mean trace (step {peak}) with"
    else:
        raise ValueError(f"rule must be one of {', '.join(map(repr, RULES))}, got {rule!r}")
    if not fits.any():
        raise ValueError(
            f"no epoch {text} a test accuracy of at least {min_accuracy}; the best is "
            f"{accuracy.max():.3f}. Train longer or at a higher rate"
        )
    return int(np.argmax(fits)) + 1


def peak_step(history: History) -> int:
    """Return the tracked step at which the mean trace is greatest.

    Raises:
        ValueError: If nothing was tracked.
    """
    if not len(history.steps):
        raise ValueError("history must hold traces; train with track_per_epoch ≥ 1")
    return int(history.steps[int(np.nanargmax(history.trace_mean))])


def describe_choice(
    history: History, epoch: int, *, rule: str = "peak", min_accuracy: float = 0.9
) -> str:
    """Say why an epoch was chosen, for a report.

    Args:
        history: Of the training.
        epoch: What `choose_epoch` chose; where its rule fits none, the most accurate one.
        rule: As there.
        min_accuracy: As there.

    Returns:
        The epoch, its step and test accuracy, the rule, and where the mean trace is greatest.
    """
    condition = {
        "peak": f"ends at or after the peak of the mean trace with a test accuracy of at least "
        f"{min_accuracy:g}",
        "accuracy": f"has a test accuracy of at least {min_accuracy:g}",
    }.get(rule)
    why = {"best": "the most accurate one", "epoch": "the one asked for"}.get(rule)
    if condition is not None:
        try:
            choose_epoch(history, rule=rule, min_accuracy=min_accuracy)
            why = f"the first that {condition}"
        except ValueError:
            why = f"the most accurate one, as none {condition}"
    step, accuracy = int(history.epoch_steps[epoch - 1]), history.test_accuracy[epoch - 1]
    text = f"It is epoch {epoch} (step {step}, test accuracy {accuracy:.3f}): {why}."
    if len(history.steps):
        text += f" The mean trace is greatest at step {peak_step(history)}."
    return text
