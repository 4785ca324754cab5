"""S1: the rank of the local data matrix is below the number of classes.

    python -m experiments.rank_table --out out/rank_table

makes the slides' table, with measured ranks beside the bounds, for every data set whose trained
network is at hand: digits always; others from the checkpoints of `experiments.train`, named by
`--mnist DIR`, `--fashion-mnist DIR`, `--cifar10 DIR`, `--cifar100 DIR`; ImageNet with `--imagenet`,
or from the results of `experiments.imagenet`. A line without numbers says what it lacks. Writes
`table.md`, `results.json` (the same for the same weights) and `run.json` (with the times).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

import foliax
from experiments.harness.common import (
    FAILS,
    HOLDS,
    plain,
    provenance,
    quartiles,
    write_json,
    write_text,
)
from experiments.harness.report import section
from experiments.harness.run import running
from experiments.rank_table import sources
from foliax import viz
from foliax._linalg.rank import count_rank, singular_values

BLOCK = 8  # inputs at once
DENSE_UP_TO = 100  # n up to which a dense G is formed in float64 besides
NUM_DENSE = 16


@dataclass(frozen=True)
class Config:
    """Which images are measured.

    Attributes:
        num_images: Test images whose rank is measured.
        num_dense: Of these, how many get a dense G formed without the factor.
        loose: A second tolerance, relative to the largest eigenvalue: what is seen at 1 %.
    """

    num_images: int = 360
    num_dense: int = 16
    loose: float = 1e-2


@partial(jax.jit, static_argnames="loose")
def _measure(model: Any, xs: Any, loose: float) -> dict[str, Any]:
    def one(x: Any) -> dict[str, Any]:
        return {
            "values": foliax.eigh(model, x).values,
            "rank": foliax.rank(model, x),
            "loose": foliax.rank(model, x, rtol=loose),
            "dimension": foliax.dimension(model, x),
        }

    return jax.lax.map(one, xs, batch_size=32)


@jax.jit
def _dense(model: Any, xs: Any) -> Any:
    """Form G column by column from products G v, which know nothing of the factor."""

    def one(x: Any) -> Any:
        basis = jnp.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape)
        columns = jax.vmap(lambda v: foliax.matvec(model, x, v))(basis)
        return columns.reshape(x.size, x.size)

    return jax.lax.map(one, xs)


def dense_eigenvalues(model: Any, xs: Any) -> np.ndarray:
    """Return all n eigenvalues of dense G at each x, in float64, descending.

    In double precision the zero ones lie some 16 digits below the largest, and can be told apart.
    """
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model)
        dense = np.asarray(_dense(double, jnp.asarray(np.asarray(xs), jnp.float64)))
    return np.linalg.eigvalsh((dense + dense.swapaxes(1, 2)) / 2)[:, ::-1]


def _dense_ranks(values: np.ndarray) -> np.ndarray:
    """Count eigenvalues; those of a symmetric matrix are known to n · eps of the largest."""
    n = values.shape[1]
    return (values > n * np.finfo(np.float64).eps * values[:, :1]).sum(axis=1)


def mean_loose_rank(model: Any, dataset: Any, config: Config) -> float:
    """Return the mean rank of G over the images at the loose tolerance."""
    xs = jnp.asarray(dataset.test_x[: config.num_images])
    return float(np.mean(_measure(model, xs, loose=config.loose)["loose"]))


def run(model: Any, dataset: Any, out: Path, config: Config) -> dict[str, Any]:
    """Measure ranks and draw the spectrum.

    Args:
        model: The classifier.
        dataset: Its data; the first test images are used.
        out: Folder for the picture.
        config: Which images are measured.

    Returns:
        The section of the report; see `_report.section`.
    """
    numbers, values, dense = _numbers(model, dataset, config)
    viz.spectrum(
        values,
        out / "spectrum.png",
        num_classes=dataset.num_classes,
        dense=dense[0],
        title=f"Eigenvalues of G on {dataset.name}, n = {numbers['n']}",
    )
    names = ("least", "median", "largest")
    rows = [
        ("rank of G", *(f"rank.{name}" for name in names)),
        (f"rank of G, tolerance {config.loose:g}", *(f"rank_loose.{name}" for name in names)),
        ("rank of dense G, float64", *(f"rank_dense.{name}" for name in names)),
        ("dimension of the leaf", *(f"dimension.{name}" for name in names)),
        ("size n, classes C, bound C - 1", "n", "num_classes", "bound"),
    ]
    return section(
        title="The rank of G is below the number of classes",
        claim="rank G(x, w) < C.",
        verdict=_judge(numbers, dataset.name),
        numbers=numbers,
        pictures=[
            (
                "spectrum.png",
                "Eigenvalues of G over test images, and all of one dense G formed without the "
                "factor, in float64: after the (C - 1)-th they fall to rounding.",
            )
        ],
        columns=("", *names),
        rows=rows,
    )


def _numbers(
    model: Any, dataset: Any, config: Config
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Return what is reported, the leading eigenvalues, and all those of the dense matrices."""
    xs = jnp.asarray(dataset.test_x[: config.num_images])
    found = jax.tree.map(np.asarray, _measure(model, xs, loose=config.loose))
    dense = dense_eigenvalues(model, xs[: config.num_dense])
    n, num_classes = int(np.prod(dataset.shape)), dataset.num_classes
    cliff = dense[:, num_classes - 2] / np.maximum(
        np.abs(dense[:, num_classes - 1 :]).max(1), 1e-300
    )
    numbers: dict[str, Any] = {
        "n": n,
        "num_classes": num_classes,
        "bound": num_classes - 1,
        "num_images": len(xs),
        "num_dense": len(dense),
        "rank": quartiles(found["rank"]),
        "rank_loose": quartiles(found["loose"]),
        "rank_dense": quartiles(_dense_ranks(dense)),
        "dimension": quartiles(found["dimension"]),
        "loose_tolerance": config.loose,
        "least_cliff": float(cliff.min()),
    }
    return numbers, found["values"], dense


def _judge(numbers: dict[str, Any], name: str) -> tuple[str, str]:
    largest = max(numbers["rank"]["largest"], numbers["rank_dense"]["largest"])
    told = (
        f"On {name} (n = {numbers['n']}, C = {numbers['num_classes']}) the largest rank measured "
        f"is {largest:.0f}, the bound is {numbers['bound']}. In {numbers['num_dense']} dense "
        f"matrices formed without the factor, the ninth eigenvalue is at least "
        f"{numbers['least_cliff']:.2g} times whatever follows it. Seen at a tolerance of "
        f"{100 * numbers['loose_tolerance']:g} % of the largest eigenvalue, the median rank is "
        f"{numbers['rank_loose']['median']:.3g}."
    ).replace("ninth", f"{numbers['bound']}th")
    return (HOLDS if largest <= numbers["bound"] else FAILS), told


# --- the table ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """What is at hand for the table.

    Attributes:
        out: Output folder.
        num_images: Test images measured of each data set, at most.
        mnist: Folder of a training of `experiments.train` on MNIST, and so on.
        fashion_mnist: The same.
        cifar10: The same.
        cifar100: The same.
        weights: Instead of `fashion_mnist`, a .npz file with the PyTorch weights of the papers' CNN
            ("w.0.weight", …) and images "x" (N, 1, 28, 28) as it takes them.
        imagenet: Run `experiments.imagenet` (minutes) into the output folder.
        imagenet_results: Instead, the results.json of an earlier run.
        quick: Few images.
    """

    out: Path = Path("out/rank_table")
    num_images: int = 360
    mnist: Path | None = None
    fashion_mnist: Path | None = None
    cifar10: Path | None = None
    cifar100: Path | None = None
    weights: Path | None = None
    imagenet: bool = False
    imagenet_results: Path | None = None
    quick: bool = False


def make_table(command: Command) -> dict[str, Any]:
    """Measure every line whose network is at hand, and write everything.

    Args:
        command: What is at hand.

    Returns:
        What results.json holds.

    Raises:
        ValueError: If a folder or file that was named does not hold what it should.
        FileNotFoundError: If it does not exist, or its data set is not prepared.
        ImportError: If ImageNet was asked for and its weights are not installed.
    """
    rows: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    bar = tqdm(sources.KNOWN.items(), desc="rank table", unit="data set", dynamic_ncols=True)
    for name, known in bar:
        bar.set_description(name)
        slides = {"n": known.n, "num_classes": known.num_classes, "bound": known.num_classes - 1}
        found, spent = _row(name, command)
        rows[name] = slides | found
        if spent is not None:
            seconds[name] = spent
    bar.set_description("done")
    bar.close()
    results = plain({"rows": rows, "verdict": _verdict(rows)})
    table = markdown(results["rows"], seconds)
    write_text(command.out / "table.md", f"{table}\n\n{results['verdict']}\n")
    write_json(command.out / "results.json", results)
    write_json(command.out / "run.json", provenance(0, plain(seconds)))
    return results


def _row(name: str, command: Command) -> tuple[dict[str, Any], float | None]:
    """Return what a line says, and the seconds an input took."""
    limit = 8 if command.quick else command.num_images
    if name == "imagenet":
        file = command.imagenet_results
        if file is None and command.imagenet:
            file = sources.run_imagenet(command.out / "imagenet", quick=command.quick)
        return sources.imagenet_row(file)
    if name == "digits":
        return measure(sources.shipped(limit))
    folder = getattr(command, name)
    if folder is not None:
        return measure(sources.from_training(name, folder, limit))
    if name == "fashion_mnist" and command.weights is not None:
        return measure(sources.from_torch(command.weights, limit))
    return {"missing": sources.missing(name)}, None


@jax.jit
def _count(model: Any, xs: Any) -> dict[str, Any]:
    def one(x: Any) -> dict[str, Any]:
        a = foliax.factor(model, x)
        s = singular_values(a)
        rtols = {key: None if key == "default" else float(key) for key in sources.TOLERANCES}
        return {
            "trace": jnp.sum(a**2),
            "rank": {key: count_rank(s, num_rows=len(a), rtol=rtol) for key, rtol in rtols.items()},
            "dimension": foliax.dimension(model, x),
        }

    return jax.lax.map(one, xs, batch_size=BLOCK)


def measure(source: sources.Source) -> tuple[dict[str, Any], float]:
    """Count ranks at every input.

    Returns:
        The row, and the seconds an input took, compiled.
    """
    xs = jnp.asarray(source.xs)
    jax.block_until_ready(_count(source.model, xs))
    start = time.perf_counter()
    found = jax.block_until_ready(_count(source.model, xs))
    seconds = (time.perf_counter() - start) / len(xs)
    row: dict[str, Any] = {"network": source.network, "num_inputs": len(xs)}
    row |= jax.tree.map(quartiles, found)
    if xs[0].size <= DENSE_UP_TO:
        dense = dense_eigenvalues(source.model, xs[:NUM_DENSE])
        row["rank_dense"] = quartiles(_dense_ranks(dense))
    return row, seconds


def _verdict(rows: Mapping[str, Any]) -> str:
    measured = {name: row for name, row in rows.items() if "missing" not in row}
    told = ", ".join(
        f"{name} {row['rank']['default']['largest']:.0f} of {row['bound']}"
        for name, row in measured.items()
    )
    return (
        f"Largest rank of G measured: {told}. The factor has C - 1 rows, so that no rank can be "
        "larger; a dense G, formed without it, says the same where one was made. The slides print "
        "the looser bound C."
    )


_HEADINGS: tuple[str, ...] = (
    *("data set", "n", "C (slides)", "C - 1", "inputs"),
    *(f"rank G, {key}" for key in sources.TOLERANCES),
    *("dim D", "dense G", "trace", "time an input", "network"),
)


def markdown(rows: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    """Return the table: medians, and in brackets the range over the inputs."""
    lines: list[tuple[str, ...]] = [_HEADINGS]
    for name, row in rows.items():
        head = (name, f"{row['n']:,}", str(row["num_classes"]), str(row["bound"]))
        if "missing" in row:
            lines.append((*head, *[""] * (len(_HEADINGS) - 5), row["missing"]))
            continue
        counts = [row["rank"][key] for key in sources.TOLERANCES]
        cells = [_spread(found) for found in (*counts, row["dimension"])]
        dense = _spread(row["rank_dense"]) if "rank_dense" in row else ""
        spent = _duration(seconds[name]) if name in seconds else ""
        rest = (dense, _spread(row["trace"]), spent, row["network"])
        lines.append((*head, str(row["num_inputs"]), *cells, *rest))
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADINGS) - 1)]
    lines.insert(1, (*("-" * width for width in widths), "---"))
    return "\n".join(
        f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=False))} | {line[-1]} |"
        for line in lines
    )


def _duration(seconds: float) -> str:
    return f"{1e3 * seconds:.2g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _spread(found: Mapping[str, float]) -> str:
    middle, least, largest = (f"{found[key]:.3g}" for key in ("median", "least", "largest"))
    return middle if least == largest else f"{middle} ({least}–{largest})"


def main() -> None:
    """Run from the command line."""
    command = tyro.cli(Command, description=__doc__)
    with running("rank_table", command.out):
        make_table(command)
    print((command.out / "table.md").read_text(encoding="utf-8"))
    print(f"table: {command.out / 'table.md'}")


if __name__ == "__main__":
    main()
