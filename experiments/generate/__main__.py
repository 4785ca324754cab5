"""S11: new images of the same label, by moving on the data leaf.

    python -m experiments.generate --out out/generate
    python -m experiments.generate --checkpoint out/train --epochs 1 5 30 --images 50

moves test images along the data leaf (Brownian motion that keeps p_label above a threshold, the
same without one, a walk toward another image of the class) and along the kernel, and compares the
results with white noise as long, with mixtures of two images of the class, and with training images
of the class. Images are clipped to the pixel box before they are judged, as they would be shown.

An independent classifier says whether the label was kept. Noise is read as in `noise_level`: the
deviation of white noise that would read the same, 0 for real images. Distances are over those of
real images: *moved* over the mean distance of two training images of the class, *nearest* over the
median distance of test images from the nearest training image; *spread* is the mean distance of two
samples of a start, or of a class, over that of two training images of the class.

With `--epochs` it says which degree of training served best, and whether the peak of the trace of G
predicts it. Writes a grid of samples, `results.json`, `run.json` and `report.html`.
"""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.generate import samples as _generate
from experiments.generate.samples import LABELS, Config
from experiments.harness import command as _command
from experiments.harness.common import FAILS, HOLDS, IN_PART, Loaded, load, percent
from experiments.harness.judge import Judge, judge
from experiments.harness.noise import SAME
from experiments.harness.report import section
from experiments.harness.training import obtain
from foliax import viz, zoo

_TITLE = "New images of the same label"
_CLAIM = "The data leaf can be used to generate new images with the same label."
_LESS = 0.05  # by which label agreement may be below that of the judge on test images
_VARIED = 0.5  # spread of the samples of a start that counts as variety, over that of real images
_COLUMNS = (
    "", "label kept", "p_label", "added noise", "moved", "nearest", "spread, start",
    "spread, class",
)  # fmt: skip
_MEASURES = (
    "agreement", "p_label.median", "noise", "moved.median", "nearest_training",
    "diversity_of_start", "diversity_of_class",
)  # fmt: skip


@dataclass(frozen=True)
class Command(_command.Command):
    """Which networks, which images, and how samples are made.

    Attributes:
        pairs: Test images to start from, a multiple of the number of classes.
        epochs: Epochs of the checkpoint to compare; none for the one of `epoch`.
        samples: Samples of each start.
        length: How far a free Brownian motion goes, over the distance of two images of a class.
        keep: Threshold of p_label, over p_label at the start.
        steps: Steps of a Brownian motion; a walk takes four times as many at most.
    """

    pairs: _command.Count = 30
    epochs: tuple[int, ...] = ()
    samples: int = 4
    length: float = 1.0
    keep: float = 0.9
    steps: int = 100
    out: Path = Path("out/generate")

    def config(self) -> Config:
        """Return the sizes of a run."""
        config = Config(
            num_starts=self.pairs, start=self.start, samples=self.samples, length=self.length,
            keep=self.keep, num_steps=self.steps, walk_steps=4 * self.steps, seed=self.seed,
        )  # fmt: skip
        if not self.quick:
            return config
        return replace(config, num_starts=min(10, self.pairs), num_steps=20, walk_steps=40)


def run(
    models: Mapping[str, Any],
    dataset: Any,
    out: Path,
    config: Config,
    oracle: Judge,
    *,
    peak: str | None = None,
) -> dict[str, Any]:
    """Make samples with every network, measure them and draw the grid of the best.

    Args:
        models: Networks by name, as that of their epoch.
        dataset: Their data.
        out: Folder for the pictures.
        config: How samples are made.
        oracle: The independent classifier.
        peak: Name of the network nearest to the peak of the trace, where that is known.

    Returns:
        The section of the report; see `_report.section`.
    """
    task = _generate.prepare(dataset, config)
    numbers: dict[str, Any] = {
        "num_starts": len(task.places),
        "samples": config.samples,
        "judge": {"words": oracle.words, "accuracy": oracle.accuracy},
        "networks": {},
    }
    kept = {}
    for name, model in models.items():
        kept[name] = _generate.make(model, dataset, task, config)
        measured = _generate.measure(model, dataset, task, kept[name], oracle)
        numbers["networks"][name] = {
            "methods": measured,
            "trace": _generate.trace(model, dataset.test_x[task.places]),
            "gain": _generate.gain(measured),
            "test_accuracy": zoo.accuracy(model, dataset.test_x, dataset.test_y),
        }
    best = _best(numbers["networks"])
    numbers |= {"best": best, "peak": peak}
    pictures = [_draw(dataset, task, kept[best], out / "generate.png", best)]
    if len(models) > 1:
        pictures.append(_draw_epochs(numbers["networks"], out / "generate_epochs.png"))
    return section(
        title=_TITLE,
        claim=_CLAIM,
        verdict=_judge(numbers),
        numbers=numbers,
        pictures=pictures,
        columns=_COLUMNS,
        rows=_rows(numbers),
    )


def _best(networks: Mapping[str, Any]) -> str:
    """Return where the leaf gains most over noise as long; of equal ones, the most varied."""

    def merit(name: str) -> tuple[float, float]:
        found = networks[name]
        return found["gain"]["mean"], found["methods"]["leaf"]["diversity_of_start"]

    return max(networks, key=merit)


def _rows(numbers: Mapping[str, Any]) -> list[tuple[str, ...]]:
    several = len(numbers["networks"]) > 1
    return [
        (
            f"{name}: {LABELS[method]}" if several else LABELS[method],
            *(f"networks.{name}.methods.{method}.{measure}" for measure in _MEASURES),
        )
        for name in numbers["networks"]
        for method in LABELS
    ]


def _judge(numbers: Mapping[str, Any]) -> tuple[str, str]:
    best, networks = numbers["best"], numbers["networks"]
    methods = networks[best]["methods"]
    leaf, noise, walk, convex, half = (
        methods[name] for name in ("leaf", "noise", "walk", "convex_short", "convex")
    )
    enough = numbers["judge"]["accuracy"] - _LESS
    told = (
        f"{numbers['num_starts']} test images, {numbers['samples']} samples of each; the judge is "
        f"right for {percent(numbers['judge']['accuracy'])} of test images. On the leaf ({best}) "
        f"the Brownian motion ends {leaf['moved']['median']:.2g} of the distance of two images of "
        f"a class away; the judge finds the label in {percent(leaf['agreement'])} of its samples, "
        f"in {percent(noise['agreement'])} of images with white noise as long and in "
        f"{percent(methods['leaf_free']['agreement'])} without the threshold. Samples of a start "
        f"are {leaf['diversity_of_start']:.2g} as far apart as real images of a class, and read "
        f"like real ones with noise of {leaf['noise']:.2g} of the pixel range (white noise as "
        f"long: {noise['noise']:.2g}). Walks toward another image of the class move "
        f"{walk['moved']['median']:.2g} and keep the label in {percent(walk['agreement'])}, "
        f"mixtures as far in {percent(convex['agreement'])}; they read {walk['noise']:.2g} and "
        f"{convex['noise']:.2g}. Images halfway between two of a class, "
        f"{half['moved']['median']:.2g} away, keep it in {percent(half['agreement'])} "
        f"and read {half['noise']:.2g}. "
    )
    told += _of_epochs(numbers)
    parts = {
        "keep the label less": leaf["agreement"] >= enough,
        "vary less": leaf["diversity_of_start"] >= _VARIED,
        "are noisier": leaf["noise"] <= SAME,
    }
    lacking = " and ".join(text for text, fulfilled in parts.items() if not fulfilled)
    if not lacking:
        return HOLDS, told + "Samples on the leaf keep the label, vary, and are as clean as real."
    gain = networks[best]["gain"]
    if gain["mean"] > gain["error"] or leaf["noise"] < noise["noise"] - SAME:
        return IN_PART, told + (
            f"Samples on the leaf are better than white noise as long, but {lacking} than asked."
        )
    return FAILS, told + "Samples on the leaf are no better than white noise as long."


def _of_epochs(numbers: Mapping[str, Any]) -> str:
    networks, peak = numbers["networks"], numbers["peak"]
    if len(networks) < 2:
        return ""
    gains = {name: found["gain"] for name, found in networks.items()}
    listed = ", ".join(
        f"{100 * gain['mean']:+.1f} ± {100 * gain['error']:.1f} at {name}"
        for name, gain in gains.items()
    )
    told = f"The gain over white noise, in points of label agreement, is {listed}. "
    if peak is None:
        return told
    best = gains[numbers["best"]]
    told += f"The peak of the trace is nearest to {peak}, which "
    if peak == numbers["best"]:
        return told + "is the best here. "
    if best["mean"] - gains[peak]["mean"] <= max(best["error"], gains[peak]["error"]):
        return told + "is not the best here, but within one standard error of it. "
    return told + "is not the best here. "


# --- pictures ----------------------------------------------------------------------------------


def _draw(dataset: Any, task: Any, made: Mapping[str, Any], file: Path, name: str) -> tuple:
    """Draw a row a method: a start and a sample of it, for one start of each class."""
    shown = [int(np.flatnonzero(task.labels == c)[0]) for c in np.unique(task.labels)][:9]
    rows = {"start": dataset.test_x[task.places[shown]]}
    rows |= {LABELS[m]: one.images[shown, 0] for m, one in made.items()}
    images = np.asarray(dataset.to_pixels(np.concatenate(list(rows.values()))))
    names = [dataset.class_names[int(task.labels[i])] for i in shown]
    captions = [names[i] if row == 0 else "" for row in range(len(rows)) for i in range(len(shown))]
    viz.strip(images, captions, file, row_labels=[_folded(label) for label in rows])
    return (
        file.name,
        f"A test image of each class and one sample of it by each method, clipped to the pixel "
        f"range; network {name}.",
    )


def _folded(label: str) -> str:
    return "\n".join(textwrap.wrap(label, 14))


def _draw_epochs(networks: Mapping[str, Any], file: Path) -> tuple[str, str]:
    names = tuple(networks)
    at = np.arange(len(names))

    def curve(method: str) -> viz.Curve:
        values = [found["methods"][method]["agreement"] for found in networks.values()]
        return viz.Curve(LABELS[method], at, values, reference=method == "real")

    traces = [found["trace"] for found in networks.values()]
    methods = [curve(m) for m in ("leaf", "leaf_free", "kernel", "walk", "noise", "real")]
    viz.curves(
        [
            viz.Panel("Label kept", "", "share of samples", methods, x_names=names),
            viz.Panel("Trace of G at the starts", "", "mean trace",
                      [viz.Curve("trace", at, traces)], x_names=names),
        ],
        file,
    )  # fmt: skip
    return file.name, "Label agreement by the judge, and the mean trace of G, by epoch."


# --- the command -------------------------------------------------------------------------------


def measure_command(command: Command) -> _command.Found:
    """Make and measure samples with the networks of a command."""
    peak, epochs = None, command.epochs
    if epochs:
        if command.checkpoint is None:
            raise ValueError("epochs need --checkpoint (a training's folder)")
        loaded = load(command.dataset, checkpoint=command.checkpoint, epoch=epochs[0])
        trained = obtain(
            loaded.dataset.name, epochs=0, learning_rate=0.0, seed=0, out=command.out,
            checkpoint=str(command.checkpoint),
        )  # fmt: skip
        models = {f"epoch {epoch}": trained.model(epoch) for epoch in epochs}
        if len(trained.history.steps):
            first = zoo.choose_epoch(trained.history, rule="peak", min_accuracy=0.0)
            peak = f"epoch {min(epochs, key=lambda epoch: abs(epoch - first))}"
    else:
        loaded = command.load()
        models = {"network": loaded.model}
    oracle = judge(loaded.dataset, quick=command.quick)
    found = run(models, loaded.dataset, command.out, command.config(), oracle, peak=peak)
    best = Loaded(models[found["numbers"]["best"]], loaded.dataset, loaded.network)
    if epochs:
        best = best._replace(network=f"{trained.network}, {found['numbers']['best']}")
    return _command.Found(best, {"S11": found}, {}, f"The judge: {oracle.words}.")


if __name__ == "__main__":
    _command.main(Command, measure_command, name="generate", description=__doc__)
