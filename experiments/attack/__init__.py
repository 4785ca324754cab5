"""Attacks along the eigenvectors of G beside the usual ones, and a penalty against all of them."""
