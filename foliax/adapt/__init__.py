"""A model of any library as what every function takes: a callable pytree of one input.

Each library has its own module here, which imports it only once a model of it is there.
"""

from foliax.adapt.adapted import Adapted
from foliax.adapt.bind import adapt

__all__ = ["Adapted", "adapt"]
