"""What the experiments share: output files, populations of walks, captions, summaries."""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import foliax

SIGNIFICANT = 6  # digits kept in JSON: what float32 can repeat
HOLDS, IN_PART, FAILS = "holds", "holds in part", "does not hold"


# --- files -------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> Path:
    """Write a text file beside its place, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write sorted JSON atomically; see `plain` for how numbers are kept."""
    text = json.dumps(plain(value), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return write_text(path, text + "\n")


def plain(value: Any) -> Any:
    """Turn arrays and numbers into JSON's own; floats to six digits, NaN and infinity to null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str | bool) or value is None:
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        number = float(f"{float(value):.{SIGNIFICANT}g}")
        return number if math.isfinite(number) else None
    if isinstance(value, np.ndarray | jax.Array):
        return plain(np.asarray(value).tolist())
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def provenance(seed: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Say how a result came about: all that may differ between two runs that must agree."""
    packages = ("foliax", "jax", "jaxlib", "flax", "optax", "diffrax", "numpy", "matplotlib")
    device = jax.devices()[0]
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {name: _version(name) for name in packages}
        | {"python": platform.python_version()},
        "device": {"platform": device.platform, "kind": device.device_kind, "cpus": os.cpu_count()},
        "seed": seed,
        "seconds": dict(seconds),
        "revision": _revision(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """Return the commit of the tree that this file is in, marked where it was changed."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        if commit.returncode:
            return None
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:
        return None
    return commit.stdout.strip() + (" (changed)" if changed.stdout.strip() else "")


# --- populations -------------------------------------------------------------------------------


def walks(model: Any, xs: Any, targets: Any, box: Any, *, block: int = 16, **options) -> Any:
    """Walk many pairs in one compiled program, to numpy; `options` are those of `foliax.walk`."""
    return jax.tree.map(
        np.asarray, foliax.walks(model, xs, targets, box=box, block=block, **options)
    )


def drifts(model: Any, xs: Any, directions: Any, box: Any, *, block: int = 16, **options) -> Any:
    """Drift many points in one compiled program; `options` are those of `foliax.drift`."""
    return jax.tree.map(
        np.asarray, foliax.drifts(model, xs, directions, box=box, block=block, **options)
    )


def pick(path: Any, index: int) -> Any:
    """Return one path of a population."""
    return jax.tree.map(lambda leaf: leaf[index], path)


@jax.jit
def predict(model: Any, xs: Any) -> tuple[jax.Array, jax.Array]:
    """Return predicted labels and their probabilities, for a batch."""
    p = jax.nn.softmax(jax.vmap(model)(jnp.asarray(xs)))
    return jnp.argmax(p, axis=-1), jnp.max(p, axis=-1)


def norms(vectors: Any) -> np.ndarray:
    """Return the Euclidean length of each image of a batch."""
    vectors = np.asarray(vectors, dtype=np.float64)
    return np.linalg.norm(vectors.reshape(len(vectors), -1), axis=1)


# --- summaries ---------------------------------------------------------------------------------


def quartiles(values: Any) -> dict[str, float]:
    """Return least, quartiles and largest of the finite values."""
    values = np.asarray(values, dtype=np.float64).ravel()
    values = values[np.isfinite(values)]
    names = ("least", "lower_quartile", "median", "upper_quartile", "largest")
    if not len(values):
        return dict.fromkeys(names, math.nan)
    return dict(zip(names, np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist(), strict=True))


def endings(path: Any) -> dict[str, float]:
    """Return the share of a population that ended in each status."""
    return {s.name: float(np.mean(path.status == s)) for s in foliax.Status}


def outcome(share: float) -> str:
    """Name what a share of cases for which a claim held amounts to."""
    return HOLDS if share >= 0.99 else FAILS if share <= 0.01 else IN_PART


def percent(share: float) -> str:
    """Write a share in words for a sentence, e.g. 34.4 %."""
    return f"{100 * share:.3g} %"


# --- captions ----------------------------------------------------------------------------------


def caption(iteration: int | str, label: Any, probability: float, names: Sequence[str]) -> str:
    """Return the slides' caption: iteration, predicted label, its probability."""
    head = f"iteration {iteration}" if not isinstance(iteration, str) else iteration
    return f"{head}\nlabel {names[int(label)]}\np = {float(probability):.4f}"


def captions(path: Any, rows: Sequence[int], names: Sequence[str]) -> list[str]:
    """Return captions for rows of one path, from the logits it kept."""
    p = np.asarray(jax.nn.softmax(jnp.asarray(path.logits)[np.asarray(rows)]))
    steps = path.steps[np.asarray(rows)]
    return [caption(int(s), q.argmax(), q.max(), names) for s, q in zip(steps, p, strict=True)]


def live_rows(path: Any, count: int | None = None) -> list[int]:
    """Return rows up to the end of one path: all of them, or `count` spread evenly."""
    last = int(np.argmax(path.steps == path.num_steps)) if path.num_steps in path.steps else -1
    rows = np.arange(len(path.steps) if last < 0 else last + 1)
    if count is not None and len(rows) > count:
        rows = rows[np.round(np.linspace(0, len(rows) - 1, count)).astype(int)]
    return rows.tolist()
