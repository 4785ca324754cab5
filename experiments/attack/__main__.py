"""Attacks along the eigenvectors of G beside the usual ones, and a penalty against all of them.

    python -m experiments.attack --images 300 --out out/attack
    python -m experiments.attack --checkpoint out/train --images 200

moves test images that the network sees as what they are, by eight Euclidean budgets, in a random
direction, along the top eigenvector of G in one, two and eight steps, along the geodesic that
begins there, and by the gradient of the loss in one step and in twenty; and counts how many get
another label. Then trains a dense network with a penalty on the mean trace of G, at several
strengths, and attacks it beside one without, and beside the same stopped where it was as accurate.
Writes `attack.png`, `attack_images.png`, `results.json`, `paths.json`, `run.json`, `report.html`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from experiments.attack import runs
from experiments.attack.runs import EIGHT, GEODESIC, GRADIENT, ONE, PROJECTED, RANDOM, SIGNS, TWO
from experiments.harness import command as commands
from experiments.harness.populations import predict, right
from experiments.harness.report import FAILS, HOLDS, IN_PART, percent, section
from foliax import viz

_BUDGETS = 8
_SHOWN = 4  # images in the picture
_PENALISED = (RANDOM, ONE, GRADIENT, PROJECTED)  # attacks on networks with a penalty
_PICTURES = {
    "attack.png": "The share of images that get another label, by the length of the move: along "
    "eigenvectors of G (dashed, the gradient), by the gradient (dashed, a random direction), and "
    "by the projected gradient on networks trained with a penalty on the trace of G (dashed, "
    "without one).",
    "attack_images.png": "Images, and what each attack makes of them at the smallest budget at "
    "which it fools, or the largest.",
}


@dataclass(frozen=True)
class Command(commands.Command):
    """Which network, which images, how far, and how the networks with a penalty are trained."""

    # How many test images at most; those that are misclassified are left out.
    pairs: commands.Count = 300
    # The largest budget, normalised units; None for the median distance of a test image from its
    # nearest training image.
    budget: float | None = None
    steps: int = 32  # Steps of the geodesics
    # Strengths λ of the penalty on the mean trace of G.
    penalties: tuple[float, ...] = (0.1, 1.0, 10.0)
    hidden: int = 128  # Units of the hidden layer of the networks with a penalty
    epochs: int = 10  # Epochs of their training
    rate: float = 1e-3  # Its learning rate


def measure_command(command: Command) -> commands.Found:
    """Attack, train with penalties, attack again, and draw."""
    loaded = command.load()
    data = loaded.dataset
    places = command.starts(len(data.test_x))[: 60 if command.quick else None]
    xs, labels = data.test_x[places], data.test_y[places]
    top = command.budget or runs.largest_budget(data, xs)
    budgets = [float(b) for b in top * np.arange(1, _BUDGETS + 1) / _BUDGETS]
    seen = right(loaded.model, xs, labels)
    xs_seen, labels_seen = xs[seen], labels[seen]
    chosen = runs.at_budgets(
        tuple(runs.attacks(command.steps)), budgets, data.box, command.steps, keep=True
    )
    found = runs.fooling(chosen, loaded.model, xs_seen, command.seed)
    few = runs.at_budgets(_PENALISED, budgets, data.box, command.steps)
    networks = _penalised(command, data, xs, labels, few)
    _draw(budgets, runs.summary(found), networks, command.out / "attack.png")
    _draw_images(loaded, xs_seen, labels_seen, budgets, found, command.out)
    sections = {
        "spectral": _spectral(found, budgets, len(xs_seen)),
        "penalty": _penalty(networks, budgets),
    }
    images = [
        {"place": int(place)} | {name: one.fooled[i] for name, one in found.items()}
        for i, place in enumerate(places[seen])
    ]
    return commands.Found(loaded, sections, {"images": images})


def _penalised(command: Command, data: Any, xs: Any, labels: Any, chosen: Any) -> dict[str, Any]:
    """Train and attack: without penalty, with each, and without where it was as accurate."""
    recipe: dict[str, Any] = {
        "hidden": command.hidden, "epochs": 2 if command.quick else command.epochs,
        "rate": command.rate, "seed": command.seed,
    }  # fmt: skip
    plain = runs.trained(data, 0.0, **recipe)
    networks = {"none": ("no penalty", plain[-1])}
    for i, penalty in enumerate(command.penalties, 1):
        hard = runs.trained(data, penalty, **recipe)[-1]
        stopped = runs.as_accurate(plain, hard.accuracy)
        networks[f"penalty_{i}"] = f"penalty {penalty:g}", hard
        networks[f"stopped_{i}"] = f"no penalty, epoch {stopped.epoch}", stopped
    found = {}
    for name, (words, one) in networks.items():
        seen = right(one.model, xs, labels)
        # All images, in one shape, so that nothing compiles again; the others do not count.
        attacked = runs.fooling(chosen, one.model, xs, command.seed)
        kept = {n: each._replace(fooled=each.fooled[seen], kl=each.kl[seen])
                for n, each in attacked.items()}  # fmt: skip
        found[name] = {
            "name": words,
            "penalty": one.penalty,
            "epoch": one.epoch,
            "accuracy": one.accuracy,
            "num_images": int(seen.sum()),
            "trace_train": runs.trace_numbers(one.model, data.train_x),
            "trace_test": runs.trace_numbers(one.model, xs),
            "attacks": runs.summary(kept),
        }
    return found


def _spectral(found: Any, budgets: list[float], count: int) -> dict[str, Any]:
    one, two = (np.asarray(found[name].fooled) for name in (ONE, TWO))
    gained, lost = int(np.sum(two & ~one)), int(np.sum(one & ~two))
    more = two.mean(axis=0) >= one.mean(axis=0)
    per_image = two.sum(axis=1) - one.sum(axis=1)
    better, worse = int(np.sum(per_image > 0)), int(np.sum(per_image < 0))
    sign = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    numbers = {
        "num_images": count,
        "budgets": budgets,
        "attacks": runs.summary(found),
        "two_over_one": {
            "budgets_no_worse": int(more.sum()),
            "fooled_by_two_only": gained,
            "fooled_by_one_only": lost,
            "images_for_two": better,
            "images_for_one": worse,
            "sign_test_p": sign,
        },
    }
    holds = more.all() and gained > lost and sign < 0.05
    return section(
        title="Attacks along the eigenvectors of G",
        claim="Two steps, which follow the curvature of the leaf, fool more often than one along "
        "the top eigenvector of G, at every budget.",
        verdict=(HOLDS if holds else IN_PART if gained > lost else FAILS, _say_spectral(numbers)),
        numbers=numbers,
        pictures=list(_PICTURES.items()),
        columns=("attack", f"fooled at {budgets[3]:.3g}", f"at {budgets[-1]:.3g}", "over all"),
        rows=[
            (name, *(f"attacks.{name}.fooled_{at}" for at in ("at_half", "at_most", "mean")))
            for name in numbers["attacks"]
        ],
    )


def _say_spectral(numbers: dict[str, Any]) -> str:
    two, budgets = numbers["two_over_one"], numbers["budgets"]
    order = (ONE, TWO, EIGHT, GEODESIC, GRADIENT, SIGNS, PROJECTED, RANDOM)
    fooled = ", ".join(
        f"{name} {percent(numbers['attacks'][name]['fooled_mean'])}" for name in order
    )
    return (
        f"Over {numbers['num_images']} images and {len(budgets)} budgets up to {budgets[-1]:.3g} "
        f"these fool: {fooled}. Two steps are no worse than one at {two['budgets_no_worse']} of "
        f"{len(budgets)} budgets; of {numbers['num_images'] * len(budgets)} cases they alone fool "
        f"in {two['fooled_by_two_only']}, one step alone in {two['fooled_by_one_only']} (by image, "
        f"a sign test gives p = {two['sign_test_p']:.2g})."
    )


def _penalty(networks: dict[str, Any], budgets: list[float]) -> dict[str, Any]:
    def fooled(one: Any) -> float:
        return one["attacks"][PROJECTED]["fooled_mean"]

    def said(one: Any) -> str:
        return (
            f"{one['name']}: {percent(fooled(one))} at an accuracy of {percent(one['accuracy'])} "
            f"and a mean trace of {one['trace_train']['mean']:.3g}"
        )

    pairs = [
        (networks[f"penalty_{i}"], networks[f"stopped_{i}"])
        for i in range(1, len(networks) // 2 + 1)
    ]
    gained = [fooled(stopped) > fooled(one) for one, stopped in pairs]
    return section(
        title="A penalty on the trace of G",
        claim="A network that is trained with a penalty on the mean trace of G is fooled less "
        "often, and less often than one that is as accurate for having been trained less.",
        verdict=(
            HOLDS if all(gained) else IN_PART if any(gained) else FAILS,
            f"The projected gradient fools, over all budgets up to {budgets[-1]:.3g} (mean trace "
            f"on training images): {'; '.join(map(said, networks.values()))}.",
        ),
        numbers={"networks": networks},
        pictures=[],
        columns=("network", "accuracy", "mean trace, training", "random", "top eigenvector",
                 "gradient", "projected gradient"),
        rows=[
            (one["name"], f"networks.{name}.accuracy", f"networks.{name}.trace_train.mean",
             *(f"networks.{name}.attacks.{attack}.fooled_mean" for attack in _PENALISED))
            for name, one in networks.items()
        ],
    )  # fmt: skip


def _draw(budgets: list[float], rates: Any, networks: dict[str, Any], file: Path) -> None:
    def panel(title: str, shares: dict[str, Any], grey: str) -> viz.Panel:
        curves = [
            viz.Curve(name, budgets, share, reference=name == grey)
            for name, share in shares.items()
        ]
        axes = ("length of the move, normalised", "share with another label")
        return viz.Panel(title, *axes, curves, y_range=(0, 1))

    def of(*names: str) -> dict[str, Any]:
        return {name: rates[name]["fooled"] for name in names}

    labels = {
        name: f"{one['name']}, accuracy {one['accuracy']:.3f}"
        for name, one in networks.items()
        if not name.startswith("stopped")
    }
    by_penalty = {
        label: networks[name]["attacks"][PROJECTED]["fooled"] for name, label in labels.items()
    }
    along = of(ONE, TWO, EIGHT, GEODESIC, GRADIENT)
    viz.curves(
        [
            panel("Along eigenvectors of G", along, GRADIENT),
            panel("By the gradient", of(GRADIENT, SIGNS, PROJECTED, RANDOM), RANDOM),
            panel("PGD after a penalty on trace G", by_penalty, labels["none"]),
        ],
        file,
    )


def _draw_images(
    loaded: Any, xs: Any, labels: Any, budgets: list[float], found: Any, out: Path
) -> None:
    """Draw what each attack makes of the first images, at the least budget that fools."""
    data, images, captions = loaded.dataset, [], []
    for i, (x, label) in enumerate(zip(xs[:_SHOWN], labels, strict=False)):
        images.append(x)
        captions.append(str(data.class_names[label]))
        for name, one in found.items():
            at = int(np.argmax(one.fooled[i])) if one.fooled[i].any() else len(budgets) - 1
            images.append(one.end[i, at])
            new, p = (np.asarray(part)[0] for part in predict(loaded.model, one.end[i, at][None]))
            title = name.replace(" along the top eigenvector", "").split(" (")[0]
            captions.append(f"{title}\n{budgets[at]:.2g}: {data.class_names[new]}, {p:.2f}")
    pixels = data.to_pixels(np.stack(images))
    viz.strip(pixels, captions, out / "attack_images.png", columns=1 + len(found))


if __name__ == "__main__":
    commands.main(Command, measure_command, name="attack", description=__doc__)
