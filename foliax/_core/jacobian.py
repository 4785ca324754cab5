"""The model at one point: what it returns, and its Jacobian. The only differentiator.

The Jacobian is never formed: it is pulled back row by row, and pushed forward by transposing that.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from foliax._backend.rewrite import differentiable, logits_of, precision_of
from foliax._core.compile import NOT_TRACEABLE
from foliax._core.likelihood import Likelihood
from foliax._core.model_errors import logits_inside, remedy, working_form
from foliax._core.types import Chunk, Model


def working_dtype(*arrays: Any) -> jnp.dtype:
    """Return the largest dtype among the arrays, and at least float32."""
    return jnp.result_type(jnp.float32, *arrays)


def as_time(value: int, dtype: Any) -> Any:
    """Return a time for diffrax in the dtype of the state, as a plain number where that is it.

    A plain number is checked while the program is made. An array is checked by a callback from the
    program, and such a program cannot be kept in JAX's persistent compilation cache.
    """
    return float(value) if jnp.result_type(float) == dtype else jnp.asarray(value, dtype)


def logits_struct(model: Any, x: Array, likelihood: Likelihood) -> jax.ShapeDtypeStruct:
    """Trace the model once for the shape of its output, and refuse what is not a logit vector."""
    if not callable(model):
        raise ValueError(
            "model must be callable from one input to C logits, got "
            f"{type(model).__name__}; bind the weights of a function, as "
            "jax.tree_util.Partial(module.apply, variables)"
        )

    def call(y: Array) -> Any:
        return logits_of(model, y)

    try:
        out = jax.eval_shape(call, x)
    except NOT_TRACEABLE:
        raise  # its caller may try again with what the model captures as constants
    except Exception as error:
        at = f"x of shape {x.shape}, {x.dtype}"
        found = remedy(error, model, call, x, likelihood)
        if found is None:
            error.add_note(f"foliax called model(x) with {at}")
            raise
        raise ValueError(f"model cannot be called at one input, {at}: {found}") from error
    _check_logits(out, call, x, likelihood)
    return out


def _check_logits(out: Any, call: Callable[[Array], Any], x: Array, likelihood: Likelihood) -> None:
    """Refuse an output that is not one vector of floating logits."""
    shape = getattr(out, "shape", None)
    if shape is None:
        raise ValueError(
            f"model must return one array of logits, got a {jax.tree.structure(out)}; "
            f"{logits_inside(out)}"
        )
    if len(shape) != 1:
        form = working_form(call, x, likelihood) if shape else None
        hint = "return all C logits of one input, and nothing else"
        raise ValueError(
            f"model must map one input of shape {x.shape} to a vector (C,) of logits, got "
            f"shape {shape}; {hint if form is None else f'wrap it as {form}'}"
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"model must return floating-point logits, got dtype {out.dtype}")
    likelihood.check(shape[0])


def num_rows(model: Model, x: Array, likelihood: Likelihood) -> int:
    """Return the number of rows of the factor, C − 1 for a categorical likelihood."""
    logits = logits_struct(model, x, likelihood)
    blank = jax.ShapeDtypeStruct(logits.shape, working_dtype(x, logits))
    return jax.eval_shape(likelihood.contrasts, blank).shape[0]


def pullback(
    model: Model, x: Float[Array, "..."], likelihood: Likelihood
) -> tuple[Float[Array, " c"], Callable[[Float[Array, " c"]], Float[Array, " n"]]]:
    """Return the logits s(x), and the map from a cotangent u on them to the flat gradient Jᵀu.

    Both are in the working dtype; the model itself sees x, and cotangents, in its own.
    """
    logits_struct(model, x, likelihood)
    with precision_of(model):
        logits, vjp = jax.vjp(differentiable(model, x), x)
    dtype = working_dtype(x, logits)

    narrow = logits.dtype != dtype

    def pull(cotangent: Array) -> Array:
        # A cotangent of the size of a small probability is zero in half precision.
        size = jnp.max(jnp.abs(cotangent)) if narrow else 1
        scale = jnp.where(size > 0, size, 1)
        with precision_of(model):  # the rules of a custom_vjp are traced here
            (gradient,) = vjp((cotangent / scale if narrow else cotangent).astype(logits.dtype))
        gradient = gradient.ravel().astype(dtype)
        return gradient * scale if narrow else gradient

    return logits.astype(dtype), pull


def pushforward(
    pull: Callable[[Array], Array], cotangent: Float[Array, " c"], v: Float[Array, " n"]
) -> Float[Array, " c"]:
    """Return J v as the transpose of u ↦ Jᵀu.

    A layer with a `custom_vjp` has no JVP, but its VJP is linear in u and can be transposed.
    `cotangent` says only what shape u has.
    """
    _, transpose = jax.vjp(pull, jnp.zeros_like(cotangent))
    (out,) = transpose(v)
    return out


def pull_rows(
    pull: Callable[[Array], Array], rows: Float[Array, "r c"], chunk: int | None
) -> Float[Array, "r ..."]:
    """Pull back each row, all at once or `chunk` at a time (memory is chunk reverse passes)."""
    if chunk is None or chunk >= rows.shape[0]:
        return jax.vmap(pull)(rows)
    return lax.map(pull, rows, batch_size=chunk)


def contrast_jacobian(
    model: Model,
    x: Float[Array, "..."],
    likelihood: Likelihood,
    chunk: Chunk = None,
    *,
    contrasts: Float[Array, "r c"] | None = None,
) -> tuple[Float[Array, " c"], Float[Array, "r n"]]:
    """Return the logits and K = H J at x, from one forward and C − 1 reverse passes.

    H is that of the likelihood at x, or `contrasts`, where the classes that can occur are known.
    """
    logits, pull = pullback(model, x, likelihood)
    rows = likelihood.contrasts(logits) if contrasts is None else contrasts
    return logits, pull_rows(pull, rows, chunk)
