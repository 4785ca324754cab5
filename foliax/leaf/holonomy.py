"""Holonomy: a closed loop of p, lifted along D, need not close.

D is a connection over p: it lifts every curve of p to a curve of inputs. There is a leaf through x
as far as the lifts of closed loops are closed. The gap that is left is what keeps D from being
integrable at the scale of the loop; `foliax.involutivity` sees the limit of small loops alone.
"""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from foliax._core.checks import as_point, as_tangent, check_choice, check_count, check_positive
from foliax._core.compile import compiled
from foliax._core.jacobian import contrast_jacobian, logits_struct, pullback, pushforward
from foliax._core.types import Count, Model
from foliax._linalg.products import dot, norm
from foliax._linalg.row_space import RowSpace
from foliax.flow.path import Code, Status, as_status
from foliax.leaf.image import flat_logits
from foliax.leaf.lift import LiftScene, LiftState, run_lift
from foliax.likelihood import Categorical, is_valid

if TYPE_CHECKING:
    LoopCoordinates = Literal["logits", "p"]
else:  # checked by hand
    LoopCoordinates = Any

_CATEGORICAL = Categorical()


class Holonomy(NamedTuple):
    """A loop of p that was lifted along D.

    Attributes:
        gap: ‖end − x‖ over the length of the lifted loop: 0 where it is closed, at most 1.
        end: Where the lifted loop ends, of x's shape.
        length: Its Euclidean length, in the units of x.
        defect: How exactly it is a lift: the largest difference of its logit contrasts from those
            of the loop, at the steps.
        probability_change: max|p(end) − p(x)|, 0 up to rounding.
        status: A `Status`: completed; boundary (a square of p that leaves the simplex, not lifted);
            stalled (u and v span less than a plane in D, or the logits
            cannot follow: rank G falls below C − 1); invalid (NaN).
    """

    gap: Float[Array, ""]
    end: Float[Array, "..."]
    length: Float[Array, ""]
    defect: Float[Array, ""]
    probability_change: Float[Array, ""]
    status: Status


class _Edge(eqx.Module):
    """A straight line of logits, or of p where those at the start of the loop are given."""

    first: Float[Array, " c"]  # where it begins, less where the loop begins
    change: Float[Array, " c"]
    p: Float[Array, " c"] | None

    def offsets(self, tau: Float[Array, ""]) -> Float[Array, " c"]:
        """Return the logits at τ less those where the loop begins."""
        offset = self.first + tau * self.change
        if self.p is None:
            return offset
        return jnp.log1p(offset / jnp.where(self.p > 0, self.p, 1))


@compiled
def holonomy(
    model: Model, x: ArrayLike, u: ArrayLike, v: ArrayLike, side: float | Array, *,
    straight: LoopCoordinates = "logits", num_steps: Count = 50,
    solver: diffrax.AbstractSolver = diffrax.Heun(),
) -> Holonomy:  # fmt: skip
    """Lift a square loop of p along D, from x and back to the same p, and measure the gap.

    The square has the sides `side` J e₁ and `side` J e₂, with J the Jacobian at x of the logits, or
    of p, and e₁, e₂ orthonormal in D: the first along the part of u in D, the second in the plane
    with that of v. In logits every square is inside the simplex. Each edge is lifted by
    x' = (H J)⁺ d(H log p)/dt, and each step is brought back to the prescribed p, as in
    `foliax.leaf.geodesic`. To leading order the gap is side ‖[X₁, X₂] outside D‖ / 4 for the lifted
    fields. It is 0 inside a linear region of a ReLU network, and not where edges cross its faces.

    Args:
        u: The first direction, of x's shape; its part in D counts, and not its length.
        v: The second one.
        side: Length of the first edge, > 0, in the units of x; of a curved one, to first order.
        straight: In which coordinates the edges are: "logits", or "p" for a square in the simplex.
        num_steps: Steps of each of the four edges. Twice as many show how exact the gap is.
        solver: A diffrax solver. Across the faces of a ReLU network it is of first order.

    Returns:
        A `Holonomy`.

    Raises:
        ValueError: For arguments that shapes, dtypes or concrete values show to be wrong, or for
            n < C − 1 inputs, which cannot follow every change of p.

    Source: Kobayashi & Nomizu, *Foundations of differential geometry* I, chapter II (holonomy);
    Tron & Fioresi, arXiv 2409.07412 (the distribution D of a network).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import foliax
        >>> twisted = lambda x: jnp.stack([x[0], x[1] + x[0] * x[2], 0 * x[0]])
        >>> x, (u, v, _) = jnp.zeros(3), jnp.eye(3)
        >>> loop = foliax.holonomy(twisted, x, u, v, 0.1)
        >>> f"{loop.gap:.4f}", f"{jnp.abs(loop.end[2]):.4f}"  # off along the kernel, by side²
        ('0.0249', '0.0100')
    """
    check_count(num_steps, name="num_steps")
    check_positive(side, name="side")
    x = as_point(x)
    u, v = as_tangent(u, x, name="u"), as_tangent(v, x, name="v")
    num_classes = logits_struct(model, x, _CATEGORICAL).shape[0]
    if x.size < num_classes - 1:
        raise ValueError(
            f"holonomy lifts curves of p, and n = {x.size} inputs cannot follow those of C = "
            f"{num_classes} classes; it needs n >= C - 1"
        )
    check_choice(straight, name="straight", choices=("logits", "p"))
    logits, pull = pullback(model, x, _CATEGORICAL)
    k = contrast_jacobian(model, x, _CATEGORICAL)[1]
    flat, u, v = (a.ravel().astype(k.dtype) for a in (x, u, v))
    plane, spanned = _plane(RowSpace.of(k), u, v)
    first, second = (side * pushforward(pull, logits, e).astype(k.dtype) for e in plane)
    possible = _CATEGORICAL.possible(logits)
    first, second = (jnp.where(possible, change, 0) for change in (first, second))
    p = None
    if straight == "p":
        p = jax.nn.softmax(logits).astype(k.dtype)
        first, second = (p * (change - dot(p, change)) for change in (first, second))
    begins = jnp.stack([0 * first, first, first + second, second])
    changes = jnp.stack([first, second, -first, -second])
    zero = jnp.zeros((), k.dtype)
    inside = jnp.ones((), bool) if p is None else jnp.all((begins + p > 0) | ~possible)
    start = LiftState(flat, zero, jnp.where(spanned & inside, zero, 1))

    def lift(before: LiftState, edge: tuple[Array, Array]) -> tuple[LiftState, Any]:
        curve, begun = _Edge(*edge, p), logits.astype(k.dtype)
        scene = LiftScene(model, x.shape, x.dtype, curve, begun, num_steps)
        lost = jnp.where(scene.full_rank(scene.space(before.x)[1]), before.lost, 1)
        states, _ = run_lift(before._replace(lost=lost), scene, solver)
        steps = jnp.diff(states.x, axis=0)
        measured = jnp.sum(jax.vmap(norm)(steps)), jnp.max(states.defect)
        return jax.tree.map(lambda rows: rows[-1], states), measured

    last, (lengths, defects) = lax.scan(lift, start, (begins, changes))
    finite = is_valid(_CATEGORICAL, logits) & jnp.all(jnp.isfinite(jnp.stack([flat, u, v])))
    code = jnp.where(last.lost > 0, Code.stalled, Code.completed)
    code = jnp.where(inside, code, Code.boundary)
    length = jnp.sum(lengths)
    after = flat_logits(model, x)(last.x).astype(logits.dtype)
    return Holonomy(
        norm(last.x - flat) / jnp.where(length > 0, length, 1), last.x.reshape(x.shape), length,
        jnp.max(defects), jnp.max(jnp.abs(jax.nn.softmax(after) - jax.nn.softmax(logits))),
        as_status(jnp.where(finite, code, Code.invalid)),
    )  # fmt: skip


def _plane(
    space: RowSpace, u: Float[Array, " n"], v: Float[Array, " n"]
) -> tuple[tuple[Array, Array], Array]:
    """Return an orthonormal basis of the plane in D, and whether it is one."""
    first, is_first = _unit(space.project(u), u)
    rest = space.project(v)
    second, is_second = _unit(rest - dot(first, rest) * first, v)
    return (first, second), is_first & is_second


def _unit(part: Float[Array, " n"], of: Float[Array, " n"]) -> tuple[Array, Array]:
    """Return a unit vector, and whether there was more of it than rounding."""
    size = norm(part)
    there = size > 100 * jnp.finfo(part.dtype).eps * norm(of)
    return jnp.where(there, part / jnp.where(there, size, 1), 0), there
