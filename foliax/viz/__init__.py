"""Pictures: strips along a path, GIFs, maps of a leaf, training dynamics, spectra and curves.

Every function writes one file and returns its path. A file is written beside its place and then
renamed, so that no incomplete file is ever read. Figures have a neutral background of their own and
palettes that are safe for any colour vision (Okabe & Ito; for classes, Tol), so they can be read in
print, on a white and on a dark page. Nothing touches pyplot or its global state.
"""

from foliax.viz.describe import describe as describe
from foliax.viz.images import gif as gif
from foliax.viz.images import signed as signed
from foliax.viz.images import strip as strip
from foliax.viz.map import leaf_map as leaf_map
from foliax.viz.plots import Curve as Curve
from foliax.viz.plots import Panel as Panel
from foliax.viz.plots import curves as curves
from foliax.viz.plots import dynamics as dynamics
from foliax.viz.plots import spectrum as spectrum
from foliax.viz.style import CLASSES as CLASSES
from foliax.viz.style import PALETTE as PALETTE

__all__ = [
    "CLASSES",
    "PALETTE",
    "Curve",
    "Panel",
    "curves",
    "describe",
    "dynamics",
    "gif",
    "leaf_map",
    "signed",
    "spectrum",
    "strip",
]
