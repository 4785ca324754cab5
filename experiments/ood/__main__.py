"""S10: does the distance from the data leaf tell what is out of distribution?

    python -m experiments.ood --quick --out out/ood
    python -m experiments.ood --checkpoint out/train --epochs 1 5 30 --out out/ood
    python -m experiments.ood --checkpoint out/fashion --count 200 --held-out 8 9

scores test images against several sets of outliers by the leaf (`foliax.apps.ood`), with references
that are chosen without looking at the distance, and by what people use; then asks which of the
leaf's scores adds to the distance of the nearest training image in pixels. Nothing is fitted on
the outliers that are tested: a sum of scores is standardised on training images kept apart, a
logistic regression tells these from outliers made of them, which also choose among scores. Writes
`table.md`, `results.json`, `run.json` and a picture of examples.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import sklearn
from tqdm import tqdm

import foliax
from experiments.harness.command import Network, script
from experiments.harness.networks import Loaded, papers_network
from experiments.harness.report import write_numbers
from experiments.harness.run import keeping_nothing, sweep
from experiments.ood import baselines, leaf, measures, tables
from foliax import zoo
from foliax.zoo import checkpoints

_PIXELS = "knn_pixels"
_TIMED = 64  # images
_SMALL = 100  # inputs of no more pixels get closest points from every reference
_HELD_OUT = {"digits": (8, 9)}  # classes, where another network is trained in seconds
_QUICK = {"count": 100, "calibration": 100, "bank": 1000, "fixed": 5, "many": 100, "resamples": 100}


@dataclass(frozen=True)
class Config(Network):
    """Which networks, how many images, and where to write."""

    # Epochs of the training to compare; none for `epoch` alone.
    epochs: tuple[int, ...] = ()
    count: int = 360  # Test images, and outliers of each kind, at most
    calibration: int = 300  # Training images kept apart, which calibrate
    bank: int = 10_000  # Training images at most, for neighbours and references
    fixed: int = 20  # Training images drawn once as references
    many: int = 500  # The same, without closest points
    # Classes that another network is trained without, in the same way, to be told from the
    # others; cached in the output folder. Without any, digits take 8 and 9, and other data
    # none, as it costs a training.
    held_out: tuple[int, ...] = ()
    feet: bool = True  # Whether closest points are found, which costs most
    max_steps: int | None = None  # Steps to a closest point; None for 200, of larger images 40
    resamples: int = 500  # Of the bootstrap

    def flow(self, shape: Sequence[int]) -> dict[str, Any]:
        """Return how closest points are found for images of a shape."""
        small = np.prod(shape) <= _SMALL
        step, steps, stall = (0.5, 200, 1e-3) if small else (2.0, 40, 1e-2)
        return {
            "step": step, "max_steps": self.max_steps or steps, "stall": stall,
            "every": bool(small), "feet": self.feet,
        }  # fmt: skip

    def sets(self, model: Any, dataset: Any, outside: dict[str, np.ndarray]) -> measures.Sets:
        """Draw the images that a network is tested on."""
        sizes = {"count": self.count, "calibration": self.calibration, "bank": self.bank}
        return measures.sets(model, dataset, outside, seed=self.seed, **sizes)


def score(
    sets: measures.Sets, config: Config, bar: Any, milliseconds: dict[str, float] | None = None
) -> measures.Parts:
    """Return every score of every image, and note in `milliseconds` what an image costs."""
    images, dataset = sets.images, sets.dataset
    bank = sets.model, sets.bank_x, sets.bank_y
    groups = baselines.fit(*bank, images["held"], std=dataset.std)
    families = leaf.fit(
        *bank, num_classes=dataset.num_classes, fixed=config.fixed, many=config.many,
        seed=config.seed, flow=config.flow(dataset.shape),
    )  # fmt: skip
    groups |= {f"leaf, {name}": group for name, group in families.items()}
    xs, found = np.concatenate(list(images.values())), {}
    for name, group in groups.items():
        bar.set_postfix_str(name)
        found |= group(xs)
        if milliseconds is not None:
            milliseconds[name] = _cost(group, images["test"])
        bar.update()
    return measures.split(images, found)


def _cost(group: Any, test: np.ndarray) -> float:
    """Return milliseconds an image of a program that is compiled, with what hands it images."""
    xs = np.resize(test, (_TIMED, *test.shape[1:]))
    with keeping_nothing():
        group(xs)
        begun = time.perf_counter()
        group(xs)
    return 1e3 * (time.perf_counter() - begun) / len(xs)


@sklearn.config_context(skip_parameter_validation=True)  # of thousands of calls
def evaluated(parts: measures.Parts, config: Config) -> dict[str, Any]:
    """Return the measures of every score, and what each adds to others."""
    bad = measures.not_finite(parts)
    names = [name for name in parts["held"] if name not in bad]
    parts = {kind: {name: values[name] for name in names} for kind, values in parts.items()}
    others = [name for name in baselines.NAMES if name != _PIXELS and name in names]
    gains = measures.partners(
        parts, [_PIXELS], [name for name in names if name != _PIXELS],
        resamples=config.resamples, seed=config.seed,
    )  # fmt: skip
    return {
        "not_finite": bad,
        "scores": measures.table(parts),
        "synthetic": {
            name: measures.measure(values, parts["synthetic"][name])["auroc"]
            for name, values in parts["held"].items()
        },
        "gains": gains,
        "partner": measures.choose(gains, others),
        "chosen": measures.choose(gains, [name for name in names if tables.is_blind(name)]),
    }


def networks(config: Config) -> dict[str, Loaded]:
    """Return the networks that are compared, by epoch."""
    newest = zoo.epochs(config.checkpoint)[-1:] if config.checkpoint and not config.epoch else ()
    found = config.load_each(config.epochs or newest)
    return {str(epoch or "given"): loaded for epoch, loaded in found.items()}


def train_without(
    config: Config, dataset: Any, epochs: Sequence[str]
) -> tuple[Any, np.ndarray, dict[str, Any]]:
    """Train a network without the classes held out, as the one in the checkpoint was.

    Returns:
        The data without the classes, the test images of those, and the networks by epoch.
    """
    rest, unseen = dataset.without(config.held_out or _HELD_OUT[dataset.name])
    settings = zoo.TrainConfig(track_per_epoch=0, seed=config.seed)
    known = {field.name for field in fields(zoo.TrainConfig)} - {"track_per_epoch"}
    stored = _stored(config).get("training", {})
    settings = replace(settings, **{k: v for k, v in stored.items() if k in known})
    wanted = {epoch: int(epoch) if epoch.isdigit() else settings.epochs for epoch in epochs}
    if settings.schedule == "constant":  # one with a schedule is not cut short
        settings = replace(settings, epochs=max(wanted.values()))
    folder = config.out / "held_out"
    zoo.train(papers_network(rest), rest, settings, out=folder)
    return rest, unseen, {e: zoo.restore(folder, number) for e, number in wanted.items()}


def _stored(config: Config) -> dict[str, Any]:
    """Return what the checkpoint says of its training; nothing without one."""
    stored = None if config.checkpoint is None else checkpoints.read(config.checkpoint)
    return {} if stored is None else stored.info


def run(config: Config) -> dict[str, Any]:
    """Score, compare and write; return what results.json holds.

    Raises:
        ValueError: If something asked for does not fit.
        FileNotFoundError: If the checkpoint or the data set is missing.
    """
    begun = time.perf_counter()
    config = config.at_most(**_QUICK)
    found = networks(config)
    dataset = next(iter(found.values())).dataset
    outside = zoo.outliers(dataset, config.count, config.seed)
    held_out = bool(config.held_out) or dataset.name in _HELD_OUT
    epochs: dict[str, Any] = {}
    milliseconds: dict[str, float] = {}
    parts, sets = {}, config.sets(None, dataset, outside)
    if held_out:
        rest, unseen, others = train_without(config, dataset, list(found))
        drawn = np.random.default_rng(config.seed).permutation(len(unseen))[: config.count]
    with tqdm(total=len(found) * 10 * (1 + held_out), desc="ood", dynamic_ncols=True) as bar:
        for epoch, (model, _, words) in found.items():
            bar.set_description(f"epoch {epoch}")
            sets = sets._replace(model=model)
            parts = score(sets, config, bar, milliseconds if epoch == list(found)[-1] else None)
            traces = sweep(foliax.trace, model, sets.images["held"], progress=False)
            epochs[epoch] = evaluated(parts, config) | {
                "network": words,
                "accuracy": zoo.accuracy(model, dataset.test_x, dataset.test_y),
                "mean_trace": traces.mean(dtype=np.float64),
            }
            if held_out:
                second = config.sets(others[epoch], rest, {"held_out": unseen[drawn]})
                _join(epochs[epoch], evaluated(score(second, config, bar), config))
    results = {
        "setting": _setting(config, sets),
        "epochs": epochs,
        "training": _training(config, epochs),
    }
    last = list(epochs.values())[-1]
    tables.examples(sets, parts, last["chosen"][0], config.out / "examples.png")
    return write_numbers(
        config.out, results, seed=config.seed,
        seconds={"all": round(time.perf_counter() - begun, 2)},
        table=tables.report(results, milliseconds), milliseconds_an_image=milliseconds,
    )  # fmt: skip


def _join(result: dict[str, Any], second: dict[str, Any]) -> None:
    """Add what the second network showed of the classes it was trained without."""
    rows = second.pop("scores")
    for name in result["scores"].keys() & rows.keys():
        result["scores"][name]["held_out"] = rows[name]["held_out"]
    result["held_out"] = second


def _training(config: Config, epochs: dict[str, Any]) -> dict[str, Any]:
    """Return which epoch serves best, beside those of the greatest mean trace and accuracy."""
    shared = set.intersection(*(set(each["scores"]) for each in epochs.values()))
    history, peak = _stored(config).get("history"), None
    if history and history["steps"]:
        at = history["steps"][int(np.nanargmax(history["trace_mean"]))]
        peak = 1 + int(np.searchsorted(history["epoch_steps"], at))
    return {
        "best_epoch": {
            name: max(epochs, key=lambda e, name=name: measures.mean(epochs[e]["scores"][name]))
            for name in sorted(shared)
        },
        "most_trace": max(epochs, key=lambda e: epochs[e]["mean_trace"]),
        "most_accurate": max(epochs, key=lambda e: epochs[e]["accuracy"]),
        "peak_epoch_of_training": peak,
    }


def _setting(config: Config, sets: measures.Sets) -> dict[str, Any]:
    names = ("calibration", "fixed", "many", "resamples", "seed", "quick")
    return {name: getattr(config, name) for name in names} | {
        "dataset": sets.dataset.name,
        "bank": len(sets.bank_y),
        "test": len(sets.images["test"]),
        "outliers": {kind: len(sets.images[kind]) for kind in measures.outside(sets.images)},
        "feet": config.flow(sets.dataset.shape),
        "means": measures.MEANINGS,
    }


if __name__ == "__main__":
    script(Config, run, name="ood", description=__doc__)
