"""Scripts that show the claims with pictures and numbers; `python -m experiments.NAME --help`."""
