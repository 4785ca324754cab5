"""What a network cannot tell apart: images that look like another one, with the same p.

    python -m experiments.metamer --dataset mnist_5k --pairs 100 --out out/metamer
    python -m experiments.metamer --checkpoint out/train --epochs 1 5 20 --pairs 100
    python -m experiments.metamer --dataset mnist_5k --trainings --pairs 100

finds, for pairs of test images of two classes, the image nearest to the second that has the
probabilities of the first (`foliax.closest` along the kernel): how near it comes, how far p moves,
and what an independent classifier sees in it, network by network. For a few images it measures the
invariance radius, the way to the nearest metamer that shows another class, beside the sensitivity
radius, the way along the data leaf to another label. And it asks what tells metamers from images:
trace and spectrum of G, the noise, the distance to training images in pixels and in features.

Writes `metamer.png`, the grid of all classes `metamer_classes.png` (row: what the network says,
column: what one sees), `metamer.gif`, `results.json`, `paths.json` (every pair), `run.json` and
`report.html`.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import roc_auc_score

import foliax
from experiments.harness import command as commands
from experiments.harness import noise
from experiments.harness.classifier import Classifier, independent
from experiments.harness.networks import Loaded
from experiments.harness.populations import (
    distance_to,
    norms,
    pick,
    predict,
    quartiles,
    rank_correlation,
    right,
    status_name,
)
from experiments.harness.report import FAILS, HOLDS, IN_PART, percent, section
from experiments.harness.run import in_parts, sweep
from experiments.metamer.trainings import trained
from foliax import viz, zoo
from foliax.apps import explain
from foliax.apps.metamer import invariance_radius, metamers

_KEPT = 1e-5  # largest change of a probability at which p counts as kept
_SHOWN = 4  # pairs in the picture
_FRAMES = 24
_EPOCHS = 10  # of each training
_RIVALS = 3  # classes to which the data leaf is followed
_REACH_STEPS = 400
_BANK = 5000  # training images at most, for neighbours


@dataclass(frozen=True)
class Command(commands.Command):
    """Which network, which images, and how far the search goes."""

    pairs: commands.Count = 100  # How many pairs of test images
    # Epochs of the training to compare; none for `epoch` alone. Pictures are of the first.
    epochs: tuple[int, ...] = ()
    # Compare three trainings of one small network instead: plain, with a penalty on trace G, and
    # adversarial (projected gradient).
    trainings: bool = False
    budget: float = 3.0  # Of the adversarial training, normalised units
    steps: int = 60  # Steps at most, from either side
    radii: int = 20  # Images whose two radii are measured; 0 for none
    references: int = 3  # Images of other classes, for each of them


def measure_command(command: Command) -> commands.Found:
    """Find the metamers of every network, and draw those of the first."""
    command = command.at_most(pairs=8, radii=2, references=2, steps=30)
    networks = load(command)
    shown = next(iter(networks.values()))
    data = shown.dataset
    classifier = independent(data, quick=command.quick)
    numbers: dict[str, Any] = {}
    rows: list[Any] = []
    for name, network in networks.items():
        starts, targets = drawn(network.model, data, command.pairs, command.seed)
        found = nearest(network.model, data, starts, targets, steps=command.steps)
        numbers[name] = summary(network.model, data, starts, targets, found, classifier)
        if command.radii:
            numbers[name]["radii"] = radii(network.model, data, classifier, command)
        rows += records(name, starts, targets, found, classifier)
        if network is shown:
            draw(network, starts, targets, found, classifier, command.out)
            draw_classes(network, command.out / "metamer_classes.png", steps=command.steps)
    found = section(
        title="What the network cannot tell apart",
        claim="When moving away from a given data leaf, noise is added, but the accuracy is high.",
        verdict=_verdict(numbers, classifier),
        numbers=numbers | {"classifier_accuracy": classifier.accuracy},
        pictures={
            "metamer.png": "Each row: an image, metamers of it on the way to the last image, the "
            "nearest one, and that image. Under each, what the network says; in brackets, what "
            f"the independent classifier sees ({classifier.words}).",
            "metamer_classes.png": "Row: what the network says. Column: what one sees.",
            "metamer.gif": "From the first image to its metamer; p does not change.",
        },
        columns=("", *numbers),
        rows=[[words, *(f"{name}.{path}" for name in numbers)] for words, path in _table(command)],
    )
    return commands.Found(shown, {"metamer": found}, {"pairs": rows})


def load(command: Command) -> dict[str, Loaded]:
    """Return the networks that are compared, by name."""
    if not command.trainings:
        found = command.load_each(command.epochs)
        return {f"epoch {e}" if command.epochs else "network": one for e, one in found.items()}
    return trained(
        command.load().dataset, epochs=1 if command.quick else _EPOCHS, budget=command.budget,
        seed=command.seed,
    )  # fmt: skip


def drawn(model: Any, data: Any, pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw places of pairs of test images, both classified rightly, of two classes."""
    rng = np.random.default_rng(seed)
    known = np.flatnonzero(right(model, data.test_x, data.test_y))
    starts = rng.permutation(known)[:pairs]
    others = [known[data.test_y[known] != data.test_y[start]] for start in starts]
    if len(starts) < pairs or not all(map(len, others)):
        raise ValueError(
            f"pairs must be at most the {len(known)} test images that the network classifies "
            f"rightly, of two classes at least, got {pairs}"
        )
    return starts, np.array([rng.choice(other) for other in others])


def nearest(model: Any, data: Any, starts: Any, targets: Any, *, steps: int) -> Any:
    """Return the metamer of each start that is nearest to its target."""
    search = partial(
        foliax.map, foliax.closest, along="kernel", box=data.box, max_steps=steps, block=1
    )
    return in_parts(search, model, data.test_x[starts], data.test_x[targets])


def summary(
    model: Any, data: Any, starts: Any, targets: Any, found: Any, classifier: Classifier
) -> dict[str, Any]:
    """Return the statistics of a population of metamers."""
    way = norms(data.test_x[targets] - data.test_x[starts])
    seen = classifier.predict(found.point)
    labels = np.asarray(predict(model, found.point)[0])
    pixels = [data.to_pixels(images) for images in (data.test_x[starts], found.point)]
    return {
        "num_pairs": len(starts),
        "accuracy": zoo.accuracy(model, data.test_x, data.test_y),
        "left": quartiles(found.distance / way),
        "change_of_p": quartiles(found.probability_change),
        "p_kept": float(np.mean(found.probability_change <= _KEPT)),
        "label_kept": float(np.mean(labels == data.test_y[starts])),
        "seen_as_target": float(np.mean(seen == data.test_y[targets])),
        "seen_as_start": float(np.mean(seen == data.test_y[starts])),
        "noise": {
            name: quartiles(noise.whole_readings(images))
            for name, images in zip(("images", "metamers"), pixels, strict=True)
        },
        "on_bounds": quartiles(found.active_bounds / np.prod(data.shape)),
        "told_apart": told_apart(model, data, starts, found),
    }


def told_apart(model: Any, data: Any, starts: Any, found: Any) -> dict[str, float]:
    """Return, by score, the AUROC of metamers against the images that they started from."""
    bank = data.take(np.arange(min(_BANK, data.length("train"))), split="train")[0]
    feature = jax.jit(jax.vmap(zoo.penultimate(model)))

    in_pixels, in_features = distance_to(bank), distance_to(feature(jnp.asarray(bank)))

    def spectral(images: Any) -> dict[str, Any]:
        found = sweep(foliax.spectrum, model, np.asarray(images), batch=64, block=8)
        first = found.eigenvalues[:, 0] / np.maximum(found.trace, np.finfo(np.float32).tiny)
        return {"trace of G": found.trace, "share of the first eigenvalue": first}

    scores = {
        "estimated noise": lambda images: noise.whole_readings(data.to_pixels(images)),
        "nearest training image, pixels": in_pixels,
        "nearest training image, features": lambda xs: in_features(feature(jnp.asarray(xs))),
    }
    sets = data.test_x[starts], np.asarray(found.point)
    scored = [spectral(images) | {k: of(images) for k, of in scores.items()} for images in sets]
    truth = np.repeat([0, 1], [len(images) for images in sets])
    return {
        name: float(roc_auc_score(truth, np.concatenate([one[name] for one in scored])))
        for name in scored[0]
    }


def radii(model: Any, data: Any, classifier: Classifier, command: Command) -> dict[str, Any]:
    """Return the invariance and the sensitivity radius of a few images, and how they go together.

    The first is the way to the nearest metamer that the independent classifier sees as another
    class, over references of other classes; the second that along the data leaf to another label.
    """
    rng = np.random.default_rng(command.seed + 1)
    known = np.flatnonzero(right(model, data.test_x, data.test_y))
    places = rng.permutation(known)[: command.radii]
    references = np.stack([
        data.train_x[rng.choice(np.flatnonzero(data.train_y != label), command.references, False)]
        for label in data.test_y[places]
    ])  # fmt: skip
    xs = data.test_x[places]

    def ways(model: Any, x: Any, references: Any) -> Any:
        return metamers(model, x, references, box=data.box, max_steps=command.steps)

    found = in_parts(partial(foliax.map, ways, block=1), model, xs, references)
    shape = found.moved.shape
    seen = classifier.predict(found.points.reshape(-1, *data.shape)).reshape(shape)
    invariance = np.array([
        invariance_radius(moved, read, int(label)).radius
        for moved, read, label in zip(found.moved, seen, data.test_y[places], strict=True)
    ])  # fmt: skip
    sensitivity = np.asarray(in_parts(partial(foliax.map, sensitivity_radius, block=1), model, xs))
    both = np.isfinite(invariance) & np.isfinite(sensitivity)
    correlation, p_value = rank_correlation(invariance[both], sensitivity[both])
    return {
        "num_images": len(places),
        "invariance": quartiles(invariance),
        "invariance_found": float(np.mean(np.isfinite(invariance))),
        "sensitivity": quartiles(sensitivity),
        "rank_correlation": correlation,
        "p_value": p_value,
    }


def sensitivity_radius(model: Any, x: Any) -> Any:
    """Return the shortest of the ways along the data leaf to the next most probable classes."""
    others = jnp.argsort(-model(x))[1 : 1 + _RIVALS]

    def chord(label: Any) -> Any:
        found = explain.reach(model, x, label, step=0.25, max_steps=_REACH_STEPS)
        return jnp.where(found.status == foliax.Status.arrived, found.chord, jnp.inf)

    return jnp.min(jax.lax.map(chord, others))


def records(
    name: str, starts: Any, targets: Any, found: Any, classifier: Classifier
) -> list[dict[str, Any]]:
    """Return what is known of every pair."""
    seen = classifier.predict(found.point)
    return [
        {
            "network": name,
            "start": int(starts[i]),
            "target": int(targets[i]),
            "seen_as": int(seen[i]),
            "status": status_name(pick(found.status, i)),
        }
        | {
            field: float(getattr(found, field)[i])
            for field in ("distance", "probability_change", "defect", "optimality", "num_steps")
        }
        for i in range(len(starts))
    ]


# --- pictures ----------------------------------------------------------------------------------


def draw(
    network: Loaded, starts: Any, targets: Any, found: Any, classifier: Classifier, out: Path
) -> None:
    """Draw the first pairs in rows, and the way of the first one as an animation."""
    model, data = network.model, network.dataset
    images, captions = [], []
    for i in range(min(_SHOWN, len(starts))):
        x, target = data.test_x[starts[i]], data.test_x[targets[i]]
        way = metamers(model, x, target[None], num=4, box=data.box).points[0, :3]
        row = np.concatenate([x[None], way, found.point[i][None], target[None]])
        images.append(row)
        captions += _said(model, data, row, classifier)
    pixels = data.to_pixels(np.concatenate(images))
    viz.strip(pixels, captions, out / "metamer.png", columns=6)
    x, target = data.test_x[starts[0]], data.test_x[targets[0]]
    way = metamers(model, x, target[None], num=_FRAMES, box=data.box).points[0]
    frames = np.concatenate([x[None], way])
    said = _said(model, data, frames, classifier)
    viz.gif(data.to_pixels(frames), said, out / "metamer.gif")


def _said(model: Any, data: Any, images: Any, classifier: Classifier) -> list[str]:
    labels, p = predict(model, images)
    seen = classifier.predict(images)
    names = data.class_names
    return [
        f"{names[int(label)]}, p = {float(q):.4f}\n[{names[int(s)]}]"
        for label, q, s in zip(labels, p, seen, strict=True)
    ]


def draw_classes(network: Loaded, file: Path, *, steps: int) -> None:
    """Draw the grid of all classes: row, what the network says; column, what one sees."""
    model, data = network.model, network.dataset
    known = right(model, data.test_x, data.test_y)
    first = [np.flatnonzero(known & (data.test_y == c))[:2] for c in range(data.num_classes)]
    if not all(len(places) == 2 for places in first):
        return  # a network that does not know every class has no such grid
    # A row begins at the first image of its class and goes to the second of each class.
    starts = np.repeat([places[0] for places in first], data.num_classes)
    targets = np.tile([places[1] for places in first], data.num_classes)
    found = nearest(model, data, starts, targets, steps=steps)
    labels, p = predict(model, found.point)
    names = data.class_names
    captions = [f"{names[int(c)]} {float(q):.3f}" for c, q in zip(labels, p, strict=True)]
    viz.strip(data.to_pixels(found.point), captions, file, row_labels=names)


# --- words ---------------------------------------------------------------------------------------


def _table(command: Command) -> list[tuple[str, str]]:
    rows = [
        ("test accuracy", "accuracy"),
        ("share of the way that is left, median", "left.median"),
        ("change of p, largest", "change_of_p.largest"),
        ("share where p is kept to 1e-5", "p_kept"),
        ("share that an independent classifier sees as the target's class", "seen_as_target"),
        ("share that it sees as the start's", "seen_as_start"),
        ("estimated noise of the images, median", "noise.images.median"),
        ("estimated noise of the metamers, median", "noise.metamers.median"),
        *(
            (f"told from images by {name}, AUROC", f"told_apart.{name}")
            for name in (
                "trace of G", "share of the first eigenvalue", "estimated noise",
                "nearest training image, pixels", "nearest training image, features",
            )
        ),
    ]  # fmt: skip
    if command.radii:
        rows += [
            ("invariance radius, median", "radii.invariance.median"),
            ("sensitivity radius, median", "radii.sensitivity.median"),
            ("rank correlation of the two", "radii.rank_correlation"),
        ]
    return rows


def _verdict(numbers: dict[str, Any], classifier: Classifier) -> tuple[str, str]:
    first = next(iter(numbers.values()))
    text = (
        f"Of {first['num_pairs']} pairs, the nearest image with the probabilities of the start is "
        f"{percent(first['left']['median'])} of the way from the target (median); p moves by at "
        f"most {first['change_of_p']['largest']:.1g}, and {percent(first['label_kept'])} keep "
        f"their label. An independent classifier, {percent(classifier.accuracy)} right on test "
        f"images, sees the target's class in {percent(first['seen_as_target'])} and the start's in "
        f"{percent(first['seen_as_start'])}."
    )
    if first["label_kept"] < 1:
        return FAILS, text
    return (HOLDS if first["seen_as_start"] >= 0.9 else IN_PART), text


if __name__ == "__main__":
    commands.main(Command, measure_command, name="metamer", description=__doc__)
