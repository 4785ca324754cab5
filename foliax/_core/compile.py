"""Public functions compile themselves: one program for each structure of their arguments.

Arrays are arguments of the program, those that a model holds and those that a plain function
captures from around it; all else is part of the program. So a function that is defined again in
every call reuses the last program, and one that captures a network uses its present weights.
"""

import functools
import inspect
import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar, get_args

import equinox as eqx
import jax
import numpy as np
from jax import lax
from jax.core import Tracer

from foliax._core.documented import documented

P = ParamSpec("P")
R = TypeVar("R")

_MOST_PROGRAMS = 256  # kept of all functions together; the one unused for longest goes first
# XLA's newer emitters of fused loops take as long again to compile what then runs no faster.
_COMPILER_OPTIONS = {"xla_cpu_use_fusion_emitters": False}
_NUMBER = np.float32(1)
_LIBRARIES = ("diffrax", "equinox", "flax", "foliax", "jax", "lineax", "optax", "optimistix")
NOT_TRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function at its first call with arguments of a structure, shapes and dtypes.

    Python numbers, strings and functions are part of the program. A function that cannot run on
    traced captured arrays gets them as constants.
    """
    admits = tuple(map(admits_arrays, inspect.signature(function).parameters.values()))

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        pairs = itertools.zip_longest(args, admits[: len(args)])
        given = tuple(_as_array(value) if admit else value for value, admit in pairs), options
        return _opened_or_not(functools.partial(_run, function), given)

    return documented(call)


def traced(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return the shapes of what a function returns, as it is compiled, without compiling it.

    Python numbers are known in it: what refuses their values is raised.
    """
    run = functools.partial(_run, function, shapes_only=True)
    return _opened_or_not(run, (args, options))


def _opened_or_not(run: Callable[[Any], R], given: tuple[tuple, dict[str, Any]]) -> R:
    try:
        return run(jax.tree.map(opened, given))
    except NOT_TRACEABLE:
        return run(given)


def _run(
    function: Callable[..., Any], given: tuple[tuple, dict[str, Any]], shapes_only: bool = False
) -> Any:
    leaves, treedef = jax.tree.flatten(given)
    places = tuple(map(_is_array, leaves))
    arrays = [leaf for leaf, is_array in zip(leaves, places, strict=True) if is_array]
    fixed = tuple(None if is_array else leaf for leaf, is_array in zip(leaves, places, strict=True))
    _refuse_deleted(function, given, arrays)
    alone = not any(isinstance(leaf, Tracer) for leaf in arrays) and not _inside_a_program()
    try:
        program = _program(function, treedef, places, fixed, tuple(map(type, fixed)), alone)
    except TypeError:  # what cannot be hashed cannot be looked up
        return function(*given[0], **given[1])
    return program.eval_shape(arrays) if shapes_only else program(arrays)


def _inside_a_program() -> bool:
    """Tell whether a program is being traced, as an operation on a number shows."""
    return isinstance(lax.neg(_NUMBER), Tracer)


@functools.lru_cache(maxsize=_MOST_PROGRAMS)
def _program(
    function: Callable[..., R],
    treedef: Any,
    places: tuple[bool, ...],
    fixed: tuple[Any, ...],
    kinds: tuple[type, ...],
    alone: bool,
) -> Any:
    del kinds  # distinguishes 1 from True and 1.0

    def run(arrays: list[Any]) -> R:
        rest = iter(arrays)
        pairs = zip(places, fixed, strict=True)
        args, options = treedef.unflatten(next(rest) if there else leaf for there, leaf in pairs)
        return function(*args, **options)

    # Inlined, so that inside another program nothing is compiled separately. XLA takes options for
    # a whole program alone.
    options = _COMPILER_OPTIONS if alone and jax.default_backend() == "cpu" else None
    return jax.jit(run, inline=True, compiler_options=options)


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray):
        return leaf.dtype.kind in "biufcV"
    return isinstance(leaf, jax.Array)


def admits_arrays(parameter: inspect.Parameter) -> bool:
    """Return whether the signature lets a parameter be an array, of whatever shape."""
    kinds = (parameter.annotation, *get_args(parameter.annotation))
    return any(getattr(kind, "array_type", kind) is jax.Array for kind in kinds)


def _as_array(argument: Any) -> Any:
    """Return an array for a number or nested lists of numbers: their values are no structure."""
    if isinstance(argument, float):
        return np.asarray(argument)
    numbers = jax.tree.leaves(argument) if isinstance(argument, list | tuple) else []
    if numbers and all(isinstance(number, float | int) for number in numbers):
        return np.asarray(argument)
    return argument


def _refuse_deleted(function: Any, given: tuple[tuple, dict[str, Any]], arrays: list[Any]) -> None:
    def gone(leaf: Any) -> bool:
        concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
        return concrete and leaf.is_deleted()

    if not any(map(gone, arrays)):
        return
    named = inspect.signature(function).bind(*given[0], **given[1]).arguments
    name = next(name for name, value in named.items() if any(map(gone, jax.tree.leaves(value))))
    raise ValueError(
        f"{name} was donated to an earlier computation and is gone; pass a copy there, or leave it "
        "out of donate_argnums"
    )


# --- functions and what they capture -----------------------------------------------------------


class _Code(eqx.Module):
    """What a function is without what it captures; two from the same line are equal."""

    code: types.CodeType
    names: tuple[str, ...]  # of captured globals
    home: Any = eqx.field(converter=lambda namespace: _Identity(namespace))


class _Identity:
    """An object compared by identity."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value


class Captured(eqx.Module):
    """A Python function whose captured values are leaves: of its closure, its defaults, its module.

    Attributes:
        cells: Values of the variables of the enclosing functions.
        globals: Values of the module's arrays, numbers and networks that it names.
        defaults: Of its positional and keyword-only parameters.
        code: All else.
    """

    cells: tuple[Any, ...]
    globals: tuple[Any, ...]
    defaults: tuple[Any, Any]
    code: _Code = eqx.field(static=True)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function with the values that the leaves have now."""
        return self.function()(*args, **options)

    def function(self) -> types.FunctionType:
        """Return the function that captures the values that the leaves have now."""
        values = closed((self.cells, self.globals, self.defaults))
        cells, captured, (positional, keyword) = values
        home = self.code.home.value
        if self.code.names:
            home = home | dict(zip(self.code.names, captured, strict=True))
        closure = tuple(map(types.CellType, cells))
        function = types.FunctionType(self.code.code, home, closure=closure, argdefs=positional)
        function.__kwdefaults__ = keyword
        return function


def closed(tree: Any) -> Any:
    """Return a pytree with plain functions again in the place of those that were opened.

    So it is given to its own code, which may map over its leaves: Equinox's MLP takes each array
    below its activation for one row for each neuron.
    """

    def is_open(node: Any) -> bool:
        return isinstance(node, Captured)

    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_open)
    if not any(map(is_open, leaves)):
        return tree
    return treedef.unflatten(leaf.function() if is_open(leaf) else leaf for leaf in leaves)


def opened(leaf: Any, _seen: tuple[int, ...] = ()) -> Any:
    """Return a plain function as a pytree of what it captures, and anything else as it is.

    A Linen module that contains its variables becomes its `apply` with them: it cannot be hashed.
    """
    if callable(getattr(leaf, "unbind", None)) and getattr(leaf, "scope", None) is not None:
        module, variables = leaf.unbind()
        return jax.tree_util.Partial(type(module).apply, module, variables)
    if isinstance(leaf, types.MethodType) and not isinstance(leaf.__self__, type):
        return jax.tree_util.Partial(leaf.__func__, leaf.__self__)
    if not isinstance(leaf, types.FunctionType) or id(leaf) in _seen or _is_of_a_library(leaf):
        return leaf
    inside = functools.partial(opened, _seen=(*_seen, id(leaf)))
    try:
        cells = tuple(cell.cell_contents for cell in leaf.__closure__ or ())
    except ValueError:  # a variable that has no value yet
        return leaf
    names = tuple(name for name in _named(leaf.__code__) if _is_captured(leaf, name))
    found = (
        cells,
        tuple(leaf.__globals__[name] for name in names),
        (leaf.__defaults__, leaf.__kwdefaults__),
    )
    cells, values, defaults = jax.tree.map(inside, found)
    return Captured(cells, values, defaults, _Code(leaf.__code__, names, leaf.__globals__))


def _is_of_a_library(function: types.FunctionType) -> bool:
    """Return whether a function comes with a library, and so captures nothing that changes."""
    root = (function.__module__ or "").partition(".")[0]  # code from `exec` has no module
    return not function.__closure__ and root in _LIBRARIES


def _named(code: types.CodeType) -> list[str]:
    """Return the names that a function, and those inside it, may look up in its module."""

    def every(code: types.CodeType) -> Iterator[str]:
        yield from code.co_names
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from every(constant)

    return sorted(set(every(code)))


def _is_captured(function: types.FunctionType, name: str) -> bool:
    """Return whether a global may change what the function computes: data, or a near function."""
    value = function.__globals__.get(name)
    if isinstance(value, types.ModuleType | type | types.BuiltinFunctionType) or value is None:
        return False
    if isinstance(value, types.FunctionType):
        return value.__globals__ is function.__globals__
    if isinstance(value, bool | int | float | str):
        return True
    return any(map(_is_array, jax.tree.leaves(value)))
