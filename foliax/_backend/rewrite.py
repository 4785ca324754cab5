"""How foliax calls and differentiates any model: in full precision, and fast.

Everything that foliax does with a model goes through `logits_of` or `differentiable`, which set the
precision of its products. For derivatives its slow operations are replaced as it is traced.
The model is traced to a jaxpr once, and evaluated again equation by equation; a convolution of
stride 1 and a pool of disjoint windows are replaced by those of `_fast`, which have the same values
and derivatives. Everything else, and every form of those two that is not recognised, runs as it is.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jaxtyping import Array

from foliax._backend.fast import conv, window_max
from foliax._core.compile import closed
from foliax._core.documented import documented
from foliax._core.types import Model, Operations, Precision

Rule = Callable[..., Array]


class WithOptions(eqx.Module):
    """A model, and how foliax is to evaluate and differentiate it; see `with_options`."""

    model: Any
    operations: str = eqx.field(static=True)
    precision: str = eqx.field(static=True)

    def __call__(self, *args: Any) -> Any:
        """Return the logits of one input, in the precision asked for."""
        with jax.default_matmul_precision(self.precision):
            return self.model(*args)


@documented
def with_options(
    model: Model, *, operations: Operations = "auto", precision: Precision = "highest"
) -> WithOptions:
    """Set how foliax evaluates and differentiates a model, in place of the defaults.

    Operations change derivatives by rounding alone. On CPU the stock max-pool is slow under the
    vmapped reverse passes of a Jacobian, and the stock convolution inside a compiled loop, such as
    a walk: two to five times, together. "fast" replaces both wherever they occur in the model.

    Precision is that of matrix products and convolutions. GPUs compute those of float32 numbers in
    TF32 by default, TPUs in bfloat16, which changes ranks; foliax asks for full float32,
    in the model and in its derivatives. It changes nothing on CPU, and no dtype anywhere. A product
    whose precision the model names itself, as `jnp.dot(a, b, precision="high")`, keeps it.

    The precision reaches whatever foliax traces: the model's calls, its Jacobian, what foliax
    derives from that. Where you differentiate a function of foliax yourself, JAX traces the bodies
    of the model's own `jax.custom_jvp` and `jax.custom_vjp` rules later: put that derivative under
    `jax.default_matmul_precision("highest")` if they multiply.

    Args:
        operations: "fast" replaces the operations it recognises; "stock" leaves the model as it is;
            "auto" is "fast" on CPU and "stock" elsewhere.
        precision: "highest" is full float32; "high" and "default" are JAX's, faster and rougher on
            GPU and TPU.

    Returns:
        A model for every function of foliax.

    Raises:
        ValueError: If the model is not callable, or an option is none of these.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = foliax.with_options(lambda x: jnp.stack([x[0], 0 * x[0]]), precision="default")
        >>> float(foliax.trace(model, jnp.zeros(1)))
        0.25
    """
    if not callable(model):
        raise ValueError(
            f"model must be callable from one input to C logits, got {type(model).__name__}"
        )
    if operations not in ("auto", "fast", "stock"):
        raise ValueError(f"operations must be one of 'auto', 'fast', 'stock', got {operations!r}")
    if precision not in ("highest", "high", "default"):
        raise ValueError(
            f"precision must be one of 'highest', 'high', 'default', got {precision!r}"
        )
    return WithOptions(model, operations, precision)


def precision_of(model: Any) -> AbstractContextManager[Any]:
    """Return the context in which a model is traced: its products take their precision from it.

    So do those inside of nested jits, loops and branches: JAX keys its traces on this context.
    Transposed and linearised products keep the precision of the first ones. The backward rule of a
    `custom_vjp` is traced when a VJP is called, which therefore needs the context as well.
    """
    chosen = model.precision if isinstance(model, WithOptions) else "highest"
    return jax.default_matmul_precision(chosen)


def logits_of(model: Any, *args: Any) -> Any:
    """Call the model, in its precision: the one way in which foliax calls models."""
    with precision_of(model):
        return closed(model)(*args)


def differentiable(model: Model, x: Array) -> Callable[[Array], Array]:
    """Return the function that is differentiated in place of the model, at inputs like x."""
    operations = model.operations if isinstance(model, WithOptions) else "auto"
    if operations == "auto":
        operations = "fast" if jax.default_backend() == "cpu" else "stock"
    plain = partial(logits_of, model)
    if operations == "stock":
        return plain
    closed = jax.make_jaxpr(lambda y: plain(y))(x)
    if not _has_slow(closed.jaxpr):
        return plain

    def rewritten(y: Array) -> Array:
        with precision_of(model):
            return _evaluate(closed.jaxpr, closed.consts, [y])[0]

    return rewritten


def _evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr, with the fast operations for the slow ones."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for eqn in jaxpr.eqns:
        known |= zip(eqn.outvars, _run(eqn, [value(atom) for atom in eqn.invars]), strict=True)
    return [value(atom) for atom in jaxpr.outvars]


def _run(eqn: core.JaxprEqn, values: list[Any]) -> list[Any]:
    rule = _fast_rule(eqn)
    if rule is not None:
        return [rule(*values)]
    inner = _inlined(eqn)
    if inner is not None and _has_slow(inner.jaxpr):
        return _evaluate(inner.jaxpr, inner.consts, values)
    return _as_it_is(eqn, values)


def _as_it_is(eqn: core.JaxprEqn, values: list[Any]) -> list[Any]:
    """Evaluate one equation by itself: JAX knows how to bind each primitive."""
    pairs = zip(eqn.invars, values, strict=True)
    given = {atom: value for atom, value in pairs if isinstance(atom, core.Var)}
    alone = core.Jaxpr((), list(given), eqn.outvars, [eqn], eqn.effects)
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*given.values())


def _inlined(eqn: core.JaxprEqn) -> Any:
    """Return the jaxpr of a nested `jit`, None for anything else."""
    return eqn.params["jaxpr"] if eqn.primitive.name in ("jit", "pjit") else None


def _has_slow(jaxpr: core.Jaxpr) -> bool:
    def slow(eqn: core.JaxprEqn) -> bool:
        inner = _inlined(eqn)
        return _fast_rule(eqn) is not None or (inner is not None and _has_slow(inner.jaxpr))

    return any(slow(eqn) for eqn in jaxpr.eqns)


def _fast_rule(eqn: core.JaxprEqn) -> Rule | None:
    """Return the fast form of an operation that is recognised."""
    if eqn.primitive.name == "conv_general_dilated":
        return _conv_rule(eqn)
    if eqn.primitive.name == "reduce_window_max":
        return _pool_rule(eqn)
    return None


def _conv_rule(eqn: core.JaxprEqn) -> Rule | None:
    """Recognise a plain two-dimensional convolution of stride 1, in any layout."""
    params = eqn.params
    layout: Any = params["dimension_numbers"]
    padding: Any = tuple(map(tuple, params["padding"]))
    ones = ("window_strides", "lhs_dilation", "rhs_dilation")
    plain = all(tuple(params[name]) == (1, 1) for name in ones)
    plain &= params["feature_group_count"] == params["batch_group_count"] == 1
    precision: Any = params["precision"]
    if isinstance(precision, tuple):  # of the two factors
        plain &= len(set(precision)) == 1
    plain &= len({jnp.result_type(atom.aval) for atom in [*eqn.invars, *eqn.outvars]}) == 1
    plain &= min((side for pair in padding for side in pair), default=0) >= 0
    if not plain:
        return None
    (b, i, *space), (o, k, *window) = layout.lhs_spec, layout.rhs_spec
    (out_b, out_o, *out_space) = layout.out_spec
    back = [0, 0, 0, 0]
    for place, axis in enumerate((out_b, *out_space, out_o)):
        back[axis] = place

    def rule(x: Array, kernel: Array) -> Array:
        out = conv(x.transpose(b, *space, i), kernel.transpose(*window, k, o), padding, precision)
        return out.transpose(back)

    return rule


def _pool_rule(eqn: core.JaxprEqn) -> Rule | None:
    """Recognise a pool of disjoint windows over two axes, without padding."""
    params = eqn.params
    sides = tuple(params["window_dimensions"])
    axes = [axis for axis, side in enumerate(sides) if side > 1]
    plain = len(axes) == 2 and tuple(params["window_strides"]) == sides
    plain &= all(tuple(pair) == (0, 0) for pair in params["padding"])
    plain &= all(d == 1 for d in (*params["base_dilation"], *params["window_dilation"]))
    if not plain:
        return None
    first, second = axes

    def rule(x: Array) -> Array:
        shape = []
        for axis, side in enumerate(sides):
            whole = x.shape[axis] // side
            x = lax.slice_in_dim(x, 0, whole * side, axis=axis)
            shape += [whole, side] if side > 1 else [whole]
        return window_max(x.reshape(shape), (first + 1, second + 2))

    return rule
