"""What the rows of the benchmark share: sizes, networks, images, the forward pass, PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from experiments.benchmark import nets, peers
from experiments.benchmark.timing import FORWARD, FUNC, LOOP, Contender, compiled
from foliax import zoo

BATCHES = (1, 16, 64, 256)  # a forward is timed at the fastest of these
_SIDE, _PRODUCTS = 1024, 15  # of the matrices whose product is timed, and how often it is
_CHUNKS = (4, 16, 64)  # and `torch.func` at the fastest of these


@dataclass(frozen=True)
class Sizes:
    """How much a program does in one run.

    Attributes:
        images: In a batch.
        looped: How many of them P1 does.
        steps: Of one path.
        many_steps: Of each of many paths.
        peer_steps: Of one path by PyTorch.
        peer_many_steps: Of each of many.
        dense_steps: Of one path of the digits' network.
        dense_many_steps: Of each of its 256 paths.
        classes_images: In the batch with 100 classes.
        training_steps: Between two trackings.
        reference: Images that are tracked.
        swept: Images of the sweep, at most.
        long_rounds: Rounds of the rows whose runs are long: sweep, tracking, EfficientNet.
    """

    images: int = 64
    looped: int = 8
    steps: int = 50
    many_steps: int = 25
    peer_steps: int = 10
    peer_many_steps: int = 3
    dense_steps: int = 1000
    dense_many_steps: int = 200
    classes_images: int = 16
    training_steps: int = 50
    reference: int = 1000
    swept: int = 10_000
    long_rounds: int = 3

    def quick(self) -> "Sizes":
        """Return smaller sizes."""
        return replace(
            self, images=32, looped=4, steps=25, many_steps=8, peer_steps=5, peer_many_steps=1,
            dense_many_steps=50, classes_images=4, training_steps=10, swept=512,
            long_rounds=1,
        )  # fmt: skip


@dataclass
class Bench:
    """What the rows share; programs are compiled when a row first needs them.

    Attributes:
        subject: The network and its images.
        sizes: How much is done.
        block: Images, or paths, at a time.
        seed: Of directions and random weights.
    """

    subject: nets.Subject
    sizes: Sizes
    block: int
    seed: int
    _kept: dict[str, Contender] = field(default_factory=dict, init=False)

    @property
    def model(self) -> zoo.CNN:
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
    def has_torch(self) -> bool:
        """Whether there is anybody to compare with."""
        return peers.installed()

    @cached_property
    def net(self) -> Any:
        """The network in PyTorch."""
        return peers.network(self.model)

    def images(self, count: int, first: int = 0) -> np.ndarray:
        """Return test images, from the start again where they are too few."""
        test = self.subject.data.test_x
        return test[np.arange(first, first + count) % len(test)]

    @cached_property
    def product_rates(self) -> dict[str, float]:
        """GFLOP/s of a square float32 product, by library: the best of many short ones.

        CPUs differ in how near each library comes to their peak, and ratios between the two
        libraries with them.
        """
        a = np.ones((_SIDE, _SIDE), np.float32)
        contenders = [compiled("jax", lambda a: a @ a, a, units=1)]
        if self.has_torch:
            contenders.append(torch_contender("torch", peers.product, peers.matrix(a), units=1))
        for one in contenders:
            one.first()
            one.calls = 1
        return {
            one.name: 2 * _SIDE**3 / min(one.seconds() for _ in range(_PRODUCTS)) / 1e9
            for one in contenders
        }

    @cached_property
    def forward_seconds(self) -> dict[int, float]:
        """Seconds an image of the stock network's forward pass, by the size of the batch."""
        found = {}
        for size in BATCHES:
            contender = self.forward(size=size)
            contender.first()
            found[size] = float(np.median([contender.seconds() for _ in range(3)]))
        return found

    def forward(self, model: Any = None, size: int | None = None) -> Contender:
        """Return the stock network's forward pass, unless told otherwise at its fastest batch."""
        if size is None:
            size = min(self.forward_seconds, key=self.forward_seconds.__getitem__)

        def make(model: Any) -> Contender:
            return compiled(FORWARD, nets.forward, model, self.images(size), units=size)

        return make(model) if model else self.kept(f"forward {size}", lambda: make(self.stock))

    def kept(self, name: str, make: Callable[[], Contender]) -> Contender:
        """Return what several rows use, compiled once."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    @cached_property
    def reference(self) -> dict[str, np.ndarray]:
        """Trace, rank and spectrum of the batch, in float64."""
        return nets.plain(self.stock, self.images(self.sizes.images))

    @cached_property
    def chunk(self) -> int:
        """The fastest number of images at a time for `torch.func`."""
        xs, found = peers.tensor(self.images(self.sizes.images)), {}
        for chunk in _CHUNKS:
            one = torch_contender(FUNC, peers.matrices_by_func, self.net, xs, chunk, units=len(xs))
            one.first()
            found[chunk] = min(one.seconds() for _ in range(2))
        return min(found, key=found.__getitem__)

    @cached_property
    def batch_peers(self) -> list[Contender]:
        """P1 and P2 of trace, rank and spectrum; none without PyTorch."""
        if not self.has_torch:
            return []
        xs = peers.tensor(self.images(self.sizes.images))
        few = xs[: self.sizes.looped]
        func, loop = peers.matrices_by_func, peers.matrices_by_loop
        return [
            torch_contender(LOOP, loop, self.net, few, units=len(few)),
            torch_contender(FUNC, func, self.net, xs, self.chunk, units=len(xs)),
        ]


def torch_contender(
    name: str, function: Callable, *arguments: Any, units: float, **more: Any
) -> Contender:
    """Return what runs a function of `_peers`."""
    return Contender(name, partial(function, *arguments, **more), units, wait=peers.wait)
