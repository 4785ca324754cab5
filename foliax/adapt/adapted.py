"""The callable pytree that an adapted model is."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from foliax._core.compile import NOT_TRACEABLE
from foliax._core.fixed import Fixed
from foliax.adapt.network import Network, output_of
from foliax.adapt.output import Form, as_logits, fits, kind, picked

_BATCH = 7  # of the batch with which a network is tried; few networks have 7 of anything else
EMBED_FIRST = "embed first: G differentiates with respect to x"


class Adapted(eqx.Module):
    """A model of any library as a pytree, called with one input and returning C logits.

    Made by `adapt`. Its leaves are arrays alone, those of the network, so it passes through
    `jax.jit`, `jax.vmap` and every function of foliax as an argument.

    Attributes:
        network: The network with its weights, called as its library calls it.
        form: How it takes its input, and what of its output are the logits.
        layer: The layer whose output the input stands for, or None.
        at_layer: With a layer, the input that the rest of the network sees, and `hidden`.
    """

    network: Network
    form: Form = eqx.field(static=True)
    layer: str | None = eqx.field(static=True, default=None)
    at_layer: Fixed | None = None

    @property
    def hidden(self) -> Float[Array, "..."] | None:
        """With a layer, its output at the input given: where to start from."""
        return None if self.at_layer is None else self.at_layer.value[1]

    def __call__(self, x: ArrayLike) -> Float[Array, " c"]:
        """Return the logits of one input.

        Raises:
            ValueError: If x is no array of floating-point numbers, or the network returns no
                logits for it, alone or in a batch.
        """
        x = _as_input(x)
        if self.layer is not None:
            return self._from_layer(x)
        if self.form.channels == "first":
            x = jnp.moveaxis(x, -1, 0)
        batched = self.form.batched
        if batched is None:
            batched = is_batched(self.network, self.form, x)
        out = output_of(self.network, x[None] if batched else x)
        return self._logits(out, batched)

    def _from_layer(self, h: Float[Array, "..."]) -> Float[Array, " c"]:
        assert self.layer is not None
        assert self.at_layer is not None
        given, hidden = self.at_layer.value
        if h.shape != hidden.shape:
            raise ValueError(
                f"x must have the shape of what {self.layer!r} returns, {hidden.shape}, "
                f"got {h.shape}; start from model.hidden"
            )
        batched = bool(self.form.batched)
        h = h[None] if batched else h
        with self.network.changed(self.layer, lambda _: h) as network:
            return self._logits(output_of(network, given), batched)

    def _logits(self, out: Any, batched: bool) -> Float[Array, " c"]:
        out = picked(out, self.form.logits)
        if not fits(out, self.form, (1,) if batched else ()):
            raise ValueError(
                f"model must return {_wanted(self.form)} of one input, got {kind(out)}"
                f"{' for a batch of one' if batched else ''}; pick them out by logits=…"
            )
        return as_logits(out[0] if batched else out, self.form.output)


def _as_input(x: ArrayLike) -> Float[Array, "..."]:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be a floating-point array, got dtype {x.dtype}; {EMBED_FIRST}")
    return x


def _wanted(form: Form) -> str:
    return {"logits": "C logits", "logit": "one logit"}.get(form.output, "probabilities")


def is_batched(network: Network, form: Form, x: Any) -> bool:
    """Return whether a network takes its inputs in batches, found by tracing it."""
    leaves, treedef = jax.tree.flatten(network)
    return _is_batched(treedef, tuple(map(_struct, leaves)), form, _struct(x))


def _struct(leaf: Any) -> Any:
    """Return the shape and dtype of an array, and anything else as it is."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if eqx.is_array(leaf) else leaf


@functools.lru_cache(maxsize=256)
def _is_batched(treedef: Any, leaves: tuple[Any, ...], form: Form, x: Any) -> bool:
    network = jax.tree.unflatten(treedef, leaves)
    leads = ((), (_BATCH,), (1,)) if form.one_first else ((_BATCH,), (), (1,))
    found: list[str] = []
    errors: list[Exception] = []

    def call(lead: tuple[int, ...], dtype: Any) -> Any:
        blank = jax.ShapeDtypeStruct((*lead, *x.shape), dtype)

        return eqx.filter_eval_shape(
            lambda n, y: picked(output_of(n, y), form.logits), network, blank
        )

    for lead in leads:
        try:
            out = call(lead, x.dtype)
        except NOT_TRACEABLE:
            raise
        except Exception as error:  # each library has its own
            errors.append(error)
            continue
        if fits(out, form, lead):
            return bool(lead)
        found.append(f"{kind(out)} for {'one input' if not lead else f'a batch of {lead[0]}'}")
    if not found and _takes_integers(call, leads):
        raise ValueError(
            f"model takes whole numbers, and x are those of tokens: {EMBED_FIRST}, or name the "
            "layer that embeds, adapt(model, at=…, given=tokens)"
        )
    if errors and not found:
        errors[0].add_note(
            f"adapt called the network with x of shape {x.shape}, {x.dtype}, alone and in a batch"
        )
        raise errors[0]
    raise ValueError(
        f"model must return {_wanted(form)} of one input, or of each in a batch, got "
        f"{', '.join(found)}; pick the logits out by logits=…, or say batched=True or False"
    )


def _takes_integers(call: Callable[..., Any], leads: tuple[tuple[int, ...], ...]) -> bool:
    for lead in leads:
        try:
            call(lead, jnp.int32)
        except Exception:
            continue
        return True
    return False
