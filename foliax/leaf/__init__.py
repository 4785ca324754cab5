"""Geometry of a leaf: lengths, distance, geodesics, connection, curvature within and without.

In G's metric a leaf of full rank C − 1 is locally isometric to the simplex with u = 2 √p, a piece
of the sphere of radius 2, for every network. So its curvature is 1/4, its geodesics are lifted
great circles of √p, and its local distance is 2 arccos Σ √(p_i q_i) ≤ π: closed forms that do
not depend on what was learnt. What varies with the network is the curvature where the rank is
lower, and how the leaf bends in input space.

    from foliax import leaf
    leaf.distance(model, x, y)
    leaf.geodesic(model, x, y).points
    leaf.curvature(model, x).mean
    leaf.extrinsic(model, x).norm
"""

from foliax.leaf.intrinsic import Curvature, Sectional, connection, curvature, sectional
from foliax.leaf.lift import Geodesic
from foliax.leaf.metric import distance, energy, exponential, geodesic, length
from foliax.leaf.second_form import (
    Extrinsic,
    Principal,
    extrinsic,
    principal_curvatures,
    second_fundamental_form,
)

__all__ = [
    "Curvature",
    "Extrinsic",
    "Geodesic",
    "Principal",
    "Sectional",
    "connection",
    "curvature",
    "distance",
    "energy",
    "exponential",
    "extrinsic",
    "geodesic",
    "length",
    "principal_curvatures",
    "second_fundamental_form",
    "sectional",
]
