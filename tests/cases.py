"""Problem models for the geometry, each a pytree from one input to C logits."""

import functools
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from foliax.flow.path import Code, as_code


def linear(params, x):
    weight, bias = params
    return weight @ x.ravel() + bias


def tanh_mlp(params, x):
    (inner, shift), outer = params
    return linear(outer, jnp.tanh(inner @ x.ravel() + shift))


def relu_mlp(params, x):
    (inner, shift), outer = params
    return linear(outer, jax.nn.relu(inner @ x.ravel() + shift))


def layer(rng, size_out, size_in):
    return rng.normal(size=(size_out, size_in)) / np.sqrt(size_in), 0.3 * rng.normal(size=size_out)


class Case(NamedTuple):
    """A model, a point, and dim D there."""

    model: Partial
    x: jax.Array
    dimension: int
    smooth: bool = True

    @property
    def n(self):
        return self.x.size


def _network(function, seed, sizes, *, shape=None, gaps=None, scale=1.0):
    rng = np.random.default_rng(seed)
    n, hidden, c = sizes
    (inner, shift), (outer, bias) = layer(rng, hidden, n), layer(rng, c, hidden)
    if gaps is not None:
        bias = bias - np.asarray(gaps)
    params = jax.tree.map(jnp.asarray, ((inner, shift), (scale * outer, bias)))
    x = jnp.asarray(rng.normal(size=shape or (n,)))
    dimension = min(n, c - 1, hidden)
    return Case(Partial(function, params), x, dimension, function is not relu_mlp)


def _linear(seed, n, c, rank, scale=1.0):
    rng = np.random.default_rng(seed)
    weight = scale * rng.normal(size=(c, rank)) @ rng.normal(size=(rank, n))
    params = (jnp.asarray(weight), jnp.asarray(rng.normal(size=c) * min(scale, 1)))
    return Case(
        Partial(linear, params), jnp.asarray(rng.normal(size=n)), min(rank, c - 1) if scale else 0
    )


CASES = {
    "linear": _linear(0, 6, 4, 4),
    "tanh": _network(tanh_mlp, 1, (5, 8, 4), scale=2.0),
    "relu": _network(relu_mlp, 9, (5, 8, 4)),
    "two_classes": _network(tanh_mlp, 3, (3, 4, 2)),
    "more_classes_than_inputs": _network(tanh_mlp, 4, (2, 8, 6), scale=2.0),
    "narrow_layer": _network(tanh_mlp, 5, (6, 2, 5)),
    "deficient_weights": _linear(6, 6, 5, 2),
    "gap_60": _network(tanh_mlp, 7, (5, 8, 4), gaps=(0, 60, 61, 62)),
    "gap_10000": _network(tanh_mlp, 8, (5, 8, 4), gaps=(1e4, 0, 2e4, 1e4)),
    "image": _network(tanh_mlp, 9, (12, 6, 4), shape=(2, 3, 2)),
    "dead": _linear(10, 4, 3, 1, scale=0.0),
}
SATURATED = ("gap_60", "gap_10000")
NAMES = sorted(CASES)


def directions(case, seed=0, count=1):
    """Return tangent vectors at the point of a case, (count, *x.shape)."""
    rng = np.random.default_rng(1000 + seed)
    return jnp.asarray(rng.normal(size=(count, *case.x.shape)))


def jacobian(model, x):
    """Return ds/dx flattened to (C, n), by forward mode."""
    return jax.jacfwd(lambda y: model(y.reshape(x.shape)))(x.ravel())


def pairwise_matrix(model, x):
    """Return G = 1/2 sum_ik p_i p_k D_ik D_ik^T, D_ik = grad s_i - grad s_k: nothing cancels."""
    j = jacobian(model, x)
    p = jax.nn.softmax(model(x))
    d = j[:, None, :] - j[None, :, :]
    return jnp.einsum("i,k,ika,ikb->ab", p, p, d, d) / 2


def definition_matrix(model, x):
    """Return G = sum_i p_i grad log p_i grad log p_i^T, as it is defined."""

    def log_p(y):
        return jax.nn.log_softmax(model(y.reshape(x.shape)))

    g = jax.jacrev(log_p)(x.ravel())
    return jnp.einsum("i,ia,ib->ab", jnp.exp(log_p(x.ravel())), g, g)


def leaf_projector(model, x):
    """Return the projector on D by a plain SVD of the Jacobian less its mean row."""
    j = np.asarray(jacobian(model, x))
    j = j - j.mean(0)
    _, s, vt = np.linalg.svd(j, full_matrices=False)
    rows = vt[s > 1e-9 * max(s.max(), 1e-300)]
    return rows.T @ rows


def central_difference(f, x, direction, step=1e-5):
    """Return the derivative of f along a direction (pytrees), by a fourth-order difference."""

    def at(t):
        return f(jax.tree.map(lambda a, b: a + t * step * b, x, direction))

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)


def loaded_by(code):
    """Return the names of all packages that a new process has loaded once it has run the code."""
    names = "print(*{name.partition('.')[0] for name in sys.modules}, sep=chr(10))"
    words = [sys.executable, "-c", f"import sys; {code}; {names}"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


def counted(function):
    """Return the function, and a list that grows whenever it is traced."""
    traces = []

    def counting(*args):
        traces.append(None)
        return function(*args)

    return counting, traces


@functools.cache
def compilations():
    """Return the list of all that XLA has compiled since the first call, which grows."""
    found = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: found.append(event) if "backend_compile" in event else None
    )
    return found


def name_of(status):
    """Return the name of a status, or the (nested) list of those of a batch."""
    return np.vectorize(lambda code: Code(code).name, otypes=[object])(as_code(status)).tolist()


def random_like(tree, seed=0):
    """Return a pytree of normal numbers with the shapes of another."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), tree)
