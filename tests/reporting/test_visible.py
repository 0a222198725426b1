"""Names with control characters, in everything that a terminal may show; names that a spreadsheet would run."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from flopcallback.profile.diff import diff_profiles
from flopcallback.profile.verdict import Difference, Verdict
from flopcallback.reporting import (
    ModelProfile,
    ModuleRow,
    OperatorRow,
    markdown_modules,
    markdown_operators,
    markdown_top,
    plain_table,
    rich_text,
)
from flopcallback.reporting.comparison import compare_runs
from flopcallback.reporting.text.comparison_table import comparison_csv, rich_comparison
from flopcallback.reporting.text.diff_table import diff_text, markdown_diff
from flopcallback.reporting.units import one_line, visible, visible_json
from flopcallback.runs.record import COMPUTE, RunRecord

BAD = "\x1b[31mred\x07\x9b2J\x7f\u202eabc\u2066\ud800"
SHOWN = r"\x1b[31mred\x07\x9b2J\x7f\u202eabc\u2066\ud800"

OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What none of these texts may have: all of it is obeyed by some terminal, or cannot be written."""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("很长 – ﷽ é 👍", "很长 – ﷽ é 👍"),
        (BAD, SHOWN),
        ("two\nlines", "two\nlines"),
        ("a\tb\rc\x85", r"a\x09b\x0dc\x85"),
        ("\u061c\u200e\u200f\u2028\u2029\u202a\u2069", r"\u061c\u200e\u200f\u2028\u2029\u202a\u2069"),
    ],
)
def test_control_characters_are_shown_as_escapes(text, shown):
    assert visible(text) == shown


def test_in_a_cell_lines_are_joined():
    assert one_line("two\nlines \x1b[2J") == r"two lines \x1b[2J"


@given(st.dictionaries(st.text(), st.text()))
def test_json_says_the_same_with_its_own_escapes(content):
    text = visible_json(json.dumps(content, indent=1, ensure_ascii=False))
    assert not OBEYED.search(text)
    assert json.loads(text) == content


def profile(flops=7):
    rows = (
        ModuleRow("", None, 0, BAD, 1, flops=flops, macs=2 * flops),
        ModuleRow(BAD, "", 1, BAD, 1, flops=flops, own_flops=flops, macs=2 * flops, output_shape=BAD, note=BAD),
    )
    texts = ("flops.engine", "flops.engine_reason", "flops.device", "flops.dtype", "flops.version", "flops.peak_source")
    return ModelProfile(
        BAD,
        modules=rows,
        operators=(OperatorRow(BAD, 1, flops, BAD), OperatorRow(f"{BAD} too", 1, 0, status="unknown")),
        config={"flops.peak_tflops": 1.0, **dict.fromkeys(texts, BAD)},
        forward_flops=flops,
        unknown={f"{BAD} too": BAD},
        step_note=BAD,
        verdict=Verdict((Difference(BAD, BAD, 7, 5),), BAD),
    )


def tables():
    before, after = profile(), dataclasses.replace(profile(11), name=f"{BAD} too", phase="train")
    difference = diff_profiles(before, after)
    yield from (render(before) for render in (plain_table, markdown_modules, markdown_top, markdown_operators))
    yield from (rich_text(before, width=width) for width in (60, 100, 1000))
    yield from (diff_text(difference), markdown_diff(difference))
    runs = [
        RunRecord(f"{BAD} {batch}", BAD, {COMPUTE: 7, f"{BAD}/loss": 0.5}, config={"flops.dtype": BAD})
        for batch in (1, 2)
    ]
    yield text_of(rich_comparison(compare_runs(runs, metric=f"{BAD}/loss")))


def text_of(table):
    from rich.console import Console

    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_no_table_has_a_control_character_of_a_name():
    for text in tables():
        assert not OBEYED.search(text), repr(text)
        assert r"\x1b[31mred" in text.replace("\\\\", "\\").replace("\\[", "["), text


def test_columns_are_as_wide_as_what_they_show():
    table = plain_table(profile())
    first, second = (line for line in table.splitlines() if " 7  100.0 %" in line)
    assert first.index("100.0 %") == second.index("100.0 %")
    runs = [RunRecord(BAD, "a", {COMPUTE: 7}), RunRecord("net", "b", {COMPUTE: 5})]
    text = text_of(rich_comparison(compare_runs(runs)))
    assert len({cell_len(line.rstrip()) for line in text.splitlines()[2:4]}) == 1


# --- Spreadsheets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\n=1", "＝1", "＋1", "－1", "＠1", '="a","b"']
)
def test_no_cell_of_the_csv_begins_like_a_formula(name):
    run = RunRecord(name, name, {COMPUTE: 7, f"{name}/loss": -0.5})
    text = comparison_csv(compare_runs([run], metric=f"{name}/loss"))
    head, row = csv.reader(io.StringIO(text, newline=""))
    assert (row[0], row[1]) == (f"'{name}", f"'{name}")
    assert head[-3] == f"'{name}/loss"
    # A number is one, whatever it begins with.
    assert row[-3] == "-0.5"
    assert row[head.index(COMPUTE)] == "7"


@pytest.mark.parametrize(("name", "shown"), [("\t=1", r"\x09=1"), ("\r=1", r"\x0d=1"), (BAD, SHOWN)])
def test_no_control_character_reaches_the_csv(name, shown):
    text = comparison_csv(compare_runs([RunRecord(name, name, {COMPUTE: 7})]))
    _, row = csv.reader(io.StringIO(text, newline=""))
    assert row[:2] == [shown, shown]
    assert text.encode()


def test_other_names_stand_in_the_csv_as_they_are():
    text = comparison_csv(compare_runs([RunRecord("a=b, 'c' - d", "e+f", {COMPUTE: 7})]))
    assert next(csv.reader(io.StringIO(text.splitlines()[1])))[:2] == ["a=b, 'c' - d", "e+f"]
