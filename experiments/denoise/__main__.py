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
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from tqdm import tqdm

import foliax
from experiments.denoise import classical, report
from experiments.denoise.leaf import (
    Case,
    Images,
    by_other_references,
    with_leaf,
    without_leaf,
)
from experiments.harness import command as command_line
from experiments.harness.classifier import independent
from experiments.harness.command import Count, Found, perform, script
from experiments.harness.networks import Loaded
from experiments.harness.run import sweep
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

    def flow(self) -> dict[str, Any]:
        """Return how closest points are found."""
        return {"step": self.step, "max_steps": self.steps, "stall": self.stall}


def measure_command(command: Command) -> Found:
    """Denoise the images of a command by every network it names."""
    command = command.at_most(**_QUICK)
    networks = _networks(command)
    dataset = next(iter(networks.values())).dataset
    study = Study(command, dataset)
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
                records[strength], made = study.record(noise, strength, networks, shown, bar)
                if strength == report.middle(strengths):
                    images[noise] = made
    measured = {noise: records for noise, records in measured.items() if records}
    sections = report.sections(measured, networks, traces, shown)
    report.draw(command.out, measured, images, shown)
    every_image = {
        "test_image": study.places,
        "measured": [
            {"noise": noise, "strength": strength}
            | {key: record[key] for key in ("methods", "leaves")}
            for noise, records in measured.items()
            for strength, record in records.items()
        ],
    }
    return Found(networks[shown], sections, every_image, study.explained(shown))


def _networks(command: Command) -> dict[str, Loaded]:
    """Return the networks by a name, e1 for epoch 1."""
    found = command.load_each(sorted(command.epochs))
    return {f"e{epoch}" if command.epochs else "e": loaded for epoch, loaded in found.items()}


def _random_plane(dataset: Any, seed: int) -> Loaded:
    """Return the control: a linear model, whose leaves are planes that know nothing of the data."""
    size = (dataset.num_classes, math.prod(dataset.shape))
    matrix = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    return Loaded(Partial(_linear, jnp.asarray(matrix)), dataset, "random planes")


def _linear(matrix: Any, x: Any) -> Any:
    return matrix @ x.ravel()


def _trace(loaded: Loaded) -> float:
    xs, _ = loaded.dataset.take(np.arange(min(_TRACED, loaded.dataset.length("train"))))
    return float(np.mean(sweep(foliax.trace, loaded.model, xs, progress=False)))


class Study:
    """The images, normalised, the classical denoisers and the classifier, shared by all noises."""

    def __init__(self, command: Command, dataset: Any):
        total, tuning = dataset.length("train"), command.tuning
        if not 1 <= tuning < total:
            raise ValueError(f"tuning must be in 1 … {total - 1}, got {tuning}")
        drawn = np.random.default_rng(command.seed).permutation(total)[: tuning + command.pool]
        self.command, self.dataset = command, dataset
        self.tuning, _ = dataset.take(drawn[:tuning], split="train")
        pool, self.labels = dataset.take(drawn[tuning:], split="train")
        self.pool = jnp.asarray(pool)
        self.places = command.starts(dataset.length("test"))
        self.test, self.truth = dataset.take(self.places, split="test")
        self.denoisers = classical.denoisers(np.asarray(dataset.to_pixels(pool), np.float64))
        self.classifier = independent(dataset, quick=command.quick)

    def record(
        self, noise: str, strength: float, networks: Any, shown: str, bar: Any
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return what was measured under one noise, and the images, in pixels, of one network."""
        case = self.case(noise, strength)
        made = self.classical(case, noise, strength) | without_leaf(case)
        images = {"clean": case.test.clean, **made}
        bar.update()
        leaves, flows = {}, {}
        for name, loaded in networks.items():
            by_leaf, flows[name] = self.leaf(case, loaded.model)
            leaves[name] = {method: self.measures(case, each) for method, each in by_leaf.items()}
            if name == shown:
                images |= by_leaf
            bar.update()
        methods = {method: self.measures(case, each) for method, each in made.items()}
        return {"methods": methods, "leaves": leaves, "leaf": flows, "level": case.level}, images

    def case(self, noise: str, strength: float) -> Case:
        """Return noisy images for tuning and test, with the training images nearest to them."""
        parts, count = [], min(self.command.references, len(self.pool))
        for i, clean in enumerate((self.tuning, self.test)):
            pixels = np.asarray(self.dataset.to_pixels(clean), np.float64)
            seed = 2 * self.command.seed + i
            corrupted = classical.corrupt(pixels, noise, strength, seed=seed)
            noisy = jnp.asarray(self.dataset.from_pixels(corrupted), clean.dtype)
            nearest = choose(noisy, self.pool, count, block=1)
            parts.append(Images(noisy, pixels, self.pool[nearest]))
        level = math.sqrt(float(jnp.mean((parts[0].noisy - self.tuning) ** 2)))
        return Case(self.dataset, parts[0], parts[1], level)

    def classical(self, case: Case, noise: str, strength: float) -> dict[str, np.ndarray]:
        """Return what the classical denoisers make of the test images, in pixels."""
        tuning, test = (case.pixels(part.noisy) for part in (case.tuning, case.test))
        denoisers = dict(self.denoisers)
        if noise == "blur":
            known = classical.deconvolution(strength, self.dataset.shape)
            denoisers["Richardson-Lucy, blur known"] = known
        return {
            name: one.apply(test, one.tuned(tuning, case.tuning.clean))
            for name, one in denoisers.items()
        }

    def leaf(self, case: Case, model: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return what the leaves of a network make of the test images, in pixels."""
        flow = self.command.flow()
        found, chosen_and_ended = with_leaf(model, case, flow)
        k = chosen_and_ended["chosen"]["closest_mean"]["k"]
        for by in ("class", "feature") if self.command.choosers else ():
            options = {"by": by, "model": model, "labels": self.labels, "block": 1}
            places = choose(case.test.noisy, self.pool, k, **options)
            found |= by_other_references(model, case, self.pool[places], by, flow)
        return found, chosen_and_ended

    def measures(self, case: Case, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Return what is measured of every test image."""
        normalised = np.asarray(self.dataset.from_pixels(np.clip(pixels, 0, 1)), np.float32)
        return {
            "psnr": classical.psnr(pixels, case.test.clean),
            "ssim": classical.ssim(pixels, case.test.clean),
            "classified_right": (self.classifier.predict(normalised) == self.truth).astype(float),
        }

    def explained(self, shown: str) -> str:
        """Return what a reader of the tables has to know."""
        command, classifier = self.command, self.classifier
        choice = f" with the largest mean trace, epoch {shown[1:]}" if command.epochs else ""
        return (
            f"{len(self.test)} test images; references are chosen from {len(self.pool)} training "
            f"images, and everything that has a parameter is tuned on {len(self.tuning)} others, "
            "for each noise and strength. Images are clipped to the pixel range before they are "
            f"measured. The tables are of the network{choice}; as a control, random planes of the "
            "same dimension stand in place of leaves. The independent classifier is a "
            f"{classifier.words}, right on {100 * classifier.accuracy:.3g} % of the test images. "
            f"Closest points: steps of {command.step:g}, at most {command.steps}."
        )


if __name__ == "__main__":
    run = partial(perform, measure=measure_command, title="Denoising by data leaves")
    script(Command, run, name="denoise", description=__doc__)
