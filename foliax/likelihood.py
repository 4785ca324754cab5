"""The output distribution of a model: its Fisher metric at given logits, in factored form.

The metric on logits is S = L Lᵀ, and L = Bᵀ diag(weights) for rows B that are well scaled whatever
the probabilities are. Keeping the two apart lets a model pull B back without underflow.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float

from foliax._core.likelihood import Likelihood as Likelihood


class Categorical(eqx.Module):
    """The softmax distribution over C ≥ 2 classes.

    Its metric on logits is S = diag(p) − p pᵀ, of rank C − 1. Stick-breaking factors it in closed
    form: with the tail sums t_k = p_k + … + p_C, row k of B compares class k with the mean of the
    classes after it, e_k − Σ_{j>k} (p_j / t_{k+1}) e_j, and its weight is √(p_k t_{k+1} / t_k).
    Nothing is subtracted, so nothing cancels when p saturates.

    A logit of −∞ is a class that cannot occur. It is no direction of D, and everything is as in the
    model without that class, but that arrays have the shapes of C classes, the rest of them zero.
    The mask must say so to derivatives too: `jnp.where(mask, logits, -jnp.inf)` or a constant −∞
    added, and not log 0, whose derivative is NaN. Logits of +∞, of NaN, or all of −∞ are no
    distribution: a status is then invalid, a rank or dimension −1. On a walk, a class that cannot
    occur at the start and can elsewhere, or the reverse, is an edge where p jumps: what keeps p
    stops before it, and what would cross it is invalid.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> masked = lambda x: jnp.stack([x[0], -jnp.inf, x[1], 0 * x[0]])
        >>> int(foliax.dimension(masked, jnp.zeros(3))), int(foliax.rank(masked, jnp.zeros(3)))
        (2, 2)
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
        # −∞ would leave NaN gradients; exp(lowest / 2) is 0 as well, and three of it are a number.
        lowest = jnp.finfo(logits.dtype).min / 4
        log_p = jnp.maximum(jax.nn.log_softmax(logits), lowest)
        log_tail = lax.cumlogsumexp(log_p, reverse=True)
        squared = log_p[:-1] + log_tail[1:] - log_tail[:-1]
        after = np.triu(np.ones((log_p.size - 1, log_p.size), bool), 1)
        # Masked before exp: a mask after it leaves NaN gradients where the exponent overflows.
        exponent = jnp.where(after, log_p[None, :] - log_tail[1:, None], -jnp.inf)
        return jnp.exp(squared / 2), jnp.eye(*after.shape, dtype=logits.dtype) - jnp.exp(exponent)

    def possible(self, logits: Float[Array, " c"]) -> Bool[Array, " c"]:
        """Mark all classes but those at −∞; where all are, none is left that could be masked."""
        excluded = logits == -jnp.inf
        return ~excluded | jnp.all(excluded)

    def contrasts(self, logits: Float[Array, " c"]) -> Float[Array, "c-1 c"]:
        """Return the Helmert contrasts: an orthonormal basis of the vectors that sum to zero.

        Row k compares class k with the m classes before it that can occur. It is zero where class k
        cannot, or is the first that can; all are NaN where the logits are no distribution.
        """
        possible = self.possible(logits)
        j, k = np.arange(logits.size)[None, :], np.arange(1, logits.size)[:, None]
        # A sum over a mask and a root for each row: a running sum and a look-up take as long as a
        # whole projection of a small network.
        m = jnp.sum(jnp.where(j < k, possible, False), axis=1, keepdims=True, dtype=logits.dtype)
        over = lax.rsqrt(jnp.maximum(m * (m + 1), 1))
        rows = jnp.where(j < k, over, jnp.where(j == k, -m * over, 0))
        rows = jnp.where(possible & possible[1:, None], rows, 0)
        return jnp.where(jnp.all(jnp.isfinite(logits) | ~possible), rows, jnp.nan)

    def unit(self, logits: Float[Array, " c"]) -> Float[Array, " c"]:
        """Return ones: probabilities change by their own size where a logit changes by 1."""
        return jnp.ones_like(logits)

    def probabilities(self, logits: Float[Array, " c"]) -> Float[Array, " c"]:
        """Return p = softmax(logits)."""
        return jax.nn.softmax(logits)

    def embedding(self, logits: Float[Array, " c"]) -> Float[Array, "c c"]:
        """Return ∂u/∂s = diag(√p) − √p pᵀ of u = 2 √p, on the sphere of radius 2."""
        p = jax.nn.softmax(logits)
        return square_root(p)[:, None] * (jnp.eye(p.size, dtype=p.dtype) - p)

    def edge(self, logits: Float[Array, " c"]) -> Float[Array, ""]:
        """Return min p, among the classes that can occur."""
        return jnp.min(jnp.where(self.possible(logits), jax.nn.softmax(logits), jnp.inf))

    def kl(self, logits: Float[Array, " c"], change: Float[Array, " c"]) -> Float[Array, ""]:
        """Return Σ p_i φ(d_i) with d = log q − log p and φ(d) = d eᵈ − eᵈ + 1 ≥ 0.

        The terms are non-negative, unlike those of Σ q_i d_i, whose first order cancels. Where a
        class cannot occur in either, its change is 0; one of −∞ excludes a class, and one of ∞
        lets it in: KL = ∞.
        """
        log_p = jax.nn.log_softmax(logits)
        goes, comes = change == -jnp.inf, (change == jnp.inf) & (log_p == -jnp.inf)
        # A common shift of all logits is invisible.
        change = change - change[jnp.argmax(jnp.where(goes, -jnp.inf, log_p))]
        d = jnp.where(goes, 0, change - _log_mean_exp(log_p, change))
        terms = jnp.where(goes, jnp.exp(log_p), _weighted_phi(log_p, d))
        return jnp.where(jnp.any(comes), jnp.inf, jnp.sum(terms))


class Bernoulli(eqx.Module):
    """C ≥ 1 independent yes-or-no labels, the model giving the log-odds of each.

    Its metric on logits is diag(p (1 − p)), p = σ(s), of rank C: nothing is centred, and a common
    shift of all logits is seen. D is the row space of J itself, of dimension ≤ C. Log-odds are
    finite: one of ±∞, of a label that is certain, weighs nothing in G, but walks of it are invalid;
    leave such a label out.

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

    def possible(self, logits: Float[Array, " c"]) -> Bool[Array, " c"]:
        """Mark all labels."""
        return jnp.ones(logits.shape, bool)

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
    probabilities are compared (`Path.probability_change`), here it is the means.

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

    def __check_init__(self):
        # Not run when a transformation rebuilds the pytree, whose leaves may be anything.
        if isinstance(self.scale, Tracer):
            return
        if not np.all((np.asarray(self.scale) > 0) & np.isfinite(self.scale)):
            raise ValueError(f"scale must be finite and > 0, got {self.scale}")

    def factor(self, logits: Float[Array, " c"]) -> tuple[Float[Array, " c"], Float[Array, "c c"]]:
        """Return the weights 1 / scale, and the identity."""
        weights = jnp.broadcast_to(1 / jnp.asarray(self.scale, logits.dtype), logits.shape)
        return weights, jnp.eye(logits.size, dtype=logits.dtype)

    def possible(self, logits: Float[Array, " c"]) -> Bool[Array, " c"]:
        """Mark all outputs."""
        return jnp.ones(logits.shape, bool)

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


def included(likelihood: Likelihood, logits: Float[Array, " c"]) -> Float[Array, " c"]:
    """Return the logits with 0 in the place of those of classes that cannot occur."""
    return jnp.where(likelihood.possible(logits), logits, 0)


def is_valid(likelihood: Likelihood, logits: Float[Array, " c"]) -> Bool[Array, ""]:
    """Tell whether the logits are those of a distribution."""
    return jnp.all(jnp.isfinite(included(likelihood, logits)))


def logit_change(
    likelihood: Likelihood, before: Float[Array, " c"], after: Float[Array, " c"]
) -> Float[Array, " c"]:
    """Return after − before: 0 for classes that cannot occur in either, ±∞ in one alone, or NaN."""
    here, there = likelihood.possible(before), likelihood.possible(after)
    difference = jnp.where(here | there, after - before, 0)
    return jnp.where(jnp.isfinite(after) | ~there, difference, jnp.nan)


def contrast_change(
    likelihood: Likelihood, before: Float[Array, " c"], after: Float[Array, " c"]
) -> Float[Array, " r"]:
    """Return the contrasts of the change of logits, which kernel leaves conserve.

    They are ∞ where a class can occur in one alone: no step across keeps p.
    """
    alike = jnp.all(likelihood.possible(before) == likelihood.possible(after))
    rows = likelihood.contrasts(before)
    product = jnp.matmul(
        rows, logit_change(likelihood, before, after), precision=lax.Precision.HIGHEST
    )
    return jnp.where(alike, product, jnp.inf)


def square_root(p: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return √p, with derivative 0 at p = 0."""
    there = ~(p == 0)  # a NaN goes on
    return jnp.where(there, jnp.sqrt(jnp.where(there, p, 1)), 0)


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
