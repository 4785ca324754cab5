"""Haiku: `transformed.apply` with its parameters, and its state where it has one."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx

from foliax._core.fixed import Fixed
from foliax.adapt.function import evaluation, takes
from foliax.adapt.network import Network


class Haiku(Network):
    """A transformed function: `apply(params, [state], [rng], x)`.

    Attributes:
        params: Its parameters.
        fixed: Its state or none, and the random key that it gets.
        apply: The transformed function.
        options: Names and values that are given by name.
    """

    params: Any
    fixed: Fixed
    apply: Callable[..., Any] = eqx.field(static=True)
    options: tuple[tuple[str, Any], ...] = eqx.field(static=True)

    def call(self, x: Any) -> Any:
        """Return the output, without the new state."""
        state, key = self.fixed.value
        rng = (key,) if takes(self.apply, "rng") else ()
        out = self.apply(self.params, *state, *rng, x, **dict(self.options))
        return out[0] if state else out


def bind(model: Any, weights: tuple[Any, ...], options: Mapping[str, Any], key: Any) -> Haiku:
    """Bind parameters and state."""
    apply = getattr(model, "apply", model)
    wanted = ("params", "state") if takes(apply, "state") else ("params",)
    if len(weights) != len(wanted):
        raise ValueError(
            f"model, a Haiku transform, needs {' and '.join(wanted)}, got {len(weights)} of them; "
            f"call adapt(transformed.apply, {', '.join(wanted)})"
        )
    given = tuple(sorted((evaluation(apply) | dict(options)).items()))
    return Haiku(weights[0], Fixed((weights[1:], key)), apply, given)
