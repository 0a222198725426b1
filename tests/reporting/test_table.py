from __future__ import annotations

import dataclasses

import pytest

from flopcallback.reporting import ModelProfile, ModuleRow, OperatorRow, plain_table, rich_text
from flopcallback.reporting.units import display_width

RENDERERS = [plain_table, rich_text]


def uncertain(profile):
    """The profile with an operator that nobody counts, somewhere in `fc1`."""
    rows = [dataclasses.replace(row, unknown_calls=3) if row.path in ("", "fc1") else row for row in profile.modules]
    return dataclasses.replace(
        profile,
        modules=tuple(rows),
        operators=(*profile.operators, OperatorRow("mylib::mix", 3, 0, status="unknown")),
        unknown={"mylib::mix": "no formula"},
        config={**profile.config, "flops.is_lower_bound": True},
    )


def line_of(text, word):
    return next(line for line in text.splitlines() if word in line)


@pytest.mark.parametrize("render", RENDERERS)
def test_a_table_names_every_module_with_its_flops_and_share(lenet, render):
    text = render(lenet)
    for module, flops, share in [
        ("conv1", "97.2 k", "17.7 %"),
        ("conv2", "292 k", "53.2 %"),
        ("fc1", "138 k", "25.2 %"),
        ("fc2", "20.2 k", "3.7 %"),
        ("fc3", "1.68 k", "0.3 %"),
    ]:
        assert flops in line_of(text, module)
        assert share in line_of(text, module)


@pytest.mark.parametrize("render", RENDERERS)
def test_a_table_says_convention_engine_and_conditions(lenet, render):
    text = " ".join(render(lenet, **({"width": 200} if render is rich_text else {})).split())
    assert "forward: 549,312 FLOPs, 2 per multiply-add; 274,656 macs" in text
    assert "counted by trace, on cpu, in float32, batch of 1, inputs [[1, 1, 32, 32]]" in text
    assert "nothing unknown" in text


@pytest.mark.parametrize("render", RENDERERS)
def test_a_lower_bound_is_marked_in_headline_rows_and_footer(lenet, render):
    text = render(uncertain(lenet))
    assert "forward: >= 549 kFLOPs" in text.splitlines()[0]
    assert ">= 138 k" in line_of(text, "─ fc1")
    assert ">=" not in line_of(text, "─ fc2")
    assert "forward: >= 549,312 FLOPs" in text
    assert "unknown, so counted as 0: mylib::mix (3 calls: no formula)" in text
    assert "nothing unknown" not in text


@pytest.mark.parametrize("render", RENDERERS)
def test_times_have_columns_once_there_are_some(lenet, measured, render):
    assert "forward ms" not in render(lenet)
    text = render(measured(lenet))
    assert "forward ms" in text
    assert "step 3.50 ms, medians of 20 steps, CPU clock" in text


@pytest.mark.parametrize("render", RENDERERS)
@pytest.mark.parametrize("count", [0, 1, 2000])
def test_a_table_of_any_number_of_modules_is_of_bounded_length(flat, render, count):
    text = render(flat(count), max_rows=30)
    assert text.count("─ ") == min(count, 29)


@pytest.mark.parametrize("render", RENDERERS)
def test_a_profile_without_modules_still_has_headline_and_footer(render):
    text = render(ModelProfile("Nothing"))
    assert text.splitlines()[0] == "Nothing, one call: 0 FLOPs"
    assert "nothing unknown" in text


@pytest.mark.parametrize("render", RENDERERS)
def test_a_line_break_in_a_name_does_not_break_a_row(model_of, layer, render):
    profile = model_of("Net", [dataclasses.replace(layer("a\nb", "Odd\r\nType", flops=5), note="first\nsecond")])
    row = line_of(render(profile, **({"width": 160} if render is rich_text else {})), "a b")
    assert "Odd Type" in row
    assert "(first second)" in row


@pytest.mark.parametrize("render", RENDERERS)
def test_counts_beyond_64_bits_are_exact_in_the_footer(model_of, layer, render):
    profile = model_of("Huge", [layer("fc", "Linear", flops=2**80 + 1)])
    assert f"{2**80 + 1:,} FLOPs" in render(profile)


@pytest.mark.parametrize("render", RENDERERS)
def test_a_time_that_is_not_a_number_is_a_dash(model_of, layer, render):
    profile = model_of("Net", [dataclasses.replace(layer("fc", "Linear", flops=5), forward_ms=float("nan"))])
    assert "–" in line_of(render(profile), "fc")


def test_numbers_of_a_plain_table_end_in_one_column_whatever_the_names(model_of, layer):
    rows = [layer("卷积", "Conv2d", flops=7), layer("ordinary_name", "Linear", flops=12_345_678), layer("e\u0301", "X")]
    text = plain_table(model_of("Net", rows))
    ends = set()
    for word, number in (("卷积", " 7 "), ("ordinary_name", "12.3 M"), ("e\u0301", " 0 ")):
        line = line_of(text, word)
        # The last column before the shares: FLOPs.
        ends.add(display_width(line[: line.rindex(number) + len(number.rstrip())]))
    assert len(ends) == 1


def test_the_tree_is_drawn_with_its_branches(container, layer, model_of):
    inside = [layer("block.a", "Linear", flops=3), layer("block.b", "Linear", flops=5)]
    block = container("block", "Block", inside)
    text = plain_table(model_of("Net", [block, *inside, layer("head", "Linear", flops=7)]))
    assert [line[:10].rstrip() for line in text.splitlines()[4:9]] == [
        "Net",
        "├─ block",
        "│  ├─ a",
        "│  └─ b",
        "└─ head",
    ]


def test_a_fold_says_how_many_of_which_type(decoder):
    assert "24 × DecoderLayer" in line_of(plain_table(decoder()), "0 … 23")


@pytest.mark.parametrize("render", RENDERERS)
def test_what_a_depth_hides_is_said_in_the_row_and_below(decoder, render):
    # Three around the blocks; in each of 24 blocks 11: itself, norm, attention and 4 projections, MLP and 4 inside.
    hidden = 3 + 24 * (3 + 4 + 1 + 4)
    text = render(decoder(), max_depth=1)
    assert f"model [+{hidden}]" in text
    assert f"[+{hidden}]: {hidden} modules inside are not shown" in text


@pytest.mark.parametrize("render", RENDERERS)
def test_a_run_of_identical_modules_is_explained_below(decoder, lenet, render):
    assert "0 … 23: identical modules, added up" in render(decoder())
    assert "identical" not in render(lenet)
    assert "[+" not in render(lenet)


@pytest.mark.parametrize("render", RENDERERS)
def test_notes_that_need_several_lines_are_set_in(lenet, render):
    text = render(lenet, width=80).splitlines()
    assert any(line.startswith("  ") and "flopcallback" in line for line in text[-5:])
    assert max(map(display_width, text)) <= 80


def test_a_note_stands_behind_the_name():
    rows = (ModuleRow("", None, 0, "Net"), ModuleRow("fc", "", 1, "Linear", note="compiled"))
    assert "fc (compiled)" in plain_table(ModelProfile("Net", modules=rows))


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_a_rich_table_keeps_to_its_width_and_to_names_flops_and_times(decoder, measured, width):
    text = rich_text(measured(decoder()), width=width)
    assert max(map(display_width, text.splitlines())) <= width
    assert "FLOPs" in text
    assert "forward ms" in text
    assert "lm_head" in text


def test_eighty_columns_show_both_shares_and_cut_long_names(container, layer, model_of, measured):
    inside = [layer("encoder.a_name_of_forty_characters_and_some_more", "Linear", flops=3)]
    profile = measured(model_of("Net", [container("encoder", "Encoder", inside), *inside]))
    for text in (rich_text(profile, width=80), plain_table(profile, width=80)):
        assert line_of(text, "forward ms").count("%") == 2
        assert "█" in text
        assert "a_name_of_" in text
        assert "and_some_more" not in text
        assert max(map(display_width, text.splitlines())) <= 80


def test_a_column_that_fits_is_whole_to_its_last_character(lenet, measured):
    # 74 columns are what names, FLOPs and times with shares and bars need here.
    widest = max(map(display_width, rich_text(measured(lenet), width=80).splitlines()[2:10]))
    assert "…" not in "".join(rich_text(measured(lenet), width=widest).splitlines()[2:10])


def test_a_column_that_is_too_wide_does_not_keep_later_ones_out(model_of, layer, measured):
    text = rich_text(measured(model_of("Net", [layer("fc", "T" * 32, flops=10_007)])), width=100)
    assert "TTT" not in text
    assert "FLOP/s" in text


def test_a_wide_terminal_shows_bars_types_and_rates(decoder, measured):
    text = rich_text(measured(decoder()), width=160)
    assert "█" in text
    assert "LlamaModel" in text
    assert "FLOP/s" in text


def test_colours_come_only_when_asked_for(lenet):
    assert "\x1b[" not in rich_text(lenet)
    assert "\x1b[" in rich_text(lenet, color_system="standard")


def test_names_are_not_read_as_rich_markup(model_of, layer):
    assert "[bold]x" in rich_text(model_of("Net", [layer("[bold]x", "Linear", flops=5)]))
