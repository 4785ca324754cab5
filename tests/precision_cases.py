"""Every public function that computes with a model, called on a small one; and those that do not.

One row a function, for whatever is to hold of all of them: the precision of their products, the
calls of LAPACK that they make.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

import foliax
from foliax import equivariance, fisher, leaf, sharding
from foliax.apps import attack, denoise, explain, generate, metamer, ood
from foliax.likelihood import Categorical

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 2)


def numbers(*shape: int, seed: int = 0) -> jax.Array:
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


# --- models ---------------------------------------------------------------------------------------


def layers(params: tuple, x: jax.Array) -> jax.Array:
    inner, outer = params
    return outer @ jnp.tanh(inner @ x.ravel())


def convolution(params: tuple, x: jax.Array) -> jax.Array:
    kernel, outer = params
    layout = ("NHWC", "HWIO", "NHWC")
    seen = lax.conv_general_dilated(
        x[None, :, :, None], kernel, (1, 1), "SAME", dimension_numbers=layout
    )
    pooled = lax.reduce_window(
        jnp.tanh(seen), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    return outer @ pooled.ravel()


@jax.custom_vjp
def product(weight: jax.Array, x: jax.Array) -> jax.Array:
    return weight @ x


product.defvjp(
    lambda weight, x: (weight @ x, (weight, x)),
    lambda kept, g: (jnp.outer(g, kept[1]), kept[0].T @ g),
)


def ruled(params: tuple, x: jax.Array) -> jax.Array:
    inner, outer = params
    return product(outer, jnp.tanh(product(inner, x.ravel())))


PARAMS = (numbers(6, 16), numbers(4, 6, seed=1))
DENSE, RULED = Partial(layers, PARAMS), Partial(ruled, PARAMS)
SMALL_IMAGES = Partial(convolution, (numbers(3, 3, 1, 2), numbers(4, 8, seed=1)))
X, Y, V, W = (numbers(4, 4, seed=seed) for seed in range(2, 6))
XS, YS = jnp.stack([X, Y]), jnp.stack([V, W])
TURN = jnp.eye(4, dtype=X.dtype)[::-1]
LABELS = jnp.array([0, 1], jnp.int32)
MESH = sharding.mesh(1)
FEW = {"max_steps": 2}
ROWS = {"max_steps": 2, "save_every": 1}


# --- functions of a model -------------------------------------------------------------------------

Call = Callable[[Any, jax.Array], Any]


def _solve(model: Any, x: jax.Array) -> Any:
    return fisher.solve(model, x[None], model, damping=0.1, max_steps=2)


def _natural(model: Any, x: jax.Array) -> Any:
    rule = fisher.natural_gradient(model, 0.1, max_kl=0.01, max_steps=2)
    return rule.update(model, rule.init(model), model, batch=x[None])


CALLS: dict[str, Call] = {
    "factor": foliax.factor,
    "matrix": foliax.matrix,
    "matvec": lambda m, x: foliax.matvec(m, x, V),
    "solve": lambda m, x: foliax.solve(m, x, V, 0.1),
    "trace": foliax.trace,
    "eigh": foliax.eigh,
    "eigh by Lanczos": lambda m, x: foliax.eigh(m, x, 1, method="lanczos"),
    "rank": foliax.rank,
    "spectrum": foliax.spectrum,
    "kl": lambda m, x: foliax.kl(m, x, V),
    "quadratic": lambda m, x: foliax.quadratic(m, x, V),
    "trace_estimate": lambda m, x: foliax.trace_estimate(m, x, KEY, num_samples=2),
    "frame": foliax.frame,
    "dimension": foliax.dimension,
    "project_leaf": lambda m, x: foliax.project_leaf(m, x, V),
    "project_kernel": lambda m, x: foliax.project_kernel(m, x, V),
    "average": lambda m, x: foliax.average(m, jnp.stack([x, x + 1]), 2),
    "involutivity": foliax.involutivity,
    "holonomy": lambda m, x: foliax.holonomy(m, x, V, W, 0.1, num_steps=2),
    "walk": lambda m, x: foliax.walk(m, x, Y, **ROWS),
    "walk along the kernel": lambda m, x: foliax.walk(
        m, x, Y, along="kernel", box=foliax.Box(-4.0, 4.0), **ROWS),
    "walk as published": lambda m, x: foliax.walk(m, x, Y, scheme="published", **ROWS),
    "map": lambda m, _: foliax.map(foliax.walk, m, XS, YS, **ROWS),
    "map of scores": lambda m, _: foliax.map(ood.score, m, XS, references=YS, **FEW),
    "drift": lambda m, x: foliax.drift(m, x, V, **ROWS),
    "map of drifts along the kernel": lambda m, _: foliax.map(
        foliax.drift, m, XS, YS, along="kernel", **ROWS),
    "closest": lambda m, x: foliax.closest(m, x, Y, **FEW),
    "closest along the kernel, with restarts": lambda m, x: foliax.closest(
        m, x, Y, along="kernel", box=foliax.Box(-4.0, 4.0), restarts=1, key=KEY, **FEW),
    "metamer.metamers": lambda m, x: metamer.metamers(m, x, YS, num=1, max_steps=2),
    "brownian": lambda m, x: foliax.brownian(m, x, KEY, 0.1, num_steps=2, save_every=1),
    "brownian along the kernel": lambda m, x: foliax.brownian(
        m, x, KEY, 0.1, along="kernel", num_steps=2, save_every=1),
    "brownian in G's metric": lambda m, x: foliax.brownian(
        m, x, KEY, 0.1, metric="fisher", num_steps=2, save_every=1),
    "fisher.factor": fisher.factor,
    "fisher.matvec": lambda m, x: fisher.matvec(m, x, m),
    "fisher.trace": fisher.trace,
    "fisher.eigh": fisher.eigh,
    "fisher.kl": lambda m, x: fisher.kl(m, x, m),
    "fisher.quadratic": lambda m, x: fisher.quadratic(m, x, m),
    "fisher.solve": _solve,
    "fisher.natural_gradient": _natural,
    "leaf.distance": lambda m, x: leaf.distance(m, x, Y),
    "leaf.distance by the connection": lambda m, x: leaf.distance(
        m, x, Y, method="connection", num_steps=2),
    "leaf.length": lambda m, _: leaf.length(m, XS),
    "leaf.energy": lambda m, _: leaf.energy(m, XS),
    "leaf.geodesic": lambda m, x: leaf.geodesic(m, x, Y, num_steps=2),
    "leaf.geodesic by the connection": lambda m, x: leaf.geodesic(
        m, x, Y, num_steps=2, method="connection"),
    "leaf.exponential": lambda m, x: leaf.exponential(m, x, V, num_steps=2),
    "leaf.connection": lambda m, x: leaf.connection(m, x, V, lambda y: TURN @ y),
    "leaf.sectional": lambda m, x: leaf.sectional(m, x, V, W),
    "leaf.sectional by Koszul": lambda m, x: leaf.sectional(m, x, V, W, method="koszul"),
    "leaf.curvature": leaf.curvature,
    "leaf.extrinsic": leaf.extrinsic,
    "leaf.principal_curvatures": lambda m, x: leaf.principal_curvatures(m, x, V),
    "leaf.second_fundamental_form": lambda m, x: leaf.second_fundamental_form(m, x, V, W),
    "equivariance.defect": lambda m, x: equivariance.defect(m, x, equivariance.mirror),
    "equivariance.defect under a product": lambda m, x: equivariance.defect(
        m, x, lambda y: TURN @ y),
    "equivariance.averaged": lambda m, x: foliax.trace(
        equivariance.averaged(m, equivariance.MIRRORS), x),
    # What it runs, once its arguments lie on the devices.
    "sharding.factor": lambda m, x: sharding._factor(m, x, Categorical(), None, MESH),
    "attack.spectral": lambda m, x: attack.spectral(m, x, 0.1),
    "attack.geodesic": lambda m, x: attack.geodesic(m, x, 0.1, num_steps=2),
    "attack.random_direction": lambda m, x: attack.random_direction(m, x, 0.1, KEY),
    "denoise.choose": lambda m, _: denoise.choose(
        XS, YS, 1, by="class", model=m, labels=LABELS),
    "denoise.nearest_by_class": lambda m, x: denoise.nearest_by_class(m, x, YS, LABELS, 1),
    "denoise.nearest_by_feature": lambda m, x: denoise.nearest_by_feature(m, x, YS, 1),
    "denoise.project": lambda m, x: denoise.project(m, x, YS, **FEW),
    "denoise.denoise": lambda m, x: denoise.denoise(m, x, YS, **FEW),
    "denoise.exchange_kernel": lambda m, x: denoise.exchange_kernel(m, x, Y),
    "explain.reach": lambda m, x: explain.reach(m, x, 1, **FEW),
    "explain.reach in G's metric": lambda m, x: explain.reach(m, x, 1, metric="fisher", **FEW),
    "explain.explain": lambda m, x: explain.explain(m, x, **FEW),
    "generate.approach": lambda m, x: generate.approach(m, x, Y, **ROWS),
    "generate.diffuse": lambda m, x: generate.diffuse(m, x, KEY, 0.1, num_steps=2, save_every=1),
    "ood.prepare": lambda m, _: ood.prepare(m, YS),
    "ood.score": lambda m, x: ood.score(m, x, YS, **FEW),
}  # fmt: skip

# Lowered with other models as well: each a way in which the model is differentiated.
EACH_WAY = (
    "trace", "matvec", "project_leaf", "eigh by Lanczos", "drift", "leaf.curvature",
)  # fmt: skip

WITHOUT_A_MODEL = {
    "sweep": "runs the caller's function, compiled as it is",
    "sharding.spread": "runs the caller's function, compiled as it is",
    "sharding.gather": "moves arrays",
    "sharding.place": "moves arrays",
    "sharding.replicate": "moves arrays",
    "sharding.initialize": "joins processes",
    "sharding.mesh": "lists devices",
    "adapt": "wraps a model",
    "describe": "calls other functions of this table, and times them",
    "with_options": "says how a model is to be evaluated",
    "equivariance.identity": "moves pixels",
    "equivariance.mirror": "moves pixels",
    "equivariance.quarter_turn": "moves pixels",
    "denoise.combine": "averages images",
    "denoise.nearest": "compares images",
    "explain.nearest_distribution": "of probabilities alone",
    "explain.order": "of numbers alone",
    "metamer.at_scale": "SciPy's search, with the model compiled",
    "metamer.invariance_radius": "of numbers alone",
    "ood.calibrate": "of scores alone",
    "ood.combine": "of scores alone",
    "ood.exceeds": "of scores alone",
    "ood.standardise": "of scores alone",
    "ood.medoids": "of images alone",
    "transfer.log_spectra": "of eigenvalues alone",
    "transfer.spectral_distance": "of eigenvalues alone",
    "transfer.summary": "of eigenvalues alone",
}


def function_of(name: str) -> str:
    """Return the function that a row is about: "walk" of "walk along the kernel"."""
    return name.partition(" ")[0]
