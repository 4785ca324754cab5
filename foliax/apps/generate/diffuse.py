"""Brownian motion on a leaf that keeps the probability of a label."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from foliax._core.checks import check_choice, check_count, check_key, check_positive
from foliax._core.documented import documented
from foliax._core.types import Along, Count, Model
from foliax._linalg.products import norm
from foliax.apps.generate.scene import (
    LIKELIHOOD,
    Motion,
    Scene,
    begin,
    make_scene,
    validated,
)
from foliax.flow.level_set import free_direction, onto_level_set
from foliax.flow.path import Code
from foliax.likelihood import contrast_change, included


@documented
def diffuse(
    model: Model,
    x: ArrayLike,
    key: Array,
    time: float | Array,
    *,
    along: Along = "leaf",
    label: int | ArrayLike | None = None,
    threshold: float | Array = 0.5,
    box: Any = None,  # a Box
    num_steps: Count = 200,
    save_every: Count = 50,
) -> Motion:
    """Run Brownian motion from x on its leaf, inside {p_label ≥ threshold}.

    dX = P(X) ∘ dW with noise in all of input space and P the projection on D (Heun, two Jacobians a
    step) or on ker G (one). Along the kernel each step is brought back onto the level set of p;
    one that cannot be is shortened, in the end to zero.

    A step whose end has p_label below the threshold is refused: the motion stays for that step,
    and goes on with new noise. As the steps become short this is Brownian motion reflected at the
    threshold, and in the long run it visits the allowed part of its leaf, if bounded, evenly.

    Args:
        x: The start, in the model's (normalised) units.
        key: A `jax.random` key; the same key gives the same motion.
        time: How long, > 0: E‖ΔX‖² ≈ d · time while nothing is refused, d the dimension of the
            leaf, C − 1 or n − C + 1.
        along: "leaf" for D, "kernel" for ker G.
        label: The class whose probability is kept; None for the one predicted at x.
        threshold: Least p_label, in [0, 1); 0 refuses nothing.
        box: Pixel bounds in the units of x, along the kernel only.
        num_steps: Equal steps that the time is cut into.
        save_every: A point is kept every so many steps.

    Returns:
        A `Motion`, with the distance from x.

    Raises:
        ValueError: For arguments that shapes, dtypes or concrete values show to be wrong.

    Source: `foliax.brownian` for the motion; the slides' closing proposal, to generate images of
        the same label by moving on the data leaf.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> found = diffuse(model, jnp.array([1.0, 5.0]), jax.random.key(0), 9.0, threshold=0.6)
        >>> bool(found.least >= 0.6), bool(found.refused > 0), float(found.end[1])
        (True, True, 5.0)
    """
    check_choice(along, name="along", choices=("leaf", "kernel"))
    check_positive(time, name="time")
    check_key(key)
    check_count(num_steps, name="num_steps")
    check_count(save_every, name="save_every")
    if box is not None and along == "leaf":
        raise ValueError(
            'box goes with along="kernel": D has no room for the bounds of the pixels, so clip '
            "points of the data leaf for display, box.clip(points)"
        )
    scene = make_scene(model, x, label, threshold, box, along)
    scale = jnp.sqrt(jnp.asarray(time, scene.start.dtype) / num_steps)
    return _diffused(scene, key, scale, num_steps, save_every)


@eqx.filter_jit
def _diffused(scene: Scene, key: Array, scale: Array, num_steps: int, save_every: int) -> Motion:
    start = scene.start
    inside, p_start = begin(scene)

    def step(carry: tuple, index: Array) -> tuple[tuple, None]:
        x, p, least, accepted = carry
        noise = jax.random.normal(jax.random.fold_in(key, index), x.shape, x.dtype)
        moved = _proposal(scene, x, scale * noise)
        p_moved = scene.p_label(moved)
        # A comparison with NaN is false: what is not finite is refused too.
        taken = inside & (p_moved >= scene.threshold) & jnp.all(jnp.isfinite(moved))
        x, p = jnp.where(taken, moved, x), jnp.where(taken, p_moved, p)
        return (x, p, jnp.minimum(least, p), accepted + taken), None

    def row(carry: tuple, first: Array) -> tuple[tuple, tuple]:
        carry, _ = lax.scan(step, carry, first + jnp.arange(save_every))
        return carry, carry[:2]

    carry = (start, p_start, p_start, jnp.zeros((), jnp.int32))
    rows = num_steps // save_every
    carry, (points, p_label) = lax.scan(row, carry, jnp.arange(rows) * save_every)
    carry, _ = lax.scan(step, carry, jnp.arange(rows * save_every, num_steps))
    end, _, least, accepted = carry
    points = jnp.concatenate([start[None], points])
    status = jnp.where(accepted > 0, Code.completed, Code.boundary)
    return Motion(
        points.reshape(-1, *scene.shape),
        jnp.concatenate([p_start[None], p_label]),
        norm(points - start, axis=1),
        end.reshape(scene.shape),
        least,
        accepted,
        jnp.where(inside, num_steps - accepted, 0).astype(jnp.int32),
        validated(status, p_start),
    )


def _proposal(scene: Scene, x: Float[Array, " n"], noise: Float[Array, " n"]) -> Array:
    """Return the end of a step of Brownian motion on the leaf through x."""
    _, k, space = scene.evaluated(x)
    if scene.along == "leaf":
        tangent = space.project(noise)
        # Heun's mean of the projections at both ends makes the noise Stratonovich's.
        _, _, ahead = scene.evaluated(x + tangent)
        return x + (tangent + ahead.project(noise)) / 2
    moved = x + free_direction(space, k, noise, x, scene.box)

    def defect(y: Array) -> Array:
        return contrast_change(LIKELIHOOD, scene.start_logits, scene.logits(y))

    eps = max(jnp.finfo(scene.dtype).eps, jnp.finfo(x.dtype).eps)
    resolution = 4 * eps * (1 + jnp.max(jnp.abs(included(LIKELIHOOD, scene.start_logits))))
    return onto_level_set(space, defect, x, moved, scene.box, resolution)
