"""Which of the zoo is visited: a slice that is always the same, or with `--zoo SEED` all of it, drawn anew."""

from __future__ import annotations

import zlib

import pytest

pytest.register_assert_rewrite("zoo_checks")

MODES = ("train", "eval", "no-grad", "inference", "autocast")
ONE_IN = 4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `name, mode, seed` runs for every name in its module's `ZOO`.

    Without `--zoo`, a quarter of the names, each in one mode: the checksum of the name says which, nobody chooses.
    """
    if not {"name", "mode", "seed"} <= set(metafunc.fixturenames):
        return
    names, seed = metafunc.module.ZOO, metafunc.config.getoption("--zoo")
    if seed is not None:
        cases = [(name, mode, seed) for name in names for mode in MODES]
    else:
        marks = {name: zlib.crc32(name.encode()) for name in names}
        cases = [(name, MODES[mark // ONE_IN % 5], 0) for name, mark in marks.items() if mark % ONE_IN == 0]
    metafunc.parametrize(("name", "mode", "seed"), cases, ids=lambda value: str(value))
