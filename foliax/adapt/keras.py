"""Keras 3 on JAX: a model, called by `stateless_call`."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx

from foliax._core.fixed import Fixed
from foliax.adapt.network import Network


class Keras(Network):
    """A built model.

    Attributes:
        trainable: Its weights.
        rest: Its other variables.
        model: The model.
        options: Names and values that are given by name.
    """

    trainable: list[Any]
    rest: Fixed
    model: Any = eqx.field(static=True)
    options: tuple[tuple[str, Any], ...] = eqx.field(static=True)

    def call(self, x: Any) -> Any:
        """Return the output, without the new variables."""
        call = self.model.stateless_call
        return call(self.trainable, self.rest.value, x, training=False, **dict(self.options))[0]


def bind(model: Any, extra: tuple[Any, ...], options: Mapping[str, Any]) -> Keras:
    """Take the variables of a model that is built."""
    import keras

    if extra:
        raise ValueError(
            f"model, a Keras {type(model).__name__}, holds its weights, got {len(extra)} more "
            "arguments; call adapt(model)"
        )
    if keras.config.backend() != "jax":
        raise ValueError(
            f"model must run on JAX, got Keras on {keras.config.backend()}; set KERAS_BACKEND=jax "
            "before Keras is imported"
        )
    if not model.built:
        raise ValueError(
            f"model, a Keras {type(model).__name__}, has no weights yet; call it on a batch once, "
            "or model.build((None, *shape))"
        )
    weights, rest = (
        [variable.value for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )
    return Keras(weights, Fixed(rest), model, tuple(sorted(options.items())))
