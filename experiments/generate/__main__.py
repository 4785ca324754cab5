"""S11: new images of the same label, by moving on the data leaf.

    python -m experiments.generate --out out/generate
    python -m experiments.generate --checkpoint out/train --epochs 1 5 30 --images 50

moves test images along the data leaf (Brownian motion that keeps p_label above a threshold, the
same without one, a walk toward another image of the class) and along the kernel, and compares the
results with white noise as long, with mixtures of two images of the class, and with training images
of the class. What is measured is measured of images clipped to the pixel box.

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
from pathlib import Path
from typing import Any

import numpy as np

import foliax
from experiments.generate import samples
from experiments.generate.samples import LABELS, Command
from experiments.harness import command as commands
from experiments.harness.classifier import Classifier, independent
from experiments.harness.networks import training_history
from experiments.harness.noise import SAME
from experiments.harness.report import FAILS, HOLDS, IN_PART, percent, section
from experiments.harness.run import sweep
from foliax import viz, zoo

_LESS = 0.05  # by which label agreement may be below that of the classifier on test images
_VARIED = 0.5  # spread of the samples of a start that counts as variety, over that of real images
_MEASURES = {
    "label kept": "agreement", "p_label": "p_label.median", "added noise": "noise",
    "moved": "moved.median", "nearest": "nearest_training", "spread, start": "diversity_of_start",
    "spread, class": "diversity_of_class",
}  # fmt: skip


def run(
    models: Mapping[str, Any],
    dataset: Any,
    command: Command,
    classifier: Classifier,
    peak: str | None,
) -> dict[str, Any]:
    """Return the section on samples made with every network, and draw the grid of the best.

    `peak` names the network nearest to the peak of the trace, where that is known.
    """
    out, command = command.out, command.at_most(pairs=10, steps=20)
    task = samples.prepare(dataset, command)
    networks, made = {}, {}
    for name, model in models.items():
        made[name] = samples.make(model, dataset, task, command)
        measured = samples.measure(model, dataset, task, made[name], classifier)
        traces = sweep(foliax.trace, model, dataset.test_x[task.places], progress=False)
        networks[name] = {
            "methods": measured,
            "trace": float(np.mean(traces)),
            "gain": samples.gain(measured),
            "test_accuracy": zoo.accuracy(model, dataset.test_x, dataset.test_y),
        }
    best = _best(networks)
    numbers = {
        "num_starts": len(task.places),
        "samples": command.samples,
        "classifier": {"words": classifier.words, "accuracy": classifier.accuracy},
        "networks": networks,
        "best": best,
        "peak": peak,
    }
    return section(
        title="New images of the same label",
        claim="The data leaf can be used to generate new images with the same label.",
        verdict=_verdict(numbers),
        numbers=numbers,
        pictures=[_draw(dataset, task, made[best], out / "generate.png", best)],
        columns=("", *_MEASURES),
        rows=[
            (
                f"{name}: {label}" if len(models) > 1 else label,
                *(f"networks.{name}.methods.{method}.{path}" for path in _MEASURES.values()),
            )
            for name in networks
            for method, label in LABELS.items()
        ],
    )


def _best(networks: Mapping[str, Any]) -> str:
    """Return where the leaf gains most over noise as long; of equal ones, the most varied."""

    def merit(name: str) -> tuple[float, float]:
        found = networks[name]
        return found["gain"]["mean"], found["methods"]["leaf"]["diversity_of_start"]

    return max(networks, key=merit)


def _verdict(numbers: Mapping[str, Any]) -> tuple[str, str]:
    accuracy, found = numbers["classifier"]["accuracy"], numbers["networks"][numbers["best"]]
    leaf, white = found["methods"]["leaf"], found["methods"]["noise"]
    kept = ", ".join(
        f"{LABELS[name]} {percent(one['agreement'])}" for name, one in found["methods"].items()
    )
    text = (
        f"Labels kept with {numbers['best']}, of {numbers['num_starts']} test images and "
        f"{numbers['samples']} samples of each, by a classifier right for {percent(accuracy)} of "
        f"test images: {kept}. {_of_epochs(numbers)}"
    )
    parts = {
        "keep the label less": leaf["agreement"] >= accuracy - _LESS,
        "vary less": leaf["diversity_of_start"] >= _VARIED,
        "are noisier": leaf["noise"] <= SAME,
    }
    lacking = " and ".join(words for words, fulfilled in parts.items() if not fulfilled)
    if not lacking:
        return HOLDS, text + "Samples on the leaf keep the label, vary, and are as clean as real."
    if found["gain"]["mean"] > found["gain"]["error"] or leaf["noise"] < white["noise"] - SAME:
        return IN_PART, text + (
            f"Samples on the leaf are better than white noise as long, but {lacking} than asked."
        )
    return FAILS, text + "Samples on the leaf are no better than white noise as long."


def _of_epochs(numbers: Mapping[str, Any]) -> str:
    gains = {name: found["gain"] for name, found in numbers["networks"].items()}
    if len(gains) < 2:
        return ""
    listed = ", ".join(
        f"{100 * gain['mean']:+.1f} ± {100 * gain['error']:.1f} at {name}"
        for name, gain in gains.items()
    )
    peak = numbers["peak"]
    nearest = "" if peak is None else f"; the peak of the trace is nearest to {peak}"
    return f"The gain over white noise, in points of label agreement, is {listed}{nearest}. "


def _draw(dataset: Any, task: Any, made: Mapping[str, Any], file: Path, name: str) -> tuple:
    """Draw a row a method: a start and a sample of it, for one start of each class."""
    shown = [int(np.flatnonzero(task.labels == c)[0]) for c in np.unique(task.labels)][:9]
    rows = {"start": dataset.test_x[task.places[shown]]}
    rows |= {LABELS[m]: one.images[shown, 0] for m, one in made.items()}
    images = np.asarray(dataset.to_pixels(np.concatenate(list(rows.values()))))
    captions = [dataset.class_names[int(task.labels[i])] for i in shown]
    captions += [""] * (len(images) - len(captions))
    viz.strip(
        images, captions, file, row_labels=["\n".join(textwrap.wrap(each, 14)) for each in rows]
    )
    return (
        file.name,
        f"A test image of each class and one sample of it by each method, clipped to the pixel "
        f"range; network {name}.",
    )


def measure_command(command: Command) -> commands.Found:
    """Make and measure samples with the networks of a command."""
    epochs, peak = command.epochs, None
    networks = {
        f"epoch {epoch}" if epochs else "network": loaded
        for epoch, loaded in command.load_each(epochs).items()
    }
    history = training_history(command.checkpoint) if epochs else None
    if history is not None and len(history.steps):
        first = zoo.choose_epoch(history, rule="peak", min_accuracy=0.0)
        peak = f"epoch {min(epochs, key=lambda epoch: abs(epoch - first))}"
    data = next(iter(networks.values())).dataset
    classifier = independent(data, quick=command.quick)
    models = {name: loaded.model for name, loaded in networks.items()}
    found = run(models, data, command, classifier, peak)
    network = networks[found["numbers"]["best"]]
    return commands.Found(network, {"S11": found}, {}, f"The classifier: {classifier.words}.")


if __name__ == "__main__":
    commands.main(Command, measure_command, name="generate", description=__doc__)
