"""Brownian motion on the leaves, in the Euclidean metric that they inherit or in G's own."""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float, Int

from foliax._backend.rewrite import logits_of
from foliax._core.checks import as_point, check_choice, check_count, check_key, check_positive
from foliax._core.compile import compiled
from foliax._core.jacobian import (
    as_time,
    contrast_jacobian,
    logits_struct,
    pull_rows,
    pullback,
    working_dtype,
)
from foliax._core.likelihood import Likelihood
from foliax._core.types import Along, Count, Metric, Model
from foliax._linalg.products import dot
from foliax._linalg.row_space import RowSpace
from foliax.flow.flat import Corrected, Flat
from foliax.flow.level_set import onto_level_set, resolution
from foliax.flow.path import Code, Status, as_status
from foliax.likelihood import Categorical, contrast_change, logit_change

__all__ = ["Brownian", "brownian"]


class Brownian(NamedTuple):
    """A sampled path of Brownian motion.

    Attributes:
        points: (rows, *x.shape), rows = 1 + num_steps // save_every; past the end the last point.
        times: (rows,).
        end: (*x.shape) the last point.
        num_steps: Steps taken.
        status: A `Status`: completed, boundary (min p fell below the tolerance) or invalid.
    """

    points: Float[Array, "rows ..."]
    times: Float[Array, " rows"]
    end: Float[Array, "..."]
    num_steps: Int[Array, ""]
    status: Status


class _Scene(Flat):
    likelihood: Any
    along: str = eqx.field(static=True)
    metric: str = eqx.field(static=True)
    start_logits: Array
    least: Array


def brownian(
    model: Model,
    x: ArrayLike,
    key: Array,
    time: float | Array,
    *,
    along: Along = "leaf",
    metric: Metric = "euclidean",
    num_steps: Count = 1000,
    save_every: Count = 50,
    least: float | Array = 1e-6,
    likelihood: Likelihood = Categorical(),
) -> Brownian:
    """Run Brownian motion from x for a time, on the leaf or on the kernel leaf.

    - `"euclidean"`: dX = P(X) ∘ dW with noise in all of input space, P the projection on D or on
      ker G: Brownian motion of the metric that the leaf inherits. Along the kernel each step is
      brought back onto the level set of p.
    - `"fisher"`: dX = M⁺(X) ∘ dW, with M the Jacobian of an isometric image of the leaf, G = MᵀM:
      of a classifier u = 2 √p, in the sphere of radius 2 in R^C. Noise projected from the ambient
      space of such an image needs no drift. It stops where min p falls below `least`, the edge of
      the simplex.

    A projection has no signs that could jump, unlike the frame of a QR or SVD. Integrated by
    diffrax's Euler–Heun (Stratonovich) with equal steps: two Jacobians a step, and along the kernel
    a third.

    Args:
        model: Callable pytree from one input to C logits.
        x: The start, in the model's (normalised) units.
        key: A `jax.random` key.
        time: How long, > 0: E‖ΔX‖² ≈ d · time for small times, d the dimension.
        along: "leaf" for D, "kernel" for ker G.
        metric: "euclidean", or "fisher" (along the leaf only).
        num_steps: Equal steps that the time is cut into.
        save_every: A point is kept every so many steps.
        least: Probability at which "fisher" has reached the boundary.
        likelihood: The output distribution.

    Returns:
        `Brownian(points, times, end, num_steps, status)`.

    Raises:
        ValueError: For arguments that shapes, dtypes or concrete values show to be wrong.

    Source: Sommer & Bronstein 2020 (horizontal flows); Hsu, *Stochastic analysis on manifolds*,
    theorem 3.1.4, for the projected noise.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import foliax
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> path = foliax.brownian(model, jnp.zeros(3), jax.random.key(0), 1.0, num_steps=100)
        >>> bool(path.end[0] != 0), path.end[1:].tolist()
        (True, [0.0, 0.0])
    """
    check_choice(along, name="along", choices=("leaf", "kernel"))
    check_choice(metric, name="metric", choices=("euclidean", "fisher"))
    if metric == "fisher" and along == "kernel":
        raise ValueError('metric="fisher" goes with along="leaf": G vanishes along the kernel')
    check_positive(time, name="time")
    check_positive(least, name="least", or_zero=True)
    check_key(key)
    check_count(num_steps, name="num_steps")
    check_count(save_every, name="save_every")
    x = as_point(x)
    dtype = working_dtype(x, logits_struct(model, x, likelihood))
    return _integrate(
        model, likelihood, x, key, jnp.asarray(time, dtype), jnp.asarray(least, dtype),
        along, metric, num_steps, save_every,
    )  # fmt: skip


@compiled
def _integrate(
    model, likelihood, x, key, time, least, along, metric, num_steps, save_every
) -> Brownian:
    dtype = time.dtype
    logits = logits_of(model, x).astype(dtype)
    scene = _Scene(model, x.shape, x.dtype, likelihood, along, metric, logits, least)
    start = x.ravel().astype(dtype)
    noise = likelihood.embedding(logits).shape[0] if metric == "fisher" else x.size
    # Time counts steps; the noise is scaled, so that a step is dW of variance time / num_steps.
    scale = jnp.sqrt(time / num_steps)
    motion = diffrax.UnsafeBrownianPath(jax.ShapeDtypeStruct((noise,), dtype), key)
    noisy = diffrax.ControlTerm(lambda _, y, scene: _diffusion(scene, y, scale), motion)
    solution = diffrax.diffeqsolve(
        diffrax.MultiTerm(diffrax.ODETerm(_no_drift), noisy),
        Corrected(diffrax.EulerHeun(), _back if along == "kernel" else _as_it_is),
        t0=as_time(0, dtype),
        t1=as_time(num_steps, dtype),
        dt0=as_time(1, dtype),
        y0=start,
        args=scene,
        saveat=diffrax.SaveAt(
            subs=[diffrax.SubSaveAt(t0=True, steps=save_every), diffrax.SubSaveAt(t1=True)]
        ),
        event=diffrax.Event({"boundary": _at_boundary, "invalid": _is_invalid}),
        adjoint=diffrax.DirectAdjoint(),
        max_steps=num_steps,
        throw=False,
    )
    kept: Any = solution.ys
    end, steps = kept[1][0], solution.stats["num_accepted_steps"]
    rows = jnp.arange(1 + num_steps // save_every) * save_every
    points = jnp.where((rows <= steps)[:, None], kept[0][: len(rows)], end)
    gone = logit_change(likelihood, logits, scene.logits(end))
    finite = jnp.all(jnp.isfinite(end)) & jnp.all(jnp.isfinite(gone))
    halted = solution.result == diffrax.RESULTS.event_occurred
    status = jnp.where(halted, Code.boundary, Code.completed)
    return Brownian(
        points.reshape(-1, *x.shape),
        jnp.minimum(rows, steps).astype(dtype) * time / num_steps,
        end.reshape(x.shape),
        jnp.asarray(steps, jnp.int32),
        as_status(jnp.where(finite, status, Code.invalid)),
    )


def _no_drift(t: Any, y: Array, scene: _Scene) -> Array:
    del t, scene
    return jnp.zeros_like(y)


def _diffusion(scene: _Scene, x: Array, scale: Array) -> lx.AbstractLinearOperator:
    """Return the linear map from noise to displacement at x."""
    if scene.metric == "fisher":
        logits, pull = pullback(scene.model, scene.shaped(x), scene.likelihood)
        rows = scene.likelihood.embedding(logits)
        space = RowSpace.of(pull_rows(pull, rows, None).astype(x.dtype))

        def move(noise: Array) -> Array:
            return dot(scale * dot(space.inverse, noise), space.basis)

        size = rows.shape[0]
    else:
        _, k = contrast_jacobian(scene.model, scene.shaped(x), scene.likelihood, None)
        space = RowSpace.of(k.astype(x.dtype))

        def move(noise: Array) -> Array:
            tangent = space.project(noise)
            return scale * (noise - tangent if scene.along == "kernel" else tangent)

        size = x.size
    # Asked for, and not written down: on a mesh of devices a structure says that it is there.
    return lx.FunctionLinearOperator(move, jax.eval_shape(lambda: jnp.zeros(size, x.dtype)))


def _as_it_is(scene: _Scene, t: Any, x: Array, moved: Array) -> Array:
    del scene, t, x
    return moved


def _back(scene: _Scene, t: Any, x: Array, moved: Array) -> Array:
    """Return the end of a step with the contrasts of the start of the path."""
    del t
    _, k = contrast_jacobian(scene.model, scene.shaped(x), scene.likelihood, None)

    def defect(y: Array) -> Array:
        return contrast_change(scene.likelihood, scene.start_logits, scene.logits(y))

    finest = resolution(scene.likelihood, scene.start_logits, scene.dtype)
    return onto_level_set(RowSpace.of(k.astype(x.dtype)), defect, x, moved, None, finest)


def _at_boundary(t: Any, y: Array, scene: _Scene, **_: Any) -> Array:
    del t
    if scene.metric != "fisher":
        return jnp.zeros((), bool)
    return scene.likelihood.edge(scene.logits(y)) < scene.least


def _is_invalid(t: Any, y: Array, scene: _Scene, **_: Any) -> Array:
    del t, scene
    return ~jnp.all(jnp.isfinite(y))
