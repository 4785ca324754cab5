"""Output files: written whole or not at all, and the same for the same numbers."""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

_DIGITS = 6  # significant digits kept in JSON: what float32 can repeat
_PACKAGES = ("foliax", "jax", "jaxlib", "flax", "optax", "diffrax", "numpy", "matplotlib")


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
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        number = float(f"{value:.{_DIGITS}g}")
        return number if math.isfinite(number) else None
    if isinstance(value, str | int) or value is None:
        return value
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def provenance(seed: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Say how a result came about: all that may differ between two runs that must agree."""
    device = jax.devices()[0]
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {name: metadata.version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "device": {"platform": device.platform, "kind": device.device_kind, "cpus": os.cpu_count()},
        "seed": seed,
        "seconds": dict(seconds),
        "revision": _revision(),
    }


def _revision() -> str | None:
    """Return the commit of the tree that this file is in, marked where it was changed."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain")
    except OSError:  # no git
        return None
    return commit + (" (changed)" if changed else "") or None
