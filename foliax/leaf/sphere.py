"""Great circles of √p, in closed form and without cancellation.

Between p and q, with α the angle between √p and √q, the circle is

    √p_t = (sin((1 − t) α) √p + sin(t α) √q) / sin α,

a sum of positive terms. Only log-probabilities relative to those of the start are kept.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from foliax._linalg.products import norm
from foliax.likelihood import Categorical, _log_mean_exp, square_root

_EDGE = 1e-3  # a circle that leaves the simplex stops at this share of the distance to its edge


class Circle(eqx.Module):
    """An arc of a great circle of √p, inside the simplex.

    Attributes:
        change: (C,) d = log q − log p, from the first to the last point of the arc.
        angle: α, half its length in G's metric.
        reach: The time t at which it ends: 1, or less where the circle leaves the simplex before.
        left: Whether it does.
    """

    change: Float[Array, " c"]
    angle: Float[Array, ""]
    reach: Float[Array, ""]
    left: Bool[Array, ""]

    @property
    def length(self) -> Float[Array, ""]:
        """Its length in G's metric."""
        return 2 * self.angle

    def time(self, tau: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return the time t at the parameter τ in [0, 1] whose equal steps change logits evenly."""
        return self.reach * _warp(tau, self._spread)

    def offsets(self, tau: Float[Array, ""]) -> Float[Array, " c"]:
        """Return log p_t − log p at the parameter τ of the arc."""
        t, rest = (_warp(s, self._spread) for s in (tau, 1 - tau))
        angle = jnp.maximum(self.angle, 1e-12)  # below, sin(tα) / sin α = t to rounding
        first, last = jnp.sin(rest * angle) / jnp.sin(angle), jnp.sin(t * angle) / jnp.sin(angle)
        most = jnp.maximum(self.change / 2, 0)
        inside = first * jnp.exp(-most) + last * jnp.exp(self.change / 2 - most)
        return 2 * (jnp.log(inside) + most)

    @property
    def _spread(self) -> Float[Array, ""]:
        return jnp.clip(jnp.max(jnp.abs(self.change)) / 2, 1e-3, 80)  # sinh of 80 is a float32


def circle_between(logits: Float[Array, " c"], target: Float[Array, " c"]) -> Circle:
    """Return the arc from softmax(logits) to softmax(target)."""
    change, _, angle = separation(logits, target)
    # A class excluded at one end alone: the other end is on the edge, which no logits reach.
    inside = jnp.all(jnp.isfinite(logits) == jnp.isfinite(target))
    angle = jnp.where(inside, angle, jnp.nan)
    return Circle(change, angle, jnp.ones_like(angle), jnp.zeros((), bool))


def circle_from(logits: Float[Array, " c"], slope: Float[Array, " c"]) -> Circle:
    """Return the arc from softmax(logits) with d log p / dt = slope, up to t = 1.

    √p_t = √p · (cos ωt + (slope / 2ω) sin ωt), ω = ½ √(Σ p slope²), which leaves the simplex where
    the first factor vanishes.
    """
    p = jax.nn.softmax(logits)
    slope = jnp.where(Categorical().possible(logits), slope, 0)
    rate = square_root(jnp.sum(p * slope**2)) / 2
    moving = ~(rate == 0)  # a NaN propagates
    safe = jnp.where(moving, rate, 1)
    edge = jnp.where(moving, jnp.min(jnp.arctan2(2 * rate, -slope)) / safe, jnp.inf)
    left = edge * (1 - _EDGE) < 1
    reach = jnp.where(left, edge * (1 - _EDGE), 1)
    turned = rate * reach
    factors = jnp.cos(turned) + slope * jnp.sin(turned) / (2 * safe)
    factors = jnp.where(moving & Categorical().possible(logits), factors, 1)
    return Circle(2 * jnp.log(factors), turned, reach, left)


def separation(
    logits: Float[Array, " c"], target: Float[Array, " c"]
) -> tuple[Float[Array, " c"], Float[Array, " c"], Float[Array, ""]]:
    """Return log q − log p, √q − √p and the angle between them, accurate also where p is near q."""
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(target)
    both = jnp.isfinite(log_p) & jnp.isfinite(log_q)
    alike = jnp.all(jnp.isfinite(log_p) == jnp.isfinite(log_q))
    # From the change of the logits, of which the common part is taken off without cancellation.
    change = jnp.where(both, target - logits, 0)
    change = change - change[jnp.argmax(log_p)]
    safe_p = jnp.where(alike, log_p, -jnp.log(float(log_p.size)))
    relative = jnp.where(alike, change - _log_mean_exp(safe_p, change), log_q - log_p)
    d = jnp.where(both, relative, 0)
    # Of both square roots the greater is the factor, so that no exponential overflows.
    greater = jnp.exp(jnp.maximum(log_p, log_q) / 2)
    difference = jnp.where(both, jnp.sign(d) * -jnp.expm1(-jnp.abs(d) / 2), jnp.sign(log_q - log_p))
    difference = greater * jnp.where(greater > 0, difference, 0)  # excluded from both: no change
    return d, difference, 2 * jnp.arcsin(jnp.minimum(norm(difference) / 2, jnp.sqrt(0.5)))


def _warp(tau: Float[Array, "..."], spread: Float[Array, ""]) -> Float[Array, "..."]:
    """Return t in [0, 1] whose log-odds run evenly from −spread to spread; t(1 − τ) = 1 − t(τ).

    The logits change like the log-odds of t near the ends of an arc: without this a class that
    is lost, e.g. from e⁻¹ to e⁻⁶⁰, would be lost in the last step.
    """
    return (jnp.sinh(tau * spread) / jnp.sinh(spread)) * (
        jnp.cosh(spread / 2) / jnp.cosh((tau - 0.5) * spread)
    )
