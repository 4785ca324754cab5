"""Reproduce the pictures and claims of the slides on one data set, from training to the report.

    python -m experiments.reproduce --dataset digits --epochs 30 --seed 0 --out out/reproduce

trains a small network, chooses a partially trained checkpoint by a stated rule, and writes
pictures, `results.json` (the same for the same seed), `run.json` (how it came about) and
`report.html` into the output folder. Stopped, it goes on where it was; a second run, or one with
`--checkpoint DIR`, trains no more.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from tqdm import tqdm

from experiments import data_leaf, dynamics, kernel, noise_leaf, noise_level
from experiments.harness.common import provenance, write_json
from experiments.harness.report import write_report
from experiments.harness.run import running
from experiments.harness.training import Trained, obtain
from experiments.rank_table import __main__ as rank_table


@dataclass(frozen=True)
class Config:
    """What to reproduce, and where to.

    Attributes:
        dataset: Data set; digits are embedded and need no download.
        epochs: Epochs of training.
        learning_rate: Rate of plain SGD; the paper's, at which 30 epochs of digits reach the peak
            of the mean trace. At 0.1 they go past it.
        seed: Seeds the training and draws pairs, directions and noise.
        out: Output folder.
        devices: How many devices share the walks; None for all that JAX sees.
        checkpoint: "auto" trains, or goes on with what the output folder holds; otherwise a
            folder of checkpoints of an earlier training.
        smoke: Tiny sizes, to see that everything runs.
    """

    dataset: Literal["digits"] = "digits"
    epochs: int = 30
    learning_rate: float = 0.01
    seed: int = 0
    out: Path = Path("out/reproduce")
    devices: int | None = None
    checkpoint: str = "auto"
    smoke: bool = False


@dataclass(frozen=True)
class Study:
    """The sizes of all experiments.

    Attributes:
        training: S2, and the rule that chooses the checkpoint.
        ranks: S1.
        leaf: S3 and S4; S5 and S7 walk the same pairs.
        level: S5.
        drift: S6.
        noisy: S7.
        other_epochs: Epochs besides the chosen one on which S3 is measured.
    """

    training: dynamics.Config = field(default_factory=dynamics.Config)
    ranks: rank_table.Config = field(default_factory=rank_table.Config)
    leaf: data_leaf.Config = field(default_factory=data_leaf.Config)
    level: noise_level.Config = field(default_factory=noise_level.Config)
    drift: kernel.Config = field(default_factory=kernel.Config)
    noisy: noise_leaf.Config = field(default_factory=noise_leaf.Config)
    other_epochs: tuple[int, ...] = (1, 5, 30)


def study(seed: int, *, smoke: bool = False) -> Study:
    """Return the sizes of a run: those of the report, or tiny ones."""
    if not smoke:
        return Study(
            leaf=data_leaf.Config(seed=seed),
            level=noise_level.Config(seed=seed),
            drift=kernel.Config(seed=seed),
        )
    return Study(
        ranks=rank_table.Config(num_images=8, num_dense=2),
        leaf=data_leaf.Config(num_pairs=4, max_steps=60, save_every=10, seed=seed),
        level=noise_level.Config(seed=seed),
        drift=kernel.Config(max_steps=100, save_every=10, show_every=50, seed=seed),
        noisy=noise_leaf.Config(noise_steps=20),
        other_epochs=(1,),
    )


def run(config: Config, sizes: Study | None = None) -> dict[str, Any]:
    """Train or load, measure all claims, write everything.

    Args:
        config: What to reproduce.
        sizes: Sizes of the experiments; None for those that `config` asks for.

    Returns:
        What results.json holds.
    """
    sizes = sizes or study(config.seed, smoke=config.smoke)
    stages = Stages(count=12)
    with stages("training"):
        trained = obtain(
            config.dataset,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            seed=config.seed,
            out=config.out,
            checkpoint=config.checkpoint,
        )
    choice = dynamics.choose(trained.history, sizes.training)
    found = _claims(trained, choice, config.out, sizes, stages)
    results = {
        "setting": _setting(trained, config, sizes),
        "choice": asdict(choice),
        "claims": {name: {k: v for k, v in s.items() if k != "table"} for name, s in found.items()},
    }
    with stages("report"):
        intro = _intro(trained, choice)
        write_report(config.out, f"The data manifold of {config.dataset}", intro, found)
        write_json(config.out / "results.json", results)
    stages.close()
    write_json(config.out / "run.json", provenance(config.seed, stages.seconds))
    return results


class Stages:
    """A progress bar over the stages, and how long each took."""

    def __init__(self, count: int):
        """Start a bar of so many stages."""
        self.seconds: dict[str, float] = {}
        self._bar = tqdm(total=count, desc="reproduce", unit="stage", dynamic_ncols=True)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what is done inside, under a name."""
        self._bar.set_description(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)
        self._bar.update()

    def close(self) -> None:
        """End the bar."""
        self._bar.set_description("done")
        self._bar.close()


def _claims(
    trained: Trained, choice: dynamics.Choice, out: Path, sizes: Study, stages: Stages
) -> dict[str, Any]:
    """Return the sections of all claims, in the order of the slides."""
    data, leaf, level = trained.dataset, sizes.leaf, sizes.level
    with stages("checkpoints"):
        model = trained.model(choice.epoch)
        others = sorted({e for e in sizes.other_epochs if e in trained.epochs} - {choice.epoch})
        models = {epoch: trained.model(epoch) for epoch in others}
    xs, targets = data_leaf.pairs(data, leaf)
    with stages("walks on the leaf"):
        walked = data_leaf.walk_pairs(model, data, xs, targets, leaf)
    with stages("drifts along the kernel"):
        drifted = kernel.drift_images(model, data, xs, sizes.drift)
        noisy = drifted["exact"]
    tasks: dict[str, Callable[[], dict[str, Any]]] = {
        "S1": lambda: rank_table.run(model, data, out, sizes.ranks),
        "S2": lambda: dynamics.run(
            trained.history, out, choice, sizes.training, loose=_loose_ranks(trained, sizes)
        ),
        "S3": lambda: data_leaf.run(model, data, out, leaf, paths=walked, models=models),
        "S4": lambda: data_leaf.run(model, data, out, leaf, mirrored=True),
        "S5": lambda: noise_level.run(
            model, data, out, level, leaf, sizes.drift, path=walked["exact"], noisy=noisy
        ),
        "S6": lambda: kernel.run(model, data, out, sizes.drift, xs=xs, paths=drifted),
        "S7": lambda: noise_leaf.run(
            model, data, out, sizes.noisy, leaf, level, sizes.drift, noisy=noisy
        ),
    }
    found = {}
    for name, task in tasks.items():
        with stages(name):
            found[name] = task()
    return found


def _loose_ranks(trained: Trained, sizes: Study) -> dict[int, float]:
    """Return the mean rank of G at a loose tolerance, by epoch, for about ten epochs."""
    every = max(1, len(trained.epochs) // 10)
    return {
        epoch: rank_table.mean_loose_rank(trained.model(epoch), trained.dataset, sizes.ranks)
        for epoch in trained.epochs[::-every][::-1]
    }


def _setting(trained: Trained, config: Config, sizes: Study) -> dict[str, Any]:
    data = trained.dataset
    return {
        "dataset": data.name,
        "num_train": len(data.train_x),
        "num_test": len(data.test_x),
        "epochs": trained.epochs[-1],
        "seed": config.seed,
        "training": trained.settings,
        "network": trained.network,
        "sizes": asdict(sizes),
    }


def _intro(trained: Trained, choice: dynamics.Choice) -> list[str]:
    data = trained.dataset
    return [
        f"A network ({trained.network}) was trained on {len(data.train_x)} images of {data.name} "
        f"for {trained.epochs[-1]} epochs at a rate of {trained.settings['learning_rate']:g} "
        f"(seed {trained.settings['seed']}); "
        f"{len(data.test_x)} test images are left for what follows. All claims are measured on one "
        f"partially trained checkpoint. {choice.reason}",
        "Each claim of the slides is quoted, then judged by its numbers: it holds, holds in part, "
        "or does not hold. Distances are Euclidean in standardised units unless pixels are named; "
        "the pixel range is 1. “Exact” steps follow the projection and keep p along the kernel; "
        "“published” is the paper's scheme, unit-speed steps clipped to the pixel box. All numbers "
        "are in results.json.",
    ]


def main() -> None:
    """Run from the command line."""
    config = tyro.cli(Config, description=__doc__)
    with running("reproduce", config.out, devices=config.devices):
        results = run(config)
    for name, claim in results["claims"].items():
        print(f"{name} {claim['outcome']}: {claim['title']}")
    print(f"report: {config.out / 'report.html'}")


if __name__ == "__main__":
    main()
