"""`docs/architecture.md` shows every file of the core, and import-linter holds the direction of imports."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "flopcallback"
PAGE = ROOT / "docs" / "architecture.md"


def files_in_picture() -> set[str]:
    """Paths below `flopcallback/`, from the tree under "The rooms": folders, and what is indented below them."""
    tree = PAGE.read_text(encoding="utf-8").partition("## The rooms")[2].split("```")[1].partition("\nintegrations/")[0]
    found: set[str] = set()
    folders: list[str] = []
    for indent, names in re.findall(r"^((?:  )+)(\w+/|\w+\.py(?:  \w+\.py)*)", tree, re.MULTILINE):
        del folders[len(indent) // 2 - 1 :]
        if names.endswith("/"):
            folders.append(names)
        else:
            found.update("".join(folders) + name for name in names.split())
    return found


def files_of_the_core() -> set[str]:
    paths = (path.relative_to(CORE) for path in CORE.rglob("*.py"))
    return {path.as_posix() for path in paths if path.name != "__init__.py" and path.parts[0] != "fvcore"}


def test_the_picture_shows_every_file_of_the_core_and_no_other():
    assert files_in_picture() - {"__init__.py"} == files_of_the_core()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "statement", "broken"),
    [
        ("_version.py", "", ""),
        ("formulas/cost.py", "import flopcallback.training.meter", "formulas is not allowed to import"),
        ("modules/names.py", "from flopcallback.profile import rows", "modules is not allowed to import"),
        (
            "profile/rows.py",
            "import typing\nif typing.TYPE_CHECKING:\n    from flopcallback.profile.model_profile import ModelProfile",
            "No cycles are allowed in flopcallback.profile",
        ),
    ],
)
def test_import_linter_sees_an_arrow_that_runs_back_up(tmp_path, file, statement, broken):
    pytest.importorskip("importlinter", reason="the core's own environment has no linters")
    shutil.copytree(CORE, tmp_path / "flopcallback")
    target = tmp_path / "flopcallback" / file
    shutil.copytree(ROOT / "integrations", tmp_path / "integrations")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    target.write_text(target.read_text(encoding="utf-8") + f"\n{statement}\n", encoding="utf-8")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c(['--no-cache'])"]
    env = {"PYTHONPATH": f"{tmp_path}:{tmp_path / 'integrations'}", "COLUMNS": "200"}
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (ran.returncode == 0) == (not broken), ran.stdout
    assert broken in ran.stdout
