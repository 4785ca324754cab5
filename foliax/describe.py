"""What to know first of a model at an input: sizes, prediction, geometry, cost, and what is odd."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._backend.rewrite import logits_of
from foliax._core.checks import as_point, check_chunk, is_traced
from foliax._core.compile import compiled
from foliax._core.jacobian import logits_struct, pullback
from foliax._core.types import Count, Model
from foliax.data_matrix import eigh, factor, spectrum
from foliax.flow.box import Box
from foliax.foliation import project_leaf
from foliax.likelihood import Categorical

__all__ = ["Cost", "Description", "describe"]

_SHOWN = 3  # classes, eigenvalues, directions
_STEPS = 1000  # of the walk whose time is told
_SPREAD = 1e-6  # of logits that are all equal, relative to their size
_SUM = 1e-3  # by which what looks like probabilities may miss 1
_LARGE = 2**30  # bytes of a factor from which on its rows are best made in parts
_BYTES_MOST = 255


class Cost(NamedTuple):
    """What a computation takes here.

    Attributes:
        memory: Bytes, of its result and of what is stored on the way.
        seconds: Of one run, compiled already.
    """

    memory: int
    seconds: float


class Description(eqx.Module):
    """What `describe` found; printed as a table, and a pytree underneath.

    Attributes:
        x: The input.
        logits: (C,).
        probabilities: (C,).
        trace: trace G, in nats per squared unit of x.
        rank: Of G, ≤ C − 1.
        dimension: Of D, which no saturation lowers.
        eigenvalues: (m,) of G, descending.
        directions: (k, *x.shape), up to three leading eigenvectors.
        saturated: How many classes have a p that rounding hides beside 1.
        dead: How many logits have no gradient, exactly.
        num_weights: How many numbers the model holds.
        factor: Cost of `foliax.factor`.
        jacobian: Cost of all C rows of the logit Jacobian.
        walk: Cost of a walk of 1,000 steps.
        advice: A line for each thing that looks wrong.
    """

    x: Float[Array, "..."]
    logits: Float[Array, " c"]
    probabilities: Float[Array, " c"]
    trace: Float[Array, ""]
    rank: Int[Array, ""]
    dimension: Int[Array, ""]
    eigenvalues: Float[Array, " m"]
    directions: Float[Array, "k ..."]
    saturated: Int[Array, ""]
    dead: Int[Array, ""]
    num_weights: int = eqx.field(static=True)
    factor: Cost
    jacobian: Cost
    walk: Cost
    advice: tuple[str, ...] = eqx.field(static=True)

    def shares(self) -> Float[np.ndarray, " k"]:
        """Return what part of the trace the leading directions hold."""
        values = np.asarray(self.eigenvalues[:_SHOWN], np.float64)
        return values / max(float(self.trace), np.finfo(np.float64).tiny)

    def __repr__(self) -> str:
        """Return the table."""
        width = max(len(name) for name, _ in self._rows())
        lines = [f"{name:{width}}  {text}" for name, text in self._rows()]
        return "\n".join(lines)

    def _rows(self) -> list[tuple[str, str]]:
        c, n = self.logits.size, self.x.size
        top = np.argsort(-np.asarray(self.probabilities), kind="stable")[:_SHOWN]
        shown = ", ".join(f"{k} (p = {float(self.probabilities[k]):.3g})" for k in top)
        held = ", ".join(f"{share:.0%}" for share in self.shares())
        low, high = float(jnp.min(self.x)), float(jnp.max(self.x))
        rows = [
            ("input", f"{self.x.shape}, {self.x.dtype}, n = {n:,}, from {low:.3g} to {high:.3g}"),
            ("weights", f"{self.num_weights:,}"),
            ("output", f"C = {c:,} logits, {self.logits.dtype}; the likeliest {shown}"),
            ("rank of G", f"{int(self.rank)}, at most min(n, C − 1) = {min(n, c - 1)}"),
            ("dim of D", f"{int(self.dimension)}"),
            ("trace of G", f"{float(self.trace):.4g} nats per squared unit of x"),
            ("leading", f"{held} of the trace"),
            ("classes", f"{int(self.saturated)} saturated, {int(self.dead)} dead, of {c:,}"),
            ("Jacobian", _in_words(self.jacobian)),
            ("factor", _in_words(self.factor)),
            (f"walk, {_STEPS:,} steps", _in_words(self.walk)),
        ]
        return rows + [("look at", line) for line in self.advice]


def describe(
    model: Model, x: ArrayLike, *, box: Box | None = None, chunk: Count | None = None
) -> Description:
    """Return what to know first of a model at an input, with a line for each thing that is odd.

    Compiles and times a few programs, which takes seconds; not for use under `jit`.

    Args:
        model: Callable pytree from one input to C logits, such as `foliax.adapt` returns.
        x: One input, in the model's units.
        box: The range of x, such as `data.box`; None for none.
        chunk: How many rows of a Jacobian are pulled back at once; None for all.

    Returns:
        A `Description`, which prints as a table.

    Raises:
        ValueError: As `foliax.factor`; or under `jit`.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> found = foliax.describe(lambda x: jnp.stack([x[0], x[1], 0 * x[0]]), jnp.zeros(9))
        >>> int(found.rank), int(found.dead), found.advice[1]
        (2, 1, '1 class has a logit that does not depend on x')
    """
    check_chunk(chunk)
    x = as_point(x)
    if is_traced(x):
        raise ValueError("x must be concrete, got a traced one; call describe outside of jax.jit")
    logits_struct(model, x, Categorical())
    raw, again = (np.asarray(logits_of(model, x)) for _ in range(2))
    found = _measured(model, x, chunk)
    cost = _cost(lambda m, y: factor(m, y, chunk=chunk), model, x)
    step = _cost(lambda m, y: project_leaf(m, y, y, chunk=chunk), model, x)
    walk = Cost(step.memory, _STEPS * step.seconds)
    rows = raw.size - 1
    jacobian = Cost(cost.memory * (rows + 1) // rows, cost.seconds * (rows + 1) / rows)
    differ = not np.array_equal(raw, again, equal_nan=True)
    advice = [*_of_calls(raw, differ), *_of_input(x, box), *_of_geometry(found, x, cost, chunk)]
    leaves = (leaf for leaf in jax.tree.leaves(model) if eqx.is_inexact_array(leaf))
    return Description(
        x=x,
        **found,
        num_weights=sum(leaf.size for leaf in leaves),
        factor=cost,
        jacobian=jacobian,
        walk=walk,
        advice=tuple(advice),
    )


@compiled
def _measured(model: Model, x: Array, chunk: Count | None) -> dict[str, Any]:
    """Return everything that is measured at x, by name."""
    shape = spectrum(model, x, chunk=chunk)
    logits, pull = pullback(model, x, Categorical())
    p = jax.nn.softmax(logits)
    kept = min(_SHOWN, x.size, logits.size - 1)

    def is_dead(row: Array) -> Array:
        return jnp.all(pull(row) == 0)

    dead = lax.map(is_dead, jnp.eye(logits.size, dtype=logits.dtype), batch_size=chunk)
    return {
        "logits": logits,
        "probabilities": p,
        "trace": shape.trace,
        "rank": shape.rank,
        "dimension": shape.dimension,
        "eigenvalues": shape.eigenvalues,
        "directions": eigh(model, x, kept, chunk=chunk).vectors,
        "saturated": jnp.sum(p < jnp.finfo(p.dtype).eps, dtype=jnp.int32),
        "dead": jnp.sum(dead, dtype=jnp.int32),
    }


def _cost(function: Callable[..., Any], model: Any, x: Array) -> Cost:
    """Compile a function of a model and an input, and time its best run of three."""
    arrays, rest = eqx.partition(model, eqx.is_array)
    program = jax.jit(lambda a, y: function(eqx.combine(a, rest), y)).lower(arrays, x).compile()
    told: Any = program.memory_analysis()
    memory = told.output_size_in_bytes + told.temp_size_in_bytes if told is not None else 0
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        jax.block_until_ready(program(arrays, x))
        seconds.append(time.perf_counter() - begun)
    return Cost(int(memory), min(seconds))


# --- what is odd -------------------------------------------------------------------------------


def _of_calls(raw: Float[np.ndarray, " c"], differ: bool) -> Sequence[str]:
    """Say what is odd about what the model returns."""
    lines = []
    if differ:
        lines.append(
            "two calls differ: the model is in training mode or draws at random; put it into "
            "evaluation mode"
        )
    if not np.isfinite(raw).all():
        return [*lines, "logits are not finite: look at x, and at the weights"]
    size = np.abs(raw).max()
    if np.ptp(raw) <= _SPREAD * size:
        lines.append(
            "logits are all equal: the model prefers no class; is it trained, are its weights "
            "loaded?"
        )
    elif raw.min() >= 0 and abs(raw.sum() - 1) < _SUM:
        lines.append(
            "outputs look like probabilities, and logits are wanted: leave the softmax out, or "
            'foliax.adapt(model, output="probabilities")'
        )
    return lines


def _of_input(x: Float[Array, "..."], box: Box | None) -> Sequence[str]:
    """Say what is odd about the input."""
    values = np.asarray(x, np.float64)
    if not np.isfinite(values).all():
        return ["x is not finite"]
    if box is not None and not bool(box.holds(x)):
        return [
            f"x leaves the box by {float(box.excess(x)):.3g}: normalise it as the images the model "
            "was trained on"
        ]
    whole = np.array_equal(values, np.round(values))
    if whole and values.min() >= 0 and 2 < values.max() <= _BYTES_MOST:
        return [
            "x holds whole numbers up to 255, as bytes of pixels: normalise it as the images the "
            "model was trained on"
        ]
    return []


def _of_geometry(found: dict[str, Any], x: Array, cost: Cost, chunk: Count | None) -> Sequence[str]:
    """Say what is odd about G, and what is large."""
    rank, dimension, dead = (int(found[name]) for name in ("rank", "dimension", "dead"))
    most = found["logits"].size - 1
    lines = []
    if dimension == 0:
        lines.append(
            "G = 0 and D = {0}: no logit depends on x here, as in a network without an active unit"
        )
    elif 0 <= rank < dimension:
        lines.append(
            f"G has rank {rank} where D has dimension {dimension}: the softmax is saturated, max p "
            f"= {float(found['probabilities'].max()):.9g}; directions by foliax.frame do not fade, "
            "and a model earlier in its training shows more"
        )
    elif 0 < dimension < min(most, x.size):
        lines.append(
            f"D has dimension {dimension} of {min(most, x.size)}: a layer with few active units "
            "limits it"
        )
    if dead and dimension:
        what = "class has a logit" if dead == 1 else "classes have logits"
        verb = "does" if dead == 1 else "do"
        lines.append(f"{dead} {what} that {verb} not depend on x")
    if x.size <= most:
        lines.append(f"n = {x.size} is not above C − 1 = {most}: there may be no kernel to move in")
    if cost.memory > _LARGE and chunk is None:
        lines.append(
            f"a factor takes {_size(cost.memory)}: chunk=… bounds it, and trace_estimate and "
            'eigh(…, method="lanczos") need none'
        )
    return lines


# --- words -------------------------------------------------------------------------------------


def _in_words(cost: Cost) -> str:
    return f"{_size(cost.memory)}, {_duration(cost.seconds)}"


def _size(size: int | float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"


def _duration(seconds: float) -> str:
    for unit, over in (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        if seconds < 1000 * over:
            return f"{seconds / over:.3g} {unit}"
    return f"{seconds / 60:.3g} min"
