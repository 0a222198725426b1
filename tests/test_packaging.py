"""What an installed flopcallback offers to tools: its version, its types, its trackers."""

from __future__ import annotations

from importlib import metadata, resources

import pytest

import flopcallback

TRACKERS = metadata.entry_points(group="flopcallback.trackers")
READERS = metadata.entry_points(group="flopcallback.runs")


def test_the_installed_version_is_the_one_that_the_package_names():
    assert metadata.version("flopcallback") == flopcallback.__version__


def test_type_checkers_are_told_that_the_package_is_typed():
    assert resources.files("flopcallback").joinpath("py.typed").is_file()


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
