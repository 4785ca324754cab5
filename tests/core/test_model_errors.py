"""Models that cannot be called as foliax calls them: what is said, and that doing it helps."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx
from jax.tree_util import Partial

import foliax
from foliax import fisher
from foliax._core import jacobian
from foliax.apps import attack, explain, ood

KEY = jax.random.key(0)
N, C = 4, 3
X = jnp.array([0.5, -1.0, 2.0, 0.3], jnp.float32)
IMAGE = jax.random.normal(KEY, (6, 6, 1), jnp.float32)
WEIGHT = jax.random.normal(KEY, (C, N), jnp.float32)


class Case(NamedTuple):
    """One model that is called wrongly.

    Attributes:
        given: Makes it.
        mended: Makes what the message tells to pass instead.
        message: Patterns that it contains.
        cause: Name of the type of the model's own error; None where it raised none.
        x: The input.
    """

    given: Callable[[], Any]
    mended: Callable[[], Any]
    message: tuple[str, ...]
    cause: str | None
    x: Any = X


# --- networks -------------------------------------------------------------------------------------


class NNXNet(nnx.Module):
    def __init__(self, *, norm=False, dropout=False, own_rngs=True):
        rngs = nnx.Rngs(0)
        self.layer = nnx.Linear(N, C, rngs=rngs)
        self.norm = nnx.BatchNorm(C, rngs=rngs) if norm else None
        self.dropout = nnx.Dropout(0.5, rngs=rngs if own_rngs else None) if dropout else None

    def __call__(self, x):
        x = self.layer(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.dropout is None else self.dropout(x)


class NNXCounting(nnx.Module):
    def __init__(self):
        self.layer, self.calls = nnx.Linear(N, C, rngs=nnx.Rngs(0)), nnx.Variable(jnp.zeros(()))

    def __call__(self, x):
        if getattr(self, "training", True):
            self.calls[...] += 1
        return self.layer(x)


class NNXConv(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
        self.layer = nnx.Linear(72, C, rngs=rngs)

    def __call__(self, x):
        x = self.conv(x)
        return self.layer(x.reshape(x.shape[0], -1))


def in_evaluation(model):
    model.eval()
    return model


class LinenNet(linen.Module):
    norm: bool = False
    dropout: bool = False

    @linen.compact
    def __call__(self, x, train=True):
        x = linen.Dense(C)(x)
        if self.norm:
            x = linen.BatchNorm(use_running_average=not train)(x)
        return linen.Dropout(0.5, deterministic=not train)(x) if self.dropout else x


class LinenFlag(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        return linen.Dropout(0.5, deterministic=not train)(linen.Dense(C)(x))


class LinenSetup(linen.Module):
    def setup(self):
        self.layer = linen.Dense(C)

    def __call__(self, x):
        return self.layer(x)


class LinenConv(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(2, (3, 3))(x)
        return linen.Dense(C)(x.reshape(x.shape[0], -1))


def variables(module, x=X, **options):
    return module.init({"params": KEY, "dropout": KEY}, x, **options)


def bound(module, x=X, **options):
    """Return the module with its variables, called with these options."""
    return Partial(module.apply, variables(module, x), **options)


class EquinoxDropout(eqx.Module):
    layer: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self):
        self.layer, self.dropout = eqx.nn.Linear(N, C, key=KEY), eqx.nn.Dropout(0.5)

    def __call__(self, x, key=None):
        return self.dropout(self.layer(x), key=key)


class EquinoxKey(EquinoxDropout):
    def __call__(self, x, *, key):
        return super().__call__(x, key)


class EquinoxNorm(eqx.Module):
    layer: eqx.nn.Linear
    norm: eqx.nn.BatchNorm

    def __init__(self):
        self.layer = eqx.nn.Linear(N, C, key=KEY)
        self.norm = eqx.nn.BatchNorm(C, axis_name="batch", mode="batch")

    def __call__(self, x, state):
        return self.norm(self.layer(x), state)


class EquinoxBatch(eqx.Module):
    conv: eqx.nn.Conv2d

    def __init__(self):
        self.conv = eqx.nn.Conv2d(1, C, 3, key=KEY)

    def __call__(self, x):
        return jax.vmap(self.conv)(x).mean((2, 3))


def with_state(make=EquinoxNorm, *, inference=False):
    model, state = eqx.nn.make_with_state(make)()
    return (eqx.nn.inference_mode(model) if inference else model), state


def sequential():
    norm = eqx.nn.BatchNorm(C, axis_name="batch", mode="batch")
    return eqx.nn.Sequential([eqx.nn.Linear(N, C, key=KEY), norm])


def at_state(make=EquinoxNorm, *, pick=True, inference=True):
    model, state = with_state(make, inference=inference)
    return lambda x: model(x, state=state)[0] if pick else model(x, state=state)


def linear(weight, x):
    return weight @ x


# --- what is said ---------------------------------------------------------------------------------

EVALUATION, LINEN = r"training mode; .*call model\.eval\(\)", r"use_running_average=True"
INFERENCE = r"eqx\.nn\.inference_mode\(model\)"
VARIABLES = r"jax\.tree_util\.Partial\(module\.apply, variables\)"
BATCH = r"wrap it as lambda x: model\(x\[None\]\)\[0\]"
PICK = r"must return one array of logits.*lambda x: model\(x\)"

CASES = {
    "nnx, batch norm": Case(
        lambda: NNXNet(norm=True), lambda: in_evaluation(NNXNet(norm=True)),
        (EVALUATION, r"x of shape \(4,\), float32"), "TraceContextError"),
    "nnx, dropout": Case(
        lambda: NNXNet(dropout=True), lambda: in_evaluation(NNXNet(dropout=True)),
        (EVALUATION,), "TraceContextError"),
    "nnx, dropout in a lambda": Case(
        lambda: (lambda net: lambda x: net(x))(NNXNet(dropout=True)),
        lambda: (lambda net: lambda x: net(x))(in_evaluation(NNXNet(dropout=True))),
        (EVALUATION,), "TraceContextError"),
    "nnx, dropout without rngs": Case(
        lambda: NNXNet(dropout=True, own_rngs=False),
        lambda: in_evaluation(NNXNet(dropout=True, own_rngs=False)),
        (EVALUATION,), "ValueError"),
    "nnx, counter": Case(
        NNXCounting, lambda: nnx.merge(*nnx.split(NNXCounting())).layer,
        ("changes its own variables", "keep from the call what it records"), "TraceContextError"),
    "nnx, batches": Case(
        NNXConv, lambda: (lambda net: lambda x: net(x[None])[0])(NNXConv()),
        (BATCH, r"\(6, 6, 1\)"), "TypeError", IMAGE),
    "nnx, grey": Case(
        NNXConv, lambda: (lambda net: lambda x: net(x[None, ..., None])[0])(NNXConv()),
        (r"model\(x\[None, \.\.\., None\]\)\[0\]",), "ValueError", IMAGE[..., 0]),
    "nnx, flat": Case(
        lambda: nnx.Linear(36, C, rngs=nnx.Rngs(0)),
        lambda: (lambda net: lambda x: net(x.ravel()))(nnx.Linear(36, C, rngs=nnx.Rngs(0))),
        (r"lambda x: model\(x\.ravel\(\)\)",), "TypeError", IMAGE),
    "linen, batch norm": Case(
        lambda: bound(LinenNet(norm=True)), lambda: bound(LinenNet(norm=True), train=False),
        (LINEN, "train=False"), "ModifyScopeVariableError"),
    "linen, dropout": Case(
        lambda: bound(LinenNet(dropout=True)), lambda: bound(LinenNet(dropout=True), train=False),
        (LINEN, "deterministic=True"), "InvalidRngError"),
    "linen, a flag": Case(
        lambda: Partial(LinenFlag().apply, variables(LinenFlag(), train=False)),
        lambda: Partial(LinenFlag().apply, variables(LinenFlag(), train=False), train=False),
        ("'train'", r"lambda x: model\(x, train=False\)"), "TypeError"),
    "linen, module": Case(
        LinenNet, lambda: bound(LinenNet()), (VARIABLES,), "CallCompactUnboundModuleError"),
    "linen, module with setup": Case(
        LinenSetup, lambda: bound(LinenSetup()), (VARIABLES,), "AttributeError"),
    "linen, apply alone": Case(
        lambda: LinenNet().apply, lambda: bound(LinenNet()), (VARIABLES,), "TypeError"),
    "linen, params alone": Case(
        lambda: Partial(LinenNet().apply, variables(LinenNet())["params"]),
        lambda: Partial(LinenNet().apply, {"params": variables(LinenNet())["params"]}),
        (r"not complete.*\{'params': …",), "ScopeCollectionNotFound"),
    "linen, no statistics": Case(
        lambda: Partial(
            LinenNet(norm=True).apply, {"params": variables(LinenNet(norm=True))["params"]}
        ),
        lambda: bound(LinenNet(norm=True), train=False),
        ("not complete.*'batch_stats': …",), "ScopeCollectionNotFound"),
    "linen, new statistics": Case(
        lambda: bound(LinenNet(norm=True), mutable=["batch_stats"]),
        lambda: bound(LinenNet(norm=True), train=False),
        (PICK + r"\[0\], and put.*evaluation mode first",), None),
    "linen, batches": Case(
        lambda: bound(LinenConv(), IMAGE[None]),
        lambda: (lambda net: lambda x: net(x[None])[0])(bound(LinenConv(), IMAGE[None])),
        (BATCH,), "ScopeParamShapeError", IMAGE),
    "equinox, dropout": Case(
        EquinoxDropout, lambda: eqx.nn.inference_mode(EquinoxDropout()),
        ("training mode", INFERENCE), "RuntimeError"),
    "equinox, key": Case(
        EquinoxKey,
        lambda: (lambda net: lambda x: net(x, key=KEY))(eqx.nn.inference_mode(EquinoxKey())),
        (r"lambda x: model\(x, key=key\)", INFERENCE), "TypeError"),
    "equinox, state": Case(
        lambda: with_state()[0], at_state,
        (r"lambda x: model\(x, state=state\)\[0\]", INFERENCE), "TypeError"),
    "equinox, state of a sequence": Case(
        lambda: with_state(sequential)[0], lambda: at_state(sequential),
        (r"lambda x: model\(x, state=state\)\[0\]", INFERENCE), "AttributeError"),
    "equinox, batch norm": Case(
        partial(at_state, inference=False), at_state,
        ("mean over a batch", INFERENCE), "NameError"),
    "equinox, new state": Case(
        partial(at_state, pick=False), at_state, (PICK + r"\[0\]",), None),
    "equinox, batches": Case(
        EquinoxBatch, lambda: (lambda net: lambda x: net(x[None])[0])(EquinoxBatch()),
        (BATCH,), "ValueError", IMAGE.reshape(1, 6, 6).astype(jnp.float64)),
    "function of weights": Case(
        lambda: linear, lambda: Partial(linear, WEIGHT),
        (r"foliax calls model\(x\)", r"jax\.tree_util\.Partial\(model, weights\)"), "TypeError"),
    "function in a table": Case(
        lambda: lambda x: {"hidden": x[None], "logits": WEIGHT @ x}, lambda: lambda x: WEIGHT @ x,
        (PICK + r"\['logits'\]",), None),
    "function without return": Case(
        lambda: lambda _: None, lambda: lambda x: WEIGHT @ x,
        (r"\(None\); return the logits",), None),
    "function of rows": Case(
        lambda: lambda x: x.reshape(-1, N) @ WEIGHT.T, lambda: lambda x: WEIGHT @ x,
        (r"got shape \(1, 3\); " + BATCH,), None),
}  # fmt: skip


def check(error, case):
    said = str(error.value)
    for pattern in case.message:
        error.match(pattern)
    cause = error.value.__cause__
    assert (None if cause is None else type(cause).__name__) == case.cause, said


@pytest.mark.parametrize("name", CASES)
def test_the_message_names_what_helps(name):
    case = CASES[name]
    with pytest.raises(ValueError, match="model") as error:
        foliax.trace(case.given(), case.x)
    check(error, case)


@pytest.mark.parametrize("name", CASES)
def test_what_is_said_helps(name):
    case = CASES[name]
    trace = foliax.trace(case.mended(), case.x)
    assert jnp.isfinite(trace)
    assert trace > 0  # batch statistics of one input would make it zero


FUNCTIONS = {
    "walk": lambda model, x: foliax.walk(model, x, x + 1),
    "frame": foliax.frame,
    "eigh": foliax.eigh,
    "brownian": lambda model, x: foliax.brownian(model, x, KEY, 0.1),
    "explain": explain.explain,
    "attack": lambda model, x: attack.spectral(model, x, 0.1),
    "ood": lambda model, x: ood.score(model, x, x[None]),
    "under jit": lambda model, x: jax.jit(lambda y: foliax.trace(model, y))(x),
    "under vmap": lambda model, x: jax.vmap(foliax.trace, (None, 0))(model, x[None]),
    "with options": lambda model, x: foliax.trace(foliax.with_options(model), x),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "name", ["nnx, batch norm", "linen, batches", "equinox, state", "function of weights"]
)
def test_every_function_says_so(name, function):
    case = CASES[name]
    with pytest.raises(ValueError, match="model") as error:
        FUNCTIONS[function](case.given(), case.x)
    check(error, case)


OF_THE_WEIGHTS = {
    "matvec": lambda model, x: fisher.matvec(model, x, model),
    "batch": lambda model, x: fisher.matvec(model, x[None], model, batched=True),
    "kl": lambda model, x: fisher.kl(model, x, model),
    "quadratic": lambda model, x: fisher.quadratic(model, x, model),
    "solve": lambda model, x: fisher.solve(model, x[None], model, damping=1.0),
    "factor": fisher.factor,
    "trace": fisher.trace,
}


@pytest.mark.parametrize("function", OF_THE_WEIGHTS)
def test_functions_of_the_weights_say_so_too(function):
    call, net = OF_THE_WEIGHTS[function], LinenConv()
    params = variables(net, IMAGE[None])
    with pytest.raises(ValueError, match=r"lambda x: model\(x\[None\]\)\[0\]"):
        call(Partial(net.apply, params), IMAGE)
    out = call(Partial(lambda params, x: net.apply(params, x[None])[0], params), IMAGE)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(out))


def test_a_linen_module_that_holds_its_variables_is_a_model():
    net = LinenNet()
    expected = bound(net)
    given = net.bind(variables(net))
    assert foliax.trace(given, X) == foliax.trace(expected, X)
    path, other = (foliax.walk(model, X, X + 1, max_steps=2) for model in (given, expected))
    assert jnp.array_equal(path.points, other.points)


# --- the model's own errors -----------------------------------------------------------------------


def broken_shapes(x):
    return jnp.ones((C, 7)) @ x


def broken_value(x):
    raise KeyError("no such layer")


def broken_inside(x):
    return linear(x)  # misses an argument, in the model's own code


@pytest.mark.parametrize(
    ("model", "kind"),
    [(broken_shapes, TypeError), (broken_value, KeyError), (broken_inside, TypeError)],
)
def test_an_error_of_the_model_stays_its_own(model, kind):
    with pytest.raises(kind) as error:
        foliax.trace(model, X)
    assert error.value.__cause__ is None
    note = "foliax called model(x) with x of shape (4,), float32"
    assert error.value.__notes__.count(note) == 1


def test_nothing_is_tried_where_the_model_works(monkeypatch):
    def never(*_):
        raise AssertionError("the model did not raise")

    monkeypatch.setattr(jacobian, "remedy", never)
    monkeypatch.setattr(jacobian, "working_form", never)
    assert foliax.trace(Partial(linear, WEIGHT), X) > 0
