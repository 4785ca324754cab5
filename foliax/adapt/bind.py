"""The one door: from a model of any library to the callable pytree that every function takes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from foliax._core.checks import check_choice, check_key
from foliax._core.fixed import Fixed
from foliax.adapt import equinox, function, haiku
from foliax.adapt.adapted import Adapted, is_batched
from foliax.adapt.network import Network, output_of
from foliax.adapt.output import Form, Pick, check_one_device

if TYPE_CHECKING:
    Output = Literal["logits", "probabilities", "logit"]
    Channels = Literal["first"] | None
else:
    Output = Channels = Any

_OUTPUTS = ("logits", "probabilities", "logit")


def adapt(
    model: Any,
    *weights: Any,
    batched: bool | None = None,
    channels: Channels = None,
    logits: Pick = None,
    output: Output = "logits",
    key: Any = None,
    options: Mapping[str, Any] | None = None,
    at: str | None = None,
    given: Any = None,
) -> Adapted:
    """Return a model of any library as the callable pytree that every function takes.

    | library | call |
    |---|---|
    | Flax NNX | `adapt(model)`, after `model.eval()` |
    | Flax Linen | `adapt(module, variables)` |
    | Equinox | `adapt(model)`, or `adapt(model, state)`; put into inference mode |
    | Haiku | `adapt(transformed.apply, params)`, or `adapt(transformed.apply, params, state)` |
    | Keras 3 on JAX | `adapt(model)`, once built |
    | PyTorch | `adapt(model)`, after `model.eval()`; needs the extra `torch` |
    | any function | `adapt(function, weights)`, called as `function(weights, x)` |

    The weights are leaves of what is returned, as they are now: training the model later does not
    change them. Flags such as `train` or `deterministic` are set to evaluation.

    With `at` the input is not x but what a hidden layer returns, while the rest of the network sees
    the input `given`, which may be whole numbers: of a layer that embeds tokens this is the
    embedded sentence. Start from `adapted.hidden`.

    Args:
        model: The network or function.
        *weights: What the library keeps apart from it, as in the table.
        batched: Whether it takes batches; None to find out by its shapes.
        channels: "first" if it takes (channels, H, W) where x is (H, W, channels).
        logits: What of its output are the logits: a name, an index or a function. None takes an
            array as it is, and of anything else what is called "logits".
        output: "logits"; "probabilities", of which log p is taken, and of a single one that of the
            classes no and yes; "logit" for one log-odds z, which becomes (0, z).
        key: A `jax.random` key with which dropout stays on, with the same masks at every call;
            None for evaluation.
        options: What else every call is given by name.
        at: A hidden layer by its name, "layers.2", of NNX, Equinox or PyTorch.
        given: With `at`, the input of the network.

    Returns:
        An `Adapted`: one input of any shape to C logits.

    Raises:
        ValueError: If the model is in training mode, not built or bound, or on several devices; if
            the layer does not exist. At the call: if x is no floating-point array, or the output
            has no logits where they are looked for.
        ImportError: If torchax is missing or does not fit the version of PyTorch; the message has
            the command.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> def apply(weights, xs):  # of a batch
        ...     return {"logits": xs @ weights}
        >>> model = foliax.adapt(apply, jnp.eye(3))
        >>> model(jnp.arange(3.0)).tolist(), float(foliax.trace(model, jnp.zeros(3))).__round__(4)
        ([0.0, 1.0, 2.0], 0.6667)
    """
    check_choice(output, name="output", choices=_OUTPUTS)
    if channels not in (None, "first"):
        raise ValueError(f"channels must be None or 'first', got {channels!r}")
    if key is not None:
        check_key(key)
    library = library_of(model)
    network = _bound(library, model, weights, dict(options or {}), key, logits)
    check_one_device(network)
    pick = None if library == "torch" else logits
    form = Form(channels, pick, output, library in ("equinox", "function"), batched)
    if (at is None) != (given is None):
        raise ValueError(
            f"at and given belong together: the layer and the input of the network, got at={at!r} "
            f"and {'no input' if given is None else 'an input'}"
        )
    return Adapted(network, form) if at is None else _at_layer(network, form, at, given)


def library_of(model: Any) -> str:
    """Return the library that a model comes from, by the modules of its classes."""
    modules = [kind.__module__ for kind in type(model).__mro__]
    if any(name.startswith("flax.nnx") for name in modules):
        return "nnx"
    if any(name.startswith("flax.linen") for name in modules):
        return "linen"
    if getattr(model, "__module__", None) and str(model.__module__).startswith("haiku."):
        return "haiku"
    roots = {name.partition(".")[0] for name in modules}
    return next((name for name in _BINDERS if name in roots), "function")


def _bound(
    library: str,
    model: Any,
    weights: tuple[Any, ...],
    options: dict[str, Any],
    key: Any,
    pick: Pick,
) -> Network:
    if key is not None and library in ("keras", "torch", "function"):
        raise ValueError(
            f"key keeps dropout on in networks of NNX, Linen, Equinox and Haiku, got it for "
            f"{type(model).__name__}; leave it out"
        )
    return _BINDERS[library](model, weights, options, key, pick)


def _nnx(model: Any, weights: Any, options: Any, key: Any, _: Any) -> Network:
    from foliax.adapt import nnx  # imports Flax

    return nnx.bind(model, weights, options, key)


def _linen(model: Any, weights: Any, options: Any, key: Any, _: Any) -> Network:
    from foliax.adapt import linen

    return linen.bind(model, weights, options, key)


def _keras(model: Any, weights: Any, options: Any, *_: Any) -> Network:
    from foliax.adapt import keras

    return keras.bind(model, weights, options)


def _torch(model: Any, weights: Any, options: Any, _: Any, pick: Any) -> Network:
    from foliax.adapt import pytorch

    return pytorch.bind(model, weights, options, pick)


_BINDERS: dict[str, Callable[..., Network]] = {
    "nnx": _nnx,
    "linen": _linen,
    "haiku": lambda m, w, o, key, _: haiku.bind(m, w, o, key),
    "keras": _keras,
    "torch": _torch,
    "equinox": lambda m, w, o, key, _: equinox.bind(m, w, o, key),
    "function": lambda m, w, o, *_: function.bind(m, w, o),
}


def _at_layer(network: Network, form: Form, layer: str, given: Any) -> Adapted:
    """Return the network as a function of what a layer returns, beginning where `given` leads."""
    given = jnp.asarray(given)
    if form.channels == "first":
        given = jnp.moveaxis(given, -1, 0)
    batched = form.batched
    if batched is None:
        batched = is_batched(network, form, given)
    given = given[None] if batched else given
    seen: list[Any] = []
    with network.changed(layer, lambda out: seen.append(out) or out) as recording:
        jax.eval_shape(lambda y: output_of(recording, y), given)
        count = len(seen)
        seen.clear()
        if count == 1:
            output_of(recording, given)
    if count != 1:
        raise ValueError(
            f"at={layer!r} must be called once for an input, got {count} calls; name a layer "
            "inside or around it"
        )
    hidden = jnp.asarray(seen[0])
    if not jnp.issubdtype(hidden.dtype, jnp.floating):
        raise ValueError(f"at={layer!r} must return floating-point numbers, got {hidden.dtype}")
    hidden = hidden[0] if batched else hidden
    form = dataclasses.replace(form, batched=bool(batched))
    return Adapted(network, form, layer, Fixed((given, hidden)))
