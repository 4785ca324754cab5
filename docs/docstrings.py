"""For the site: griffe knows the section "Examples:" and not "Example:", which foliax writes."""

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Have the section "Example:" of every docstring read as examples, not as prose."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
