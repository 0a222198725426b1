"""The command itself: as a console script and as `python -m flopcallback`, its help, version and completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import forked
import pytest

import flopcallback as package

SCRIPT = str(Path(sys.executable).with_name("flopcallback"))
MODULE = (sys.executable, "-m", "flopcallback")


def run(folder, *command):
    # The environment as Python knows it: readline adds the terminal's size to the one that a process hands on.
    environment = dict(os.environ)
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", check=False
    )


@pytest.mark.slow
def test_the_script_finds_models_in_the_working_directory(folder):
    ran = run(folder, SCRIPT, "count", "some_net:make", "--input", "2,3", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["forward_flops"] == 2 * (2 * (3 * 5 + 5 * 7))


@pytest.mark.slow
def test_so_does_the_module_and_what_it_prints_to_a_file_is_wide_enough(folder, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    ran = run(folder, *MODULE, "count", "some_net:make", "--input", "2,3")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert any(line.startswith("forward: 200 FLOPs") and line.endswith("; 100 macs") for line in lines)


@pytest.mark.slow
def test_exit_codes_reach_the_shell(folder, flopcallback):
    for width, name in ((5, "a.json"), (11, "b.json")):
        flopcallback("count", "some_net:make", "--arg", f"width={width}", "--input", "2,3", "-o", name)
    assert run(folder, *MODULE, "diff", "a.json", "b.json", "--max-increase", "2%").returncode == 1


def test_the_version_is_the_packages(flopcallback):
    assert flopcallback("--version").stdout == f"flopcallback {package.__version__}\n"


def test_the_installed_script_is_this_command():
    (script,) = metadata.entry_points(group="console_scripts", name="flopcallback")
    assert script.value == "flopcallback.cli.app:main"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("count", "diff", "compare")),
        (("count",), ("--input", "--verify", "--device")),
        (("diff",), ("--max-increase",)),
    ],
)
def test_help_names_commands_and_options(flopcallback, arguments, words):
    result = flopcallback(*arguments, "--help")
    assert result.exit_code == 0
    assert all(word in result.stdout for word in words)


def test_help_says_what_the_exit_codes_mean(flopcallback):
    assert "Exit codes: 0 fine, 1 a limit or a check failed, 2 it could not be done." in " ".join(
        flopcallback("--help").stdout.split()
    )


def test_an_unknown_command_is_exit_code_2(flopcallback):
    result = flopcallback("cuont")
    assert result.exit_code == 2
    assert "cuont" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "place", "completed"),
    [
        ("flopcallback count --ver", 2, ["--verify", "--verify-with"]),
        ("flopcallback count --eng", 2, ["--engine"]),
        ("flopcallback count net:Net --engine d", 4, ["dispatch"]),
    ],
)
def test_a_shell_can_complete_the_command(folder, typed, place, completed):
    asked = {"_FLOPCALLBACK_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(place)}
    assert forked.run(Path(SCRIPT), folder=folder, **asked).stdout.split() == completed
