"""What attacks do to a network at each budget, and what a penalty on trace G does about it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

import foliax
from experiments.harness import run as _run
from experiments.harness.common import predict
from foliax import zoo
from foliax.apps import attack

_TRAIN_SHOWN = 1000  # images at which the trace is averaged


class Outcome(NamedTuple):
    """One attack at every budget, with a leading axis over images from `fooling`.

    Attributes:
        fooled: (B,) whether the prediction is another one.
        distance: (B,) how far the image was moved, normalised units.
        kl: (B,) KL of the prediction from that at the image, in nats.
        end: (B, *shape) what became of the image; None where it is not kept.
    """

    fooled: Any
    distance: Any
    kl: Any
    end: Any


def attacks(steps: int) -> dict[str, Callable[..., attack.Attacked]]:
    """Return the attacks by name; each takes a model, an image, a key, a budget and a box."""

    def named(function: Any, **options: Any) -> Callable[..., attack.Attacked]:
        def run(model: Any, x: Any, key: Any, budget: Any, box: Any) -> attack.Attacked:
            del key  # nothing random
            return function(model, x, budget, box=box, **options)

        return run

    def random(model: Any, x: Any, key: Any, budget: Any, box: Any) -> attack.Attacked:
        return attack.random_direction(model, x, budget, key, box=box)

    return {
        "random direction": random,
        "one step along the top eigenvector": named(attack.spectral, num_steps=1),
        "two steps": named(attack.spectral, num_steps=2),
        "eight steps": named(attack.spectral, num_steps=8),
        "geodesic": named(attack.geodesic, num_steps=steps),
        "gradient, signs (FGSM)": named(attack.fast_gradient, norm="max"),
        "gradient": named(attack.fast_gradient),
        "projected gradient (PGD)": named(attack.projected_gradient),
    }


def foolers(
    names: Sequence[str], budgets: Sequence[float], box: Any, steps: int, *, keep: bool = False
) -> dict[str, Callable]:
    """Return what `fooling` runs: each named attack on one image, at every budget."""
    chosen, radii = attacks(steps), np.asarray(budgets)
    return {name: _fooler(name, chosen[name], radii, box, keep) for name in names}


def _fooler(name: str, run: Callable, radii: Any, box: Any, keep: bool) -> Callable:
    def one(model: Any, x: Any, seed: Any) -> Outcome:
        key, before = jax.random.key(seed), jax.nn.log_softmax(model(x))

        def at(radius: Any) -> Outcome:
            found = run(model, x, key, radius, box)
            log_p = jax.nn.log_softmax(found.logits)
            kl = jnp.sum(jnp.where(before > -jnp.inf, jnp.exp(before) * (before - log_p), 0))
            return Outcome(found.fooled, found.distance, kl, found.end if keep else None)

        return jax.vmap(at)(jnp.asarray(radii, x.dtype))

    one.__qualname__ = name  # said by the bar
    return one


def seeds_of(seed: int, count: int) -> np.ndarray:
    """Return a seed for each image."""
    return (seed * 1_000_003 + np.arange(count)).astype(np.uint32)


def fooling(runs: dict[str, Callable], model: Any, xs: Any, seed: int) -> dict[str, Outcome]:
    """Run `foolers` on images, each image with a seed of its own, in one program an attack."""
    rows = np.asarray(xs), seeds_of(seed, len(xs))
    size = min(64, len(xs))
    return {name: _run.sweep(run, model, rows, batch=size, block=8) for name, run in runs.items()}


def summary(found: dict[str, Outcome]) -> dict[str, dict[str, Any]]:
    """Return, by attack, the share that is fooled at each budget, their mean, and the KL."""
    return {
        name: {
            "fooled": (rates := np.mean(one.fooled, axis=0).tolist()),
            "fooled_at_half": rates[(len(rates) - 1) // 2],
            "fooled_at_most": rates[-1],
            "fooled_mean": float(np.mean(one.fooled)),
            "kl_median": np.median(one.kl, axis=0).tolist(),
        }
        for name, one in found.items()
    }


def largest_budget(dataset: Any, xs: Float[np.ndarray, "n ..."]) -> float:
    """Return the median distance from an image to its nearest training image."""
    from sklearn.neighbors import NearestNeighbors

    known = NearestNeighbors(n_neighbors=1).fit(dataset.train_x.reshape(len(dataset.train_x), -1))
    distances, _ = known.kneighbors(xs.reshape(len(xs), -1))
    return float(np.median(distances))


# --- the penalty -------------------------------------------------------------------------------


class Hardened(NamedTuple):
    """A network that was trained, and what is said of it.

    Attributes:
        model: It.
        penalty: λ.
        epoch: After how many epochs.
        accuracy: On the test images.
    """

    model: Any
    penalty: float
    epoch: int
    accuracy: float


def trained(
    dataset: Any, penalty: float, *, hidden: int, epochs: int, rate: float, seed: int
) -> list[Hardened]:
    """Return a dense ReLU network after each epoch of a training with a penalty on trace G."""
    sizes = (dataset.train_x[0].size, hidden, dataset.num_classes)
    kept: list[Hardened] = []

    def keep(epoch: int, model: Any, history: Any) -> None:
        kept.append(Hardened(model, penalty, epoch, history.test_accuracy[-1]))

    config = zoo.TrainConfig(
        epochs=epochs, learning_rate=rate, optimizer="adam", batch_size=60, seed=seed,
        track_per_epoch=0, trace_penalty=penalty,
    )  # fmt: skip
    zoo.train(zoo.MLP(sizes, rngs=nnx.Rngs(seed)), dataset, config, on_epoch=keep)
    return kept


def as_accurate(plain: Sequence[Hardened], accuracy: float) -> Hardened:
    """Return the network, of those after each epoch, whose accuracy is nearest to another's.

    Training less makes a network less accurate and its slopes smaller: a penalty has to do better.
    """
    return min(plain, key=lambda one: abs(one.accuracy - accuracy))


def trace_numbers(model: Any, xs: Any) -> dict[str, float]:
    """Return mean and median of trace G over images."""
    shown = np.asarray(xs[:_TRAIN_SHOWN])
    found = _run.sweep(foliax.trace, model, shown, progress=False)
    return {"mean": float(np.mean(found)), "median": float(np.median(found))}


def right(model: Any, xs: Any, labels: Any) -> np.ndarray:
    """Return which images the network sees as what they are."""
    return np.asarray(predict(model, xs)[0]) == np.asarray(labels)
