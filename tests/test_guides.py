"""The pages on models of other libraries and kinds: their code runs, and prints what they show.

`python -m tests.test_guides PAGE` runs a page and prints what each of its blocks does.
"""

import contextlib
import io
import math
import os
import re
import sys
import time
from pathlib import Path

import jax
import pytest

PAGES = Path(__file__).parents[1] / "docs" / "models"
NEEDS = {  # what a page imports beside what foliax requires
    "pytorch.md": ("torch", "torchax"),
    "hugging_face.md": ("torch", "torchax", "transformers"),
    "minilm.md": ("torch", "torchax", "transformers", "all_minilm_l6_v2"),
    "flax_equinox_haiku_keras.md": ("haiku", "keras"),
}
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?")
RTOL = 0.05  # of numbers that are printed: a network trained elsewhere ends a little elsewhere
os.environ.setdefault("KERAS_BACKEND", "jax")


def blocks(page):
    """Return the code of a page, and what the page says that each piece prints."""
    found = BLOCK.findall((PAGES / page).read_text("utf-8"))
    pairs = []
    for kind, text in found:
        if kind == "python":
            pairs.append([text, None])
        else:
            assert pairs[-1][1] is None, text
            pairs[-1][1] = text
    return pairs


def run(page, *, show=False):
    """Run a page from top to bottom, and return what each block printed and should print."""
    names, out = {"__name__": "page"}, []
    for code, expected in blocks(page):
        begun, stream = time.perf_counter(), io.StringIO()
        with contextlib.redirect_stdout(stream):
            exec(compile(code, page, "exec"), names)
        out.append((stream.getvalue(), expected))
        if show:
            print(f"--- {time.perf_counter() - begun:.1f} s\n{stream.getvalue()}")
    return out


def same(printed, expected):
    """Tell whether two outputs have the same words, and numbers that are close."""
    (words, numbers), (other, others) = map(parts, (printed, expected))
    return words == other and all(
        math.isclose(a, b, rel_tol=RTOL, abs_tol=0.02) for a, b in zip(numbers, others, strict=True)
    )


def parts(text):
    numbers = [float(number.replace(",", "")) for number in NUMBER.findall(text)]
    return NUMBER.sub("#", text).split(), numbers


@pytest.mark.parametrize("page", sorted(path.name for path in PAGES.glob("*.md")))
@pytest.mark.usefixtures("full_optimization")
@pytest.mark.filterwarnings("ignore")
def test_a_page_prints_what_it_shows(page):
    for name in NEEDS.get(page, ()):
        pytest.importorskip(name, exc_type=Exception)
    assert any(expected for _, expected in blocks(page))
    with jax.enable_x64(False):
        for printed, expected in run(page):
            if expected is None:
                assert printed == ""
            else:
                assert same(printed, expected), f"printed:\n{printed}\non the page:\n{expected}"


def test_the_comparison_can_fail():
    assert same("rank 9, p = 0.5", "rank 9, p = 0.51")
    assert not same("rank 9, p = 0.5", "rank 8, p = 0.5")
    assert not same("arrived 9", "stalled 9")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(name, show=True)
