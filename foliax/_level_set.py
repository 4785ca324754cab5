"""Moves that keep p, inside the pixel box: along ker G with the active bounds held.

The constraint is linear at each point: B u = 0 for the orthonormal basis B of D. Bounds enter as
pixels that are held. Written in B the small systems are as well conditioned as the set of free
pixels allows.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from foliax._inputs import dot
from foliax.domain import Box
from foliax.foliation import RowSpace, least_norm

_MAX_HOLDS = 6
_MAX_CORRECTIONS = 3  # one forward pass each


def free_direction(
    space: RowSpace, v: Float[Array, " n"], x: Float[Array, " n"], box: Box | None
) -> Float[Array, " n"]:
    """Return the part of v that keeps p to first order and respects the active bounds.

    Projects v on {u : B u = 0, u = 0 on the held pixels}, starting with no pixel held, and holds
    those whose bound the result would cross, until none does.
    """
    free = jnp.ones_like(x, dtype=bool)
    u = _kernel_part(space, v, free)
    if box is None:
        return u
    at_lower, at_upper = x <= box.lower, x >= box.upper

    def blocked(u: Array) -> Bool[Array, " n"]:
        return (at_lower & (u < 0)) | (at_upper & (u > 0))

    def hold(free: Array, u: Array) -> tuple[Array, Array]:
        free = free & ~blocked(u)
        return free, _kernel_part(space, v, free)

    free, u = _repeat_while(lambda _, u: jnp.any(blocked(u)), hold, (free, u), _MAX_HOLDS)
    return jnp.where(blocked(u), 0, u)


def onto_level_set(
    space: RowSpace,
    defect: Callable[[Float[Array, " n"]], Float[Array, " r"]],
    x: Float[Array, " n"],
    box: Box | None,
) -> Float[Array, " n"]:
    """Return a point near x with the contrasts of the start, by chord iterations inside the box.

    `defect` gives H (s(x) − s(start)). The Jacobian is the one behind `space`, from before the
    step: one forward pass an iteration instead of C passes. The best point met is returned, since
    a chord may also lead away where the Jacobian has jumped.
    """
    tolerance = 8 * jnp.finfo(x.dtype).eps

    def size(d: Array) -> Array:
        return jnp.max(jnp.abs(d))

    def correct(x: Array, d: Array, best: Array, least: Array) -> tuple[Array, ...]:
        inside = jnp.ones_like(x, bool) if box is None else (x > box.lower) & (x < box.upper)
        # K u = −d, said in the basis: B u = −inverse d.
        moved = x - least_norm(space.basis * inside, dot(space.inverse, d))
        moved = moved if box is None else box.clip(moved)
        d = defect(moved)
        better = size(d) < least
        return moved, d, jnp.where(better, moved, best), jnp.where(better, size(d), least)

    x = x if box is None else box.clip(x)
    d = defect(x)
    start = (x, d, x, size(d))

    def unsettled(x: Array, d: Array, best: Array, least: Array) -> Array:
        del x, best, least
        return size(d) > tolerance

    return _repeat_while(unsettled, correct, start, _MAX_CORRECTIONS)[2]


def _repeat_while(
    condition: Callable[..., Array], body: Callable[..., tuple], carry: tuple, most: int
) -> tuple:
    """Apply body while the condition holds, `most` times at most.

    Written as a loop of known length, which reverse mode can cross; a lane that is done skips the
    work (under vmap, all lanes do it until the loop ends).
    """

    def turn(_: Array, carry: tuple) -> tuple:
        return lax.cond(condition(*carry), body, lambda *kept: kept, *carry)

    return lax.fori_loop(0, most, turn, carry)


def _kernel_part(
    space: RowSpace, v: Float[Array, " n"], free: Bool[Array, " n"]
) -> Float[Array, " n"]:
    """Project v on {u : B u = 0, u = 0 where not free}."""
    basis, u = space.basis * free, v * free
    for _ in range(2):  # the second round removes the rounding of the first
        u = u - least_norm(basis, dot(basis, u))
    return u
