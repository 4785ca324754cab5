"""The walks of the slides on one network: along the data leaf and along the kernel of G."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np

from experiments.harness.command import Command
from experiments.harness.populations import drifts, walks

SCHEMES = ("exact", "published")
ARRIVAL = 1.0  # distance to the target that counts as arrived, normalised units
STALL = 0.01  # tangent fraction below which the exact scheme has stalled
_DIGITS = (2, 3, 4, 5, 6, 7, 9)  # mirrored, 0, 1 and 8 are digits still, or nearly
# Classes that leave the data set when mirrored: sandals, sneakers and boots all point left. Of
# data sets that are not named here, all classes are taken.
_ONE_HANDED = {"digits": _DIGITS, "mnist_5k": _DIGITS, "mnist": _DIGITS, "fashion_mnist": (5, 7, 9)}
Kind = Literal["test", "mirrored", "noisy", "clean"]


@dataclass(frozen=True)
class Sizes:
    """Which test images are walked, and how far."""

    pairs: int = 64  # Pairs of test images
    step: float = 0.1  # Length of a step, normalised units
    steps: int = 600  # Steps at most on the leaf
    drift_steps: int = 1000  # Steps along the kernel
    noise_steps: int = 40  # Kernel steps that make the noisy images
    save_every: int = 5  # Steps between the points kept
    seed: int = 0  # Draws pairs, directions and noise
    start: int | None = None  # Place of the start in the test set, for one pair; None to draw it
    end: int | None = None  # The same of the target

    def __post_init__(self):
        for steps in (self.steps, self.drift_steps, self.noise_steps):
            if self.save_every < 1 or steps % self.save_every:
                raise ValueError(
                    f"save_every must divide the number of steps, {steps}, got {self.save_every}"
                )


def places(dataset: Any, sizes: Sizes, *, mirrored: bool = False) -> tuple[Any, Any]:
    """Draw the places of starts and targets in the test set, no place twice.

    With `mirrored`, targets are of classes that leave the data set when mirrored.
    """
    given = {"start": sizes.start, "end": sizes.end}
    given = {name: place for name, place in given.items() if place is not None}
    total = len(dataset.test_x)
    if sizes.pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {sizes.pairs}")
    if given and sizes.pairs != 1:
        raise ValueError(f"start and end name one pair, got them for {sizes.pairs} pairs")
    for name, place in given.items():
        if not 0 <= place < total:
            raise ValueError(f"{name} must be in 0 … {total - 1}, the test images, got {place}")
    order = np.random.default_rng(sizes.seed).permutation(total)
    order = order[~np.isin(order, list(given.values()))]
    num_starts = 0 if "start" in given else sizes.pairs
    starts, rest = order[:num_starts], order[num_starts:]
    if mirrored and dataset.name in _ONE_HANDED:
        rest = rest[np.isin(dataset.test_y[rest], _ONE_HANDED[dataset.name])]
    if len(rest) < sizes.pairs:
        raise ValueError(f"pairs must be fewer for {total} test images, got {sizes.pairs}")
    starts = np.array([given["start"]]) if "start" in given else starts
    ends = np.array([given["end"]]) if "end" in given else rest[: sizes.pairs]
    if not mirrored and np.array_equal(starts, ends):
        raise ValueError(f"start and end must be two images, got {sizes.start} for both")
    return starts, ends


@dataclass(frozen=True, eq=False)
class Study:
    """Populations of one network, each computed when first asked for."""

    model: Any  # The classifier
    dataset: Any  # Its data
    sizes: Sizes = field(default_factory=Sizes)  # Which pairs, and how far
    # Places of the images that drift; None for the starts of the pairs.
    starts: np.ndarray | None = None
    _computed: dict[Any, Any] = field(default_factory=dict, init=False)

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Return what was computed under a key, computed now where it was not."""
        if key not in self._computed:
            self._computed[key] = compute()
        return self._computed[key]

    def pair(self, kind: Kind = "test") -> tuple[np.ndarray, np.ndarray]:
        """Return the images that walks start from and go to.

        That are two test images, one and a "mirrored" one, two "noisy" ones, or, of the kind
        "clean", a noisy and a test image.
        """
        if kind in ("noisy", "clean"):
            starts, targets = self.once("noisy", self._noisy)
            return starts, targets if kind == "noisy" else self.pair()[1]
        starts, ends = places(self.dataset, self.sizes, mirrored=kind == "mirrored")
        targets = self.dataset.test_x[ends]
        if kind == "mirrored":
            targets = self.dataset.mirrored(targets)
        return np.asarray(self.dataset.test_x[starts]), np.asarray(targets)

    def leaf(self, scheme: str, kind: Kind = "test") -> Any:
        """Return walks on the data leaf, from pair to pair."""
        return self.once((kind, scheme), lambda: walks(
            self.model, *self.pair(kind), self.dataset.box, scheme=scheme, along="leaf",
            step=self.sizes.step, max_steps=self.sizes.steps, save_every=self.sizes.save_every,
            arrival=ARRIVAL, stall=STALL,
        ))  # fmt: skip

    def leaves(self, kind: Kind = "test") -> dict[str, Any]:
        """Return the same with both schemes."""
        return {scheme: self.leaf(scheme, kind) for scheme in SCHEMES}

    def origins(self) -> np.ndarray:
        """Return the images that drifts start from."""
        return self.pair()[0] if self.starts is None else self.dataset.test_x[self.starts]

    def drift(self, scheme: str) -> Any:
        """Return drifts along the kernel from the origins."""
        return self.once(("kernel", scheme), lambda: self._drift(self.origins(), scheme))

    def drifted(self) -> dict[str, Any]:
        """Return the same with both schemes."""
        return {scheme: self.drift(scheme) for scheme in SCHEMES}

    def _drift(self, xs: Any, scheme: str, *, more: int = 0, steps: int | None = None) -> Any:
        """Drift images, each in a random direction of its own; `more` is added to the seed."""
        sizes = self.sizes
        directions = jax.random.normal(jax.random.key(sizes.seed + more), xs.shape, xs.dtype)
        return drifts(
            self.model, xs, directions, self.dataset.box, scheme=scheme, along="kernel",
            step=sizes.step, max_steps=steps or sizes.drift_steps, save_every=sizes.save_every,
        )  # fmt: skip

    def _noisy(self) -> tuple[np.ndarray, np.ndarray]:
        """Return starts and targets after so many steps along the kernel."""
        steps = self.sizes.noise_steps
        row = steps // self.sizes.save_every
        # Another image's noise is drawn in another direction.
        targets = self._drift(self.pair()[1], "exact", more=1, steps=steps)
        return self.drift("exact").points[:, row], targets.points[:, row]


@dataclass(frozen=True)
class WalkCommand(Command):
    """Which network, which pairs, and how far they are walked."""

    end: int | None = None  # Place of the target in the test set; None to draw it by the seed
    steps: int = 1000  # Steps at most
    step: float = 0.1  # Length of a step, normalised units
    save_every: int = 10  # Steps between the points kept

    def sizes(self, *, quick_steps: int = 60, noise_steps: int = 0) -> Sizes:
        """Return the sizes of the populations."""
        steps = min(self.steps, quick_steps) if self.quick else self.steps
        return Sizes(
            pairs=self.pairs, step=self.step, steps=steps, drift_steps=noise_steps or steps,
            noise_steps=noise_steps, save_every=self.save_every, seed=self.seed, start=self.start,
            end=self.end,
        )  # fmt: skip
