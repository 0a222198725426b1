"""`flopcallback.__all__` is the list of public names, and keeps to it."""

from __future__ import annotations

import subprocess
import sys
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


@pytest.mark.parametrize("name", [name for name in flopcallback.__all__ if name != "__version__"])
def test_each_public_name_can_be_had_and_explains_itself(name):
    assert getattr(flopcallback, name).__doc__


def test_tab_completion_offers_the_callback_beside_the_public_names():
    assert {"FlopCallback", *flopcallback.__all__} <= set(dir(flopcallback))


def test_tab_completion_imports_no_lightning():
    code = "import sys, flopcallback; dir(flopcallback); print('flopcallback.lightning.callback' in sys.modules)"
    ran = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


@pytest.mark.lightning
def test_the_callback_can_be_had_and_explains_itself():
    assert flopcallback.FlopCallback.__doc__
