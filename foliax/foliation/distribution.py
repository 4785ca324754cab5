"""The distribution D = (ker G)^⊥ and its complement: frames, dimensions, projections.

D_x = span{∇log p_i} is the row space of the centred logit Jacobian K = H J, H the Helmert
contrasts. K does not contain p: where the softmax is one-hot to rounding, G vanishes numerically
and D does not.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from foliax._core.checks import as_point, as_tangent, check_chunk
from foliax._core.compile import compiled
from foliax._core.jacobian import contrast_jacobian
from foliax._core.likelihood import Likelihood
from foliax._core.no_derivative import refused
from foliax._core.types import Chunk, Model
from foliax._linalg.rank import count_rank, singular_values
from foliax._linalg.row_space import RowSpace
from foliax.likelihood import Categorical

__all__ = ["Frame", "dimension", "frame", "project_kernel", "project_leaf"]


class Frame(NamedTuple):
    """An orthonormal frame of D at one point.

    Attributes:
        vectors: (m, *x.shape) with m = min(n, C − 1); rows that the mask drops are zero.
        mask: (m,), true for the directions that are numerically independent.
    """

    vectors: Float[Array, "m ..."]
    mask: Bool[Array, " m"]


@compiled
def frame(
    model: Model, x: ArrayLike, *, rtol: float | None = None,
    likelihood: Likelihood = Categorical(), chunk: Chunk = None,
) -> Frame:  # fmt: skip
    """Return an orthonormal frame of D = (ker G)^⊥ = span{∇log p_i} at x.

    Found from the centred logit Jacobian, so it does not fade when the softmax saturates. The
    frame is one among its rotations and may jump with x where D does not, so that it has no
    derivative, and differentiating it is a TypeError. `project_leaf` has one: it moves with D
    alone, smoothly where the model is smooth and dim D constant, with a jump across a ReLU face.

    Args:
        rtol: As in `dimension`.

    Returns:
        `Frame(vectors, mask)`: (m, *x.shape) and (m,), m = min(n, C − 1).

    Raises:
        ValueError: If x is not floating point, or the model does not map x to a vector of logits.

    Source: Grementieri & Fioresi 2022, Theorem 3.6: D is the distribution of the data leaves.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> f = foliax.frame(lambda x: jnp.stack([x[0], 2 * x[0], 0 * x[0]]), jnp.zeros(2))
        >>> f.mask.tolist(), jnp.abs(f.vectors).round(3).tolist()
        ([True, False], [[1.0, 0.0], [0.0, 0.0]])
    """
    check_chunk(chunk)
    x = as_point(x)
    _, k = contrast_jacobian(model, x, likelihood, chunk)
    space = RowSpace.of(refused(k, "foliax.frame"), rtol)
    return Frame(space.basis.reshape(-1, *x.shape), space.mask)


@compiled
def dimension(
    model: Model, x: ArrayLike, *, rtol: float | None = None,
    likelihood: Likelihood = Categorical(), chunk: Chunk = None,
) -> Int[Array, ""]:  # fmt: skip
    """Return dim D: the number of singular values of H J with s² > rtol · s_1².

    Counts directions of D regardless of saturation; `foliax.rank` counts eigenvalues of G. As of
    all counts, its derivative is a TypeError.

    Args:
        rtol: Least squared singular value that counts; None for (10 · C · eps)².

    Returns:
        An int32 scalar, ≤ min(n, C − 1); −1 where the Jacobian is not finite.

    Raises:
        ValueError: As `frame`.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> confident = lambda x: jnp.stack([x[0] + 500.0, x[1], 0 * x[0]])
        >>> int(foliax.dimension(confident, jnp.zeros(784)))
        2
    """
    check_chunk(chunk)
    _, k = contrast_jacobian(model, as_point(x), likelihood, chunk)
    k = refused(k, "foliax.dimension")
    return count_rank(singular_values(k), num_rows=k.shape[0], rtol=rtol)


@compiled
def project_leaf(
    model: Model, x: ArrayLike, v: ArrayLike, *, likelihood: Likelihood = Categorical(),
    chunk: Chunk = None,
) -> Float[Array, "..."]:  # fmt: skip
    """Return the orthogonal projection of v on D: the part tangent to the data leaf through x.

    Returns:
        P_D v, of x's shape; differentiable in x (at constant rank) and v.

    Raises:
        ValueError: As `frame`; or if v has another shape than x.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> tangent = foliax.project_leaf(model, jnp.zeros(2), jnp.array([3.0, 4.0]))
        >>> [f"{abs(v):.3f}" for v in tangent]
        ['3.000', '0.000']
    """
    check_chunk(chunk)
    x = as_point(x)
    v = as_tangent(v, x, name="v")
    _, k = contrast_jacobian(model, x, likelihood, chunk)
    flat = v.ravel().astype(k.dtype)
    return RowSpace.of(k).project_through(k, flat).reshape(x.shape)


@compiled
def project_kernel(
    model: Model, x: ArrayLike, v: ArrayLike, *, likelihood: Likelihood = Categorical(),
    chunk: Chunk = None,
) -> Float[Array, "..."]:  # fmt: skip
    """Return the orthogonal projection of v on ker G: the part along which p does not change.

    Returns:
        v − P_D v, of x's shape.

    Raises:
        ValueError: As `project_leaf`.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> normal = foliax.project_kernel(model, jnp.zeros(2), jnp.array([3.0, 4.0]))
        >>> [f"{abs(v):.3f}" for v in normal]
        ['0.000', '4.000']
    """
    tangent = project_leaf(model, x, v, likelihood=likelihood, chunk=chunk)
    return jnp.asarray(v, dtype=tangent.dtype) - tangent
