"""The ways to denoise by data leaves, and the same without a leaf, tuned on training images."""

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import foliax
from experiments.denoise.classical import best, psnr
from experiments.harness import run as _run
from experiments.harness.common import endings
from foliax.apps import denoise as app

SHARES = (0.1, 0.2, 0.35, 0.5, 0.7)  # of the way along the leaf, or of what is kept beside it
_WIDTHS = (0.1, 0.15, 0.2, 0.3, 0.5)  # of the median distance of the nearest reference


class Images(NamedTuple):
    """Noisy images with their references, all in normalised units.

    Attributes:
        noisy: (N, *shape).
        clean: (N, *shape), in pixel units, to measure by.
        references: (N, k, *shape), the nearest first.
    """

    noisy: jax.Array
    clean: np.ndarray
    references: jax.Array


class Case(NamedTuple):
    """One noise at one strength.

    Attributes:
        tuning: Training images to tune on.
        test: Test images.
        level: Deviation of the noise, normalised units, root mean square over the tuning images.
    """

    tuning: Images
    test: Images
    level: float


class Flow(NamedTuple):
    """How feet are found; the options of `foliax.apps.denoise.project_many`."""

    step: float
    max_steps: int
    stall: float

    def feet(self, model: Any, images: Images, **options: Any) -> app.Projected:
        """Return the feet of images on the leaves of their references."""
        flows = images.references.shape[0] * images.references.shape[1]
        block = 1 if _run.on_cpu() else flows
        fn = partial(app.project_many, block=block, **self._asdict(), **options)
        return _run.in_parts(fn, model, images.noisy, images.references)


def without_leaf(case: Case, dataset: Any) -> dict[str, np.ndarray]:
    """Return what the references alone give, and blended with the noisy image; in pixels."""
    still = [_unmoved(images) for images in (case.tuning, case.test)]
    alone = {"along": 0.0}
    grids = {
        "nearest": [{"k": 1, **alone}],
        "nearest_mean": [{"k": k, **alone} for k in _counts(case)],
        "nearest_weighted": [{**alone, **width} for width in _widths(case)],
        "nearest_blended": [
            {"k": k, "along": w} for k, w in product(_counts(case), (0.0, *SHARES))
        ],
    }
    return {name: _tuned(case, still, grid, dataset)[0] for name, grid in grids.items()}


def with_leaf(
    model: Any, case: Case, dataset: Any, flow: Flow
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what the leaves of a network give, in pixels, and what was chosen and how feet ended.

    Args:
        model: The classifier.
        case: The noise.
        dataset: Its data.
        flow: How feet are found.
    """
    feet = [flow.feet(model, images) for images in (case.tuning, case.test)]
    counts = _counts(case)
    grids = {
        "foot": [{"k": 1}],
        "foot_best": [{"by": "best"}],
        "feet_mean": [{"k": k} for k in counts],
        "feet_weighted": list(_widths(case)),
        "feet_stein": [{"k": k, "noise": case.level} for k in counts],
        "feet_part": [{"k": k, "along": a} for k, a in product(counts, SHARES)],
        "feet_blended": [{"k": k, "across": w} for k, w in product(counts, (0.0, *SHARES))],
        "feet_apart": [
            {"k": k, "along": a, "across": w}
            for k, a, w in product(counts, (0.0, *SHARES, 1.0), (0.0, *SHARES))
        ],
    }
    found, chosen = {}, {}
    for name, grid in grids.items():
        found[name], chosen[name] = _tuned(case, feet, grid, dataset)
    k = chosen["feet_mean"]["k"]
    some = case.test._replace(references=case.test.references[:, :k])
    early = flow.feet(model, some, level=case.level * np.sqrt(some.noisy[0].size))
    found["feet_discrepancy"] = _pixels(dataset, _combined(some.noisy, some.references, early))
    mean = some.references.mean(axis=1)
    found["kernel_exchanged"] = _pixels(dataset, _exchanged(model, some.noisy, mean))
    ended = {"feet": endings(feet[1]), "discrepancy": endings(early)}
    return found, {"chosen": chosen, "ended": ended}


def by_other_references(
    model: Any, images: Images, k: int, name: str, dataset: Any, flow: Flow
) -> dict[str, np.ndarray]:
    """Return means of k feet, and of the references alone, where these were chosen otherwise."""
    some = images._replace(references=images.references[:, :k])
    projected = flow.feet(model, some)
    return {
        f"{kind}_{name}": _pixels(
            dataset, _combined(some.noisy, some.references, projected, along=along)
        )
        for kind, along in (("nearest", 0.0), ("feet", 1.0))
    }


@jax.jit
def mean_trace(model: Any, xs: Any) -> jax.Array:
    """Return the mean trace of G over a batch."""
    return jnp.mean(jax.lax.map(lambda x: foliax.trace(model, x), xs, batch_size=16))


def _tuned(
    case: Case, projected: Any, grid: Iterable[Mapping[str, Any]], dataset: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return test images by the options of the highest mean PSNR on training images."""
    grid = [dict(options) for options in grid]
    place = 0
    if len(grid) > 1:
        scores = {}
        for i, options in enumerate(grid):
            images = _of(case.tuning, projected[0], **options)
            scores[i] = float(psnr(_pixels(dataset, images), case.tuning.clean).mean())
        place = best(scores)
    return _pixels(dataset, _of(case.test, projected[1], **grid[place])), grid[place]


def _of(images: Images, projected: Any, *, k: int | None = None, **options: Any) -> Any:
    nearest = jax.tree.map(lambda leaf: leaf[:, :k], (images.references, projected))
    return _combined(images.noisy, *nearest, **options)


def _combined(noisy: Any, references: Any, projected: Any, by: str = "mean", **options: Any) -> Any:
    # As arrays, so that another share is no other program.
    numbers = {"along": 1.0, "across": 0.0} | options
    arrays = {name: jnp.asarray(value, noisy.dtype) for name, value in numbers.items()}
    return _combine(noisy, references, projected, by, arrays)


@eqx.filter_jit
def _combine(noisy: Any, references: Any, projected: Any, by: Any, options: Any) -> Any:
    def one(x: Any, references: Any, projected: Any) -> Any:
        return app.combine(x, references, projected, by=by, **options).image

    return jax.vmap(one)(noisy, references, projected)


@jax.jit
def _exchanged(model: Any, noisy: Any, clean: Any) -> Any:
    return jax.lax.map(lambda pair: app.exchange_kernel(model, *pair), (noisy, clean))


def _unmoved(images: Images) -> app.Projected:
    """Return x itself in place of the feet: a share of the way is then one toward x."""
    many, k = images.references.shape[:2]
    nothing = jnp.zeros((many, k), jnp.int32)
    points = jnp.broadcast_to(images.noisy[:, None], images.references.shape)
    return app.Projected(points, nothing.astype(points.dtype), nothing, nothing, nothing)


def _counts(case: Case) -> list[int]:
    most = case.test.references.shape[1]
    return sorted({1, most, *(k for k in (2, 3, 5, 8, 12) if k < most)})


def _widths(case: Case) -> list[dict[str, Any]]:
    away = case.tuning.noisy - case.tuning.references[:, 0]
    typical = float(jnp.median(jnp.sqrt(jnp.sum(away.reshape(len(away), -1) ** 2, axis=1))))
    return [{"by": "weighted", "bandwidth": share * typical} for share in _WIDTHS]


def _pixels(dataset: Any, images: Any) -> np.ndarray:
    return np.asarray(dataset.to_pixels(images), dtype=np.float64)
