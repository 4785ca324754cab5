"""What the rows of the benchmark share: sizes, networks, images, the forward pass, PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from experiments.benchmark import nets, peers
from experiments.benchmark.timing import FORWARD, FUNC, LOOP, Contender, compiled
from experiments.harness.networks import Loaded

_BATCHES = (1, 16, 64, 256)  # a forward is timed at the fastest of these
CHUNK = 16  # images at a time of `torch.func`, about the fastest
_SIDE, _PRODUCTS = 1024, 15  # of the matrices whose product is timed, and how often it is


@dataclass(frozen=True)
class Sizes:
    """How much a program does in one run."""

    images: int = 64  # In a batch
    looped: int = 8  # How many of them P1 does
    steps: int = 50  # Of one path
    many_steps: int = 25  # Of each of many paths
    peer_steps: int = 10  # Of one path by PyTorch
    peer_many_steps: int = 3  # Of each of many
    dense_steps: int = 1000  # Of one path of the digits' network
    dense_many_steps: int = 200  # Of each of its 256 paths
    classes_images: int = 16  # In the batch with 100 classes
    training_steps: int = 50  # Between two trackings
    reference: int = 1000  # Images that are tracked
    swept: int = 10_000  # Images of the sweep, at most
    long_rounds: int = 3  # Rounds of the rows whose runs are long: sweep, tracking, EfficientNet

    def quick(self) -> "Sizes":
        """Return smaller sizes."""
        return replace(
            self, images=32, looped=4, steps=25, many_steps=8, peer_steps=5, peer_many_steps=1,
            dense_many_steps=50, classes_images=4, training_steps=10, swept=512,
            long_rounds=1,
        )  # fmt: skip


@dataclass
class Bench:
    """What the rows share; programs are compiled when a row first needs them."""

    subject: Loaded  # The network and its data
    sizes: Sizes  # How much is done
    block: int  # Images, or paths, at a time
    seed: int  # Of directions and random weights
    _compiled: dict[str, Contender] = field(default_factory=dict, init=False)

    @property
    def model(self) -> Any:
        """The network of the zoo."""
        return self.subject.model

    @property
    def classes(self) -> int:
        """C."""
        return self.model.num_classes

    @cached_property
    def stock(self) -> nets.StockCNN:
        """The same network of stock layers."""
        return nets.StockCNN(self.model)

    @cached_property
    def net(self) -> Any:
        """The network in PyTorch."""
        return peers.network(self.model)

    def images(self, count: int, first: int = 0) -> np.ndarray:
        """Return test images, from the start again where they are too few."""
        test = self.subject.dataset.test_x
        return test[np.arange(first, first + count) % len(test)]

    def once(self, name: str, make: Callable[[], Contender]) -> Contender:
        """Return what several rows use, compiled once."""
        if name not in self._compiled:
            self._compiled[name] = make()
        return self._compiled[name]

    def theirs(self, name: str, units: float, make: Callable[[], Callable]) -> list[Contender]:
        """Return what PyTorch runs; nothing where it is not installed."""
        return [] if peers.torch is None else [Contender(name, make(), units, wait=peers.wait)]

    @cached_property
    def product_rates(self) -> dict[str, float]:
        """GFLOP/s of a square float32 product, by library: the best of many short ones.

        CPUs differ in how near each library comes to their peak, and ratios between the two
        libraries with them.
        """
        a = np.ones((_SIDE, _SIDE), np.float32)
        contenders = [compiled("jax", lambda a: a @ a, a, units=1)]
        contenders += self.theirs("torch", 1, lambda: _squared(a))
        rates = {}
        for one in contenders:
            one.first()
            one.calls = 1
            rates[one.name] = 2e-9 * _SIDE**3 / min(one.seconds() for _ in range(_PRODUCTS))
        return rates

    @cached_property
    def forward_seconds(self) -> dict[int, float]:
        """Seconds an image of the stock network's forward pass, by the size of the batch."""
        found = {}
        for size in _BATCHES:
            one = self._forward(self.stock, size)
            self._compiled[f"forward {size}"] = one
            one.first()
            found[size] = float(np.median([one.seconds() for _ in range(3)]))
        return found

    def forward(self, model: Any = None) -> Contender:
        """Return a forward pass at the fastest batch: of the stock network, or of another one."""
        size = min(self.forward_seconds, key=self.forward_seconds.__getitem__)
        return self._forward(model, size) if model else self._compiled[f"forward {size}"]

    def _forward(self, model: Any, size: int) -> Contender:
        return compiled(FORWARD, nets.forward, model, self.images(size), units=size)

    @cached_property
    def reference(self) -> dict[str, np.ndarray]:
        """Trace, rank and spectrum of the batch, in float64."""
        return nets.plain(self.stock, self.images(self.sizes.images))

    @cached_property
    def batch_peers(self) -> list[Contender]:
        """P1 and P2 of trace, rank and spectrum; none without PyTorch."""
        xs, few = (self.images(n) for n in (self.sizes.images, self.sizes.looped))

        def batch() -> Callable:
            return partial(peers.matrices_by_func, self.net, peers.tensor(xs), CHUNK)

        def loop() -> Callable:
            return partial(peers.matrices_by_loop, self.net, peers.tensor(few))

        return [*self.theirs(LOOP, len(few), loop), *self.theirs(FUNC, len(xs), batch)]


def _squared(a: np.ndarray) -> Callable[[], Any]:
    given = peers.torch.tensor(a).to(peers.device())
    return lambda: given @ given
