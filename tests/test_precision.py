"""Every product that foliax hands to a GPU or a TPU is in full float32, unless told otherwise.

Those devices multiply float32 numbers in TF32 or bfloat16 by default, which changes ranks. What is
read here is the program itself, lowered on a CPU for a device that need not be there.
`python -m tests.test_precision` prints the table.
"""

import importlib
import inspect
import re
from collections import Counter
from typing import Any

import jax
import pytest

import foliax
from tests.precision_cases import (
    CALLS,
    DENSE,
    EACH_WAY,
    RULED,
    SMALL_IMAGES,
    WITHOUT_A_MODEL,
    X,
    function_of,
)

PLATFORMS = ("cuda", "tpu")
MODULES = (
    "data_matrix", "equivariance", "fisher", "flow.brownian",
    "flow.closest", "flow.walk", "foliation", "leaf", "batch.sharding", "batch.sweep",
    "apps.attack", "apps.denoise", "apps.explain", "apps.generate", "apps.metamer", "apps.ood",
    "apps.transfer",
)  # fmt: skip
PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution)\b")
FLOATS = re.compile(r"-> tensor<(?:\d+x)*(?:f|bf)\d+>")
PRECISION = re.compile(r"stablehlo<precision (\w+)>|precision = \[(\w+)")
ORDER = ("DEFAULT", "HIGH", "HIGHEST")


@pytest.fixture(autouse=True)
def _single_precision():
    """As accelerators are used; with 64 bits diffrax calls back, and that needs the device."""
    with jax.enable_x64(False):
        yield


def precisions(text: str) -> Counter[str]:
    """Count the products of floating-point numbers in a lowered program, by precision."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        if PRODUCT.search(line) and FLOATS.search(line):
            named = PRECISION.search(line)
            found[(named[1] or named[2]) if named else "DEFAULT"] += 1
    return found


def lowered(call: Any, model: Any) -> dict[str, Counter[str]]:
    """Trace a call once, and return the precisions in its program for each platform."""
    traced = jax.jit(call).trace(model, X)
    return {
        platform: precisions(traced.lower(lowering_platforms=(platform,)).as_text())
        for platform in PLATFORMS
    }


# A function with options mostly repeats the products that it has without, and is left to -m slow.
ROWS = [
    pytest.param(name, marks=pytest.mark.slow if function_of(name) in set(CALLS) - {name} else ())
    for name in CALLS
]


@pytest.mark.parametrize("name", ROWS)
def test_every_product_is_full_float32(name):
    for platform, found in lowered(CALLS[name], DENSE).items():
        assert set(found) == {"HIGHEST"}, platform


@pytest.mark.parametrize("name", EACH_WAY)
@pytest.mark.parametrize(
    "model",
    {
        "convolution": foliax.with_options(SMALL_IMAGES, operations="stock"),
        "fast convolution": foliax.with_options(SMALL_IMAGES, operations="fast"),
        "a rule of its own": RULED,
    }.items(),
    ids=lambda item: item[0],
)
def test_so_is_every_product_of_any_model(name, model):
    for platform, found in lowered(CALLS[name], model[1]).items():
        assert set(found) == {"HIGHEST"}, platform


@pytest.mark.parametrize("precision", ["default", "high"])
def test_the_products_of_the_model_are_as_asked(precision):
    model = foliax.with_options(DENSE, precision=precision)
    for found in lowered(foliax.trace, model).values():
        assert set(found) == {precision.upper()}
    for name in ("matrix", "project_leaf", "eigh by Lanczos", "drift"):
        plain = lowered(CALLS[name], DENSE)
        for platform, found in lowered(CALLS[name], model).items():
            assert set(found) == {precision.upper(), "HIGHEST"}, (name, platform)
            assert found.total() == plain[platform].total()


def test_the_modules_are_those_of_an_export():
    """A program lowered here is the one that is exported for a device."""
    for platform, found in lowered(foliax.frame, DENSE).items():
        exported = jax.export.export(jax.jit(foliax.frame), platforms=(platform,))(DENSE, X)
        assert precisions(exported.mlir_module()) == found


def public_functions() -> set[str]:
    """Return the names of all public functions, "walk" or "leaf.distance"."""
    names = {name for name, value in vars(foliax).items() if _is_public(name, value)}
    for module in MODULES:
        found = importlib.import_module(f"foliax.{module}")
        short = module.rpartition(".")[2]
        names |= {
            f"{short}.{name}"
            for name, value in vars(found).items()
            if name in found.__all__
            and _is_public(name, value)
            and getattr(foliax, name, None) is not value
        }
    return names


def _is_public(name: str, value: Any) -> bool:
    # Not `inspect.isfunction`: one with a derivative of its own is an object.
    return callable(value) and not inspect.isclass(value) and not name.startswith("_")


def test_the_table_holds_every_public_function():
    listed = {function_of(name) for name in CALLS}
    assert listed & set(WITHOUT_A_MODEL) == set()
    assert listed | set(WITHOUT_A_MODEL) == public_functions()


def main() -> None:
    """Print the table."""
    print(f"{'function':40} {'cuda products':>14} {'tpu products':>13}  lowest precision")
    for name, call in CALLS.items():
        found = lowered(call, DENSE)
        least = min(found["cuda"] | found["tpu"], key=ORDER.index)
        print(f"{name:40} {found['cuda'].total():14} {found['tpu'].total():13}  {least}")


if __name__ == "__main__":
    main()
