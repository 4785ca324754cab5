"""Public functions compile themselves: when, for what, and never with stale or endless programs."""

import gc
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

import foliax
from foliax._core import compile as _compile
from foliax._core.compile import compiled
from tests.cases import CASES

X = jnp.arange(4.0)
WEIGHT = jnp.ones((3, 4))
_traces = []


def linear(weight, x):
    _traces.append(None)
    return weight @ x


def expected(weight):
    return foliax.trace(Partial(linear, weight), X)


@pytest.fixture
def traces():
    _traces.clear()
    return _traces


def grown(call):
    """Return how many programs a call adds."""
    before = _compile._program.cache_info().misses
    call()
    return _compile._program.cache_info().misses - before


def test_a_loop_compiles_once(traces):
    foliax.trace(Partial(linear, WEIGHT), X)
    count = len(traces)
    for scale in range(5):
        foliax.trace(Partial(linear, scale * WEIGHT), X + scale)
    assert len(traces) == count


def test_a_lambda_made_anew_finds_its_program():
    def call(weight):
        return foliax.trace(lambda x: weight @ x, X)

    call(WEIGHT)
    assert grown(lambda: [call(scale * WEIGHT) for scale in range(5)]) == 0
    assert call(jnp.diag(jnp.arange(4.0))[1:]) == expected(jnp.diag(jnp.arange(4.0))[1:])


def test_captured_weights_are_never_stale():
    holder = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    model = lambda x: holder(x)  # noqa: E731
    first = foliax.trace(model, X)
    holder.kernel.value = 2 * holder.kernel.value
    assert float(foliax.trace(model, X)) != float(first)
    np.testing.assert_allclose(foliax.trace(model, X), foliax.trace(holder, X), rtol=1e-12)


def test_globals_and_functions_of_the_module_are_captured(monkeypatch):
    def model(x):
        return through(x)

    first = foliax.trace(model, X)
    diagonal = jnp.diag(jnp.arange(4.0))[1:]
    monkeypatch.setattr(f"{__name__}.WEIGHT", diagonal)
    assert foliax.trace(model, X) == expected(diagonal)
    assert foliax.trace(model, X) != first


def through(x):
    return WEIGHT @ x


def test_bound_methods_defaults_and_recursion():
    net = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    by_method = foliax.trace(net.__call__, X)
    np.testing.assert_allclose(by_method, foliax.trace(net, X), rtol=1e-12)
    assert foliax.trace(lambda x, w=2 * WEIGHT: w @ x, X) == expected(2 * WEIGHT)

    def power(x, k):
        return x[:3] if k == 0 else power(x, k - 1) ** 2

    assert foliax.trace(lambda x: power(x, 1), X) > 0


def test_what_must_be_concrete_is_a_constant():
    table = np.array([2.0, 0.0, 1.0])

    def model(x):
        return x[: int(table[0]) + 1] * float(table[2])

    assert float(foliax.trace(model, X)) == float(foliax.trace(lambda x: x[:3] * 1.0, X))


def test_programs_do_not_grow_without_bound(monkeypatch):
    small = _compile.functools.lru_cache(maxsize=4)(_compile._program.__wrapped__)
    monkeypatch.setattr(_compile, "_program", small)

    class Scaled(eqx.Module):
        scale: float

        def __call__(self, x):
            return self.scale * x

    kept = []
    for scale in range(8):
        tag = type("Tag", (), {"__call__": lambda self, x: (1.0 + self.scale) * x})()
        tag.scale = scale
        kept.append(weakref.ref(tag))
        foliax.trace(tag, X)
        del tag
    assert small.cache_info().currsize == 4
    gc.collect()
    assert sum(ref() is not None for ref in kept) <= 5


def test_models_with_functions_among_their_leaves():
    net = eqx.nn.MLP(4, 3, 5, 1, key=jax.random.key(0), dtype=jnp.float64)
    reference = foliax.matrix(lambda x: net(x), X)
    np.testing.assert_allclose(foliax.matrix(net, X), reference, rtol=1e-10)
    with pytest.raises(TypeError):
        jax.jit(foliax.trace)(net, X)
    np.testing.assert_allclose(eqx.filter_jit(foliax.matrix)(net, X), reference, rtol=1e-10)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_leaf_that_captures_an_array_is_a_function_to_the_model(scan, wrapped):
    weights = eqx.nn.MLP(4, 3, 5, 3, scan=scan, key=jax.random.key(0), dtype=jnp.float64)

    def with_slope(slope):
        slope = jnp.asarray(slope)
        net = eqx.nn.MLP(
            4, 3, 5, 3, lambda x: jnp.where(x > 0, slope * x, 0), scan=scan, key=jax.random.key(0)
        )
        net = eqx.tree_at(lambda net: net.layers, net, weights.layers)
        return (lambda x: net(x)) if wrapped else net

    call = lambda slope: foliax.trace(with_slope(slope), X)  # noqa: E731
    np.testing.assert_allclose(call(1.0), foliax.trace(weights, X), rtol=1e-12)
    assert grown(lambda: [call(slope) for slope in (0.5, 2.0)]) == 0
    jacobian = jax.jacobian(with_slope(2.0))(X)
    p = jax.nn.softmax(with_slope(2.0)(X))
    metric = jnp.diag(p) - jnp.outer(p, p)
    np.testing.assert_allclose(call(2.0), jnp.trace(jacobian.T @ metric @ jacobian), rtol=1e-10)


def test_under_transformations_nothing_is_lost():
    case = CASES["tanh"]
    xs = jnp.stack([case.x, case.x + 0.1])
    each = [float(foliax.trace(case.model, x)) for x in xs]
    np.testing.assert_allclose(jax.vmap(foliax.trace, (None, 0))(case.model, xs), each, rtol=1e-12)
    gradient = jax.grad(foliax.trace, argnums=1)(case.model, case.x)
    assert gradient.shape == case.x.shape
    text = str(jax.make_jaxpr(jax.jit(foliax.trace))(case.model, case.x))
    assert text.count("run") == 0  # inlined: no program inside the program


def test_lists_and_numbers_are_values():
    model = lambda x: jnp.stack([x[0], 0 * x[0]])  # noqa: E731
    foliax.trace(model, [0.0, 1.0])
    assert grown(lambda: foliax.trace(model, [1.0, 2.0])) == 0
    assert float(foliax.trace(model, [0.0, 1.0])) == 0.25


def test_what_cannot_be_hashed_runs_as_it_is():
    class Model:
        __hash__ = None

        def __call__(self, x):
            return WEIGHT @ x

    assert foliax.trace(Model(), X) == expected(WEIGHT)


def test_a_deleted_argument_is_named():
    x = X + 1
    x.delete()
    with pytest.raises(ValueError, match="x was donated to an earlier computation"):
        foliax.trace(Partial(linear, WEIGHT), x)


def test_documentation_and_signature_stay():
    assert foliax.trace.__doc__.startswith("Return trace G(x, w)")
    assert compiled(linear).__name__ == "linear"


def test_inside_a_program_on_arrays_that_are_known():
    """XLA's options belong to a whole program: within one there are none to give."""
    known = jnp.ones(4)
    for run in (jax.jit, jax.vmap, jax.grad):
        argument = known if run is jax.vmap else 1.0
        function = run(lambda s: s * foliax.trace(Partial(linear, WEIGHT), known))
        np.testing.assert_allclose(function(argument), expected(WEIGHT), rtol=1e-12)
