"""Walks along leaves and across them: toward a target, and along a direction.

Both take one start and are integrated by diffrax (see `solver`); `foliax.map` takes many.
"""

from typing import Any

import diffrax
from jaxtyping import Array, ArrayLike

from foliax._core.checks import (
    check_choice,
    check_count,
    check_key,
)
from foliax._core.documented import documented
from foliax._core.likelihood import Likelihood
from foliax._core.types import Along, Count, Model, Scheme, Speed
from foliax.flow.path import Path
from foliax.flow.scene import Plan, Scene, make_scene
from foliax.flow.solver import Integrator, integrate
from foliax.likelihood import Categorical

__all__ = ["drift", "walk"]

_MOST_STEPS = 80_000  # beyond, diffrax would round the last step of float32 time away


@documented
def walk(
    model: Model, x: ArrayLike, target: ArrayLike, *,
    along: Along = "leaf", box: Any = None, free: ArrayLike | None = None,
    step: float | Array = 0.1, max_steps: Count = 5000, save_every: Count = 50,
    arrival: float | Array = 1.0, stall: float | Array = 0.01,
    scheme: Scheme = "exact", speed: Speed = "unit",
    kicks: Count = 0, kick: float | Array = 1.0, key: Array | None = None,
    likelihood: Likelihood = Categorical(),
    solver: diffrax.AbstractSolver = diffrax.Euler(),
    controller: diffrax.AbstractStepSizeController = diffrax.ConstantStepSize(),
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
    progress_meter: diffrax.AbstractProgressMeter = diffrax.NoProgressMeter(),
) -> Path:  # fmt: skip
    """Walk from x toward a target without leaving the leaf: x' = P(target − x).

    The speed is one `step` of input length a step. `"exact"` shortens the step to ‖P d‖ near the
    foot of the perpendicular, where it stalls; along the leaf it is not held in the box (D has no
    room for that: the path reports `box_excess`), along the kernel it keeps p and stays inside.
    `"published"` is the scheme of the paper to the letter: unit-speed Euler, clipped to the box,
    until it arrives or runs out of steps. Costs one Jacobian a step.

    Args:
        x: The start, in the model's (normalised) units.
        target: Where to go, of x's shape.
        max_steps: Steps at most, ≤ 80,000; sets the shape of the result.
        arrival: Distance to the target at which the walk has arrived, ≥ 0.
        stall: Tangent fraction ‖P d‖/‖d‖ below which "exact" has stalled, once the foot is within
            a step. Where D is a thin slice, √(d/n) < 0.1 for d = dim D (the fraction of a random
            direction), it is scaled by 10 √(d/n): 9 dimensions of 150,528 hold 0.008 of one.
        scheme: "exact" or "published".
        speed: "unit", or "gradient" for x' = P d, a step being `step` of its time.
        kicks: How often a stalled walk is sent on by a random displacement inside D.
        kick: Length of such a displacement, > 0.
        key: A `jax.random` key, needed where kicks > 0.

    Returns:
        A `Path`, with a `Status`: arrived, stalled, out_of_steps, boundary or invalid; outside,
            where x lies outside the box and is traced (a concrete one is a ValueError).

    Raises:
        ValueError: For arguments that shapes, dtypes or concrete values show to be wrong.

    Source: Grementieri & Fioresi 2022, section 4 ("published").

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> path = foliax.walk(model, jnp.zeros(2), jnp.array([3.0, 4.0]), arrival=0.1)
        >>> bool(path.status == foliax.Status.stalled), [f"{v:.3f}" for v in path.end]
        (True, ['3.000', '0.000'])
    """
    check_choice(speed, name="speed", choices=("unit", "gradient"))
    _check_kicks(kicks, key)
    integrator = Integrator(solver, controller, adjoint, progress_meter, max_steps, save_every)
    scene = make_scene(
        model, x, target, likelihood, box, free,
        _plan(along, scheme, integrator, toward=True, gradient=speed == "gradient", kicks=kicks),
        key=key, max_steps=max_steps, save_every=save_every, step=step, arrival=arrival,
        stall=stall, kick=kick,
    )  # fmt: skip
    return _integrated(scene, integrator)


@documented
def drift(
    model: Model, x: ArrayLike, direction: ArrayLike, *,
    along: Along = "leaf", box: Any = None, free: ArrayLike | None = None,
    step: float | Array = 0.1, max_steps: Count = 1000, save_every: Count = 50,
    scheme: Scheme = "exact", likelihood: Likelihood = Categorical(),
    solver: diffrax.AbstractSolver = diffrax.Euler(),
    controller: diffrax.AbstractStepSizeController = diffrax.ConstantStepSize(),
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
    progress_meter: diffrax.AbstractProgressMeter = diffrax.NoProgressMeter(),
) -> Path:  # fmt: skip
    """Drift from x along the projection of a constant ambient direction: x' = P v / ‖P v‖.

    Along the kernel p is conserved. `"exact"` keeps it: it moves along ker G with the active
    pixel bounds held, then corrects back onto the level set of p. `"published"` steps and clips,
    and leaves the level set.

    Args:
        x: The start, in the model's (normalised) units.
        direction: The ambient direction v, of x's shape; its length does not matter.
        max_steps: How many steps, ≤ 80,000; sets the shape of the result.
        scheme: "exact" or "published".

    Returns:
        A `Path`, with a `Status`: completed, stalled (v has no part to follow), boundary (the box
        leaves none), out_of_steps (an adaptive controller rejected too many), invalid, or
            outside, as in `walk`.

    Raises:
        ValueError: For arguments that shapes, dtypes or concrete values show to be wrong.

    Source: Grementieri & Fioresi 2022, section 4 ("published").

    Example:
        >>> import jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> path = foliax.drift(model, jnp.zeros(2), jnp.ones(2), along="kernel", max_steps=50)
        >>> [f"{v:.3f}" for v in path.end], float(path.probability_change[-1])
        (['0.000', '5.000'], 0.0)
    """
    integrator = Integrator(solver, controller, adjoint, progress_meter, max_steps, save_every)
    scene = make_scene(
        model, x, direction, likelihood, box, free,
        _plan(along, scheme, integrator, toward=False, gradient=False, kicks=0),
        goal_name="direction", max_steps=max_steps, save_every=save_every, step=step, arrival=0.0,
        stall=0.0, kick=1.0,
    )  # fmt: skip
    return _integrated(scene, integrator)


def _plan(
    along: str, scheme: str, integrator: Integrator, *, toward: bool, gradient: bool, kicks: int
) -> Plan:
    """Check what a compiled walk depends on besides arrays."""
    max_steps, save_every = integrator.max_steps, integrator.save_every
    check_choice(scheme, name="scheme", choices=("exact", "published"))
    check_count(max_steps, name="max_steps")
    check_count(save_every, name="save_every")
    if max_steps > _MOST_STEPS:
        raise ValueError(f"max_steps must be at most {_MOST_STEPS}, got {max_steps}; chain walks")
    rows = 1 + max_steps // save_every
    return Plan(toward, along, scheme == "published", gradient, kicks, rows)


def _integrated(scene: Scene, integrator: Integrator) -> Path:
    return integrate(scene, None if integrator.is_plain() else integrator)


def _check_kicks(kicks: int, key: Array | None) -> None:
    check_count(kicks, name="kicks", least=0)
    if kicks and key is None:
        raise ValueError(f"kicks={kicks} needs a key, e.g. key=jax.random.key(0)")
    if kicks:
        check_key(key)
