"""One move along the leaf to where a class is the most probable one, and its mathematics."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from foliax._core.jacobian import contrast_jacobian
from foliax._linalg import lapack
from foliax._linalg.products import dot, norm
from foliax._linalg.row_space import RowSpace, least_norm
from foliax.flow.flat import Flat
from foliax.flow.path import Code
from foliax.likelihood import Categorical, included, is_valid, logit_change

LIKELIHOOD = Categorical()
_AHEAD = 8  # times the resolution of the logits: the lead that is aimed at, then cut to nothing
_DOUBLINGS = 12  # of that lead, where a step in full has not crossed
_PIVOTS = 8  # rounds of pivoting, times the number of classes
_RUNNING = -1


class Scene(Flat):
    """What stays fixed during one move."""

    start: Float[Array, " n"]
    start_logits: Float[Array, " c"]
    to: Int[Array, ""]
    step: Float[Array, ""]
    metric: str = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def aim(self, logits: Float[Array, " c"], tries: Int[Array, ""]) -> Float[Array, ""]:
        """Return a lead that rounding does not hide.

        Without a lead, a step may end in a corner where two classes are level with c and no
        direction puts c ahead of both.
        """
        eps = max(jnp.finfo(self.dtype).eps, jnp.finfo(logits.dtype).eps)
        growth = 2.0 ** jnp.minimum(tries, _DOUBLINGS)
        return (
            _AHEAD * growth * eps * (1 + jnp.max(jnp.abs(included(LIKELIHOOD, logits))))
        ).astype(logits.dtype)

    def lead(self, logits: Float[Array, " c"]) -> Float[Array, ""]:
        """Return s_c − max of the others: positive where c is the class predicted."""
        others = jnp.where(jnp.arange(logits.size) == self.to, -jnp.inf, logits)
        return logits[self.to] - jnp.max(others)


class State(NamedTuple):
    """Where a move is."""

    x: Float[Array, " n"]
    logits: Float[Array, " c"]
    length: Float[Array, ""]
    steps: Int[Array, ""]
    tries: Int[Array, ""]  # steps that were taken in full, and did not cross
    status: Int[Array, ""]


def move(scene: Scene) -> State:
    """Step until the class is reached, or it is known that it is not."""
    lead = scene.lead(scene.start_logits)
    zero = jnp.zeros((), scene.start.dtype)
    status = jnp.where(lead > 0, Code.arrived, _RUNNING)
    # A class that cannot occur is nowhere the most probable one.
    status = jnp.where(LIKELIHOOD.possible(scene.start_logits)[scene.to], status, Code.stalled)
    status = jnp.where(is_valid(LIKELIHOOD, scene.start_logits), status, Code.invalid)
    first = State(
        scene.start, scene.start_logits, zero, jnp.int32(0), jnp.int32(0), status.astype(jnp.int32)
    )
    last = lax.while_loop(
        lambda state: (state.status == _RUNNING) & (state.steps < scene.max_steps),
        lambda state: _step(scene, state),
        first,
    )
    status = jnp.where(last.status == _RUNNING, Code.out_of_steps, last.status)
    return last._replace(status=status.astype(jnp.int32))


def _step(scene: Scene, state: State) -> State:
    x = state.x
    _, k = contrast_jacobian(scene.model, scene.shaped(x), LIKELIHOOD)
    space = RowSpace.of(k.astype(x.dtype))
    aim = scene.aim(state.logits, state.tries)
    if scene.metric == "fisher":
        wish = _fisher(scene, state.logits, space, aim)
    else:
        wish = _euclidean(scene, state.logits, k, space, aim)
    size = norm(wish)
    scale = jnp.minimum(1, scene.step / jnp.where(size > 0, size, 1))
    part = _first_crossing(scene, x, scale * wish)
    moved = x + part.scale * scale * wish
    stuck = jnp.all(moved == x)
    status = jnp.where(stuck, Code.stalled, _RUNNING)
    status = jnp.where(part.crossed, Code.arrived, status)
    change = logit_change(LIKELIHOOD, scene.start_logits, part.logits)
    finite = jnp.all(jnp.isfinite(change)) & jnp.all(jnp.isfinite(moved))
    return State(
        jnp.where(finite, moved, x),
        jnp.where(finite, part.logits, state.logits),
        jnp.where(finite, state.length + part.scale * scale * size, state.length),
        state.steps + 1,
        state.tries + (size <= scene.step),
        jnp.where(finite, status, Code.invalid).astype(jnp.int32),
    )


# --- where to go ---------------------------------------------------------------------------------


def _euclidean(
    scene: Scene, logits: Float[Array, " c"], k: Float[Array, "r n"], space: RowSpace, aim: Array
) -> Float[Array, " n"]:
    """Return the shortest v with s_c + ∇s_c·v ≥ s_j + ∇s_j·v for every j; it lies in D."""
    contrasts = LIKELIHOOD.contrasts(logits)
    rows = jax.nn.one_hot(scene.to, logits.size, dtype=logits.dtype) - jnp.eye(
        logits.size, dtype=logits.dtype
    )
    # Row c compares the class with itself: no constraint. Nor is a class that cannot occur one.
    others = (jnp.arange(logits.size) != scene.to) & LIKELIHOOD.possible(logits)
    rows = jnp.where(others[:, None], rows, 0)
    # a = (E Hᵀ) K, in the basis of D.
    a = dot(dot(dot(rows, contrasts.T), k.astype(logits.dtype)), space.basis.T)
    lead = dot(rows, included(LIKELIHOOD, logits)) - others * aim
    return dot(nearest(a, lead), space.basis)


def nearest(a: Float[Array, "c m"], lead: Float[Array, " c"]) -> Float[Array, " m"]:
    """Return the shortest v with a v ≥ −lead: a point projected on a polyhedron.

    v = aᵀλ for the λ ≥ 0 that solves the linear complementarity problem w = a aᵀλ + lead ≥ 0,
    w·λ = 0. It is solved by principal pivoting: all infeasible indices change sides as long as
    fewer are left each time, else the last of them alone (Murty's rule, which always ends).

    Source: Júdice & Pires 1994, *A block principal pivoting algorithm for large-scale strictly
        monotone linear complementarity problems*, Computers & Operations Research 21(5).
    """
    size = len(lead)
    gram = dot(a, a.T)
    eye = jnp.eye(size, dtype=a.dtype)
    eps = jnp.finfo(a.dtype).eps
    top = jnp.max(jnp.diagonal(gram))
    gram = gram + eps * jnp.where(top == 0, 1, top) * eye  # dependent rows, and those of zeros
    tolerance = 16 * eps * jnp.max(jnp.abs(lead))

    def solved(active: Array) -> tuple[Array, Array]:
        both = active[:, None] & active[None, :]
        system = jnp.where(both, gram, eye)
        multipliers = lapack.solve(system, jnp.where(active, -lead, 0))
        slack = dot(gram, multipliers) + lead
        return multipliers, jnp.where(active, multipliers < 0, slack < -tolerance)

    def pivot(carry: tuple) -> tuple:
        active, _, wrong, fewest, trials, rounds = carry
        count = jnp.sum(wrong, dtype=jnp.int32)
        better = count < fewest
        trials = jnp.where(better, 3, trials - 1)
        last = jnp.arange(size) == size - 1 - jnp.argmax(wrong[::-1])
        active = active ^ jnp.where(better | (trials > 0), wrong, last)
        multipliers, wrong = solved(active)
        return active, multipliers, wrong, jnp.minimum(fewest, count), trials, rounds + 1

    start = jnp.zeros(size, bool)
    first = (start, jnp.zeros_like(lead), lead < 0, jnp.int32(size + 1), jnp.int32(3), 0)
    found = lax.while_loop(
        lambda carry: jnp.any(carry[2]) & (carry[5] < _PIVOTS * size), pivot, first
    )
    return dot(jnp.maximum(found[1], 0), a)


def _fisher(
    scene: Scene, logits: Float[Array, " c"], space: RowSpace, aim: Array
) -> Float[Array, " n"]:
    """Return the least v that takes log p, to first order, to where G's metric has it nearest."""
    goal = nearest_log_probabilities(jax.nn.log_softmax(scene.start_logits), scene.to)
    goal = goal.at[scene.to].add(aim)
    change = logit_change(LIKELIHOOD, jax.nn.log_softmax(logits), goal)
    change = dot(LIKELIHOOD.contrasts(logits), change)
    return least_norm(space.basis, dot(space.inverse, change))


def nearest_log_probabilities(log_p: Float[Array, " c"], to: Int[Array, ""]) -> Float[Array, " c"]:
    """Return log q of the distribution nearest to p in which no class exceeds c.

    On the sphere of radius 2 with u = √p, that is the projection of u on the cone u_c ≥ u_j: the
    classes above the mean of c and of them take that mean, and the result is scaled to length 1.
    """
    size = log_p.size
    half = log_p / 2
    mine = half[to]
    others = jnp.where(jnp.arange(size) == to, -jnp.inf, half)
    falling = -jnp.sort(-others)[: size - 1]
    counts = jnp.arange(2, size + 1, dtype=log_p.dtype)
    # In log space: the probability of c may be below what exp can represent.
    means = jnp.logaddexp(lax.cumlogsumexp(falling), mine) - jnp.log(counts)
    before = jnp.concatenate([mine[None], means[:-1]])
    merged = falling > before  # a prefix: once one is below the mean, so are all after it
    level = jnp.where(merged.any(), means[jnp.maximum(jnp.sum(merged) - 1, 0)], mine)
    half = jnp.where((jnp.arange(size) == to) | (half > level), level, half)
    return jax.nn.log_softmax(2 * half)


def separation(log_p: Float[Array, " c"], log_q: Float[Array, " c"]) -> Float[Array, ""]:
    """Return 2 arccos Σ√(p_i q_i) = 4 arcsin(‖√p − √q‖ / 2), without the loss near p = q."""
    chord = norm(jnp.exp(log_p / 2) - jnp.exp(log_q / 2))
    return 4 * jnp.arcsin(jnp.minimum(chord / 2, 2**-0.5))


# --- where to stop -------------------------------------------------------------------------------


class _Crossing(NamedTuple):
    """How much of a step is taken: all of it, or up to where the class is first ahead."""

    scale: Float[Array, ""]
    logits: Float[Array, " c"]
    crossed: Array


def _first_crossing(scene: Scene, x: Array, step: Array) -> _Crossing:
    """Bisect the step that crosses; the end kept is on the side where the class is ahead."""
    ahead_logits = scene.logits(x + step)
    crossed = scene.lead(ahead_logits) > 0
    halvings = jnp.finfo(x.dtype).nmant + 3

    def halve(_: Any, carry: tuple) -> tuple:
        low, high, best = carry
        middle = (low + high) / 2
        logits = scene.logits(x + middle * step)
        ahead = scene.lead(logits) > 0
        return (
            jnp.where(ahead, low, middle),
            jnp.where(ahead, middle, high),
            jnp.where(ahead, logits, best),
        )

    ends = (jnp.zeros((), x.dtype), jnp.ones((), x.dtype), ahead_logits)
    _, scale, logits = lax.fori_loop(0, jnp.where(crossed, halvings, 0), halve, ends)
    return _Crossing(scale, logits, crossed)
