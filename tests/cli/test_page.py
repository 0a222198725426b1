"""What `docs/command-line.md` shows is what the commands print.

A block opened with ```console holds commands, `$ ...`, each with its output below, where `…` stands for anything.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def commands(language: str) -> list[tuple[str, str]]:
    """Commands and what is shown below each, block by block."""
    found = []
    for block in blocks(language):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            found.append((command, shown))
    return found


@pytest.fixture
def shell(flopcallback, folder, monkeypatch):
    """Runs a command line of the page; gives what it prints. It knows `flopcallback`, `> FILE` and `echo $?`."""
    (folder / "net.py").write_text(blocks("python")[0], encoding="utf-8")
    (folder / "config.json").write_text(blocks("json")[0], encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "140")
    codes = []

    def run(line):
        words, _, file = line.partition(" > ")
        command, *arguments = shlex.split(words)
        if command == "echo":
            return f"{codes[-1]}\n"
        assert command == "flopcallback"
        result = flopcallback(*arguments)
        codes.append(result.exit_code)
        if not file:
            return result.stdout + result.stderr
        (folder / file).write_text(result.stdout, encoding="utf-8")
        return result.stderr

    return run


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def assert_shown(line: str, printed: str, shown: str) -> None:
    pattern = ".*".join(re.escape(part) for part in "\n".join(lines(shown)).split("…"))
    assert re.fullmatch(pattern, "\n".join(lines(printed)), re.DOTALL), f"$ {line}\n{printed}\nnot as shown:\n{shown}"


def test_commands_print_what_the_page_shows(shell):
    assert len(commands("console")) > 3
    for line, shown in commands("console"):
        assert_shown(line, shell(line), shown)


@pytest.mark.models
def test_so_do_those_on_transformers_models(shell):
    assert commands("console models")
    for line, shown in commands("console models"):
        assert_shown(line, shell(line), shown)


def test_the_check_can_fail():
    assert_shown("x", "one 1.5 ms\n", "one … ms\n")
    with pytest.raises(AssertionError, match="not as shown"):
        assert_shown("x", "two\n", "one\n")
