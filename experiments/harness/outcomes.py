"""The words for what became of a claim."""

HOLDS, IN_PART, FAILS = "holds", "holds in part", "does not hold"


def outcome(share: float) -> str:
    """Name what a share of cases for which a claim held amounts to."""
    return HOLDS if share >= 0.99 else FAILS if share <= 0.01 else IN_PART


def percent(share: float) -> str:
    """Write a share for a sentence, e.g. 34.4 %."""
    return f"{100 * share:.3g} %"
