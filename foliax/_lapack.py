"""Decompositions by LAPACK, on CPUs one matrix at a time.

jaxlib hands a batch of LAPACK calls to the threads of the very pool that it runs in, and waits for
them. Two batches that do not depend on each other may so take all threads of a small pool, and each
waits for ever (seen on two cores, beside convolutions). Matrices here are small, and a loop over
them costs next to nothing beside the Jacobians that they come from.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def _one_by_one(stock: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """Return a decomposition whose batch is a loop on CPUs; its derivatives are the stock ones'."""
    alone = jax.custom_batching.sequential_vmap(stock)

    @jax.custom_jvp
    def decomposed(a: Array) -> Any:
        return alone(a) if jax.default_backend() == "cpu" else stock(a)

    @decomposed.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return jax.jvp(stock, primals, tangents)

    return decomposed


_qr = _one_by_one(lambda a: tuple(jnp.linalg.qr(a)))
_triangle = _one_by_one(lambda a: jnp.linalg.qr(a, mode="r"))
_svd = _one_by_one(lambda a: tuple(jnp.linalg.svd(a, full_matrices=False)))
_values = _one_by_one(lambda a: jnp.linalg.svd(a, compute_uv=False))


def qr(a: Float[Array, "n r"]) -> tuple[Float[Array, "n m"], Float[Array, "m r"]]:
    """Return Q and R, m = min(n, r)."""
    return _qr(a)


def triangle(a: Float[Array, "n r"]) -> Float[Array, "m r"]:
    """Return R of QR alone."""
    return _triangle(a)


def svd(
    a: Float[Array, "n r"],
) -> tuple[Float[Array, "n m"], Float[Array, " m"], Float[Array, "m r"]]:
    """Return U, the singular values from the largest on, and Vᵀ."""
    return _svd(a)


def values(a: Float[Array, "n r"]) -> Float[Array, " m"]:
    """Return the singular values, from the largest on."""
    return _values(a)
