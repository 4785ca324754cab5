"""F at one input: products, its expansion of KL, its factor, trace and eigenpairs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, PyTree

from foliax._backend.rewrite import logits_of
from foliax._core.checks import as_num_pairs, as_point, check_chunk
from foliax._core.compile import compiled
from foliax._core.jacobian import logits_struct, pull_rows, working_dtype
from foliax._core.likelihood import Likelihood
from foliax._core.no_derivative import refused_in_reverse
from foliax._core.types import Chunk, Count, Model
from foliax._linalg import lapack
from foliax.data_matrix import Eigen
from foliax.fisher.linearised import as_batch, linearise
from foliax.fisher.weights import as_tangent, split_model
from foliax.likelihood import Categorical, logit_change


@compiled
def matvec(
    model: Model, x: ArrayLike, v: PyTree, *, batched: bool = False,
    likelihood: Likelihood = Categorical(),
) -> PyTree:  # fmt: skip
    """Return F(x, w) v, or its mean over a batch of inputs.

    F v = J_wᵀ S (J_w v): one forward pass, one product with J_w, one with its transpose.

    Args:
        model: Callable pytree from one input to C logits, which holds its weights w.
        x: One input; with `batched`, inputs stacked along axis 0.
        v: A pytree like the weights.
        batched: Whether x has a leading batch axis, over which the mean of F is taken.

    Returns:
        A pytree like the weights.

    Raises:
        ValueError: If x or the logits are not what they should be, model holds no weights, or v is
            not like them.

    Source: Amari 1998, section 2.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.tree_util import Partial
        >>> from foliax import fisher
        >>> model = Partial(lambda w, x: jnp.stack([w @ x, 0.0]), jnp.zeros(2))
        >>> v = jax.tree.map(jnp.ones_like, model)
        >>> fisher.matvec(model, jnp.array([1.0, 2.0]), v).args[0].tolist()
        [0.75, 1.5]
    """
    network = linearise(model, as_batch(x, batched), likelihood)
    return network.product(as_tangent(v, network.weights, name="v"))


@compiled
def kl(
    model: Model, x: ArrayLike, delta: PyTree, *, likelihood: Likelihood = Categorical()
) -> Float[Array, ""]:
    """Return KL(p(·|x, w + δ) ‖ p(·|x, w)) = ½ δᵀFδ + O(‖δ‖³), summed without cancellation.

    Args:
        delta: The change δ of the weights, a pytree like them.

    Returns:
        A scalar ≥ 0, in nats.

    Raises:
        ValueError: As `matvec`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.tree_util import Partial
        >>> from foliax import fisher
        >>> model = Partial(lambda w, x: jnp.stack([w @ x, 0.0]), jnp.zeros(2))
        >>> delta = jax.tree.map(lambda w: jnp.full_like(w, 0.1), model)
        >>> f"{fisher.kl(model, jnp.array([1.0, 0.0]), delta):.6f}"
        '0.001248'
    """
    x = as_point(x)
    logits_struct(model, x, likelihood)
    weights, rebuild = split_model(model)
    delta = as_tangent(delta, weights, name="delta")
    logits = logits_of(model, x)
    moved = logits_of(rebuild(jax.tree.map(jnp.add, weights, delta)), x)
    return likelihood.kl(logits, logit_change(likelihood, logits, moved))


@compiled
def quadratic(
    model: Model, x: ArrayLike, delta: PyTree, *, likelihood: Likelihood = Categorical()
) -> Float[Array, ""]:
    """Return ½ δᵀ F(x, w) δ, the second-order term of `kl`.

    Args:
        delta: As in `kl`.

    Returns:
        A scalar ≥ 0, in nats.

    Raises:
        ValueError: As `matvec`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jax.tree_util import Partial
        >>> from foliax import fisher
        >>> model = Partial(jnp.multiply, jnp.zeros(2))  # logits w x, entry by entry
        >>> delta = Partial(jnp.multiply, jnp.array([0.1, 0.5]))
        >>> f"{fisher.quadratic(model, jnp.array([1.0, 0.0]), delta):.6f}"
        '0.001250'
    """
    network = linearise(model, as_batch(x, False), likelihood)
    return network.half(as_tangent(delta, network.weights, name="delta"))


@compiled
def factor(
    model: Model, x: ArrayLike, *, likelihood: Likelihood = Categorical(), chunk: Chunk = None
) -> Float[Array, "r n"]:
    """Return A_w, of C − 1 rows, with F(x, w) = A_wᵀ A_w.

    The rows are those of `foliax.factor` with the weights in the place of x. A_w A_wᵀ, of size
    C − 1, has the non-zero eigenvalues of F. Costs one forward pass and C − 1 reverse passes, and
    C − 1 times the memory of the weights.

    Returns:
        (C − 1, number of weights), at least in float32; the columns run over
        `jax.flatten_util.ravel_pytree` of the weights.

    Raises:
        ValueError: As `matvec`.

    Source: Amari 1998, section 2, for F; the factor is the stick-breaking one.

    Example:
        >>> import jax.numpy as jnp
        >>> from jax.tree_util import Partial
        >>> from foliax import fisher
        >>> model = Partial(lambda w, x: jnp.stack([w @ x, 0.0]), jnp.zeros(2))
        >>> fisher.factor(model, jnp.array([1.0, 2.0])).tolist()
        [[0.5, 1.0]]
    """
    check_chunk(chunk)
    scale, rows, pull = _rows(model, as_point(x), likelihood)

    def flat(row: Array) -> Float[Array, " n"]:
        return ravel_pytree(pull(row))[0]

    return scale[:, None] * pull_rows(flat, rows, chunk).astype(scale.dtype)


@compiled
def trace(
    model: Model, x: ArrayLike, *, likelihood: Likelihood = Categorical(), chunk: Chunk = None
) -> Float[Array, ""]:
    """Return trace F(x, w) = ‖A_w‖²_F, in nats per squared unit of the weights.

    The rows of the factor are squared as they come: with `chunk`, memory is that of so many
    reverse passes, whatever C is.

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: As `matvec`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jax.tree_util import Partial
        >>> from foliax import fisher
        >>> model = Partial(lambda w, x: jnp.stack([w @ x, 0.0]), jnp.zeros(2))
        >>> float(fisher.trace(model, jnp.array([1.0, 2.0])))
        1.25
    """
    check_chunk(chunk)
    scale, rows, pull = _rows(model, as_point(x), likelihood)

    def square(row: Array) -> Float[Array, ""]:
        leaves = jax.tree.leaves(pull(row))
        return jnp.sum(jnp.stack([jnp.sum(leaf.astype(scale.dtype) ** 2) for leaf in leaves]))

    return jnp.sum(scale**2 * pull_rows(square, rows, chunk))


@compiled
def eigh(
    model: Model, x: ArrayLike, k: Count | None = None, *, likelihood: Likelihood = Categorical(),
    chunk: Chunk = None,
) -> Eigen:  # fmt: skip
    """Return the leading eigenpairs of F(x, w).

    F has at most m = min(number of weights, C − 1) non-zero eigenvalues: squares of the singular
    values of its factor, by QR and the SVD of the small triangle. Derivatives are those of
    `foliax.eigh`.

    Args:
        chunk: How many rows of the factor are pulled back at once; None for all.

    Returns:
        `Eigen(values, vectors)`: (k,) descending, and a pytree like the weights with a leading
        axis over the k orthonormal vectors.

    Raises:
        ValueError: As `matvec`; or if k is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from jax.tree_util import Partial
        >>> from foliax import fisher
        >>> model = Partial(lambda w, x: jnp.stack([w @ x, 0.0]), jnp.zeros(2))
        >>> pairs = fisher.eigh(model, jnp.array([0.0, 2.0]))
        >>> pairs.values.tolist(), jnp.abs(pairs.vectors.args[0]).tolist()
        ([1.0], [[0.0, 1.0]])
    """
    a = factor(model, x, likelihood=likelihood, chunk=chunk)
    weights, _ = split_model(model)
    k = as_num_pairs(k, min(a.shape), of="min(number of weights, C - 1)")
    u, s, _ = lapack.thin_svd(a.T)
    vectors = refused_in_reverse(u[:, :k].T, "foliax.fisher.eigh(…).vectors")
    flat, restore = ravel_pytree(weights)
    return Eigen(s[:k] ** 2, jax.vmap(restore)(vectors.astype(flat.dtype)))


def _rows(
    model: Model, x: Float[Array, "..."], likelihood: Likelihood
) -> tuple[Float[Array, " r"], Float[Array, "r c"], Callable[[Array], PyTree]]:
    """Return what the rows of A_w are made of: scale, row and pull in scale · pull(row)."""
    network = linearise(model, x[None], likelihood)
    logits = network.logits[0].astype(working_dtype(x, network.logits))
    scale, rows = likelihood.factor(logits)
    return scale, rows, lambda row: network.pull(row[None])
