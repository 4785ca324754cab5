"""The rows of the benchmark that walk: along leaves and kernels, one path and many."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

import foliax
from experiments.benchmark import nets, peers
from experiments.benchmark.bench import CHUNK, Bench
from experiments.benchmark.timing import (
    FOLIAX,
    FORWARD,
    FUNC,
    LOOP,
    Contender,
    Disagreement,
    Ratio,
    Row,
    beside_forwards,
    beside_peers,
    compiled,
    within,
)
from experiments.harness.populations import norms
from foliax import zoo

_STEP = 0.1
_SCAN, _UNIT = "scan by hand", "step of a path"
_NEAR = 2e-2  # of the first steps, relative to their length: a kink may lie between two programs
_CHANGED = 1e-3  # what an exact kernel walk may change of p
_EVERY, _DENSE_EVERY = 5, 50  # steps after which paths are compared
_COMPARED = 4  # paths that are, at most


@dataclass(frozen=True)
class Trip:
    """Paths to be walked by the published scheme, which runs all its steps."""

    model: Any  # The network, of the zoo
    box: foliax.Box  # The pixel bounds
    xs: np.ndarray  # Starts
    goals: np.ndarray  # Targets or directions
    steps: int  # Of each path
    # The same for PyTorch, one path and many: its steps all cost the same.
    peer_steps: tuple[int, int]
    block: int  # Paths that foliax walks at a time
    chunk: int | None  # Paths whose Jacobians `torch.func` makes at a time; None for all
    every: int  # After how many steps the paths are compared: few, as they part at kinks
    along: str = "leaf"  # "leaf", toward targets, or "kernel", along constant directions

    @property
    def first(self) -> tuple[Any, ...]:
        """What walks the first path: model, start, goal, box."""
        return self.model, self.xs[0], self.goals[0], self.box

    def ours(self) -> Contender:
        """Compile it for foliax: one path without any loop over paths."""
        options: dict[str, Any] = {
            "along": self.along, "scheme": "published", "step": _STEP, "max_steps": self.steps,
            "save_every": self.every,
        }  # fmt: skip
        walk = foliax.drift
        if self.along == "leaf":
            walk = foliax.walk
            options["arrival"] = 0.0
        count, block = len(self.xs), self.block

        def program(model: Any, xs: Any, goals: Any, box: Any) -> Any:
            if count > 1:
                return foliax.map(walk, model, xs, goals, box=box, block=block, **options)
            path = walk(model, xs[0], goals[0], box=box, **options)
            return jax.tree.map(lambda leaf: leaf[None], path)

        arguments = (self.model, self.xs, self.goals, self.box)
        return compiled(FOLIAX, program, *arguments, units=count * self.steps)

    def theirs(self, bench: Bench) -> list[Contender]:
        """Return P1 on the first path and P2 on all."""
        one, many = self.peer_steps
        options: dict[str, Any] = {"along": self.along, "step": _STEP}
        loop, func = (partial(walk, **options) for walk in (peers.walk_by_loop, peers.walk_by_func))

        def run(walk: Any, first: Any, **more: Any) -> Any:
            starts, goals = (peers.tensor(a)[first] for a in (self.xs, self.goals))
            return partial(walk, peers.network(self.model), starts, goals, self.limits, **more)

        everyone = slice(None)
        return [
            *bench.theirs(LOOP, one, lambda: run(loop, 0, steps=one)),
            *bench.theirs(
                FUNC, len(self.xs) * many,
                lambda: run(func, everyone, steps=many, chunk=self.chunk),
            ),
        ]  # fmt: skip

    @property
    def limits(self) -> tuple[float, float]:
        """The pixel box as two numbers."""
        return float(self.box.lower), float(self.box.upper)

    def same(self, found: dict[str, Any]) -> dict[str, Any]:
        """Compare the first paths, after a few steps, with those of PyTorch in both precisions.

        P1 in float32 may differ: its unpivoted QR loses what the last class's probability is
        small by.
        """
        path, count = found[FOLIAX], min(_COMPARED, len(self.xs))
        if not np.all(np.asarray(path.num_steps) == self.steps):
            raise Disagreement(f"paths must run {self.steps} steps, got {path.num_steps}")
        ours, starts = np.asarray(path.points)[:count, 1], self.xs[:count]
        agreement: dict[str, Any] = {"paths": count, "after_steps": self.every}
        for precision in ("float64", "float32") if LOOP in found else ():
            for name, theirs in self._ends(count, double=precision == "float64").items():
                apart = norms(ours - theirs) / norms(theirs - starts)
                agreement[f"{name}, {precision}"] = apart
                if (name, precision) != (LOOP, "float32"):
                    within(np.median(apart), _NEAR, f"first steps, {name} in {precision}")
        return agreement

    def _ends(self, count: int, *, double: bool) -> dict[str, np.ndarray]:
        """Return where PyTorch is on the first paths after a few steps, by algorithm."""
        net = peers.network(self.model)
        net = net.double() if double else net
        xs, goals = (peers.tensor(a[:count], net) for a in (self.xs, self.goals))
        options: dict[str, Any] = {"along": self.along, "step": _STEP, "steps": self.every}
        pairs = zip(xs, goals, strict=True)
        single = [peers.walk_by_loop(net, *pair, self.limits, **options)[-1] for pair in pairs]
        many = peers.walk_by_func(net, xs, goals, self.limits, **options)[-1]
        return {LOOP: np.stack([peers.array(end) for end in single]), FUNC: peers.array(many)}


def papers_trip(bench: Bench, count: int, along: str = "leaf") -> Trip:
    """Return paths of the papers' network for MNIST."""
    sizes, xs = bench.sizes, bench.images(count)
    goals = bench.images(count, first=1)
    if along == "kernel":
        goals = np.random.default_rng(bench.seed).standard_normal(xs.shape).astype(np.float32)
    steps, many = sizes.steps, sizes.peer_steps
    if count > 1:
        steps, many = sizes.many_steps, sizes.peer_many_steps
    return Trip(
        bench.model, bench.subject.dataset.box, xs, goals, steps, (sizes.peer_steps, many),
        block=bench.block, chunk=CHUNK if count > 1 else None, every=min(_EVERY, steps),
        along=along,
    )  # fmt: skip


def dense_trip(bench: Bench, count: int) -> Trip:
    """Return paths of the network that comes with foliax, on digits."""
    data, sizes = zoo.load_digits(), bench.sizes
    places = np.arange(count + 1) % len(data.test_x)
    steps = sizes.dense_steps if count == 1 else sizes.dense_many_steps
    # So small a network is best walked all at once, in both libraries.
    return Trip(
        zoo.load("digits_mlp"), data.box, data.test_x[places[:-1]], data.test_x[places[1:]], steps,
        (5 * sizes.peer_steps, 5 * sizes.peer_steps), block=count, chunk=None,
        every=min(_DENSE_EVERY, steps),
    )  # fmt: skip


def _row(bench: Bench, trip: Trip, title: str, ratios: list[Ratio], others: list[Contender]) -> Row:
    contenders = [bench.once(title, trip.ours), *trip.theirs(bench), *others]
    return Row(title, _UNIT, contenders, ratios, trip.same)


def _title(count: int, what: str = "leaf walk") -> str:
    return f"{what}, {count} path{'s' * (count > 1)}"


def leaf_row(bench: Bench, count: int) -> Row:
    """Walk along leaves; 256 paths have no target."""
    least, most = (4, 1.7) if count < 256 else (None, None)
    ratios = [beside_peers(least), beside_forwards(bench.classes, most)]
    return _row(bench, papers_trip(bench, count), _title(count), ratios, [bench.forward()])


def kernel_row(bench: Bench) -> Row:
    """Walk along the kernel: beside P1 as the target says, and beside P2."""
    ratios = [
        beside_peers(12, (LOOP,)),
        beside_peers(names=(FUNC,)),
        beside_forwards(bench.classes, 1.8),
    ]
    trip, title = papers_trip(bench, 1, "kernel"), _title(1, "kernel walk")
    return _row(bench, trip, title, ratios, [bench.forward()])


def dense_row(bench: Bench, count: int) -> Row:
    """Walk along leaves of the small network; one path also by a scan."""
    trip, scan = dense_trip(bench, count), []
    ratios = [beside_peers(80 if count == 1 else 3.5)]
    if count == 1:  # so small a step shows what stands around it
        scan = [_scan(trip)]
        ratios.append(Ratio("foliax (diffrax) / scan", (FOLIAX,), (_SCAN,)))
    return _row(bench, trip, _title(count, "leaf walk of the digits' MLP"), ratios, scan)


def _scan(trip: Trip) -> Contender:
    classes = int(trip.model(trip.xs[0]).size)
    scan = partial(nets.scan_by_hand, classes=classes, step=_STEP, steps=trip.steps)
    return compiled(_SCAN, scan, *trip.first, units=trip.steps)


def scan_row(bench: Bench) -> Row:
    """Walk one path by diffrax inside foliax, and by a scan with nothing around it."""
    trip = papers_trip(bench, 1)

    def same(found: dict[str, Any]) -> dict[str, Any]:
        ours = np.asarray(found[FOLIAX].points)[0, 1]
        apart = np.linalg.norm(np.asarray(found[_SCAN])[trip.every - 1] - ours)
        relative = apart / np.linalg.norm(ours - trip.xs[0])
        return {_SCAN: within(relative, _NEAR, "first steps")}

    contenders = [bench.once(_title(1), trip.ours), _scan(trip)]
    ratio = Ratio("foliax (diffrax) / scan", (FOLIAX,), (_SCAN,), at_most=1.1)
    return Row("diffrax beside a hand-written scan", _UNIT, contenders, [ratio], same)


def exact_row(bench: Bench) -> Row:
    """Walk one path each by the exact scheme, inside the box and with p kept along the kernel."""
    options: dict[str, Any] = {"max_steps": bench.sizes.steps, "save_every": bench.sizes.steps}

    def program(along: str, model: Any, x: Any, goal: Any, box: Any) -> Any:
        if along == "leaf":
            return foliax.walk(model, x, goal, box=box, arrival=0.0, stall=0.0, **options)
        return foliax.drift(model, x, goal, along="kernel", box=box, **options)

    contenders = [bench.forward()]
    for along in ("leaf", "kernel"):
        first = papers_trip(bench, 1, along).first
        one = compiled(f"exact {along}", partial(program, along), *first, units=1)
        one.units = max(1, int(one.run().num_steps))  # it may end before the last step
        contenders.append(one)

    def same(found: dict[str, Any]) -> dict[str, Any]:
        changed = float(found["exact kernel"].probability_change.max())
        return {"p_changed_along_kernel": within(changed, _CHANGED, "p along the kernel")} | {
            f"steps, {one.name}": one.units for one in contenders if one.name != FORWARD
        }

    ratios = [beside_forwards(bench.classes, who=f"exact {a}") for a in ("leaf", "kernel")]
    return Row(_title(1, "walks by the exact scheme"), _UNIT, contenders, ratios, same)
