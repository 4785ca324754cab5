"""What G, walks, F·v and training cost: beside forward passes, and beside PyTorch.

    python -m experiments.benchmark --weights cnn.npz --out out/benchmark
    python -m experiments.benchmark --quick --rows batch walk_1

times the papers' network for MNIST (two convolutions, a pool, dense 128, C = 10) on Fashion-MNIST,
in one run. A Jacobian by C reverse passes costs about 1 + C forward passes: that is the first
yardstick, the forward pass being the stock network's at its fastest batch. The second is PyTorch
(`pip install 'foliax[benchmark]'`), twice: P1, the papers' algorithm, and P2, the best plain
`torch.func`; see `peers`. Everybody's results are compared before anybody is timed.

Programs are compiled first, then run in turn, in a random order each round, an untimed call before
each timed one; a ratio is the median over rounds of the ratios within a round, with its range.
Memory is XLA's own count of a program's scratch memory, and the most that the process had. As in
all experiments, LAPACK has one thread and freed memory is kept (see `experiments/__init__`).

On a busy machine times mean little, and ratios to PyTorch favour foliax, as PyTorch's threads wait
for each other; the ratio of everybody's least times, beside the median, says what a quiet one
would give. The load is in the table. Writes `table.md`, `results.json` and `run.json`.
"""

import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax

from experiments.benchmark import peers
from experiments.benchmark.bench import CHUNK, Bench, Sizes
from experiments.benchmark.nets import obtain
from experiments.benchmark.rows import ROWS, SLOW, Name
from experiments.benchmark.timing import Disagreement, Skipped, measure, tables
from experiments.harness.command import script
from experiments.harness.report import write_json, write_numbers
from experiments.harness.run import Stages

_CPU_BLOCK, _GPU_BLOCK = 4, 64  # images at a time: what fits the caches; what fills the device
_QUICK_ROUNDS = 3
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "XLA_FLAGS")
_BUSY = 0.5  # load of others, per core, from which on the table warns
_GIB = 2**30


@dataclass(frozen=True)
class Config:
    """What to time, on what, and where to write."""

    weights: Path | None = None  # PyTorch weights of the papers' network for MNIST, .npz or .pt
    # Folder of a training to take the network from. With neither, one is trained for a
    # hundred steps, on Fashion-MNIST where it is prepared and else on digits enlarged.
    checkpoint: Path | None = None
    out: Path = Path("out")  # Output folder
    rows: tuple[Name, ...] = ()  # Which rows; none for all
    rounds: int = 7  # How often everybody is timed
    seed: int = 0  # Of the order, of directions and of random weights
    # Few rounds, small sizes, and without the slowest rows unless they are named.
    quick: bool = False
    sizes: Sizes = field(default_factory=Sizes)  # How much a program does in one run

    def chosen(self) -> tuple[Name, ...]:
        """Return the rows that are timed."""
        return self.rows or tuple(name for name in ROWS if not (self.quick and name in SLOW))


def run(config: Config) -> dict[str, Any]:
    """Time all rows, and write everything; return what results.json holds.

    Raises:
        ValueError: If rounds is not positive, or the network is another one.
    """
    if config.rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {config.rounds}")
    names, load = config.chosen(), os.getloadavg()
    rounds = min(config.rounds, _QUICK_ROUNDS) if config.quick else config.rounds
    stages = Stages("benchmark", len(names) + 1)
    subject = stages.run("network", obtain, config.weights, config.checkpoint, config.seed)
    sizes = config.sizes.quick() if config.quick else config.sizes
    block = _CPU_BLOCK if jax.default_backend() == "cpu" else _GPU_BLOCK
    bench = Bench(subject, sizes, block, config.seed)
    rows: dict[str, Any] = {}
    for name in names:
        rows[name] = stages.run(name, _row, name, bench, rounds, config.seed)
        # After every row, so that a run that is stopped leaves what it has.
        write_json(config.out / "results.json", {"rows": rows})
    results = {
        "device": device(),
        "load_at_start": load,
        "network": subject.network,
        "product_gflops": bench.product_rates,
        "block": block,
        "sizes": asdict(sizes),
        "forward_seconds_by_batch": vars(bench).get("forward_seconds"),
        "func_chunk": CHUNK,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rows": rows,
    }
    table = "\n\n".join(["\n".join(heading(results)), *tables(rows)])
    return write_numbers(config.out, results, seed=config.seed, seconds=stages.seconds, table=table)


def _row(name: Name, bench: Bench, rounds: int, seed: int) -> dict[str, Any]:
    """Measure a row, or say why it was not."""
    try:
        return measure(name, ROWS[name](bench), rounds, seed)
    except Skipped as why:
        return {"title": name, "status": f"skipped: {why}"}
    except Disagreement as why:
        return {"title": name, "status": f"failed: {why}"}


def device() -> dict[str, Any]:
    """Say what the times depend on."""
    one = jax.devices()[0]
    return {
        "kind": one.device_kind,
        "platform": one.platform,
        "cpus": os.cpu_count(),
        "jax": jax.__version__,
        "torch": None if peers.torch is None else peers.settings(),
        "environment": {name: os.environ[name] for name in _THREADS if name in os.environ},
    }


def heading(results: Mapping[str, Any]) -> list[str]:
    """Return what stands above the tables."""
    where, torch = results["device"], results["device"]["torch"]
    other = "PyTorch is not installed"
    if torch is not None:
        other = f"PyTorch {torch['version']} on {torch['device']}, {torch['threads']} threads"
    rows, before = results["rows"].values(), results["load_at_start"][0]
    most = max((load for row in rows for load in row.get("load", ())), default=0)
    rates = ", ".join(f"{who} {rate:.0f}" for who, rate in results["product_gflops"].items())
    lines = [
        f"{where['cpus']} cores, {where['kind']}; jax {where['jax']}; {other}.",
        f"Network: {results['network']}. Load (one minute) {before:.1f} at the start, {most:.1f} "
        f"at most. Most memory of the process: {results['peak_bytes'] / _GIB:.2f} GiB.",
        f"Products of square float32 matrices, GFLOP/s: {rates}. Where the two differ, so do the "
        "networks.",
    ]
    if before > _BUSY * where["cpus"]:
        lines.append("**The machine was busy with other work**: the least times tell more.")
    return lines + [f"{row['title']}: {row['note']}." for row in rows if row.get("note")]


def main(config: Config) -> None:
    """Time, and refuse results that differ."""
    rows = run(config)["rows"]
    failed = [name for name, row in rows.items() if row["status"].startswith("failed")]
    if failed:
        sys.exit(f"benchmark: the results differ in {', '.join(failed)}")


if __name__ == "__main__":
    script(Config, main, name="benchmark", description=__doc__)
