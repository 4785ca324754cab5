"""The notebooks are those of their scripts, hold no outputs, and run."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


@pytest.fixture(scope="module")
def pair():
    spec = importlib.util.spec_from_file_location("pair", FOLDER / "pair.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_five():
    assert [script.stem[:2] for script in SCRIPTS] == ["01", "02", "03", "04", "05"]
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {script.stem for script in SCRIPTS}


@each_script
def test_notebook_is_that_of_its_script(script, pair):
    there = script.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert there == pair.notebook(script), "run python notebooks/pair.py"
    cells = _cells(jupytext.reads(there, "ipynb"))
    assert [cell for cell in cells if cell != ("code", pair.INSTALL)] == _cells(
        jupytext.read(script)
    )


@each_script
def test_script_is_that_of_its_notebook(script):
    there = jupytext.read(script.with_suffix(".ipynb"))
    again = jupytext.reads(jupytext.writes(there, "py:percent"), "py:percent")
    assert _cells(again) == _cells(there)


@each_script
def test_notebook_holds_no_outputs(script):
    code = [c for c in jupytext.read(script.with_suffix(".ipynb")).cells if c.cell_type == "code"]
    assert code
    for cell in code:
        assert cell.outputs == []
        assert cell.execution_count is None


@each_script
def test_first_cell_installs_from_where_foliax_is(script):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project.get("urls", {}).get("Repository")
    source = ".." if address is None else f"foliax @ git+{address}"
    cells = jupytext.read(script.with_suffix(".ipynb")).cells
    first = next(cell for cell in cells if cell.cell_type == "code")
    assert first.source.startswith("try:\n    import foliax\n")
    assert f'SOURCE = "{source}"' in first.source, "the address is that of [project.urls]"


@pytest.mark.slow
@each_script
def test_runs_at_smoke_size(script, tmp_path):
    environment = {
        **os.environ,
        "FOLIAX_SMOKE": "1",
        "MPLBACKEND": "Agg",
        "TMPDIR": str(tmp_path),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # it compiles much and computes next to nothing
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
    }
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pictures = list(tmp_path.glob("foliax_*/*.png"))
    assert pictures
    assert all(picture.stat().st_size for picture in pictures)


def _cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]
