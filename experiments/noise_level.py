"""S5: the level of noise along a data leaf, against a path along the kernel.

    python -m experiments.noise_level --pairs 100 --out out/noise_level
    python -m experiments.noise_level --checkpoint out/train --epoch 2 --start 3 --end 17

reads the noise with scikit-image's `estimate_sigma`, with flat ground left out as it does, and with
flat ground counted (on images below 16 pixels a side, with a Laplacian), calibrates the reading on
known noise, and writes the picture, `results.json`, `paths.json` (every path point by point),
`run.json` and `report.html`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments import data_leaf, kernel
from experiments.harness import command as _command
from experiments.harness import noise as _noise
from experiments.harness.common import FAILS, HOLDS, IN_PART, percent, predict, quartiles
from experiments.harness.population import records
from experiments.harness.report import section
from foliax import viz

_PLACES = ("start", "leaf", "kernel", "target")


@dataclass(frozen=True)
class Config:
    """How noise is read, and what counts as the same level.

    Attributes:
        sigmas: Deviations of the known noise on which readings are calibrated, pixel range.
        same: Largest change of the level that still counts as none, pixel range.
        seed: Draws the known noise.
    """

    sigmas: tuple[float, ...] = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
    same: float = _noise.SAME
    seed: int = 0


def run(
    model: Any,
    dataset: Any,
    out: Path,
    config: Config,
    leaf: data_leaf.Config,
    drift: kernel.Config,
    *,
    path: Any = None,
    published: Any = None,
    noisy: Any = None,
) -> dict[str, Any]:
    """Compare the level of noise along leaf paths and kernel paths from the same images.

    Args:
        model: The classifier.
        dataset: Its data.
        out: Folder for the picture.
        config: How noise is read.
        leaf: Which pairs are walked.
        drift: How the kernel paths run.
        path: The exact paths of `data_leaf.walk_pairs`, to spare walking again.
        published: Those of the published scheme, to be read beside them; None to leave them out.
        noisy: The exact paths of `kernel.drift_images` from the starts, likewise.

    Returns:
        The section of the report; see `_report.section`.
    """
    xs, targets = data_leaf.pairs(dataset, leaf)
    if path is None:
        path = data_leaf.walk_pairs(model, dataset, xs, targets, leaf)["exact"]
    if noisy is None:
        noisy = kernel.drift_images(model, dataset, xs, drift, schemes=("exact",))["exact"]
    calibration = _noise.calibrate(dataset, config.seed, len(dataset.test_x), config.sigmas)
    told = {
        name: _follow(model, dataset, xs, found)
        for name, found in (("leaf", path), ("kernel", noisy), ("published", published))
        if found is not None
    }
    end = told["leaf"]["moved"][:, -1]
    numbers = _measure(told, end, dataset.to_pixels(targets), calibration, config)
    estimator = _noise.estimator(dataset.shape)
    numbers["estimator"] = estimator
    walked = {"exact": path, "published": published}
    numbers["walks"] = {
        scheme: data_leaf.measure(model, found, xs, targets, dataset)
        for scheme, found in walked.items()
        if found is not None
    }
    labels = np.asarray(predict(model, xs)[0])
    numbers["kernel_drifts"] = kernel.measure(noisy, labels, dataset)
    _draw(told, calibration, out / "noise_level.png", estimator)
    return section(
        title="The level of noise along a leaf path",
        claim="Any path starting from one image and going to another goes through data with the "
        "same level of noise.",
        verdict=_judge(numbers, config),
        numbers=numbers,
        pictures=[
            (
                "noise_level.png",
                f"Left, the calibration: mean reading ({estimator}) of test images with white "
                "noise of known deviation. Middle, the deviation of white noise that would give "
                "the same reading as the points of the paths; on the dashed diagonal a "
                "displacement looks like nothing but white noise. Right, the part of the "
                "displacement in the kernel of G at the start.",
            )
        ],
        columns=("", "start", "leaf, end", "kernel, as far", "target"),
        rows=[
            (f"{estimator} of the whole image, mean", *(f"reading.{name}" for name in _PLACES)),
            (f"{estimator}, mean", *(f"estimate.{name}" for name in _PLACES)),
            ("equivalent added noise", *(f"level.{name}" for name in _PLACES)),
            ("share of pairs with the same reading", "", "kept.leaf", "kept.kernel", ""),
            (
                "the same, flat ground left out",
                "", "kept_by_estimate.leaf", "kept_by_estimate.kernel", "",
            ),
            ("displacement, median", "", "moved.leaf.median", "moved.kernel.median", ""),
            ("its kernel component, median", "", "noise.leaf.median", "noise.kernel.median", ""),
        ],
    )  # fmt: skip


def _follow(model: Any, dataset: Any, xs: Any, path: Any) -> dict[str, np.ndarray]:
    """Return readings, displacements and their kernel components, each (paths, rows)."""
    parts = _noise.kernel_parts(model, xs, path.points)
    return {
        "reading": _noise.path_readings(path, dataset, whole=True),
        "estimate": _noise.path_readings(path, dataset, whole=False),
        "moved": _noise.rms(path.points - xs[:, None], dataset.std),
        "noise": _noise.rms(parts, dataset.std),
    }


def _measure(
    told: dict[str, Any], end: np.ndarray, targets: Any, calibration: Any, config: Config
) -> dict[str, Any]:
    """Read the ends of the leaf paths, and the kernel paths where they are as far away."""
    every = np.arange(len(end))
    rows = {name: np.full(len(end), -1) for name in told}
    rows["kernel"] = _noise.at_displacement(told["kernel"]["moved"], end)
    at_end = {
        name: {key: values[every, rows[name]] for key, values in told[name].items()}
        for name in rows
    }
    reading = {"start": told["leaf"]["reading"][:, 0].mean()}
    reading |= {name: at_end[name]["reading"].mean() for name in rows}
    reading["target"] = _noise.whole_readings(targets).mean()
    estimate = {"start": told["leaf"]["estimate"][:, 0].mean()}
    estimate |= {name: at_end[name]["estimate"].mean() for name in rows}
    estimate["target"] = _noise.readings(targets).mean()
    base = calibration.sigma(reading["start"])
    changes, plain = (
        {name: at_end[name][key] - told["leaf"][key][:, 0] for name in rows}
        for key in ("reading", "estimate")
    )
    return {
        "num_pairs": len(end),
        "calibration": {"sigma": calibration.sigmas, "reading": calibration.means},
        "reading": reading,
        "estimate": estimate,
        "level": {name: float(calibration.sigma(r) - base) for name, r in reading.items()},
        "moved": {name: quartiles(at_end[name]["moved"]) for name in rows},
        "noise": {name: quartiles(at_end[name]["noise"]) for name in rows},
        "change": {name: quartiles(change) for name, change in changes.items()},
        "kept": {name: np.mean(np.abs(change) <= config.same) for name, change in changes.items()},
        "kept_by_estimate": {
            name: np.mean(np.abs(change) <= config.same) for name, change in plain.items()
        },
        "leaf_reads_less": float(np.mean(at_end["leaf"]["reading"] < at_end["kernel"]["reading"])),
    }


def _profile(told: dict[str, np.ndarray], grid: np.ndarray, key: str) -> np.ndarray:
    """Return values at given displacements, (paths, grid); NaN beyond a path's end."""
    profiles = []
    for moved, values in zip(told["moved"], told[key], strict=True):
        last = 1 + int(moved.argmax())
        order = np.argsort(moved[:last], kind="stable")
        profiles.append(np.interp(grid, moved[order], values[order], right=np.nan))
    return np.stack(profiles)


def _draw(told: dict[str, Any], calibration: Any, file: Path, estimator: str) -> None:
    # Up to where half of the paths still go: a mean over few says little.
    reach = [np.median(told[name]["moved"].max(axis=1)) for name in ("leaf", "kernel")]
    grid = np.linspace(0, min(reach), 24)
    levels, parts = [], []
    for name in ("leaf", "kernel"):
        mean = np.nanmean(_profile(told[name], grid, "reading"), axis=0)
        level = calibration.sigma(mean) - calibration.sigma(told[name]["reading"][:, 0].mean())
        levels.append(viz.Curve(f"{name} path", grid, level))
        values = np.nanquantile(_profile(told[name], grid, "noise"), (0.5, 0.25, 0.75), axis=0)
        parts.append(viz.Curve(f"{name} path", grid, *values))
    levels.append(viz.Curve("white noise", grid, grid, reference=True))
    parts.append(viz.Curve("all of it", grid, grid, reference=True))
    known = viz.Curve("test images", calibration.sigmas, calibration.means)
    viz.curves(
        [
            viz.Panel("Calibration", "deviation of added noise", f"mean {estimator}", [known]),
            viz.Panel("Equivalent noise", "displacement (rms, pixel range)",
                      "added noise (pixel range)", levels),
            viz.Panel("Kernel component", "displacement (rms, pixel range)",
                      "rms (pixel range)", parts),
        ],
        file,
    )  # fmt: skip


def _judge(numbers: dict[str, Any], config: Config) -> tuple[str, str]:
    level, moved, noise = numbers["level"], numbers["moved"], numbers["noise"]
    share = noise["leaf"]["median"] / moved["leaf"]["median"]
    told = (
        f"At the end of the leaf paths, a median of {moved['leaf']['median']:.3g} of the pixel "
        f"range away (root mean square), images read like their starts with white noise of "
        f"{level['leaf']:.3g} added; kernel paths as far away read {level['kernel']:.3g}. "
        f"Pair by pair, the reading ({numbers['estimator']} of the whole image) at the end of the "
        f"leaf path is within {config.same:g} of that of the start in "
        f"{percent(numbers['kept']['leaf'])} of {numbers['num_pairs']} (along the kernel as far: "
        f"{percent(numbers['kept']['kernel'])}; with flat ground left out "
        f"{percent(numbers['kept_by_estimate']['leaf'])} and "
        f"{percent(numbers['kept_by_estimate']['kernel'])}), "
        f"and below that of the kernel path in {percent(numbers['leaf_reads_less'])}. The part of "
        f"the leaf's "
        f"displacement in the kernel of G at the start is {percent(share)} as long as the whole. "
    )
    if abs(level["leaf"]) <= config.same:
        return HOLDS, told + f"The level changes by no more than {config.same:g}."
    if level["leaf"] <= level["kernel"] / 2:
        return IN_PART, told + "The level rises, but less than half as much as along the kernel."
    return FAILS, told + (
        "The level is not the same, and it rises more than half as much as along the kernel: to "
        "this estimate, what the leaf adds looks like noise."
    )


@dataclass(frozen=True)
class Command(_command.PairCommand):
    """Which network, which pairs, and how far they are walked.

    Attributes:
        steps: Steps at most, on the leaf and along the kernel.
        step: Length of a step, normalised units.
        save_every: Steps between the points kept.
    """

    steps: int = 1000
    step: float = 0.1
    save_every: int = 10
    out: Path = Path("out/noise_level")


def measure_command(command: Command) -> _command.Found:
    """Read the noise along the paths of a command."""
    steps = min(command.steps, 60) if command.quick else command.steps
    size: dict[str, Any] = {"step": command.step, "max_steps": steps}
    size |= {"save_every": command.save_every, "seed": command.seed}
    leaf = data_leaf.Config(num_pairs=command.pairs, start=command.start, end=command.end, **size)
    drift = kernel.Config(**size)
    loaded, config = command.load(), Config(seed=command.seed)
    model, dataset = loaded.model, loaded.dataset
    xs, targets = data_leaf.pairs(dataset, leaf)
    paths = data_leaf.walk_pairs(model, dataset, xs, targets, leaf)
    noisy = kernel.drift_images(model, dataset, xs, drift, schemes=("exact",))["exact"]
    found = run(
        model, dataset, command.out, config, leaf, drift,
        path=paths["exact"], published=paths["published"], noisy=noisy,
    )  # fmt: skip
    starts, ends = data_leaf.places(dataset, leaf)
    walks = records(paths, dataset, starts, ends) + records({"kernel": noisy}, dataset, starts)
    return _command.Found(loaded, {"S5": found}, {"S5": walks})


if __name__ == "__main__":
    _command.main(Command, measure_command, name="noise_level", description=__doc__)
