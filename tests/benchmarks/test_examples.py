"""The examples hold what they print."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


PAGE = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
INTRODUCTION, *CHAPTERS = re.split(r"^(?=## )", PAGE, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def print_models():
    return runpy.run_path(str(ROOT / "examples" / "print_models.py"))


@pytest.mark.models
def test_the_page_of_printed_models_has_a_chapter_for_each(print_models):
    assert print_models["INTRODUCTION"] + "\n" == INTRODUCTION
    assert [f"## {name}" for name in print_models["TITLES"]] == [chapter.splitlines()[0] for chapter in CHAPTERS]


@pytest.mark.models
@pytest.mark.parametrize("number", range(len(CHAPTERS)))
def test_a_chapter_of_printed_models_is_up_to_date(print_models, number):
    name = list(print_models["TITLES"])[number]
    assert print_models["printed"](name) == CHAPTERS[number].rstrip("\n") + "\n"
    assert PAGE.endswith("```\n")


SMALL = ["--layers", "2", "--width", "66", "--heads", "11", "--key-heads", "1", "--hidden", "53", "--vocabulary", "97"]


@pytest.mark.models
def test_a_llama_on_meta_is_what_it_is_on_paper(monkeypatch, capsys):
    script = runpy.run_path(str(ROOT / "examples" / "count_llama.py"))
    monkeypatch.setattr(sys, "argv", ["count_llama.py", "--batch", "2", "--tokens", "11", *SMALL])
    with pytest.raises(SystemExit) as ended:
        script["main"]()
    assert ended.value.code == 0
    keys = 66 // 11 * 1
    weights = 2 * 66 * 66 + 2 * 66 * keys + 3 * 66 * 53
    printed = capsys.readouterr().out
    assert f"parameters: {2 * (weights + 2 * 66) + 66 + 2 * 97 * 66:,}; on paper" in printed
    assert "multiply-adds by trace" in printed
    assert "multiply-adds by dispatch" in printed
    macs = 2 * (2 * (11 * weights + 2 * 11 * 11 * 66) + 11 * 66 * 97)
    assert f"FLOPs: {2 * macs:,}; macs, as in the table: {macs:,}\n" in printed


@pytest.mark.models
def test_the_check_against_paper_can_fail(monkeypatch, capsys):
    script = runpy.run_path(str(ROOT / "examples" / "count_llama.py"))
    monkeypatch.setattr(sys, "argv", ["count_llama.py", "--tokens", "11", *SMALL])
    monkeypatch.setitem(script["main"].__globals__, "multiply_adds_on_paper", lambda options: 1)
    with pytest.raises(SystemExit) as ended:
        script["main"]()
    assert ended.value.code == 1
    assert "on paper 1: DIFFERENT" in capsys.readouterr().out
