"""What every motion shares: flat points in the working dtype, and steps that are corrected."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
from jaxtyping import Array, Float

from foliax._backend.rewrite import logits_of


class Flat(eqx.Module):
    """A model of inputs of any shape and dtype, at points that are flat, in the working dtype."""

    model: Any
    shape: tuple[int, ...] = eqx.field(static=True)  # the caller's
    dtype: Any = eqx.field(static=True)  # the caller's, in which the model is called

    def shaped(self, x: Float[Array, " n"]) -> Float[Array, "..."]:
        """Return a flat point as the model takes it."""
        return x.astype(self.dtype).reshape(self.shape)

    def logits(self, x: Float[Array, " n"]) -> Float[Array, " c"]:
        """Return the logits at a flat point."""
        return logits_of(self.model, self.shaped(x)).astype(x.dtype)


class Corrected(diffrax.AbstractWrappedSolver):
    """A diffrax solver whose every step is corrected; its last stage is not used again (FSAL)."""

    solver: diffrax.AbstractSolver
    correct: Callable[..., Any] = eqx.field(static=True)  # (args, t1, y0, moved) -> y1

    @property
    def term_structure(self):
        """Return that of the wrapped solver."""
        return self.solver.term_structure

    @property
    def interpolation_cls(self):
        """Return straight lines: the ends are corrected, not what lies between them."""
        return diffrax.LocalLinearInterpolation

    @property
    def scan_kind(self):
        """Return how the wrapped solver loops over its stages: diffrax would set it here."""
        return getattr(self.solver, "scan_kind", None) or "lax"

    def order(self, terms):
        """Return the order of the wrapped solver."""
        return self.solver.order(terms)

    def strong_order(self, terms):
        """Return the strong order of the wrapped solver."""
        return self.solver.strong_order(terms)

    def init(self, terms, t0, t1, y0, args):
        """Return the first state of the wrapped solver."""
        return self.solver.init(terms, t0, t1, y0, args)

    def func(self, terms, t0, y0, args):
        """Return the vector field."""
        return self.solver.func(terms, t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """Step, and correct."""
        del made_jump  # always: the last point was corrected
        moved, error, _, state, result = self.solver.step(
            terms, t0, t1, y0, args, solver_state, True
        )
        moved = self.correct(args, t1, y0, moved)
        return moved, error, {"y0": y0, "y1": moved}, state, result
