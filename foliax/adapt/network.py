"""What each library supplies: a network as a pytree, and one of its layers changed."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import equinox as eqx

Change = Callable[[Any], Any]

# What says that a network is not being trained, by the names that libraries use.
EVALUATION = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "inference": True,
    "use_running_average": True,
}


class Network(eqx.Module):
    """A network of some library with its weights: a pytree whose leaves are arrays."""

    @abstractmethod
    def call(self, x: Any) -> Any:
        """Return what the network returns for x, as its library has it."""

    @contextmanager
    def changed(self, layer: str, change: Change) -> Iterator["Network"]:
        """Change what a layer returns: `change` gets the array, and returns another.

        Raises:
            ValueError: If the library names no layers, or this is none.
        """
        del change
        raise ValueError(
            f"at={layer!r} needs a network of NNX, Equinox or PyTorch, whose layers have names; "
            "split this one into two functions instead"
        )
        yield self


def output_of(network: Network, x: Any) -> Any:
    """Call a network."""
    return network.call(x)


def with_array(out: Any, change: Change) -> Any:
    """Change the array that a layer returns: the first part, where it returns several."""
    if isinstance(out, list | tuple):
        return type(out)([change(out[0]), *out[1:]])
    return change(out)


def resolved(root: Any, layer: str, names: list[str]) -> tuple[Any, str]:
    """Return what holds a layer, and the last part of its name.

    Raises:
        ValueError: If there is no such layer.
    """
    if layer not in names:
        raise no_layer(layer, names)
    parent, (*parts, last) = root, layer.split(".")
    for part in parts:
        parent = part_of(parent, part)
    return parent, last


def part_of(parent: Any, part: str) -> Any:
    """Return an attribute, or an entry of a list, by its name."""
    return parent[int(part)] if part.isdigit() else getattr(parent, part)


def no_layer(layer: str, names: list[str]) -> ValueError:
    """Return the error for a name that no layer has."""
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return ValueError(f"at must name a layer, one of {shown}; got {layer!r}")
