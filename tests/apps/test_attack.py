"""Attacks: exact on linear models, within their budget on all, and worst where they say so."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import foliax
from foliax import Box, Status, leaf
from foliax.apps import attack
from tests.cases import CASES, linear, name_of

KEY = jax.random.key(7)
ATTACKS = {
    "spectral": attack.spectral,
    "two_steps": partial(attack.spectral, num_steps=2),
    "geodesic": partial(attack.geodesic, num_steps=16),
    "random": lambda *args, **options: attack.random_direction(*args, KEY, **options),
}
BUDGETS = jnp.array([0.0, 0.3, 1.0])


@pytest.fixture(scope="module", params=sorted(ATTACKS))
def run(request):
    """Return one attack by name, compiled for many budgets."""

    def many(model, x, budgets, box=None):
        return jax.vmap(lambda budget: ATTACKS[request.param](model, x, budget, box=box))(budgets)

    return request.param, jax.jit(many)


@pytest.mark.parametrize("name", ["tanh", "image", "gap_60", "dead"])
def test_the_budget_is_kept(run, name):
    case, (kind, many) = CASES[name], run
    found = many(case.model, case.x, BUDGETS)
    assert found.end.shape == (3, *case.x.shape)
    np.testing.assert_array_equal(found.end[0], case.x)
    assert (found.distance <= BUDGETS * (1 + 1e-9)).all()
    for end, distance, logits, fooled in zip(
        found.end, found.distance, found.logits, found.fooled, strict=True
    ):
        assert distance == pytest.approx(float(jnp.linalg.norm(end - case.x)))
        np.testing.assert_allclose(logits, case.model(end), rtol=1e-9, atol=1e-12)
        assert fooled == (jnp.argmax(logits) != jnp.argmax(case.model(case.x)))
    assert name_of(found.status)[0] == "completed"
    if name == "dead":
        assert kind == "random" or (found.distance == 0).all()
        assert kind == "random" or (found.status == Status.stalled)[1:].all()
    elif kind != "geodesic":  # whose leaf may end
        np.testing.assert_allclose(found.distance, BUDGETS, rtol=1e-9)


def test_a_softmax_that_squares_have_lost_is_attacked_all_the_same():
    """A lead of 120 in float32: G underflows, its factor does not."""
    weights = jnp.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]], jnp.float32)
    model = Partial(linear, (weights, jnp.array([120.0, 0.0], jnp.float32)))
    x = jnp.zeros(3, jnp.float32)
    assert foliax.trace(model, x) == 0
    found = attack.spectral(model, x, 30.0)
    np.testing.assert_allclose(found.end, [-18.0, -24.0, 0.0], rtol=1e-5)
    assert bool(found.fooled)
    assert found.status == Status.completed


@pytest.mark.slow
def test_a_geodesic_that_needs_a_higher_rank_says_so():
    case = CASES["narrow_layer"]
    by_sphere, found = (
        jax.jit(partial(attack.geodesic, num_steps=16, method=method))(case.model, case.x, 1.0)
        for method in ("sphere", "connection")
    )
    assert by_sphere.status == Status.stalled
    assert by_sphere.distance == 0
    assert found.status == Status.completed
    assert found.distance > 0.5


def test_the_box_is_kept(run):
    case, (_, many) = CASES["tanh"], run
    box = Box(case.x - 0.2, case.x + 0.4)
    found = many(case.model, case.x, BUDGETS, box)
    assert all(box.excess(end) == 0 for end in found.end)
    assert (found.distance <= BUDGETS * (1 + 1e-9)).all()


def test_one_step_is_along_the_top_eigenvector():
    case = CASES["tanh"]
    values, vectors = np.linalg.eigh(foliax.matrix(case.model, case.x))
    end = attack.spectral(case.model, case.x, 0.5).end
    assert abs(vectors[:, -1] @ (end - case.x)) == pytest.approx(0.5)
    # No move of the length changes the answer more, to second order.
    small = 1e-4
    found = attack.spectral(case.model, case.x, small)
    kl = foliax.kl(case.model, case.x, found.end - case.x)
    assert kl == pytest.approx(values[-1] * small**2 / 2, rel=1e-3)
    rng = np.random.default_rng(0)
    for v in rng.normal(size=(20, case.n)):
        other = jnp.asarray(small * v / np.linalg.norm(v))
        assert foliax.kl(case.model, case.x, other) <= kl * (1 + 1e-3)


def test_more_steps_turn_with_the_eigenvector():
    """By hand: half of the budget, the eigenvector there, and on to the ball."""
    case, budget = CASES["tanh"], 1.5

    def top(x, ahead):
        v = np.linalg.eigh(foliax.matrix(case.model, x))[1][:, -1]
        return v if v @ ahead > 0 else -v

    def doubt(x):
        p = jax.nn.softmax(case.model(x))
        return -p[jnp.argmax(case.model(case.x))]

    ends = []
    for sign in (1, -1):
        first = sign * top(case.x, np.ones(case.n))
        half = case.x + budget / 2 * first
        last = top(half, first)
        lengths = np.linspace(0, 2 * budget, 200_001)
        far = np.linalg.norm(half - case.x + lengths[:, None] * last, axis=1)
        ends.append(half + lengths[np.argmin(np.abs(far - budget))] * last)
    expected = max(ends, key=doubt)
    found = attack.spectral(case.model, case.x, budget, num_steps=2)
    np.testing.assert_allclose(found.end, expected, atol=3e-5)
    straight = attack.spectral(case.model, case.x, budget).end
    assert np.linalg.norm(straight - found.end) > 0.01


def test_on_two_classes_all_go_the_same_way():
    """G has one eigenvector, the gradient: where that is constant, every attack is the same."""
    rng = np.random.default_rng(2)
    weight, x = jnp.asarray(rng.normal(size=(2, 5))), jnp.asarray(rng.normal(size=5))
    model = Partial(linear, (weight, jnp.zeros(2)))
    lead = model(x) - jnp.min(model(x))
    normal = weight[jnp.argmin(lead)] - weight[jnp.argmax(lead)]
    needed = float(jnp.max(lead) / jnp.linalg.norm(normal))
    for name in ("spectral", "two_steps", "geodesic"):
        one = jax.jit(partial(ATTACKS[name], model, x))
        below, above = (one(r * needed) for r in (0.999, 1.001))
        assert (bool(below.fooled), bool(above.fooled)) == (False, True)
        np.testing.assert_allclose(
            above.end, x + 1.001 * needed * normal / jnp.linalg.norm(normal), rtol=1e-5
        )


def test_the_geodesic_is_that_of_the_leaf():
    case, budget = CASES["tanh"], 0.8
    found = jax.jit(partial(attack.geodesic, num_steps=64))(case.model, case.x, budget)
    # Its end is on the great circle of √p that starts along the top eigenvector.
    p, q = (np.sqrt(jax.nn.softmax(case.model(z))) for z in (case.x, found.end))
    v = foliax.eigh(case.model, case.x, k=1).vectors[0]
    sign = np.sign(v @ (found.end - case.x))
    _, slope = jax.jvp(lambda z: jnp.sqrt(jax.nn.softmax(case.model(z))), (case.x,), (sign * v,))
    slope = slope / jnp.linalg.norm(slope)
    out_of_plane = q - p * (p @ q) - slope * (slope @ q)
    assert np.linalg.norm(out_of_plane) < 2e-3
    assert slope @ q > 0
    # And nearer in G's metric than the same length straight ahead is long.
    straight = jnp.linspace(case.x, case.x + sign * budget * v, 101)
    near = jax.jit(leaf.distance)(case.model, case.x, found.end)
    assert near < 2 * jax.jit(leaf.length)(case.model, straight)


def test_another_label_is_attacked_when_named():
    case = CASES["tanh"]
    rare = int(jnp.argmin(case.model(case.x)))
    found = attack.spectral(case.model, case.x, 0.1, label=rare)
    assert int(found.label) == rare
    assert found.fooled
    assert jax.nn.softmax(found.logits)[rare] < jax.nn.softmax(case.model(case.x))[rare]


def test_nan_is_not_fooled(run):
    case = CASES["tanh"]
    found = run[1](case.model, case.x.at[0].set(jnp.nan), BUDGETS)
    assert not found.fooled.any()
    assert np.isnan(found.logits).any()


def test_batches_are_singles():
    case = CASES["image"]
    xs = case.x + jnp.linspace(0, 1, 3)[:, None, None, None]
    one = jax.jit(partial(attack.spectral, num_steps=2))
    many = jax.jit(jax.vmap(one, in_axes=(None, 0, None)))(case.model, xs, 0.7)
    for i, x in enumerate(xs):
        np.testing.assert_allclose(many.end[i], one(case.model, x, 0.7).end, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"budget": -1.0}, "budget must be a finite number"),
        ({"budget": jnp.ones(2)}, "use jax.vmap"),
        ({"budget": jnp.nan}, "budget"),
        ({"label": 9}, "label must be a class, 0 … 3"),
        ({"label": 0.5}, "label must be a class"),
        ({"box": (0, 1)}, "box must be a foliax.Box"),
    ],
)
def test_errors_name_the_argument(options, told):
    case = CASES["tanh"]
    options = {"budget": 1.0} | options
    for run in ATTACKS.values():
        with pytest.raises(ValueError, match=told):
            run(case.model, case.x, options["budget"], **{
                name: value for name, value in options.items() if name != "budget"
            })  # fmt: skip


def test_steps_are_checked():
    case = CASES["tanh"]
    with pytest.raises(ValueError, match="num_steps"):
        attack.spectral(case.model, case.x, 1.0, num_steps=0)
