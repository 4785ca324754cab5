"""A class that cannot occur, at a logit of −∞, held against the model without that class."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import foliax
from foliax import equivariance, fisher, leaf
from foliax.apps import attack, denoise, generate, ood
from tests import cases
from tests.tolerance import assert_close

N, C = 6, 5
MASKED = {
    "first": [0],
    "middle": [2],
    "last": [4],
    "two": [0, 2],
    "last_two": [3, 4],
    "all_but_two": [0, 2, 3],
}


def masked_mlp(params, x):
    weights, mask = params
    return jnp.where(mask, cases.tanh_mlp(weights, x), -jnp.inf)


def models(name, dtype="float64"):
    """Return the masked model, the model without the classes, and the classes that are left."""
    rng = np.random.default_rng(21)
    weights = (cases.layer(rng, 9, N), cases.layer(rng, C, 9))
    inner, (outer, bias) = jax.tree.map(lambda w: jnp.asarray(w, dtype), weights)
    outer = 2 * outer
    left = np.delete(np.arange(C), MASKED[name])
    mask = jnp.zeros(C, bool).at[left].set(True)
    full = Partial(masked_mlp, ((inner, (outer, bias)), mask))
    return full, Partial(cases.tanh_mlp, (inner, (outer[left], bias[left]))), left


def points(dtype="float64"):
    rng = np.random.default_rng(3)
    return tuple(jnp.asarray(v, dtype) for v in rng.normal(size=(4, N)))


def projector(rows):
    return jnp.einsum("...mi,...mj->...ij", rows, rows, precision="highest")


# Each returns what has to agree as it is (where one is shorter, the rest of the other is zero),
# and what has its classes on the last axis.


def algebra(model, x, y, u, v):
    frame, pairs = foliax.frame(model, x), foliax.eigh(model, x)
    krylov = foliax.eigh(model, x, 1, method="lanczos", num_iterations=1)
    moves = equivariance.defect(model, x, lambda z: z[::-1])
    return {
        "matrix": foliax.matrix(model, x),
        "trace": foliax.trace(model, x),
        "rank": foliax.rank(model, x),
        "dimension": foliax.dimension(model, x),
        "projector": projector(frame.vectors),
        "mask": jnp.sum(frame.mask),
        "leaf": foliax.project_leaf(model, x, v),
        "kernel": foliax.project_kernel(model, x, v),
        "matvec": foliax.matvec(model, x, v),
        "quadratic": foliax.quadratic(model, x, v),
        "kl": foliax.kl(model, x, v),
        "kl_near": foliax.kl(model, x, 1e-3 * v),
        "values": pairs.values,
        "vectors": projector(pairs.values[:, None] * pairs.vectors),
        "krylov": krylov.values,
        "defect": moves,
        "distance": leaf.distance(model, x, y),
        "distance_near": leaf.distance(model, x, x + 1e-3 * (y - x)),
        "length": leaf.length(model, jnp.stack([x, y, u])),
        "spectra": foliax.map(foliax.spectrum, model, jnp.stack([x, y])).eigenvalues,
    }, {}


def gradients(model, x, y, u, v):
    def of(f):
        return jax.grad(lambda z: f(model, z))(x)

    return {
        "trace": of(foliax.trace),
        "kl": of(lambda m, z: foliax.kl(m, z, v)),
        "quadratic": of(lambda m, z: foliax.quadratic(m, z, v)),
        "matvec": of(lambda m, z: foliax.matvec(m, z, v) @ u),
        "leaf": of(lambda m, z: foliax.project_leaf(m, z, v) @ u),
        "distance": of(lambda m, z: leaf.distance(m, z, y)),
    }, {}


def parameters(model, x, y, u, v):
    # F on the parameters of the first layer, which both models have.
    inner = model.args[0][0][0] if model.func is masked_mlp else model.args[0][0]

    def apply(inner, x):
        if model.func is masked_mlp:
            (_, outer), mask = model.args[0]
            return masked_mlp(((inner, outer), mask), x)
        return cases.tanh_mlp((inner, model.args[0][1]), x)

    delta = jax.tree.map(
        lambda w: jnp.cos(jnp.arange(w.size, dtype=w.dtype)).reshape(w.shape), inner
    )
    xs = jnp.stack([x, y])
    first, delta = Partial(apply, inner), Partial(apply, delta)
    solver = fisher.natural_gradient(first, 1e-1)
    found = {
        "matvec": fisher.matvec(first, x, delta),
        "kl": fisher.kl(first, x, delta),
        "quadratic": fisher.quadratic(first, x, delta),
        "solve": fisher.solve(first, xs, delta, damping=0.1).value,
        "natural": solver.update(delta, solver.init(first), first, batch=xs)[0],
    }
    return {name: getattr(value, "args", value) for name, value in found.items()}, {}


def fields(path):
    shown = (
        path.points,
        path.distance,
        path.tangent_fraction,
        path.probability_change,
        path.dimension,
        path.end,
        path.best,
        path.num_steps,
        path.status,
        path.leaf_defect,
    )
    return shown, path.logits


def walks(model, x, y, u, v):
    options = {"max_steps": 20, "save_every": 5}
    box = foliax.Box(-1.0, 1.0)
    found = {
        "walk": foliax.walk(model, x, y, **options),
        "walk_kernel": foliax.walk(model, x, y, along="kernel", **options),
        "walk_published": foliax.walk(model, x / 4, y, scheme="published", box=box, **options),
        "drift": foliax.drift(model, x, v, **options),
        "drift_kernel": foliax.drift(model, x / 4, v, along="kernel", box=box, **options),
    }
    shown = {name: fields(path) for name, path in found.items()}
    plain = {name: pair[0] for name, pair in shown.items()}
    plain["closest"] = foliax.closest(model, x, y, max_steps=20)
    key = jax.random.key(1)
    for along in ("leaf", "kernel"):
        plain["brownian_" + along] = foliax.brownian(model, x, key, 0.5, along=along, num_steps=10)
    return plain, {name: pair[1] for name, pair in shown.items()}


def walk_gradient(model, x, y, u, v):
    def end(along, z):
        return foliax.walk(model, z, y, along=along, max_steps=3, save_every=3).end @ u

    return {along: jax.grad(partial(end, along))(x) for along in ("leaf", "kernel")}, {}


def leaves(model, x, y, u, v):
    bent = leaf.extrinsic(model, x)
    return {
        "exponential": leaf.exponential(model, x, v / 4, num_steps=8),
        "geodesic": leaf.geodesic(model, x, y, num_steps=8),
        "extrinsic": bent,
        "form": leaf.second_fundamental_form(model, x, u, v),
        "principal": leaf.principal_curvatures(model, x, v).values,
        "connection": leaf.connection(model, x, v, jnp.sin),
        "involutivity": foliax.involutivity(model, x),
    }, {}


def curvatures(model, x, y, u, v):
    return {
        "curvature": leaf.curvature(model, x),
        "gauss": leaf.sectional(model, x, u, v),
        "koszul": leaf.sectional(model, x, u, v, method="koszul"),
    }, {}


def connected(model, x, y, u, v):
    return {
        "exponential": leaf.exponential(model, x, v / 4, method="connection", num_steps=8),
    }, {}


def applications(model, x, y, u, v):
    references = jnp.stack([x, u])
    key = jax.random.key(2)
    scored = ood.score(model, y, references, max_steps=10)
    found = {
        "spectral": attack.spectral(model, x, 0.5, num_steps=2),
        "geodesic": attack.geodesic(model, x, 0.5, num_steps=8),
    }
    return {
        "denoise": denoise.denoise(model, y, references, max_steps=10),
        "by_feature": denoise.nearest_by_feature(model, y, references, 2),
        "ood": scored,
        "diffuse": generate.diffuse(model, x, key, 0.5, num_steps=5, save_every=5, threshold=0.1),
        "diffuse_kernel": generate.diffuse(
            model, x, key, 0.5, num_steps=5, save_every=5, threshold=0.1, along="kernel"
        ),
        "approach": generate.approach(model, x, y, max_steps=5, save_every=5, threshold=0.1),
        "attacks": {k: (a.end, a.distance, a.fooled, a.status) for k, a in found.items()},
    }, {k: a.logits for k, a in found.items()}


def agree(masked, plain):
    """Assert that two results agree; where one is shorter, the rest of the other is zero."""
    assert jax.tree.structure(masked) == jax.tree.structure(plain)
    pairs = zip(jax.tree.leaves_with_path(masked), jax.tree.leaves(plain), strict=True)
    for (path, a), b in pairs:
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape:
            shape = np.maximum(a.shape, b.shape)
            a, b = (np.pad(v, [(0, k) for k in shape - v.shape]) for v in (a, b))
        try:
            floating = {"rtol": 1e-8, "atol": 1e-13}  # inputs are of size 1: less is rounding
            assert_close(a, b, **floating if a.dtype.kind == "f" else {})
        except AssertionError as error:
            raise AssertionError(f"{jax.tree_util.keystr(path)}: {error}") from error


EVERY_MASK = (algebra, gradients, parameters, walks)
ONE_MASK = (walk_gradient, leaves, curvatures, connected, applications)


def compared(measure, name):
    full, short, left = models(name)
    masked, of_classes = measure(full, *points())
    plain, of_fewer = measure(short, *points())
    agree(masked, plain)
    agree(jax.tree.map(lambda leaf: leaf[..., left], of_classes), of_fewer)


# Shapes repeat where one class is masked; each further number of classes compiles everything again.
@pytest.mark.parametrize(
    ("measure", "name"),
    [
        pytest.param(
            measure, name, id=f"{measure.__name__}-{name}",
            marks=[pytest.mark.slow] * (measure is not algebra and len(MASKED[name]) > 1),
        )
        for measure in EVERY_MASK
        for name in MASKED
    ],
)  # fmt: skip
def test_a_masked_class_is_no_class(measure, name):
    compared(measure, name)


@pytest.mark.slow  # a minute and a half of compilation
@pytest.mark.parametrize("measure", ONE_MASK)
def test_a_masked_class_is_no_class_to_what_takes_long(measure):
    compared(measure, "middle")
