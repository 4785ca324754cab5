"""Attacks on many images at each budget, and networks trained with a penalty on trace G."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import foliax
from experiments.attack import baselines
from experiments.harness.populations import distance_to
from experiments.harness.run import sweep
from foliax import zoo
from foliax.apps import attack

ONE, TWO, EIGHT = "one step along the top eigenvector", "two steps", "eight steps"
RANDOM, GEODESIC, GRADIENT = "random direction", "geodesic", "gradient"
SIGNS, PROJECTED = "gradient, signs (FGSM)", "projected gradient (PGD)"
_TRACED = 1000  # images at which the trace is averaged


class Outcome(NamedTuple):
    """One attack at every budget, with a leading axis over images from `fooling`."""

    fooled: Any  # (B,) whether the prediction is another one
    distance: Any  # (B,) how far the image was moved, normalised units
    kl: Any  # (B,) KL of the prediction from that at the image, in nats
    end: Any  # (B, *shape) what became of the image; None where it is not kept


def attacks(steps: int) -> dict[str, Callable[..., Any]]:
    """Return, by name, what moves an image; all but the random one ignore their key."""

    def fixed(function: Any, **options: Any) -> Callable[..., Any]:
        return lambda model, x, _, budget, box: function(model, x, budget, box=box, **options)

    def end(function: Any, **options: Any) -> Callable[..., Any]:
        return lambda *given: fixed(function, **options)(*given).end

    return {
        RANDOM: lambda model, x, key, budget, box: (
            attack.random_direction(model, x, budget, key, box=box).end
        ),
        ONE: end(attack.spectral, num_steps=1),
        TWO: end(attack.spectral, num_steps=2),
        EIGHT: end(attack.spectral, num_steps=8),
        GEODESIC: end(attack.geodesic, num_steps=steps),
        SIGNS: fixed(baselines.fast_gradient, signs=True),
        GRADIENT: fixed(baselines.fast_gradient),
        PROJECTED: fixed(baselines.projected_gradient),
    }


def at_budgets(
    names: Sequence[str], budgets: Sequence[float], box: Any, steps: int, *, keep: bool = False
) -> dict[str, Callable]:
    """Return what `fooling` runs: each named attack on one image, at every budget."""
    chosen = attacks(steps)
    return {name: _at_budgets(name, chosen[name], np.asarray(budgets), box, keep) for name in names}


def _at_budgets(name: str, run: Callable, budgets: Any, box: Any, keep: bool) -> Callable:
    def one(model: Any, x: Any, seed: Any) -> Outcome:
        key, before = jax.random.key(seed), jax.nn.log_softmax(model(x))

        def at(budget: Any) -> Outcome:
            end = run(model, x, key, budget, box)
            log_p = jax.nn.log_softmax(model(end))
            kl = jnp.sum(jnp.where(before > -jnp.inf, jnp.exp(before) * (before - log_p), 0))
            fooled = (jnp.argmax(log_p) != jnp.argmax(before)) & jnp.all(jnp.isfinite(end))
            distance = jnp.linalg.norm((end - x).ravel())
            return Outcome(fooled, distance, kl, end if keep else None)

        return jax.vmap(at)(jnp.asarray(budgets, x.dtype))

    one.__qualname__ = name  # shown by the progress bar
    return one


def seeds_of(seed: int, count: int) -> np.ndarray:
    """Return a seed for each image."""
    return (seed * 1_000_003 + np.arange(count)).astype(np.uint32)


def fooling(runs: dict[str, Callable], model: Any, xs: Any, seed: int) -> dict[str, Outcome]:
    """Run attacks on images, each image with a seed of its own, in one program an attack."""
    rows = np.asarray(xs), seeds_of(seed, len(xs))
    size = min(64, len(xs))
    return {name: sweep(run, model, rows, batch=size, block=8) for name, run in runs.items()}


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


def largest_budget(dataset: Any, xs: np.ndarray) -> float:
    """Return the median distance from an image to its nearest training image."""
    return float(np.median(distance_to(dataset.train_x)(xs)))


class Penalised(NamedTuple):
    """A network, the λ and the epochs of its training, and its accuracy on test images."""

    model: Any
    penalty: float
    epoch: int
    accuracy: float


def trained(
    dataset: Any, penalty: float, *, hidden: int, epochs: int, rate: float, seed: int
) -> list[Penalised]:
    """Return a dense ReLU network after each epoch of a training with a penalty on trace G."""
    sizes = (dataset.train_x[0].size, hidden, dataset.num_classes)
    kept: list[Penalised] = []

    def keep(epoch: int, model: Any, history: Any) -> None:
        kept.append(Penalised(model, penalty, epoch, history.test_accuracy[-1]))

    config = zoo.TrainConfig(
        epochs=epochs, learning_rate=rate, optimizer="adam", batch_size=60, seed=seed,
        track_per_epoch=0, trace_penalty=penalty,
    )  # fmt: skip
    zoo.train(zoo.MLP(sizes, rngs=nnx.Rngs(seed)), dataset, config, on_epoch=keep)
    return kept


def as_accurate(plain: Sequence[Penalised], accuracy: float) -> Penalised:
    """Return the network, of those after each epoch, whose accuracy is nearest to another's.

    Training less makes a network less accurate and its slopes smaller: a penalty has to do better.
    """
    return min(plain, key=lambda one: abs(one.accuracy - accuracy))


def trace_numbers(model: Any, xs: Any) -> dict[str, float]:
    """Return mean and median of trace G over images."""
    found = sweep(foliax.trace, model, np.asarray(xs[:_TRACED]), progress=False)
    return {"mean": float(np.mean(found)), "median": float(np.median(found))}
