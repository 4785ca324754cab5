"""Moves that keep p, inside the pixel box: along ker G with the active bounds held.

The constraint is linear at each point: B u = 0 for the orthonormal basis B of D. Bounds enter as
pixels that are held. Written in B the small systems are as well conditioned as the set of free
pixels allows.
"""

from collections.abc import Callable
from typing import Any

import equinox.internal as eqxi
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from foliax._linalg.products import dot
from foliax._linalg.row_space import RowSpace, least_norm, orthogonal_part
from foliax.flow.box import Box

_MAX_HOLDS = 6
_MAX_CORRECTIONS = 4  # one forward pass each
_MAX_ATTEMPTS = 4
_SHORTEN = 4.0
_TOLERANCE = 1e-4  # of the conserved contrasts, a change of 1 in which shows: ½ of it at most in p


def resolution(likelihood: Any, logits: Float[Array, " c"], dtype: Any) -> Float[Array, ""]:
    """Return how finely the contrasts of logits of this size resolve, computed in the dtype."""
    eps = max(jnp.finfo(dtype).eps, jnp.finfo(logits.dtype).eps)
    sizes = jnp.abs(logits) / likelihood.unit(logits)
    return 4 * eps * (1 + jnp.max(sizes, where=jnp.isfinite(sizes), initial=0))


def tolerance(resolution: Float[Array, ""]) -> Float[Array, ""]:
    """Return the change of the contrasts up to which a point lies on the level set."""
    return _TOLERANCE + 4 * resolution


def free_direction(
    space: RowSpace,
    k: Float[Array, "r n"],
    v: Float[Array, " n"],
    x: Float[Array, " n"],
    box: Box | None,
) -> Float[Array, " n"]:
    """Return the part of v that keeps p to first order and respects the active bounds.

    Projects v on {u : K u = 0, u = 0 on the held pixels}, starting with no pixel held, and holds
    those whose bound the result would cross, until none does.
    """
    u = v
    for _ in range(2):  # the second round removes the rounding of the first
        u = u - space.project_through(k, u)
    if box is None:
        return u
    basis = space.through(k).basis
    at_lower, at_upper = x <= box.lower, x >= box.upper

    def blocked(u: Array) -> Bool[Array, " n"]:
        return (at_lower & (u < 0)) | (at_upper & (u > 0))

    def hold(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        free, u = carry
        free = free & ~blocked(u)
        return free, orthogonal_part(basis * free, v * free)

    free = jnp.ones_like(x, dtype=bool)
    free, u = eqxi.while_loop(
        lambda carry: jnp.any(blocked(carry[1])),
        hold,
        (free, u),
        max_steps=_MAX_HOLDS,
        kind="checkpointed",  # reverse mode can cross it, and under vmap it stops with the last
    )
    return jnp.where(blocked(u), 0, u)


def onto_level_set(
    space: RowSpace,
    defect: Callable[[Float[Array, " n"]], Float[Array, " r"]],
    start: Float[Array, " n"],
    moved: Float[Array, " n"],
    box: Box | None,
    resolution: Float[Array, ""],
    *,
    max_corrections: int = _MAX_CORRECTIONS,
    shorten: float = _SHORTEN,
) -> Float[Array, " n"]:
    """Return the end of a step from `start` to `moved`, brought back onto the level set of p.

    `defect` gives the contrasts H (s(x) − s(first point)), which the leaf conserves. Where they
    cannot be brought within the tolerance the step is shortened, at last to nothing.
    """
    most = tolerance(resolution)

    def attempt(carry: tuple) -> tuple:
        scale, _, _ = carry
        end, left = _chord(
            space, defect, start + scale * (moved - start), box, resolution, max_corrections
        )
        return scale / shorten, end, left

    first = (jnp.ones_like(resolution), start, jnp.full_like(resolution, jnp.inf))
    _, end, left = eqxi.while_loop(
        lambda carry: carry[2] > most,
        attempt,
        first,
        max_steps=_MAX_ATTEMPTS,
        kind="checkpointed",
    )
    # A defect that is not a number is for the caller to see.
    return jnp.where(left > most, start, end)


def _chord(
    space: RowSpace,
    defect: Callable[[Float[Array, " n"]], Float[Array, " r"]],
    x: Float[Array, " n"],
    box: Box | None,
    resolution: Float[Array, ""],
    max_corrections: int,
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """Return the best point met by chord iterations inside the box, and its defect."""

    def back(x: Array, d: Array) -> Array:
        c = dot(space.inverse, d)  # K u = −d, said in the basis: B u = −inverse d
        if box is None:
            return x - dot(c, space.basis)
        inside = (x > box.lower) & (x < box.upper)
        return box.clip(x - least_norm(space.basis * inside, c))

    x = x if box is None else box.clip(x)
    return chord_iterations(back, defect, x, resolution, max_corrections)


def chord_iterations(
    back: Callable[[Float[Array, " n"], Float[Array, " r"]], Float[Array, " n"]],
    defect: Callable[[Float[Array, " n"]], Float[Array, " r"]],
    x: Float[Array, " n"],
    resolution: Float[Array, ""],
    max_steps: int,
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """Return the best of x and of its successors by `back`, and the size of its defect.

    The Jacobian behind `back` is that of one point: one forward pass an iteration instead of C
    passes. A chord may also lead away, where the Jacobian has jumped.
    """

    def size(d: Array) -> Array:
        return jnp.max(jnp.abs(d))

    def correct(carry: tuple) -> tuple:
        x, d, best, least = carry
        moved = back(x, d)
        d = defect(moved)
        better = size(d) < least
        return moved, d, jnp.where(better, moved, best), jnp.where(better, size(d), least)

    d = defect(x)
    _, _, best, least = eqxi.while_loop(
        lambda carry: size(carry[1]) > resolution,
        correct,
        (x, d, x, size(d)),
        max_steps=max_steps,
        kind="checkpointed",
    )
    return best, least
