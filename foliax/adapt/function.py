"""Any function of its weights and one input, and callable pytrees that are no network class."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx

from foliax.adapt.network import EVALUATION, Network


class Function(Network):
    """A function `f(*weights, x)`; without weights any callable pytree, whose leaves are its own.

    Attributes:
        weights: What comes before x.
        pytree: The callable where it has leaves of its own, or captures arrays.
        function: The callable where it has not.
        options: Names and values that are given by name.
    """

    weights: tuple[Any, ...]
    pytree: Any
    function: Callable[..., Any] | None = eqx.field(static=True)
    options: tuple[tuple[str, Any], ...] = eqx.field(static=True)

    def call(self, x: Any) -> Any:
        """Return f(*weights, x)."""
        function = self.pytree if self.function is None else self.function
        return function(*self.weights, x, **dict(self.options))


def bind(function: Any, weights: tuple[Any, ...], options: Mapping[str, Any]) -> Function:
    """Bind the weights of a function."""
    if not callable(function):
        raise ValueError(
            f"model must be a network or a function, got {type(function).__name__}; of a network "
            "of another library pass its function of (weights, x), and the weights"
        )
    named = tuple(sorted((evaluation(function) | dict(options)).items()))
    if weights:
        return Function(weights, None, function, named)
    return Function((), function, None, named)


def evaluation(function: Any) -> dict[str, bool]:
    """Return the flags of a function that say whether it is trained, set to say no."""
    try:
        names = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    return {name: value for name, value in EVALUATION.items() if name in names}


def takes(function: Any, name: str) -> bool:
    """Return whether a function has a parameter of this name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
