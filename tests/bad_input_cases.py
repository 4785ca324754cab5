"""What a caller gets for input that is wrong, degenerate or unusual, over every public function.

One row a case: what is called, and either the sentence of a ValueError or a check of the result.
All walks share their sizes, and the networks one structure, so that few programs are compiled.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import foliax
from foliax import equivariance, fisher, leaf, sharding
from foliax.apps import attack, denoise, explain, generate, ood, transfer
from foliax.flow.path import Code, as_code, as_status
from tests.cases import name_of


class Case(NamedTuple):
    """One row of the table.

    Attributes:
        name: What is odd about the input.
        functions: The public functions that the row is about, "walk" or "leaf.distance".
        call: Calls them.
        expected: The pattern of a ValueError, or a check of what is returned.
    """

    name: str
    functions: tuple[str, ...]
    call: Callable[[], Any]
    expected: str | Callable[[Any], None]


def row(name: str, functions: str, call: Callable[[], Any], expected: Any) -> Case:
    return Case(name, tuple(functions.split()), call, expected)


# --- networks and points --------------------------------------------------------------------------


def apply(params, x):
    """A layer of tanh and relu, mixed by weights, so that both are one program."""
    inner, shift, (smooth, kinked), outer, bias = params
    hidden = inner @ x.ravel() + shift
    return outer @ (smooth * jnp.tanh(hidden) + kinked * jax.nn.relu(hidden)) + bias


def network(n: int, c: int) -> Partial:
    rng = np.random.default_rng(10 * n + c)
    inner, outer, bias = (jnp.asarray(rng.normal(size=size)) for size in ((4, n), (c, 4), c))
    return Partial(apply, (inner, jnp.zeros(4), jnp.array([1.0, 0.0]), outer, bias))


def changed(**given: Any) -> Partial:
    """Return the network with other weights of some names."""
    names = ("inner", "shift", "mixture", "outer", "bias")
    return Partial(apply, tuple((dict(zip(names, PARAMS, strict=True)) | given).values()))


MODEL = network(3, 3)
PARAMS = MODEL.args[0]
NAN_WEIGHTS = jax.tree.map(lambda w: w * jnp.nan, MODEL)
NAN_BIAS = changed(bias=jnp.array([0.0, jnp.nan, 0.0]))
CONSTANT = changed(outer=jnp.zeros((3, 4)))
ONE_HOT = changed(bias=jnp.array([1e4, 0.0, -1e4]))
# A ReLU network of which no unit is ever on.
DEAD = changed(mixture=jnp.array([0.0, 1.0]), shift=jnp.array(4 * [-100.0]))
TWO_CLASSES, MANY_CLASSES, ONE_INPUT = network(3, 2), network(2, 6), network(1, 3)
X, V = jnp.array([0.3, -0.2, 0.5]), jnp.array([1.0, 2.0, -1.0])
FAR, XS = X + 1, jnp.stack([X, X + 1])
NAN, INF = X.at[1].set(jnp.nan), X.at[1].set(jnp.inf)
IMAGE = jnp.arange(9.0).reshape(3, 3)
BYTES = np.array([3, 200, 255], np.uint8)
nan, inf = float("nan"), float("inf")
FEET = denoise.Projected(
    XS + 1, jnp.arange(2.0), jnp.full(2, 2), as_status(np.full(2, Code.stalled)), jnp.ones(2, int)
)
KEY, OLD_KEY = jax.random.key(0), jax.random.PRNGKey(0)
SHORT = {"max_steps": 8, "save_every": 4}
NOISY = {"num_steps": 8, "save_every": 4}
MESH = sharding.mesh(1)
BOX, WIDE = foliax.Box(-1.0, 1.0), foliax.Box(-9.0, 9.0)
HALVES = (jnp.float16, jnp.bfloat16)


# --- what is expected of a result -----------------------------------------------------------------


def floats(result: Any) -> list[np.ndarray]:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(result)]
    return [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]


def whole(result: Any) -> list[np.ndarray]:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(result)]
    return [leaf for leaf in leaves if leaf.dtype.kind in "iu"]


def finite(result: Any) -> None:
    """Nothing in it is NaN or infinite."""
    assert all(np.isfinite(leaf.astype(np.float64)).all() for leaf in floats(result)), result


def ends(*names: str) -> Callable[[Any], None]:
    """Every status is one of these; the numbers are finite unless it is invalid."""

    def check(result: Any) -> None:
        found = set(np.ravel(name_of(result.status)).tolist())
        assert found <= set(names), (found, result)
        if "invalid" not in names:
            finite(result)

    return check


def tells(result: Any) -> None:
    """NaN came in, and no number of the result could be taken for an answer."""
    if hasattr(result, "status"):
        ends("invalid")(result)
    elif hasattr(result, "nearest"):  # an Explanation
        tells(result.nearest)
        tells(result.fisher)
    elif hasattr(result, "defined"):
        assert not np.any(result.defined)
        assert int(result.dimension) == -1
    else:
        assert all(np.isnan(leaf).any() for leaf in floats(result)), result
        assert all((leaf == -1).all() for leaf in whole(result)), result


def is_close(value: Any, atol: float = 1e-12) -> Callable[[Any], None]:
    """It is this number, this array, or this pytree."""

    def check(result: Any) -> None:
        assert jax.tree.structure(result) == jax.tree.structure(value)
        for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(value), strict=True):
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=atol)

    return check


def same(pair: Any) -> None:
    """Both of the two results are the same, bit for bit."""
    one, other = pair
    finite(one)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def alike(pair: Any) -> None:
    """Both of the two results are the same, up to rounding."""
    is_close(pair[1])(pair[0])


def each(check: Callable[[Any], None]) -> Callable[[Any], None]:
    def check_all(results: Any) -> None:
        for result in results:
            check(result)

    return check_all


def fields(**values: Any) -> Callable[[Any], None]:
    """The fields of these names have these values, and all is finite."""

    def check(result: Any) -> None:
        finite(result)
        for name, value in values.items():
            np.testing.assert_allclose(np.asarray(getattr(result, name)), value, atol=1e-12)

    return check


# --- every function of a model and a point --------------------------------------------------------


def compiled(fn: Callable, other: Any) -> Callable[..., Any]:
    """Compile a function of a model, a point and another vector: one program for all its rows."""
    program = jax.jit(fn)
    return lambda model, x, v=other: program(model, x, v)


def as_it_is(fn: Callable, other: Any) -> Callable[..., Any]:
    """Leave a function alone that compiles inside what takes long."""
    return lambda model, x, v=other: fn(model, x, v)


def of_model(fn: Callable) -> Callable:
    return lambda model, x, _: fn(model, x)


WALK = jax.jit(lambda m, x, y, step: foliax.walk(m, x, y, step=step, **SHORT))
REACH = jax.jit(lambda m, x, c, step: explain.reach(m, x, c, step=step, max_steps=8))
OF_A_POINT: dict[str, Callable[..., Any]] = {
    **{f.__name__: compiled(of_model(f), None) for f in (
        foliax.trace, foliax.factor, foliax.matrix, foliax.rank, foliax.eigh, foliax.frame,
        foliax.dimension, foliax.involutivity, foliax.spectrum)},
    **{f.__name__: compiled(f, V) for f in (
        foliax.matvec, foliax.kl, foliax.quadratic, foliax.project_leaf, foliax.project_kernel)},
    "solve": compiled(lambda m, x, v: foliax.solve(m, x, v, 0.1), V),
    "trace_estimate": compiled(of_model(lambda m, x: foliax.trace_estimate(m, x, KEY)), None),
    "leaf.distance": compiled(leaf.distance, FAR),
    "leaf.length": compiled(lambda m, x, y: leaf.length(m, jnp.stack([x, y])), FAR),
    "leaf.energy": compiled(lambda m, x, y: leaf.energy(m, jnp.stack([x, y])), FAR),
    "leaf.curvature": compiled(of_model(leaf.curvature), None),
    "leaf.sectional": compiled(lambda m, x, v: leaf.sectional(m, x, v, X), V),
    "leaf.extrinsic": compiled(of_model(leaf.extrinsic), None),
    "leaf.principal_curvatures": compiled(leaf.principal_curvatures, V),
    "leaf.second_fundamental_form": compiled(
        lambda m, x, v: leaf.second_fundamental_form(m, x, v, V), V),
    "leaf.connection": compiled(lambda m, x, v: leaf.connection(m, x, v, lambda y: y), V),
    "leaf.geodesic": compiled(
        lambda m, x, log_p: leaf.geodesic(m, x, log_probabilities=log_p, num_steps=4), MODEL(FAR)),
    "leaf.exponential": compiled(lambda m, x, v: leaf.exponential(m, x, v, num_steps=4), V),
    "equivariance.defect": compiled(
        of_model(lambda m, x: equivariance.defect(m, x, jnp.negative)), None),
    "denoise.exchange_kernel": compiled(denoise.exchange_kernel, FAR),
    "ood.score": compiled(lambda m, x, r: ood.score(m, x, r[None], feet=False), FAR),
    "sharding.factor": as_it_is(
        of_model(lambda m, x: sharding.factor(m, x, mesh=MESH)), None),
    "walk": lambda model, x, target=FAR: WALK(model, x, target, 0.1),
    "drift": as_it_is(partial(foliax.drift, **SHORT), V),
    "map": as_it_is(
        lambda m, x, y: foliax.map(foliax.walk, m, jnp.stack([x, x]), XS + y, **SHORT),
        jnp.ones(3)),
    "closest": compiled(lambda m, x, target: foliax.closest(m, x, target, max_steps=8), FAR),
    "denoise.denoise": compiled(
        lambda m, x, r: denoise.denoise(m, x, jnp.stack([FAR, r]), max_steps=8), FAR),
    "brownian": compiled(lambda m, x, time: foliax.brownian(m, x, KEY, time, **NOISY), 1.0),
    "explain.reach": lambda model, x, step=0.1: REACH(model, x, 1, step),
    "explain.explain": compiled(
        of_model(lambda m, x: explain.explain(m, x, max_steps=8)), None),
    "generate.diffuse": as_it_is(
        of_model(lambda m, x: generate.diffuse(m, x, KEY, 1.0, threshold=0.0, **NOISY)), None),
    "generate.approach": as_it_is(
        lambda m, x, y: generate.approach(m, x, y, threshold=0.0, **SHORT), FAR),
}  # fmt: skip
LANCZOS = jax.jit(lambda m, x: foliax.eigh(m, x, 1, method="lanczos"))
OF_WEIGHTS = jax.jit(
    lambda m: [f(m, X, MODEL) for f in (fisher.matvec, fisher.kl, fisher.quadratic)]
)
SOLVED = jax.jit(lambda m: fisher.solve(m, XS, MODEL, damping=1.0))


def of_all(names: str, what: str, model: Any, x: Any, expected: Any) -> list[Case]:
    """Return a row for each of the functions."""
    return [
        row(f"{what}: {name}", name, partial(OF_A_POINT[name], model, x), expected)
        for name in names.split()
    ]


EVERY = " ".join(OF_A_POINT)
NO_WAY = "walk drift map closest denoise.denoise explain.reach ood.score"
NO_NUMBERS = (
    "trace factor matrix matvec quadratic kl rank dimension project_leaf leaf.distance leaf.length "
    "leaf.energy leaf.extrinsic leaf.second_fundamental_form trace_estimate equivariance.defect"
)


def zero(result: Any) -> None:
    """Every number of it is 0."""
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(result)), result


NOT_FINITE = [
    *of_all(EVERY, "NaN input", MODEL, NAN, tells),
    *of_all(EVERY, "NaN weights", NAN_WEIGHTS, X, tells),
    # The Jacobian is finite where a bias alone is NaN: only p says that something is wrong.
    *of_all("trace factor matrix rank eigh matvec kl walk explain.reach ood.score",
            "NaN in a bias alone", NAN_BIAS, X, tells),
    row("infinite input", "walk", lambda: WALK(MODEL, INF, FAR, 0.1), ends("invalid")),
    row("infinite target", "walk", lambda: WALK(MODEL, X, INF, 0.1), ends("invalid")),
    row("NaN target", "walk", lambda: WALK(MODEL, X, NAN, 0.1), ends("invalid")),
    row("NaN direction", "drift", lambda: foliax.drift(MODEL, X, NAN, **SHORT), ends("invalid")),
    row("NaN target of a closest point", "closest",
        lambda: OF_A_POINT["closest"](MODEL, X, NAN), ends("invalid")),
    row("a target beyond what squares", "walk",
        lambda: WALK(MODEL, X, X + 1e300, 0.1), ends("invalid")),
    row("one NaN among many", "map",
        lambda: as_code(
            foliax.map(foliax.walk, MODEL, jnp.stack([X, NAN]), XS + 1, **SHORT).status),
        is_close(np.array([Code.out_of_steps, Code.invalid]))),
    row("NaN velocity", "leaf.exponential",
        lambda: OF_A_POINT["leaf.exponential"](MODEL, X, NAN), ends("invalid")),
    row("one NaN among the inputs of a mean", "average",
        lambda: foliax.average(MODEL, jnp.stack([X, NAN]), 1).values, tells),
    row("constant logits: a mean of 0", "average",
        lambda: foliax.average(CONSTANT, jnp.stack([X, X + 1])).values, zero),
    row("NaN direction of a loop", "holonomy",
        lambda: foliax.holonomy(MODEL, X, NAN, V, 0.1, num_steps=2), ends("invalid")),
    row("constant logits: no loop", "holonomy",
        lambda: foliax.holonomy(CONSTANT, X, X, V, 0.1, num_steps=2), ends("stalled")),
    row("NaN target of a geodesic", "leaf.geodesic",
        lambda: OF_A_POINT["leaf.geodesic"](MODEL, X, NAN), ends("invalid")),
    row("a target on the edge of the simplex", "leaf.geodesic",
        lambda: OF_A_POINT["leaf.geodesic"](MODEL, X, jnp.array([0.0, -inf, 0.0])),
        ends("invalid")),
    row("NaN normal", "leaf.principal_curvatures",
        lambda: OF_A_POINT["leaf.principal_curvatures"](MODEL, X, NAN), tells),
    row("NaN target of an approach", "generate.approach",
        lambda: OF_A_POINT["generate.approach"](MODEL, X, NAN), ends("invalid")),
    row("NaN reference", "ood.score",
        lambda: OF_A_POINT["ood.score"](MODEL, X, NAN), ends("invalid")),
    row("NaN reference", "denoise.denoise",
        lambda: OF_A_POINT["denoise.denoise"](MODEL, X, NAN),
        lambda found: (np.testing.assert_allclose(found.weights, [1, 0]), finite(found.image))),
    row("NaN image to choose from", "denoise.nearest",
        lambda: denoise.nearest(X, jnp.stack([NAN, FAR]), 1), is_close(np.array([1]))),
    row("NaN row of a sweep", "sweep",
        lambda: foliax.sweep(foliax.rank, MODEL, jnp.stack([X, NAN]), progress=False),
        is_close(np.array([2, -1]))),
    row("NaN by Lanczos", "eigh",
        lambda: LANCZOS(MODEL, NAN), tells),
    row("NaN weights", "fisher.matvec fisher.kl fisher.quadratic",
        lambda: OF_WEIGHTS(NAN_BIAS), each(tells)),
    row("NaN weights", "fisher.factor fisher.trace fisher.eigh",
        lambda: [f(NAN_BIAS, X) for f in (fisher.factor, fisher.trace)], each(tells)),
    row("NaN weights", "fisher.solve",
        lambda: SOLVED(NAN_BIAS).residual, tells),
    row("NaN among training inputs", "ood.medoids",
        lambda: ood.medoids(jnp.stack([X, NAN]), np.array([0, 1]), num_classes=2),
        "xs must be finite, got NaN.*leave such inputs out"),
    row("NaN among training scores", "ood.calibrate",
        lambda: ood.calibrate({"a": jnp.array([1.0, nan])}), tells),
    row("NaN distance, not reached", "explain.order",
        lambda: explain.order(NAN, jnp.array([True, False, True]), 0),
        is_close(np.array([2, 1, 0]))),
    row("NaN probability", "explain.nearest_distribution",
        lambda: explain.nearest_distribution(NAN, 0), tells),
    row("NaN pixel", "equivariance.mirror equivariance.quarter_turn equivariance.identity",
        lambda: [g(IMAGE.at[0, 0].set(nan)) for g in
                 (equivariance.mirror, equivariance.quarter_turn, equivariance.identity)],
        each(tells)),
]  # fmt: skip

DEGENERATE = [
    *of_all(NO_NUMBERS, "constant logits", CONSTANT, X, zero),
    *of_all(NO_WAY, "constant logits", CONSTANT, X, ends("stalled")),
    row("dead ReLU", "trace rank dimension", lambda: [
        OF_A_POINT[f](DEAD, X) for f in ("trace", "rank", "dimension")], zero),
    row("dead ReLU", "walk", lambda: WALK(DEAD, X, FAR, 0.1), ends("stalled")),
    row("constant logits: all is kernel", "project_kernel frame",
        lambda: (OF_A_POINT["project_kernel"](CONSTANT, X), OF_A_POINT["frame"](CONSTANT, X).mask),
        is_close((V, np.zeros(2, bool)))),
    row("constant logits: no spectrum", "eigh",
        lambda: OF_A_POINT["eigh"](CONSTANT, X),
        lambda found: (zero(found.values), finite(found),
                       is_close(np.eye(2))(found.vectors @ found.vectors.T))),
    row("constant logits: no spectrum by Lanczos", "eigh",
        lambda: LANCZOS(CONSTANT, X).values, zero),
    row("constant logits: nothing to curve", "leaf.curvature leaf.sectional",
        lambda: [OF_A_POINT[f"leaf.{f}"](CONSTANT, X) for f in ("curvature", "sectional")],
        each(fields(defined=False, dimension=0))),
    row("constant logits: no brackets", "involutivity",
        lambda: OF_A_POINT["involutivity"](CONSTANT, X), zero),
    row("constant logits: no geodesic", "leaf.geodesic leaf.exponential",
        lambda: [OF_A_POINT[f"leaf.{f}"](CONSTANT, X) for f in ("geodesic", "exponential")],
        each(ends("stalled"))),
    row("constant logits: stays", "brownian",
        lambda: OF_A_POINT["brownian"](CONSTANT, X),
        lambda found: (ends("completed")(found), is_close(X)(found.end))),
    row("constant logits: no class is nearer", "explain.explain",
        lambda: OF_A_POINT["explain.explain"](CONSTANT, X),
        lambda found: (finite(found), ends("stalled", "arrived")(found.nearest))),
    row("constant logits: free to go", "walk",
        lambda: foliax.walk(CONSTANT, X, FAR, box=WIDE, along="kernel", **SHORT), ends("arrived")),
    row("constant logits", "fisher.solve",
        lambda: SOLVED(CONSTANT), finite),
    *of_all("trace factor matrix matvec eigh kl trace_estimate leaf.length ood.score walk drift "
            "closest generate.diffuse generate.approach explain.reach", "one-hot p", ONE_HOT, X,
            finite),
    row("one-hot p: D stays", "dimension rank",
        lambda: [OF_A_POINT[f](ONE_HOT, X) for f in ("dimension", "rank")], is_close([2, 0])),
    row("one-hot p: on the edge", "brownian",
        lambda: foliax.brownian(ONE_HOT, X, KEY, 1.0, metric="fisher", **NOISY), ends("boundary")),
    row("one-hot p in float32", "trace",
        lambda: OF_A_POINT["trace"](jax.tree.map(jnp.float32, ONE_HOT), jnp.float32(X)), zero),
    row("p with zeros", "explain.nearest_distribution",
        lambda: explain.nearest_distribution(jnp.array([1.0, 0.0, 0.0]), 2),
        is_close(np.array([0.5, 0, 0.5]))),
    row("scores all equal", "ood.calibrate ood.standardise ood.combine ood.exceeds",
        lambda: [f(ood.calibrate({"a": jnp.ones(3)}), {"a": 2.0}) for f in
                 (ood.standardise, ood.combine, ood.exceeds)],
        is_close([{"a": 1.0}, 1.0, {"a": 1.0}])),
    row("target = start", "walk closest",
        lambda: [WALK(MODEL, X, X, 0.1), OF_A_POINT["closest"](MODEL, X, X)],
        each(ends("arrived"))),
    row("target = start, as published", "walk",
        lambda: foliax.walk(MODEL, X, X, box=BOX, scheme="published", **SHORT),
        ends("arrived")),
    row("no direction", "drift", lambda: foliax.drift(MODEL, X, 0 * X, **SHORT), ends("stalled")),
    row("target = start", "leaf.geodesic",  # whose logits were computed by another program
        lambda: OF_A_POINT["leaf.geodesic"](MODEL, X, MODEL(X)).length, is_close(0.0, atol=1e-15)),
    row("target = start", "leaf.distance", lambda: OF_A_POINT["leaf.distance"](MODEL, X, X), zero),
    row("no velocity", "leaf.exponential",
        lambda: OF_A_POINT["leaf.exponential"](MODEL, X, 0 * V),
        lambda found: (ends("completed")(found), is_close(X)(found.end))),
    row("points that coincide", "leaf.length leaf.energy",
        lambda: [OF_A_POINT[f"leaf.{f}"](MODEL, X, X) for f in ("length", "energy")], zero),
    row("parallel vectors", "leaf.sectional",
        lambda: OF_A_POINT["leaf.sectional"](MODEL, X, X), fields(defined=False)),
    row("x = reference", "ood.score",
        lambda: OF_A_POINT["ood.score"](MODEL, X, X),
        fields(distance=0, kernel_fraction=0, fisher_distance=0)),
    row("x = reference", "denoise.denoise denoise.exchange_kernel",
        lambda: [OF_A_POINT["denoise.denoise"](MODEL, FAR, FAR).image,
                 OF_A_POINT["denoise.exchange_kernel"](MODEL, FAR, FAR)], is_close([FAR, FAR])),
    row("a bandwidth whose square underflows", "denoise.combine",
        lambda: denoise.combine(X, XS + 1, FEET, by="weighted", bandwidth=1e-200),
        lambda found: (finite(found), np.testing.assert_allclose(found.weights, [1, 0]))),
    row("target = start", "generate.approach",
        lambda: OF_A_POINT["generate.approach"](MODEL, X, X), ends("arrived")),
    row("start below the threshold", "generate.diffuse generate.approach",
        lambda: [generate.diffuse(MODEL, X, KEY, 1.0, threshold=0.999, **NOISY),
                 generate.approach(MODEL, X, FAR, threshold=0.999, **SHORT)],
        each(ends("boundary"))),
    row("target outside the box, along the kernel", "walk Box",
        lambda: foliax.walk(MODEL, X, X + 9, box=BOX, along="kernel", **SHORT),
        lambda path: (finite(path), zero(path.box_excess))),
    row("target outside the box, as published", "walk Box",
        lambda: foliax.walk(MODEL, X, X + 9, box=BOX, scheme="published", **SHORT),
        lambda path: (ends("out_of_steps")(path), zero(path.box_excess))),
]  # fmt: skip

SIZES = [
    row("C = 2", "rank dimension involutivity",
        lambda: (OF_A_POINT["rank"](TWO_CLASSES, X), OF_A_POINT["dimension"](TWO_CLASSES, X),
                 OF_A_POINT["involutivity"](TWO_CLASSES, X).dimension_with_brackets),
        is_close((1, 1, 1))),
    row("C = 2", "walk",
        lambda: WALK(TWO_CLASSES, X, FAR, 0.1), ends("out_of_steps", "stalled")),
    row("C = 2 has no plane", "leaf.curvature",
        lambda: leaf.curvature(TWO_CLASSES, X), r"leaf of dimension >= 2, got min\(n, C - 1\) = 1"),
    row("C > n: no kernel", "rank dimension frame project_kernel",
        lambda: (OF_A_POINT["rank"](MANY_CLASSES, X[:2]),
                 OF_A_POINT["dimension"](MANY_CLASSES, X[:2]),
                 OF_A_POINT["frame"](MANY_CLASSES, X[:2]).mask,
                 OF_A_POINT["project_kernel"](MANY_CLASSES, X[:2], V[:2])),
        is_close((2, 2, np.ones(2, bool), np.zeros(2)))),
    row("C > n", "leaf.geodesic",
        lambda: leaf.geodesic(MANY_CLASSES, X[:2], FAR[:2]),
        "needs rank G = C - 1, got n = 2 inputs for C = 6 classes; use method=\"connection\""),
    row("n = 1", "rank dimension",
        lambda: [OF_A_POINT[f](ONE_INPUT, X[:1]) for f in ("rank", "dimension")],
        is_close([1, 1])),
    row("k > rank", "eigh", lambda: foliax.eigh(MODEL, X, 3),
        r"k must be .* from 1 to min\(n, C - 1\) = 2, got 3"),
    row("one class", "trace", lambda: foliax.trace(Partial(lambda x: x[:1]), X),
        r"C >= 2 logits.*got C = 1.*one logit z as \(0, z\)"),
    row("empty input", "trace walk", lambda: foliax.walk(MODEL, X[:0], X[:0]),
        r"x must hold at least one number, got the empty shape \(0,\)"),
    row("empty batch", "map", lambda: foliax.map(foliax.walk, MODEL, XS[:0], XS[:0]),
        "xs must hold at least one input, got none"),
    row("no batch", "map", lambda: foliax.map(foliax.trace, MODEL),
        "xs must be arrays stacked alike along axis 0, one entry an input, got none"),
    row("empty batch", "sweep", lambda: foliax.sweep(foliax.trace, MODEL, XS[:0]),
        "inputs must have at least one row, got none"),
    row("empty batch", "sharding.place sharding.spread",
        lambda: sharding.spread(foliax.trace, MODEL, XS[:0], mesh=MESH),
        r"stacked alike along axis 0 and not be empty, got shapes \(0, 3\)"),
    row("nothing to spread", "sharding.spread",
        lambda: sharding.spread(foliax.trace, MODEL, mesh=MESH), "needs inputs that are stacked"),
    row("empty batch", "fisher.solve",
        lambda: fisher.solve(MODEL, XS[:0], MODEL, damping=1.0), "x must hold at least"),
    row("no references", "denoise.project denoise.denoise",
        lambda: foliax.map(denoise.denoise, MODEL, XS, jnp.zeros((2, 0, 3))),
        "references must hold at least one"),
    row("no images", "denoise.nearest", lambda: denoise.nearest(X, XS[:0], 1), "images must hold"),
    row("empty batch of moves", "map",
        lambda: foliax.map(explain.explain, MODEL, XS[:0]), "xs must hold at least one input"),
    row("empty batch of motions", "map",
        lambda: foliax.map(generate.diffuse, MODEL, XS[:0], jax.random.split(KEY, 0), time=1.0),
        "xs must hold at least one input"),
    row("empty batch of scores", "map",
        lambda: foliax.map(ood.score, MODEL, XS[:0], references=XS), "xs must hold at least one"),
    row("no references", "ood.prepare", lambda: ood.prepare(MODEL, XS[:0]), "points must hold at"),
    row("no scores", "ood.calibrate", lambda: ood.calibrate({}), "scores must hold at least one"),
    row("no group", "equivariance.averaged", lambda: equivariance.averaged(MODEL, ()),
        "transformations must be the elements of a group, got none"),
]  # fmt: skip

SHAPES = [
    row("a batch for one input", "trace", lambda: foliax.trace(lambda xs: xs @ xs.T, XS),
        r"model must map one input of shape \(2, 3\) to a vector \(C,\) of logits, got .*\(2, 2\)"),
    row("one number for a batch", "map", lambda: foliax.map(foliax.trace, MODEL, 3.0),
        r"xs must be arrays stacked alike along axis 0, one entry an input, got \(\)"),
    row("one target for a batch", "map", lambda: foliax.map(foliax.walk, MODEL, XS, X),
        r"xs must be arrays stacked alike along axis 0, one entry an input, got \(2, 3\), \(3,\)"),
    row("batches of two lengths", "map", lambda: foliax.map(foliax.walk, MODEL, XS, XS[:1]),
        r"xs must be arrays stacked alike along axis 0, .* got \(2, 3\), \(1, 3\)"),
    row("target of another shape", "walk", lambda: foliax.walk(MODEL, X, XS),
        r"target must have the shape of x, \(3,\), got \(2, 3\).*jax\.vmap"),
    row("target of another shape", "closest", lambda: foliax.closest(MODEL, X, X[:2]),
        r"target must have the shape of x, \(3,\), got \(2,\)"),
    row("a start outside the box", "closest map",
        lambda: foliax.map(foliax.closest, MODEL, XS, XS, box=BOX),
        r"xs\[0\] must start inside the box, which runs from -1 to 1, got values from .* to 1\.5"),
    row("points that are one", "leaf.length leaf.energy", lambda: leaf.energy(MODEL, X),
        r"points must be at least two inputs stacked along axis 0, got shape \(3,\)"),
    row("y of another shape", "leaf.distance leaf.geodesic",
        lambda: leaf.geodesic(MODEL, X, X[:2]), r"y must have the shape of x, \(3,\), got \(2,\)"),
    row("target with other classes", "leaf.geodesic",
        lambda: leaf.geodesic(MODEL, X, log_probabilities=jnp.zeros(2)),
        r"log_probabilities must have the shape of the logits, \(3,\), got \(2,\)"),
    row("two targets", "leaf.geodesic", lambda: leaf.geodesic(MODEL, X, X, log_probabilities=X),
        "either y or log_probabilities"),
    row("v of another shape", "leaf.exponential", lambda: leaf.exponential(MODEL, X, X[:2]),
        "v must have the shape of x"),
    row("w of another shape", "leaf.sectional", lambda: leaf.sectional(MODEL, X, V, X[:2]),
        "w must have the shape of x"),
    row("normal of another shape", "leaf.principal_curvatures",
        lambda: leaf.principal_curvatures(MODEL, X, X[:2]), "normal must have the shape of x"),
    row("vectors of another shape", "leaf.second_fundamental_form",
        lambda: leaf.second_fundamental_form(MODEL, X, V, X[:2]), "v must have the shape of x"),
    row("a field that shortens", "leaf.connection",
        lambda: leaf.connection(MODEL, X, V, lambda y: y[:2]), r"field\(x\) must have the shape"),
    row("no field", "leaf.connection",
        lambda: leaf.connection(MODEL, X, V, V), "field must be a function.*lambda y: v"),
    row("a transformation that shortens", "equivariance.defect",
        lambda: equivariance.defect(MODEL, X, lambda x: x[:2]),
        r"transformation must keep the shape of x, \(3,\), got \(2,\)"),
    row("weights of another shape", "fisher.matvec fisher.kl fisher.quadratic",
        lambda: fisher.quadratic(MODEL, X, jax.tree.map(lambda w: w[:2], MODEL)),
        "delta must have the shapes of the weights"),
    row("another structure", "fisher.matvec",
        lambda: fisher.matvec(MODEL, X, list(PARAMS)), "v must be a pytree like the weights"),
    row("a function that captures its weights", "fisher.matvec fisher.factor fisher.trace",
        lambda: fisher.trace(lambda x: MODEL(x), X), r"model must hold weights.*Partial\(apply"),
    row("no batch axis", "fisher.matvec",
        lambda: fisher.matvec(MODEL, X[0], MODEL, batched=True),
        "x must have a leading batch axis"),
    row("a guess of another shape", "fisher.solve",
        lambda: fisher.solve(MODEL, XS, MODEL, damping=1.0,
                             guess=jax.tree.map(lambda w: w[:1], MODEL)), "guess must have the"),
    row("no batch in the update", "fisher.natural_gradient",
        lambda: fisher.natural_gradient(MODEL, 1.0).update(MODEL, None, MODEL),
        r"update needs batch; call update\(grads, state, params, batch=inputs\)"),
    row("one reference, not stacked", "denoise.project denoise.denoise denoise.combine",
        lambda: denoise.denoise(MODEL, X, X),
        r"references must have shape \(k, \*x\.shape\).*reference\[None\]"),
    row("references of one for many", "map denoise.project",
        lambda: foliax.map(denoise.project, MODEL, XS, XS), r"references must have shape \(k, \*x"),
    row("clean of another shape", "denoise.exchange_kernel",
        lambda: denoise.exchange_kernel(MODEL, X, X[:2]), "clean must have the shape of x"),
    row("more neighbours than images", "denoise.nearest denoise.nearest_by_feature denoise.choose",
        lambda: denoise.nearest_by_feature(MODEL, X, XS, 3),
        "k must be at most the number of images, 2, got 3"),
    row("labels of another length", "denoise.nearest_by_class",
        lambda: denoise.nearest_by_class(MODEL, X, XS, jnp.zeros(3, int), 1),
        "labels must hold one whole number for each of 2 images"),
    row("no labels", "denoise.choose", lambda: denoise.choose(XS, XS, 1, by="class", model=MODEL),
        "by='class' needs model= and labels="),
    row("one image for many", "denoise.choose", lambda: denoise.choose(X, XS, 1),
        r"xs must be stacked along axis 0, got shape \(3,\)"),
    row("no such class", "explain.reach", lambda: explain.reach(MODEL, X, 3),
        "to must be a class, 0 … 2, got 3"),
    row("reached of another length", "explain.order",
        lambda: explain.order(X, jnp.zeros(2, bool), 0),
        r"distances, reached must be \(C,\), one entry a class, got \(3,\), \(2,\)"),
    row("numbers of statuses", "explain.order", lambda: explain.order(X, jnp.zeros(3, int), 0),
        r"reached must be booleans, as `status == Status\.arrived`, got dtype int64"),
    row("no such label", "explain.order", lambda: explain.order(X, jnp.zeros(3, bool), 7),
        "label must be a class, 0 … 2, got 7"),
    row("one probability", "explain.nearest_distribution",
        lambda: explain.nearest_distribution(jnp.ones(1), 0), "p must be .* of C >= 2 classes"),
    row("too many keys", "map",
        lambda: foliax.map(generate.diffuse, MODEL, XS, jax.random.split(KEY, 3), time=1.0),
        r"stacked alike along axis 0, one entry an input, got \(2, 3\), \(3,\)"),
    row("target of another shape", "generate.approach",
        lambda: generate.approach(MODEL, X, X[:2]), "target must have the shape of x"),
    row("too few targets", "map", lambda: foliax.map(generate.approach, MODEL, XS, XS[:1]),
        "xs must be arrays stacked alike"),
    row("no such label", "generate.diffuse",
        lambda: generate.diffuse(MODEL, X, KEY, 1.0, label=3),
        "label must be a class, 0 … 2, got 3"),
    row("references of another shape", "ood.score",
        lambda: foliax.map(ood.score, MODEL, XS, references=XS[:, :2]),
        r"references must have shape \(k, \*x\.shape\) with x of shape \(3,\), got \(2, 2\)"),
    row("one reference for many", "ood.prepare", lambda: ood.prepare(MODEL, X),
        "points must be stacked along axis 0"),
    row("a class without members", "ood.medoids",
        lambda: ood.medoids(XS, np.array([0, 0]), num_classes=2), "labels must hold every class"),
    row("one score, not many", "ood.calibrate", lambda: ood.calibrate({"a": jnp.zeros(())}),
        r"training scores must be \(N,\) values"),
    row("a score that is missing", "ood.exceeds ood.standardise",
        lambda: ood.exceeds(ood.calibrate({"a": X}), {"b": 1.0}), "must hold what was calibrated"),
    row("a name that is none", "ood.combine",
        lambda: ood.combine(ood.calibrate({"a": X}), {"a": 1.0}, ["b"]), "names must be among a"),
    row("a box of another shape", "walk Box",
        lambda: foliax.walk(MODEL, X, FAR, box=foliax.Box(jnp.zeros(2), 1.0)),
        r"box\.lower must broadcast to the shape of x, \(3,\), got \(2,\)"),
    row("an empty box", "Box", lambda: foliax.Box(1.0, 0.0), "box is empty: lower must be below"),
    row("a NaN box", "Box", lambda: foliax.Box(nan, 1.0), "box is empty: lower must be below"),
    row("a scale for each of four", "Gaussian",
        lambda: foliax.trace(MODEL, X, likelihood=foliax.Gaussian(jnp.ones(4))),
        r"scale must be a number or have shape \(3,\)"),
    row("a scale of zero", "Gaussian",
        lambda: foliax.trace(MODEL, X, likelihood=foliax.Gaussian(0.0)), "scale must be finite"),
    row("no labels at all", "Bernoulli",
        lambda: foliax.trace(lambda x: x[:0], X, likelihood=foliax.Bernoulli()), "C >= 1 outputs"),
    row("more devices than there are", "sharding.mesh", lambda: sharding.mesh(99),
        "devices must be at most .*got 99.*XLA_FLAGS"),
    row("half an environment", "sharding.initialize",
        lambda: sharding.initialize({"JAX_NUM_PROCESSES": "2"}),
        "environment must have all of .*lacks JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"),
]  # fmt: skip


def refuse_steps(name: str, call: Callable[[Any], Any], *, what: str = "step") -> list[Case]:
    """Return rows for the lengths that no step can have."""
    message = f"{what} must be a finite number > 0, got"
    return [
        row(f"{what} {value}", name, partial(call, value), message) for value in (0.0, -0.1, nan)
    ]


NUMBERS = [
    *refuse_steps("walk", lambda step: foliax.walk(MODEL, X, FAR, step=step)),
    *refuse_steps("drift", lambda step: foliax.drift(MODEL, X, V, step=step)),
    *refuse_steps("closest", lambda step: foliax.closest(MODEL, X, FAR, step=step)),
    *refuse_steps(
        "closest", lambda size: foliax.closest(MODEL, X, FAR, spread=size), what="spread"),
    *refuse_steps("map", lambda step: foliax.map(foliax.walk, MODEL, XS, XS, step=step)),
    *refuse_steps("brownian", lambda t: foliax.brownian(MODEL, X, KEY, t), what="time"),
    *refuse_steps("generate.diffuse", lambda t: generate.diffuse(MODEL, X, KEY, t), what="time"),
    *refuse_steps("generate.approach", lambda step: generate.approach(MODEL, X, FAR, step=step)),
    *refuse_steps("explain.reach", lambda step: explain.reach(MODEL, X, 1, step=step)),
    *refuse_steps("explain.explain", lambda step: explain.explain(MODEL, X, step=step)),
    *refuse_steps("ood.score", lambda step: ood.score(MODEL, X, XS, step=step)),
    *refuse_steps("denoise.project", lambda step: denoise.project(MODEL, X, XS, step=step)),
    *refuse_steps("fisher.solve", lambda d: fisher.solve(
        MODEL, XS, MODEL, damping=d), what="damping"),
    *refuse_steps("solve", lambda d: foliax.solve(MODEL, X, V, d), what="damping"),
    *refuse_steps("fisher.natural_gradient", lambda d: fisher.natural_gradient(
        MODEL, d), what="damping"),
    # What only values show under jit comes back in the status.
    row("a traced step of 0", "walk",
        lambda: WALK(MODEL, X, FAR, 0.0),
        ends("out_of_steps", "stalled")),
    row("a traced step of NaN", "walk",
        lambda: WALK(MODEL, X, FAR, nan),
        ends("invalid")),
    row("a traced time of NaN", "brownian",
        lambda: OF_A_POINT["brownian"](MODEL, X, nan),
        ends("invalid")),
    row("a traced step of NaN", "explain.reach",
        lambda: REACH(MODEL, X, 1, nan), ends("invalid")),
    row("a traced class that is none", "explain.reach",
        lambda: REACH(MODEL, X, 7, 0.1), ends("out_of_steps", "stalled", "invalid")),
    row("an option that is known under jit", "denoise.combine",
        lambda: jax.jit(lambda x: denoise.combine(x, XS + 1, FEET, along=jnp.array(1.0)))(X),
        finite),
    row("arrival NaN", "walk", lambda: foliax.walk(MODEL, X, FAR, arrival=nan),
        "arrival must be a finite number >= 0, got nan"),
    row("stall negative", "walk", lambda: foliax.walk(MODEL, X, FAR, stall=-1.0),
        "stall must be a finite number >= 0"),
    row("no steps", "walk", lambda: foliax.walk(MODEL, X, FAR, max_steps=0),
        "max_steps must be a whole number >= 1, got 0"),
    row("too many steps", "walk", lambda: foliax.walk(MODEL, X, FAR, max_steps=10**6),
        "max_steps must be at most 80000, got 1000000; chain walks"),
    row("no steps", "leaf.geodesic leaf.exponential",
        lambda: leaf.exponential(MODEL, X, V, num_steps=0), "num_steps must be a whole number >="),
    row("no way like this", "leaf.geodesic",
        lambda: leaf.geodesic(MODEL, X, FAR, method="straight"),
        "method must be one of 'sphere', 'connection', got 'straight'"),
    row("no such gradients", "with_options", lambda: foliax.with_options(MODEL, operations="slow"),
        "operations must be one of 'auto', 'fast', 'stock', got 'slow'"),
    row("no such precision", "with_options", lambda: foliax.with_options(MODEL, precision="half"),
        "precision must be one of 'highest', 'high', 'default', got 'half'"),
    row("no model", "adapt", lambda: foliax.adapt(3), "model must be a network or a function"),
    row("NaN weights", "adapt", lambda: foliax.trace(foliax.adapt(NAN_WEIGHTS), X), tells),
    row("constant logits", "describe", lambda: foliax.describe(CONSTANT, X),
        lambda found: (zero([found.trace, found.rank, found.dimension]), finite(found))),
    row("NaN input", "describe", lambda: foliax.describe(MODEL, NAN), lambda found: (
        tells([found.trace, found.rank]), is_close("x is not finite" in found.advice)(True))),
    row("integer image", "describe", lambda: foliax.describe(MODEL, BYTES), "x must be a floating"),
    row("under jit", "describe", lambda: jax.jit(foliax.describe)(MODEL, X),
        "x must be concrete, got a traced one; call describe outside of jax.jit"),
    row("no model", "with_options", lambda: foliax.with_options(3),
        "model must be callable from one input to C logits, got int"),
    row("rtol NaN", "rank dimension frame", lambda: foliax.frame(MODEL, X, rtol=nan),
        "rtol must be a finite number >= 0, got nan"),
    row("rtol negative", "rank", lambda: foliax.rank(MODEL, X, rtol=-1.0),
        "rtol must be a finite number >= 0"),
    row("atol NaN", "involutivity", lambda: foliax.involutivity(MODEL, X, atol=nan),
        "atol must be a finite number >= 0"),
    row("rtol NaN", "fisher.solve",
        lambda: fisher.solve(MODEL, XS, MODEL, damping=1.0, rtol=nan),
        "rtol must be a finite number >= 0"),
    row("least NaN", "brownian", lambda: foliax.brownian(MODEL, X, KEY, 1.0, least=nan),
        "least must be a finite number >= 0"),
    *[row("chunk 0", name, call, "chunk must be None or a whole number of rows >= 1, got 0")
      for name, call in {
        "trace": lambda: foliax.trace(MODEL, X, chunk=0),
        "fisher.factor": lambda: fisher.factor(MODEL, X, chunk=0),
        "fisher.trace": lambda: fisher.trace(MODEL, X, chunk=0),
        "fisher.eigh": lambda: fisher.eigh(MODEL, X, chunk=0),
        "trace_estimate": lambda: foliax.trace_estimate(MODEL, X, KEY, chunk=0),
        "involutivity": lambda: foliax.involutivity(MODEL, X, chunk=0),
        "sharding.factor": lambda: sharding.factor(MODEL, X, mesh=MESH, chunk=0),
        "leaf.extrinsic": lambda: leaf.extrinsic(MODEL, X, chunk=0)}.items()],
    row("one sample", "trace_estimate",
        lambda: foliax.trace_estimate(MODEL, X, KEY, num_samples=1), "num_samples must be at"),
    row("half an iteration", "eigh",
        lambda: foliax.eigh(MODEL, X, 1, method="lanczos", num_iterations=1.5),
        r"num_iterations must be a whole number >= 1, got 1\.5"),
    row("block 0", "map", lambda: foliax.map(foliax.walk, MODEL, XS, XS, block=0),
        "block must be a whole number >= 1, got 0"),
    row("fn is no function", "map", lambda: foliax.map(MODEL(X), MODEL, XS),
        r"fn must be a function of \(model, x\), got ArrayImpl"),
    row("restarts negative", "closest", lambda: foliax.closest(MODEL, X, FAR, restarts=-1),
        "restarts must be a whole number >= 0, got -1"),
    row("no such way", "closest", lambda: foliax.closest(MODEL, X, FAR, along="fibre"),
        "along must be one of 'leaf', 'kernel', got 'fibre'"),
    row("batch 0", "sweep", lambda: foliax.sweep(foliax.trace, MODEL, XS, batch=0),
        "batch must be a whole number >= 1, got 0"),
    row("fn is no function", "sweep", lambda: foliax.sweep(3, MODEL, XS),
        r"fn must be a function of \(model, x\), got int"),
    row("level NaN", "denoise.project", lambda: denoise.project(MODEL, X, XS, level=nan),
        "level must be a finite number >= 0"),
    row("along NaN", "denoise.combine", lambda: denoise.combine(X, XS + 1, FEET, along=nan),
        "along must be a finite number, got nan"),
    row("bandwidth 0", "denoise.combine",
        lambda: denoise.combine(X, XS + 1, FEET, by="weighted", bandwidth=0.0),
        "bandwidth must be a finite number > 0"),
    row("a threshold of 1", "generate.diffuse",
        lambda: generate.diffuse(MODEL, X, KEY, 1.0, threshold=1.0),
        r"threshold must be a probability in \[0, 1\), got 1\.0"),
    row("a threshold of NaN", "generate.approach",
        lambda: generate.approach(MODEL, X, FAR, threshold=nan), "threshold must be a probability"),
    row("a share of NaN", "ood.calibrate", lambda: ood.calibrate({"a": X}, share=nan),
        r"share must lie in \(0, 1\), got nan"),
    row("max_kl NaN", "fisher.natural_gradient",
        lambda: fisher.natural_gradient(MODEL, 1.0, max_kl=nan), "max_kl must be a finite number"),
]  # fmt: skip


def in_half(call: Callable[[Any, Any], Any]) -> list[Any]:
    """Return what it gives for a model and a point in each half precision."""
    return [call(jax.tree.map(lambda w: w.astype(half), MODEL), X.astype(half)) for half in HALVES]  # noqa: B023


def in_single(results: Any) -> None:
    """Every number is finite, and float32 or wider."""
    for result in results:
        finite(result)
        assert all(leaf.dtype.itemsize >= 4 for leaf in floats(result))


def near_half(results: Any) -> None:
    """Half-precision traces are those of float64, to half precision."""
    for result in results:
        np.testing.assert_allclose(result, foliax.trace(MODEL, X), rtol=0.1)


def gone() -> jax.Array:
    """Return an array whose buffer was given away."""
    x = X + 0
    x.delete()
    return x


STRIDED = np.asfortranarray(np.tile(np.asarray(X), (4, 2)))[::2, ::-1][:, 2::-1]
READ_ONLY = np.array(X)
READ_ONLY.flags.writeable = False

DTYPES = [
    row("half precision", "trace", lambda: in_half(OF_A_POINT["trace"]),
        lambda found: (in_single(found), near_half(found))),
    row("half precision", "rank dimension", lambda: [
        *in_half(OF_A_POINT["rank"]), *in_half(OF_A_POINT["dimension"])], is_close([2] * 4)),
    row("half precision", "walk",
        lambda: WALK(jax.tree.map(lambda w: w.astype(jnp.float16), MODEL),
                     X.astype(jnp.float16), FAR.astype(jnp.float16), 0.1),
        ends("out_of_steps", "stalled")),
    row("half precision, overflown", "walk",
        lambda: WALK(jax.tree.map(lambda w: (w * 60_000).astype(jnp.float16), MODEL),
                     X.astype(jnp.float16), FAR.astype(jnp.float16), 0.1), ends("invalid")),
    *[row("integer image", name, call, message)
      for name, call, message in [
        ("trace", lambda: foliax.trace(MODEL, BYTES),
         r"x must be a floating-point array, got dtype uint8.*x\.astype\(jnp\.float32\) / 255"),
        ("walk", lambda: foliax.walk(MODEL, BYTES, FAR), "x must be a floating-point array"),
        ("walk", lambda: foliax.walk(MODEL, X, BYTES), "target must be a floating-point array"),
        ("map", lambda: foliax.map(foliax.walk, MODEL, BYTES[None], XS[:1]),
         "x must be a floating-point array"),
        ("closest", lambda: foliax.closest(MODEL, BYTES, X), "start must be a floating-point"),
        ("sweep", lambda: foliax.sweep(foliax.trace, MODEL, BYTES[None], progress=False),
         "x must be a floating-point array, got dtype uint8"),
        ("leaf.length", lambda: leaf.length(MODEL, np.stack([BYTES, BYTES])), "points must be a"),
        ("denoise.nearest", lambda: denoise.nearest(X, BYTES[None], 1), "images must be a float"),
        ("explain.explain", lambda: explain.explain(MODEL, BYTES), "x must be a floating-point"),
        ("generate.diffuse", lambda: generate.diffuse(MODEL, BYTES, KEY, 1.0), "x must be a"),
        ("ood.prepare", lambda: ood.prepare(MODEL, BYTES[None]), "points must be a floating"),
        ("fisher.matvec", lambda: fisher.matvec(MODEL, BYTES, MODEL), "x must be a"),
        ("fisher.trace", lambda: fisher.trace(MODEL, BYTES), "x must be a"),
        ("sharding.factor", lambda: sharding.factor(MODEL, BYTES, mesh=MESH), "x must be a")]],
    row("integer image, converted by fn", "sweep",
        lambda: foliax.sweep(lambda m, x: foliax.trace(m, x / 255), MODEL, BYTES[None],
                             progress=False), finite),
    row("integer image", "ood.medoids",
        lambda: ood.medoids(np.stack([BYTES, BYTES]), np.array([0, 1]), num_classes=2),
        is_close(np.array([0, 1]))),
    row("integer image", "sharding.place sharding.replicate sharding.gather",
        lambda: sharding.gather((sharding.place(BYTES[None], MESH),
                                 sharding.replicate(BYTES, MESH))),
        is_close((BYTES[None], BYTES))),
    row("integer weights", "fisher.matvec",
        lambda: fisher.matvec(jax.tree.map(lambda w: w.astype(int), MODEL), X, MODEL),
        "model must hold weights, floating-point arrays in its pytree, got none in a Partial"),
    row("integer vector of weights", "fisher.matvec",
        lambda: fisher.matvec(MODEL, X, jax.tree.map(lambda w: w.astype(int), MODEL)),
        "v must have the dtypes of the weights of model, .*'float64'.*got .*'int64'"),
    row("labels of floats", "denoise.nearest_by_class",
        lambda: denoise.nearest_by_class(MODEL, X, XS, jnp.zeros(2), 1), "labels .* of float64"),
    row("a class of floats", "explain.reach", lambda: explain.reach(MODEL, X, jnp.array(1.0)),
        "to must be a class, 0 … 2"),
    row("complex input", "trace", lambda: foliax.trace(MODEL, X + 1j), "x must be a floating"),
    row("objects", "trace", lambda: foliax.trace(MODEL, np.array([None, 1, 2])),
        "x must be an array of numbers"),
    row("strings", "sweep", lambda: foliax.sweep(foliax.trace, MODEL, np.array(["a", "b"])),
        "inputs must hold real numbers, got dtype <U1"),
    row("non-contiguous", "trace drift",
        lambda: [(foliax.trace(MODEL, STRIDED[0]), foliax.trace(MODEL, STRIDED[0].copy())),
                 (foliax.drift(MODEL, X, STRIDED[0], **SHORT),
                  foliax.drift(MODEL, X, STRIDED[0].copy(), **SHORT))], each(same)),
    row("non-contiguous", "sweep",
        lambda: [f(STRIDED) for f in (
            lambda xs: foliax.sweep(foliax.trace, MODEL, xs, progress=False),
            lambda xs: foliax.sweep(foliax.trace, MODEL, xs.copy(), progress=False))], same),
    row("read-only", "trace drift",
        lambda: [(foliax.trace(MODEL, READ_ONLY), foliax.trace(MODEL, X)),
                 (foliax.drift(MODEL, READ_ONLY, V, **SHORT),
                  foliax.drift(MODEL, X, V, **SHORT))], each(same)),
    row("results of a sweep can be written to", "sweep",
        lambda: foliax.sweep(foliax.trace, MODEL, READ_ONLY[None], progress=False).flags.writeable,
        is_close(True)),
    row("tracers", "walk", lambda: WALK(MODEL, X, FAR, 0.1), ends("out_of_steps")),
    row("tracers and not", "trace rank matvec kl dimension", lambda: [
        (f(MODEL, X, *more), OF_A_POINT[f.__name__](MODEL, X, *more)) for f, more in (
            (foliax.trace, ()), (foliax.rank, ()), (foliax.matvec, (V,)))], each(alike)),
    row("tracers of the wrong shape", "walk",
        lambda: jax.jit(foliax.walk)(MODEL, X, XS), "target must have the shape of x"),
    row("tracers of integers", "trace", lambda: jax.jit(foliax.trace)(MODEL, BYTES),
        "x must be a floating-point array, got dtype uint8"),
    row("a traced sweep", "sweep",
        lambda: jax.jit(lambda xs: foliax.sweep(foliax.trace, MODEL, xs))(XS),
        "must be concrete, got a traced one.*outside of jax.jit"),
    row("an input given away", "matvec",
        lambda: (jax.jit(lambda x: foliax.matvec(MODEL, x, V), donate_argnums=0)(X + 0),
                 foliax.matvec(MODEL, X, V)), alike),
    *[row("an input that is gone", name, call, f"{argument} was donated to an earlier computation")
      for name, argument, call in [
        ("trace", "x", lambda: foliax.trace(MODEL, gone())),
        ("walk", "target", lambda: foliax.walk(MODEL, X, gone())),
        ("map", "xs", lambda: foliax.map(foliax.walk, MODEL, gone(), XS)),
        ("closest", "start", lambda: foliax.closest(MODEL, gone(), FAR)),
        ("brownian", "x", lambda: foliax.brownian(MODEL, gone(), KEY, 1.0)),
        ("explain.reach", "x", lambda: explain.reach(MODEL, gone(), 1)),
        ("denoise.project", "references", lambda: denoise.project(MODEL, X, gone()))]],
]  # fmt: skip

KEYS = [
    row("a key of the old style", "trace_estimate brownian",
        lambda: [(foliax.trace_estimate(MODEL, X, OLD_KEY), OF_A_POINT["trace_estimate"](MODEL, X)),
                 (foliax.brownian(MODEL, X, OLD_KEY, 1.0, **NOISY),
                  OF_A_POINT["brownian"](MODEL, X))], each(alike)),
    row("no key", "walk", lambda: foliax.walk(MODEL, X, FAR, kicks=1),
        r"kicks=1 needs a key, e\.g\. key=jax\.random\.key\(0\)"),
    row("no key", "closest", lambda: foliax.closest(MODEL, X, FAR, restarts=2),
        "restarts=2 needs a key"),
    *[row(f"keys for one: {kind}", name, partial(call, key),
          r"key must be one key, as jax\.random\.key\(0\), got .*jax\.vmap")
      for kind, key in {"many": jax.random.split(KEY, 3), "no key": jnp.ones(2)}.items()
      for name, call in {
        "trace_estimate": lambda key: foliax.trace_estimate(MODEL, X, key),
        "brownian": lambda key: foliax.brownian(MODEL, X, key, 1.0),
        "walk": lambda key: foliax.walk(MODEL, X, FAR, kicks=1, key=key),
        "closest": lambda key: foliax.closest(MODEL, X, FAR, restarts=1, key=key),
        "map": lambda key: foliax.map(foliax.walk, MODEL, XS, XS, kicks=1, key=key),
        "generate.diffuse": lambda key: generate.diffuse(MODEL, X, key, 1.0)}.items()],
]  # fmt: skip

ATTACKS: dict[str, Callable[..., Any]] = {
    "attack.spectral": attack.spectral,
    "attack.geodesic": partial(attack.geodesic, num_steps=4),
    "attack.random_direction": lambda model, x, budget: attack.random_direction(
        model, x, budget, KEY),
}  # fmt: skip


def missed(found: Any) -> None:
    """Nothing is called fooled by numbers that are none."""
    assert np.isnan(found.logits).any()
    assert not bool(found.fooled)


def budgets(name: str) -> list[Case]:
    """Return the rows of one attack."""
    program = jax.jit(ATTACKS[name])
    refusal = row("budget NaN", name, lambda: ATTACKS[name](MODEL, X, nan),
                  "budget must be a finite number ≥ 0")  # fmt: skip
    if name == "attack.geodesic":  # its path is that of leaf.exponential
        return [refusal]
    return [
        refusal,
        row("NaN input", name, lambda: program(MODEL, NAN, 1.0), missed),
        row("NaN in a bias alone", name, lambda: program(NAN_BIAS, X, 1.0), missed),
        row("constant logits", name, lambda: program(CONSTANT, X, 1.0),
            lambda found: (finite(found), is_close(False)(found.fooled))),
    ]  # fmt: skip


AND_MORE = [
    *[case for name in ATTACKS for case in budgets(name)],
    row("no such label", "attack.spectral", lambda: attack.spectral(MODEL, X, 1.0, label=5),
        "label must be a class, 0 … 2"),
    row("many keys", "attack.random_direction", lambda: attack.random_direction(
        MODEL, X, 1.0, jax.random.split(KEY, 2)), "key must be one key"),
    row("no spectrum at all", "transfer.log_spectra",
        lambda: transfer.log_spectra(jnp.zeros(2)), finite),
    row("NaN eigenvalues", "transfer.log_spectra transfer.summary transfer.spectral_distance",
        lambda: [transfer.log_spectra(NAN), transfer.summary(NAN[None]),
                 transfer.spectral_distance(NAN[None], X[None])], each(tells)),
    row("spectra of two lengths", "transfer.spectral_distance",
        lambda: transfer.spectral_distance(XS, XS[:, :2]), r"a and b must have shapes \(N, k\)"),
    row("a floor of NaN", "transfer.log_spectra", lambda: transfer.log_spectra(X, floor=nan),
        "floor must be a finite number > 0"),
]  # fmt: skip

CASES = [*NOT_FINITE, *DEGENERATE, *SIZES, *SHAPES, *NUMBERS, *DTYPES, *KEYS, *AND_MORE]
