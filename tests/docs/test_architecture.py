"""`docs/architecture.md` shows the house as it is, and its rule about imports holds."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "flopcallback"
PAGE = ROOT / "docs" / "architecture.md"

# From left to right; `formulas` may be imported from everywhere, and the rest is what drives the row. The public door,
# `__init__`, stands nowhere on the right: what imports it imports all rooms at once.
MAY_IMPORT = {
    "_version": set(),
    "formulas": {"counting"},  # `op_call.py`, the contract between the two
    "counting": {"formulas"},
    "measuring": {"counting"},
    "reporting": set(),
    "batches": {"troubles"},
    "ranks": set(),
    "meter": {"batches", "measuring", "ranks", "troubles"},
    "loop_objects": set(),
    "outlets": {"reporting", "trackers", "troubles"},
    "lightning_loggers": {"options", "trackers", "troubles"},
    "lightning_metrics": {"recorder", "troubles"},
    "profiling": {"_version", "batches", "counting", "formulas", "measuring", "reporting"},
    "trackers": {"reporting"},
    "runs": {"reporting"},
    "troubles": set(),
    "recorder": {
        "batches",
        "counting",
        "measuring",
        "meter",
        "outlets",
        "profiling",
        "ranks",
        "reporting",
        "trackers",
        "troubles",
    },
    "options": {"batches", "measuring", "meter", "profiling", "troubles"},
    "on_demand": {"counting", "options", "profiling", "reporting", "troubles"},
    "measure": {"batches", "counting", "measuring", "on_demand", "options", "profiling", "reporting"},
    "loop_watch": {"batches", "counting", "meter", "options", "profiling", "ranks", "recorder", "troubles"},
    "hook": {
        "batches",
        "loop_objects",
        "loop_watch",
        "options",
        "ranks",
        "recorder",
        "reporting",
        "trackers",
        "troubles",
    },
    "lightning_step": {"counting"},
    "lightning_watch": {"counting", "lightning_step", "profiling", "recorder"},
    "callback": {
        "lightning_loggers",
        "lightning_metrics",
        "lightning_step",
        "lightning_watch",
        "meter",
        "options",
        "recorder",
        "reporting",
        "trackers",
        "troubles",
    },
    "fvcore": {"counting", "formulas"},
    "testing": {"on_demand", "reporting"},
    "cli": {"_version", "counting", "measure", "on_demand", "reporting", "runs"},
    "__main__": {"cli"},
    "__init__": {"_version", "callback", "counting", "formulas", "fvcore", "hook", "measure", "troubles"},
}


def files_in_picture() -> set[str]:
    """Paths below `flopcallback/`, from the tree under "The rooms": folders, and what is indented below them."""
    tree = PAGE.read_text(encoding="utf-8").partition("## The rooms")[2].split("```")[1].partition("\nintegrations/")[0]
    found, folder = set(), ""
    for indent, names in re.findall(r"^( {2}| {4})(\w+/|\w+\.py(?:  \w+\.py)*)", tree, re.MULTILINE):
        if names.endswith("/"):
            folder = names
        else:
            found.update((folder if len(indent) == 4 else "") + name for name in names.split())
    return found


def files_of_the_core() -> set[str]:
    paths = (path.relative_to(CORE) for path in CORE.rglob("*.py"))
    return {str(path) for path in paths if path.name != "__init__.py" and path.parts[0] != "fvcore"}


def imported_rooms(file: Path) -> set[str]:
    """Rooms that a file imports from, inside of functions and for type checking as well; the public door is `__init__`.

    Raises:
        ValueError: a relative import, which does not say where it leads.
    """
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise ValueError(f"{file}:{node.lineno} imports {'.' * node.level}{node.module or ''}, a relative name")
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms |= {(*module.split("."), "__init__")[1] for module in modules if module.split(".")[0] == "flopcallback"}
    return rooms


def room_of(file: Path) -> str:
    return file.relative_to(CORE).parts[0].removesuffix(".py")


def test_the_picture_shows_every_file_of_the_core_and_no_other():
    assert files_in_picture() - {"__init__.py"} == files_of_the_core()


@pytest.mark.parametrize("file", sorted(CORE.rglob("*.py")), ids=lambda file: str(file.relative_to(CORE)))
def test_a_room_imports_only_what_stands_to_its_left(file):
    room = room_of(file)
    assert imported_rooms(file) - {room} <= MAY_IMPORT[room]


def test_formulas_know_of_counting_only_the_operator_call():
    for file in (CORE / "formulas").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert set(re.findall(r"flopcallback\.counting\.(\w+)", text)) <= {"op_call"}


@pytest.mark.parametrize(
    ("statement", "room"),
    [
        ("from flopcallback.tracing.run import Run", "counting"),
        ("import flopcallback.tracing.run", "counting"),
        ("from flopcallback import flop_count_table", "__init__"),
        ("from flopcallback import fvcore", "__init__"),
        ("import flopcallback", "__init__"),
    ],
)
def test_the_check_of_imports_can_fail(tmp_path, statement, room):
    file = tmp_path / "table.py"
    file.write_text(f"def f():\n    {statement}\n", encoding="utf-8")
    assert imported_rooms(file) - MAY_IMPORT["reporting"] == {room}


def test_a_relative_import_is_no_way_around_the_check(tmp_path):
    file = tmp_path / "table.py"
    file.write_text("from ..fvcore import flop_count_table\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"table\.py:1 imports \.\.fvcore"):
        imported_rooms(file)
