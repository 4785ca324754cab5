"""The output distribution of a model: its Fisher metric at given logits, in factored form.

The metric on logits is S = L Lᵀ, and L = Bᵀ diag(weights) for rows B that are well scaled whatever
the probabilities are. Keeping the two apart lets a model pull B back without underflow.
"""

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float


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
        """Return orthogonal rows spanning the functions of the logits the distribution sees.

        A contrast of 1 is a change that the distribution shows, in whatever units the logits are.
        """
        ...

    def unit(self, logits: Float[Array, " c"]) -> Float[Array, " c"]:
        """Return the change of each logit that the distribution shows: 1, or its standard deviation."""
        ...

    def probabilities(self, logits: Float[Array, " c"]) -> Float[Array, " c"]:
        """Return what is conserved along kernel leaves, as numbers to compare."""
        ...

    def embedding(self, logits: Float[Array, " c"]) -> Float[Array, "e c"]:
        """Return M = ∂u/∂s of an isometric image u of the distributions: metric = MᵀM."""
        ...

    def edge(self, logits: Float[Array, " c"]) -> Float[Array, ""]:
        """Return the least probability, 0 at the edge of the distributions; ∞ if there is none."""
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
        there = log_tail != -jnp.inf  # an excluded class, with a logit of −inf, weighs nothing
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

    def unit(self, logits: Float[Array, " c"]) -> Float[Array, " c"]:
        """Return ones: probabilities change by their own size where a logit changes by 1."""
        return jnp.ones_like(logits)

    def probabilities(self, logits: Float[Array, " c"]) -> Float[Array, " c"]:
        """Return p = softmax(logits)."""
        return jax.nn.softmax(logits)

    def embedding(self, logits: Float[Array, " c"]) -> Float[Array, "c c"]:
        """Return ∂u/∂s = diag(√p) − √p pᵀ of u = 2 √p, on the sphere of radius 2."""
        p = jax.nn.softmax(logits)
        return jnp.sqrt(p)[:, None] * (jnp.eye(p.size, dtype=p.dtype) - p)

    def edge(self, logits: Float[Array, " c"]) -> Float[Array, ""]:
        """Return min p."""
        return jnp.min(jax.nn.softmax(logits))

    def kl(self, logits: Float[Array, " c"], change: Float[Array, " c"]) -> Float[Array, ""]:
        """Return Σ p_i φ(d_i) with d = log q − log p and φ(d) = d eᵈ − eᵈ + 1 ≥ 0.

        The terms are non-negative, unlike those of Σ q_i d_i, whose first order cancels.
        """
        log_p = jax.nn.log_softmax(logits)
        change = change - change[jnp.argmax(log_p)]  # a common shift of all logits is invisible
        d = change - _log_mean_exp(log_p, change)
        return jnp.sum(_weighted_phi(log_p, d))


class Bernoulli(eqx.Module):
    """C ≥ 1 independent yes-or-no labels, the model giving the log-odds of each.

    Its metric on logits is diag(p (1 − p)), p = σ(s), of rank C: nothing is centred, and a common
    shift of all logits is seen. D is the row space of J itself, of dimension ≤ C.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> odds = lambda x: jnp.stack([x[0], 2 * x[0] + x[1]])
        >>> foliax.matrix(odds, jnp.zeros(2), likelihood=foliax.Bernoulli()).tolist()
        [[1.25, 0.5], [0.5, 0.25]]
    """

    def check(self, num_logits: int) -> None:
        """Refuse a model without logits."""
        _check_some(num_logits, self)

    def factor(self, logits: Float[Array, " c"]) -> tuple[Float[Array, " c"], Float[Array, "c c"]]:
        """Return the weights √(p (1 − p)), computed in log space, and the identity."""
        half = (jax.nn.log_sigmoid(logits) + jax.nn.log_sigmoid(-logits)) / 2
        return jnp.exp(half), jnp.eye(logits.size, dtype=logits.dtype)

    def contrasts(self, logits: Float[Array, " c"]) -> Float[Array, "c c"]:
        """Return the identity: every logit is seen."""
        return jnp.eye(logits.size, dtype=logits.dtype)

    def unit(self, logits: Float[Array, " c"]) -> Float[Array, " c"]:
        """Return ones: probabilities change by their own size where a logit changes by 1."""
        return jnp.ones_like(logits)

    def probabilities(self, logits: Float[Array, " c"]) -> Float[Array, " c"]:
        """Return p = σ(logits), one a label."""
        return jax.nn.sigmoid(logits)

    def embedding(self, logits: Float[Array, " c"]) -> Float[Array, "c c"]:
        """Return ∂u/∂s = diag √(p (1 − p)) of the angles u = 2 arcsin √p: the metric is flat."""
        return jnp.diag(self.factor(logits)[0])

    def edge(self, logits: Float[Array, " c"]) -> Float[Array, ""]:
        """Return the least of all p and 1 − p."""
        return jax.nn.sigmoid(-jnp.max(jnp.abs(logits)))

    def kl(self, logits: Float[Array, " c"], change: Float[Array, " c"]) -> Float[Array, ""]:
        """Return the sum of the labels' divergences, each that of two classes."""

        def one(logit: Array, step: Array) -> Array:
            zero = jnp.zeros_like(logit)
            return Categorical().kl(jnp.stack([zero, logit]), jnp.stack([zero, step]))

        return jnp.sum(jax.vmap(one)(logits, change))


class Gaussian(eqx.Module):
    """C ≥ 1 real outputs: the model gives the means, each with a known standard deviation.

    Its metric on the means is diag(1 / scale²): G = Jᵀ diag(1 / scale²) J. Where a classifier's
    probabilities are compared (`Path.drift`), here it is the means.

    Attributes:
        scale: Standard deviation of the outputs, > 0: a number, or one for each.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> mean = lambda x: jnp.stack([x[0] * x[1]])
        >>> point = jnp.array([1.0, 3.0])
        >>> foliax.matrix(mean, point, likelihood=foliax.Gaussian(2.0)).tolist()
        [[2.25, 0.75], [0.75, 0.25]]
    """

    scale: ArrayLike = 1.0

    def check(self, num_logits: int) -> None:
        """Refuse a model without outputs, and a scale that does not fit them."""
        _check_some(num_logits, self)
        if jnp.shape(self.scale) not in ((), (num_logits,)):
            raise ValueError(
                f"scale must be a number or have shape ({num_logits},), one for each output, got "
                f"{jnp.shape(self.scale)}"
            )
        if isinstance(self.scale, Tracer):
            return
        if not np.all((np.asarray(self.scale) > 0) & np.isfinite(self.scale)):
            raise ValueError(f"scale must be finite and > 0, got {self.scale}")

    def factor(self, logits: Float[Array, " c"]) -> tuple[Float[Array, " c"], Float[Array, "c c"]]:
        """Return the weights 1 / scale, and the identity."""
        weights = jnp.broadcast_to(1 / jnp.asarray(self.scale, logits.dtype), logits.shape)
        return weights, jnp.eye(logits.size, dtype=logits.dtype)

    def contrasts(self, logits: Float[Array, " c"]) -> Float[Array, "c c"]:
        """Return diag(1 / scale): every output is seen, in its standard deviations."""
        return jnp.diag(self.factor(logits)[0])

    def unit(self, logits: Float[Array, " c"]) -> Float[Array, " c"]:
        """Return the standard deviations."""
        return jnp.broadcast_to(jnp.asarray(self.scale, logits.dtype), logits.shape)

    def probabilities(self, logits: Float[Array, " c"]) -> Float[Array, " c"]:
        """Return the means: what is conserved along kernel leaves."""
        return logits

    def embedding(self, logits: Float[Array, " c"]) -> Float[Array, "c c"]:
        """Return ∂u/∂s of u = means / scale: the metric is flat."""
        return jnp.diag(self.factor(logits)[0])

    def edge(self, logits: Float[Array, " c"]) -> Float[Array, ""]:
        """Return ∞: there is no edge."""
        return jnp.asarray(jnp.inf, logits.dtype)

    def kl(self, logits: Float[Array, " c"], change: Float[Array, " c"]) -> Float[Array, ""]:
        """Return ½ Σ (change / scale)²."""
        weights, _ = self.factor(logits)
        return jnp.sum((weights * change) ** 2) / 2


def _check_some(num_logits: int, likelihood: Any) -> None:
    if num_logits < 1:
        raise ValueError(
            f"model must return C >= 1 outputs for a {type(likelihood).__name__} likelihood, got "
            f"C = {num_logits}"
        )


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
