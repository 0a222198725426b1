"""Whether another process of this machine lives."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from flopcallback.training.processes import PROC, has_died, identity

pytestmark = pytest.mark.skipif(not PROC.is_dir(), reason="the system does not say")


SCRIPT = """
import json, signal

from flopcallback.training.processes import identity

print(json.dumps(identity()), flush=True)
signal.pause()
"""


def test_a_process_has_died_from_the_moment_on_that_it_is_killed():
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as child:
        other = json.loads(child.stdout.readline())
        assert not has_died(other)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # nobody has asked yet: its number is still taken
        assert has_died(other)
    assert has_died(other)


def test_a_number_that_another_process_has_by_now_does_not_count():
    *place, begin = identity()
    assert not has_died([*place, begin])
    assert has_died([*place, str(int(begin) + 1)])


@pytest.mark.parametrize("part", [0, 1], ids=["boot", "space"])
def test_of_other_machines_and_containers_nothing_is_known(part):
    other = identity()
    other[2] = str(2**22 + 1)  # a number that no process has
    assert has_died(other)
    other[part] = "another"
    assert not has_died(other)
    assert not has_died([])
