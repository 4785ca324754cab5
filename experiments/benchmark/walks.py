"""The rows of the benchmark that walk: along leaves and kernels, one path and many."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

import foliax
from experiments.benchmark import nets, peers
from experiments.benchmark.bench import Bench, torch_contender
from experiments.benchmark.timing import (
    FOLIAX,
    FORWARD,
    FUNC,
    LOOP,
    NO_TARGET,
    Contender,
    Disagreement,
    Ratio,
    Row,
    Target,
    beside_forwards,
    beside_peers,
    compiled,
    within,
)
from foliax import zoo

STEP = 0.1
_SCAN, _PROJECTIONS = "scan by hand", "scan of project_leaf"
_NEAR = 2e-2  # of the first steps, relative to the way made: a kink may lie on it
_KEPT = 1e-3  # what an exact kernel walk may change of p
_EVERY, _DENSE_EVERY = 5, 50  # steps after which they are
_LOOKED_AT = 4  # paths that are compared, at most


@dataclass(frozen=True)
class Trip:
    """Paths to be walked by the published scheme, which runs all its steps.

    Attributes:
        model: The network.
        weights: The same network as one of the zoo, for PyTorch.
        box: The pixel bounds.
        along: "leaf", toward targets, or "kernel", along constant directions.
        xs: Starts.
        goals: Targets or directions.
        steps: Of each path.
        peer_steps: The same for PyTorch, one path and many: its steps all cost the same.
        block: Paths that foliax walks at a time.
        chunk: Paths whose Jacobians `torch.func` makes at a time; None for all.
        every: After how many steps the paths are compared: few, as they part at kinks.
    """

    model: Any
    weights: Any
    box: foliax.Box
    along: str
    xs: np.ndarray
    goals: np.ndarray
    steps: int
    peer_steps: tuple[int, int]
    block: int
    chunk: int | None
    every: int

    def ours(self) -> Contender:
        """Compile it for foliax: one path without any loop over paths."""
        walk, walks = foliax.walk, foliax.walks
        options: dict[str, Any] = {
            "along": self.along, "scheme": "published", "step": STEP, "max_steps": self.steps,
            "save_every": self.every,
        }  # fmt: skip
        if self.along == "kernel":
            walk, walks = foliax.drift, foliax.drifts
        else:
            options["arrival"] = 0.0
        count = len(self.xs)
        if count > 1:
            options["block"] = self.block

        def program(model: Any, xs: Any, goals: Any, box: Any) -> Any:
            if count > 1:
                return walks(model, xs, goals, box=box, **options)
            return jax.tree.map(
                lambda leaf: leaf[None], walk(model, xs[0], goals[0], box=box, **options)
            )

        units = count * self.steps
        return compiled(FOLIAX, program, self.model, self.xs, self.goals, self.box, units=units)

    def theirs(self) -> list[Contender]:
        """Return P1 on the first path and P2 on all."""
        net = peers.network(self.weights)
        xs, goals = peers.tensor(self.xs), peers.tensor(self.goals)
        one, many = self.peer_steps
        options: dict[str, Any] = {"along": self.along, "step": STEP}
        arguments = (net, xs, goals, self.limits)
        return [
            torch_contender(
                LOOP, peers.walk_by_loop, net, xs[0], goals[0], self.limits, units=one,
                steps=one, **options,
            ),
            torch_contender(
                FUNC, peers.walk_by_func, *arguments, units=len(xs) * many, steps=many,
                chunk=self.chunk, **options,
            ),
        ]  # fmt: skip

    @property
    def limits(self) -> tuple[float, float]:
        """The pixel box as two numbers."""
        return float(self.box.lower), float(self.box.upper)

    def same(self, found: dict[str, Any]) -> dict[str, Any]:
        """Compare the first paths, after a few steps, with those of PyTorch in both precisions.

        P1 in float32 is told, not judged: its unpivoted QR loses what the last class's
        probability is small by.
        """
        path, count = found[FOLIAX], min(_LOOKED_AT, len(self.xs))
        if not np.all(np.asarray(path.num_steps) == self.steps):
            raise Disagreement(f"paths must run {self.steps} steps, got {path.num_steps}")
        ours, starts = np.asarray(path.points)[:count, 1], self.xs[:count]
        agreement: dict[str, Any] = {"paths": count, "after_steps": self.every}
        if LOOP not in found:
            return agreement
        for precision in ("float64", "float32"):
            ends = self._ends(count, double=precision == "float64")
            for name, theirs in ends.items():
                apart = _norms(ours - theirs) / _norms(theirs - starts)
                agreement[f"{name}, {precision}"] = apart
                if (name, precision) != (LOOP, "float32"):
                    within(np.median(apart), _NEAR, f"first steps, {name} in {precision}")
        return agreement

    def _ends(self, count: int, *, double: bool) -> dict[str, np.ndarray]:
        """Return where PyTorch is on the first paths after a few steps, by algorithm."""
        net = peers.network(self.weights)
        net = net.double() if double else net
        xs, goals = (peers.tensor(a[:count], net) for a in (self.xs, self.goals))
        options: dict[str, Any] = {"along": self.along, "step": STEP, "steps": self.every}
        single = [
            peers.array(peers.walk_by_loop(net, x, goal, self.limits, **options)[-1])
            for x, goal in zip(xs, goals, strict=True)
        ]
        many = peers.walk_by_func(net, xs, goals, self.limits, **options)[-1]
        return {LOOP: np.stack(single), FUNC: peers.array(many)}


def _norms(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points.reshape(len(points), -1), axis=1)


def papers_trip(bench: Bench, count: int, along: str = "leaf", model: Any = None) -> Trip:
    """Return paths of the papers' network for MNIST."""
    sizes, xs = bench.sizes, bench.images(count)
    goals = bench.images(count, first=1)
    if along == "kernel":
        rng = np.random.default_rng(bench.seed)
        goals = rng.standard_normal(xs.shape).astype(np.float32)
    steps = sizes.steps if count == 1 else sizes.many_steps
    return Trip(
        bench.model if model is None else model, bench.model, bench.subject.data.box, along, xs,
        goals, steps=steps, every=min(_EVERY, steps),
        peer_steps=(sizes.peer_steps, sizes.peer_steps if count == 1 else sizes.peer_many_steps),
        block=bench.block, chunk=bench.chunk if bench.has_torch and count > 1 else None,
    )  # fmt: skip


def dense_trip(bench: Bench, count: int) -> Trip:
    """Return paths of the network that comes with foliax, on digits."""
    model, data, sizes = zoo.load("digits_mlp"), zoo.load_digits(), bench.sizes
    places = np.arange(count) % len(data.test_x)
    xs, goals = data.test_x[places], data.test_x[(places + 1) % len(data.test_x)]
    steps = sizes.dense_steps if count == 1 else sizes.dense_many_steps
    peer = (5 * sizes.peer_steps, 5 * sizes.peer_steps)
    # So small a network is best walked all at once, in both libraries.
    return Trip(
        model, model, data.box, "leaf", xs, goals, steps, peer, block=count, chunk=None,
        every=min(_DENSE_EVERY, steps),
    )  # fmt: skip


def _row(bench: Bench, trip: Trip, title: str, ratios: list[Ratio], forward: bool = True) -> Row:
    contenders = [bench.kept(title, trip.ours)]
    if bench.has_torch:
        contenders += trip.theirs()
    if forward:
        contenders.append(bench.forward())
    return Row(title, "step of a path", contenders, ratios, trip.same)


def leaf_row(bench: Bench, count: int) -> Row:
    """Walk along leaves."""
    judged = count in (1, 64)
    ratios = [
        beside_peers(Target(at_least=4) if judged else NO_TARGET),
        beside_forwards(bench.classes, Target(at_most=1.7) if judged else NO_TARGET),
    ]
    trip = papers_trip(bench, count)
    return _row(bench, trip, _title(count), ratios)


def _title(count: int) -> str:
    return f"leaf walk, {count} path{'s' * (count > 1)}"


def stock_row(bench: Bench) -> Row:
    """Walk one path of the network of stock layers."""
    trip = papers_trip(bench, 1, model=bench.stock)
    title = f"{_title(1)}, any model of stock layers"
    return _row(bench, trip, title, [beside_peers(), beside_forwards(bench.classes)])


def kernel_row(bench: Bench) -> Row:
    """Walk along the kernel: beside P1 as the target says, and beside P2."""
    ratios = [
        beside_peers(Target(at_least=12), (LOOP,)),
        beside_peers(names=(FUNC,)),
        beside_forwards(bench.classes, Target(at_most=1.8)),
    ]
    return _row(bench, papers_trip(bench, 1, "kernel"), "kernel walk, 1 path", ratios)


def dense_row(bench: Bench, count: int) -> Row:
    """Walk along leaves of the small network."""
    ratios = [beside_peers(Target(at_least=80 if count == 1 else 3.5))]
    title = f"leaf walk of the digits' MLP, {count} path{'s' * (count > 1)}"
    trip = dense_trip(bench, count)
    row = _row(bench, trip, title, ratios, forward=False)
    if count == 1:  # so small a step shows what stands around it
        by_hand = partial(
            nets.scan_by_hand, classes=trip.model.sizes[-1], step=STEP, steps=trip.steps
        )
        arguments = (trip.model, trip.xs[0], trip.goals[0], trip.box)
        row.contenders.append(compiled(_SCAN, by_hand, *arguments, units=trip.steps))
        row.ratios.append(Ratio("foliax (diffrax) / scan", (FOLIAX,), (_SCAN,)))
    return row


def scan_row(bench: Bench) -> Row:
    """Walk one path by diffrax inside foliax, and by scans with nothing around them."""
    trip, sizes = papers_trip(bench, 1), bench.sizes
    arguments = (trip.model, trip.xs[0], trip.goals[0], trip.box)
    options: dict[str, Any] = {"step": STEP, "steps": sizes.steps}
    by_hand = partial(nets.scan_by_hand, classes=bench.classes, **options)
    projections = partial(nets.scan_of_projections, **options)
    contenders = [
        bench.kept(_title(1), trip.ours),
        compiled(_SCAN, by_hand, *arguments, units=sizes.steps),
        compiled(_PROJECTIONS, projections, *arguments, units=sizes.steps),
    ]

    def same(found: dict[str, Any]) -> dict[str, Any]:
        ours = np.asarray(found[FOLIAX].points)[0, 1]
        way = np.linalg.norm(ours - trip.xs[0])
        return {
            who: within(
                np.linalg.norm(np.asarray(found[who])[trip.every - 1] - ours) / way, _NEAR,
                f"first steps, {who}",
            )
            for who in (_SCAN, _PROJECTIONS)
        }  # fmt: skip

    ratio = Ratio("foliax (diffrax) / scan", (FOLIAX,), (_SCAN, _PROJECTIONS), Target(at_most=1.1))
    return Row("diffrax beside a hand-written scan", "step of a path", contenders, [ratio], same)


def exact_row(bench: Bench) -> Row:
    """Walk one path each by the exact scheme, which holds the box and corrects along the kernel."""
    leaf, kernel = (papers_trip(bench, 1, along) for along in ("leaf", "kernel"))
    options: dict[str, Any] = {"max_steps": bench.sizes.steps, "save_every": bench.sizes.steps}

    def along_leaf(model: Any, x: Any, target: Any, box: Any) -> Any:
        return foliax.walk(model, x, target, box=box, arrival=0.0, stall=0.0, **options)

    def along_kernel(model: Any, x: Any, direction: Any, box: Any) -> Any:
        return foliax.drift(model, x, direction, along="kernel", box=box, **options)

    contenders = [bench.forward()]
    for name, program, trip in (
        ("exact leaf", along_leaf, leaf), ("exact kernel", along_kernel, kernel)
    ):  # fmt: skip
        arguments = (trip.model, trip.xs[0], trip.goals[0], trip.box)
        one = compiled(name, program, *arguments, units=1)
        one.units = max(1, int(one.run().num_steps))  # it may end before the last step
        contenders.append(one)

    def same(found: dict[str, Any]) -> dict[str, Any]:
        changed = float(found["exact kernel"].drift.max())
        return {"p_changed_along_kernel": within(changed, _KEPT, "p along the kernel")} | {
            f"steps, {one.name}": one.units for one in contenders if one.name != FORWARD
        }

    ratios = [beside_forwards(bench.classes, who=f"exact {a}") for a in ("leaf", "kernel")]
    return Row("walks by the exact scheme, 1 path", "step of a path", contenders, ratios, same)
