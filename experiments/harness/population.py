"""What is said of every population of paths: how they ended, and what each kept point showed."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import foliax
from experiments.harness import noise as _noise
from experiments.harness.common import endings, live_rows, norms, pick, quartiles

_PROFILE = 11  # rows of a population's profile along its paths


def statistics(path: Any, dataset: Any) -> dict[str, Any]:
    """Return how a population ended, what its steps did to p, and how noisy its points look."""
    return {
        "ended": endings(path),
        "steps": quartiles(path.num_steps),
        "drift_of_p": quartiles(path.drift.max(axis=1)),
        "noise": _noise_numbers(path, dataset, whole=False),
        "noise_of_whole": _noise_numbers(path, dataset, whole=True),
    }


def _noise_numbers(path: Any, dataset: Any, *, whole: bool) -> dict[str, Any]:
    noise = _noise.path_readings(path, dataset, whole=whole)
    change = np.abs(noise - noise[:, :1])
    rows = np.unique(np.linspace(0, noise.shape[1] - 1, _PROFILE).astype(int))
    return {
        "estimator": _noise.estimator(dataset.shape),
        "start": quartiles(noise[:, 0]),
        "end": quartiles(noise[:, -1]),
        "largest_change": quartiles(change.max(axis=1)),
        "same": _noise.SAME,
        "share_kept": float(np.mean(change.max(axis=1) <= _noise.SAME)),
        "share_kept_at_end": float(np.mean(change[:, -1] <= _noise.SAME)),
        "along": {
            "step": path.steps[:, rows].max(axis=0),
            "median": np.median(noise[:, rows], axis=0),
        },
    }


def unfinished(path: Any, targets: Any, start: np.ndarray) -> dict[str, Any]:
    """Return where the walks that did not arrive came to an end."""
    left = path.status != foliax.Status.arrived
    distance = norms(targets - path.best)[left]
    return {
        "count": int(left.sum()),
        "distance": quartiles(distance),
        "residual": quartiles(distance / start[left]),
        "tangent_fraction": quartiles(path.tangent_fraction[left, -1]),
    }


def box_excess(path: Any, dataset: Any) -> np.ndarray:
    """Return how far the worst pixel of each path lies outside [0, 1], in pixel units."""
    pixels = np.asarray(dataset.to_pixels(np.asarray(path.points)), dtype=np.float64)
    outside = np.maximum(np.maximum(-pixels, pixels - 1), 0)
    return outside.reshape(len(outside), -1).max(axis=1)


def records(
    paths: Mapping[str, Any],
    dataset: Any,
    starts: Sequence[int] | np.ndarray,
    ends: Sequence[int] | np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Return every path point by point: label, probability, distance, drift of p and noise.

    Noise is read twice, see `_noise`: flat ground left out, and of the whole image.

    Args:
        paths: A population for each name, from the same starts.
        dataset: Their data.
        starts: Places of the starts in the test set.
        ends: Places of the targets; None where there are none.

    Returns:
        One entry a path; its lists have an entry for each point kept up to the end.
    """
    found = []
    for name, population in paths.items():
        noise, whole = (
            _noise.path_readings(population, dataset, whole=whole) for whole in (False, True)
        )
        for i, start in enumerate(starts):
            places = {"start": int(start)} | ({} if ends is None else {"end": int(ends[i])})
            found.append({"kind": name} | places | _record(pick(population, i), noise[i], whole[i]))
    return found


def _record(path: Any, noise: np.ndarray, whole: np.ndarray) -> dict[str, Any]:
    rows = live_rows(path)
    p = np.asarray(jax.nn.softmax(jnp.asarray(path.logits[rows])))
    return {
        "status": foliax.Status(int(path.status)).name,
        "num_steps": int(path.num_steps),
        "step": path.steps[rows],
        "label": p.argmax(axis=-1),
        "probability": p.max(axis=-1),
        "distance": path.distance[rows],
        "tangent_fraction": path.tangent_fraction[rows],
        "drift_of_p": path.drift[rows],
        "noise": noise[rows],
        "noise_of_whole": whole[rows],
    }
