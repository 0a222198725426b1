"""A column is one row of `profile/columns.py`: every table has it, and nothing else has to be edited."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from flopcallback.profile.columns import COLUMNS, OPERATOR_COLUMNS, counts
from flopcallback.profile.diff import diff_profiles
from flopcallback.profile.rows import ModuleRow
from flopcallback.reporting.page.page_table import table_data
from flopcallback.reporting.text.diff_table import diff_record, diff_text, markdown_diff
from flopcallback.reporting.text.markdown import markdown_modules
from flopcallback.reporting.text.table import plain_table, rich_text


@pytest.fixture
def net_of(model_of, layer):
    """Three alike layers, which fold, and one of 13; each has so many parameters that do not train."""

    def made(frozen):
        def row(name):
            return replace(layer(name, "Linear", params=11 + frozen, flops=7), params_trainable=11)

        head = layer("head", "Linear", params=13, flops=5)
        return model_of("Net", [row("0"), row("1"), row("2"), head])

    return made


def cells(text, start):
    return next(line for line in text.splitlines() if line.startswith(start)).split()


def test_a_new_column_is_in_every_table(net_of, frozen_column):
    profile = net_of(17)
    assert [record["params_frozen"] for record in profile.module_records()] == [3 * 17, 17, 17, 17, 0]
    for text in (plain_table(profile), rich_text(profile)):
        assert "frozen" in text.splitlines()[2]
        assert str(3 * 17) in cells(text, "├─ 0 … 2")
    head, _, *rows = [line.split("|") for line in markdown_modules(profile).splitlines() if line.startswith("|")]
    place = [cell.strip() for cell in head].index("frozen")
    assert [row[place].strip() for row in rows] == [str(3 * 17), str(3 * 17), "0"]  # the model, the fold, the head
    column = next(each for each in table_data(profile)["columns"] if each["key"] == "params_frozen")
    assert (column["heading"], column["tip"]) == ("frozen", "parameters that do not train")
    # The last one is the fold of the first three.
    texts = [column["cells"][place][0] for place in column["of"]]
    assert texts == [str(3 * 17), "17", "17", "17", "0", str(3 * 17)]


def test_a_new_column_is_in_a_diff(net_of, frozen_column):
    diff = diff_profiles(net_of(17), net_of(19))
    (change,) = diff_record(diff)["changes"]
    assert (change["before"]["params_frozen"], change["after"]["params_frozen"]) == (3 * 17, 3 * 19)
    for text in (diff_text(diff), markdown_diff(diff)):
        assert "frozen" in text
        assert text.count(f"+{3 * (19 - 17)}") > 1  # parameters, and those that do not train


def test_own_operators_have_no_figure_that_is_not_said_to_be_known_of_them(model_of, layer, container, frozen_column):
    inside = [layer("attn.q", "Linear", params=3, flops=5)]
    profile = model_of("Net", [container("attn", "Attention", inside, own_flops=7), *inside])
    head, *_ = [line.split() for line in plain_table(profile).splitlines() if "FLOPs" in line][1:]
    assert head == ["module", "type", "calls", "params", "%", "FLOPs", "%", "frozen"]
    own = cells(plain_table(profile), "   └─ (own operators)")
    assert own[:6] == ["└─", "(own", "operators)", "7", "58.3", "%"]  # 7 of 7 + 5
    assert own[7:] == []  # behind the bar


def test_every_count_of_a_row_is_added_up():
    assert set(counts()) == {each.name for each in fields(ModuleRow) if each.type == "int"} - {"depth"}


def test_every_figure_of_a_row_is_in_its_record(net_of):
    known = {column.key for column in COLUMNS} | {"step", "time"}  # of which other columns are parts
    assert {each.name for each in fields(ModuleRow)} <= known


@pytest.mark.parametrize("table", [COLUMNS, OPERATOR_COLUMNS], ids=["modules", "operators"])
def test_a_column_has_one_row(table):
    keys = [column.key for column in table]
    assert len(keys) == len(set(keys))
