"""Out of distribution: how far an input is from the data leaves through reference inputs.

Every score of one input is higher the farther out the input is. Those of `score` use the leaf
through a reference r: the frame of D at r, the frame at x, and the point of the leaf closest to x.
A reference that is chosen because it is near in pixels carries that distance into every score; so
`medoids` chooses references by the training set alone, and `distance` is among the scores as a
control that does not depend on the leaf.
"""

from foliax.apps.ood.calibration import Calibration, calibrate, combine, exceeds, standardise
from foliax.apps.ood.scoring import References, Scores, medoids, prepare, score

__all__ = [
    "Calibration",
    "References",
    "Scores",
    "calibrate",
    "combine",
    "exceeds",
    "medoids",
    "prepare",
    "score",
    "standardise",
]
