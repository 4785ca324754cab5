"""The Fisher information F(x, w) on the weights: the same construction as G, in w.

    F(x, w) = Σ_i p_i ∇_w log p_i ∇_w log p_iᵀ = J_wᵀ S J_w = A_wᵀ A_w

F is |w| × |w| and never formed: everything is a product with J_w and one with its transpose, or
goes through the factor A_w of C − 1 rows. Functions take `(model, x, …)`, as those of G do. The
model must hold its weights in its pytree:

- an NNX module: they are its `nnx.Param` state; BatchNorm statistics are none;
- any other pytree, as an Equinox module or `jax.tree_util.Partial(apply, params)`: its inexact
  arrays, `equinox.filter(model, equinox.is_inexact_array)`.

Vectors of weights (`v`, `delta`, `b`) are pytrees of that structure, as gradients are; a whole
model of the same structure stands for its weights. What is returned has that structure too.
"""

from foliax.fisher.metric import eigh, factor, kl, matvec, quadratic, trace
from foliax.fisher.natural import NaturalGradientState, Solve, natural_gradient, solve

__all__ = [
    "NaturalGradientState",
    "Solve",
    "eigh",
    "factor",
    "kl",
    "matvec",
    "natural_gradient",
    "quadratic",
    "solve",
    "trace",
]
