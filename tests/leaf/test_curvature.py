"""Connection and curvature against their definitions, closed forms, and an independent route."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import foliax
from foliax import leaf, zoo
from foliax.likelihood import Gaussian
from tests import cases
from tests.cases import CASES

curvature = jax.jit(leaf.curvature)
sectional = jax.jit(leaf.sectional)
koszul = jax.jit(partial(leaf.sectional, method="koszul"))
extrinsic = jax.jit(leaf.extrinsic)


def pair(case, seed=0):
    return cases.directions(case, seed, 2)


def metric_on(model, x, basis):
    """Return z ↦ the metric on x + Σ z_k basis_k, from the definition of G."""

    def metric(z):
        at = x + jnp.tensordot(z, basis, 1)
        rows = basis.reshape(len(basis), -1)
        return rows @ cases.definition_matrix(model, at) @ rows.T

    return metric


def riemann_sectional(metric, u, v):
    """Return K(u, v) = R(u, v, v, u) / area² at 0 from Γ^k_ij and its derivatives, as in books."""

    def gamma(z):
        d = jax.jacfwd(metric)(z)  # d[i, j, k] = ∂_k g_ij
        lowered = (jnp.einsum("jki->ijk", d) + jnp.einsum("ikj->ijk", d) - d) / 2
        return jnp.einsum("ijl,lk->ijk", lowered, jnp.linalg.inv(metric(z)))

    zero = jnp.zeros(len(u))
    # ds[i, j, k, l] = ∂_l Γ^k_ij
    g, s, ds = jax.jit(lambda z: (metric(z), gamma(z), jax.jacfwd(gamma)(z)))(zero)
    # R^l_kij = ∂_i Γ^l_jk − ∂_j Γ^l_ik + Γ^m_jk Γ^l_im − Γ^m_ik Γ^l_jm
    r = (
        jnp.einsum("jkli->lkij", ds)
        - jnp.einsum("iklj->lkij", ds)
        + jnp.einsum("jkm,iml->lkij", s, s)
        - jnp.einsum("ikm,jml->lkij", s, s)
    )
    numerator = jnp.einsum("lkij,i,j,k,lm,m->", r, u, v, v, g, u)
    area = (u @ g @ u) * (v @ g @ v) - (u @ g @ v) ** 2
    return float(numerator / area)


# --- the curvature of a leaf in G's metric -----------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "tanh", "image"])
def test_it_is_a_quarter_for_every_network_of_full_rank(name):
    case = CASES[name]
    found = curvature(case.model, case.x)
    assert found.defined
    assert found.dimension == 3
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(np.asarray(found.sectional)[off], 0.25, rtol=1e-9)
    assert float(found.mean) == pytest.approx(0.25, rel=1e-9)
    for method in (sectional, koszul):
        for seed in range(3):
            one = method(case.model, case.x, *pair(case, seed))
            assert one.defined
            assert float(one.value) == pytest.approx(0.25, rel=1e-6)


def test_it_is_a_quarter_of_a_trained_network():
    with jax.enable_x64(False):
        model, data = zoo.load("digits_mlp"), zoo.load_digits()
        # Smooth inside a linear region of its units: the logits are affine, and still it is 1/4.
        found = jax.jit(jax.vmap(leaf.curvature, in_axes=(None, 0)))(model, data.test_x[:20])
    seen = np.asarray(found.defined & (found.dimension == 9))
    assert seen.sum() >= 10
    np.testing.assert_allclose(np.asarray(found.mean)[seen], 0.25, rtol=1e-2)


RANK_2 = ("narrow_layer", "more_classes_than_inputs")


@pytest.mark.parametrize("name", RANK_2)
def test_where_the_rank_is_lower_it_is_that_of_the_metric(name):
    """Rank 2 with C = 5 and 6: not 1/4, and what the textbook's formula gives."""
    case = CASES[name]
    v, w = pair(case)
    basis, _ = foliax.frame(case.model, case.x)
    basis = basis[:2]
    metric = metric_on(case.model, case.x, basis)
    coordinates = (
        jnp.tensordot(basis.reshape(2, -1), t.ravel(), 1) for t in (v, w)
    )  # the chart is x + D, and D has dimension 2
    expected = riemann_sectional(metric, *coordinates)
    assert abs(expected - 0.25) > 1e-2
    for method in (sectional, koszul):
        found = method(case.model, case.x, v, w)
        assert found.defined
        assert found.dimension == 2
        assert float(found.value) == pytest.approx(expected, rel=1e-6)
    whole = curvature(case.model, case.x)
    assert float(whole.mean) == pytest.approx(expected, rel=1e-6)


def test_independent_outputs_are_flat():
    """Two binary outputs as 2 × 2 classes: rank 2 where C − 1 = 3, a product of two circles."""
    model = Partial(lambda _, x: jnp.stack([0 * x[0], x[0], x[1], x[0] + x[1]]), None)
    for x in (jnp.zeros(2), jnp.array([1.0, -2.0])):
        assert abs(float(curvature(model, x).mean)) < 1e-10
        assert abs(float(koszul(model, x, *jnp.eye(2)).value)) < 1e-10


def test_it_does_not_depend_on_the_plane_s_vectors():
    case = CASES["narrow_layer"]
    v, w = pair(case)
    first = float(sectional(case.model, case.x, v, w).value)
    other = float(sectional(case.model, case.x, 3 * v - w, v + 0.5 * w).value)
    assert other == pytest.approx(first, rel=1e-8)


def test_a_gaussian_output_of_linear_means_is_flat():
    weight = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)))
    model = Partial(lambda w, x: w @ x, weight)
    found = leaf.sectional(
        model, jnp.ones(5), *jnp.eye(5)[:2], method="koszul", likelihood=Gaussian(0.5)
    )
    assert found.defined
    assert abs(float(found.value)) < 1e-10
    with pytest.raises(ValueError, match="needs the Categorical likelihood"):
        leaf.sectional(model, jnp.ones(5), *jnp.eye(5)[:2], likelihood=Gaussian(0.5))


@pytest.mark.parametrize("name", ["dead", "gap_10000"])
def test_where_g_sees_no_plane_it_is_not_defined(name):
    case = CASES[name]
    found = curvature(case.model, case.x)
    assert not found.defined
    assert float(found.mean) == 0
    assert not sectional(case.model, case.x, *pair(case)).defined


def test_parallel_vectors_span_no_plane():
    case = CASES["tanh"]
    v = cases.directions(case)[0]
    assert not sectional(case.model, case.x, v, 2 * v).defined


@pytest.mark.parametrize("name", ["two_classes"])
def test_a_curve_has_no_curvature_of_its_own(name):
    case = CASES[name]
    with pytest.raises(ValueError, match="needs a leaf of dimension >= 2"):
        leaf.curvature(case.model, case.x)


# --- the connection ----------------------------------------------------------------------------


def fields(case):
    """Return two vector fields on input space."""
    a, b = (jnp.asarray(m) for m in np.random.default_rng(0).normal(size=(2, case.n, case.n)))
    return (lambda x: jnp.tanh(a @ x), lambda x: jnp.sin(b @ x))


@pytest.mark.parametrize("name", ["tanh", "narrow_layer"])
def test_the_connection_is_metric(name):
    """V⟨W, W⟩ = 2⟨∇_V W, W⟩ for V in D: along x + D, where the metric is that of the leaf."""
    case = CASES[name]
    field, _ = fields(case)
    v = foliax.project_leaf(case.model, case.x, cases.directions(case)[0])
    projector = jnp.asarray(cases.leaf_projector(case.model, case.x))

    def inside(x):
        return projector @ field(x)

    @jax.jit
    def squared(t):
        x = case.x + t * v
        return inside(x) @ cases.pairwise_matrix(case.model, x) @ inside(x)

    turned = leaf.connection(case.model, case.x, v, inside)
    g = cases.pairwise_matrix(case.model, case.x)
    slope = cases.central_difference(squared, 0.0, 1.0, step=1e-3)
    assert float(2 * turned @ g @ inside(case.x)) == pytest.approx(float(slope), rel=1e-6)


@pytest.mark.parametrize("name", ["tanh", "narrow_layer"])
def test_the_connection_has_no_torsion(name):
    case = CASES[name]
    first, second = fields(case)
    projector = jnp.asarray(cases.leaf_projector(case.model, case.x))

    def inside(field):
        return lambda x: projector @ field(x)

    v, w = inside(first), inside(second)
    one = leaf.connection(case.model, case.x, v(case.x), w)
    two = leaf.connection(case.model, case.x, w(case.x), v)
    bracket = jax.jvp(w, (case.x,), (v(case.x),))[1] - jax.jvp(v, (case.x,), (w(case.x),))[1]
    np.testing.assert_allclose(one - two, bracket, atol=1e-8)


@pytest.mark.slow
def test_a_geodesic_is_parallel_to_itself():
    """A field whose integral curve is the great circle turns nowhere."""
    case = CASES["linear"]
    velocity = foliax.project_leaf(case.model, case.x, cases.directions(case)[0])

    def along(t):
        moved = leaf.exponential(case.model, case.x, t * velocity, num_steps=4)
        return moved.end

    first = cases.central_difference(along, 0.0, 1.0, step=1e-2)
    h = 1e-2
    near, far = along(h) + along(-h), along(2 * h) + along(-2 * h)
    second = (16 * near - far - 30 * along(0.0)) / (12 * h**2)
    np.testing.assert_allclose(first, velocity, atol=1e-6)
    # ∇_v v with v constant is −x'': only the symbols are left.
    symbols = leaf.connection(case.model, case.x, velocity, lambda x: velocity + 0 * x)
    np.testing.assert_allclose(second + symbols, 0, atol=1e-4)


# --- the leaf in input space -------------------------------------------------------------------


def sphere_model(radius_center):
    """Logits whose leaves are spheres around a centre: stereographic coordinates of x − c."""

    def logits(center, x):
        y = x - center
        unit = y / jnp.linalg.norm(y)
        return jnp.stack([unit[0] / (2 - unit[2]), unit[1] / (2 - unit[2]), 0 * x[0]])

    return Partial(logits, radius_center)


def test_spheres_have_their_curvature():
    center, x = jnp.array([1.0, -1.0, 0.5]), jnp.array([1.4, 0.2, 1.8])
    model, radius = sphere_model(center), float(jnp.linalg.norm(x - center))
    found = extrinsic(model, x)
    assert found.dimension == 2
    assert float(found.norm) == pytest.approx(np.sqrt(2) / radius, rel=1e-9)
    assert float(found.twist) < 1e-9
    np.testing.assert_allclose(found.mean, (center - x) / radius**2, atol=1e-9)
    principal = leaf.principal_curvatures(model, x, center - x)
    np.testing.assert_allclose(principal.values, 1 / radius, rtol=1e-9)
    np.testing.assert_allclose(principal.directions @ principal.directions.T, np.eye(2), atol=1e-9)
    np.testing.assert_allclose(principal.directions @ (center - x), 0, atol=1e-9)


def test_cylinders_bend_one_way():
    model = Partial(lambda _, x: jnp.stack([jnp.arctan2(x[1], x[0]), x[2], 0 * x[0]]), None)
    x = jnp.array([0.0, 2.0, 1.0])
    found = leaf.principal_curvatures(model, x, -x.at[2].set(0))
    np.testing.assert_allclose(found.values, [0.5, 0], atol=1e-10)
    np.testing.assert_allclose(np.abs(found.directions[0]), [1, 0, 0], atol=1e-9)


@pytest.mark.parametrize("name", ["linear", "relu", "deficient_weights"])
def test_planes_do_not_bend(name):
    case = CASES[name]
    found = extrinsic(case.model, case.x)
    assert float(found.norm) < 1e-10
    assert float(found.twist) < 1e-10


@pytest.mark.parametrize("name", ["tanh", "image"])
def test_the_second_form_is_the_turning_of_the_projector(name):
    """II(u, v) = (1 − P)(D_u P) v, by finite differences of P."""
    case = CASES[name]
    u, v = (np.asarray(t).ravel() for t in pair(case))
    p = cases.leaf_projector(case.model, case.x)
    u, v = p @ u, p @ v

    def projector(t):
        return cases.leaf_projector(case.model, case.x + t * u.reshape(case.x.shape))

    h = 1e-4
    slope = (8 * (projector(h) - projector(-h)) - (projector(2 * h) - projector(-2 * h))) / (12 * h)
    expected = (np.eye(case.n) - p) @ slope @ v
    shape = case.x.shape
    found = leaf.second_fundamental_form(case.model, case.x, u.reshape(shape), v.reshape(shape))
    np.testing.assert_allclose(np.ravel(found), expected, atol=1e-7)
    np.testing.assert_allclose(p @ np.ravel(found), 0, atol=1e-10)


def test_the_form_is_symmetric_up_to_the_twist():
    case = CASES["image"]
    basis, _ = foliax.frame(case.model, case.x)
    form = jax.jit(
        jax.vmap(
            jax.vmap(leaf.second_fundamental_form, in_axes=(None, None, None, 0)),
            in_axes=(None, None, 0, None),
        )
    )(case.model, case.x, basis, basis)
    form = np.asarray(form).reshape(3, 3, -1)
    found = extrinsic(case.model, case.x)
    even, odd = (form + form.swapaxes(0, 1)) / 2, (form - form.swapaxes(0, 1)) / 2
    assert float(found.norm) == pytest.approx(np.linalg.norm(even), rel=1e-9)
    assert float(found.twist) == pytest.approx(np.linalg.norm(odd), rel=1e-9)
    mean = np.einsum("iin->n", form) / 3
    np.testing.assert_allclose(np.ravel(found.mean), mean, atol=1e-10)
    chunked = leaf.extrinsic(case.model, case.x, chunk=2)
    assert float(chunked.norm) == pytest.approx(float(found.norm), rel=1e-12)


def test_saturation_changes_nothing_of_it():
    """No p enters: a shift of one logit by 60 leaves the leaf where it is."""
    plain, shifted = CASES["tanh"], CASES["gap_60"]
    moved = Partial(lambda model, x: model(x).at[0].add(60), plain.model)
    first, second = (extrinsic(model, plain.x) for model in (plain.model, moved))
    assert float(first.norm) == pytest.approx(float(second.norm), rel=1e-6)
    assert np.isfinite(float(extrinsic(shifted.model, shifted.x).norm))


def test_bad_arguments_are_named():
    case = CASES["tanh"]
    wrong: Any = "dense"
    refused = [
        (lambda: leaf.sectional(case.model, case.x, case.x[:1], case.x), "v must have"),
        (
            lambda: leaf.sectional(case.model, case.x, case.x, case.x, method=wrong),
            "method must",
        ),
        (lambda: leaf.extrinsic(case.model, case.x, chunk=0), "chunk must be"),
        (lambda: leaf.principal_curvatures(case.model, case.x, case.x[:1]), "normal must have"),
        (lambda: leaf.connection(case.model, case.x, case.x, lambda x: x[:1]), r"field\(x\) must"),
    ]
    for call, match in refused:
        with pytest.raises(ValueError, match=match):
            call()
