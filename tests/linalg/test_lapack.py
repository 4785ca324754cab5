"""Decompositions: the stock ones in every way, but one matrix at a time under vmap on a CPU."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.linalg import solve_triangular

import foliax
from foliax._linalg import lapack
from tests.precision_cases import CALLS, DENSE, V, X, Y


def positive(a):
    return a.T @ a + jnp.eye(a.shape[1])


def half(a):
    return solve_triangular(jnp.linalg.cholesky(positive(a)), jnp.eye(a.shape[1]), lower=True)


def through_qr(a):
    return solve_triangular(jnp.linalg.qr(a)[1], jnp.eye(a.shape[1]))


def through_triangle(a):
    q, r = jnp.linalg.qr(a)
    u, s, vt = jnp.linalg.svd(r, full_matrices=False)
    return q @ u, s, vt


STOCK = {
    "qr": (lapack.qr, jnp.linalg.qr),
    "qr of a wide one": (lambda a: lapack.qr(a.T), lambda a: jnp.linalg.qr(a.T)),
    "triangle": (lapack.triangle, partial(jnp.linalg.qr, mode="r")),
    "svd": (lapack.svd, partial(jnp.linalg.svd, full_matrices=False)),
    "svd of a wide one": (
        lambda a: lapack.svd(a.T), lambda a: jnp.linalg.svd(a.T, full_matrices=False)
    ),
    "thin_svd": (lapack.thin_svd, through_triangle),
    "values": (lapack.values, partial(jnp.linalg.svd, compute_uv=False)),
    "thin_values": (lapack.thin_values, partial(jnp.linalg.svd, compute_uv=False)),
    "eigh": (lambda a: lapack.eigh(positive(a)), lambda a: jnp.linalg.eigh(positive(a))),
    "solve": (
        lambda a: lapack.solve(a[:4], a[4]), lambda a: jnp.linalg.solve(a[:4], a[4])
    ),
    "inverse_upper": (lambda a: lapack.inverse_upper(lapack.triangle(a)), through_qr),
    "inverse_cholesky": (lambda a: lapack.inverse_cholesky(positive(a)), half),
    "pinv": (lapack.pinv, jnp.linalg.pinv),
    "pinv of lower rank": (
        lambda a: lapack.pinv(jnp.outer(a[:, 0], a[1])),
        lambda a: jnp.linalg.pinv(jnp.outer(a[:, 0], a[1])),
    ),
}  # fmt: skip


@pytest.fixture(params=STOCK)
def pair(request):
    return STOCK[request.param]


@pytest.fixture
def batch():
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 4)))


def same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_a_batch_is_its_members(pair, batch):
    ours, stock = pair
    same(ours(batch[0]), stock(batch[0]))
    same(jax.jit(jax.vmap(ours))(batch), jax.vmap(stock)(batch))
    twice = jnp.stack([batch, 2 * batch])
    same(jax.vmap(jax.vmap(ours))(twice), jax.vmap(jax.vmap(stock))(twice))


def test_derivatives_are_those_of_the_stock_ones(pair, batch):
    def total(decompose):
        return lambda a: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(decompose(a)))

    def derivatives(f):
        return {
            "gradient": jax.vmap(jax.grad(f)),
            "slope": lambda many: jax.jvp(f, (many[0],), (many[1],)),
            "hessian": lambda many: jax.hessian(f)(many[0]),
        }

    ours, stock = (derivatives(total(decompose)) for decompose in pair)
    found = jax.jit(lambda many: {kind: of(many) for kind, of in ours.items()})(batch)
    for kind, of in stock.items():  # apart, as two batches in one program could wait for ever
        same(found[kind], jax.jit(of)(batch))


def test_on_a_cpu_no_batch_goes_to_lapack(pair, batch):
    """Two batches could wait for each other's threads for ever."""
    if jax.default_backend() != "cpu":
        pytest.skip("a loop on CPUs alone")
    program = str(jax.make_jaxpr(jax.vmap(pair[0]))(batch))
    assert "scan" in program
    assert "[3,5,4] = qr" not in program
    assert "while" in jax.jit(jax.vmap(pair[0])).lower(batch).as_text()


DECOMPOSING = (
    "eigh", "eigh by Lanczos", "rank", "frame", "project_leaf", "leaf.curvature", "leaf.extrinsic",
    "leaf.principal_curvatures", "equivariance.defect", "attack.spectral", "explain.reach",
    "explain.reach in G's metric", "ood.prepare", "spectrum", "drift",
    pytest.param("closest along the kernel, with restarts", marks=pytest.mark.slow),
)  # fmt: skip


@pytest.mark.parametrize("name", DECOMPOSING)
def test_no_program_of_a_population_holds_a_batch_of_lapack_calls(name):
    if jax.default_backend() != "cpu":
        pytest.skip("LAPACK is of CPUs alone")
    many = jax.jit(jax.vmap(CALLS[name], in_axes=(None, 0)))
    program = many.lower(DENSE, jnp.stack([X, Y, V])).as_text()
    calls = [line for line in program.splitlines() if "@lapack_" in line]
    assert calls
    assert not [line for line in calls if re.search(r"tensor<\d+x\d+x\d+x", line)]


def test_nobody_else_decomposes():
    """What calls LAPACK by another way may be batched."""
    source = Path(foliax.__file__).parent
    stock = re.compile(r"jnp\.linalg|jax\.numpy\.linalg|scipy\.linalg|lax\.linalg")
    found = {path.name for path in source.rglob("*.py") if stock.search(path.read_text())}
    assert found == {"lapack.py"}
