"""What keeps p along a kernel leaf, and what it costs: schemes, solvers and tolerances compared."""
