"""Explanations: which classes are nearest to an image in the geometry of its leaf."""
