"""The reference pages name every public name, and nothing that does not exist."""

import inspect
import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

import foliax
from foliax import equivariance, fisher, leaf, sharding, viz, zoo
from foliax.apps import attack, denoise, explain, generate, metamer, ood, transfer

DOCS = Path(__file__).parent.parent / "docs"
DIRECTIVES = [
    (page.name, path)
    for page in sorted((DOCS / "api").glob("*.md"))
    for path in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), flags=re.MULTILINE)
]
FACE = [
    name
    for name, value in vars(foliax).items()
    if not name.startswith("_") and getattr(value, "__module__", "").startswith("foliax.")
]
ROOMS = [("foliax.md", foliax, FACE)] + [
    (f"{module.__name__.removeprefix('foliax.').removeprefix('batch.')}.md", module, module.__all__)
    for module in (
        fisher,
        leaf,
        equivariance,
        sharding,
        zoo,
        viz,
        denoise,
        explain,
        generate,
        metamer,
        ood,
        transfer,
        attack,
    )
]


@pytest.mark.parametrize(("page", "path"), DIRECTIVES)
def test_a_directive_names_what_exists(page, path):
    assert resolve_name(path) is not None
    assert page in {name for name, _, _ in ROOMS}


@pytest.mark.parametrize(("page", "module", "names"), ROOMS, ids=[room[0] for room in ROOMS])
def test_every_public_name_is_on_its_page(page, module, names):
    on_page = [path for name, path in DIRECTIVES if name == page]
    assert len(on_page) == len(set(on_page))
    shown = {path.rpartition(".")[2]: resolve_name(path) for path in on_page}
    assert len(names) >= 3  # the module's names were found at all
    assert {name for name in names if shown.get(name) is not getattr(module, name)} == set()


@pytest.mark.parametrize(("page", "module", "names"), ROOMS, ids=[room[0] for room in ROOMS])
def test_the_help_of_every_function_describes_its_parameters(page, module, names):
    functions = [value for name in names if inspect.isfunction(value := getattr(module, name))]
    described = [
        (function.__name__, re.findall(r"(?m)^    \*{0,2}(\w+): ", inspect.getdoc(function)))
        for function in functions
        if "\nArgs:\n" in inspect.getdoc(function)
    ]
    wanted = {
        function.__name__: set(inspect.signature(function).parameters) for function in functions
    }
    assert described
    assert [(name, wanted[name] - set(found)) for name, found in described] == [
        (name, set()) for name, _ in described
    ]


def test_the_first_page_shows_the_code_of_the_readme():
    readme = (DOCS.parent / "README.md").read_text("utf-8")
    blocks = re.findall(
        r"^```(?:python|text)\n.*?^```$", (DOCS / "index.md").read_text("utf-8"), flags=re.M | re.S
    )
    assert len(blocks) == 2
    assert [block for block in blocks if block not in readme] == []


@pytest.mark.parametrize(("page", "module", "names"), ROOMS, ids=[room[0] for room in ROOMS])
def test_which_function_leads_to_every_public_name(page, module, names):
    text = (DOCS / "which.md").read_text("utf-8")
    linked = {path.rpartition(".")[2] for path in re.findall(rf"\(api/{page}#([\w.]+)\)", text)}
    assert set(names) - linked == set()
