"""What an installed flopcallback offers to tools: its version, its types, its trackers."""

from __future__ import annotations

from importlib import metadata, resources

import pytest

import flopcallback

TRACKERS = metadata.entry_points(group="flopcallback.trackers")


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
