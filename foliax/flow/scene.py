"""What stays fixed while a point moves: the model, the start, the goal, the box, the options."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from foliax._core.checks import as_point, as_tangent, check_choice, check_positive, is_traced
from foliax._core.jacobian import contrast_jacobian, logits_struct, working_dtype
from foliax._core.likelihood import Likelihood
from foliax._core.types import Model
from foliax._linalg.row_space import RowSpace
from foliax.flow.box import Box, check_box
from foliax.flow.flat import Flat
from foliax.flow.level_set import resolution
from foliax.likelihood import contrast_change


class Plan(eqx.Module):
    """What a compiled walk depends on besides arrays."""

    toward: bool = eqx.field(static=True)
    along: str = eqx.field(static=True)
    published: bool = eqx.field(static=True)
    gradient: bool = eqx.field(static=True)  # speed ‖P d‖ instead of 1
    kicks: int = eqx.field(static=True)
    rows: int = eqx.field(static=True)  # of the path


class Scene(Flat):
    """Everything that stays fixed during one walk."""

    likelihood: Any
    box: Box | None
    start: Float[Array, " n"]
    goal: Float[Array, " n"]  # the target, or the direction
    max_steps: Float[Array, ""]
    save_every: Float[Array, ""]
    step: Float[Array, ""]
    arrival: Float[Array, ""]
    stall: Float[Array, ""]
    kick: Float[Array, ""]
    key: Array | None
    plan: Plan
    free: Float[Array, " n"] | None = None  # 1 where x may move and 0 where not; None for all
    # Known once the integration has begun:
    start_logits: Any = None  # (C,)
    contrasts: Any = None  # (r, C), those of the start: on a walk the same classes can occur
    misplaced: Any = None  # whether the start lies outside the box

    def begun(self) -> "Scene":
        """Return the same scene with what is known of the start."""
        logits = self.logits(self.start)
        contrasts = self.likelihood.contrasts(logits)
        misplaced = jnp.asarray(False) if self.box is None else ~self.box.holds(self.start)
        return dataclasses.replace(
            self, start_logits=logits, contrasts=contrasts, misplaced=misplaced
        )

    def linearised(self, x: Float[Array, " n"]) -> tuple[Array, Array, RowSpace]:
        """Return logits, contrast Jacobian and its row space at x: one Jacobian."""
        logits, k = contrast_jacobian(
            self.model, self.shaped(x), self.likelihood, contrasts=self.contrasts
        )
        logits, k = logits.astype(x.dtype), k.astype(x.dtype)
        k = k if self.free is None else k * self.free
        return logits, k, RowSpace.of(k)

    def direction(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """Return what is projected at x."""
        return self.goal - x if self.plan.toward else self.goal

    def resolution(self) -> Float[Array, ""]:
        """Return how finely the contrasts of this model's logits resolve."""
        return resolution(self.likelihood, self.start_logits, self.dtype)

    def defect(self, logits: Float[Array, " c"]) -> Float[Array, " r"]:
        """Return the change of what a kernel leaf conserves."""
        return contrast_change(self.likelihood, self.start_logits, logits)


def make_scene(
    model: Model,
    start: ArrayLike,
    goal: ArrayLike,
    likelihood: Likelihood,
    box: Box | None,
    free: ArrayLike | None,
    plan: Plan,
    *,
    start_name: str = "x",
    goal_name: str = "target",
    key: Array | None = None,
    **numbers: Any,  # max_steps, save_every, step, arrival, stall, kick
) -> Scene:
    """Check the arguments and flatten them."""
    check_choice(plan.along, name="along", choices=("leaf", "kernel"))
    check_positive(numbers["step"], name="step")
    check_positive(numbers["arrival"], name="arrival", or_zero=True)
    check_positive(numbers["stall"], name="stall", or_zero=True)
    check_positive(numbers["kick"], name="kick")
    x = as_point(start, name=start_name)
    goal = as_tangent(goal, x, name=goal_name)
    check_box(box, x, name=start_name)
    mask = None if free is None else as_mask(free, x)
    if mask is not None:  # what may not move has no way to go
        goal = jnp.where(mask, goal, x if plan.toward else 0)
    dtype = working_dtype(x, logits_struct(model, x, likelihood))

    def flat(array: Array) -> Array:
        return jnp.broadcast_to(array, x.shape).ravel().astype(dtype)

    return Scene(
        model=model,
        likelihood=likelihood,
        box=jax.tree.map(flat, box),
        start=flat(x),
        goal=flat(goal),
        free=None if mask is None else flat(mask),
        key=key,
        plan=plan,
        shape=x.shape,
        dtype=x.dtype,
        **{name: jnp.asarray(number, dtype) for name, number in numbers.items()},
    )


def as_mask(free: ArrayLike, x: Array) -> Array:
    """Return which entries of x may move, of x's shape, or say why the mask is none."""
    mask = jnp.asarray(free)
    if mask.dtype != bool:
        raise ValueError(
            f"free must be a mask of booleans, true where x may move, got dtype {mask.dtype}; "
            "write e.g. mask > 0"
        )
    try:
        mask = jnp.broadcast_to(mask, x.shape)
    except ValueError:
        raise ValueError(
            f"free must broadcast to the shape of x, {x.shape}, got {mask.shape}"
        ) from None
    if not is_traced(mask) and not np.any(mask):
        raise ValueError("free must let some entry of x move, got a mask that is false everywhere")
    return mask
