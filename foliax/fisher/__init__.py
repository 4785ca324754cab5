"""The Fisher information F(x, w) on the parameters: the same construction as G, in w.

    F(x, w) = Σ_i p_i ∇_w log p_i ∇_w log p_iᵀ = J_wᵀ S J_w

F is |w| × |w| and never formed: everything is a product with J_w and one with its transpose. The
model is split here into `apply(params, x) -> logits` and `params`, any pytree of floating arrays.
From an NNX module, `graphdef, params, rest = nnx.split(model, nnx.Param, ...)` splits parameters
from BatchNorm statistics, and `apply = lambda params, x: nnx.merge(graphdef, params, rest)(x)`.
"""

from foliax.fisher.metric import (
    NaturalGradientState,
    Solve,
    kl,
    matvec,
    natural_gradient,
    quadratic,
    solve,
)

__all__ = [
    "NaturalGradientState",
    "Solve",
    "kl",
    "matvec",
    "natural_gradient",
    "quadratic",
    "solve",
]
