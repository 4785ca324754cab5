"""The foliation that G induces: the distribution D, ker G, and whether D is integrable."""

from foliax._core.jacobian import contrast_jacobian as contrast_jacobian
from foliax.foliation.brackets import Involutivity, involutivity
from foliax.foliation.distribution import (
    Frame,
    dimension,
    frame,
    project_kernel,
    project_leaf,
)

__all__ = [
    "Frame",
    "Involutivity",
    "dimension",
    "frame",
    "involutivity",
    "project_kernel",
    "project_leaf",
]
