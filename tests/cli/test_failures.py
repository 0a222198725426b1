"""How the command ends, whatever happens: which exit code, and what is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flopcallback.cli import compare as compare_
from flopcallback.trackers import LocalTracker

SCRIPT = str(Path(sys.executable).with_name("flopcallback"))
COMPUTE = "compute/flops_total"


def train(folder, name="net", flops=7):
    LocalTracker(folder / name).log_scalars({COMPUTE: flops, "val/loss": 0.5}, 1)
    return folder / name


@pytest.mark.parametrize(
    "error", [RuntimeError("so\nand so"), MemoryError(), RecursionError("too deep"), SystemExit(1)]
)
def test_a_fault_of_ours_is_one_sentence_and_exit_code_2(flopcallback, folder, monkeypatch, error):
    def fail(*_):
        raise error

    train(folder)
    monkeypatch.delenv("FLOPCALLBACK_TRACEBACK", raising=False)
    monkeypatch.setattr(compare_, "rich_comparison", fail)
    result = flopcallback("compare", "net")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: flopcallback itself failed, {type(error).__name__}")
    assert line.endswith("FLOPCALLBACK_TRACEBACK=1 shows.")


def test_an_environment_variable_shows_where_it_failed(flopcallback, folder, monkeypatch):
    def fail_here(*_):
        raise RuntimeError("so")

    train(folder)
    monkeypatch.setenv("FLOPCALLBACK_TRACEBACK", "1")
    monkeypatch.setattr(compare_, "rich_comparison", fail_here)
    result = flopcallback("compare", "net")
    assert result.exit_code == 2
    assert "in fail_here" in result.stderr
    assert "Error: flopcallback itself failed, RuntimeError: so" in result.stderr


def test_what_the_system_refuses_is_said_as_it_says_it(flopcallback, folder, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    train(folder)
    monkeypatch.setattr(compare_, "rich_comparison", fail)
    result = flopcallback("compare", "net")
    assert result.exit_code == 2
    assert result.stderr == "Error: OSError: [Errno 28] No space left on device\n"


def test_ctrl_c_is_exit_code_130_and_silent(flopcallback, folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    train(folder)
    monkeypatch.setattr(compare_, "rich_comparison", interrupt)
    result = flopcallback("compare", "net")
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.parametrize(
    "arguments", [("no\x1b[31msuch",), ("compare", "no\x1b[31msuch"), ("compare", "--no\x1b[31msuch")]
)
def test_what_stands_on_the_command_line_commands_no_terminal(flopcallback, arguments):
    result = flopcallback(*arguments)
    assert result.exit_code == 2
    assert r"no\x1b[31msuch" in result.stderr
    assert "\x1b" not in result.output


# --- As a process -----------------------------------------------------------------------------------------------------


def closed_pipe():
    """The end of a pipe that is written to, where nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", "net"),
        ("compare", "--help"),
        ("--version",),
        ("count", "some_net:Net", "-i", "2,3"),
        ("compare", "nowhere"),
        ("compare", "--no-such-option"),
    ],
)
def test_a_pipe_that_nobody_reads_is_exit_code_141(folder, arguments):
    train(folder)
    # Errors go there too.
    with closed_pipe() as pipe:
        ran = subprocess.run([SCRIPT, *arguments], cwd=folder, stdout=pipe, stderr=pipe)
    assert ran.returncode == 141


@pytest.mark.slow
def test_nothing_is_said_of_a_pipe_that_nobody_reads(folder):
    train(folder)
    with closed_pipe() as pipe:
        ran = subprocess.run([SCRIPT, "compare", "net"], cwd=folder, stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert (ran.returncode, ran.stderr) == (141, "")


@pytest.mark.slow
def test_a_full_disk_is_exit_code_2_and_no_traceback(folder):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    train(folder)
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run([SCRIPT, "compare", "net"], cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert "No space left on device" in ran.stderr


@pytest.mark.slow
def test_ctrl_c_while_the_model_runs_is_exit_code_130_and_no_traceback(folder):
    (folder / "endless.py").write_text(
        "import pathlib, time, torch\n"
        "class Endless(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        pathlib.Path('running').touch()\n"
        "        while True: time.sleep(0.01)\n"
    )
    # A background process of a shell ignores the signal, and so would what it starts.
    process = subprocess.Popen(
        [SCRIPT, "count", "endless:Endless", "--input", "2"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (folder / "running").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors


# --- Names in what is printed -----------------------------------------------------------------------------------------

BAD = "\x1b[31mred\x9b2J\u202e"
SHOWN = r"\x1b[31mred\x9b2J\u202e"


@pytest.fixture
def bad_profiles(folder, flopcallback):
    """Two profiles of a model whose class and modules have control characters in their names."""
    (folder / "bad_net.py").write_text(
        "import torch\n"
        f"name = {BAD!r}\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, width):\n"
        "        super().__init__()\n"
        "        self.add_module(name, torch.nn.Linear(3, width))\n"
        "    def forward(self, x):\n"
        "        return self._modules[name](x)\n"
        "Net.__name__ = name\n"
    )
    for width, file in ((5, "a.json"), (7, "b.json")):
        result = flopcallback("count", "bad_net:Net", "--arg", f"width={width}", "--input", "2,3", "-o", file)
        assert result.exit_code == 0, result.output
        assert SHOWN in result.stdout
        assert not {"\x1b", "\x9b", "\u202e"} & set(result.output)
    sys.modules.pop("bad_net", None)


@pytest.mark.parametrize("form", ["--json", "--markdown", "--rows=9"])
@pytest.mark.usefixtures("bad_profiles")
def test_a_diff_shows_the_control_characters_of_names(flopcallback, form):
    result = flopcallback("diff", "a.json", "b.json", form, "--max-increase", "1%")
    assert result.exit_code == 1
    assert not {"\x1b", "\x9b", "\u202e"} & set(result.output)
    if form == "--json":
        # The same names, in JSON's own escapes.
        assert {change["path"] for change in json.loads(result.stdout)["changes"]} == {BAD}
    else:
        assert SHOWN in result.stdout.replace("\\\\", "\\").replace("\\[", "[")


@pytest.mark.parametrize("form", ["--json", "--markdown", "--html", "--depth=1"])
@pytest.mark.usefixtures("bad_profiles")
def test_a_count_shows_the_control_characters_of_names(flopcallback, form):
    result = flopcallback("count", "bad_net:Net", "--arg", "width=5", "--input", "2,3", form)
    assert result.exit_code == 0, result.output
    assert not {"\x1b", "\x9b", "\u202e"} & set(result.output)
    if form == "--json":
        assert [row["path"] for row in json.loads(result.stdout)["modules"]] == ["", BAD]


def test_a_comparison_and_what_it_says_of_runs_show_the_control_characters_of_names(flopcallback, folder):
    train(folder, f"{BAD} whole")
    train(folder, f"{BAD} broken")
    (folder / f"{BAD} broken" / "flopcallback.json").write_text("{}")
    result = flopcallback("compare", folder, "--csv", f"{BAD}.csv", "--html", "runs.html")
    assert result.exit_code == 0
    assert f"{SHOWN} whole" in result.stdout
    assert f"{SHOWN} broken" in result.stderr
    assert f"Written: {SHOWN}.csv" in result.stderr
    assert not {"\x1b", "\x9b", "\u202e"} & set(result.output)


def test_a_folder_whose_name_is_no_text_is_compared(flopcallback, folder):
    name = os.fsdecode(b"net-\xff")
    try:
        train(folder, name)
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    result = flopcallback("compare", folder, "--csv", "runs.csv", "--html", "runs.html")
    assert result.exit_code == 0, result.output
    assert r"net-\udcff" in result.stdout
    assert r"net-\udcff" in (folder / "runs.csv").read_text()
    assert "net-" in (folder / "runs.html").read_text()
