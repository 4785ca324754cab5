"""Mean, deviation and threshold of scores on training data: no outlier is needed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["Calibration", "calibrate", "combine", "exceeds", "standardise"]

Named = Any  # scores by name: a NamedTuple of them, as `Scores`, or a mapping


class Calibration(NamedTuple):
    """Mean, deviation and threshold on training data, by the name of the score.

    Attributes:
        mean: Mean over the training inputs.
        std: Their standard deviation; 1 where all are equal.
        threshold: Upper empirical quantile of the training scores, at the share asked for: a value
            that occurs.
    """

    mean: dict[str, Float[Array, ""]]
    std: dict[str, Float[Array, ""]]
    threshold: dict[str, Float[Array, ""]]


def calibrate(training: Named, *, share: float = 0.95) -> Calibration:
    """Estimate mean, deviation and threshold of scores on inputs of the distribution.

    Args:
        training: Scores of N training inputs: what `foliax.map` returned, or (N,) values by name.
            Best of inputs that are not among the references.
        share: Of the training inputs, how many shall lie at or below the threshold, in (0, 1).

    Returns:
        A `Calibration`. Scores that are all equal on training inputs get a deviation of 1.

    Raises:
        ValueError: If share is out of range, there are no scores, or they are not (N,).

    Example:
        >>> import jax.numpy as jnp
        >>> found = calibrate({"distance": jnp.arange(101.0)})
        >>> float(found.mean["distance"]), float(found.threshold["distance"])
        (50.0, 95.0)
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie in (0, 1), got {share!r}")
    named = _named(training)
    for name, values in named.items():
        if values.ndim != 1 or not values.size:
            raise ValueError(
                f"training scores must be (N,) values of N inputs, got shape {values.shape} for "
                f"{name!r}; reduce over the references first"
            )
    std = {name: jnp.std(values) for name, values in named.items()}
    return Calibration(
        mean={name: jnp.mean(values) for name, values in named.items()},
        std={name: jnp.where(value == 0, 1, value) for name, value in std.items()},
        threshold={
            # "higher": a value that occurs, so that no less than the share lies at or below it.
            name: jnp.quantile(values, share, method="higher")
            for name, values in named.items()
        },
    )


def standardise(calibration: Calibration, found: Named) -> dict[str, Float[Array, "..."]]:
    """Return (score − mean) / deviation on training inputs, for every score that was calibrated.

    Args:
        calibration: What `calibrate` returned.
        found: Scores of one input or many, with at least the calibrated names.

    Returns:
        Values by name, of the shape of each score.

    Raises:
        ValueError: If a calibrated score is missing.

    Example:
        >>> import jax.numpy as jnp
        >>> known = calibrate({"distance": jnp.array([-1.0, 1.0])})
        >>> float(standardise(known, {"distance": jnp.array(3.0)})["distance"])
        3.0
    """
    named = _present(calibration, found)
    return {
        name: (named[name] - calibration.mean[name]) / calibration.std[name]
        for name in calibration.mean
    }


def combine(
    calibration: Calibration, found: Named, names: Sequence[str] | None = None
) -> Float[Array, "..."]:
    """Return the sum of standardised scores: one number, fitted without outliers.

    Args:
        calibration: What `calibrate` returned.
        found: Scores of one input or many.
        names: Which to sum; None for all that were calibrated.

    Returns:
        The sum. Its own threshold is that of `calibrate({"sum": combine(…training…)})`.

    Raises:
        ValueError: If a name was not calibrated, or is missing.

    Example:
        >>> import jax.numpy as jnp
        >>> known = calibrate({"a": jnp.array([-1.0, 1.0]), "b": jnp.array([-2.0, 2.0])})
        >>> float(combine(known, {"a": 3.0, "b": 2.0}))
        4.0
    """
    standard = standardise(calibration, found)
    names = list(standard) if names is None else list(names)
    if unknown := [name for name in names if name not in standard]:
        raise ValueError(f"names must be among {', '.join(standard)}, got {unknown}")
    if not names:
        raise ValueError("names must hold at least one score, got none")
    return jnp.sum(jnp.stack([standard[name] for name in names]), axis=0)


def exceeds(calibration: Calibration, found: Named) -> dict[str, Float[Array, "..."]]:
    """Return score − threshold: positive where an input is called out of distribution.

    Args:
        calibration: As in `standardise`.
        found: As in `standardise`.

    Returns:
        Values by name, of the shape of each score.

    Raises:
        ValueError: As `standardise`.

    Example:
        >>> import jax.numpy as jnp
        >>> known = calibrate({"distance": jnp.arange(101.0)})
        >>> float(exceeds(known, {"distance": 97.0})["distance"])
        2.0
    """
    named = _present(calibration, found)
    return {name: named[name] - calibration.threshold[name] for name in calibration.threshold}


def _named(found: Named) -> dict[str, Array]:
    given = found._asdict() if hasattr(found, "_asdict") else dict(found)
    named = {
        name: jnp.asarray(values)
        for name, values in given.items()
        if values is not None and name != "status"
    }
    if not named:
        raise ValueError("scores must hold at least one value by name, got none")
    return named


def _present(calibration: Calibration, found: Any) -> dict[str, Array]:
    named = _named(found)
    if missing := [name for name in calibration.mean if name not in named]:
        raise ValueError(f"scores must hold what was calibrated, got none of {missing}")
    return named
