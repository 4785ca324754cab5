"""S9: denoising by projection on the data leaf, beside what people use.

    python -m experiments.denoise --images 200 --out out/denoise
    python -m experiments.denoise --checkpoint out/reproduce --epochs 1 5 30

makes test images noisy (white noise, salt and pepper, blur), projects them on the leaves through
the training images nearest to them, and measures PSNR, SSIM and what an independent classifier
says of the result, beside classical denoisers and the same training images without any leaf. All
that has a parameter is tuned on training images, for each noise and strength. Writes tables, a
picture of images for each noise, curves, `results.json`, `paths.json` (every single image),
`run.json` and `report.html`.
"""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import Partial
from tqdm import tqdm

from experiments.denoise import classical
from experiments.denoise import pictures as _denoise_pictures
from experiments.denoise import report as _denoise_report
from experiments.denoise.leaf import (
    Case,
    Flow,
    Images,
    by_other_references,
    mean_trace,
    with_leaf,
    without_leaf,
)
from experiments.denoise.report import CONTROL
from experiments.harness import command as _command
from experiments.harness.common import Loaded, load
from experiments.harness.judge import judge
from experiments.harness.run import running
from foliax.apps.denoise import choose

_TRACED = 256  # training images whose mean trace is told


@dataclass(frozen=True)
class Command(_command.Command):
    """Which network, which images, how noisy, and how they are projected.

    Attributes:
        pairs: How many test images.
        epochs: Epochs of the training to compare; none for `epoch` alone. The tables are of the
            one with the largest mean trace, which is what the papers would choose.
        gaussian: Deviations of white noise, pixel range.
        salt: Shares of the pixels that become white or black.
        blur: Radii of Gaussian blur, pixels.
        references: Training images for each test image, at most.
        pool: Training images to choose them from, at most.
        tuning: Training images on which everything is tuned; they are not in the pool.
        step: Length of a step to a foot, normalised units.
        steps: Steps at most.
        stall: Tangent fraction at which a foot is reached.
        choosers: Whether references are also chosen by class and by feature.
    """

    pairs: Annotated[int, tyro.conf.arg(aliases=("--images",))] = 100
    epochs: tuple[int, ...] = ()
    gaussian: tuple[float, ...] = (0.1, 0.15, 0.3, 0.5)
    salt: tuple[float, ...] = (0.1, 0.2, 0.4)
    blur: tuple[float, ...] = (0.5, 1.0, 1.5)
    references: int = 8
    pool: int = 20_000
    tuning: int = 60
    step: float = 0.5
    steps: int = 300
    stall: float = 1e-3
    choosers: bool = True
    out: Path = Path("out/denoise")


class Setting(NamedTuple):
    """What all measurements share.

    Attributes:
        dataset: The data.
        places: Places of the test images.
        tuning: Training images to tune on, normalised.
        pool: Training images to choose references from, normalised.
        labels: Theirs.
        test: Test images, normalised.
        truth: Theirs.
        denoisers: The classical denoisers by name.
        judge: The independent classifier.
    """

    dataset: Any
    places: np.ndarray
    tuning: np.ndarray
    pool: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    truth: np.ndarray
    denoisers: dict[str, classical.Denoiser]
    judge: Any


def measure_command(command: Command) -> _command.Found:
    """Denoise the images of a command by every network it names."""
    command = _quick(command) if command.quick else command
    networks = _networks(command)
    dataset = next(iter(networks.values())).dataset
    setting = _set_up(command, dataset)
    traces = {name: _trace(loaded) for name, loaded in networks.items()}
    shown = max(traces, key=lambda name: traces[name])
    networks = {CONTROL: _random_plane(dataset, command.seed)} | networks
    flow = Flow(command.step, command.steps, command.stall)
    noises = {noise: getattr(command, noise) for noise in classical.NOISES}
    total = sum(map(len, noises.values())) * (1 + len(networks))
    measured, cases = {}, {}
    with tqdm(total=total, desc="denoise", dynamic_ncols=True) as bar:
        for noise, strengths in noises.items():
            for strength in strengths:
                case = _case(setting, command, noise, strength)
                found = _classical(setting, case, noise, strength) | without_leaf(case, dataset)
                bar.update()
                told = {}
                for name, loaded in networks.items():
                    images, told[name] = _leaf(setting, case, loaded, flow, command.choosers)
                    found |= {f"{method}@{name}": made for method, made in images.items()}
                    bar.update()
                measured[noise, strength] = {
                    "methods": {m: _measure(setting, case, made) for m, made in found.items()},
                    "leaf": told,
                    "level": case.level,
                }
                cases[noise, strength] = case, found
    sections = _denoise_report.sections(measured, networks, traces, shown)
    _denoise_pictures.draw(command.out, measured, cases, shown)
    told = _told(command, setting, shown)
    return _command.Found(
        networks[shown], sections, _denoise_report.every_image(measured, setting), told
    )


def _quick(command: Command) -> Command:
    small = {"pairs": 20, "tuning": 16, "references": 3, "pool": 1000, "steps": 60}
    return replace(command, **{k: min(v, getattr(command, k)) for k, v in small.items()})


def _networks(command: Command) -> dict[str, Loaded]:
    """Return the networks by a name, e1 for epoch 1."""
    if not command.epochs:
        return {"e": command.load()}
    if command.epoch is not None or command.checkpoint is None:
        raise ValueError("epochs needs --checkpoint (a training's folder), and no --epoch")
    return {
        f"e{epoch}": load(command.dataset, checkpoint=command.checkpoint, epoch=epoch)
        for epoch in sorted(set(command.epochs))
    }


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
    classic = classical.denoisers(np.asarray(dataset.to_pixels(pool), np.float64))
    found = judge(dataset, quick=command.quick)
    return Setting(dataset, places, tuning, pool, labels, test, truth, classic, found)


def _trace(loaded: Loaded) -> float:
    xs, _ = loaded.dataset.take(np.arange(min(_TRACED, loaded.dataset.length("train"))))
    return float(mean_trace(loaded.model, jnp.asarray(xs)))


def _case(setting: Setting, command: Command, noise: str, strength: float) -> Case:
    """Return noisy images for tuning and test, with the training images nearest to them."""
    pool, parts, level = jnp.asarray(setting.pool), [], 0.0
    for i, clean in enumerate((setting.tuning, setting.test)):
        pixels = np.asarray(setting.dataset.to_pixels(clean), np.float64)
        made = classical.corrupt(pixels, noise, strength, seed=2 * command.seed + i)
        noisy = jnp.asarray(setting.dataset.from_pixels(made), clean.dtype)
        places = choose(noisy, pool, min(command.references, len(pool)), block=1)
        parts.append(Images(noisy, pixels, pool[places]))
        if i == 0:
            level = math.sqrt(float(jnp.mean((noisy - clean) ** 2)))
    return Case(parts[0], parts[1], level)


def _classical(setting: Setting, case: Case, noise: str, strength: float) -> dict[str, np.ndarray]:
    """Return what the classical denoisers make of the test images, in pixels."""
    pixels = [np.asarray(setting.dataset.to_pixels(part.noisy), np.float64) for part in case[:2]]
    denoisers, found = dict(setting.denoisers), {}
    if noise == "blur":
        told = "Richardson-Lucy, blur known"
        denoisers[told] = classical.deconvolution(strength, setting.dataset.shape)
    for name, one in denoisers.items():
        value = classical.tuned(one, pixels[0], case.tuning.clean)
        found[name] = one.apply(pixels[1], value)
    return found


def _leaf(
    setting: Setting, case: Case, loaded: Loaded, flow: Flow, choosers: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what the leaves of a network make of the test images, in pixels."""
    model, dataset = loaded.model, setting.dataset
    found, told = with_leaf(model, case, dataset, flow)
    pool, k = jnp.asarray(setting.pool), told["chosen"]["feet_mean"]["k"]
    for by in ("class", "feature") if choosers else ():
        places = choose(
            case.test.noisy, pool, k, by=by, model=model, labels=setting.labels, block=1
        )
        other = case.test._replace(references=pool[places])
        found |= by_other_references(model, other, k, by, dataset, flow)
    return found, told


def _measure(setting: Setting, case: Case, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Return what is measured of every test image."""
    clipped = np.clip(pixels, 0, 1)
    said = setting.judge.predict(np.asarray(setting.dataset.from_pixels(clipped), np.float32))
    return {
        "psnr": classical.psnr(pixels, case.test.clean),
        "ssim": classical.ssim(pixels, case.test.clean),
        "judged": (said == setting.truth).astype(float),
    }


def _told(command: Command, setting: Setting, shown: str) -> str:
    choice = f" with the largest mean trace, epoch {shown[1:]}" if command.epochs else ""
    return (
        f"{len(setting.test)} test images; references are chosen from {len(setting.pool)} training "
        f"images, and everything that has a parameter is tuned on {len(setting.tuning)} others, "
        "for each noise and strength. Images are clipped to the pixel range before they are "
        f"measured. The tables are of the network{choice}. As a control, the same is done with "
        "random planes of the same dimension in place of leaves. The judge "
        f"is a {setting.judge.words}, right on {100 * setting.judge.accuracy:.3g} % of the test "
        f"images. Feet: steps of {command.step:g}, at most {command.steps}."
    )


def main() -> None:
    """Run from the command line, and print the tables."""
    command = tyro.cli(Command, prog="python -m experiments.denoise", description=__doc__)
    begun = time.perf_counter()
    with running("denoise", command.out, devices=command.devices):
        found = measure_command(command)
        _command.write(command, found, time.perf_counter() - begun, "Denoising by data leaves")
    print((command.out / "report.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
