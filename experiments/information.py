"""What noise costs in information: ½ mean trace G beside the slope of the cross-entropy.

    python -m experiments.information

For the Bayes classifier of y = x + σε the conditional entropy grows with the noise at the rate
dH(C|Y)/dσ² = ½ E tr G(Y). The script measures both sides for a classifier that is Bayes'
(Parzen's, of the digits), by σ, and for a network at every epoch of its training on the digits,
where the slope is that of its cross-entropy on noisy test images: the two agree as far as it is
calibrated. Writes `information.png`, `results.json`, `run.json` and `report.html`.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import logsumexp
from jax.tree_util import Partial

import foliax
from experiments.harness.command import Run, script
from experiments.harness.report import HOLDS, IN_PART, percent, section, write_results
from experiments.harness.run import Stages, in_parts
from foliax import viz, zoo

_SPREAD = 0.05  # half the difference of two variances over their mean, of the slope
_ERRORS = 4  # standard errors within which two numbers are the same
_ROWS = 64  # inputs at once
_INTRO = (
    "Digits. σ is in normalised units. Slopes are differences over the same noise at two "
    "variances, 5 % to either side. Standard errors, over the inputs drawn, are of the difference "
    "of both sides."
)


@dataclass(frozen=True)
class Config(Run):
    """How many inputs, and which noise."""

    inputs: int = 4000  # Noisy inputs drawn for each number
    sigmas: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)  # Of Parzen's classifier, normalised units
    sigma: float = 0.5  # Of the network's inputs, normalised units
    epochs: int = 20  # Of the training


def run(config: Config) -> dict[str, Any]:
    """Measure and write everything; return what results.json holds."""
    config = config.at_most(inputs=512, epochs=3)
    data = zoo.load_digits()
    stages = Stages("information", 1 + len(config.sigmas))
    bayes = {
        str(k): stages.run(f"sigma {sigma:g}", _bayes, data, sigma, config)
        for k, sigma in enumerate(config.sigmas)
    }
    network = stages.run("training", _network, data, config)
    _draw(network, config.out / "information.png")
    return write_results(
        config.out, "What noise costs in information", [_INTRO],
        {"bayes": _bayes_section(bayes), "network": _network_section(network, config)},
        run={"seed": config.seed, "seconds": stages.seconds},
        setting={"inputs": config.inputs, "sigma": config.sigma},
    )  # fmt: skip


def parzen(points: Any, labels: Any, num_classes: int, sigma: float) -> Any:
    """Return the Bayes classifier of a point, drawn evenly from these, with noise of this size."""
    of_class = np.asarray(labels) == np.arange(num_classes)[:, None]
    return Partial(_log_densities, jnp.asarray(points), of_class, jnp.asarray(sigma, jnp.float32))


def _log_densities(points: Any, of_class: Any, sigma: Any, y: Any) -> Any:
    squares = jnp.sum((points - y).reshape(len(points), -1) ** 2, axis=1)
    return logsumexp(jnp.where(of_class, -squares / (2 * sigma**2), -jnp.inf), axis=1)


def _entropy(model: Any, y: Any, label: Any) -> Any:
    del label
    p = jax.nn.softmax(model(y))
    return -jnp.sum(jax.scipy.special.xlogy(p, p))


def _cross_entropy(model: Any, y: Any, label: Any) -> Any:
    return -jax.nn.log_softmax(model(y))[label]


def both_sides(
    models: Any, function: Any, xs: Any, labels: Any, noise: Any, sigma: float
) -> dict[str, float]:
    """Return ½ mean trace at noisy inputs, and the slope of a mean in σ², with its error.

    `models` gives the classifier for a σ: Bayes' depends on it.
    """
    low, high = (sigma * np.sqrt(1 + sign * _SPREAD) for sign in (-1, 1))

    def mean_of(function: Any, at: float, *more: Any) -> np.ndarray:
        inputs = (xs + at * noise).astype(np.float32)
        mapped = partial(foliax.map, function, block=_ROWS)
        return np.asarray(in_parts(mapped, models(at), inputs, *more, rows=_ROWS), float)

    rise = mean_of(function, high, labels) - mean_of(function, low, labels)
    slopes, halves = rise / (high**2 - low**2), mean_of(foliax.trace, sigma) / 2
    off = slopes - halves
    return {
        "half_trace": float(halves.mean()),
        "slope": float(slopes.mean()),
        "error": float(off.std() / np.sqrt(len(off))),
    }


def _bayes(data: Any, sigma: float, config: Config) -> dict[str, float]:
    rng = np.random.default_rng(config.seed)
    places = rng.integers(0, len(data.train_x), config.inputs)
    noise = rng.normal(size=(config.inputs, *data.shape))

    def models(at: float) -> Any:
        return parzen(data.train_x, data.train_y, data.num_classes, at)

    xs, labels = data.train_x[places], data.train_y[places]
    return {"sigma": sigma} | both_sides(models, _entropy, xs, labels, noise, sigma)


def _network(data: Any, config: Config) -> dict[str, Any]:
    rng = np.random.default_rng(config.seed + 1)
    places = rng.integers(0, len(data.test_x), config.inputs)
    noise = rng.normal(size=(config.inputs, *data.shape))
    found: dict[str, Any] = {}

    def measure(epoch: int, model: Any, history: Any) -> None:
        del history
        sides = both_sides(
            lambda _: model, _cross_entropy, data.test_x[places], data.test_y[places], noise,
            config.sigma,
        )  # fmt: skip
        accuracy = zoo.accuracy(model, data.test_x, data.test_y)
        found[str(epoch)] = {"epoch": epoch, "accuracy": accuracy} | sides

    how = zoo.TrainConfig(
        epochs=config.epochs, optimizer="adam", learning_rate=2e-3, seed=config.seed,
        track_per_epoch=0,
    )  # fmt: skip
    model = zoo.MLP((64, 48, data.num_classes), rngs=nnx.Rngs(config.seed))
    zoo.train(model, data, how, on_epoch=measure, progress=False)
    return found


def _bayes_section(found: dict[str, Any]) -> dict[str, Any]:
    off = max(abs(one["slope"] - one["half_trace"]) / one["error"] for one in found.values())
    rows = {"half_trace": "½ E tr G", "slope": "dH(C|Y)/dσ²", "error": "standard error"}
    return section(
        title="The trace is what noise costs in information",
        claim="dH(C|Y)/dσ² = ½ E tr G(Y) for the Bayes classifier of a noisy input.",
        verdict=(
            HOLDS if off < _ERRORS else IN_PART,
            f"Of Parzen's classifier both sides differ by {off:.2g} standard errors at most.",
        ),
        numbers=found,
        pictures={},
        columns=("", *(f"σ = {one['sigma']:g}" for one in found.values())),
        rows=[[words, *(f"{k}.{path}" for k in found)] for path, words in rows.items()],
    )


def _network_section(found: dict[str, Any], config: Config) -> dict[str, Any]:
    first, last = (list(found.values())[i] for i in (0, -1))
    text = "; ".join(
        f"after {one['epoch']} epochs ½ mean trace is "
        f"{percent(one['half_trace'] / one['slope'])} of the slope"
        for one in (first, last)
    )
    rows = {
        "accuracy": "test accuracy", "half_trace": "½ mean trace G",
        "slope": "slope of the cross-entropy in σ²", "error": "standard error",
    }  # fmt: skip
    return section(
        title="The same for a network in training",
        claim="The mean trace says what noise costs: the information is lost as it falls.",
        verdict=(IN_PART, f"At σ = {config.sigma:g}, {text}."),
        numbers=found,
        pictures={"information.png": "Both sides by epoch; they agree where it is calibrated."},
        columns=("", *(f"epoch {epoch}" for epoch in found)),
        rows=[[words, *(f"{k}.{path}" for k in found)] for path, words in rows.items()],
    )


def _draw(found: dict[str, Any], file: Path) -> None:
    epochs = [one["epoch"] for one in found.values()]
    titles = {"half_trace": "½ mean trace G", "slope": "slope of the cross-entropy in σ²"}
    curves = [
        viz.Curve(words, epochs, [one[path] for one in found.values()])
        for path, words in titles.items()
    ]
    viz.curves([viz.Panel("Digits, in training", "epoch", "nats per σ²", curves)], file)


if __name__ == "__main__":
    script(Config, run, name="information", description=__doc__)
