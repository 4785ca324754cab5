"""S1: the rank of the local data matrix is below the number of classes.

    python -m experiments.rank_table --out out/rank_table

makes the slides' table, with measured ranks beside the bounds, for every data set whose trained
network is at hand: digits and MNIST always, by the networks that come with foliax; others from the
checkpoints of `experiments.train`, named by `--mnist DIR`, `--fashion-mnist DIR`, `--cifar10 DIR`,
`--cifar100 DIR`; ImageNet from the results.json of `experiments.imagenet`. `--cifar10 FILE`, the
papers' weights, is measured at 20 test images (extra `samples`), and so is an untrained network for
CIFAR-100 where there is no other. A line without numbers says what it lacks. Writes
`table.md`, `results.json` (the same for the same weights) and `run.json` (with the times).
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import foliax
from experiments.harness.command import Run, script
from experiments.harness.networks import Loaded, at_samples, build, load
from experiments.harness.own import data_of
from experiments.harness.populations import in_float64, quartiles
from experiments.harness.report import FAILS, HOLDS, markdown_table, section, write_numbers
from foliax import viz, zoo

_BLOCK = 8  # inputs at once
_DENSE_UP_TO = 100  # n up to which a dense G is formed in float64 besides
NUM_IMAGES, NUM_DENSE = 360, 16  # test images measured, and how many of them get a dense G
TOLERANCES = {"default": None, "1e-2": 1e-2, "1e-4": 1e-4, "1e-6": 1e-6}  # of eigenvalues
_LOOSE = "1e-2"  # the second tolerance that reports on a network give
_NAMES = ("least", "median", "largest")
_INTERNET = "needs the internet: "


@jax.jit
def _measure(model: Any, xs: Any) -> dict[str, Any]:
    def one(x: Any) -> dict[str, Any]:
        found = foliax.spectrum(model, x)
        values = found.eigenvalues
        counts = {
            key: found.rank if rtol is None else jnp.sum(values > rtol * values[0])
            for key, rtol in TOLERANCES.items()
        }
        both = {"trace": found.trace, "dimension": found.dimension}
        return {"values": values, "rank": counts, **both}

    return jax.lax.map(one, xs, batch_size=_BLOCK)


@jax.jit
def _dense(model: Any, xs: Any) -> Any:
    """Form G column by column from products G v, which know nothing of the factor."""

    def one(x: Any) -> Any:
        basis = jnp.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape)
        columns = jax.lax.map(lambda v: foliax.matvec(model, x, v).ravel(), basis, batch_size=64)
        return columns.reshape(x.size, x.size)

    return jax.lax.map(one, xs)


def dense_eigenvalues(model: Any, xs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return all n eigenvalues of dense G at each x, in float64, descending, and their ranks.

    In double precision the zero ones lie some 16 digits below the largest, and can be told apart:
    those of a symmetric matrix are known to n · eps of the largest.
    """
    with jax.enable_x64(True):
        dense = np.asarray(_dense(*in_float64((model, jnp.asarray(xs)))))
    values = np.linalg.eigvalsh((dense + dense.swapaxes(1, 2)) / 2)[:, ::-1]
    rounding = values.shape[1] * np.finfo(np.float64).eps * values[:, :1]
    return values, (values > rounding).sum(axis=1)


def run(
    model: Any, dataset: Any, out: Path, *, num_images: int = NUM_IMAGES, num_dense: int = NUM_DENSE
) -> dict[str, Any]:
    """Measure ranks at the first test images, draw the spectrum, and return the section.

    The first `num_dense` images get a dense G, formed without the factor.
    """
    xs = jnp.asarray(dataset.test_x[:num_images])
    found = jax.tree.map(np.asarray, _measure(model, xs))
    dense, dense_ranks = dense_eigenvalues(model, xs[:num_dense])
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
        "loose_tolerance": TOLERANCES[_LOOSE],
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
    largest = max(numbers["rank"]["largest"], numbers["rank_dense"]["largest"])
    verdict = (
        f"On {dataset.name} (n = {numbers['n']}, C = {bound + 1}) the largest rank measured is "
        f"{largest:.0f}, the bound is {bound}. In {len(dense)} dense matrices formed without the "
        f"factor, eigenvalue {bound} is at least {numbers['least_cliff']:.2g} times whatever "
        "follows it. At a tolerance of 1 % of the largest eigenvalue the median rank is "
        f"{numbers['rank_loose']['median']:.3g}."
    )
    return section(
        title="The rank of G is below the number of classes",
        claim="rank G(x, w) < C.",
        verdict=(HOLDS if largest <= bound else FAILS, verdict),
        numbers=numbers,
        pictures={
            "spectrum.png": "Eigenvalues of G over test images, and all of one dense G formed "
            "without the factor, in float64: after the (C - 1)-th they fall to rounding."
        },
        columns=("", *_NAMES),
        rows=[
            *((text, *(f"{path}.{name}" for name in _NAMES)) for text, path in rows.items()),
            ("size n, classes C, bound C - 1", "n", "num_classes", "bound"),
        ],
    )


class Known(NamedTuple):
    """A line of the slides' table: n, C, the network that is trained, and what comes before."""

    n: int
    num_classes: int
    net: str = "cnn"
    lacks: str = _INTERNET


KNOWN: Mapping[str, Known] = {
    "digits": Known(64, 10),
    "mnist": Known(784, 10),
    "fashion_mnist": Known(784, 10, lacks="python -m foliax.zoo.prepare fashion_mnist, "),
    "cifar10": Known(3072, 10, "colour_cnn"),
    "cifar100": Known(3072, 100, "colour_cnn"),
    "imagenet": Known(150_528, 1000),
}


@dataclass(frozen=True)
class Command(Run):
    """What is at hand for the table."""

    num_images: int = NUM_IMAGES  # Test images measured of each data set, at most
    # Your own images, an .npz file or a folder of images for each class, which make one more line.
    data: Path | None = None
    model: str | None = None  # Your own network for them, module:function
    mnist: Path | None = None  # Folder of a training of `experiments.train` on MNIST, and so on
    fashion_mnist: Path | None = None  # The same
    cifar10: Path | None = None  # The same, or a file of the papers' weights
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
    for name, known in KNOWN.items():
        rows[name] = {
            "n": known.n,
            "num_classes": known.num_classes,
            "bound": known.num_classes - 1,
        }
        found = _row(name, command)
        if "seconds" in found:
            seconds[name] = found.pop("seconds")
        rows[name] |= found
    if command.data is not None or command.model is not None:
        name, own = _own_row(command)
        seconds[name] = own.pop("seconds")
        rows[name] = own
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
    return write_numbers(
        command.out, {"rows": rows, "verdict": verdict}, seed=command.seed, seconds=seconds,
        table=f"{markdown(rows, seconds)}\n\n{verdict}",
    )  # fmt: skip


def _row(name: str, command: Command) -> dict[str, Any]:
    """Return the numbers of a line, with the seconds an input took where it was measured."""
    limit = 8 if command.quick else command.num_images
    given = getattr(command, name, None)
    if name == "imagenet":
        return {"missing": missing(name)} if given is None else imagenet_row(given)
    try:
        found = _network(name, given)
    except ImportError as error:
        return {"missing": str(error)}
    if found is None:
        return {"missing": missing(name)}
    return measure(found.network, found.model, found.dataset.test_x[:limit])


def _own_row(command: Command) -> tuple[str, dict[str, Any]]:
    """Return the line of a user's own network, and its name."""
    model, data, words = load(data_of(None, command.data), model=command.model)
    limit = 8 if command.quick else command.num_images
    sizes = {"n": int(np.prod(data.shape)), "num_classes": data.num_classes}
    name = f"{data.name}, own" if data.name in KNOWN else data.name
    row = sizes | {"bound": data.num_classes - 1}
    return name, row | measure(words, model, data.test_x[:limit])


def _network(name: str, given: Path | None) -> Loaded | None:
    """Return what a line is measured on; None where nothing is at hand."""
    if given is not None and given.is_file():
        return at_samples(name, given)
    if given is not None:
        return load(name, checkpoint=given)
    if name == "cifar100":
        samples = zoo.load_samples(name)
        words = f"{KNOWN[name].net}, untrained. A trained one {missing(name)}"
        return Loaded(build(KNOWN[name].net, samples), samples, words)
    shipped = {"digits": "digits", "mnist": "mnist_5k"}
    return load(shipped[name]) if name in shipped else None


def measure(network: str, model: Any, xs: Any) -> dict[str, Any]:
    """Count ranks at every input, and time them, compiled."""
    xs = jnp.asarray(xs)
    jax.block_until_ready(_measure(model, xs))
    start = time.perf_counter()
    found = jax.block_until_ready(_measure(model, xs))
    seconds = (time.perf_counter() - start) / len(xs)
    del found["values"]
    row: dict[str, Any] = {"network": network, "num_inputs": len(xs), "seconds": seconds}
    if xs[0].size <= _DENSE_UP_TO:
        row["rank_dense"] = quartiles(dense_eigenvalues(model, xs[:NUM_DENSE])[1])
    return row | jax.tree.map(quartiles, found)


def missing(name: str) -> str:
    """Say what makes the network that is not at hand."""
    if name == "imagenet":
        return (
            "pip install 'foliax[imagenet]', python -m experiments.imagenet --out DIR, then "
            "--imagenet DIR/results.json"
        )
    return (
        f"{KNOWN[name].lacks}python -m experiments.train --dataset {name} --net {KNOWN[name].net} "
        f"--out DIR, then --{name.replace('_', '-')} DIR"
    )


def imagenet_row(file: Path) -> dict[str, Any]:
    """Return the line of ImageNet from a results.json.

    Raises:
        ValueError: If the file is another one.
    """
    try:
        images = json.loads(file.read_text(encoding="utf-8"))["claims"]["S1"]["numbers"]["images"]
        rows = [image for image in images.values() if "rank" in image]
        if not rows:
            return {"missing": f"{file} was made without exact factors (--quick)"}
        return {
            "network": "EfficientNet-Lite0",
            "num_inputs": len(rows),
            "rank": {k: quartiles([image["rank"][k] for image in rows]) for k in TOLERANCES},
            "dimension": quartiles([image["dimension"]["default"] for image in rows]),
            "trace": quartiles([image["trace"] for image in rows]),
        }
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"imagenet must be a results.json of experiments.imagenet, got {file}: {error}"
        ) from error


def markdown(rows: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    """Return the table: medians, and in brackets the range over the inputs."""
    counts = [f"rank G, {key}" for key in TOLERANCES]
    lines = [["data set", "n", "C (slides)", "C - 1", "inputs", *counts, "dim D", "dense G",
              "trace", "time an input", "network"]]  # fmt: skip
    for name, row in rows.items():
        cells = [name, f"{row['n']:,}", str(row["num_classes"]), str(row["bound"])]
        if "missing" in row:
            lines.append([*cells, *[""] * (len(lines[0]) - 5), row["missing"]])
            continue
        cells += [str(row["num_inputs"]), *(_spread(row["rank"][key]) for key in TOLERANCES)]
        cells += [_spread(row.get(key)) for key in ("dimension", "rank_dense", "trace")]
        cells += [f"{1e3 * seconds[name]:.3g} ms" if name in seconds else "", row["network"]]
        lines.append(cells)
    return markdown_table(lines)


def _spread(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    least, middle, largest = (f"{found[key]:.3g}" for key in _NAMES)
    return middle if least == largest else f"{middle} ({least}–{largest})"


if __name__ == "__main__":
    script(Command, make_table, name="rank_table", description=__doc__)
