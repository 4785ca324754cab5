"""Who may import whom: the floors of the library, read off its imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up. What stands on a floor may import the floors below it, and its own.
GROUND = {"_core", "_linalg", "_backend"}
FLOORS = [
    GROUND | {"likelihood"},
    {"data_matrix", "fisher"},
    {"foliation", "equivariance"},
    {"flow", "leaf"},
    {"apps"},
]
BESIDE = {  # what stands beside the floors, and what of foliax it may import
    "batch": FLOORS[0],
    "adapt": {"_core"},
    "describe": set().union(GROUND, *FLOORS[:4]),
    "viz": {"_core"},
    "zoo": set().union(GROUND, *FLOORS[:4], {"batch"}),
}


def imported(path):
    """Return the rooms of foliax that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("foliax.")}
    return found


def rooms():
    return sorted(
        path for path in (ROOT / "foliax").iterdir()
        if path.name != "__init__.py" and (path.suffix == ".py" or (path / "__init__.py").exists())
    )  # fmt: skip


def allowed(room):
    if room in BESIDE:
        return BESIDE[room] | {room}
    floor = next(number for number, names in enumerate(FLOORS) if room in names)
    return set().union(*FLOORS[: floor + 1])


@pytest.mark.parametrize("room", rooms(), ids=lambda path: path.stem)
def test_a_room_imports_its_own_floor_and_those_below(room):
    files = [room] if room.suffix else sorted(room.rglob("*.py"))
    extra = {str(file.relative_to(ROOT)): imported(file) - allowed(room.stem) for file in files}
    assert {file: names for file, names in extra.items() if names} == {}


def test_experiments_use_public_names_alone():
    private = {
        str(file.relative_to(ROOT)): names
        for file in sorted((ROOT / "experiments").rglob("*.py"))
        if (names := {name for name in imported(file) if name.startswith("_")})
    }
    assert private == {}
