"""Matrices alone, no model and no x: products, row spaces, ranks, LAPACK, Lanczos."""
