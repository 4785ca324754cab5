"""Out-of-distribution scores against planes and closed forms, and what calibration may see."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

import foliax
from foliax import Status
from foliax.apps import ood
from tests.cases import linear, name_of, relu_mlp
from tests.tolerance import assert_close

RNG = np.random.default_rng(0)
N, C = 12, 4
WEIGHT, BIAS = RNG.normal(size=(C, N)), RNG.normal(size=C)
PLANE = Partial(linear, (jnp.asarray(WEIGHT), jnp.asarray(BIAS)))
XS, REFERENCES = (jnp.asarray(RNG.normal(size=(count, N))) for count in (7, 3))
RELU = Partial(
    relu_mlp,
    tuple(
        (jnp.asarray(RNG.normal(size=(b, a)) / np.sqrt(a)), jnp.asarray(RNG.normal(size=b)))
        for a, b in ((N, 9), (9, C))
    ),
)
scored = jax.jit(ood.score, static_argnames=("reduce", "feet", "max_steps"))


def many(model, xs, references, *, choice=None, **options):
    """Score many inputs by the same references, or each by those of its choice."""
    if not isinstance(references, ood.References):
        references = ood.prepare(model, references)
    if choice is None:
        return foliax.map(ood.score, model, xs, references=references, **options)
    own = jax.tree.map(lambda rows: rows[choice], references)
    return foliax.map(ood.score, model, xs, own, **options)


kept = partial(many, reduce="none", feet=False)
footed = jax.jit(foliax.closest, static_argnames="max_steps")


def to_plane(x, reference):
    """Return the distance of x to the plane through a reference that D spans, by least squares."""
    spanning = (WEIGHT[:-1] - WEIGHT[-1]).T  # differences of the rows: no centring, no frame
    _, squared, *_ = np.linalg.lstsq(spanning, np.asarray(x - reference), rcond=None)
    return np.sqrt(squared[0])


def p(x):
    s = WEIGHT @ np.asarray(x) + BIAS
    return np.exp(s) / np.exp(s).sum()


# --- one input ---------------------------------------------------------------------------------


def test_the_residual_is_the_distance_from_the_plane():
    found = many(PLANE, XS, REFERENCES, reduce="none")
    exact = np.array([[to_plane(x, r) for r in REFERENCES] for x in XS])
    np.testing.assert_allclose(found.residual, exact, rtol=0, atol=1e-5)
    assert_close(found.kernel_at_reference, exact)
    assert_close(found.kernel_at_x, exact)
    distance = np.linalg.norm(np.asarray(XS)[:, None] - np.asarray(REFERENCES)[None], axis=2)
    assert_close(found.distance, distance)
    np.testing.assert_allclose(found.residual_ratio, exact / distance, atol=1e-5)
    assert (found.status == Status.stalled).all()


def test_reductions_are_over_the_references():
    every = kept(PLANE, XS, REFERENCES)
    least = many(PLANE, XS, REFERENCES, feet=False)
    mean = many(PLANE, XS, REFERENCES, reduce="mean", feet=False)
    for name in ("distance", "kernel_at_x", "metric_length", "fisher_distance"):
        values = np.asarray(getattr(every, name))
        assert values.shape == (len(XS), len(REFERENCES))
        assert_close(getattr(least, name), values.min(axis=1))
        assert_close(getattr(mean, name), values.mean(axis=1))
    assert every.residual is None
    assert every.residual_ratio is None


def test_the_fisher_distance_has_its_closed_form():
    found = kept(PLANE, XS, REFERENCES).fisher_distance
    exact = [[2 * np.arccos(np.sqrt(p(x) * p(r)).sum()) for r in REFERENCES] for x in XS]
    assert_close(found, exact, rtol=1e-9)


def test_the_fisher_distance_depends_on_p_alone_and_ends_at_pi():
    spanning, _ = np.linalg.qr((WEIGHT[:-1] - WEIGHT[-1]).T)
    normal = np.ones(N) - spanning @ (spanning.T @ np.ones(N))
    moved = kept(PLANE, XS + 50 * normal, REFERENCES).fisher_distance
    assert_close(moved, kept(PLANE, XS, REFERENCES).fisher_distance)
    sure = Partial(linear, (jnp.asarray(1e4 * WEIGHT), jnp.asarray(BIAS)))
    labels, others = (
        np.argmax(WEIGHT @ np.asarray(points).T, axis=0) for points in (XS, REFERENCES)
    )
    apart = np.pi * (labels[:, None] != others[None])
    assert 0 < (apart > 0).mean() < 1
    ends = kept(sure, XS, REFERENCES).fisher_distance
    np.testing.assert_allclose(ends, apart, atol=1e-12)


def test_near_points_are_as_far_apart_in_the_metric_as_by_p():
    near = kept(PLANE, XS, XS[:3] + 1e-7 * jnp.arange(1, 4)[:, None])
    for i in range(3):
        assert_close(near.fisher_distance[i, i], near.metric_length[i, i], rtol=1e-5)


@pytest.mark.parametrize("model", [PLANE, RELU], ids=["plane", "relu"])
def test_the_spectrum_is_that_of_the_dense_matrix(model):
    found = kept(model, XS, REFERENCES)
    matrix = jax.jit(foliax.matrix)
    for i in range(2):
        g = np.asarray(matrix(model, XS[i]))
        values = np.linalg.eigvalsh(g)[::-1][: C - 1]
        share = values / values.sum()
        assert_close(found.trace[i], values.sum())
        assert_close(found.largest_eigenvalue[i], values[0])
        assert_close(found.effective_rank[i], np.exp(-(share * np.log(share)).sum()), rtol=1e-9)
        away = np.asarray(XS[i] - REFERENCES)
        exact = np.sqrt(np.einsum("kn,nm,km->k", away, g, away))
        assert_close(found.metric_length[i], exact, rtol=1e-9)


def test_the_kernel_fraction_is_what_the_tangent_fraction_leaves():
    found = kept(RELU, XS, REFERENCES)
    tangent = jax.jit(foliax.project_leaf)
    for i, reference in enumerate(REFERENCES):
        away = XS[0] - reference
        fraction = np.linalg.norm(tangent(RELU, reference, away)) / np.linalg.norm(away)
        assert_close(found.kernel_fraction[0, i], np.sqrt(1 - fraction**2))
        noise = away - tangent(RELU, XS[0], away)
        assert_close(found.kernel_at_x[0, i], np.linalg.norm(noise))


@pytest.mark.parametrize("block", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_residual_is_that_of_the_foot_in_every_block(block):
    references = jnp.stack([REFERENCES[0], XS[0]])
    found = many(RELU, XS[:4], references, reduce="none", block=block, max_steps=200)
    for i, x in enumerate(XS[:4]):
        for j, reference in enumerate(references):
            exact = footed(RELU, reference, x, max_steps=200)
            # Steps round apart where lanes share a program: by less than the stall.
            assert_close(found.residual[i, j], exact.distance, rtol=1e-6, atol=1e-9)
    assert (found.residual <= found.distance + 1e-12).all()
    for name in ("distance", "residual", "residual_ratio", "kernel_fraction", "fisher_distance"):
        assert abs(float(getattr(found, name)[0, 1])) < 1e-15  # of an input from itself


def test_a_dead_network_leaves_all_in_the_kernel():
    dead = Partial(linear, (jnp.zeros((C, N)), jnp.asarray(BIAS)))
    found = kept(dead, XS, REFERENCES)
    assert_close(found.kernel_at_x, found.distance)
    assert_close(found.kernel_at_reference, found.distance)
    assert not np.any(found.trace)
    assert not np.any(found.effective_rank)


def test_the_status_tells_what_was_not_reached():
    xs = XS[:2].at[1, 0].set(jnp.nan)
    short = many(PLANE, xs, REFERENCES, max_steps=1).status
    assert name_of(short) == ["out_of_steps", "invalid"]
    without = kept(PLANE, XS.at[1, 0].set(jnp.nan), REFERENCES).status
    assert name_of(without)[:2] == ["stalled", "invalid"]


def test_single_precision_stays_single():
    narrow = jax.tree.map(lambda a: a.astype(jnp.float32), (PLANE, XS, REFERENCES))
    found = kept(*narrow)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32", "int32"}
    wide = kept(PLANE, XS, REFERENCES)
    for name in ("trace", "kernel_at_x", "fisher_distance"):
        assert_close(getattr(found, name), getattr(wide, name))


# --- many inputs -------------------------------------------------------------------------------


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_close(one, other)


@settings(max_examples=6, deadline=None)
@given(st.permutations(range(len(XS))), st.sampled_from([1, 2, 4]))
def test_scores_do_not_depend_on_order_or_block(order, block):
    order = np.array(order)
    expected = jax.tree.map(lambda leaf: leaf[order], kept(RELU, XS, REFERENCES))
    assert_same(kept(RELU, XS[order], REFERENCES, block=block), expected)


def test_scores_do_not_depend_on_the_batch():
    prepared = ood.prepare(RELU, REFERENCES)
    expected = kept(RELU, XS, prepared)
    alone = jax.jit(partial(ood.score, reduce="none", feet=False))
    mapped = jax.jit(jax.vmap(partial(ood.score, reduce="none", feet=False), (None, 0, None)))
    assert_same(mapped(RELU, XS, prepared), expected)
    for i in (0, 5):
        assert_same(alone(RELU, XS[i], prepared), jax.tree.map(lambda leaf, i=i: leaf[i], expected))


def test_each_input_may_choose_its_references():
    choice = RNG.integers(3, size=(len(XS), 2))
    found, every = kept(RELU, XS, REFERENCES, choice=choice), kept(RELU, XS, REFERENCES)
    assert_same(found, jax.tree.map(
        lambda leaf: np.take_along_axis(leaf, choice, axis=1) if leaf.ndim == 2 else leaf, every
    ))  # fmt: skip


def test_new_weights_compile_nothing():
    traced = []

    def counted(weight, x):
        traced.append(1)
        return weight @ x

    before = 0
    for weight in (WEIGHT, 2 * WEIGHT):
        before = len(traced)
        kept(Partial(counted, jnp.asarray(weight)), XS, REFERENCES)
    assert len(traced) == before > 0


def test_images_are_scored_as_their_flat_selves():
    found = kept(PLANE, XS.reshape(-1, 2, 6), REFERENCES.reshape(-1, 2, 6))
    assert_same(found, kept(PLANE, XS, REFERENCES))


def test_medoids_have_the_least_sum_of_squared_distances():
    xs, labels = RNG.normal(size=(30, 2, 3)), np.arange(30) % 3
    found = ood.medoids(xs, labels, num_classes=3)
    for label, place in enumerate(found):
        own = np.flatnonzero(labels == label)
        sums = [((xs[own] - xs[i]) ** 2).sum() for i in own]
        assert place == own[np.argmin(sums)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ood.score(PLANE, XS[0], REFERENCES, reduce="max"), "reduce must be one of 'min'"),
        (lambda: ood.score(PLANE, XS[0], REFERENCES[0]), r"references must have shape \(k, \*x"),
        (lambda: ood.score(PLANE, XS[0], REFERENCES[:, 1:]), "references must have shape"),
        (lambda: ood.score(PLANE, XS[0], REFERENCES, step=0.0), "step must be a finite number > 0"),
        (lambda: ood.score(3, XS[0], REFERENCES), "model must be callable"),
        (lambda: many(PLANE, XS[:, 0], REFERENCES), r"references must have shape \(k, \*x"),
        (lambda: many(PLANE, XS, REFERENCES, step=0.0), "step must be a finite number > 0"),
        (
            lambda: many(PLANE, XS, REFERENCES, choice=np.array([[0]])),
            r"alike.*\(7, 12\), \(1, 1, 12\)",
        ),
        (lambda: ood.prepare(PLANE, XS[0, 0]), "points must be stacked along axis 0"),
        (
            lambda: ood.medoids(np.zeros((3, 2)), np.zeros(2, int), num_classes=1),
            "labels must hold one class for each",
        ),
        (
            lambda: ood.medoids(np.zeros((3, 2)), np.zeros(3, int), num_classes=2),
            "labels must hold every class of 0 … 1, got none of 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- calibration -------------------------------------------------------------------------------


def test_calibration_gives_moments_and_the_threshold_of_a_share():
    values = RNG.normal(size=200)
    known = ood.calibrate({"a": values, "flat": np.ones(200)}, share=0.9)
    assert_close(known.mean["a"], values.mean())
    assert_close(known.std["a"], values.std())
    assert float(known.std["flat"]) == 1
    assert np.mean(values <= float(known.threshold["a"])) == pytest.approx(0.9, abs=0.006)
    assert (values <= float(known.threshold["a"])).mean() >= 0.9
    assert_close(ood.standardise(known, {"a": values, "flat": values})["a"].std(), 1.0)


def test_calibration_takes_scores_and_leaves_the_status_out():
    found = many(PLANE, XS, REFERENCES, feet=False)
    known = jax.jit(ood.calibrate)(found)
    assert set(known.mean) == set(found._fields) - {"status", "residual", "residual_ratio"}
    beyond = ood.exceeds(known, found)
    assert_close(beyond["trace"], found.trace - np.max(found.trace))
    total = ood.combine(known, found, ["trace", "distance"])
    parts = ood.standardise(known, found)
    assert_close(total, parts["trace"] + parts["distance"])
    assert ood.combine(known, found).shape == (len(XS),)


def test_one_test_input_is_judged_alone():
    """No other test input can change what is said of one."""
    known = ood.calibrate(many(PLANE, XS, REFERENCES, feet=False))
    said = ood.combine(known, many(PLANE, XS, REFERENCES, feet=False))
    others = many(PLANE, XS.at[1:].multiply(100.0), REFERENCES, feet=False)
    assert_close(ood.combine(known, others)[0], said[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ood.calibrate({"a": np.ones(3)}, share=1.0), r"share must lie in \(0, 1\)"),
        (lambda: ood.calibrate({"a": np.ones((3, 2))}), r"training scores must be \(N,\)"),
        (lambda: ood.calibrate({}), "scores must hold at least one value by name"),
        (
            lambda: ood.exceeds(ood.calibrate({"a": np.ones(3)}), {"b": np.ones(3)}),
            r"scores must hold what was calibrated, got none of \['a'\]",
        ),
        (
            lambda: ood.combine(ood.calibrate({"a": np.ones(3)}), {"a": np.ones(3)}, ["b"]),
            r"names must be among a, got \['b'\]",
        ),
        (
            lambda: ood.combine(ood.calibrate({"a": np.ones(3)}), {"a": np.ones(3)}, []),
            "names must hold at least one score",
        ),
    ],
)
def test_calibration_refuses_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
