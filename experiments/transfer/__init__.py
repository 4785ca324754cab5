"""Data sets compared by the spectra of G, and what the comparison says of transfer."""
