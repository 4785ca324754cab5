"""Flax NNX: a module, which is a pytree itself."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import equinox as eqx
from flax import nnx

from foliax.adapt.function import evaluation
from foliax.adapt.network import Change, Network, part_of, resolved, with_array


class NNX(Network):
    """A module in evaluation mode.

    Attributes:
        module: The module.
        options: Names and values that are given by name.
    """

    module: Any
    options: tuple[tuple[str, Any], ...] = eqx.field(static=True)

    def call(self, x: Any) -> Any:
        """Return what the module returns; what it records does not leave the call."""
        module = nnx.clone(self.module)
        return module(x, **dict(self.options))

    @contextmanager
    def changed(self, layer: str, change: Change) -> Iterator[Network]:
        """Put a layer in a wrapper that changes what it returns."""
        yield _Changed(self, layer, change)


class _Changed(Network):
    """A network one of whose layers is changed, while it is called."""

    network: NNX
    layer: str
    change: Change

    def call(self, x: Any) -> Any:
        module = nnx.clone(self.network.module)
        parent, last = resolved(module, self.layer, _names(module))
        layer = part_of(parent, last)

        def changed(*args: Any, **options: Any) -> Any:
            return with_array(layer(*args, **options), self.change)

        if isinstance(parent, nnx.List):
            parent[int(last)] = nnx.static(changed)
        else:
            vars(parent)[last] = changed
        return module(x, **dict(self.network.options))


def bind(module: Any, weights: tuple[Any, ...], options: Mapping[str, Any], key: Any) -> NNX:
    """Take a module that is in evaluation mode.

    With a key the dropout may be on: its masks are those of the key, the same at every call.
    """
    if weights:
        raise ValueError(
            f"model, an NNX {type(module).__name__}, holds its weights, got {len(weights)} more "
            "arguments; call adapt(model)"
        )
    training = [
        _name(path)
        for path, part in nnx.iter_modules(module)
        if getattr(part, "use_running_average", None) is False
        or (key is None and getattr(part, "deterministic", None) is False)
    ]
    if training:
        raise ValueError(
            f"model must be in evaluation mode, got training mode in {', '.join(training[:5])}; "
            "call model.eval()"
        )
    if key is not None:
        module = nnx.clone(module)
        nnx.reseed(module, dropout=key, default=key)
    flags = evaluation(type(module).__call__) if key is None else {}
    return NNX(module, tuple(sorted((flags | dict(options)).items())))


def _names(module: Any) -> list[str]:
    return sorted(_name(path) for path, _ in nnx.iter_modules(module) if path)


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path)) or "the model itself"
