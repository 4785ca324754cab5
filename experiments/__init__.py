"""Scripts that show the claims with pictures and numbers; `python -m experiments.NAME --help`."""

import ctypes
import os

# Small eigenproblems are solved one by one inside compiled programs; threads of BLAS would only
# fight those of XLA (ten times slower at 100 classes). Read when SciPy is first loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _keep_freed_memory() -> None:
    """Tell glibc not to give large blocks back to the system between two runs of a program.

    Every page that comes back must be faulted in again: half of the time of a training step.
    """
    mmap_threshold, trim_threshold, most = -3, -1, 1 << 30
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return
    mallopt(mmap_threshold, most)
    mallopt(trim_threshold, most)


_keep_freed_memory()
