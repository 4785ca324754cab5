"""Arrays of a model that are no weights: statistics, states, keys."""

from typing import Any

import equinox as eqx


class Fixed(eqx.Module):
    """A part of a model that F does not vary."""

    value: Any
