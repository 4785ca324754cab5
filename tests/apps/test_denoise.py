"""Denoising where the leaf is a plane, and the answer is an orthogonal projection."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from sklearn.neighbors import NearestNeighbors

import foliax
from foliax import Status
from foliax.apps.denoise import (
    Projected,
    choose,
    combine,
    denoise,
    exchange_kernel,
    nearest,
    nearest_by_class,
    nearest_by_feature,
    project,
)
from foliax.flow.path import Code, as_status
from tests.cases import CASES, compilations, leaf_projector, linear, name_of

RNG = np.random.default_rng(0)
SHAPE, C = (3, 2, 2), 5
MODEL = Partial(linear, (jnp.asarray(RNG.normal(size=(C, 12))), jnp.zeros(C)))
X = jnp.asarray(RNG.normal(size=SHAPE))
REFERENCES = jnp.asarray(3 * RNG.normal(size=(3, *SHAPE)))
IMAGES = jnp.asarray(RNG.normal(size=(40, *SHAPE)))
LABELS = jnp.asarray(np.arange(40) % C)


def orthogonal(x, references):
    """Return r + P (x - r) by an SVD that shares nothing with the library."""
    away = np.asarray(x - references).reshape(len(references), -1)
    on_leaf = away @ leaf_projector(MODEL, X)
    return np.asarray(references) + on_leaf.reshape(references.shape)


@pytest.fixture(scope="module")
def projected():
    return project(MODEL, X, REFERENCES)


# --- projection ---


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_on_a_plane_denoising_is_the_orthogonal_projection(dtype):
    model, x, references = jax.tree.map(lambda a: a.astype(dtype), (MODEL, X, REFERENCES))
    found = denoise(model, x, references)
    feet = orthogonal(X, REFERENCES)
    assert found.image.dtype == dtype
    np.testing.assert_allclose(found.feet, feet, atol=1e-5)
    np.testing.assert_allclose(found.image, feet.mean(axis=0), atol=1e-5)
    away = np.linalg.norm((np.asarray(X) - feet).reshape(3, -1), axis=1)
    np.testing.assert_allclose(found.distances, away, atol=1e-5)
    assert (found.status == Status.stalled).all()


def test_a_point_of_the_leaf_stays_where_it_is():
    foot = jnp.asarray(orthogonal(X, REFERENCES)[0])
    found = project(MODEL, foot, REFERENCES)
    np.testing.assert_allclose(found.points[0], foot, atol=1e-5)


def test_a_curved_leaf_gives_the_foot_of_the_library():
    model, x, *_ = CASES["tanh"]
    start = x + jnp.asarray(np.random.default_rng(1).normal(size=x.size))
    found, foot = project(model, x, start[None]), foliax.closest(model, start, x)
    np.testing.assert_allclose(found.points[0], foot.point, atol=1e-12)
    np.testing.assert_allclose(found.distances[0], foot.distance, atol=1e-12)
    assert int(found.num_steps[0]) == int(foot.num_steps) > 0


def test_a_level_stops_the_flow_as_soon_as_it_is_near_enough(projected):
    starts = np.linalg.norm(np.asarray(X - REFERENCES).reshape(3, -1), axis=1)
    level = (0.5 * (starts + projected.distances)).min()
    early = project(MODEL, X, REFERENCES, level=level)
    reached = early.status == Status.arrived
    assert reached.any()
    np.testing.assert_array_equal(reached, projected.distances < level)
    assert (early.distances[reached] <= level).all()
    assert (early.distances[reached] >= level - 0.1).all()  # a step
    assert (early.num_steps[reached] < projected.num_steps[reached]).all()


def test_few_steps_end_before_the_foot(projected):
    early = project(MODEL, X, REFERENCES, max_steps=4)
    assert (early.status == Status.out_of_steps).all()
    assert (early.num_steps == 4).all()
    moved = np.linalg.norm(np.asarray(early.points - REFERENCES).reshape(3, -1), axis=1)
    np.testing.assert_allclose(moved, 0.4, atol=1e-12)
    assert (early.distances > projected.distances).all()


# --- one image of the feet ---


def test_the_nearest_foot_and_the_mean_and_the_weighted(projected):
    feet, distances = projected.points, np.asarray(projected.distances)
    best = combine(X, REFERENCES, projected, by="best")
    assert best.weights.argmax() == distances.argmin()
    np.testing.assert_allclose(best.image, feet[distances.argmin()], atol=1e-12)
    np.testing.assert_allclose(
        combine(X, REFERENCES, projected).image, feet.mean(axis=0), atol=1e-12
    )
    weighted = combine(X, REFERENCES, projected, by="weighted", bandwidth=2.0)
    squares = ((np.asarray(X) - np.asarray(REFERENCES)) ** 2).reshape(3, -1).sum(axis=1)
    weights = np.exp(-squares / 8)
    weights /= weights.sum()
    np.testing.assert_allclose(weighted.weights, weights, atol=1e-12)
    np.testing.assert_allclose(
        weighted.image, np.tensordot(weights, np.asarray(feet), 1), atol=1e-12
    )


@pytest.mark.parametrize(("along", "across"), [(0.0, 0.0), (0.3, 0.3), (0.5, 0.2), (1.0, 1.0)])
def test_part_of_the_way(projected, along, across):
    found = combine(X, REFERENCES, projected, along=along, across=across)
    x, references = np.asarray(X).ravel(), np.asarray(REFERENCES).reshape(3, -1)
    on_leaf = leaf_projector(MODEL, X)
    mix = along * on_leaf + across * (np.eye(12) - on_leaf)
    expected = np.mean([r + mix @ (x - r) for r in references], axis=0)
    np.testing.assert_allclose(found.image, expected.reshape(SHAPE), atol=1e-5)


def test_known_noise_draws_the_feet_back_as_james_and_stein_do(projected):
    sigma, dimension = 1.3, C - 1
    found = combine(X, REFERENCES, projected, noise=sigma)
    moved = np.asarray(projected.points - REFERENCES).reshape(3, -1)
    share = 1 - (dimension - 2) * sigma**2 / np.sum(moved**2, axis=1)
    expected = np.asarray(REFERENCES) + (np.maximum(share, 0)[:, None] * moved).reshape(3, *SHAPE)
    np.testing.assert_allclose(found.feet, expected, atol=1e-12)
    np.testing.assert_array_equal(combine(X, REFERENCES, projected, noise=1e3).feet, REFERENCES)


def test_drawing_back_lowers_the_error_of_noisy_feet():
    """Over many draws: the risk of James and Stein is below that of the foot for d > 2."""
    noisy = RNG.normal(size=(400, 9))  # of zero; the leaf holds the first seven coordinates
    points = jnp.asarray(noisy * (np.arange(9) < 7))[:, None]
    fixed = jnp.zeros((400, 1), jnp.int32)
    stalled = as_status(fixed + Code.stalled)
    projected = Projected(points, jnp.ones((400, 1)), fixed + 7, stalled, fixed)
    plain, drawn = (
        jax.vmap(partial(combine, noise=noise), (0, None, 0))(noisy, jnp.zeros((1, 9)), projected)
        for noise in (None, 1.0)
    )
    gain = jnp.sum(plain.image**2, axis=1) - jnp.sum(drawn.image**2, axis=1)
    assert float(jnp.mean(gain)) > 4 * float(jnp.std(gain)) / 20


def test_exchanging_the_kernel_component_is_one_projection():
    model, x, *_ = CASES["tanh"]
    clean = jnp.ones_like(x)
    for at, where in (("x", x), ("clean", clean)):
        on_leaf = clean + leaf_projector(model, where) @ np.asarray(x - clean)
        np.testing.assert_allclose(exchange_kernel(model, x, clean, at=at), on_leaf, atol=1e-8)
    mean = REFERENCES.mean(axis=0)
    found = exchange_kernel(MODEL, X, mean)
    np.testing.assert_allclose(found, orthogonal(X, mean[None])[0], atol=1e-10)
    kernel = foliax.project_kernel(MODEL, X, X - mean)
    np.testing.assert_allclose(found, X - kernel, atol=1e-12)


# --- what only values show ---


def test_a_broken_reference_is_left_out_and_a_broken_image_comes_back(projected):
    broken = REFERENCES.at[1].set(jnp.nan)
    for by in ("mean", "best", "weighted"):
        found = denoise(MODEL, X, broken, by=by, bandwidth=2.0)
        assert name_of(found.status) == ["stalled", "invalid", "stalled"]
        kept = jax.tree.map(lambda leaf: leaf[jnp.array([0, 2])], (REFERENCES, projected))
        expected = combine(X, *kept, by=by, bandwidth=2.0)
        np.testing.assert_allclose(found.image, expected.image, atol=1e-12)
        assert float(found.weights[1]) == 0
    x = X.at[0, 0, 0].set(jnp.nan)
    for by in ("mean", "best", "weighted"):
        found = denoise(MODEL, x, REFERENCES, by=by, bandwidth=2.0)
        assert (found.status == Status.invalid).all()
        np.testing.assert_array_equal(found.image, x)


# --- many ---


def test_batches_and_their_order_do_not_matter():
    xs = IMAGES[:5]
    references = IMAGES[5:][choose(xs, IMAGES[5:], 3)]
    many = partial(foliax.map, denoise, MODEL, block=2)
    whole = many(xs, references, level=0.0, step=0.1)
    backwards = xs[::-1], references[::-1]
    before = len(compilations())
    turned = many(*backwards, level=0.0, step=0.1)
    other = many(xs, references, level=3.0, step=0.2)
    assert len(compilations()) == before  # another level is no other program
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[::-1], b, atol=1e-12), turned, whole)
    assert (other.status == Status.arrived).any()
    # One by one, and the references the other way round.
    for i in (0, 3):
        single = denoise(MODEL, xs[i], references[i])
        np.testing.assert_allclose(single.image, whole.image[i], atol=1e-12)
        swapped = denoise(MODEL, xs[i], references[i][::-1])
        np.testing.assert_allclose(swapped.image, single.image, atol=1e-12)
        np.testing.assert_allclose(swapped.distances[::-1], single.distances, atol=1e-12)
    alone = foliax.map(denoise, MODEL, xs, references, block=1)
    np.testing.assert_allclose(alone.image, whole.image, atol=1e-12)


def test_it_is_a_function_of_the_model_and_maps_over_images():
    mapped = jax.jit(jax.vmap(denoise, in_axes=(None, 0, None)))
    other = jax.tree.map(lambda leaf: -0.5 * leaf, MODEL)
    for model in (MODEL, other):
        found = mapped(model, IMAGES[:2], REFERENCES)
        expected = denoise(model, IMAGES[1], REFERENCES)
        np.testing.assert_allclose(found.image[1], expected.image, atol=1e-12)
    assert mapped._cache_size() == 1


# --- references ---


def brute_force(x, images, k, features=lambda image: image):
    away = [
        np.sum((np.asarray(features(image)) - np.asarray(features(x))) ** 2) for image in images
    ]
    return np.argsort(away, kind="stable")[:k]


def test_nearest_by_distance_and_by_feature():
    flat = np.asarray(IMAGES).reshape(40, -1)
    expected = NearestNeighbors(algorithm="brute").fit(flat)
    expected = expected.kneighbors(np.asarray(X).reshape(1, -1), 7, return_distance=False)[0]
    np.testing.assert_array_equal(nearest(X, IMAGES, 7), expected)
    np.testing.assert_array_equal(nearest(X, IMAGES, 7), brute_force(X, IMAGES, 7))
    np.testing.assert_array_equal(
        nearest_by_feature(MODEL, X, IMAGES, 7), brute_force(X, IMAGES, 7, MODEL)
    )
    same = jnp.stack([IMAGES[0]] * 3)
    assert nearest(X, same, 2).tolist() == [0, 1]


def test_nearest_of_the_predicted_class_and_then_the_others():
    label = int(jnp.argmax(MODEL(X)))
    order = brute_force(X, IMAGES, 40)
    inside = [place for place in order if int(LABELS[place]) == label]
    outside = [place for place in order if int(LABELS[place]) != label]
    for k in (3, 8, 11):  # the class has 8 images
        found = nearest_by_class(MODEL, X, IMAGES, LABELS, k)
        np.testing.assert_array_equal(found, (inside + outside)[:k])


@pytest.mark.parametrize("by", ["distance", "class", "feature"])
def test_choosing_for_many_is_choosing_for_each(by):
    one = {
        "distance": partial(nearest, images=IMAGES, k=3),
        "class": partial(nearest_by_class, MODEL, images=IMAGES, labels=LABELS, k=3),
        "feature": partial(nearest_by_feature, MODEL, images=IMAGES, k=3),
    }[by]
    xs = REFERENCES
    expected = np.stack([one(x=x) for x in xs])
    for block in (1, 3):
        options = {"by": by, "model": MODEL, "labels": LABELS, "block": block}
        np.testing.assert_array_equal(choose(xs, IMAGES, 3, **options), expected)
    found = choose(xs[::-1], IMAGES, 3, by=by, model=MODEL, labels=LABELS)
    np.testing.assert_array_equal(found[::-1], expected)


# --- errors ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: project(MODEL, X, X), r"references must have shape \(k, \*x.shape\)"),
        (lambda: project(MODEL, X, REFERENCES, level=-1.0), "level must be a finite number >= 0"),
        (lambda: project(MODEL, X, REFERENCES, step=0.0), "step must be a finite number > 0"),
        (lambda: foliax.map(project, MODEL, X[None], X[None]), r"references must have shape \(k"),
        (
            lambda: foliax.map(project, MODEL, X[None], X[None, None], level=-1.0),
            "level must be a finite number >= 0",
        ),
        (lambda: denoise(MODEL, X, REFERENCES, by="worst"), "by must be one of 'best', 'mean'"),
        (lambda: denoise(MODEL, X, REFERENCES, by="weighted"), "needs bandwidth="),
        (lambda: denoise(MODEL, X, REFERENCES, noise=0.0), "noise must be a finite number > 0"),
        (lambda: exchange_kernel(MODEL, X, X[0]), "clean must have the shape of x"),
        (lambda: exchange_kernel(MODEL, X, X, at="here"), "at must be one of 'x', 'clean'"),
        (lambda: nearest(X, X, 1), r"images must have shape \(N, \*shape\)"),
        (lambda: nearest(X, IMAGES, 41), "k must be at most the number of images, 40, got 41"),
        (lambda: nearest(X, IMAGES, 0), "k must be a whole number >= 1"),
        (lambda: nearest_by_class(MODEL, X, IMAGES, LABELS[1:], 1), "labels must hold one whole"),
        (lambda: choose(IMAGES, IMAGES, 1, by="class"), "by='class' needs model= and labels="),
        (lambda: choose(IMAGES, IMAGES, 1, by="feature"), "by='feature' needs model="),
        (lambda: choose(IMAGES, IMAGES, 1, by="luck"), "by must be one of"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
