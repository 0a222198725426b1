"""How FLOPs and time agree, on profiles whose ranks can be worked out on paper."""

from __future__ import annotations

import dataclasses

import pytest

from flopcallback.reporting import (
    LatencySummary,
    ModelProfile,
    ModuleRow,
    footer,
    measured_leaves,
    plain_table,
    rank_correlation,
    slow_for_their_flops,
)


def side_by_side(flops, times, **config):
    """Layers `a`, `b`, ... with these FLOPs and these times in milliseconds."""
    names = "abcdefgh"[: len(flops)]
    rows = [ModuleRow(name, "", 1, "Linear", flops=each, own_flops=each, bytes=4 * each)
            for name, each in zip(names, flops, strict=True)]  # fmt: skip
    top = ModuleRow("", None, 0, "Net", flops=sum(flops))
    profile = ModelProfile("Net", modules=(top, *rows), forward_flops=sum(flops), config=config)
    measured = {name: time for name, time in zip(names, times, strict=True) if time is not None}
    whole = sum(measured.values())
    return profile.with_latency(LatencySummary(whole, whole, 20, "CPU clock"), {"": whole, **measured})


@pytest.mark.parametrize(
    ("flops", "times", "expected"),
    [
        ([2, 3, 5, 7], [1.0, 2.0, 3.0, 4.0], 1),
        ([2, 3, 5, 7], [9.0, 4.0, 3.0, 1.0], -1),
        # Ranks differ by 0, 0, 1, 1: 1 - 6 * (1 + 1) / (4 * (4² - 1)).
        ([2, 3, 5, 7], [1.0, 2.0, 4.0, 3.0], 1 - 6 * 2 / (4 * 15)),
        # Ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3, about their mean 1.5: (2.25 + 0 + 0 + 2.25) / √(4.5 * 5).
        ([2, 5, 5, 7], [1.0, 2.0, 3.0, 4.0], 4.5 / (4.5 * 5) ** 0.5),
    ],
)
def test_the_rank_correlation_is_spearmans(flops, times, expected):
    assert rank_correlation(side_by_side(flops, times)) == pytest.approx(expected)


@pytest.mark.parametrize(("flops", "times"), [([2, 3], [1.0, 2.0]), ([5, 5, 5], [1.0, 2.0, 3.0]), ([], [])])
def test_there_is_no_correlation_of_two_modules_nor_of_modules_that_are_all_alike(flops, times):
    assert rank_correlation(side_by_side(flops, times)) is None


def test_only_the_innermost_modules_that_were_timed_are_compared():
    profile = side_by_side([2, 3, 5], [1.0, None, 3.0])
    assert [row.path for row in measured_leaves(profile)] == ["a", "c"]


def test_what_takes_more_of_the_time_than_of_the_flops_is_listed_the_widest_gap_first():
    # Shares of FLOPs 0.1, 0.2, 0.3, 0.4; of time 0.4, 0.3, 0.2, 0.1.
    profile = side_by_side([1, 2, 3, 4], [4.0, 3.0, 2.0, 1.0])
    assert [row.path for row in slow_for_their_flops(profile)] == ["a", "b"]
    assert [row.path for row in slow_for_their_flops(profile, 1)] == ["a"]


def test_identical_modules_side_by_side_are_one_in_the_list():
    names = ["0", "1", "2", "head"]
    flops = {"0": 0, "1": 0, "2": 0, "head": 10}
    rows = [ModuleRow(name, "", 1, "Dropout" if name != "head" else "Linear", flops=flops[name]) for name in names]
    top = ModuleRow("", None, 0, "Net", flops=10)
    profile = ModelProfile("Net", modules=(top, *rows), forward_flops=10)
    times = {"": 10.0, "0": 1.0, "1": 2.0, "2": 3.0, "head": 4.0}
    (folded,) = slow_for_their_flops(profile.with_latency(LatencySummary(10.0, None, 1), times))
    assert (folded.path, folded.row.path, folded.modules, folded.forward_ms) == ("0 … 2", "0", 3, pytest.approx(6))


def test_the_footer_says_how_the_two_agree_and_what_a_time_contains():
    text = "\n".join(footer(side_by_side([1, 2, 3, 4], [4.0, 3.0, 2.0, 1.0])))
    assert "rank correlation -1.00 over 4 modules" in text
    assert "a (40.0 % of the time, 10.0 % of the FLOPs)" in text
    assert "FLOPs say little about where the time goes" in text
    assert "Python and the launch of each operator" in text


def test_a_gap_of_less_than_a_hundredth_of_the_time_is_not_named():
    # Shares of FLOPs 0.5 each; of time 0.505 and 0.495.
    assert not any(line.startswith("slow") for line in footer(side_by_side([1, 1], [5.05, 4.95])))


def test_time_outside_of_innermost_modules_is_said_where_it_is_much():
    profile = side_by_side([1, 2], [4.0, 3.0])
    outside = profile.with_latency(LatencySummary(10.0, None, 1), {"": 10.0, "a": 4.0, "b": 3.0})
    assert any(line.startswith("outside of innermost modules: 30.0 % of the time") for line in footer(outside))
    assert not any(line.startswith("outside") for line in footer(profile))


def test_arithmetic_intensity_is_flops_per_byte_and_absent_without_bytes():
    profile = side_by_side([3, 5, 7], [1.0, 1.0, 1.0])
    assert [record["flops_per_byte"] for record in profile.module_records()] == [
        None,
        0.25,
        0.25,
        0.25,
    ]  # four bytes for each


def test_flops_per_second_above_the_peak_are_flagged_and_never_shown_as_true():
    # 6e9 FLOPs in 1 ms are 6 TFLOP/s, 4e9 are 4; the device does 5.
    peak = {"flops.peak_tflops": 5.0, "flops.peak_source": "given"}
    profile = side_by_side([4 * 10**9, 6 * 10**9], [1.0, 1.0], **peak)
    fine, beyond = profile.module_records()[1:]
    assert (fine["achieved_flops_per_s"], fine["note"]) == (pytest.approx(4e12), "")
    assert (beyond["achieved_flops_per_s"], beyond["note"]) == (None, "above peak")
    table = plain_table(profile)
    assert "4.00 T" in table
    assert "6.00 T" not in table
    assert "peak: 5.00 TFLOP/s (given); above it, so not believable: b" in table


def test_nothing_is_above_a_peak_that_is_not_known():
    profile = side_by_side([3 * 10**15], [1.0])
    assert not any(map(profile.is_above_peak, profile.modules))
    assert profile.peak_flops_per_s is None


def test_a_note_of_the_module_stands_beside_that_of_its_rate():
    profile = side_by_side([3 * 10**9], [1.0], **{"flops.peak_tflops": 1e-3})
    rows = (profile.modules[0], dataclasses.replace(profile.modules[1], note="compiled"))
    assert dataclasses.replace(profile, modules=rows).module_records()[1]["note"] == "compiled, above peak"
