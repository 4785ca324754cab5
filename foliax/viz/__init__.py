"""Pictures: strips of images along a path, GIFs, training dynamics, spectra and curves.

Every function writes one file and returns its path. A file is written beside its place and then
renamed, so that nobody reads half a picture. Figures carry their own neutral ground and a
colour-blind safe palette (Okabe & Ito), so they read in print, on a white and on a dark page.
Nothing touches pyplot or its global state.
"""

from foliax.viz.images import gif as gif
from foliax.viz.images import strip as strip
from foliax.viz.plots import Curve as Curve
from foliax.viz.plots import Panel as Panel
from foliax.viz.plots import curves as curves
from foliax.viz.plots import dynamics as dynamics
from foliax.viz.plots import spectrum as spectrum
from foliax.viz.style import PALETTE as PALETTE

__all__ = ["PALETTE", "Curve", "Panel", "curves", "dynamics", "gif", "spectrum", "strip"]
