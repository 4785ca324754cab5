"""The output distribution of a model: its Fisher metric at given logits, in factored form.

The metric on logits is S = L Lᵀ, and L = Bᵀ diag(weights) for rows B that are well scaled whatever
the probabilities are. Keeping the two apart lets a model pull B back without underflow.
"""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


@runtime_checkable
class Likelihood(Protocol):
    """What the geometry asks of an output distribution."""

    def check(self, num_logits: int) -> None:
        """Raise ValueError if the distribution cannot have this many logits."""
        ...

    def factor(self, logits: Float[Array, " c"]) -> tuple[Float[Array, " r"], Float[Array, "r c"]]:
        """Return (weights, rows) with metric = rowsᵀ diag(weights²) rows."""
        ...

    def contrasts(self, logits: Float[Array, " c"]) -> Float[Array, "r c"]:
        """Return orthonormal rows spanning the functions of the logits the distribution sees."""
        ...

    def probabilities(self, logits: Float[Array, " c"]) -> Float[Array, " c"]:
        """Return what is conserved along kernel leaves, as numbers to compare."""
        ...

    def kl(self, logits: Float[Array, " c"], change: Float[Array, " c"]) -> Float[Array, ""]:
        """Return KL(p(logits + change) ‖ p(logits)), summed without cancellation."""
        ...


class Categorical(eqx.Module):
    """The softmax distribution over C ≥ 2 classes.

    Its metric on logits is S = diag(p) − p pᵀ, of rank C − 1. Stick-breaking factors it in closed
    form: with the tail sums t_k = p_k + … + p_C, row k of B compares class k with the mean of the
    classes after it, e_k − Σ_{j>k} (p_j / t_{k+1}) e_j, and its weight is √(p_k t_{k+1} / t_k).
    Nothing is subtracted, so nothing cancels when p saturates.
    """

    def check(self, num_logits: int) -> None:
        """Refuse fewer than two classes."""
        if num_logits < 2:
            raise ValueError(
                "model must return C >= 2 logits for a Categorical likelihood, got "
                f"C = {num_logits}; write a binary classifier's one logit z as (0, z)"
            )

    def factor(
        self, logits: Float[Array, " c"]
    ) -> tuple[Float[Array, " c-1"], Float[Array, "c-1 c"]]:
        """Return the stick-breaking weights and rows, computed in log space."""
        log_p = jax.nn.log_softmax(logits)
        log_tail = lax.cumlogsumexp(log_p, reverse=True)
        there = jnp.isfinite(log_tail)  # an excluded class, with a logit of −inf, weighs nothing
        log_tail = jnp.where(there, log_tail, 0)
        squared = jnp.where(there[1:], log_p[:-1] + log_tail[1:] - log_tail[:-1], -jnp.inf)
        after = np.triu(np.ones((log_p.size - 1, log_p.size), bool), 1) & there[1:, None]
        # Masked before exp: a mask after it leaves NaN gradients where the exponent overflows.
        exponent = jnp.where(after, log_p[None, :] - log_tail[1:, None], -jnp.inf)
        return jnp.exp(squared / 2), jnp.eye(*after.shape, dtype=logits.dtype) - jnp.exp(exponent)

    def contrasts(self, logits: Float[Array, " c"]) -> Float[Array, "c-1 c"]:
        """Return the Helmert contrasts: an orthonormal basis of the vectors that sum to zero."""
        num_classes = logits.size
        k = np.arange(1, num_classes)[:, None]
        j = np.arange(num_classes)[None, :]
        rows = np.where(j < k, 1.0, np.where(j == k, -k, 0.0)) / np.sqrt(k * (k + 1.0))
        return jnp.asarray(rows, dtype=logits.dtype)

    def probabilities(self, logits: Float[Array, " c"]) -> Float[Array, " c"]:
        """Return p = softmax(logits)."""
        return jax.nn.softmax(logits)

    def kl(self, logits: Float[Array, " c"], change: Float[Array, " c"]) -> Float[Array, ""]:
        """Return Σ p_i φ(d_i) with d = log q − log p and φ(d) = d eᵈ − eᵈ + 1 ≥ 0.

        The terms are non-negative, unlike those of Σ q_i d_i, whose first order cancels.
        """
        log_p = jax.nn.log_softmax(logits)
        change = change - change[jnp.argmax(log_p)]  # a common shift of all logits is invisible
        d = change - _log_mean_exp(log_p, change)
        return jnp.sum(_weighted_phi(log_p, d))


def _log_mean_exp(log_p: Float[Array, " c"], change: Float[Array, " c"]) -> Float[Array, ""]:
    """Return log Σ p_i exp(change_i), accurate also where the changes are small."""
    small = jnp.max(jnp.abs(change)) < 1
    near = jnp.log1p(jnp.sum(jnp.exp(log_p) * jnp.expm1(jnp.where(small, change, 0))))
    return jnp.where(small, near, jax.nn.logsumexp(log_p + change))


def _weighted_phi(log_p: Float[Array, " c"], d: Float[Array, " c"]) -> Float[Array, " c"]:
    """Return p (d eᵈ − eᵈ + 1): by its series Σ_{k≥2} (k−1) dᵏ / k! near d = 0."""
    small = jnp.abs(d) < 0.25
    near = jnp.where(small, d, 0)
    series = jnp.zeros_like(near)
    for k in range(12, 1, -1):  # 0.25^12 / 12! is below float64 rounding of the leading term
        series = series * near + (k - 1) / float(np.prod(np.arange(1.0, k + 1)))
    far = jnp.where(small, 1, d)
    # p eᵈ = q is formed in log space: eᵈ alone overflows where p underflows.
    direct = jnp.exp(log_p + far) * (far - 1) + jnp.exp(log_p)
    return jnp.where(small, jnp.exp(log_p) * series * near**2, direct)
