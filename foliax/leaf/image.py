"""The image of the leaf in the simplex: the differential of x ↦ 2 √p on D, decomposed.

In G's metric a leaf is locally isometric to its image under u = 2 √p, a piece of the sphere of
radius 2 in R^C or, where rank G < C − 1, of a submanifold of it. Tangent vectors of the sphere are
written as functions f on the classes modulo constants, with ⟨f, g⟩ = fᵀ S g = ⟨Lᵀf, Lᵀg⟩; so Lᵀ
maps them isometrically to R^{C−1}, and nothing cancels or underflows before it has to.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from foliax._backend.rewrite import differentiable
from foliax._core.jacobian import contrast_jacobian, pullback, pushforward, working_dtype
from foliax._core.likelihood import Likelihood
from foliax._core.types import Model
from foliax._linalg import lapack
from foliax._linalg.products import dot
from foliax._linalg.rank import counted
from foliax._linalg.row_space import RowSpace
from foliax.likelihood import Categorical

if TYPE_CHECKING:
    CurvatureMethod = Literal["gauss", "koszul"]
    GeodesicMethod = Literal["sphere", "connection"]
else:  # checked by hand, see `_types`
    CurvatureMethod = GeodesicMethod = Any


class Image(NamedTuple):
    """The image of D in the sphere of √p at one point; r = C − 1, m = min(n, C − 1).

    Attributes:
        logits: (C,).
        isometry: (r, r) W with W (H J v) = Lᵀ J v: maps logit contrasts to orthonormal coordinates
            of the Fisher sphere.
        jacobian: (r, n) H J.
        tangent: (r, m) U: orthonormal coordinates of the image of D, masked columns zero.
        frame: (m, n): f_k in D with Lᵀ J f_k = U_k, orthonormal in G's metric; eigenvectors of G.
        mask: (m,): the directions with nonzero length in G, in the working precision.
        space: D itself, which does not depend on p.
    """

    logits: Float[Array, " c"]
    isometry: Float[Array, "r k"]
    jacobian: Float[Array, "k n"]
    tangent: Float[Array, "r m"]
    frame: Float[Array, "m n"]
    mask: Bool[Array, " m"]
    space: RowSpace

    @property
    def dimension(self) -> Int[Array, ""]:
        """Dim D; −1 for NaN."""
        return dimension_of(self.space)

    @property
    def full_rank(self) -> Bool[Array, ""]:
        """Whether G has full rank on D: its numerical rank is dim D, and nothing is NaN."""
        finite = jnp.all(jnp.isfinite(self.frame)) & jnp.all(jnp.isfinite(self.tangent))
        return finite & (jnp.sum(self.mask, dtype=jnp.int32) == self.dimension)

    def push(self, v: Float[Array, " n"]) -> Float[Array, " r"]:
        """Return Lᵀ J v, the image of v; its length is √(vᵀGv)."""
        return dot(self.isometry, dot(self.jacobian, v))

    def coordinates(self, v: Float[Array, " n"]) -> Float[Array, " m"]:
        """Return ⟨v, f_k⟩ in G's metric: the coordinates in the frame of the part of v in D."""
        return dot(self.push(v), self.tangent)

    def normal(self, y: Float[Array, "... r"]) -> Float[Array, "... r"]:
        """Return the part of tangent vectors of the sphere that is normal to the image of D."""
        return y - dot(dot(y, self.tangent), self.tangent.T)


def image(model: Model, x: Float[Array, "..."], likelihood: Likelihood) -> Image:
    """Decompose D at x in G's metric, from one forward and C − 1 reverse passes."""
    logits, k = contrast_jacobian(model, x, likelihood)
    space = RowSpace.of(k).moving(k)
    weights, rows = likelihood.factor(logits)
    # The rows of Lᵀ depend on contrasts only: rows = rows H⁺ H. Those of H are orthogonal.
    contrasts = likelihood.contrasts(logits)
    sizes = jnp.sum(contrasts**2, axis=1)
    isometry = weights[:, None] * dot(rows, (contrasts / jnp.where(sizes > 0, sizes, 1)[:, None]).T)
    u, s, vt = lapack.svd(dot(isometry, dot(k, space.basis.T)))
    there = jnp.arange(s.size) < jnp.sum(space.mask)
    mask = there & counted(s, num_rows=k.shape[0]) & (s > 0)
    # A NaN is not a zero direction: it must not be masked.
    keep = mask | ~jnp.all(jnp.isfinite(s))
    frame = jnp.where(keep[:, None], dot(vt, space.basis) / jnp.where(mask, s, 1)[:, None], 0)
    return Image(logits, isometry, k, jnp.where(keep, u, 0), frame, mask, space)


def dimension_of(space: RowSpace) -> Int[Array, ""]:
    """Return the dimension of a row space; −1 for NaN, as `foliax.dimension` does."""
    finite = jnp.all(jnp.isfinite(space.basis))
    return jnp.where(finite, jnp.sum(space.mask, dtype=jnp.int32), -1)


def flat_logits(
    model: Model, x: Float[Array, "..."]
) -> Callable[[Float[Array, " n"]], Float[Array, " c"]]:
    """Return the logits as a function of the flat input, in the working dtype."""
    run = differentiable(model, x)
    dtype = working_dtype(x, jax.eval_shape(run, x))
    return lambda y: run(y.reshape(x.shape).astype(x.dtype)).astype(dtype)


def pushed(
    model: Model,
    x: Float[Array, "..."],
    y: Float[Array, " n"],
    vectors: Float[Array, "v n"],
    likelihood: Likelihood,
) -> tuple[Float[Array, " c"], Float[Array, "c v"]]:
    """Return the logits at the flat input y, shaped like x, and their derivatives along vectors.

    By transposed reverse passes, and differentiable in y: a layer with a `custom_vjp` has no JVP.
    """
    logits, pull = pullback(model, y.reshape(x.shape).astype(x.dtype), likelihood)
    return logits, jax.vmap(lambda v: pushforward(pull, logits, v), out_axes=1)(vectors)


def along(
    function: Callable[[Array], Array], x: Float[Array, "*n"], v: Float[Array, "*n"]
) -> Array:
    """Return the derivative of a function at x along v."""
    return jax.jvp(function, (x,), (v,))[1]


def centred(p: Float[Array, " c"], f: Float[Array, "c ..."]) -> Float[Array, "c ..."]:
    """Subtract the mean under p from functions on the classes: d log p from d s."""
    return f - jnp.tensordot(p, f, axes=1, precision="highest")


def check_categorical(likelihood: Likelihood, name: str) -> None:
    """Refuse another output distribution where u = 2 √p is used."""
    if not isinstance(likelihood, Categorical):
        raise ValueError(
            f"{name} needs the Categorical likelihood (it maps x to u = 2 √p), got "
            f"{type(likelihood).__name__}"
        )
