"""The usual attacks, which need the gradient alone: in one step, and projected, in several."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from foliax import Box

_TINY = 1e-30  # a radius that is not 0: in a ball of radius 0 optax's projection divides by 0


def doubt(model: Any, x: Array, label: Any) -> Array:
    """Return log((1 − p) / p) of the label: it rises with the loss, and its slope never fades."""
    logits = model(x)
    others = jnp.where(jnp.arange(logits.size) == label, -jnp.inf, logits)
    return jax.nn.logsumexp(others) - logits[label]


def _inside(x: Array, box: Box | None) -> Array:
    return x if box is None else box.clip(x)


def _unit(v: Array) -> Array:
    v = v / jnp.maximum(jnp.max(jnp.abs(v)), jnp.finfo(v.dtype).tiny)
    return v / jnp.maximum(jnp.linalg.norm(v.ravel()), 1)  # the largest entry is 1, or all are 0


def fast_gradient(
    model: Any, x: Array, budget: Any, *, label: Any = None, signs: bool = False,
    box: Box | None = None,
) -> Array:  # fmt: skip
    """Return x moved by the budget against the gradient, or against its signs (FGSM).

    Source: Goodfellow, Shlens & Szegedy 2015, *Explaining and harnessing adversarial examples*.
    """
    label = jnp.argmax(model(x)) if label is None else label
    slope = jax.grad(doubt, argnums=1)(model, x, label)
    return _inside(x + budget * _unit(jnp.sign(slope) if signs else slope), box)


def projected_gradient(
    model: Any, x: Array, budget: Any, *, label: Any = None, num_steps: int = 20,
    step: float = 0.25, box: Box | None = None,
) -> Array:  # fmt: skip
    """Return the point at which the label is least probable, of a path in a ball around x (PGD).

    Each step, of `step` times the budget, is projected on the ball and clipped to the box.

    Source: Madry, Makelov, Schmidt, Tsipras & Vladu 2018, *Towards deep learning models resistant
    to adversarial attacks*.
    """
    label = jnp.argmax(model(x)) if label is None else label

    def move(y: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        ahead = y + step * budget * _unit(jax.grad(doubt, argnums=1)(model, y, label)) - x
        inside = optax.projections.projection_l2_ball(ahead, jnp.maximum(budget, _TINY))
        y = _inside(x + jnp.where(budget > 0, inside, 0), box)
        return y, (y, doubt(model, y, label))

    _, (points, doubts) = lax.scan(move, x, length=num_steps)
    return points[jnp.argmax(doubts)]
