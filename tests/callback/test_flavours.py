"""Which Lightning the callback belongs to, and what it says where there is none."""

from __future__ import annotations

import pickle
import subprocess
import sys

import forked
import pytest


@pytest.fixture
def output_of(tmp_path):
    """What code prints, in a process of its own: anew, or forked where `lightning.pytorch` alone may be imported."""

    def run(code, *, anew=False):
        file = tmp_path / "code.py"
        file.write_text(code, encoding="utf-8")
        if anew:
            ran = subprocess.run([sys.executable, file], capture_output=True, text=True, check=False)
        else:
            ran = forked.run(file, folder=tmp_path)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    return run


@pytest.mark.slow
@pytest.mark.parametrize("found", ["None", "types.ModuleType('a folder of that name')"])
def test_without_lightning_the_error_names_the_command_that_installs_it(output_of, found):
    code = f"""
import sys, types
sys.modules["lightning"] = sys.modules["lightning.pytorch"] = None
sys.modules["pytorch_lightning"] = {found}
import flopcallback
try:
    flopcallback.FlopCallback
except ModuleNotFoundError as error:
    print(error)
"""
    assert output_of(code) == (
        "FlopCallback needs Lightning, under either of its names: pip install 'flopcallback[lightning]', "
        "or pip install pytorch-lightning"
    )


@pytest.mark.lightning
@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["lightning.pytorch", "pytorch_lightning"])
def test_it_is_a_callback_of_the_flavour_that_is_in_use(output_of, flavour):
    code = f"""
import {flavour}, sys
other = {{"lightning.pytorch", "pytorch_lightning"}} - {{"{flavour}"}}
from flopcallback import FlopCallback
print(issubclass(FlopCallback, {flavour}.Callback), other.isdisjoint(sys.modules))
"""
    assert output_of(code, anew=flavour == "pytorch_lightning") == "True True"


@pytest.mark.lightning
def test_it_can_be_pickled_as_strategies_that_spawn_processes_need():
    from flopcallback import FlopCallback

    assert dict(pickle.loads(pickle.dumps(FlopCallback())).profiles) == {}
