"""Imports point down the list of rooms."""

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "chiaroscuro"
FLOORS = [
    {"ops"},
    {"mixers"},
    {"routing"},
    {"modeling"},
    {"flops", "data", "training", "evaluation", "progress"},
    {"analysis", "studies", "bench"},
    {"cli", "tables", "app"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ROOMS = {path.stem for path in SOURCE.iterdir() if not path.stem.startswith("__") and path.name != "py.typed"}


def imports(code: str) -> list[str]:
    """Full names of the modules that a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def upward(room: str, code: str) -> list[str]:
    """The imports of a file in `room` that do not point down, or to a neighbour on the same floor.

    The package itself takes its names from the modeling room, so `import chiaroscuro` counts as importing that.
    """
    names = [name.split(".") for name in imports(code) if name.split(".")[0] == "chiaroscuro"]
    rooms = {parts[1] if len(parts) > 1 and parts[1] in ROOMS else "modeling" for parts in names}
    return sorted(other for other in rooms if FLOOR[other] > FLOOR[room])


def imports_reference(code: str) -> bool:
    return any(name.startswith("chiaroscuro.ops.reference") for name in imports(code))


FILES = [path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem in FLOOR]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_import_points_up(path):
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert upward(room, path.read_text()) == []


@pytest.mark.parametrize("path", sorted((SOURCE / "ops").glob("*.py")), ids=lambda path: path.name)
def test_ops_need_torch_only(path):
    roots = {name.split(".")[0] for name in imports(path.read_text())}
    known = {"torch", "chiaroscuro"} | ({"triton"} if path.stem.endswith("_triton") else set())
    assert roots - sys.stdlib_module_names <= known


def test_the_reference_is_for_tests_only():
    users = [path for path in SOURCE.rglob("*.py") if imports_reference(path.read_text())]
    assert users == []


def test_every_room_has_its_floor():
    assert set(FLOOR) >= ROOMS


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def f():\n    from chiaroscuro.routing.router import Router\n", ["routing"]),
        ("import chiaroscuro.training.run as run", ["training"]),
        ("from chiaroscuro import cli, ops", ["cli"]),
        ("from chiaroscuro import ChiarConfig", ["modeling"]),
        ("import chiaroscuro", ["modeling"]),
        ("from chiaroscuro.ops import dct", []),
        ("import chiaroscuro.mixers.base", []),
        ("from torch import nn", []),
    ],
)
def test_an_import_that_points_up_would_be_found(code, found):
    assert upward("mixers", code) == found


def test_an_import_of_the_reference_would_be_found():
    for code in ("from chiaroscuro.ops import reference", "from chiaroscuro.ops.reference import attention"):
        assert imports_reference(code)
