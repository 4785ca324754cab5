"""The same functions over many devices and hosts, on JAX's own engine.

Data are cut along their first axis, one share a device; weights are on all. Every device runs the
function on its share and waits for none, so that walks of different lengths do not delay each
other. Over several hosts each process calls the same lines (`initialize` first), and has the shares
of its own devices.

    from foliax import sharding
    mesh = sharding.mesh()                      # all devices, of all hosts
    walks = partial(foliax.map, foliax.walk, box=box)
    paths = sharding.spread(walks, model, xs, targets, mesh=mesh)
    traces = foliax.sweep(foliax.trace, model, images, mesh=mesh)
    A = sharding.factor(model, x, mesh=mesh)    # each device has its rows
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from foliax._core.checks import as_point, check_chunk, check_count
from foliax._core.documented import documented
from foliax._core.jacobian import pull_rows, pullback
from foliax._core.likelihood import Likelihood
from foliax._core.types import Chunk, Model
from foliax.likelihood import Categorical

__all__ = ["factor", "gather", "initialize", "mesh", "place", "replicate", "spread"]

AXIS = "data"


def initialize(environment: Mapping[str, str] | None = None) -> bool:
    """Join the processes of one run, where the environment says that there are several.

    Reads JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID. On CPUs the processes communicate by gloo. Call it before anything else of JAX.

    Args:
        environment: The variables; None for those of this process.

    Returns:
        Whether there are several processes.

    Raises:
        ValueError: If some of the variables are there and not all, or they are no such numbers.
    """
    environment = os.environ if environment is None else environment
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [name for name in names if environment.get(name)]
    if not given:
        return False
    if len(given) < len(names):
        missing = ", ".join(name for name in names if name not in given)
        raise ValueError(f"environment must have all of {', '.join(names)}, lacks {missing}")
    address, *numbers = (environment[name] for name in names)
    try:
        count, place = map(int, numbers)
    except ValueError:
        raise ValueError(
            f"{names[1]} and {names[2]} must be whole numbers, got {' and '.join(numbers)}"
        ) from None
    if not 0 <= place < count:
        raise ValueError(f"{names[2]} must lie in 0 … {count - 1}, got {place}")
    if count == 1:
        return False
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=count, process_id=place)
    return True


def mesh(devices: int | Sequence[Any] | None = None) -> Mesh:
    """Return a mesh of devices in a row, its axis named "data".

    Args:
        devices: The devices, or how many of them all; None for all, of all hosts.

    Returns:
        A `jax.sharding.Mesh` with an automatic axis.

    Raises:
        ValueError: If there are not so many devices, or none are given.

    Example:
        >>> from foliax import sharding
        >>> dict(sharding.mesh(1).shape)
        {'data': 1}
    """
    every = jax.devices()
    if devices is None:
        devices = every
    elif isinstance(devices, int):
        check_count(devices, name="devices")
        if devices > len(every):
            raise ValueError(
                f"devices must be at most {len(every)}, those that JAX sees, got {devices}; on a "
                f"CPU, XLA_FLAGS=--xla_force_host_platform_device_count={devices} makes more"
            )
        devices = every[:devices]
    elif not devices:
        raise ValueError("devices must be one at least, got none; leave it out for all")
    return jax.make_mesh(
        (len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=list(devices)
    )


def place(tree: Any, mesh: Mesh) -> Any:
    """Put arrays on the devices, cut along their first axis in equal shares.

    Args:
        tree: A pytree of arrays, all of one length N; over several hosts the same on each.
        mesh: Where to.

    Returns:
        The same as sharded `jax.Array`s, of the next multiple of the number of devices: the last
        row is repeated to fill up.

    Raises:
        ValueError: If the arrays are not stacked alike along axis 0, or are empty.
    """
    count = _count(tree)
    total = -(-count // mesh.size) * mesh.size
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def filled(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([rows, np.repeat(rows[-1:], total - count, axis=0)])

    return jax.tree.map(lambda rows: _put(rows, sharding, filled), tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copy the arrays of a pytree to every device: weights, a box.

    Args:
        tree: A pytree; what is no array stays as it is.
        mesh: Where to.

    Returns:
        The same with replicated `jax.Array`s.
    """
    sharding = NamedSharding(mesh, PartitionSpec())

    def put(leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        return _put(leaf, sharding)

    return jax.tree.map(put, tree)


def gather(tree: Any) -> Any:
    """Return sharded arrays as complete NumPy arrays; over several hosts, on each."""

    def gathered(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree.map(gathered, tree)


@documented
def spread(fn: Any, model: Any, *stacked: Any, mesh: Mesh) -> Any:
    """Return fn(model, *stacked), each device working on its share of the rows.

    Args:
        fn: A pure function of the model and stacked inputs to stacked results, row by row:
            `partial(foliax.map, foliax.walk, box=box)`, or
            `jax.vmap(foliax.trace, in_axes=(None, 0))`. Give the same function object each time,
            or it is compiled again.
        *stacked: Inputs stacked along axis 0, N rows each (pytrees of arrays).
        mesh: The devices.

    Returns:
        What fn returns, as `jax.Array`s of N rows cut over the devices where N is a multiple of
        their number; see `gather`.

    Raises:
        ValueError: If the inputs are not stacked alike; or as fn.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import foliax
        >>> from foliax import sharding
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> traces = jax.vmap(foliax.trace, in_axes=(None, 0))
        >>> sharding.spread(traces, model, jnp.zeros((5, 2)), mesh=sharding.mesh(1)).tolist()
        [0.25, 0.25, 0.25, 0.25, 0.25]
    """
    if not stacked:
        raise ValueError("spread needs inputs that are stacked along axis 0, got none")
    count = _count(stacked)
    if isinstance(fn, partial):  # as a pytree, two that are alike share a program
        fn = Partial(fn.func, *fn.args, **fn.keywords)
    fn, model = replicate((fn, model), mesh)
    results = _each(fn, model, place(stacked, mesh), mesh)
    return jax.tree.map(lambda leaf: leaf if len(leaf) == count else leaf[:count], results)


@documented
def factor(
    model: Model, x: ArrayLike, *, mesh: Mesh, likelihood: Likelihood = Categorical(),
    chunk: Chunk = None,
) -> Float[Array, "r n"]:  # fmt: skip
    """Return the factor A of G(x, w), each device having the rows that it computed.

    Args:
        x: One input with n entries, in the model's units.
        mesh: The devices.
        chunk: As in `foliax.factor`, on each device.

    Returns:
        (r, n), cut over the devices along its rows. r is C − 1 filled up to a multiple of their
        number by rows of zeros, which change nothing of G = AᵀA, its trace and spectrum.

    Raises:
        ValueError: As `foliax.factor`.

    Example:
        >>> import jax.numpy as jnp
        >>> from foliax import sharding
        >>> model = lambda x: jnp.stack([x[0], 0 * x[0]])
        >>> float(jnp.sum(sharding.factor(model, jnp.zeros(1), mesh=sharding.mesh(1)) ** 2))
        0.25
    """
    check_chunk(chunk)
    model, point = replicate((model, as_point(x)), mesh)
    return _factor(model, point, likelihood, chunk, mesh)


@eqx.filter_jit
def _each(fn: Any, model: Any, stacked: Any, mesh: Mesh) -> Any:
    """Run fn on every device's share."""
    arrays, rest = eqx.partition((fn, model), eqx.is_array)

    def share(arrays: Any, stacked: Any) -> Any:
        fn, model = eqx.combine(arrays, rest)
        return fn(model, *stacked)

    rows, replicated = PartitionSpec(AXIS), PartitionSpec()
    # Nothing crosses devices inside, so there is nothing to check.
    return jax.shard_map(
        share, mesh=mesh, in_specs=(replicated, rows), out_specs=rows, check_vma=False
    )(arrays, stacked)


@eqx.filter_jit
def _factor(model: Any, x: Array, likelihood: Any, chunk: Any, mesh: Mesh) -> Array:
    arrays, rest = eqx.partition((model, likelihood), eqx.is_array)

    def share(arrays: Any, x: Array) -> Array:
        model, likelihood = eqx.combine(arrays, rest)
        logits, pull = pullback(model, x, likelihood)
        weights, rows = likelihood.factor(logits)
        scaled = weights[:, None], rows
        per_device = -(-len(rows) // mesh.size)
        missing = per_device * mesh.size - len(rows)
        first = jax.lax.axis_index(AXIS) * per_device
        weights, rows = (
            jax.lax.dynamic_slice_in_dim(jnp.pad(part, ((0, missing), (0, 0))), first, per_device)
            for part in scaled
        )
        return weights * pull_rows(pull, rows, chunk)

    replicated = PartitionSpec()
    return jax.shard_map(
        share,
        mesh=mesh,
        in_specs=(replicated, replicated),
        out_specs=PartitionSpec(AXIS),
        check_vma=False,
    )(arrays, x)


def _put(leaf: Any, sharding: NamedSharding, filled: Any = lambda rows: rows) -> Array:
    """Make a global array of one that each process has entirely, each giving its share."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        numbers = _put(jax.random.key_data(leaf), sharding, filled)
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf))
    full = filled(np.asarray(leaf))
    full = full.astype(jax.dtypes.canonicalize_dtype(full.dtype), copy=False)
    return jax.make_array_from_callback(full.shape, sharding, lambda index: full[index])


def _count(tree: Any) -> int:
    """Return the length of all arrays, or say that they differ."""
    leaves = [
        leaf if hasattr(leaf, "shape") else np.asarray(leaf) for leaf in jax.tree.leaves(tree)
    ]
    counts = {leaf.shape[:1] for leaf in leaves}
    if len(counts) != 1 or counts in ({()}, {(0,)}):
        shapes = ", ".join(str(leaf.shape) for leaf in leaves) or "none"
        raise ValueError(
            f"inputs must be stacked alike along axis 0 and not be empty, got shapes {shapes}"
        )
    return counts.pop()[0]
