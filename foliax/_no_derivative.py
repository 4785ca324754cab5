"""What has no derivative says so, instead of returning zero."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def refused(value: Array, sentence: str) -> Array:
    """Return the value; as soon as it is differentiated, raise TypeError with the sentence."""
    del sentence
    return value


@partial(refused.defjvp, symbolic_zeros=True)
def _(sentence: str, primals: Any, tangents: Any) -> Any:
    if type(tangents[0]) is not SymbolicZero:
        raise TypeError(sentence)
    return primals[0], tangents[0]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def refused_in_reverse(value: Array, sentence: str) -> Array:
    """Return the value; where its gradient is used, raise TypeError with the sentence.

    For one result among others that have derivatives. Forward mode computes the derivatives of all
    results, whether they are used or not: there this one's is NaN.
    """
    del sentence
    return value


@refused_in_reverse.defjvp
def _(sentence: str, primals: Any, tangents: Any) -> Any:
    return primals[0], _nothing.bind(tangents[0], sentence=sentence)


def _not_a_number(tangent: Array, *, sentence: str) -> Array:
    del sentence
    return jnp.full_like(tangent, jnp.nan)


def _transposed(cotangent: Any, tangent: Any, *, sentence: str) -> Any:
    if type(cotangent) is ad.Zero:
        return [ad.Zero(tangent.aval)]
    raise TypeError(sentence)


_nothing = Primitive("no_derivative")
_nothing.def_impl(_not_a_number)
_nothing.def_abstract_eval(lambda tangent, **_: tangent)
mlir.register_lowering(_nothing, mlir.lower_fun(_not_a_number, multiple_results=False))
ad.deflinear2(_nothing, _transposed)
batching.defvectorized(_nothing)
