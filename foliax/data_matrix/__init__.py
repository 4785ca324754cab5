"""The local data matrix G: its factor, products, spectrum and KL, in closed form and sampled."""

from foliax._linalg.rank import count_rank as count_rank
from foliax._linalg.rank import default_rtol as default_rtol
from foliax._linalg.rank import singular_values as singular_values
from foliax.data_matrix.average import Average, average
from foliax.data_matrix.estimate import Estimate, trace_estimate
from foliax.data_matrix.matrix import (
    Eigen,
    Spectrum,
    eigh,
    factor,
    kl,
    matrix,
    matvec,
    quadratic,
    rank,
    solve,
    spectrum,
    trace,
)

__all__ = [
    "Average",
    "Eigen",
    "Estimate",
    "Spectrum",
    "average",
    "eigh",
    "factor",
    "kl",
    "matrix",
    "matvec",
    "quadratic",
    "rank",
    "solve",
    "spectrum",
    "trace",
    "trace_estimate",
]
