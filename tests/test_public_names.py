"""`flopcallback.__all__` is the list of public names, and keeps to it."""

from __future__ import annotations

from types import ModuleType

import pytest

import flopcallback


def test_all_names_nothing_twice():
    assert len(flopcallback.__all__) == len(set(flopcallback.__all__))


def test_what_the_package_binds_under_a_public_name_is_in_all():
    bound = {
        name
        for name, value in vars(flopcallback).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name != "annotations"
    }
    assert bound <= set(flopcallback.__all__)


@pytest.mark.lightning
@pytest.mark.parametrize("name", [name for name in flopcallback.__all__ if name != "__version__"])
def test_each_public_name_can_be_had_and_explains_itself(name):
    assert getattr(flopcallback, name).__doc__
