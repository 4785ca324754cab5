"""Which classes are near an image in the geometry of its leaf, and the moves that reach them.

`reach` moves one input along its data leaf to where a given class is the most probable one, and
stops at the boundary; `explain` does so for every class. The end of the move is an image (one that
the network just classifies as a coat), and the move has two lengths: that in input space, and that
in G's metric, which depends on p alone: 2 arccos Σ√(p_i q_i), where rank G = C − 1, and never
exceeds π.

G's metric has a closed-form lower bound, the distance of p to the nearest distribution in which the
class is the largest (`nearest_distribution`). It falls as p_c rises: in the order of that bound the
nearest classes are the most probable ones, and nothing else. What depends on
the network beyond its output is the input distance.
"""

from foliax.apps.explain.explanation import (
    Explanation,
    Reached,
    explain,
    nearest_distribution,
    order,
    reach,
)

__all__ = [
    "Explanation",
    "Reached",
    "explain",
    "nearest_distribution",
    "order",
    "reach",
]
