"""For the site: docstrings as foliax completes and writes them, in the form griffe knows."""

import re
from typing import Any

import griffe

from foliax._core.documented import completed


class Docstrings(griffe.Extension):
    """Add the shared parameters, and have the section "Example:" read as examples, not as prose."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Describe the shared parameters that the docstring leaves out, as `help` does."""
        if func.docstring and func.is_public:
            func.docstring.value = completed(
                func.docstring.value, [p.name for p in func.parameters]
            )

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
