"""S1: the rank of the local data matrix is below the number of classes.

    python -m experiments.rank_table --out out/rank_table

makes the slides' table, with measured ranks beside the bounds, for every data set whose trained
network is at hand: digits always; others from the checkpoints of `experiments.train`, named by
`--mnist DIR`, `--fashion-mnist DIR`, `--cifar10 DIR`, `--cifar100 DIR`; ImageNet from the
results.json of `experiments.imagenet`. A line without numbers says what it lacks. Writes
`table.md`, `results.json` (the same for the same weights) and `run.json` (with the times).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import foliax
from experiments.harness.command import Run, script
from experiments.harness.files import plain, provenance, write_json, write_text
from experiments.harness.outcomes import FAILS, HOLDS
from experiments.harness.populations import quartiles
from experiments.harness.report import section
from experiments.rank_table import sources
from foliax import viz
from foliax.data_matrix import count_rank, singular_values

_BLOCK = 8  # inputs at once
_DENSE_UP_TO = 100  # n up to which a dense G is formed in float64 besides
_NUM_DENSE = 16
_LOOSE = "1e-2"  # the second tolerance that reports on a network give
_NAMES = ("least", "median", "largest")


# --- one network -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """Which images are measured."""

    num_images: int = 360  # Test images whose rank is measured
    num_dense: int = _NUM_DENSE  # Of these, how many get a dense G formed without the factor


@jax.jit
def _measure(model: Any, xs: Any) -> dict[str, Any]:
    def one(x: Any) -> dict[str, Any]:
        a = foliax.factor(model, x)
        s = singular_values(a)
        rtols = sources.TOLERANCES.items()
        return {
            "values": s**2,
            "trace": jnp.sum(a**2),
            "rank": {key: count_rank(s, num_rows=len(a), rtol=rtol) for key, rtol in rtols},
            "dimension": foliax.dimension(model, x),
        }

    return jax.lax.map(one, xs, batch_size=_BLOCK)


@jax.jit
def _dense(model: Any, xs: Any) -> Any:
    """Form G column by column from products G v, which know nothing of the factor."""

    def one(x: Any) -> Any:
        basis = jnp.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape)
        columns = jax.vmap(lambda v: foliax.matvec(model, x, v))(basis)
        return columns.reshape(x.size, x.size)

    return jax.lax.map(one, xs)


def dense_eigenvalues(model: Any, xs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return all n eigenvalues of dense G at each x, in float64, descending, and their ranks.

    In double precision the zero ones lie some 16 digits below the largest, and can be told apart:
    those of a symmetric matrix are known to n · eps of the largest.
    """
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model)
        dense = np.asarray(_dense(double, jnp.asarray(np.asarray(xs), jnp.float64)))
    values = np.linalg.eigvalsh((dense + dense.swapaxes(1, 2)) / 2)[:, ::-1]
    rounding = values.shape[1] * np.finfo(np.float64).eps * values[:, :1]
    return values, (values > rounding).sum(axis=1)


def mean_loose_rank(model: Any, dataset: Any, config: Config) -> float:
    """Return the mean rank of G over the images at the loose tolerance."""
    xs = jnp.asarray(dataset.test_x[: config.num_images])
    return float(np.mean(_measure(model, xs)["rank"][_LOOSE]))


def run(model: Any, dataset: Any, out: Path, config: Config) -> dict[str, Any]:
    """Measure ranks at the first test images, draw the spectrum, and return the section."""
    xs = jnp.asarray(dataset.test_x[: config.num_images])
    found = jax.tree.map(np.asarray, _measure(model, xs))
    dense, dense_ranks = dense_eigenvalues(model, xs[: config.num_dense])
    bound = dataset.num_classes - 1
    beyond = np.maximum(np.abs(dense[:, bound:]).max(1), 1e-300)
    numbers: dict[str, Any] = {
        "n": int(np.prod(dataset.shape)),
        "num_classes": bound + 1,
        "bound": bound,
        "num_images": len(xs),
        "num_dense": len(dense),
        "rank": quartiles(found["rank"]["default"]),
        "rank_loose": quartiles(found["rank"][_LOOSE]),
        "rank_dense": quartiles(dense_ranks),
        "dimension": quartiles(found["dimension"]),
        "loose_tolerance": sources.TOLERANCES[_LOOSE],
        "least_cliff": float((dense[:, bound - 1] / beyond).min()),
    }
    title = f"Eigenvalues of G on {dataset.name}, n = {numbers['n']}"
    file = out / "spectrum.png"
    viz.spectrum(found["values"], file, num_classes=bound + 1, dense=dense[0], title=title)
    rows = {
        "rank of G": "rank",
        f"rank of G, tolerance {_LOOSE}": "rank_loose",
        "rank of dense G, float64": "rank_dense",
        "dimension of the leaf": "dimension",
    }
    return section(
        title="The rank of G is below the number of classes",
        claim="rank G(x, w) < C.",
        verdict=_verdict(numbers, dataset.name),
        numbers=numbers,
        pictures=[
            (
                "spectrum.png",
                "Eigenvalues of G over test images, and all of one dense G formed without the "
                "factor, in float64: after the (C - 1)-th they fall to rounding.",
            )
        ],
        columns=("", *_NAMES),
        rows=[
            *((text, *(f"{path}.{name}" for name in _NAMES)) for text, path in rows.items()),
            ("size n, classes C, bound C - 1", "n", "num_classes", "bound"),
        ],
    )


def _verdict(numbers: dict[str, Any], name: str) -> tuple[str, str]:
    largest = max(numbers["rank"]["largest"], numbers["rank_dense"]["largest"])
    return (HOLDS if largest <= numbers["bound"] else FAILS), (
        f"On {name} (n = {numbers['n']}, C = {numbers['num_classes']}) the largest rank measured "
        f"is {largest:.0f}, the bound is {numbers['bound']}. In {numbers['num_dense']} dense "
        f"matrices formed without the factor, eigenvalue {numbers['bound']} is at least "
        f"{numbers['least_cliff']:.2g} times whatever follows it. At a tolerance of 1 % of the "
        f"largest eigenvalue the median rank is {numbers['rank_loose']['median']:.3g}."
    )


# --- the table ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command(Run):
    """What is at hand for the table."""

    out: Path = Path("out/rank_table")  # Output folder
    num_images: int = 360  # Test images measured of each data set, at most
    mnist: Path | None = None  # Folder of a training of `experiments.train` on MNIST, and so on
    fashion_mnist: Path | None = None  # The same
    cifar10: Path | None = None  # The same
    cifar100: Path | None = None  # The same
    imagenet: Path | None = None  # The results.json of a run of `experiments.imagenet`


def make_table(command: Command) -> dict[str, Any]:
    """Measure every line whose network is at hand, write everything, return results.json's.

    Raises:
        ValueError: If a folder or file that was named does not hold what it should.
        FileNotFoundError: If it does not exist, or its data set is not prepared.
    """
    rows: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for name, known in (bar := tqdm(sources.KNOWN.items(), desc="rank table", unit="data set")):
        bar.set_description(name)
        slides = {"n": known.n, "num_classes": known.num_classes, "bound": known.num_classes - 1}
        found, spent = _row(name, command)
        rows[name] = slides | found
        if spent is not None:
            seconds[name] = spent
    largest = ", ".join(
        f"{name} {row['rank']['default']['largest']:.0f} of {row['bound']}"
        for name, row in rows.items()
        if "missing" not in row
    )
    verdict = (
        f"Largest rank of G measured: {largest}. The factor has C - 1 rows, so that no rank can be "
        "larger; a dense G, formed without it, says the same where one was made. The slides print "
        "the looser bound C."
    )
    results = plain({"rows": rows, "verdict": verdict})
    text = f"{markdown(results['rows'], seconds)}\n\n{verdict}\n"
    write_text(command.out / "table.md", text)
    write_json(command.out / "results.json", results)
    write_json(command.out / "run.json", provenance(command.seed, plain(seconds)))
    print(text)
    return results


def _row(name: str, command: Command) -> tuple[dict[str, Any], float | None]:
    """Return the numbers of a line, and the seconds an input took."""
    limit = 8 if command.quick else command.num_images
    if name == "digits":
        return measure(sources.shipped(limit))
    given = getattr(command, name)
    if given is None:
        return {"missing": sources.missing(name)}, None
    if name == "imagenet":
        return sources.imagenet_row(given), None
    return measure(sources.from_training(name, given, limit))


def measure(source: sources.Source) -> tuple[dict[str, Any], float]:
    """Count ranks at every input; return the row, and the seconds an input took, compiled."""
    xs = jnp.asarray(source.xs)
    jax.block_until_ready(_measure(source.model, xs))
    start = time.perf_counter()
    found = jax.block_until_ready(_measure(source.model, xs))
    seconds = (time.perf_counter() - start) / len(xs)
    del found["values"]
    row: dict[str, Any] = {"network": source.network, "num_inputs": len(xs)}
    row |= jax.tree.map(quartiles, found)
    if xs[0].size <= _DENSE_UP_TO:
        row["rank_dense"] = quartiles(dense_eigenvalues(source.model, xs[:_NUM_DENSE])[1])
    return row, seconds


_HEADINGS = (
    *("data set", "n", "C (slides)", "C - 1", "inputs"),
    *(f"rank G, {key}" for key in sources.TOLERANCES),
    *("dim D", "dense G", "trace", "time an input", "network"),
)


def markdown(rows: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    """Return the table: medians, and in brackets the range over the inputs."""
    lines: list[tuple[str, ...]] = [_HEADINGS, ("---",) * len(_HEADINGS)]
    for name, row in rows.items():
        head = (name, f"{row['n']:,}", str(row["num_classes"]), str(row["bound"]))
        if "missing" in row:
            lines.append((*head, *[""] * (len(_HEADINGS) - 5), row["missing"]))
            continue
        counts = [*(row["rank"][key] for key in sources.TOLERANCES), row["dimension"]]
        dense = _spread(row["rank_dense"]) if "rank_dense" in row else ""
        spent = f"{1e3 * seconds[name]:.3g} ms" if name in seconds else ""
        rest = (dense, _spread(row["trace"]), spent, row["network"])
        lines.append((*head, str(row["num_inputs"]), *map(_spread, counts), *rest))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(found: Mapping[str, float]) -> str:
    least, middle, largest = (f"{found[key]:.3g}" for key in _NAMES)
    return middle if least == largest else f"{middle} ({least}–{largest})"


if __name__ == "__main__":
    script(Command, make_table, name="rank_table", description=__doc__)
