"""S5: the level of noise along a data leaf, against a path along the kernel.

    python -m experiments.noise_level --pairs 100 --out out/noise_level
    python -m experiments.noise_level --checkpoint out/train --epoch 2 --start 3 --end 17

reads the noise with scikit-image's `estimate_sigma`, with flat ground left out as it does, and with
flat ground counted (on images below 16 pixels a side, with a Laplacian), calibrates the reading on
known noise, and writes the picture, `results.json`, `paths.json` (every path point by point),
`run.json` and `report.html`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import data_leaf, kernel
from experiments.harness import command, noise
from experiments.harness.pictures import quartile_curve
from experiments.harness.populations import quartiles, records
from experiments.harness.report import FAILS, HOLDS, IN_PART, percent, section
from experiments.harness.study import SCHEMES, Study, WalkCommand, places
from foliax import viz

_PLACES = ("start", "leaf", "kernel", "target")


def run(study: Study, out: Path) -> dict[str, Any]:
    """Compare the noise on leaf and kernel paths from the same images; return the section."""
    dataset, estimator = study.dataset, noise.estimator(study.dataset.shape)
    calibration = calibrated(study)
    paths = {
        "leaf": study.leaf("exact"),
        "kernel": study.drift("exact"),
        "published": study.leaf("published"),
    }
    read = {name: _read(study, path) for name, path in paths.items()}
    numbers = _numbers(read, dataset.to_pixels(study.pair()[1]), calibration) | {
        "estimator": estimator,
        "walks": {scheme: data_leaf.measure(study, scheme, "test") for scheme in SCHEMES},
        "kernel_drifts": kernel.measure(study, "exact"),
    }
    _draw(read, calibration, out / "noise_level.png", estimator)
    plain = "kept_by_estimate"
    return section(
        title="The level of noise along a leaf path",
        claim="Any path starting from one image and going to another goes through data with the "
        "same level of noise.",
        verdict=_verdict(numbers),
        numbers=numbers,
        pictures={
            "noise_level.png": (
                f"Left, the mean reading ({estimator}) of test images with known white noise. "
                "Middle, the white noise that would give the reading of the paths; on the dashed "
                "diagonal a displacement looks like nothing but white noise. Right, the part of "
                "the displacement in the kernel of G at the start."
            )
        },
        columns=("", "start", "leaf, end", "kernel, as far", "target"),
        rows=[
            (f"{estimator} of the whole image, mean", *(f"reading.{name}" for name in _PLACES)),
            (f"{estimator}, mean", *(f"estimate.{name}" for name in _PLACES)),
            ("equivalent added noise", *(f"level.{name}" for name in _PLACES)),
            ("share of pairs with the same reading", "", "kept.leaf", "kept.kernel", ""),
            ("the same, flat ground left out", "", f"{plain}.leaf", f"{plain}.kernel", ""),
            ("displacement, median", "", "moved.leaf.median", "moved.kernel.median", ""),
            ("its kernel component, median", "", "noise.leaf.median", "noise.kernel.median", ""),
        ],
    )


def calibrated(study: Study) -> noise.Calibration:
    """Return what readings of these data mean."""
    data = study.dataset
    return study.once(
        "calibration", lambda: noise.calibrate(data, study.sizes.seed, len(data.test_x))
    )


def _read(study: Study, path: Any) -> dict[str, np.ndarray]:
    """Return readings, displacements and their kernel components, each (paths, rows)."""
    xs, std = study.origins(), study.dataset.std
    return {
        "reading": noise.path_readings(path, study.dataset, whole=True),
        "estimate": noise.path_readings(path, study.dataset, whole=False),
        "moved": noise.rms(path.points - xs[:, None], std),
        "noise": noise.rms(noise.kernel_parts(study.model, xs, path.points), std),
    }


def _numbers(read: dict[str, Any], targets: Any, calibration: noise.Calibration) -> dict[str, Any]:
    """Read the ends of the leaf paths, and the kernel paths where they are as far away."""
    end = read["leaf"]["moved"][:, -1]
    rows = {name: np.full(len(end), -1) for name in read}
    rows["kernel"] = np.abs(read["kernel"]["moved"] - end[:, None]).argmin(axis=1)
    at_end = {
        name: {key: values[np.arange(len(end)), rows[name]] for key, values in each.items()}
        for name, each in read.items()
    }
    start = {name: read["leaf"][name][:, 0] for name in ("reading", "estimate")}
    mean = {
        key: {"start": first.mean()} | {name: at_end[name][key].mean() for name in read}
        for key, first in start.items()
    }
    mean["reading"]["target"] = noise.whole_readings(targets).mean()
    mean["estimate"]["target"] = noise.readings(targets).mean()
    base = calibration.sigma(mean["reading"]["start"])
    change, plain = (
        {name: at_end[name][key] - first for name in read} for key, first in start.items()
    )
    kept, kept_by_estimate = (
        {name: np.mean(np.abs(values) <= noise.SAME) for name, values in changes.items()}
        for changes in (change, plain)
    )
    return {
        "num_pairs": len(end),
        "calibration": {"sigma": calibration.sigmas, "reading": calibration.means},
        **mean,
        "level": {
            name: float(calibration.sigma(each) - base) for name, each in mean["reading"].items()
        },
        "moved": {name: quartiles(at_end[name]["moved"]) for name in read},
        "noise": {name: quartiles(at_end[name]["noise"]) for name in read},
        "change": {name: quartiles(values) for name, values in change.items()},
        "kept": kept,
        "kept_by_estimate": kept_by_estimate,
        "leaf_reads_less": np.mean(at_end["leaf"]["reading"] < at_end["kernel"]["reading"]),
    }


def _profile(read: dict[str, np.ndarray], grid: np.ndarray, key: str) -> np.ndarray:
    """Return values at given displacements, (paths, grid); NaN beyond a path's end."""
    profiles = []
    for moved, values in zip(read["moved"], read[key], strict=True):
        last = 1 + int(moved.argmax())
        order = np.argsort(moved[:last], kind="stable")
        profiles.append(np.interp(grid, moved[order], values[order], right=np.nan))
    return np.stack(profiles)


def _draw(read: dict[str, Any], calibration: Any, file: Path, estimator: str) -> None:
    # Up to where half of the paths still go: a mean over few says little.
    reach = [np.median(read[name]["moved"].max(axis=1)) for name in ("leaf", "kernel")]
    grid = np.linspace(0, min(reach), 24)
    levels, parts = [], []
    for name in ("leaf", "kernel"):
        mean = np.nanmean(_profile(read[name], grid, "reading"), axis=0)
        level = calibration.sigma(mean) - calibration.sigma(read[name]["reading"][:, 0].mean())
        levels.append(viz.Curve(f"{name} path", grid, level))
        parts.append(quartile_curve(f"{name} path", grid, _profile(read[name], grid, "noise")))
    levels.append(viz.Curve("white noise", grid, grid, reference=True))
    parts.append(viz.Curve("all of it", grid, grid, reference=True))
    known, moved = viz.Curve("test images", *calibration), "displacement (rms, pixel range)"
    viz.curves(
        [
            viz.Panel("Calibration", "deviation of added noise", f"mean {estimator}", [known]),
            viz.Panel("Equivalent noise", moved, "added noise (pixel range)", levels),
            viz.Panel("Kernel component", moved, "rms (pixel range)", parts),
        ],
        file,
    )


def _verdict(numbers: dict[str, Any]) -> tuple[str, str]:
    level, kept = numbers["level"], numbers["kept"]
    text = (
        f"At the end of the leaf paths images read like their starts with white noise of "
        f"{level['leaf']:.3g} added, kernel paths as far away like {level['kernel']:.3g}. The "
        f"reading is within {noise.SAME:g} of that of the start in {percent(kept['leaf'])} of "
        f"{numbers['num_pairs']} pairs, along the kernel in {percent(kept['kernel'])}. "
    )
    if abs(level["leaf"]) <= noise.SAME:
        return HOLDS, text + f"The level changes by no more than {noise.SAME:g}."
    if level["leaf"] <= level["kernel"] / 2:
        return IN_PART, text + "The level rises, but less than half as much as along the kernel."
    return FAILS, text + "The level rises more than half as much as along the kernel."


def measure_command(options: WalkCommand) -> command.Found:
    """Read the noise along the paths of a command."""
    sizes, loaded = options.sizes(), options.load()
    study = Study(loaded.model, loaded.dataset, sizes)
    starts, ends = places(study.dataset, sizes)
    found = run(study, options.out)
    walks = records(study.leaves(), study.dataset, starts, ends)
    walks += records({"kernel": study.drift("exact")}, study.dataset, starts)
    return command.Found(loaded, {"S5": found}, {"S5": walks})


if __name__ == "__main__":
    command.main(WalkCommand, measure_command, name="noise_level", description=__doc__)
