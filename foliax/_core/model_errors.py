"""What a model that raised most likely needs, in terms of the call of foliax.

A network in training mode, one that takes batches, one whose weights or state are not bound: each
library reports this in its own terms, about its internals. Nothing here runs unless a model raised
or returned something else than logits. The libraries are recognised by the names and words of their
errors, none is imported; what is not recognised is the model's own error, and is raised as it is.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct

from foliax._backend.rewrite import WithOptions
from foliax._core.compile import Captured
from foliax._core.likelihood import Likelihood

_BY_EVAL = "put it in evaluation mode: call model.eval()"
_BY_INFERENCE = "put it in evaluation mode: model = eqx.nn.inference_mode(model)"
_BY_APPLY = "bind its variables: jax.tree_util.Partial(module.apply, variables)"
_BY_FLAG = (
    "put it in evaluation mode, with BatchNorm(use_running_average=True) and "
    "Dropout(deterministic=True); where the module takes a flag, bind it: "
    "jax.tree_util.Partial(module.apply, variables, train=False)"
)

# Type of the error, what it says, what the model is, what helps.
_KNOWN = (
    (
        "TraceContextError",
        r"mutate (BatchStat|RngCount|RngKey)\b",
        f"it is in training mode; {_BY_EVAL}",
    ),
    (
        "TraceContextError",
        "",
        f"it changes its own variables, as networks in training mode do; {_BY_EVAL}, and keep "
        "from the call what it records beside the logits",
    ),
    (
        "ValueError",
        "`deterministic` is False, but no `rngs`",
        f"it is in training mode; {_BY_EVAL}",
    ),
    ("ModifyScopeVariableError", "", f"it is in training mode; {_BY_FLAG}"),
    ("InvalidRngError", "", f"it draws random numbers, as in training mode; {_BY_FLAG}"),
    ("CallCompactUnboundModuleError", "", f"a Linen module holds no weights; {_BY_APPLY}"),
    (
        "AttributeError",
        r"defined in '\.setup\(\)'",
        f"a Linen module holds no weights; {_BY_APPLY}",
    ),
    (
        "ScopeCollectionNotFound|ScopeParamNotFoundError",
        "",
        "its variables are not complete; bind all that init returned: "
        "jax.tree_util.Partial(module.apply, {'params': …, 'batch_stats': …})",
    ),
    (
        "RuntimeError",
        "requires a key when running in non-deterministic mode",
        f"it is in training mode; {_BY_INFERENCE}",
    ),
    (
        "AttributeError",
        "'object' object has no attribute 'get'",  # eqx.nn.Sequential's place-holder
        "it wants a state; bind it, after model = eqx.nn.inference_mode(model): "
        "lambda x: model(x, state=state)[0]",
    ),
    (
        "NameError",
        "unbound axis name",
        "it wants the mean over a batch, as BatchNorm in training mode; put it in evaluation mode: "
        "model = eqx.nn.inference_mode(model), model.eval() in NNX, use_running_average=True in "
        "Linen",
    ),
)

# What networks take beside the input, and what is passed to measure them.
_BOUND = {
    "state": "state",
    "key": "key",
    "rng": "key",
    "train": "False",
    "training": "False",
    "is_training": "False",
    "deterministic": "True",
    "inference": "True",
    "use_running_average": "True",
}
_FORMS: dict[str, Callable[[Any], Any]] = {
    "x[None]": lambda x: x[None],
    "x": lambda x: x,
    "x[..., None]": lambda x: x[..., None],
    "x[None, ..., None]": lambda x: x[None, ..., None],
    "x.ravel()": lambda x: x.ravel(),
}


def remedy(
    error: Exception, model: Any, call: Callable[[Any], Any], x: Any, likelihood: Likelihood
) -> str | None:
    """Return what a model that raised is, and what helps; None where it is not recognised.

    Args:
        error: What the call raised.
        model: The model as it was given.
        call: x ↦ its output.
        x: The input at which it raised.
        likelihood: Says how many logits there may be.
    """
    for name, pattern, sentence in _KNOWN:
        if re.fullmatch(name, type(error).__name__) and re.search(pattern, str(error)):
            return sentence
    if _is_bare_apply(model):
        return f"its first argument is its weights; {_BY_APPLY}"
    wanted = _wanted(error, model)
    if wanted is not None:
        return wanted
    form = working_form(call, x, likelihood)
    return None if form is None else f"it takes its input in another shape; wrap it as {form}"


def working_form(call: Callable[[Any], Any], x: Any, likelihood: Likelihood) -> str | None:
    """Return a function of one input that gives a vector of logits, found by trying."""
    for text, form in _FORMS.items():
        try:
            out = jax.eval_shape(lambda y, form=form: call(form(y)), x)
            one = out.ndim == 2 and out.shape[0] == 1
            if (out.ndim != 1 and not one) or not jnp.issubdtype(out.dtype, jnp.floating):
                continue
            likelihood.check(out.shape[-1])
        except Exception:
            continue
        return _wrapped(text, "[0]" if one else "")
    return None


def logits_inside(out: Any) -> str:
    """Return how to get the logits out of what is no array."""
    found = jax.tree_util.tree_leaves_with_path(out)
    if not found:
        return "return the logits"
    vectors = [path for path, leaf in found if _is_vector(leaf)]
    place = jax.tree_util.keystr(vectors[0]) if vectors else "[0]"
    return (
        f"pick the logits out, e.g. {_wrapped('x', place)}, and put a model that returns a "
        "new state in evaluation mode first"
    )


def _wrapped(inside: str, after: str = "") -> str:
    """Return the function of one input that calls the model with this."""
    return f"lambda x: model({inside}){after}"


def _is_vector(leaf: Any) -> bool:
    return (
        isinstance(leaf, ShapeDtypeStruct)
        and len(leaf.shape) == 1
        and jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def _is_bare_apply(model: Any) -> bool:
    """Return whether this is `module.apply` of a Linen module, without variables."""
    function, given = getattr(model, "func", None), getattr(model, "args", ())
    is_apply = getattr(function, "__qualname__", "") == "Module.apply"
    return is_apply and len(given) == 1 and hasattr(given[0], "init")


def _wanted(error: Exception, model: Any) -> str | None:
    """Return how to bind what the model wants beside x, where it is this that Python misses."""
    said = str(error)
    missing = re.search(r"missing \d+ required (?:positional|keyword-only) arguments?: (.*)", said)
    if not isinstance(error, TypeError) or missing is None:
        return None
    names, direct = re.findall(r"'(\w+)'", missing[1]), _is_name_of(said, model)
    if all(name in _BOUND for name in names) and ("__call__()" in said or direct):
        bound = ", ".join(f"{name}={_BOUND[name]}" for name in names)
        advice = f"bind: {_wrapped(f'x, {bound}', '[0]' if 'state' in names else '')}"
        if {"state", "key", "rng"} & set(names):
            advice += "; put the network in evaluation mode first, by eqx.nn.inference_mode(model)"
        return f"{said}; {advice}"
    if direct:
        return (
            f"{said}; foliax calls model(x): bind what else it takes, "
            "jax.tree_util.Partial(model, weights) where weights come first, or "
            f"{_wrapped('x, …')}"
        )
    return None


def _is_name_of(said: str, model: Any) -> bool:
    """Return whether it is the model itself that Python names, and not a function inside of it."""
    while isinstance(model, WithOptions):
        model = model.model
    if isinstance(model, Captured):
        name = model.code.code.co_qualname
    else:
        function = getattr(model, "func", model)
        name = getattr(function, "__qualname__", type(model).__call__.__qualname__)
    return said.startswith(f"{name}()")
