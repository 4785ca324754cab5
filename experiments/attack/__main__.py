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

from experiments.attack import measured
from experiments.harness import command as _command
from experiments.harness.common import FAILS, HOLDS, IN_PART, percent, predict
from experiments.harness.report import section
from foliax import viz

_BUDGETS = 8
_SHOWN = 4
_ONE, _TWO = "one step along the top eigenvector", "two steps"
_GRADIENT, _SIGNS = "gradient", "gradient, signs (FGSM)"
_PROJECTED = "projected gradient (PGD)"
_HARDENED = ("random direction", _ONE, _GRADIENT, _PROJECTED)


@dataclass(frozen=True)
class Command(_command.Command):
    """Which network, which images, how far, and how the networks with a penalty are trained.

    Attributes:
        pairs: How many test images at most; those that are misclassified are left out.
        budget: The largest budget, normalised units; None for the median distance of a test image
            from its nearest training image.
        steps: Steps of the geodesics.
        penalties: Strengths λ of the penalty on the mean trace of G.
        hidden: Units of the hidden layer of the networks with a penalty.
        epochs: Epochs of their training.
        rate: Its learning rate.
    """

    pairs: _command.Count = 300
    budget: float | None = None
    steps: int = 32
    penalties: tuple[float, ...] = (0.1, 1.0, 10.0)
    hidden: int = 128
    epochs: int = 10
    rate: float = 1e-3
    out: Path = Path("out/attack")


def measure_command(command: Command) -> _command.Found:
    """Attack, train with penalties, attack again, and draw."""
    loaded = command.load()
    data = loaded.dataset
    places = command.starts(len(data.test_x))
    if command.quick:
        places = places[:60]
    xs, labels = data.test_x[places], data.test_y[places]
    top = command.budget or measured.largest_budget(data, xs)
    budgets = [float(b) for b in top * np.arange(1, _BUDGETS + 1) / _BUDGETS]
    seen = measured.right(loaded.model, xs, labels)
    names = tuple(measured.attacks(command.steps))
    runs = measured.foolers(names, budgets, data.box, command.steps, keep=True)
    found = measured.fooling(runs, loaded.model, xs[seen], command.seed)
    few = measured.foolers(_HARDENED, budgets, data.box, command.steps)
    hardened = _harden(command, data, (xs, labels), few)
    _draw(budgets, found, hardened, command.out / "attack.png")
    _draw_images(loaded, (xs[seen], labels[seen]), budgets, found, command.out)
    sections = {
        "spectral": _spectral(found, budgets, int(seen.sum())),
        "penalty": _penalty(hardened, budgets),
    }
    return _command.Found(loaded, sections, {"images": _records(places[seen], found)})


def _harden(command: Command, data: Any, images: Any, runs: Any) -> dict[str, Any]:
    """Train and attack: without penalty, with each, and without where it was as accurate."""
    recipe: dict[str, Any] = {
        "hidden": command.hidden,
        "epochs": 2 if command.quick else command.epochs,
        "rate": command.rate,
        "seed": command.seed,
    }
    plain = measured.trained(data, 0.0, **recipe)
    networks = {"none": ("no penalty", plain[-1])}
    for i, penalty in enumerate(command.penalties, 1):
        hard = measured.trained(data, penalty, **recipe)[-1]
        stopped = measured.as_accurate(plain, hard.accuracy)
        networks[f"penalty_{i}"] = f"penalty {penalty:g}", hard
        networks[f"stopped_{i}"] = f"no penalty, epoch {stopped.epoch}", stopped
    return {
        name: {"name": said} | _attacked(one, data, images, runs, command.seed)
        for name, (said, one) in networks.items()
    }


def _attacked(one: Any, data: Any, images: Any, runs: Any, seed: int) -> dict[str, Any]:
    xs, labels = images
    seen = measured.right(one.model, xs, labels)
    # All images, in one shape, so that nothing compiles again; the others do not count.
    found = measured.fooling(runs, one.model, xs, seed)
    kept = {
        name: each._replace(fooled=each.fooled[seen], kl=each.kl[seen])
        for name, each in found.items()
    }
    return {
        "penalty": one.penalty,
        "epoch": one.epoch,
        "accuracy": one.accuracy,
        "num_images": int(seen.sum()),
        "trace_train": measured.trace_numbers(one.model, data.train_x),
        "trace_test": measured.trace_numbers(one.model, xs),
        "attacks": measured.summary(kept),
    }


# --- the report --------------------------------------------------------------------------------


def _spectral(found: Any, budgets: list[float], count: int) -> dict[str, Any]:
    one, two = (np.asarray(found[name].fooled) for name in (_ONE, _TWO))
    gained, lost = int(np.sum(two & ~one)), int(np.sum(one & ~two))
    rates = measured.summary(found)
    more = np.array(rates[_TWO]["fooled"]) >= np.array(rates[_ONE]["fooled"])
    per_image = two.sum(axis=1) - one.sum(axis=1)
    better, worse = int(np.sum(per_image > 0)), int(np.sum(per_image < 0))
    sign = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    numbers = {
        "num_images": count,
        "budgets": budgets,
        "attacks": rates,
        "two_over_one": {
            "budgets_no_worse": int(more.sum()),
            "fooled_by_two_only": gained,
            "fooled_by_one_only": lost,
            "images_for_two": better,
            "images_for_one": worse,
            "sign_test_p": sign,
        },
    }
    holds = more.all() and gained > lost
    return section(
        title="Attacks along the eigenvectors of G",
        claim="Two steps, which follow the curvature of the leaf, fool more often than one along "
        "the top eigenvector of G, at every budget.",
        verdict=(
            HOLDS if holds and sign < 0.05 else IN_PART if gained > lost else FAILS,
            _say(numbers),
        ),
        numbers=numbers,
        pictures=[
            (
                "attack.png",
                "The share of images that get another label, by the length of the move: along "
                "eigenvectors of G (dashed, the gradient), by the gradient (dashed, a random "
                "direction), and by the projected gradient on networks trained with a penalty on "
                "the trace of G (dashed, without one).",
            ),
            (
                "attack_images.png",
                "Images, and what each attack makes of them at the smallest budget at which it "
                "fools, or the largest.",
            ),
        ],
        columns=("attack", f"fooled at {budgets[3]:.3g}", f"at {budgets[-1]:.3g}", "over all"),
        rows=[
            (name, f"attacks.{name}.fooled_at_half", f"attacks.{name}.fooled_at_most",
             f"attacks.{name}.fooled_mean")
            for name in rates
        ],
    )  # fmt: skip


def _say(numbers: dict[str, Any]) -> str:
    rates, two = numbers["attacks"], numbers["two_over_one"]

    def mean(name: str) -> str:
        return percent(rates[name]["fooled_mean"])

    cases = numbers["num_images"] * len(numbers["budgets"])
    return (
        f"Over {numbers['num_images']} images and {len(numbers['budgets'])} budgets up to "
        f"{numbers['budgets'][-1]:.3g}, one step along the top eigenvector fools {mean(_ONE)}, two "
        f"steps {mean(_TWO)}, eight {mean('eight steps')}, the geodesic {mean('geodesic')}; the "
        f"gradient {mean(_GRADIENT)}, its signs {mean(_SIGNS)}, the projected "
        f"gradient {mean(_PROJECTED)}, a random direction {mean('random direction')}. Two steps "
        f"are no worse than one at {two['budgets_no_worse']} of {len(numbers['budgets'])} budgets; "
        f"of {cases} cases they alone fool in {two['fooled_by_two_only']}, one step alone in "
        f"{two['fooled_by_one_only']} (by image, a sign test gives p = {two['sign_test_p']:.2g})."
    )


def _penalty(hardened: dict[str, Any], budgets: list[float]) -> dict[str, Any]:
    plain = hardened["none"]["attacks"][_PROJECTED]["fooled_mean"]
    pairs = [
        (one, hardened[name.replace("penalty", "stopped")])
        for name, one in hardened.items()
        if name.startswith("penalty")
    ]
    gains = [
        stopped["attacks"][_PROJECTED]["fooled_mean"] - one["attacks"][_PROJECTED]["fooled_mean"]
        for one, stopped in pairs
    ]
    said = [
        f"λ = {one['penalty']:g}: {percent(one['attacks'][_PROJECTED]['fooled_mean'])} at an "
        f"accuracy of {percent(one['accuracy'])} and a mean trace of "
        f"{one['trace_train']['mean']:.3g} (without a penalty, as accurate after epoch "
        f"{stopped['epoch']}: {percent(stopped['attacks'][_PROJECTED]['fooled_mean'])} at "
        f"{percent(stopped['accuracy'])})"
        for one, stopped in pairs
    ]
    accuracy = percent(hardened["none"]["accuracy"])
    gained = sum(gain > 0 for gain in gains)
    return section(
        title="A penalty on the trace of G",
        claim="A network that is trained with a penalty on the mean trace of G is fooled less "
        "often, and less often than one that is as accurate for having been trained less.",
        verdict=(
            HOLDS if gained == len(gains) else IN_PART if gained else FAILS,
            f"The projected gradient fools {percent(plain)} over all budgets up to "
            f"{budgets[-1]:.3g} without a penalty, at an accuracy of {accuracy} and a mean trace "
            f"of {hardened['none']['trace_train']['mean']:.3g} on training images. "
            + "; ".join(said) + ".",
        ),
        numbers={"networks": hardened},
        pictures=[],
        columns=("network", "accuracy", "mean trace, training", "random", "top eigenvector",
                 "gradient", "projected gradient"),
        rows=[
            (one["name"], f"networks.{name}.accuracy", f"networks.{name}.trace_train.mean",
             *(f"networks.{name}.attacks.{attack}.fooled_mean" for attack in _HARDENED))
            for name, one in hardened.items()
        ],
    )  # fmt: skip


def _records(places: Any, found: Any) -> list[dict[str, Any]]:
    """Return, image by image, at which budgets each attack fools."""
    return [
        {"place": int(place)} | {name: one.fooled[i] for name, one in found.items()}
        for i, place in enumerate(places)
    ]


def _draw(budgets: list[float], found: Any, hardened: dict[str, Any], file: Path) -> None:
    rates = measured.summary(found)

    def shown(names: tuple[str, ...], grey: str) -> list[viz.Curve]:
        return [
            viz.Curve(name, budgets, rates[name]["fooled"], reference=name == grey)
            for name in (*names, grey)
        ]

    others = [
        viz.Curve(
            f"{one['name']}, accuracy {one['accuracy']:.3f}",
            budgets,
            one["attacks"][_PROJECTED]["fooled"],
            reference=name == "none",
        )
        for name, one in hardened.items()
        if not name.startswith("stopped")
    ]
    axes = ("length of the move, normalised", "share with another label")
    along = shown((_ONE, _TWO, "eight steps", "geodesic"), _GRADIENT)
    usual = shown((_GRADIENT, _SIGNS, _PROJECTED), "random direction")
    viz.curves(
        [
            viz.Panel("Along eigenvectors of G", *axes, along, y_range=(0, 1)),
            viz.Panel("By the gradient", *axes, usual, y_range=(0, 1)),
            viz.Panel("PGD after a penalty on trace G", *axes, others, y_range=(0, 1)),
        ],
        file,
    )


def _draw_images(loaded: Any, shown: Any, budgets: list[float], found: Any, out: Path) -> None:
    """Draw what each attack makes of the first images, at the least budget that fools."""
    data, model, (xs, labels) = loaded.dataset, loaded.model, shown
    images, captions = [], []
    for i in range(min(_SHOWN, len(xs))):
        images.append(xs[i])
        captions.append(str(data.class_names[labels[i]]))
        for name in found:
            fooled = np.asarray(found[name].fooled[i])
            at = int(np.argmax(fooled)) if fooled.any() else len(budgets) - 1
            end = found[name].end[i, at]
            label, chance = (np.asarray(part)[0] for part in predict(model, end[None]))
            images.append(end)
            title = name.replace(" along the top eigenvector", "").split(" (")[0]
            captions.append(f"{title}\n{budgets[at]:.2g}: {data.class_names[label]}, {chance:.2f}")
    if not images:
        return
    pixels = np.clip(np.asarray(data.to_pixels(np.stack(images))), 0, 1)
    viz.strip(pixels, captions, out / "attack_images.png", columns=1 + len(found))


if __name__ == "__main__":
    _command.main(Command, measure_command, name="attack", description=__doc__)
