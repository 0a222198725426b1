from __future__ import annotations

import dataclasses
import re

import pytest

from flopcallback.reporting import (
    ModelProfile,
    OperatorRow,
    escaped,
    markdown_modules,
    markdown_operators,
    markdown_top,
)


def table(text):
    """The cells of the table, by row; a bar with a backslash in front is no border."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_row_has_as_many_cells_as_the_heading(lenet, measured, decoder):
    for profile in (lenet, measured(decoder())):
        for text in (markdown_modules(profile), markdown_top(profile), markdown_operators(profile)):
            assert len({len(row) for row in table(text)}) == 1


def test_names_cannot_break_a_table(model_of, layer):
    rows = [layer("a|b", "Odd|Type", flops=5), layer("__init__`*x*`", "<b>Bold</b>", flops=7)]
    text = markdown_modules(model_of("Net", rows))
    assert len({len(row) for row in table(text)}) == 1
    assert "a\\|b" in text
    assert "\\_\\_init\\_\\_\\`\\*x\\*\\`" in text
    assert "<b>" not in text


def test_names_cannot_smuggle_a_line_break(model_of, layer):
    assert escaped("a\nb") == "a b"
    assert len(table(markdown_modules(model_of("Net", [layer("a\nb", "Linear", flops=5)])))) == 4


def test_the_top_lists_innermost_modules_by_flops_and_repeats_no_flop(lenet):
    heads, _, *rows = table(markdown_top(lenet))
    assert heads == ["module", "FLOPs", "%"]
    assert [row[0] for row in rows] == ["conv2: Conv2d", "fc1: Linear", "conv1: Conv2d", "fc2: Linear", "fc3: Linear"]
    assert sum(float(row[2].removesuffix("\N{NO-BREAK SPACE}%")) for row in rows) == pytest.approx(100, abs=0.3)


def test_long_names_of_the_top_keep_their_ends_and_leave_out_the_type(model_of, layer):
    path = ".".join(["encoder"] * 6 + ["7", "depthwise_conv"])
    deep = dataclasses.replace(layer(path, "Conv2d", flops=7), parent="")
    rows = [deep, layer("head", "Linear", flops=5), layer("x" * 48, "Conv2d", flops=3)]
    names = [row[0] for row in table(markdown_top(model_of("Net", rows)))[2:]]
    assert names == ["…" + path[8:].replace("_", "\\_"), "head: Linear", "x" * 48 + ": Conv2d"]


def test_the_top_is_as_long_as_asked_for(flat):
    assert len(table(markdown_top(flat(2000), limit=20))) == 2 + 20


def test_a_run_of_identical_modules_is_explained_where_there_is_one(decoder, lenet):
    assert "- 0 … 23: identical modules, added up" in markdown_top(decoder())
    assert "identical" not in markdown_top(lenet)


def test_all_modules_stand_under_their_whole_names(decoder):
    names = [row[0] for row in table(markdown_modules(decoder(layers=2)))]
    assert "model.layers.1.mlp.down\\_proj" in names
    assert names[2] == "Llama"


def test_operators_show_exact_flops_and_unknown_ones_their_reason():
    profile = ModelProfile(
        "Net",
        operators=(OperatorRow("my::mix", 2, 0, status="unknown"), OperatorRow("aten::mm", 3, 2**70, "matmul")),
        forward_flops=2**70,
        unknown={"my::mix": "no formula | yet"},
    )
    rows = table(markdown_operators(profile))[2:]
    assert rows[0] == ["aten::mm", "matmul", "3", f"{2**70:,}", "100.0\N{NO-BREAK SPACE}%", "counted"]
    assert rows[1] == ["my::mix", "", "2", "?", "?", "unknown: no formula \\| yet"]


def test_figures_stand_to_the_right(lenet):
    rule = table(markdown_modules(lenet))[1]
    assert rule[:4] == ["---", "---", "---:", "---:"]


@pytest.mark.parametrize("render", [markdown_modules, markdown_top])
def test_nothing_to_show_is_a_headline_and_a_footer(render):
    text = render(ModelProfile("Nothing"))
    assert text.startswith("**Nothing, one call: 0 FLOPs**")
    assert table(text) == []
    assert markdown_operators(ModelProfile("Nothing")) == "no operators"
