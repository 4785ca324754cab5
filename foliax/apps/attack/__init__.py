"""Small changes that change a prediction: attacks along the eigenvectors of G, and others.

To second order KL(p(x) ‖ p(x + v)) = ½ vᵀGv: among the moves of one length, that along the top
eigenvector changes the prediction most. `spectral` moves along it, in one step or in several that
turn with the eigenvector, as leaves are curved; `geodesic` goes straight ahead in G's metric.
Beside them is `random_direction`, which needs nothing.

Each takes one input and a budget, the Euclidean length of the move in the model's units, and
returns an `Attacked`. The label that is attacked is the one predicted, unless another is given.
"""

from foliax.apps.attack.attacks import (
    geodesic,
    random_direction,
    spectral,
)
from foliax.apps.attack.scene import Attacked

__all__ = [
    "Attacked",
    "geodesic",
    "random_direction",
    "spectral",
]
