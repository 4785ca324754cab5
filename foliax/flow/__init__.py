"""Everything that moves a point: walk, drift, closest point, Brownian motion."""
