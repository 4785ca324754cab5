"""How far leaves exist: the gap that a closed loop of p leaves open when it is lifted along D.

    python -m experiments.holonomy

trains networks on the digits, by activation, width and epochs, and lifts square loops of p of many
sides from test images, in random directions of D, in float64 (`foliax.holonomy`). Inside a linear
region of a ReLU network every loop is closed and no bracket leaves D; at the scale of a walk none
is closed. Also counts at which share of test images and of random points dim D is below C − 1.
Writes `holonomy.png`, `results.json`, `run.json` and `report.html`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import foliax
from experiments.harness.command import Run, script
from experiments.harness.populations import in_float64, quartiles, share
from experiments.harness.report import outcome, percent, section, write_results
from experiments.harness.run import Stages, in_parts
from foliax import viz, zoo

_WIDTH = 48  # of the hidden layer where activations and epochs are compared
_SMALL, _WALK = 0.01, 1.0  # sides: far below a linear region, and about that of a walk
_OPEN = 1e-6  # a gap above it counts as open, in float64
_INTRO = (
    "Networks 64-width-10 trained on the digits by Adam. A loop is a square of logits, in two "
    "random directions of D. Its side is the length of the first edge, in normalised units, its "
    "gap the distance from end to start over the length of the lifted loop. All in float64."
)


@dataclass(frozen=True)
class Config(Run):
    """Which networks and which loops."""

    images: int = 100  # Test images, drawn by the seed, one loop each
    sides: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # Of the loops, normalised units
    activations: tuple[str, ...] = ("relu", "softplus", "gelu")  # At width 48
    widths: tuple[int, ...] = (16, 48, 144)  # Of the hidden layer, for the first activation
    epochs: tuple[int, ...] = (1, 5, 30)  # Of the training, for the first activation
    steps: int = 50  # Steps of each edge


def run(config: Config) -> dict[str, Any]:
    """Train, lift and write everything; return what results.json holds."""
    config = config.at_most(images=10, steps=20)
    if config.quick:
        config = _few(config)
    data = zoo.load_digits()
    rng = np.random.default_rng(config.seed)
    xs = data.test_x[rng.permutation(len(data.test_x))[: config.images]].astype(np.float64)
    u, v, points = rng.normal(size=(3, *xs.shape))
    networks = trainings(config)
    stages = Stages("networks", len(networks))
    found = {
        name: stages.run(name, _measure, setting, data, (xs, u, v), points, config)
        for name, setting in networks.items()
    }
    _draw(config, found)
    setting = {"images": config.images, "sides": list(config.sides), "steps": config.steps}
    return write_results(
        config.out, "How far the leaves of a network exist", [_INTRO],
        {"holonomy": _section(config, found)},
        run={"seed": config.seed, "seconds": stages.seconds}, setting=setting,
    )  # fmt: skip


def _few(config: Config) -> Config:
    return Config(
        config.seed, config.out, quick=True, images=config.images, steps=config.steps,
        sides=(_SMALL, _WALK), activations=config.activations[:2], widths=(_WIDTH,),
        epochs=config.epochs[-1:],
    )  # fmt: skip


def trainings(config: Config) -> dict[str, tuple[str, int, int]]:
    """Return activation, width and epochs of every network, by name."""
    first, last = config.activations[0], config.epochs[-1]
    found = {name: (name, _WIDTH, last) for name in config.activations}
    found |= {f"width {w}": (first, w, last) for w in config.widths if w != _WIDTH}
    return found | {f"epoch {e}": (first, _WIDTH, e) for e in config.epochs[:-1]}


def _measure(
    setting: tuple[str, int, int], data: Any, loops: Sequence[Any], points: Any, config: Config
) -> dict[str, Any]:
    activation, width, epochs = setting
    model = zoo.MLP(
        (64, width, data.num_classes), activation=activation, rngs=nnx.Rngs(config.seed)
    )
    how = zoo.TrainConfig(
        epochs=epochs, optimizer="adam", learning_rate=2e-3, seed=config.seed, track_per_epoch=0
    )
    trained, _ = zoo.train(model, data, how, progress=False)
    numbers: dict[str, Any] = {"accuracy": zoo.accuracy(trained, data.test_x, data.test_y)}
    with jax.enable_x64(True):
        double = in_float64(trained)
        for k, side in enumerate(config.sides):
            numbers[f"side_{k}"] = {"side": side} | _gaps(double, loops, side, config.steps)
        brackets = partial(foliax.map, foliax.involutivity, pairs=8, block=1)
        numbers["outside"] = quartiles(in_parts(brackets, double, loops[0]).outside)
        below = partial(foliax.map, foliax.dimension, block=1)
        for name, at in {"images": loops[0], "random": points}.items():
            dimension = in_parts(below, double, at)
            numbers[f"below_{name}"] = share(dimension < data.num_classes - 1)
    return numbers


def _gaps(model: Any, loops: Sequence[Any], side: float, steps: int) -> dict[str, Any]:
    """Lift a loop from each image; of loops that cannot be followed to their end no gap counts."""
    lift = partial(foliax.map, foliax.holonomy, side=jnp.asarray(side), num_steps=steps, block=1)
    found = in_parts(lift, model, *loops)
    done = np.asarray(found.status == foliax.Status.completed)
    gap = np.where(done, found.gap, np.nan)
    return {
        "gap": quartiles(gap),
        "open": share(gap[done] > _OPEN),
        "completed": float(np.mean(done)),
        "defect": float(np.max(found.defect[done], initial=0.0)),
        "change_of_p": float(np.max(found.probability_change[done], initial=0.0)),
    }


def _section(config: Config, found: dict[str, Any]) -> dict[str, Any]:
    def median(name: str, k: int) -> str:
        return f"{found[name][f'side_{k}']['gap']['median']:.2g}"

    small, walk = (int(np.argmin(np.abs(np.array(config.sides) - s))) for s in (_SMALL, _WALK))
    first = config.activations[0]
    gaps = "; ".join(
        f"{name}: {median(name, small)} and {median(name, walk)}" for name in config.activations
    )
    opened = found[first][f"side_{walk}"]["open"] or 0.0
    text = (
        f"Median gaps at side {config.sides[small]:g} and {config.sides[walk]:g}: {gaps}. With "
        f"{first}, brackets leave D by {found[first]['outside']['largest']:.1g} at most, and "
        f"{percent(opened)} of the loops of side {config.sides[walk]:g} are open."
    )
    rows: dict[str, str] = {"test accuracy": "accuracy"}
    for k, side in enumerate(config.sides):
        rows[f"gap at side {side:g}, median"] = f"side_{k}.gap.median"
    rows |= {
        f"open at side {config.sides[small]:g}": f"side_{small}.open",
        f"open at side {config.sides[walk]:g}": f"side_{walk}.open",
        f"lifted to the end at side {config.sides[walk]:g}": f"side_{walk}.completed",
        "largest change of p at the end": f"side_{walk}.change_of_p",
        "what leaves D of the brackets, median": "outside.median",
        "share of images with dim D < 9": "below_images",
        "share of random points": "below_random",
    }
    return section(
        title="Leaves exist as far as loops close",
        claim="Input space is foliated by the leaves of D.",
        verdict=(outcome(1 - opened), text),
        numbers=found,
        pictures={"holonomy.png": "Gap of a lifted loop against its side: median and quartiles."},
        columns=("", *found),
        rows=[[words, *(f"{name}.{path}" for name in found)] for words, path in rows.items()],
    )


def _draw(config: Config, found: dict[str, Any]) -> None:
    x = np.log10(config.sides)

    def curve(name: str, words: str) -> viz.Curve:
        low, middle, high = (
            [found[name][f"side_{k}"]["gap"][part] for k in range(len(x))]
            for part in ("lower_quartile", "median", "upper_quartile")
        )
        return viz.Curve(words, x, middle, low, high)

    first, last = config.activations[0], config.epochs[-1]
    groups = {
        "Activation": {name: name for name in config.activations},
        f"Width ({first})": {first if w == _WIDTH else f"width {w}": str(w) for w in config.widths},
        f"Epochs of training ({first})": {
            first if e == last else f"epoch {e}": str(e) for e in config.epochs
        },
    }
    panels = [
        viz.Panel(title, "side of the loop, log10", "gap over length", log=True,
                  curves=[curve(name, words) for name, words in names.items()])
        for title, names in groups.items()
    ]  # fmt: skip
    viz.curves(panels, config.out / "holonomy.png")


if __name__ == "__main__":
    script(Config, run, name="holonomy", description=__doc__)
