"""What the parameters that many functions share mean: written once, read in the help of each."""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

SHARED = {
    "model": "Callable pytree from one input to C logits.",
    "x": "One input, in the model's (normalised) units.",
    "likelihood": "The output distribution.",
    "chunk": "How many rows are pulled back at once; None for all.",
    "v": "A tangent vector of x's shape.",
    "delta": "The displacement δ, of x's shape.",
    "k": "How many pairs, 1 ≤ k ≤ m; None for all m.",
    "label": "The class to move away from; None for the predicted one.",
    "along": '"leaf" for D, "kernel" for ker G.',
    "box": (
        "The pixel bounds, in the units of x, which x must respect (the target need not); None "
        "for none."
    ),
    "free": (
        "A boolean mask that broadcasts to x, true where x may move (pixels, patches, tokens); "
        "None for everywhere. D, the kernel and all lengths are then those of the free entries."
    ),
    "step": "Length of a step, > 0, in the units of x.",
    "save_every": "A point is kept every so many steps.",
    "solver": "A diffrax solver. Euler needs one Jacobian a step, one of s stages s + 1.",
    "controller": (
        "A diffrax step-size controller; adaptive ones need a solver with an error estimate, "
        'and change what a "step" is. A rejected step counts against `max_steps`.'
    ),
    "adjoint": (
        "How diffrax differentiates the walk: the default serves `jax.grad`, "
        "`diffrax.ForwardMode()` serves `jax.jvp`. (That of an exact kernel walk is the "
        "derivative of its chord corrections, whose Jacobian is a step old: approximate, to "
        "5e-3 to 2e-2 of the gradient's length on small tanh networks.)"
    ),
    "num_classes": "C.",
    "shape": "(H, W, channels) of one input.",
    "activation": "As in `CNN`.",
    "pool": "As in `CNN`.",
    "rngs": "Where the weights are drawn from.",
    "progress_meter": "A diffrax progress meter, as `diffrax.TqdmProgressMeter()`.",
}


def documented(function: F) -> F:
    """Add to a docstring the shared parameters that it leaves out."""
    if function.__doc__:
        function.__doc__ = completed(function.__doc__, inspect.signature(function).parameters)
    return function


def completed(docstring: str, parameters: Iterable[str]) -> str:
    """Return the docstring with an entry for each shared parameter, in the signature's order."""
    text = inspect.cleandoc(docstring)
    before, args, rest = text.partition("\nArgs:\n")
    if not args:
        before, returns, rest = text.partition("\nReturns:\n")
        if not returns:
            return text
        rest = f"\nReturns:\n{rest}"
    section, blank, after = rest.partition("\n\n") if args else ("", "", rest)
    own = {
        entry.partition(":")[0].strip(" *"): entry.rstrip("\n")
        for entry in re.split(r"(?m)^(?=    \S)", section)
        if entry
    }
    lines = "\n".join(own.get(name) or _entry(name) for name in parameters if name in own | SHARED)
    return f"{before}\nArgs:\n{lines}\n{blank[1:]}{after}" if lines else text


def _entry(name: str) -> str:
    text = f"{name}: {SHARED[name]}"
    return textwrap.fill(text, 96, initial_indent=" " * 4, subsequent_indent=" " * 8)
