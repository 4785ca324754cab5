"""Types of the public arguments that this library checks by hand.

A type checker reads them in full. At run time they are loose, so that our error about the
argument comes first also where a type-checking import hook is armed.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Array

if TYPE_CHECKING:
    Model = Callable[[Array], Array]
    Along = Literal["leaf", "kernel"]
    Metric = Literal["euclidean", "fisher"]
    Scheme = Literal["exact", "published"]
    Speed = Literal["unit", "gradient"]
    Operations = Literal["auto", "fast", "stock"]
    Precision = Literal["highest", "high", "default"]
    EighMethod = Literal["factor", "lanczos"]
    Count = int
    Chunk = int | None
else:
    Model = Along = Metric = Scheme = Speed = Operations = Precision = EighMethod = Any
    Count = Chunk = Any
