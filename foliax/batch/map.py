"""One function over many inputs, in one compiled program."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from foliax._core.checks import check_count, check_key, refuse_deleted
from foliax._core.compile import admits_arrays, compiled, traced
from foliax._core.types import Count, Model


def map(
    fn: Any,  # (model, x, …) -> a pytree of arrays
    model: Model,
    *xs: Any,
    block: Count = 4,
    **options: Any,
) -> Any:
    """Return `fn(model, x, …, **options)` for many inputs, in one compiled program.

    Works through the inputs in blocks of `block`, each a `jax.vmap`. A loop inside fn, such as a
    walk, runs until the slowest element of its block has ended: small blocks waste least where
    elements differ, and a block of 1 uses no vmap at all.

    Args:
        fn: A function of the model and one input, or one of each of xs: `foliax.walk`,
            `foliax.closest`, `foliax.eigh`, your own.
        model: Callable pytree from one input to C logits, or whatever fn takes first.
        *xs: Inputs, as arrays (or pytrees of arrays) stacked along axis 0.
        block: Inputs that are worked on at once, ≥ 1: few on a CPU, all on an accelerator.
        **options: Those of fn, shared by all, but for a `key`: it is split, so that each input has
            its own randomness. Another number where fn takes `float | Array` compiles
            nothing again. What differs from input to input is one of xs:
            `lambda model, x, label: fn(model, x, label=label)`.

    Returns:
        What fn returns, every array with a leading axis over the inputs.

    Raises:
        ValueError: If xs are not stacked alike, or some start lies outside the box; as fn.

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> paths = foliax.map(foliax.walk, model, jnp.zeros((3, 2)), jnp.ones((3, 2)))
        >>> paths.end.shape
        (3, 2)
    """
    check_count(block, name="block")
    if not callable(fn):
        raise ValueError(f"fn must be a function of (model, x), got {type(fn).__name__}")
    if isinstance(fn, functools.partial) and not fn.args:  # made again, it is another function
        fn, options = fn.func, fn.keywords | options
    refuse_deleted(xs, name="xs")
    xs = jax.tree.map(jnp.asarray, xs)
    number = _number(xs)
    check_inside = getattr(options.get("box"), "check_inside", None)
    if check_inside and isinstance(xs[0], Array):  # in the program it would be too late
        check_inside(xs[0], name="xs[0]")
    own = {}
    if options.get("key") is not None:
        check_key(options["key"])
        own["key"] = jax.random.split(options["key"], number)
    numbers = _numbers(fn, options)
    if numbers:  # in the program they are unknown, and nothing could refuse them
        traced(_blocks, fn, model, xs, own, block, options)
    return _mapped(fn, model, xs, own, block, options | numbers)


def _blocks(fn: Any, model: Any, xs: Any, own: Any, block: int, options: Any) -> Any:
    def one(each: tuple[Any, Any]) -> Any:
        inputs, mine = each
        return fn(model, *inputs, **{**options, **mine})

    return lax.map(one, (xs, own), batch_size=None if block == 1 else block)


_mapped = compiled(_blocks)


def _numbers(fn: Any, options: dict[str, Any]) -> dict[str, Array]:
    """Return the options that are plain numbers where arrays may be: others compile nothing."""
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):  # what says nothing of its arguments
        return {}
    return {
        name: jnp.asarray(value)
        for name, value in options.items()
        if isinstance(value, float) and name in parameters and admits_arrays(parameters[name])
    }


def _number(xs: tuple[Any, ...]) -> int:
    """Return how many inputs are stacked."""
    leaves: list[Array] = jax.tree.leaves(xs)
    shapes = [leaf.shape for leaf in leaves]
    numbers = {shape[0] for shape in shapes if shape}
    if not shapes or () in shapes or len(numbers) != 1:
        raise ValueError(
            "xs must be arrays stacked alike along axis 0, one entry an input, got "
            + (", ".join(str(shape) for shape in shapes) or "none")
        )
    if numbers == {0}:
        raise ValueError("xs must hold at least one input, got none")
    return numbers.pop()
