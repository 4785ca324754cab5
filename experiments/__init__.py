"""Scripts that show the claims with pictures and numbers; `python -m experiments.NAME --help`."""

import os

# Small eigenproblems are solved one by one inside compiled programs; threads of BLAS would only
# fight those of XLA (ten times slower at 100 classes). Read when SciPy is first loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
