"""From what a network returns to a vector of logits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from foliax._core.checks import is_traced

Pick = str | int | Callable[[Any], Any] | None


@dataclass(frozen=True)
class Form:
    """How a network takes its input and gives its logits.

    Attributes:
        channels: "first" moves the last axis of x to the front.
        logits: What of the output are the logits: a name, an index or a function; None for an
            array, or for what is called "logits".
        output: "logits", "probabilities" or "logit".
        one_first: Whether one input without a batch axis is tried first.
        batched: Whether the network takes batches; None to find out.
    """

    channels: str | None
    logits: Pick
    output: str
    one_first: bool = False
    batched: bool | None = None


def picked(out: Any, pick: Pick) -> Any:
    """Return the part of an output that is the logits, in whatever library."""
    if callable(pick):
        return pick(out)
    if pick is None:
        named = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", None)
        return out if named is None else named
    try:
        if isinstance(pick, str) and not isinstance(out, Mapping):
            return getattr(out, pick)
        return out[pick]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"logits={pick!r} is not in what the model returns, {kind(out)}"
        ) from error


def kind(out: Any) -> str:
    """Say what an output is: an array of a shape, or something with parts."""
    if isinstance(out, Mapping):
        return f"a {type(out).__name__} with {', '.join(map(repr, out))}"
    if isinstance(out, list | tuple):
        return f"a {type(out).__name__} of {len(out)}"
    if hasattr(out, "shape"):
        return f"an array of shape {tuple(out.shape)}"
    return f"a {type(out).__name__}"


def fits(out: Any, form: Form, lead: tuple[int, ...]) -> bool:
    """Tell whether this is what a network returns for inputs with these leading axes."""
    shape = getattr(out, "shape", None)
    if shape is None or not jnp.issubdtype(out.dtype, jnp.floating):
        return False
    if form.output != "logits" and shape in (lead, (*lead, 1)):
        return True
    return form.output != "logit" and len(shape) == len(lead) + 1 and shape[:-1] == lead


def as_logits(out: Float[Array, "..."], output: str) -> Float[Array, " c"]:
    """Return a vector of logits for what a network says of one input.

    Of probabilities it is log p, and of one probability p or one log-odds z that of the classes
    "no" and "yes", (log(1 − p), log p) and (0, z).
    """
    if output == "logits":
        return out
    if out.size == 1:
        one = out.reshape(())
        both = (0 * one, one) if output == "logit" else (_log(1 - one), _log(one))
        return jnp.stack(both)
    return _log(out)


def _log(p: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return log p, and for p = 0 that of the least number: −∞ would be a class left out."""
    return jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))


def check_one_device(weights: Any) -> None:
    """Refuse weights that lie on several devices and are not shared among them."""
    leaves = [leaf for leaf in jax.tree.leaves(weights) if isinstance(leaf, jax.Array)]
    places = {frozenset(leaf.devices()) for leaf in leaves if not is_traced(leaf)}
    if len(places) > 1:
        named = "; ".join(sorted(", ".join(sorted(map(str, place))) for place in places))
        raise ValueError(
            f"model must lie on one device, got weights on {named}; move it by jax.device_put"
        )
