"""What has no derivative raises when differentiated, instead of returning zero."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array


def _error(name: str) -> TypeError:
    return TypeError(
        f"{name} has no derivative: it jumps, or turns at once, where singular values meet or "
        "vanish. Differentiate foliax.project_leaf instead, or hold it fixed: call it on "
        "jax.lax.stop_gradient of the input and of the weights"
    )


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def refused(value: Array, name: str) -> Array:
    """Return the value; as soon as it is differentiated, raise TypeError about the name."""
    del name
    return value


@partial(refused.defjvp, symbolic_zeros=True)
def _(name: str, primals: Any, tangents: Any) -> Any:
    if type(tangents[0]) is not SymbolicZero:
        raise _error(name)
    return primals[0], tangents[0]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def refused_in_reverse(value: Array, name: str) -> Array:
    """Return the value; where its gradient is used, raise TypeError about the name.

    For one result among others that have derivatives. Forward mode computes the derivatives of all
    results, whether they are used or not: there this one's is NaN.
    """
    del name
    return value


@refused_in_reverse.defjvp
def _(name: str, primals: Any, tangents: Any) -> Any:
    return primals[0], _nothing.bind(tangents[0], name=name)


def _not_a_number(tangent: Array, *, name: str) -> Array:
    del name
    return jnp.full_like(tangent, jnp.nan)


def _transposed(cotangent: Any, tangent: Any, *, name: str) -> Any:
    if type(cotangent) is ad.Zero:
        return [ad.Zero(tangent.aval)]
    raise _error(name)


_nothing = Primitive("no_derivative")
_nothing.def_impl(_not_a_number)
_nothing.def_abstract_eval(lambda tangent, **_: tangent)
mlir.register_lowering(_nothing, mlir.lower_fun(_not_a_number, multiple_results=False))
ad.deflinear2(_nothing, _transposed)
batching.defvectorized(_nothing)
