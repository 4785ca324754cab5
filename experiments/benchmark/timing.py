"""How programs are timed beside each other, and how the times become ratios and tables.

Whatever runs after a big program is slower for a while, and shared machines have good and bad
minutes. So the contenders of a row take turns, in a new random order each round, an untimed call
of the same program goes before each timed one, and what is reported is the median over the rounds
of the ratios within a round.
"""

import math
import os
import resource
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

FOLIAX, FORWARD = "foliax", "forward"
LOOP, FUNC = "PyTorch P1", "PyTorch P2"  # see `_peers`
PEERS = (LOOP, FUNC)

_LEAST_SECONDS = 0.02  # what is shorter is called several times between two looks at the clock
_MOST_CALLS = 50
_MIB = 2**20


class Skipped(Exception):
    """A row cannot be measured here; the message says why."""


class Disagreement(Exception):
    """Two implementations of the same thing differ: their times are not worth comparing."""


# --- what runs ---------------------------------------------------------------------------------


@dataclass
class Contender:
    """A program of a row.

    Attributes:
        name: In tables.
        run: Runs it once.
        units: What a run does, in the row's unit: images, or steps of paths.
        compile_seconds: Tracing and compiling; None where nothing is compiled ahead.
        temporary: Bytes of scratch memory, by XLA's own count.
        wait: Waits for a result.
        warm: The untimed call; None for `run`.
        clock: Takes the seconds from the result, of programs that keep their own time.
    """

    name: str
    run: Callable[[], Any]
    units: float
    compile_seconds: float | None = None
    temporary: int | None = None
    wait: Callable[[Any], Any] = jax.block_until_ready
    warm: Callable[[], Any] | None = None
    clock: Callable[[Any], float] | None = None
    calls: int = field(default=1, init=False)

    def first(self) -> Any:
        """Run for the first time: return the result, and see how often a timing must call."""
        result, passed = self._timed()
        if self.clock is None and passed < _MOST_CALLS * _LEAST_SECONDS:
            _, passed = self._timed()  # the very first call is slower than the others
            self.calls = min(max(1, math.ceil(_LEAST_SECONDS / passed)), _MOST_CALLS)
        return result

    def _timed(self) -> tuple[Any, float]:
        start = time.perf_counter()
        return self.wait(self.run()), time.perf_counter() - start

    def seconds(self) -> float:
        """Return the seconds per unit, after an untimed call."""
        self.wait((self.warm or self.run)())
        start = time.perf_counter()
        result = None
        for _ in range(self.calls):
            result = self.wait(self.run())
        passed = time.perf_counter() - start
        if self.clock is not None:
            passed = self.clock(result)
        return passed / self.calls / self.units


def compiled(
    name: str, function: Callable, *arguments: Any, units: float, **more: Any
) -> Contender:
    """Compile a function for arguments like these, which it is then run on."""
    arguments = jax.device_put(arguments)
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    temporary = temporary_bytes(program)
    return Contender(name, partial(program, *arguments), units, seconds, temporary, **more)


def temporary_bytes(program: Any) -> int | None:
    """Return the scratch memory of a compiled program, where the backend tells."""
    analysis = program.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


def take_turns(
    contenders: Sequence[Contender],
    rounds: int,
    rng: np.random.Generator,
    tick: Callable[[], Any] = lambda: None,
) -> dict[str, np.ndarray]:
    """Time all contenders in every round, in a new random order each.

    Returns:
        By name, the (rounds,) seconds per unit.
    """
    times: dict[str, list[float]] = {one.name: [] for one in contenders}
    for _ in range(rounds):
        for i in rng.permutation(len(contenders)):
            times[contenders[i].name].append(contenders[i].seconds())
        tick()
    return {name: np.array(seconds) for name, seconds in times.items()}


# --- what is compared --------------------------------------------------------------------------


class Found(NamedTuple):
    """A number beside its target.

    Attributes:
        label: What it is.
        median: Over the rounds.
        least: The least of a round.
        largest: The largest.
        undisturbed: The same from everybody's least time: what a busy machine would have given
            if it had been quiet, more or less.
        target: In words; empty where there is none.
        met: Whether; None where there is no target.
    """

    label: str
    median: float
    least: float
    largest: float
    undisturbed: float
    target: str
    met: bool | None


@dataclass(frozen=True)
class Target:
    """What a number should be.

    Attributes:
        at_least: Least value; None for no such bound.
        at_most: Largest value.
        stretch: A largest value to be wished for.
    """

    at_least: float | None = None
    at_most: float | None = None
    stretch: float | None = None

    def judge(self, label: str, values: Any, undisturbed: float) -> Found:
        """Return the values of all rounds as one number beside the target."""
        values = np.asarray(values, np.float64)
        median = float(np.median(values))
        numbers = (median, float(values.min()), float(values.max()), float(undisturbed))
        if self.at_least is not None:
            return Found(label, *numbers, f"≥ {self.at_least:g}", median >= self.at_least)
        if self.at_most is not None:
            wished = "" if self.stretch is None else f" (stretch {self.stretch:g})"
            return Found(label, *numbers, f"≤ {self.at_most:g}{wished}", median <= self.at_most)
        return Found(label, *numbers, "", None)


NO_TARGET = Target()


@dataclass(frozen=True)
class Ratio:
    """plus + scale · t(over) / t(under), of the times of one round.

    Where several contenders are named, it is the one whose median is least; where none is, 1 s.

    Attributes:
        label: What it is.
        over: Names of contenders.
        under: Names of contenders.
        target: What it should be.
        scale: A factor.
        plus: A summand.
    """

    label: str
    over: tuple[str, ...]
    under: tuple[str, ...]
    target: Target = NO_TARGET
    scale: float = 1.0
    plus: float = 0.0

    def of(self, times: Mapping[str, np.ndarray]) -> Found | None:
        """Return the ratio; None where nobody of a side has run."""
        sides: list[Any] = []
        label = self.label
        for names in (self.over, self.under):
            who = fastest(times, names)
            if names and who is None:
                return None
            label += f" ({who})" if len(names) > 1 else ""
            sides.append(np.ones(1) if who is None else times[who])
        values = self.plus + self.scale * sides[0] / sides[1]
        best = self.plus + self.scale * sides[0].min() / sides[1].min()
        return self.target.judge(label, values, best)


def fastest(times: Mapping[str, np.ndarray], names: Iterable[str]) -> str | None:
    """Return the name with the least median; None if none of them has run."""
    there = [name for name in names if name in times]
    return min(there, key=lambda name: float(np.median(times[name])), default=None)


def beside_peers(target: Target = NO_TARGET, names: tuple[str, ...] = PEERS) -> Ratio:
    """Return how many times as long PyTorch takes: the faster of the named."""
    label = "PyTorch" if len(names) > 1 else " ".join(names)
    return Ratio(f"{label} / foliax", names, (FOLIAX,), target)


def beside_forwards(classes: int, target: Target = NO_TARGET, who: str = FOLIAX) -> Ratio:
    """Return the time in units of the 1 + C forwards that the plain Jacobian comes to."""
    label = f"{who} / {1 + classes} forwards"
    return Ratio(label, (who,), (FORWARD,), target, scale=1 / (1 + classes))


@dataclass
class Row:
    """What is timed side by side.

    Attributes:
        title: In tables.
        unit: What a time is of, as "image".
        contenders: Who takes turns.
        ratios: What is made of the times.
        check: From the first results by name to how well they agree; raises `Disagreement`.
        limits: Numbers with targets that are no ratios.
        note: A sentence for the table.
        rounds: Rounds, where fewer than usual are enough.
    """

    title: str
    unit: str
    contenders: list[Contender]
    ratios: list[Ratio]
    check: Callable[[dict[str, Any]], dict[str, Any]]
    limits: list[Found] = field(default_factory=list)
    note: str = ""
    rounds: int | None = None


def measure(
    name: str, row: Row, rounds: int, seed: int, tick: Callable[[], Any] = lambda: None
) -> dict[str, Any]:
    """Run everybody once, compare the results, then take turns.

    Args:
        name: Of the row; with the seed, it decides the order.
        row: What to time.
        rounds: How many rounds.
        seed: Of the order.
        tick: Called after every round.

    Returns:
        What results.json says of the row.

    Raises:
        Disagreement: If the results differ.
    """
    agreement = row.check({one.name: one.first() for one in row.contenders})
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    rounds = rounds if row.rounds is None else min(rounds, row.rounds)
    load = os.getloadavg()[0]
    times = take_turns(row.contenders, rounds, rng, tick)
    found = [ratio.of(times) for ratio in row.ratios]
    return {
        "title": row.title,
        "unit": row.unit,
        "status": "measured",
        "seconds": {who: _spread(seconds) for who, seconds in times.items()},
        "ratios": [one._asdict() for one in (*found, *row.limits) if one is not None],
        "agreement": agreement,
        "temporary_bytes": _known(row, "temporary"),
        "compile_seconds": _known(row, "compile_seconds"),
        "calls": {one.name: one.calls for one in row.contenders},
        "rounds": rounds,
        "load": [load, os.getloadavg()[0]],
        "peak_bytes_so_far": peak_bytes(),
        "note": row.note,
    }


def peak_bytes() -> dict[str, int]:
    """Return the most memory that this process has had, on the host and on an accelerator."""
    found = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    device = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in device:
        found["device"] = int(device["peak_bytes_in_use"])
    return found


def _spread(seconds: np.ndarray) -> dict[str, Any]:
    return {
        "median": np.median(seconds), "least": seconds.min(), "largest": seconds.max(),
        "rounds": seconds,
    }  # fmt: skip


def _known(row: Row, attribute: str) -> dict[str, float]:
    values = {one.name: getattr(one, attribute) for one in row.contenders}
    return {who: value for who, value in values.items() if value is not None}


# --- agreement ---------------------------------------------------------------------------------


def within(value: Any, bound: float, what: str) -> float:
    """Return the number, or refuse one above the bound."""
    if not value <= bound:  # NaN is refused too
        raise Disagreement(f"{what}: {value:.3g}, at most {bound:g} allowed")
    return float(value)


def median_error(ours: Any, theirs: Any) -> float:
    """Return the median over items of ‖ours − theirs‖ / ‖theirs‖.

    A median, because a tie in a pool or a kink may fall to different sides in two programs.
    """
    ours, theirs = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (ours, theirs))
    size = np.linalg.norm(theirs, axis=1)
    return float(np.median(np.linalg.norm(ours - theirs, axis=1) / np.where(size > 0, size, 1)))


# --- tables ------------------------------------------------------------------------------------


def tables(results: Mapping[str, Any]) -> list[str]:
    """Return the lines of the Markdown tables: targets, times, compile times."""
    rows = results["rows"]
    return [*_targets(rows), "", *_times(rows), "", *_compiling(rows)]


def _targets(rows: Mapping[str, Any]) -> list[str]:
    lines = [
        "| row | ratio | median [range] | of least times | target | met |",
        "|---|---|---:|---:|---|---|",
    ]
    for name, row in rows.items():
        if row["status"] != "measured":
            lines.append(f"| {row.get('title', name)} | {row['status']} | | | | |")
            continue
        for i, one in enumerate(row["ratios"]):
            title = row["title"] if i == 0 else ""
            met = {True: "yes", False: "**no**", None: ""}[one["met"]]
            values = f"{one['median']:.3g} [{one['least']:.3g}, {one['largest']:.3g}]"
            cells = [title, one["label"], values, f"{one['undisturbed']:.3g}", one["target"], met]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _times(rows: Mapping[str, Any]) -> list[str]:
    lines = [
        "| row | ms per | foliax | PyTorch P1 | PyTorch P2 | forward | others | scratch MiB |",
        "|---|---|---:|---:|---:|---:|---|---:|",
    ]
    for row in rows.values():
        if row["status"] != "measured":
            continue
        times = {who: 1e3 * seconds["median"] for who, seconds in row["seconds"].items()}
        named = [_number(times.pop(who, None)) for who in (FOLIAX, LOOP, FUNC, FORWARD)]
        others = ", ".join(f"{who} {_number(ms)}" for who, ms in times.items())
        scratch = row["temporary_bytes"].get(FOLIAX)
        cells = [row["title"], row["unit"], *named, others]
        cells.append("" if scratch is None else f"{scratch / _MIB:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _compiling(rows: Mapping[str, Any]) -> list[str]:
    lines = ["| compiling | s |", "|---|---:|"]
    for row in rows.values():
        for who, seconds in row.get("compile_seconds", {}).items():
            if who not in (FORWARD, *PEERS):
                title = row["title"] if who == FOLIAX else f"{row['title']}: {who}"
                lines.append(f"| {title} | {seconds:.2f} |")
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
