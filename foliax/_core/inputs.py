"""What every public function does first: check its arguments, and look at the model at one point.

The checks are made by hand, so that the caller reads a sentence about the argument and not a
type-checker's report. All of them rest on shapes and dtypes alone: they cost nothing under `jit`.
"""

from collections.abc import Callable
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._backend.rewrite import differentiable, logits_of, precision_of
from foliax._core.compile import NOT_TRACEABLE
from foliax._core.model_errors import APPLY, MODEL, Words, logits_inside, remedy, working_form
from foliax._core.types import Count, Model
from foliax.likelihood import Likelihood

_HIGHEST = lax.Precision.HIGHEST  # on GPU and TPU a float32 product is not float32 otherwise


def dot(a: Array, b: Array) -> Array:
    """Multiply matrices in full precision on every device."""
    return jnp.matmul(a, b, precision=_HIGHEST)


def norm(v: Float[Array, "..."], axis: int | None = None) -> Float[Array, "..."]:
    """Return ‖v‖ over an axis, or of all numbers, with gradient zero at v = 0."""
    square = jnp.sum(v**2, axis=axis)
    there = ~(square == 0)  # a NaN goes on
    return jnp.where(there, jnp.sqrt(jnp.where(there, square, 1)), 0)


def as_point(x: ArrayLike, *, name: str = "x") -> Float[Array, "..."]:
    """Return the input as a floating array, or say why it is none."""
    refuse_deleted(x, name=name)
    try:
        x = jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers: {error}") from error
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be a floating-point array, got dtype {x.dtype}; G differentiates with "
            f"respect to it, so convert and normalise first, e.g. {name}.astype(jnp.float32) / 255"
        )
    if x.size == 0:
        raise ValueError(f"{name} must hold at least one number, got the empty shape {x.shape}")
    return x


def refuse_deleted(value: Any, *, name: str) -> None:
    """Refuse arrays (a pytree of them) whose buffers were given away."""
    for leaf in jax.tree.leaves(value):
        if isinstance(leaf, jax.Array) and not is_traced(leaf) and leaf.is_deleted():
            raise ValueError(
                f"{name} was donated to an earlier computation and is gone; pass a copy there, or "
                "leave it out of donate_argnums"
            )


def as_tangent(v: ArrayLike, x: Array, *, name: str) -> Float[Array, "..."]:
    """Return a vector at x as a floating array of x's shape, or say how it differs."""
    v = as_point(v, name=name)
    if v.shape != x.shape:
        raise ValueError(
            f"{name} must have the shape of x, {x.shape}, got {v.shape}; "
            "every function takes one input, batch with jax.vmap(f, in_axes=(None, 0, 0))"
        )
    return v


def working_dtype(*arrays: Any) -> jnp.dtype:
    """Return the largest dtype among the arrays, and at least float32."""
    return jnp.result_type(jnp.float32, *arrays)


def as_time(value: int, dtype: Any) -> Any:
    """Return a time for diffrax in the dtype of the state, as a plain number where that is it.

    A plain number is checked while the program is made. An array is checked by a callback from the
    program, and such a program cannot be kept in JAX's persistent compilation cache.
    """
    return float(value) if jnp.result_type(float) == dtype else jnp.asarray(value, dtype)


def logits_struct(
    model: Any, x: Array, likelihood: Likelihood, *, weights: tuple[Any, ...] = ()
) -> jax.ShapeDtypeStruct:
    """Trace the model once for the shape of its output, and refuse what is not a logit vector.

    With `weights` the model is an `apply`, which takes them before the input.
    """
    words = APPLY if weights else MODEL
    if not callable(model):
        raise ValueError(
            f"{words.name} must be callable from {words.takes} to C logits, got "
            f"{type(model).__name__}; bind the weights of a function, as "
            "jax.tree_util.Partial(module.apply, variables)"
        )

    def call(y: Array) -> Any:
        return logits_of(model, *weights, y)

    try:
        out = jax.eval_shape(call, x)
    except NOT_TRACEABLE:
        raise  # its caller may try again with what the model captures as constants
    except Exception as error:
        at = f"x of shape {x.shape}, {x.dtype}"
        found = remedy(error, model, call, x, likelihood, words)
        if found is None:
            error.add_note(f"foliax called {words.call()} with {at}")
            raise
        raise ValueError(f"{words.name} cannot be called at one input, {at}: {found}") from error
    _check_logits(out, call, x, likelihood, words)
    return out


def _check_logits(
    out: Any, call: Callable[[Array], Any], x: Array, likelihood: Likelihood, words: Words
) -> None:
    """Refuse an output that is not one vector of floating logits."""
    shape = getattr(out, "shape", None)
    if shape is None:
        raise ValueError(
            f"{words.name} must return one array of logits, got a {jax.tree.structure(out)}; "
            f"{logits_inside(out, words)}"
        )
    if len(shape) != 1:
        form = working_form(call, x, likelihood, words) if shape else None
        hint = "return all C logits of one input, and nothing else"
        raise ValueError(
            f"{words.name} must map one input of shape {x.shape} to a vector (C,) of logits, got "
            f"shape {shape}; {hint if form is None else f'wrap it as {form}'}"
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"{words.name} must return floating-point logits, got dtype {out.dtype}")
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
) -> Float[Array, "r n"]:
    """Pull back each row, all at once or `chunk` at a time (memory is chunk reverse passes)."""
    if chunk is None or chunk >= rows.shape[0]:
        return jax.vmap(pull)(rows)
    return lax.map(pull, rows, batch_size=chunk)


def check_chunk(chunk: Count | None) -> None:
    """Refuse a chunk that is neither None nor a positive whole number."""
    if chunk is not None and (not isinstance(chunk, Integral) or chunk < 1):
        raise ValueError(f"chunk must be None or a whole number of rows >= 1, got {chunk!r}")


def check_choice(value: Any, *, name: str, choices: tuple[str, ...]) -> None:
    """Refuse a name that is not among the choices."""
    if value not in choices:
        listed = ", ".join(repr(c) for c in choices)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")


def is_traced(value: Any) -> bool:
    """Tell whether a value is unknown while a program is being traced."""
    return isinstance(value, Tracer)


def check_positive(
    value: Any, *, name: str, or_zero: bool = False, or_infinite: bool = False
) -> None:
    """Refuse what is not a finite number > 0 where it is concrete; a tracer passes."""
    if is_traced(value):
        return
    number = np.asarray(value)  # under jit, JAX would trace the comparison of what is concrete
    above = number.ndim == 0 and (number > 0 or (or_zero and number == 0))
    if above and (or_infinite or number < float("inf")):
        return
    raise ValueError(f"{name} must be a finite number {'>=' if or_zero else '>'} 0, got {value!r}")


def check_finite(value: Any, *, name: str) -> None:
    """Refuse what is not a finite number where it is concrete; a tracer passes."""
    if not is_traced(value) and not (np.ndim(value) == 0 and np.isfinite(np.asarray(value))):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def check_key(key: Any, *, name: str = "key") -> None:
    """Refuse what is not one `jax.random` key; those of the old style, PRNGKey, are some."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if (typed and shape == ()) or (dtype == jnp.uint32 and len(shape or ()) == 1):
        return
    raise ValueError(
        f"{name} must be one key, as jax.random.key(0), got "
        f"{type(key).__name__ if dtype is None else f'{dtype} of shape {shape}'}; batch over "
        "jax.random.split(key, N) with jax.vmap"
    )


def check_count(value: Any, *, name: str, least: int = 1) -> None:
    """Refuse what is not a static whole number >= least: it sets the shape of the result."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")


def as_class(value: Any, num_classes: int, *, name: str) -> Int[Array, ""]:
    """Return a class as an index; refuse what is seen to be none."""
    index = jnp.asarray(value)
    whole = index.ndim == 0 and jnp.issubdtype(index.dtype, jnp.integer)
    if not whole or (not is_traced(index) and not 0 <= int(index) < num_classes):
        raise ValueError(f"{name} must be a class, 0 … {num_classes - 1}, got {value!r}")
    return index.astype(jnp.int32)
