"""Metamers: inputs that look like another one and have the probabilities of this one.

Level sets of p have codimension rank D ≤ C − 1, so nearly all of input space lies along them, and
the point of the level set nearest to another image (`foliax.closest(…, along="kernel")`) can look
like that image while p stays. How far one has to go until somebody else sees another class is the
*invariance radius* of an input; how short a move changes the label (`explain`, `attack`) is its
sensitivity radius. For a thousand classes `at_scale` takes gradients only.
"""

from foliax.apps.metamer.invariance import Invariance, Metamers, invariance_radius, metamers
from foliax.apps.metamer.scale import at_scale

__all__ = ["Invariance", "Metamers", "at_scale", "invariance_radius", "metamers"]
