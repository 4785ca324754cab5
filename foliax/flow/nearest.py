"""The point of a level set of p that is nearest to a target, inside the box.

Sequential quadratic steps: where the contrasts are linearised, the nearest point that keeps them
inside the box is a projection, found in the dual by Newton's method in C − 1 numbers. The iterate
goes some way toward it and is corrected onto the level set. A ReLU network's level sets have
creases, at which the projections of either side point across; so the direction is a running mean of
theirs, and the longest step shrinks geometrically, as in subgradient methods.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from foliax._linalg.products import dot, norm
from foliax._linalg.row_space import inverse_factor
from foliax.flow.box import Box
from foliax.flow.level_set import onto_level_set, tolerance
from foliax.flow.path import Code
from foliax.flow.scene import Scene

_MEMORY = 0.7  # share of the running mean in the direction
_LEAST_STEP = 1 / 30  # of the first
_PULLS = 20  # steps from the target onto the level set, at most
_POLISHES = 3  # corrections of the best point, each with a Jacobian of its own
_CORRECTIONS = 8  # of a step, which is longer than those of a walk
_SHORTEN = 2.0
_MOST_ROUNDS = 30  # of Newton's method in the dual
_IMPROVES = 1e-4  # of the projection that Armijo's rule asks for
_CERTAIN = 8  # a number counts as nonzero at this many times its rounding error


class Nearest(NamedTuple):
    """What a search found, in flat units."""

    best: Float[Array, " n"]
    distance: Float[Array, ""]
    optimality: Float[Array, ""]  # ‖projected gradient‖ of ½ distance²
    defect: Float[Array, ""]  # of the conserved contrasts
    num_steps: Float[Array, ""]
    status: Float[Array, ""]


class _Search(NamedTuple):
    x: Float[Array, " n"]
    mean: Float[Array, " n"]  # of the directions
    best: Float[Array, " n"]
    least: Float[Array, ""]
    optimality: Float[Array, ""]
    defect: Float[Array, ""]
    time: Float[Array, ""]  # < 0 while the target is pulled onto the level set
    num_steps: Float[Array, ""]


def nearest(scene: Scene) -> Nearest:
    """Search from the start, and from the target pulled onto the level set; return the better."""
    starts = jnp.stack([scene.start, _clipped(scene.box, scene.goal)])
    first = jnp.asarray([0, -_PULLS], scene.start.dtype)
    both = lax.map(lambda way: _search(scene, *way), (starts, first))
    failed = ~(both.defect <= tolerance(scene.resolution()))
    better = jnp.argmin(jnp.where(failed, jnp.inf, both.distance))
    found = jax.tree.map(lambda leaf: leaf[better], both)
    finite = jnp.isfinite(found.distance) & jnp.isfinite(found.defect)
    status = jnp.where(scene.misplaced, Code.outside, found.status)
    status = jnp.where(finite, status, Code.invalid).astype(found.status.dtype)
    return found._replace(
        best=jnp.where(finite, found.best, scene.start),
        num_steps=jnp.sum(both.num_steps),
        status=status,
    )


def _search(scene: Scene, x: Float[Array, " n"], time: Float[Array, ""]) -> Nearest:
    """Search from x, which lies on the level set where time is 0."""
    zero = jnp.zeros((), x.dtype)
    first = _Search(x, jnp.zeros_like(x), x, zero + jnp.inf, zero, zero, time, zero)
    found = lax.while_loop(
        lambda search: search.time < scene.max_steps + _POLISHES,
        lambda search: _advanced(scene, search),
        first,
    )
    distance = norm(found.best - scene.goal)
    optimal = found.optimality <= scene.stall * distance + _noise(scene)
    stuck = Code.stalled if scene.box is None else Code.boundary
    status = jnp.where(optimal, Code.arrived, stuck)
    return Nearest(
        found.best, distance, found.optimality, found.defect, found.num_steps,
        status.astype(x.dtype),
    )  # fmt: skip


def _advanced(scene: Scene, search: _Search) -> _Search:
    """Take one step: pull onto the level set, approach the target, or polish the best point."""
    pulling, polishing = search.time < 0, search.time >= scene.max_steps
    x = jnp.where(polishing, search.best, search.x)
    logits, _, space = scene.linearised(x)
    change = scene.defect(logits)
    there = jnp.max(jnp.abs(change)) <= tolerance(scene.resolution())
    goal = jnp.where(pulling, x, scene.goal)
    aim = closest_in_box(space.basis, dot(space.inverse, change), x, goal, scene.box)
    gradient = aim - x  # of −½ ‖z − goal‖², projected
    mean = jnp.where(pulling, gradient, _MEMORY * search.mean + (1 - _MEMORY) * gradient)
    # The longest step is a share of the way, and shrinks over the steps of the search.
    spent = jnp.clip(search.time / scene.max_steps, 0, 1)
    longest = scene.step * norm(scene.goal - scene.start) * _LEAST_STEP**spent
    length = norm(mean)
    share = jnp.where(length > longest, longest / jnp.where(length > 0, length, 1), 1)
    moved = x + jnp.where(polishing, 0, share) * mean

    def defect(z: Array) -> Array:
        return scene.defect(scene.logits(z))

    moved = lax.cond(
        pulling,
        lambda: _clipped(scene.box, moved),
        lambda: onto_level_set(
            space,
            defect,
            x,
            moved,
            scene.box,
            scene.resolution(),
            max_corrections=_CORRECTIONS,
            shorten=_SHORTEN,
        ),
    )
    distance = norm(x - scene.goal)
    better = (distance < search.least) & there & ~pulling & ~polishing
    # What has been reached need not be searched any longer.
    reached = norm(gradient) <= scene.stall * distance + _noise(scene)
    later = jnp.where(pulling, 0, scene.max_steps)
    time = jnp.where(~polishing & there & (pulling | reached), later, search.time + 1)
    time = jnp.where(there | pulling, time, scene.max_steps + _POLISHES)  # no level set to follow
    best = jnp.where(better, x, search.best)
    return _Search(
        x=moved,
        mean=jnp.where(pulling, 0, mean),
        best=jnp.where(polishing, moved, best),
        least=jnp.where(better, distance, search.least),
        optimality=norm(gradient),
        defect=jnp.max(jnp.abs(change)),
        time=time,
        num_steps=search.num_steps + 1,
    )


def closest_in_box(
    basis: Float[Array, "m n"],
    change: Float[Array, " m"],
    x: Float[Array, " n"],
    goal: Float[Array, " n"],
    box: Box | None,
) -> Float[Array, " n"]:
    """Return the z in the box nearest to the goal with B (z − x) = −change, B orthonormal.

    Without a box in closed form. With one z = clip(goal − Bᵀλ), and λ maximises the concave dual,
    whose second derivative is that of the free entries (a semismooth Newton method).
    """
    offset = dot(basis, goal - x) + change  # B (goal − z)
    if box is None:
        return goal - dot(offset, basis)
    noise = _CERTAIN * jnp.finfo(x.dtype).eps * (norm(goal) + norm(x))
    scale = norm(goal - x) + norm(change) + noise

    def primal(multipliers: Array) -> tuple[Array, Array, Array]:
        z = box.clip(goal - dot(multipliers, basis))
        rest = offset - dot(basis, goal - z)
        return z, rest, 0.5 * dot(z - goal, z - goal) + dot(multipliers, rest)

    def improve(carry: tuple) -> tuple:
        multipliers, z, rest, value, share, rounds = carry
        inside = (z > box.lower) & (z < box.upper)
        # Where too few entries are free to tell, a step along the gradient, of slope 1 at most.
        half = inverse_factor(basis * inside, jnp.minimum(1, norm(rest) / scale))
        ascent = dot(half.T, dot(half, rest))
        tried = multipliers + share * ascent
        z_new, rest_new, value_new = primal(tried)
        up = value_new >= value + _IMPROVES * share * dot(rest, ascent)
        kept = (tried, z_new, rest_new, value_new, jnp.ones_like(share))
        chosen = jax.tree.map(
            lambda a, b: jnp.where(up, a, b), kept, (multipliers, z, rest, value, share / 4)
        )
        return (*chosen, rounds + 1)

    def unfinished(carry: tuple) -> Bool[Array, ""]:
        _, _, rest, _, _, rounds = carry
        return (norm(rest) > noise) & (rounds < _MOST_ROUNDS)

    none = jnp.zeros_like(offset)
    first = (none, *primal(none), jnp.ones((), x.dtype), 0)
    return lax.while_loop(unfinished, improve, first)[1]


def _clipped(box: Box | None, x: Float[Array, " n"]) -> Float[Array, " n"]:
    return x if box is None else box.clip(x)


def _noise(scene: Scene) -> Float[Array, ""]:
    """Return the rounding of a difference of points."""
    eps = jnp.finfo(scene.start.dtype).eps
    return _CERTAIN * eps * (norm(scene.goal) + norm(scene.start))
