"""How programs are timed beside each other, and how the times become ratios and tables.

Whatever runs after a big program is slower for a while, and shared machines have good and bad
minutes. So the contenders of a row take turns, in a new random order each round, an untimed call
of the same program goes before each timed one, and what is reported is the median over the rounds
of the ratios within a round.
"""

import math
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.harness.report import markdown_table

FOLIAX, FORWARD = "foliax", "forward"
LOOP, FUNC = "PyTorch P1", "PyTorch P2"  # see `peers`
PEERS = (LOOP, FUNC)

_LEAST_SECONDS = 0.02  # what is shorter is called several times between two looks at the clock
_MOST_CALLS = 50
_MIB = 2**20


class Skipped(Exception):
    """A row cannot be measured here; the message says why."""


class Disagreement(Exception):
    """Two implementations of the same thing differ: their times are not worth comparing."""


@dataclass
class Contender:
    """A program of a row."""

    name: str  # In tables
    run: Callable[[], Any]  # Runs it once
    units: float  # What a run does, in the row's unit: images, or steps of paths
    # Tracing and compiling; None where nothing is compiled ahead.
    compile_seconds: float | None = None
    temporary: int | None = None  # Bytes of scratch memory, by XLA's own count
    wait: Callable[[Any], Any] = jax.block_until_ready  # Waits for a result
    warm: Callable[[], Any] | None = None  # The untimed call; None for `run`
    # Takes the seconds from the result, of programs that keep their own time.
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


def compiled(name: str, function: Callable, *arguments: Any, units: float) -> Contender:
    """Compile a function for arguments like these, which it is then run on."""
    arguments = jax.device_put(arguments)
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()  # None where the backend does not tell
    temporary = None if memory is None else int(memory.temp_size_in_bytes)
    return Contender(name, partial(program, *arguments), units, seconds, temporary)


def take_turns(
    contenders: Sequence[Contender], rounds: int, rng: np.random.Generator, tick: Any = None
) -> dict[str, np.ndarray]:
    """Return the (rounds,) seconds per unit by name, in a new random order each round."""
    times: dict[str, list[float]] = {one.name: [] for one in contenders}
    for _ in range(rounds):
        for i in rng.permutation(len(contenders)):
            times[contenders[i].name].append(contenders[i].seconds())
        if tick is not None:
            tick()
    return {name: np.array(seconds) for name, seconds in times.items()}


@dataclass(frozen=True)
class Ratio:
    """plus + scale · t(over) / t(under), of the times of one round.

    Where several contenders are named, it is the one whose median is least; where none is, 1 s.
    """

    label: str  # What it is
    over: tuple[str, ...]  # Names of contenders
    under: tuple[str, ...]  # Names of contenders
    at_least: float | None = None  # Least value wanted; None for no such bound
    at_most: float | None = None  # Largest value wanted
    scale: float = 1.0  # A factor
    plus: float = 0.0  # A summand

    def of(self, times: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
        """Return the ratio beside its target; None where nobody of a side has run."""
        sides: list[Any] = []
        label = self.label
        for names in (self.over, self.under):
            there = [name for name in names if name in times]
            if names and not there:
                return None
            who = min(there, key=lambda name: float(np.median(times[name])), default=None)
            label += f" ({who})" if len(names) > 1 else ""
            sides.append(np.ones(1) if who is None else times[who])
        values = self.plus + self.scale * sides[0] / sides[1]
        median, met, target = float(np.median(values)), None, ""
        if self.at_least is not None:
            met, target = median >= self.at_least, f"≥ {self.at_least:g}"
        elif self.at_most is not None:
            met, target = median <= self.at_most, f"≤ {self.at_most:g}"
        return {
            "label": label, "median": median, "least": float(np.min(values)),
            "largest": float(np.max(values)), "target": target, "met": met,
            # From everybody's least time: about what a quiet machine would give.
            "undisturbed": float(self.plus + self.scale * sides[0].min() / sides[1].min()),
        }  # fmt: skip


def beside_peers(at_least: float | None = None, names: tuple[str, ...] = PEERS) -> Ratio:
    """Return how many times as long PyTorch takes: the faster of the named."""
    label = "PyTorch" if len(names) > 1 else " ".join(names)
    return Ratio(f"{label} / foliax", names, (FOLIAX,), at_least)


def beside_forwards(classes: int, at_most: float | None = None, who: str = FOLIAX) -> Ratio:
    """Return the time in units of the 1 + C forwards that the plain Jacobian comes to."""
    label = f"{who} / {1 + classes} forwards"
    return Ratio(label, (who,), (FORWARD,), at_most=at_most, scale=1 / (1 + classes))


@dataclass
class Row:
    """What is timed side by side."""

    title: str  # In tables
    unit: str  # What a time is of, as "image"
    contenders: list[Contender]  # Who takes turns
    ratios: list[Ratio]  # What is made of the times
    # From the first results by name to how well they agree; raises `Disagreement`.
    check: Callable[[dict[str, Any]], dict[str, Any]]
    note: str = ""  # A sentence for the table
    rounds: int | None = None  # Rounds, where fewer than usual are enough


def measure(name: str, row: Row, rounds: int, seed: int, tick: Any = None) -> dict[str, Any]:
    """Run everybody once, compare the results, then take turns; return what results.json says.

    Name and seed decide the order; `tick` is called after every round.

    Raises:
        Disagreement: If the results differ.
    """
    agreement = row.check({one.name: one.first() for one in row.contenders})
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    rounds = rounds if row.rounds is None else min(rounds, row.rounds)
    load = os.getloadavg()[0]
    times = take_turns(row.contenders, rounds, rng, tick)

    def known(attribute: str) -> dict[str, float]:
        values = {one.name: getattr(one, attribute) for one in row.contenders}
        return {who: value for who, value in values.items() if value is not None}

    return {
        "title": row.title,
        "unit": row.unit,
        "status": "measured",
        "seconds": {
            who: {"median": np.median(each), "least": each.min(), "rounds": each}
            for who, each in times.items()
        },
        "ratios": [found for ratio in row.ratios if (found := ratio.of(times)) is not None],
        "agreement": agreement,
        "temporary_bytes": known("temporary"),
        "compile_seconds": known("compile_seconds"),
        "calls": known("calls"),
        "rounds": rounds,
        "load": [load, os.getloadavg()[0]],
        "note": row.note,
    }


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


def tables(rows: Mapping[str, Any]) -> list[str]:
    """Return Markdown tables of all rows: targets, and times with memory and compile time."""
    targets = [["row", "ratio", "median [range]", "of least times", "target", "met"]]
    times = [["row", "ms per", FOLIAX, *PEERS, FORWARD, "others", "scratch MiB", "s to compile"]]
    for row in rows.values():
        if row["status"] != "measured":
            targets.append([row["title"], row["status"], "", "", "", ""])
            continue
        for one in row["ratios"]:
            values = f"{one['median']:.3g} [{one['least']:.3g}, {one['largest']:.3g}]"
            met = {True: "yes", False: "**no**", None: ""}[one["met"]]
            least = f"{one['undisturbed']:.3g}"
            targets.append([row["title"], one["label"], values, least, one["target"], met])
        ms = {who: f"{1e3 * seconds['median']:.3g}" for who, seconds in row["seconds"].items()}
        named = [ms.pop(who, "") for who in (FOLIAX, *PEERS, FORWARD)]
        others = ", ".join(f"{who} {value}" for who, value in ms.items())
        scratch, spent = (row[key].get(FOLIAX) for key in ("temporary_bytes", "compile_seconds"))
        last = ("" if scratch is None else f"{scratch / _MIB:.1f}", f"{spent:.2f}" if spent else "")
        times.append([row["title"], row["unit"], *named, others, *last])
    return [markdown_table(targets), markdown_table(times)]
