"""Make the notebooks from their scripts: python notebooks/pair.py.

As `jupytext --to ipynb` does, with a first code cell that installs foliax, and with cell ids that
depend on the cells alone, so that the same script gives the same file.
"""

import hashlib
from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).parent
INSTALL = """\
try:
    import foliax
except ImportError:
    import subprocess
    import sys

    # A checkout of foliax, relative to here; the repository has no public address yet. On Colab,
    # upload the checkout and write its folder.
    SOURCE = ".."
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", SOURCE + "[mnist]"], check=True)
""".rstrip()


def scripts() -> list[Path]:
    """Return the scripts, in order."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def notebook(script: Path) -> str:
    """Return the text of the notebook of a script."""
    made = jupytext.read(script)
    first = next(place for place, cell in enumerate(made.cells) if cell.cell_type == "code")
    made.cells.insert(first, nbformat.v4.new_code_cell(INSTALL))
    taken = set()
    for cell in made.cells:
        name, copy = hashlib.sha256(cell.source.encode()).hexdigest()[:8], 0
        while (cell_id := f"{name}-{copy}" if copy else name) in taken:
            copy += 1
        taken.add(cell_id)
        cell["id"] = cell_id
    return nbformat.writes(made) + "\n"


if __name__ == "__main__":
    for script in scripts():
        script.with_suffix(".ipynb").write_text(notebook(script), encoding="utf-8")
