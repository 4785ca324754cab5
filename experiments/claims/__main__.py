"""Which claims of the slides hold, for which network and at which epoch: S3 to S7, side by side.

    python -m experiments.claims --networks out/train@1,2,3 out/quick@5 --pairs 100

walks the populations of `data_leaf`, `noise_level`, `kernel` and `noise_leaf` on every network,
with the exact and the published scheme. A network is the folder of a training, with the epochs
after an @ (none for the newest, "all" for all that have a checkpoint), a file of PyTorch weights,
or digits_mlp, which comes with foliax. Every cell, a network and a claim, is written when it is
done, under `cells`, and not measured again: stopped, the command goes on where it was. The end is
`table.md`, `claims.png`, `results.json`, `run.json`, and pictures and a report for each network.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro
from tqdm import tqdm

from experiments import data_leaf, kernel, noise_leaf, noise_level
from experiments.claims import table
from experiments.harness import command as _command
from experiments.harness.common import Loaded, load, plain, provenance, write_json, write_text
from experiments.harness.report import write_report
from experiments.harness.run import running
from foliax import zoo

CLAIMS = ("S3", "S4", "S5", "S6", "S7")


@dataclass(frozen=True)
class Config:
    """Which networks and claims, how many pairs, and where to write.

    Attributes:
        networks: Folders of trainings, with epochs as FOLDER@1,3 or FOLDER@all; .npz or .pt files
            of the papers' weights; or digits_mlp.
        dataset: Data set of the weights in files.
        claims: Which claims.
        pairs: How many pairs of test images; as many images drift along the kernel.
        steps: Steps at most.
        step: Length of a step, normalised units.
        noise: How noisy the images of S7 are made, root mean square in pixel units, about.
        seed: Draws pairs, directions and noise.
        out: Output folder.
        devices: How many devices share the walks; None for all that JAX sees.
        quick: Few pairs and steps, to see that everything runs.
    """

    networks: tuple[str, ...] = ("digits_mlp",)
    dataset: Literal["digits", "mnist", "fashion_mnist", "kmnist", "emnist/letters"] = (
        "fashion_mnist"
    )
    claims: tuple[Literal["S3", "S4", "S5", "S6", "S7"], ...] = CLAIMS
    pairs: int = 100
    steps: int = 1000
    step: float = 0.1
    noise: float = 0.2
    seed: int = 0
    out: Path = Path("out/claims")
    devices: int | None = None
    quick: bool = False

    def effective(self) -> "Config":
        """Return what is run: itself, or a smaller one."""
        if not self.quick:
            return self
        return replace(self, pairs=min(self.pairs, 3), steps=min(self.steps, 125))

    def sizes(self) -> dict[str, Any]:
        """Return what a cell depends on besides its network."""
        names = ("pairs", "steps", "step", "noise", "seed")
        return {name: getattr(self, name) for name in names}


class Source(NamedTuple):
    """Where a network comes from.

    Attributes:
        key: Names it, and the folder of its cells.
        where: What `_common.load` takes.
    """

    key: str
    where: dict[str, Any]


def sources(config: Config) -> list[Source]:
    """Return the networks that are named, one for each epoch.

    Raises:
        ValueError: If two have the same name.
        FileNotFoundError: If a folder holds no checkpoint.
    """
    found = [source for name in config.networks for source in _parse(name, config.dataset)]
    keys = [source.key for source in found]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise ValueError(f"networks must have different names, got twice: {sorted(twice)}")
    return found


def _parse(name: str, dataset: str) -> Iterator[Source]:
    if name == "digits_mlp":
        yield Source(name, {"dataset": "digits"})
        return
    place, _, wanted = name.partition("@")
    path = Path(place)
    if path.suffix in (".npz", ".pt", ".pth"):
        yield Source(path.stem, {"dataset": dataset, "weights": path})
        return
    there = zoo.epochs(path)
    stem = path.absolute().parent.name if path.name == "checkpoints" else path.absolute().name
    if wanted == "all":
        epochs = there
    else:
        if not re.fullmatch(r"(\d+(,\d+)*)?", wanted):
            raise ValueError(f"epochs must be as in FOLDER@1,3 or FOLDER@all, got {name!r}")
        epochs = [int(epoch) for epoch in wanted.split(",")] if wanted else there[-1:]
    for epoch in epochs:
        yield Source(f"{stem}-{epoch}", {"checkpoint": path, "epoch": epoch})


class Populations:
    """The paths of one network, made when a claim first asks for them, and shared by all."""

    def __init__(self, loaded: Loaded, config: Config):
        """Take a network and the sizes of its populations."""
        self.model, self.dataset = loaded.model, loaded.dataset
        size: dict[str, Any] = {"step": config.step, "max_steps": config.steps}
        size |= {"save_every": 5, "seed": config.seed}
        self.leaf = data_leaf.Config(num_pairs=config.pairs, **size)
        self.drift = kernel.Config(num_images=config.pairs, **size)
        self.level = noise_level.Config(seed=config.seed)
        steps = noise_leaf.noise_steps(
            self.dataset, config.noise, step=config.step, save_every=self.drift.save_every
        )
        self.noisy = noise_leaf.Config(noise_steps=min(steps, config.steps))

    @cached_property
    def walked(self) -> dict[str, Any]:
        """Leaf walks toward test images."""
        xs, targets = data_leaf.pairs(self.dataset, self.leaf)
        return data_leaf.walk_pairs(self.model, self.dataset, xs, targets, self.leaf)

    @cached_property
    def drifted(self) -> dict[str, Any]:
        """Kernel drifts from their starts."""
        xs, _ = data_leaf.pairs(self.dataset, self.leaf)
        return kernel.drift_images(self.model, self.dataset, xs, self.drift)

    def section(self, claim: str, out: Path) -> dict[str, Any]:
        """Measure a claim, and draw."""
        model, data = self.model, self.dataset
        xs, _ = data_leaf.pairs(data, self.leaf)
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "S3": lambda: data_leaf.run(model, data, out, self.leaf, paths=self.walked),
            "S4": lambda: data_leaf.run(model, data, out, self.leaf, mirrored=True),
            "S5": lambda: noise_level.run(
                model, data, out, self.level, self.leaf, self.drift, path=self.walked["exact"],
                published=self.walked["published"], noisy=self.drifted["exact"],
            ),
            "S6": lambda: kernel.run(model, data, out, self.drift, xs=xs, paths=self.drifted),
            "S7": lambda: noise_leaf.run(
                model, data, out, self.noisy, self.leaf, self.level, self.drift,
                noisy=self.drifted["exact"],
            ),
        }  # fmt: skip
        return measures[claim]()


def run(config: Config) -> dict[str, Any]:
    """Measure what is not measured yet, and write everything.

    Args:
        config: What to do.

    Returns:
        What results.json holds.

    Raises:
        ValueError: If a network is not what it should be.
        FileNotFoundError: If it does not exist, or its data set is not prepared.
    """
    config = config.effective()
    begun = time.perf_counter()
    named = sources(config)
    bar = tqdm(total=len(named) * len(config.claims), desc="claims", dynamic_ncols=True)
    networks = {source.key: _network(source, config, bar) for source in named}
    bar.close()
    results = {"setting": config.sizes() | {"claims": config.claims}, "networks": networks}
    results = plain(results)
    write_text(config.out / "table.md", table.markdown(results["networks"], config.claims) + "\n")
    table.draw(results["networks"], config.out / "claims.png")
    write_json(config.out / "results.json", results)
    spent = {"all": round(time.perf_counter() - begun, 2)}
    write_json(config.out / "run.json", provenance(config.seed, spent))
    return results


def _network(source: Source, config: Config, bar: Any) -> dict[str, Any]:
    """Return all cells of a network, measured or read, and write its report."""
    folder = config.out / "cells" / source.key
    loaded = load(**source.where)
    setting = plain(config.sizes() | _command.setting(loaded))
    populations = Populations(loaded, config)
    sections = {}
    for claim in config.claims:
        bar.set_description(f"{source.key} {claim}")
        found = _read(folder / f"{claim}.json", setting)
        if found is None:
            begun = time.perf_counter()
            found = populations.section(claim, folder)
            write_json(folder / f"{claim}.json", {"setting": setting, "section": found})
            spent = {claim: round(time.perf_counter() - begun, 2)}
            write_json(folder / f"{claim}.run.json", provenance(config.seed, spent))
        sections[claim] = found
        bar.update()
    intro = [f"{loaded.network} on {loaded.dataset.name}, {config.pairs} pairs."]
    write_report(folder, f"Claims, {source.key}", intro, sections)
    claims = {
        name: {key: value for key, value in section.items() if key != "table"}
        for name, section in sections.items()
    }
    return {"setting": setting, "claims": claims}


def _read(file: Path, setting: dict[str, Any]) -> dict[str, Any] | None:
    """Return the section of a cell that was measured at these sizes; None if there is none."""
    if not file.exists():
        return None
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return stored["section"] if stored["setting"] == setting else None
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{file} is not as a run left it ({type(error).__name__}: {error}); restore it, or "
            "delete it to have it measured again"
        ) from None


def main() -> None:
    """Run from the command line."""
    config = tyro.cli(Config, prog="python -m experiments.claims", description=__doc__)
    with running("claims", config.out, devices=config.devices):
        run(config)
    print((config.out / "table.md").read_text(encoding="utf-8"))
    print(f"table: {config.out / 'table.md'}")


if __name__ == "__main__":
    main()
