"""What the parameters that many functions share mean: written once, read in the help of each."""

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

SHARED = {
    "model": "Callable pytree from one input to C logits.",
    "x": "One input, in the model's (normalised) units.",
    "likelihood": "The output distribution.",
    "chunk": "How many rows are pulled back at once; None for all.",
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
    shared = {name: f"    {name}: {meaning}" for name, meaning in SHARED.items()}
    entries = [(own | {k: v for k, v in shared.items() if k not in own}).get(n) for n in parameters]
    lines = "\n".join(entry for entry in entries if entry)
    return f"{before}\nArgs:\n{lines}\n{blank[1:]}{after}" if lines else text
