"""What an installed flopcallback offers to tools: its version, its types, its trackers."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path

import pytest

import flopcallback

TRACKERS = metadata.entry_points(group="flopcallback.trackers")
READERS = metadata.entry_points(group="flopcallback.runs")

ROOT = Path(__file__).parents[1]
SOURCES = [ROOT / "flopcallback", *sorted((ROOT / "integrations").glob("flopcallback_*"))]

IMPORT_ALL = """
import importlib, json, pkgutil
import flopcallback

missing = {}
for found in pkgutil.walk_packages(flopcallback.__path__, "flopcallback."):
    try:
        importlib.import_module(found.name)
    except ImportError as error:
        missing[found.name] = error.name
print(json.dumps(missing))
"""


def test_the_installed_version_is_the_one_that_the_package_names():
    assert metadata.version("flopcallback") == flopcallback.__version__


def test_type_checkers_are_told_that_the_package_is_typed():
    assert resources.files("flopcallback").joinpath("py.typed").is_file()


def files_below(folder):
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in paths if "__pycache__" not in path.parts}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_every_file_of_the_source_is_installed(source):
    """Of a wheel this says something, and of an editable installation nothing."""
    spec = find_spec(source.name)  # not imported: what it is for may not be there
    assert spec is not None
    (folder,) = spec.submodule_search_locations
    installed = files_below(Path(folder))
    assert len(installed) > 1
    assert installed == files_below(source)


def test_every_module_can_be_imported_with_what_is_required_but_for_those_of_lightning():
    """Where all that is optional is installed, nothing is missing."""
    ran = subprocess.run([sys.executable, "-I", "-c", IMPORT_ALL], capture_output=True, text=True, check=True)
    assert set(json.loads(ran.stdout).values()) == (set() if find_spec("lightning") else {"lightning"})


def test_writers_of_both_tensorboard_packages_find_a_tracker():
    assert {"tensorboard", "tensorboardX"} <= TRACKERS.names


@pytest.mark.tensorboard
@pytest.mark.parametrize("name", sorted(TRACKERS.names))
def test_a_tracker_that_is_announced_can_be_loaded(name):
    tracker = TRACKERS[name].load()
    assert all(callable(getattr(tracker, method)) for method in ("log_scalars", "log_profile", "close"))


def test_the_trackers_that_are_written_to_are_read_back_too():
    assert {"mlflow", "tensorboard", "wandb"} == READERS.names <= TRACKERS.names


@pytest.mark.parametrize("name", sorted(READERS.names))
def test_a_reader_is_loaded_without_its_tracker_and_leaves_alone_what_is_not_its_own(name, tmp_path):
    (tmp_path / "notes.txt").write_text("no run")
    assert list(READERS[name].load()(str(tmp_path))) == []
