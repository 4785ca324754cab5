"""Curvature as an explanation: what is left of it, and where a leaf bends."""
