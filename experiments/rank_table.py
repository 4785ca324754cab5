"""S1: the rank of the local data matrix is below the number of classes."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import foliax
from experiments._common import FAILS, HOLDS, quartiles
from experiments._report import section
from foliax import viz


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
    # Eigenvalues of a symmetric matrix are known to n · eps of the largest.
    dense_ranks = (dense > n * np.finfo(np.float64).eps * dense[:, :1]).sum(axis=1)
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
        "rank_dense": quartiles(dense_ranks),
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
