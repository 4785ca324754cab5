"""Flax Linen: a module with its variables."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx

from foliax._core.fixed import Fixed
from foliax.adapt.function import evaluation
from foliax.adapt.network import Network


class Linen(Network):
    """A module and all that its `init` returned.

    Attributes:
        params: Its parameters.
        fixed: Its other variables, such as statistics, and the key of its dropout or None.
        module: The module.
        options: Names and values that are given by name.
    """

    params: Any
    fixed: Fixed
    module: Any = eqx.field(static=True)
    options: tuple[tuple[str, Any], ...] = eqx.field(static=True)

    def call(self, x: Any) -> Any:
        """Return `module.apply(variables, x)`."""
        rest, key = self.fixed.value
        rngs = {} if key is None else {"rngs": {"dropout": key}}
        variables = {"params": self.params, **rest}
        return self.module.apply(variables, x, **rngs, **dict(self.options))


def bind(module: Any, weights: tuple[Any, ...], options: Mapping[str, Any], key: Any) -> Linen:
    """Bind the variables of a module, or take those that it is bound to."""
    if not weights and module.scope is not None:
        module, variables = module.unbind()
        weights = (variables,)
    if len(weights) != 1:
        raise ValueError(
            f"model, a Linen {type(module).__name__}, needs its variables, got {len(weights)} "
            "arguments after it; call adapt(module, variables) with all that init returned"
        )
    (variables,) = weights
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError(
            "variables must be what module.init returned, {'params': …}, got "
            f"{sorted(variables) if isinstance(variables, Mapping) else type(variables).__name__}"
        )
    flags = evaluation(type(module).__call__)
    if key is not None:  # dropout is asked for
        flags = {name: flag for name, flag in flags.items() if name != "deterministic"}
    rest = {name: values for name, values in variables.items() if name != "params"}
    given = Fixed((rest, key))
    return Linen(variables["params"], given, module, tuple(sorted((flags | dict(options)).items())))
