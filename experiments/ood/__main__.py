"""S10: does the distance from the data leaf tell what is out of distribution?

    python -m experiments.ood --quick --out out/ood
    python -m experiments.ood --checkpoint out/train --epochs 1 5 30 --out out/ood
    python -m experiments.ood --checkpoint out/fashion --count 200 --held-out 8 9

scores test images against several sets of outliers by the leaf (`foliax.apps.ood`), with references
that are chosen without looking at the distance, and by what people use; then asks which of the
leaf's scores adds to the distance of the nearest training image in pixels. Nothing is fitted on
the outliers that are tested: a sum of scores is standardised on training images kept apart, a
logistic regression tells these from outliers made of them, which also choose among scores. Writes
`table.md`, `results.json`, `run.json` and pictures.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import sklearn
import tyro
from tqdm import tqdm

import foliax
from experiments.harness.common import (
    Loaded,
    load,
    papers_network,
    plain,
    provenance,
    write_json,
    write_text,
)
from experiments.harness.run import keeping_nothing, running
from experiments.ood import baselines, data, leaf, measures, tables
from foliax import zoo
from foliax.zoo import checkpoints

PIXELS = "knn_pixels"
_TIMED = 64  # images
_SMALL = 100  # inputs of no more pixels get feet from every reference
_HELD_OUT = {"digits": (8, 9)}  # classes, where another network is trained in seconds


@dataclass(frozen=True)
class Config:
    """Which networks, how many images, and where to write.

    Attributes:
        dataset: Data set; None for that of the checkpoint, and for digits without one.
        checkpoint: Folder of a training. Without it, digits take the network that comes with
            foliax.
        epochs: Which epochs of it are compared; none for the newest.
        weights: PyTorch weights of the papers' network, .npz or .pt, in place of a checkpoint.
        count: Test images, and outliers of each kind, at most.
        calibration: Training images kept apart, which calibrate.
        bank: Training images at most among which neighbours and references are looked for.
        fixed: Training images drawn once as references.
        many: The same, without feet.
        neighbours: The k-th nearest neighbour counts in the baselines.
        held_out: Classes that another network is trained without, in the same way, to be told
            from the others; cached in the output folder. Without any, digits take 8 and 9, and
            other data none, as it costs a training.
        feet: Whether feet are found, which costs most.
        step: Length of a step to a foot, normalised units; None for 0.5, of larger images 2.
        max_steps: Steps at most to a foot; None for 200, of larger images 40.
        resamples: Of the bootstrap.
        seed: Draws images, references and resamples.
        devices: How many devices share the images; None for all that JAX sees.
        out: Output folder.
        quick: Few images.
    """

    dataset: Literal["digits", "mnist", "fashion_mnist", "kmnist"] | None = None
    checkpoint: Path | None = None
    epochs: tuple[int, ...] = ()
    weights: Path | None = None
    count: int = 360
    calibration: int = 300
    bank: int = 10_000
    fixed: int = 20
    many: int = 500
    neighbours: int = 1
    held_out: tuple[int, ...] = ()
    feet: bool = True
    step: float | None = None
    max_steps: int | None = None
    resamples: int = 500
    seed: int = 0
    devices: int | None = None
    out: Path = Path("out/ood")
    quick: bool = False

    def effective(self) -> "Config":
        """Return what is run: itself, or a smaller one."""
        if not self.quick:
            return self
        return replace(
            self, count=min(self.count, 100), calibration=min(self.calibration, 100),
            bank=min(self.bank, 1000), fixed=min(self.fixed, 5), many=min(self.many, 100),
            resamples=min(self.resamples, 100),
        )  # fmt: skip

    def flow(self, size: int) -> leaf.Flow:
        """Return how feet are found for inputs of so many pixels."""
        small = size <= _SMALL
        return leaf.Flow(
            step=self.step or (0.5 if small else 2.0),
            max_steps=self.max_steps or (200 if small else 40),
            stall=1e-3 if small else 1e-2,
            every=small,
            feet=self.feet,
        )


# --- one network -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """One network, its images and their scores.

    Attributes:
        sets: The images.
        parts: Their scores.
        milliseconds: An image costs, by group of scores.
    """

    sets: data.Sets
    parts: measures.Parts
    milliseconds: dict[str, float]


def score(sets: data.Sets, config: Config, bar: Any, *, timed: bool) -> Scored:
    """Score every image of the sets by everything.

    Args:
        sets: The images.
        config: The sizes.
        bar: A progress bar, moved once for the baselines and once for each family of references.
        timed: Whether to measure what an image costs.
    """
    known = baselines.fit(
        sets.model, sets.bank_x, sets.bank_y, sets.held, std=sets.dataset.std,
        neighbours=config.neighbours,
    )  # fmt: skip
    frames = leaf.fit(
        sets.model, sets.bank_x, sets.bank_y, num_classes=sets.dataset.num_classes,
        fixed=config.fixed, many=config.many, seed=config.seed,
        flow=config.flow(sets.inside[0].size),
    )  # fmt: skip
    xs = np.concatenate([sets.held, sets.synthetic, sets.inside, *sets.outside.values()])
    found = baselines.scores(known, xs)
    bar.update()

    def tell(name: str) -> None:
        bar.set_postfix_str(f"references: {name}")
        bar.update()

    found |= leaf.scores(frames, xs, tell)
    parts = measures.split(sets, found)
    spent = _costs(known, frames, sets.inside) if timed else {}
    return Scored(sets, parts, spent)


def _costs(known: Any, frames: Any, inside: np.ndarray) -> dict[str, float]:
    """Return milliseconds an image of programs that are compiled, with what hands them images."""
    xs = np.resize(inside, (_TIMED, *inside.shape[1:]))
    named = {
        ", ".join(names): lambda group=group: group(known, xs)
        for group, names in baselines.GROUPS.items()
    }
    named |= {f"leaf, {name}": measure for name, measure in leaf.groups(frames, xs)}
    spent = {}
    with keeping_nothing():
        for name, run_group in named.items():
            run_group()
            begun = time.perf_counter()
            run_group()
            spent[name] = 1e3 * (time.perf_counter() - begun) / len(xs)
    return spent


def judged(parts: measures.Parts, config: Config) -> dict[str, Any]:
    """Return the measures of every score, and what each adds to others.

    Args:
        parts: The scores.
        config: The bootstrap.
    """
    with sklearn.config_context(skip_parameter_validation=True):  # of thousands of calls
        return _judged(parts, config)


def _judged(parts: measures.Parts, config: Config) -> dict[str, Any]:
    bad = measures.finite(parts)
    names = [name for name in parts.held if name not in bad]
    parts = measures.only(parts, names)
    blind = [name for name in names if tables.is_blind(name)]
    others = [name for name in baselines.NAMES if name != PIXELS and name in names]
    options: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}
    beside = [name for name in names if name != PIXELS]
    gains = measures.partners(parts, [PIXELS], beside, **options)
    partner = measures.choose(gains, others)
    controls = [name for name in names if name.startswith("distance")]
    over_plain: dict[str, Any] = {}
    for control in controls:
        lengths = [name for name in blind if tables.control_of(name) == control]
        over_plain |= measures.partners(parts, [PIXELS], lengths, instead_of=control, **options)
    beside = [name for name in (*blind, *controls, *others) if name != partner[0]]
    more = measures.partners(parts, [PIXELS, partner[0]], beside, **options)
    return {
        "not_finite": bad,
        "scores": measures.table(parts),
        "synthetic": {
            name: measures.measure(parts.held[name], parts.synthetic[name])["auroc"]
            for name in names
        },
        "gains": gains,
        "gains_beside_partner": more,
        "gains_over_plain": over_plain,
        "partner": partner,
        "chosen": measures.choose(gains, blind),
        "chosen_beside_partner": measures.choose(more, blind),
    }


# --- several epochs ----------------------------------------------------------------------------


def networks(config: Config) -> dict[str, Loaded]:
    """Return the networks that are compared, by epoch."""
    where: dict[str, Any] = {"checkpoint": config.checkpoint, "weights": config.weights}
    if not config.epochs:
        loaded = load(config.dataset, **where)
        epoch = zoo.epochs(config.checkpoint)[-1] if config.checkpoint else "given"
        return {str(epoch): loaded}
    return {str(e): load(config.dataset, epoch=e, **where) for e in config.epochs}


def train_without(
    config: Config, dataset: Any, epochs: Sequence[str]
) -> tuple[Any, np.ndarray, dict[str, Any]]:
    """Train a network without the classes held out, as the one in the checkpoint was.

    Returns:
        The data without the classes, the test images of those, and the networks by epoch.
    """
    classes = config.held_out or _HELD_OUT[dataset.name]
    rest, outside = data.without(dataset, classes)
    settings = zoo.TrainConfig(track_per_epoch=0, seed=config.seed)
    if config.checkpoint is not None:
        stored = checkpoints.read(config.checkpoint)
        assert stored is not None  # it was loaded
        known = {field.name for field in fields(zoo.TrainConfig)}
        told = stored.info.get("training", {}).items()
        settings = replace(settings, **{k: v for k, v in told if k in known - {"track_per_epoch"}})
    wanted = {epoch: int(epoch) if epoch.isdigit() else settings.epochs for epoch in epochs}
    if settings.schedule == "constant":  # one with a schedule is not cut short
        settings = replace(settings, epochs=max(wanted.values()))
    folder = config.out / "held_out"
    zoo.train(papers_network(rest), rest, settings, out=folder)
    return rest, outside, {e: zoo.restore(folder, number) for e, number in wanted.items()}


def run(config: Config) -> dict[str, Any]:
    """Score, judge and write.

    Args:
        config: What to do.

    Returns:
        What results.json holds.

    Raises:
        ValueError: If something asked for does not fit.
        FileNotFoundError: If the checkpoint or the data set is missing.
    """
    config, begun = config.effective(), time.perf_counter()
    found = networks(config)
    dataset = next(iter(found.values())).dataset
    held_out = bool(config.held_out) or dataset.name in _HELD_OUT
    sizes = {"calibration": config.calibration, "bank": config.bank, "seed": config.seed}
    rest, unseen, others = (
        train_without(config, dataset, list(found)) if held_out else (dataset, dataset.test_x, {})
    )
    results: dict[str, Any] = {}
    shown, spent = None, {}
    with tqdm(total=len(found) * 6 * (1 + held_out), desc="ood", dynamic_ncols=True) as bar:
        for epoch, (model, _, words) in found.items():
            bar.set_description(f"epoch {epoch}")
            outs = data.out_names(dataset)
            sets = data.sets(model, dataset, outs, count=config.count, **sizes)
            shown = score(sets, config, bar, timed=epoch == list(found)[-1])
            spent |= shown.milliseconds
            result = judged(shown.parts, config) | {
                "network": words,
                "accuracy": zoo.accuracy(model, dataset.test_x, dataset.test_y),
                "mean_trace": np.asarray(_traces(model, sets.held)).mean(dtype=np.float64),
            }
            if held_out:
                sets = data.sets(others[epoch], rest, (), count=config.count, **sizes)
                drawn = np.random.default_rng(config.seed).permutation(len(unseen))[: config.count]
                sets = sets._replace(outside={"held_out": unseen[drawn]})
                second = judged(score(sets, config, bar, timed=False).parts, config)
                result = _joined(result, second)
            results[epoch] = result
    assert shown is not None
    whole = {
        "setting": _setting(config, dataset, shown.sets),
        "epochs": results,
        "training": _training(config, results),
    }
    return _write(config, plain(whole), shown, spent, time.perf_counter() - begun)


def _joined(result: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Add what the second network showed of the classes it never saw."""
    rows = second["scores"]
    for name, row in result["scores"].items():
        if name in rows:
            row["held_out"] = rows[name]["held_out"]
    return result | {"held_out": {key: v for key, v in second.items() if key != "scores"}}


@jax.jit
def _traces(model: Any, xs: Any) -> jax.Array:
    return jax.lax.map(lambda x: foliax.trace(model, x), xs)


def _training(config: Config, results: dict[str, Any]) -> dict[str, Any]:
    """Return which epoch serves best, beside those of the greatest mean trace and accuracy."""
    shared = set.intersection(*(set(each["scores"]) for each in results.values()))
    best = {
        name: max(results, key=lambda e: measures.mean(results[e]["scores"][name]))
        for name in sorted(shared)
    }
    peak = None
    if config.checkpoint is not None:
        stored = checkpoints.read(config.checkpoint)
        history = stored.info.get("history") if stored is not None else None
        if history and history["steps"]:
            at = history["steps"][int(np.nanargmax(history["trace_mean"]))]
            peak = 1 + int(np.searchsorted(history["epoch_steps"], at))
    return {
        "best_epoch": best,
        "most_trace": max(results, key=lambda e: results[e]["mean_trace"]),
        "most_accurate": max(results, key=lambda e: results[e]["accuracy"]),
        "peak_epoch_of_training": peak,
    }


def _setting(config: Config, dataset: Any, sets: data.Sets) -> dict[str, Any]:
    names = ("calibration", "fixed", "many", "neighbours", "resamples", "seed", "quick")
    flow = config.flow(sets.inside[0].size)
    return {name: getattr(config, name) for name in names} | {
        "dataset": dataset.name,
        "bank": len(sets.bank_y),
        "test": len(sets.inside),
        "outliers": {name: len(images) for name, images in sets.outside.items()},
        "feet": asdict(flow),
        "means": data.SAYS,
    }


def _write(
    config: Config, results: dict[str, Any], shown: Scored, spent: dict[str, float], seconds: float
) -> dict[str, Any]:
    out = config.out
    report = "\n\n".join(tables.report(results, spent))
    write_text(out / "table.md", report + "\n")
    write_json(out / "results.json", results)
    told = provenance(config.seed, {"all": round(seconds, 2)})
    write_json(out / "run.json", told | {"milliseconds_an_image": spent})
    tables.heat_map(results, out / "auroc.png")
    last = list(results["epochs"])[-1]
    tables.examples(shown.sets, shown.parts, results["epochs"][last]["chosen"][0], out)
    tables.training(results, out / "epochs.png")
    return results


def main() -> None:
    """Run from the command line."""
    config = tyro.cli(Config, prog="python -m experiments.ood", description=__doc__)
    with running("ood", config.out, devices=config.devices):
        run(config)
    print((config.out / "table.md").read_text(encoding="utf-8"))
    print(f"table: {config.out / 'table.md'}")


if __name__ == "__main__":
    main()
