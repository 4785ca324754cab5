"""Denoise an image by projecting it on data leaves: those through similar images.

`nearest`, `nearest_by_class` and `nearest_by_feature` choose the references; `project` flows from
each along its leaf to the point closest to x, or stops before; `combine` makes one image of these
projections, which it can shrink toward the references and blend with x. `denoise` does the last
two. Nothing is clipped to the pixel box.
"""

from foliax.apps.denoise.denoising import Denoised, combine, denoise, exchange_kernel
from foliax.apps.denoise.projection import Projected, project
from foliax.apps.denoise.references import choose, nearest, nearest_by_class, nearest_by_feature

__all__ = [
    "Denoised",
    "Projected",
    "choose",
    "combine",
    "denoise",
    "exchange_kernel",
    "nearest",
    "nearest_by_class",
    "nearest_by_feature",
    "project",
]
