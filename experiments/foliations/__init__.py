"""Foliations of the plane and of space: networks, curves along leaves, and one run for both."""
