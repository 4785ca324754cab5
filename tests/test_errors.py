"""Every bad input, and the sentence that its user reads.

Where the argument is of a wrong type altogether, the type checks that are armed in this suite would
speak first; those messages are read in a process without them, as users run it.
"""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import foliax

X = jnp.array([0.5, -1.0])


def model(x):
    return jnp.stack([x[0], x[1], 0 * x[0]])


OF_THE_POINT = {
    "trace": lambda model, x: foliax.trace(model, x),
    "factor": lambda model, x: foliax.factor(model, x),
    "matrix": lambda model, x: foliax.matrix(model, x),
    "rank": lambda model, x: foliax.rank(model, x),
    "eigh": lambda model, x: foliax.eigh(model, x),
    "matvec": lambda model, x: foliax.matvec(model, x, x),
    "kl": lambda model, x: foliax.kl(model, x, x),
    "quadratic": lambda model, x: foliax.quadratic(model, x, x),
    "frame": lambda model, x: foliax.frame(model, x),
    "dimension": lambda model, x: foliax.dimension(model, x),
    "project_leaf": lambda model, x: foliax.project_leaf(model, x, x),
    "project_kernel": lambda model, x: foliax.project_kernel(model, x, x),
    "walk": lambda model, x: foliax.walk(model, x, x),
    "drift": lambda model, x: foliax.drift(model, x, x),
}
BAD_POINTS = {
    "batch axis": (
        lambda x: model(x)[None],
        X,
        r"vector \(C,\).*\(1, 3\).*wrap it as lambda x: model\(x\)\[0\]",
    ),
    "scalar": (lambda x: x[0], X, r"vector \(C,\) of logits, got shape \(\); return all C logits"),
    "one class": (lambda x: x[:1], X, r"C >= 2 logits.*got C = 1.*one logit.*\(0, z\)"),
    "tuple": (lambda x: (model(x), x), X, r"one array of logits.*got a PyTreeDef.*model\(x\)\[0\]"),
    "integer logits": (lambda _: jnp.arange(3), X, "floating-point logits, got dtype int"),
    "integer x": (model, jnp.array([1, 2]), r"x must be a floating-point array.*int64.*astype"),
    "boolean x": (model, jnp.array([True, False]), "x must be a floating-point array.*bool"),
    "complex x": (model, X + 1j, "x must be a floating-point array.*complex"),
    "empty x": (model, jnp.zeros((3, 0)), r"x must hold at least one number.*\(3, 0\)"),
}


@pytest.mark.parametrize("bad", BAD_POINTS)
@pytest.mark.parametrize("function", OF_THE_POINT)
def test_bad_model_or_point(function, bad):
    model, x, message = BAD_POINTS[bad]
    with pytest.raises(ValueError, match=message):
        OF_THE_POINT[function](model, x)


@pytest.mark.parametrize("bad", BAD_POINTS)
def test_errors_come_at_trace_time(bad):
    model, x, message = BAD_POINTS[bad]
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda x: foliax.trace(model, x))(x)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        ("matvec", "v"),
        ("project_leaf", "v"),
        ("project_kernel", "v"),
        ("kl", "delta"),
        ("quadratic", "delta"),
        ("walk", "target"),
        ("drift", "direction"),
    ],
)
def test_vectors_must_fit_the_point(function, name):
    call = getattr(foliax, function)
    with pytest.raises(ValueError, match=rf"{name} must have the shape of x, \(2,\), got \(3,\)"):
        call(model, X, jnp.zeros(3))
    # A batch of points is the likeliest slip, and the sentence names the way out.
    with pytest.raises(ValueError, match=rf"{name} must have.*\(4, 2\).*jax.vmap"):
        call(model, X, jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match=f"{name} must be a floating-point array"):
        call(model, X, jnp.zeros(2, int))


@pytest.mark.parametrize("function", ["factor", "matrix", "trace", "rank", "eigh", "frame",
                                      "dimension", "project_leaf", "project_kernel"])  # fmt: skip
@pytest.mark.parametrize("chunk", [0, -1])
def test_bad_chunk(function, chunk):
    rest = (X,) if function.startswith("project") else ()
    with pytest.raises(ValueError, match=f"chunk must be None or.*>= 1, got {chunk}"):
        getattr(foliax, function)(model, X, *rest, chunk=chunk)


@pytest.mark.parametrize("k", [0, 3, -1])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=rf"k must be .* from 1 to min\(n, C - 1\) = 2, got {k}"):
        foliax.eigh(model, X, k)


BAD_OPTIONS = [
    ({"step": 0.0}, r"step must be a finite number > 0, got 0\.0"),
    ({"step": -0.1}, "step must be a finite number > 0"),
    ({"step": float("nan")}, "step must be a finite number > 0, got nan"),
    ({"step": jnp.array([0.1, 0.2])}, "step must be a finite number > 0"),
    ({"max_steps": 0}, "max_steps must be a whole number >= 1, got 0"),
    ({"max_steps": 80_001}, "max_steps must be at most 80000, got 80001; chain"),
    ({"save_every": 0}, "save_every must be a whole number >= 1, got 0"),
    ({"box": foliax.Box(jnp.zeros(3), jnp.ones(3))}, r"box\.lower.*\(2,\), got \(3,\)"),
    ({"box": foliax.Box(0.0, jnp.ones((5, 2)))}, r"box\.upper.*\(2,\), got \(5, 2\)"),
]


@pytest.mark.parametrize("function", [foliax.walk, foliax.drift])
@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_of_walks(function, options, message):
    with pytest.raises(ValueError, match=message):
        function(model, X, X + 1, **options)


@pytest.mark.parametrize(
    ("lower", "upper", "message"),
    [
        (1.0, 0.0, "box is empty.*lower = 1 and upper = 0"),
        (0.0, 0.0, "box is empty"),
        (float("nan"), 1.0, "box is empty"),
        (jnp.zeros(3), jnp.array([1.0, 0.0, 1.0]), r"every pixel.*array of shape \(3,\)"),
    ],
)
def test_empty_box(lower, upper, message):
    with pytest.raises(ValueError, match=message):
        foliax.Box(lower, upper)


def test_box_is_a_pytree_whose_leaves_may_be_anything():
    box = foliax.Box(-1.0, jnp.ones(2))
    assert jax.tree.map(lambda _: None, box).lower is None
    swapped = jax.jit(lambda box: foliax.Box(box.upper, box.lower))(box)
    assert float(swapped.lower[0]) == 1.0
    assert foliax.Box(0, 1).lower.dtype == jnp.float64
    assert box.clip(jnp.array([-3.0, 3.0])).tolist() == [-1.0, 1.0]
    assert float(box.excess(jnp.array([-3.0, 1.5]))) == 2.0
    batched = jax.vmap(lambda box, x: box.excess(x))(
        foliax.Box(jnp.array([0.0, -1.0]), jnp.array([1.0, 1.0])), jnp.array([-0.5, -0.5])
    )
    assert batched.tolist() == [0.5, 0.0]


WRONG_TYPES = {
    "foliax.trace(3, X)": r"model must be callable.*got int.*jax\.tree_util\.Partial",
    "foliax.fisher.matvec(3, X, X)": "model must be callable from one input.*got int",
    "foliax.walk(None, X, X)": "model must be callable.*got NoneType",
    "foliax.trace(model, X, chunk=1.5)": r"chunk must be None or.*got 1\.5",
    "foliax.eigh(model, X, 1.5)": r"k must be a whole number.*got 1\.5",
    "foliax.walk(model, X, X, along='fibre')": "along must be one of 'leaf', 'kernel', got '",
    "foliax.drift(model, X, X, along='D')": "along must be one of .*'D'",
    "foliax.walk(model, X, X, scheme='rk4')": "scheme must be one of 'exact', 'published', got '",
    "foliax.walk(model, X, X, max_steps=2.5)": r"max_steps must be a whole number >= 1, got 2\.5",
    "foliax.walk(model, X, X, save_every=True)": "save_every must be a whole number >= 1, got True",
    "foliax.walk(model, X, X, box=(0, 1))": "box must be a foliax.Box or None, got tuple",
}


@pytest.fixture(scope="module")
def messages():
    """Return what each expression raises in a process without type checks."""
    script = "\n".join(
        [
            "import json, sys",
            "import jax.numpy as jnp, foliax",
            "X = jnp.array([0.5, -1.0])",
            "model = lambda x: jnp.stack([x[0], x[1], 0 * x[0]])",
            "found = {}",
            "for expression in json.load(sys.stdin):",
            "    try:",
            "        found[expression] = f'nothing raised: {eval(expression)}'",
            "    except Exception as error:",
            "        found[expression] = f'{type(error).__name__}: {error}'",
            "print(json.dumps(found))",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(list(WRONG_TYPES)), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize("expression", WRONG_TYPES)
def test_wrong_types(messages, expression):
    assert re.search(f"^ValueError: .*{WRONG_TYPES[expression]}", messages[expression])
