"""The ways to denoise by data leaves, and the same without a leaf, tuned on training images."""

from functools import partial
from itertools import product
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import foliax
from experiments.denoise.classical import psnr
from experiments.harness.populations import endings
from experiments.harness.run import in_parts, on_cpu
from foliax.apps import denoise as app

_SHARES = (0.1, 0.2, 0.35, 0.5, 0.7)  # of the way along the leaf, or of what is kept beside it
_WIDTHS = (0.1, 0.15, 0.2, 0.3, 0.5)  # of the median distance of the nearest reference


class Images(NamedTuple):
    """Noisy images with their references, all in normalised units."""

    noisy: jax.Array  # (N, *shape)
    clean: np.ndarray  # (N, *shape), in pixel units, to measure by
    references: jax.Array  # (N, k, *shape), the nearest first


class Case(NamedTuple):
    """One noise at one strength."""

    dataset: Any  # Whose images they are
    tuning: Images  # Training images to tune on
    test: Images  # Test images
    # Deviation of the noise, normalised units, root mean square over the tuning images.
    level: float

    def pixels(self, images: Any) -> np.ndarray:
        """Return images in pixel units."""
        return np.asarray(self.dataset.to_pixels(images), dtype=np.float64)

    def tuned(self, projected: Any, grid: list[dict[str, Any]]) -> tuple[np.ndarray, dict]:
        """Return test images by the options of the highest mean PSNR on training images."""

        def quality(options: dict[str, Any]) -> float:
            images = self.pixels(_combined(self.tuning, projected[0], **options))
            return float(psnr(images, self.tuning.clean).mean())

        best = max(grid, key=quality) if len(grid) > 1 else grid[0]
        return self.pixels(_combined(self.test, projected[1], **best)), best

    def counts(self) -> list[int]:
        """Return the numbers of references to choose from."""
        most = self.test.references.shape[1]
        return sorted({1, most, *(k for k in (2, 3, 5, 8, 12) if k < most)})

    def widths(self) -> list[dict[str, Any]]:
        """Return the options of weighted means to choose from."""
        away = self.tuning.noisy - self.tuning.references[:, 0]
        typical = float(jnp.median(jnp.linalg.norm(away.reshape(len(away), -1), axis=1)))
        return [{"by": "weighted", "bandwidth": share * typical} for share in _WIDTHS]


def project(model: Any, images: Images, **options: Any) -> app.Projected:
    """Return the points on the leaves of the references that are closest to the images."""
    block = 1 if on_cpu() else len(images.noisy)
    fn = partial(foliax.map, app.project, block=block, **options)
    return in_parts(fn, model, images.noisy, images.references)


def without_leaf(case: Case) -> dict[str, np.ndarray]:
    """Return what the references alone give, and blended with the noisy image; in pixels."""
    still, counts = [_unmoved(images) for images in (case.tuning, case.test)], case.counts()
    grids = {
        "nearest": [{"k": 1, "along": 0.0}],
        "nearest_mean": [{"k": k, "along": 0.0} for k in counts],
        "nearest_weighted": [{"along": 0.0, **width} for width in case.widths()],
        "nearest_blended": [{"k": k, "along": w} for k, w in product(counts, (0.0, *_SHARES))],
    }
    return {name: case.tuned(still, grid)[0] for name, grid in grids.items()}


def with_leaf(
    model: Any, case: Case, flow: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what the leaves of a network give, in pixels, the options chosen, and how flows ended.

    `flow` has `step`, `max_steps` and `stall` of the flow to a closest point.
    """
    projected = [project(model, images, **flow) for images in (case.tuning, case.test)]
    counts, shares = case.counts(), (0.0, *_SHARES)
    grids = {
        "closest": [{"k": 1}],
        "closest_best": [{"by": "best"}],
        "closest_mean": [{"k": k} for k in counts],
        "closest_weighted": case.widths(),
        "closest_stein": [{"k": k, "noise": case.level} for k in counts],
        "closest_part": [{"k": k, "along": a} for k, a in product(counts, _SHARES)],
        "closest_blended": [{"k": k, "across": w} for k, w in product(counts, shares)],
        "closest_apart": [
            {"k": k, "along": a, "across": w} for k, a, w in product(counts, (*shares, 1.0), shares)
        ],
    }
    found, chosen = {}, {}
    for name, grid in grids.items():
        found[name], chosen[name] = case.tuned(projected, grid)
    k = chosen["closest_mean"]["k"]
    some = case.test._replace(references=case.test.references[:, :k])
    early = project(model, some, level=case.level * np.sqrt(some.noisy[0].size), **flow)
    found["closest_discrepancy"] = case.pixels(_combined(some, early))
    mean = some.references.mean(axis=1)
    exchanged = foliax.map(app.exchange_kernel, model, some.noisy, mean, block=1)
    found["kernel_exchanged"] = case.pixels(exchanged)
    ended = {"closest": endings(projected[1]), "discrepancy": endings(early)}
    return found, {"chosen": chosen, "ended": ended}


def by_other_references(
    model: Any, case: Case, references: Any, name: str, flow: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Return means of references that were chosen otherwise, and of their closest points."""
    images = case.test._replace(references=references)
    projected = project(model, images, **flow)
    return {
        f"{kind}_{name}": case.pixels(_combined(images, projected, along=along))
        for kind, along in (("nearest", 0.0), ("closest", 1.0))
    }


def _combined(
    images: Images, projected: Any, *, k: int | None = None, by: str = "mean", **options: Any
) -> Any:
    """Return one image for each, made of the first k closest points."""
    references, projected = jax.tree.map(lambda a: a[:, :k], (images.references, projected))
    # As arrays, so that another share is no other program.
    numbers = {"along": 1.0, "across": 0.0} | options
    arrays = {name: jnp.asarray(value, images.noisy.dtype) for name, value in numbers.items()}
    return _combine(images.noisy, references, projected, by, arrays)


@eqx.filter_jit
def _combine(noisy: Any, references: Any, projected: Any, by: Any, options: Any) -> Any:
    def one(x: Any, references: Any, projected: Any) -> Any:
        return app.combine(x, references, projected, by=by, **options).image

    return jax.vmap(one)(noisy, references, projected)


def _unmoved(images: Images) -> app.Projected:
    """Return x itself as each closest point: a share of the way is then one toward x."""
    nothing = jnp.zeros(images.references.shape[:2], jnp.int32)
    points = jnp.broadcast_to(images.noisy[:, None], images.references.shape)
    arrived = jax.tree.map(partial(jnp.broadcast_to, shape=nothing.shape), foliax.Status.arrived)
    return app.Projected(points, nothing.astype(points.dtype), nothing, arrived, nothing)
