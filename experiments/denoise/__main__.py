"""S9: denoising by projection on the data leaf, beside what people use.

    python -m experiments.denoise --images 200 --out out/denoise
    python -m experiments.denoise --checkpoint out/reproduce --epochs 1 5 30

makes test images noisy (white noise, salt and pepper, blur), projects them on the leaves through
the training images nearest to them, and measures PSNR, SSIM and what an independent classifier
says the result shows, beside classical denoisers and the same training images without any leaf. All
that has a parameter is tuned on training images, for each noise and strength. Writes tables, a
picture of images for each noise, curves, `results.json`, `paths.json` (every single image),
`run.json` and `report.html`.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import Partial
from tqdm import tqdm

from experiments.denoise import classical, pictures, report
from experiments.denoise.leaf import (
    Case,
    Images,
    by_other_references,
    mean_trace,
    with_leaf,
    without_leaf,
)
from experiments.harness import command as command_line
from experiments.harness.command import Count, Found
from experiments.harness.common import Loaded
from experiments.harness.judge import judge
from experiments.harness.run import running
from foliax.apps.denoise import choose

_TRACED = 256  # training images of the mean trace
_QUICK = {"pairs": 20, "tuning": 16, "references": 3, "pool": 1000, "steps": 60}


@dataclass(frozen=True)
class Command(command_line.Command):
    """Which network, which images, how noisy, and how they are projected."""

    pairs: Count = 100  # How many test images
    # Epochs of the training to compare; none for `epoch` alone. The tables are of the one
    # with the largest mean trace, which is what the papers would choose.
    epochs: tuple[int, ...] = ()
    gaussian: tuple[float, ...] = (0.1, 0.15, 0.3, 0.5)  # Deviations of white noise, pixel range
    salt: tuple[float, ...] = (0.1, 0.2, 0.4)  # Shares of the pixels that become white or black
    blur: tuple[float, ...] = (0.5, 1.0, 1.5)  # Radii of Gaussian blur, pixels
    references: int = 8  # Training images for each test image, at most
    pool: int = 20_000  # Training images to choose them from, at most
    tuning: int = 60  # Training images on which everything is tuned; they are not in the pool
    step: float = 0.5  # Length of a step to a closest point, normalised units
    steps: int = 300  # Steps at most
    stall: float = 1e-3  # Tangent fraction at which a closest point is reached
    choosers: bool = True  # Whether references are also chosen by class and by feature
    out: Path = Path("out/denoise")

    def flow(self) -> dict[str, Any]:
        """Return how closest points are found."""
        return {"step": self.step, "max_steps": self.steps, "stall": self.stall}


class Setting(NamedTuple):
    """What all measurements share."""

    dataset: Any  # The data
    places: np.ndarray  # Places of the test images
    tuning: np.ndarray  # Training images to tune on, normalised
    pool: jnp.ndarray  # Training images to choose references from, normalised
    labels: np.ndarray  # Theirs
    test: np.ndarray  # Test images, normalised
    truth: np.ndarray  # Theirs
    denoisers: dict[str, classical.Denoiser]  # The classical denoisers by name
    classifier: Any  # The independent classifier


def measure_command(command: Command) -> Found:
    """Denoise the images of a command by every network it names."""
    if command.quick:
        small = {name: min(most, getattr(command, name)) for name, most in _QUICK.items()}
        command = replace(command, **small)
    networks = _networks(command)
    dataset = next(iter(networks.values())).dataset
    setting = _set_up(command, dataset)
    traces = {name: _trace(loaded) for name, loaded in networks.items()}
    shown = max(traces, key=lambda name: traces[name])
    networks = {report.CONTROL: _random_plane(dataset, command.seed)} | networks
    measured: dict[str, dict[float, Any]] = {noise: {} for noise in classical.NOISES}
    images: dict[str, Any] = {}
    total = sum(len(getattr(command, noise)) for noise in measured) * (1 + len(networks))
    with tqdm(total=total, desc="denoise", dynamic_ncols=True) as bar:
        for noise, records in measured.items():
            strengths = getattr(command, noise)
            for strength in strengths:
                records[strength], made = _record(
                    setting, command, noise, strength, networks, shown, bar
                )
                if strength == pictures.middle(strengths):
                    images[noise] = made
    measured = {noise: records for noise, records in measured.items() if records}
    sections = report.sections(measured, networks, traces, shown)
    pictures.draw(command.out, measured, images, shown)
    every_image = {
        "test_image": setting.places,
        "measured": [
            {"noise": noise, "strength": strength}
            | {key: record[key] for key in ("methods", "leaves")}
            for noise, records in measured.items()
            for strength, record in records.items()
        ],
    }
    return Found(networks[shown], sections, every_image, _explained(command, setting, shown))


def _networks(command: Command) -> dict[str, Loaded]:
    """Return the networks by a name, e1 for epoch 1."""
    if not command.epochs:
        return {"e": command.load()}
    return {f"e{epoch}": replace(command, epoch=epoch).load() for epoch in sorted(command.epochs)}


def _random_plane(dataset: Any, seed: int) -> Loaded:
    """Return the control: a linear model, whose leaves are planes that know nothing of the data."""
    size = (dataset.num_classes, math.prod(dataset.shape))
    matrix = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    return Loaded(Partial(_linear, jnp.asarray(matrix)), dataset, "random planes")


def _linear(matrix: Any, x: Any) -> Any:
    return matrix @ x.ravel()


def _set_up(command: Command, dataset: Any) -> Setting:
    total = dataset.length("train")
    if not 1 <= command.tuning < total:
        raise ValueError(f"tuning must be in 1 … {total - 1}, got {command.tuning}")
    drawn = np.random.default_rng(command.seed).permutation(total)[: command.tuning + command.pool]
    tuning, _ = dataset.take(drawn[: command.tuning], split="train")
    pool, labels = dataset.take(drawn[command.tuning :], split="train")
    places = command.starts(dataset.length("test"))
    test, truth = dataset.take(places, split="test")
    denoisers = classical.denoisers(np.asarray(dataset.to_pixels(pool), np.float64))
    classifier = judge(dataset, quick=command.quick)
    return Setting(
        dataset, places, tuning, jnp.asarray(pool), labels, test, truth, denoisers, classifier
    )


def _trace(loaded: Loaded) -> float:
    xs, _ = loaded.dataset.take(np.arange(min(_TRACED, loaded.dataset.length("train"))))
    return float(mean_trace(loaded.model, jnp.asarray(xs)))


def _record(
    setting: Setting, command: Command, noise: str, strength: float, networks: Any, shown: str,
    bar: Any,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:  # fmt: skip
    """Return what was measured under one noise, and the images, in pixels, of one network."""
    case = _case(setting, command, noise, strength)
    made = _classical(setting, case, noise, strength) | without_leaf(case)
    images = {"clean": case.test.clean, **made}
    bar.update()
    leaves, flows = {}, {}
    for name, loaded in networks.items():
        by_leaf, flows[name] = _leaf(setting, case, loaded, command)
        leaves[name] = {method: _measure(setting, case, each) for method, each in by_leaf.items()}
        if name == shown:
            images |= by_leaf
        bar.update()
    record = {
        "methods": {method: _measure(setting, case, each) for method, each in made.items()},
        "leaves": leaves,
        "leaf": flows,
        "level": case.level,
    }
    return record, images


def _case(setting: Setting, command: Command, noise: str, strength: float) -> Case:
    """Return noisy images for tuning and test, with the training images nearest to them."""
    dataset, parts = setting.dataset, []
    for i, clean in enumerate((setting.tuning, setting.test)):
        pixels = np.asarray(dataset.to_pixels(clean), np.float64)
        corrupted = classical.corrupt(pixels, noise, strength, seed=2 * command.seed + i)
        noisy = jnp.asarray(dataset.from_pixels(corrupted), clean.dtype)
        count = min(command.references, len(setting.pool))
        parts.append(
            Images(noisy, pixels, setting.pool[choose(noisy, setting.pool, count, block=1)])
        )
    level = math.sqrt(float(jnp.mean((parts[0].noisy - setting.tuning) ** 2)))
    return Case(dataset, parts[0], parts[1], level)


def _classical(setting: Setting, case: Case, noise: str, strength: float) -> dict[str, np.ndarray]:
    """Return what the classical denoisers make of the test images, in pixels."""
    tuning, test = (case.pixels(part.noisy) for part in (case.tuning, case.test))
    denoisers = dict(setting.denoisers)
    if noise == "blur":
        known = classical.deconvolution(strength, setting.dataset.shape)
        denoisers["Richardson-Lucy, blur known"] = known
    return {
        name: one.apply(test, one.tuned(tuning, case.tuning.clean))
        for name, one in denoisers.items()
    }


def _leaf(
    setting: Setting, case: Case, loaded: Loaded, command: Command
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what the leaves of a network make of the test images, in pixels."""
    model, flow = loaded.model, command.flow()
    found, chosen_and_ended = with_leaf(model, case, flow)
    k = chosen_and_ended["chosen"]["feet_mean"]["k"]
    for by in ("class", "feature") if command.choosers else ():
        options = {"by": by, "model": model, "labels": setting.labels, "block": 1}
        places = choose(case.test.noisy, setting.pool, k, **options)
        found |= by_other_references(model, case, setting.pool[places], by, flow)
    return found, chosen_and_ended


def _measure(setting: Setting, case: Case, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Return what is measured of every test image."""
    normalised = np.asarray(setting.dataset.from_pixels(np.clip(pixels, 0, 1)), np.float32)
    return {
        "psnr": classical.psnr(pixels, case.test.clean),
        "ssim": classical.ssim(pixels, case.test.clean),
        "judged": (setting.classifier.predict(normalised) == setting.truth).astype(float),
    }


def _explained(command: Command, setting: Setting, shown: str) -> str:
    choice = f" with the largest mean trace, epoch {shown[1:]}" if command.epochs else ""
    classifier = setting.classifier
    return (
        f"{len(setting.test)} test images; references are chosen from {len(setting.pool)} training "
        f"images, and everything that has a parameter is tuned on {len(setting.tuning)} others, "
        "for each noise and strength. Images are clipped to the pixel range before they are "
        f"measured. The tables are of the network{choice}; as a control, random planes of the same "
        f"dimension stand in place of leaves. The independent classifier is a {classifier.words}, "
        f"right on {100 * classifier.accuracy:.3g} % of the test images. Closest points: steps of "
        f"{command.step:g}, at most {command.steps}."
    )


def main() -> None:
    """Run from the command line, and print the tables."""
    command = tyro.cli(Command, prog="python -m experiments.denoise", description=__doc__)
    with running("denoise", command.out, devices=command.devices):
        command_line.perform(command, measure_command, title="Denoising by data leaves")
    print((command.out / "report.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
