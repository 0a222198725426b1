"""Which of the zoo is visited: another slice each day, or with `--zoo SEED` all of it, drawn anew."""

from __future__ import annotations

import os
import zlib

import pytest

pytest.register_assert_rewrite("zoo_checks")

MODES = ("train", "eval", "no-grad", "inference", "autocast")
ONE_IN = 4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `name, mode, seed` runs for every name in its module's `ZOO`.

    Without `--zoo`, a quarter of the names, each in one mode: the checksum of the name and the day say which, nobody
    chooses. In four days all names have had their turn, and in twenty each in every mode.
    """
    if not {"name", "mode", "seed"} <= set(metafunc.fixturenames):
        return
    names, seed = metafunc.module.ZOO, metafunc.config.getoption("--zoo")
    if seed is not None:
        cases = [(name, mode, seed) for name in names for mode in MODES]
    else:
        turns, shift = divmod(int(os.environ["ZOO_DAY"]), ONE_IN)
        marks = {name: zlib.crc32(name.encode()) for name in names}
        of_today = {name: mark for name, mark in marks.items() if (mark + shift) % ONE_IN == 0}
        cases = [(name, MODES[(mark // ONE_IN + turns) % len(MODES)], 0) for name, mark in of_today.items()]
    metafunc.parametrize(("name", "mode", "seed"), cases, ids=lambda value: str(value))
