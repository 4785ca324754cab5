"""The attacks: each takes one input and a budget, and returns an `Attacked`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, PRNGKeyArray

from foliax._core.checks import check_count, check_key
from foliax._core.documented import documented
from foliax._core.types import Count, Model
from foliax._linalg.products import dot
from foliax.apps.attack.scene import (
    Attacked,
    better,
    cut,
    reaching,
    result,
    scene_of,
    top,
    unit,
)
from foliax.leaf.image import GeodesicMethod
from foliax.leaf.metric import exponential


@documented
def spectral(
    model: Model,
    x: ArrayLike,
    budget: float | ArrayLike,
    *,
    num_steps: Count = 1,
    label: int | ArrayLike | None = None,
    box: Any = None,  # a Box
) -> Attacked:
    """Move x along the top eigenvector of G, to the side where the label is less probable.

    With one step, this is the one-step spectral attack. With two, the eigenvector is found again
    half way, where it has turned with the leaf: the two-step spectral attack, a geodesic in two
    pieces. More steps follow the curve of the eigenvectors. All steps but the last have the same
    length; the last one goes on until the total move has the length of the budget.

    Args:
        budget: Length of the move, ≥ 0, in the units of x.
        num_steps: How often the eigenvector is found, ≥ 1.
        box: The pixel box that the end is clipped to; None for none.

    Returns:
        `Attacked`.

    Raises:
        ValueError: For arguments that shapes, dtypes or concrete values show to be wrong.

    Source: Zhao, Fletcher, Yu, Peng, Zhang & Shen 2019, *The adversarial attack and detection under
        the Fisher information metric*, for one step; Tron, Couëllan & Puechmorel 2022,
        arXiv 2203.00922, for two.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> found = spectral(model, jnp.array([1.0, 5.0]), 2.0)
        >>> found.end.tolist(), bool(found.fooled)
        ([-1.0, 5.0], True)
    """
    check_count(num_steps, name="num_steps")
    scene = scene_of(model, x, budget, label, box)
    start, length = scene.x.ravel(), scene.budget / num_steps

    def turn(state: Any, _: Any) -> Any:
        y, ahead = state
        y = y + length * ahead
        found = top(scene, y)[1]
        # An eigenvector has no sign: take the one that continues the path.
        return (y, jnp.where(dot(found, ahead) < 0, -found, found)), None

    def one_way(ahead: Array) -> Array:
        (y, last), _ = lax.scan(turn, (start, ahead), length=num_steps - 1)
        return reaching(start, y, last, scene.budget)

    first = top(scene, start)[1]
    return better(scene, jax.vmap(one_way)(jnp.stack([first, -first])))


@documented
def geodesic(
    model: Model,
    x: ArrayLike,
    budget: float | ArrayLike,
    *,
    num_steps: Count = 64,
    method: GeodesicMethod = "sphere",
    label: int | ArrayLike | None = None,
    box: Any = None,  # a Box
) -> Attacked:
    """Move x along the geodesic of its leaf that begins along the top eigenvector of G.

    Straight ahead in G's metric (`foliax.leaf.exponential`), to the side where the label is less
    probable, and as far as the budget lasts in input space. It ends before that where the geodesic
    leaves the simplex.

    Args:
        budget: Distance from x at the end, ≥ 0, in the units of x.
        num_steps: Steps of the entire geodesic, ≥ 1; between them it is a straight line.
        method: As in `foliax.leaf.exponential`: "sphere" (needs rank G = C − 1) or "connection".
        box: The pixel box that the end is clipped to; None for none.

    Returns:
        `Attacked`.

    Raises:
        ValueError: As `spectral`.

    Source: Tron, Couëllan & Puechmorel 2022, arXiv 2203.00922, whose two steps stand for it.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> found = geodesic(model, jnp.array([1.0, 5.0]), 2.0)
        >>> [f"{v:.3f}" for v in found.end], bool(found.fooled)
        (['-1.000', '5.000'], True)
    """
    check_count(num_steps, name="num_steps")
    scene = scene_of(model, x, budget, label, box)
    root, first = top(scene, scene.x)
    # The geodesics of the sphere of radius 2 have left the simplex, one of its parts, before π.
    speed = jnp.pi / jnp.where(root > 0, root, jnp.inf)

    def one_way(sign: Array) -> Array:
        velocity = (sign * speed).astype(scene.x.dtype) * first.reshape(scene.x.shape)
        path = exponential(model, scene.x, velocity, method=method, num_steps=num_steps)
        return cut(path.points.reshape(num_steps + 1, -1), scene.budget)

    return better(scene, jax.vmap(one_way)(jnp.array([1.0, -1.0])))


@documented
def random_direction(
    model: Model,
    x: ArrayLike,
    budget: float | ArrayLike,
    key: PRNGKeyArray | Array,
    *,
    label: int | ArrayLike | None = None,
    box: Any = None,  # a Box
) -> Attacked:
    """Move x in a random direction, uniform over the sphere.

    Args:
        budget: Length of the move, ≥ 0, in the units of x.
        key: A `jax.random` key.
        box: The pixel box that the end is clipped to; None for none.

    Returns:
        `Attacked`.

    Raises:
        ValueError: As `spectral`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> found = random_direction(model, jnp.ones(2), 1.0, jax.random.key(0))
        >>> f"{found.distance:.4f}"
        '1.0000'
    """
    scene = scene_of(model, x, budget, label, box)
    check_key(key)
    direction = unit(jax.random.normal(key, scene.x.shape, scene.x.dtype))
    return result(scene, scene.x + scene.budget * direction)
