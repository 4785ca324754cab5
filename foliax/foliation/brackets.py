"""Is D integrable? Frobenius' condition, measured: how far Lie brackets of its fields leave D.

The fields are the gradients of the logit contrasts, c_i = ∇(H s)_i, which span D and do not depend
on p. The part of a bracket outside D is tensorial in the fields, so that of the fields ∇p_i of the
papers is the same up to the (badly scaled) coefficients that express them in the c_i.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._core.checks import as_point, check_chunk, check_count, check_positive
from foliax._core.compile import compiled
from foliax._core.jacobian import contrast_jacobian, pullback
from foliax._core.likelihood import Likelihood
from foliax._core.types import Chunk, Count, Model
from foliax._linalg.products import norm
from foliax._linalg.rank import singular_values
from foliax._linalg.row_space import RowSpace
from foliax.likelihood import Categorical

__all__ = ["Involutivity", "involutivity"]


class Involutivity(NamedTuple):
    """How far D is from being closed under Lie brackets at a point.

    Attributes:
        dimension: dim D; −1, as below, where the Jacobian is not finite.
        dimension_with_brackets: dim(D + [D, D]); equal to `dimension` where D is involutive.
        outside: ‖part of the brackets outside D‖ / ‖their terms‖, between 0 and √2.
    """

    dimension: Int[Array, ""]
    dimension_with_brackets: Int[Array, ""]
    outside: Float[Array, ""]


@compiled
def involutivity(
    model: Model, x: ArrayLike, *, pairs: Count | None = None, atol: float | None = None,
    likelihood: Likelihood = Categorical(), chunk: Chunk = None,
) -> Involutivity:  # fmt: skip
    """Measure how far D + [D, D] exceeds D at x.

    [c_i, c_j] = ∇²(Hs)_j c_i − ∇²(Hs)_i c_j for each pair of contrast gradients; each bracket is
    divided by the size of its own two terms before directions are counted. Costs two
    Hessian-vector products a pair, of (C − 1)(C − 2)/2 pairs. Zero inside a linear region of a
    ReLU network, and wherever D is all of input space (n ≤ C − 1) or a line (C = 2).

    Args:
        model: Callable pytree from one input to C logits, twice differentiable at x.
        x: One input, in the model's units. Use float64 where the counts matter.
        pairs: How many pairs are bracketed, evenly spread over all; None for all.
        atol: Size, relative to its terms, above which what leaves D counts; None for 10⁴ eps.
        chunk: How many pairs at once; None for all.

    Returns:
        `Involutivity(dimension, dimension_with_brackets, outside)`.

    Raises:
        ValueError: If x or the model's output is not what it should be, or pairs < 1.

    Source: Tron & Fioresi, arXiv 2409.07412, section 3 (there for the fields ∇p_i).

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> twisted = lambda x: jnp.stack([x[0], x[1] + x[0] * x[2], 0 * x[0]])
        >>> found = foliax.involutivity(twisted, jnp.zeros(3))
        >>> int(found.dimension), int(found.dimension_with_brackets)
        (2, 3)
    """
    check_chunk(chunk)
    if atol is not None:
        check_positive(atol, name="atol", or_zero=True)
    x = as_point(x)
    _, k = contrast_jacobian(model, x, likelihood, None)
    space = RowSpace.of(k)
    finite = jnp.all(jnp.isfinite(k))
    dimension = jnp.where(finite, jnp.sum(space.mask, dtype=jnp.int32), -1)
    chosen = _pairs(k.shape[0], pairs)
    if len(chosen) == 0:
        return Involutivity(dimension, dimension, jnp.zeros((), k.dtype))

    def leaving(pair: Array) -> tuple[Array, Array]:
        i, j = pair
        ahead = _derivative(model, x, likelihood, j, k[i])
        back = _derivative(model, x, likelihood, i, k[j])
        bracket = ahead - back
        return bracket - space.project_through(k, bracket), jnp.sum(ahead**2) + jnp.sum(back**2)

    outside, terms = lax.map(leaving, chosen, batch_size=chunk or len(chosen))
    total = jnp.sum(terms)
    relative = norm(outside / jnp.sqrt(jnp.where(total > 0, total, 1)))
    scaled = outside / jnp.sqrt(jnp.where(terms > 0, terms, 1))[:, None]
    tolerance = 1e4 * jnp.finfo(k.dtype).eps if atol is None else atol
    extra = jnp.sum(singular_values(scaled) > tolerance, dtype=jnp.int32)
    return Involutivity(dimension, jnp.where(finite, dimension + extra, -1), relative)


def _pairs(num_fields: int, pairs: Count | None) -> Int[Array, "pairs 2"]:
    if pairs is not None:
        check_count(pairs, name="pairs")
    every = list(itertools.combinations(range(num_fields), 2))
    if pairs is not None and pairs < len(every):
        picked = np.linspace(0, len(every) - 1, pairs).round().astype(int)
        every = [every[index] for index in picked]
    return jnp.asarray(np.array(every, dtype=np.int32).reshape(-1, 2))


def _derivative(
    model: Model, x: Float[Array, "..."], likelihood: Likelihood, row: Array, v: Float[Array, " n"]
) -> Float[Array, " n"]:
    """Return ∇²(Hs)_row v: the derivative of the contrast's gradient along v."""

    def gradient(y: Array) -> Array:
        logits, pull = pullback(model, y, likelihood)
        return pull(likelihood.contrasts(logits)[row])

    return jax.jvp(gradient, (x,), (v.reshape(x.shape).astype(x.dtype),))[1]
