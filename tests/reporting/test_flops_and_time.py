"""How FLOPs and time agree, on profiles whose ranks can be worked out on paper."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from flopcallback.reporting.flops_and_time import orderings, weighted_rank_correlation


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


SPEARMANS = [
    ([2, 3, 5, 7], [1.0, 2.0, 3.0, 4.0], 1),
    ([2, 3, 5, 7], [9.0, 4.0, 3.0, 1.0], -1),
    # Ranks differ by 0, 0, 1, 1: 1 - 6 * (1 + 1) / (4 * (4² - 1)).
    ([2, 3, 5, 7], [1.0, 2.0, 4.0, 3.0], 1 - 6 * 2 / (4 * 15)),
    # Ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3, about their mean 1.5: (2.25 + 0 + 0 + 2.25) / √(4.5 * 5).
    ([2, 5, 5, 7], [1.0, 2.0, 3.0, 4.0], 4.5 / (4.5 * 5) ** 0.5),
]


@pytest.mark.parametrize("weight", [1.0, 0.3, 7.0])
@pytest.mark.parametrize(("flops", "times", "expected"), SPEARMANS)
def test_with_equal_weights_the_rank_correlation_is_spearmans(flops, times, expected, weight):
    assert weighted_rank_correlation(flops, times, [weight] * len(flops)) == pytest.approx(expected)


figures = st.integers(0, 5)
items = st.lists(st.tuples(figures, figures, st.integers(1, 4)), min_size=3, max_size=9)


@given(items)
def test_an_item_of_weight_two_counts_as_two_equal_ones(drawn):
    once = list(zip(*drawn, strict=True))
    repeated = list(zip(*[(one, other, 1) for one, other, times in drawn for _ in range(times)], strict=True))
    expected = weighted_rank_correlation(*repeated)
    found = weighted_rank_correlation(*once)
    assert found is None if expected is None else found == pytest.approx(expected, abs=1e-9)


@given(items)
def test_the_rank_correlation_goes_both_ways_and_turns_with_the_order(drawn):
    one, other, weights = zip(*drawn, strict=True)
    found = weighted_rank_correlation(one, other, weights)
    if found is None:
        assert len(set(one)) == 1 or len(set(other)) == 1
        return
    assert -1 <= found <= 1
    assert weighted_rank_correlation(other, one, weights) == pytest.approx(found, abs=1e-9)
    assert weighted_rank_correlation([-each for each in one], other, weights) == pytest.approx(-found, abs=1e-9)


def test_a_module_weighs_what_it_takes():
    # Weights are the times, 1, 2, 4 and 3 of 10. Twice the ranks, from the weight below and half of that of its own,
    # about their mean of 10: by FLOPs -9, -6, 0, 7; by time -9, -6, 6, -1.
    covariance = 1 * 81 + 2 * 36 + 4 * 0 - 3 * 7
    spread = 1 * 81 + 2 * 36 + 4 * 0 + 3 * 49, 1 * 81 + 2 * 36 + 4 * 36 + 3 * 1
    found = rank_correlation(side_by_side([2, 3, 5, 7], [1.0, 2.0, 4.0, 3.0]))
    assert found == pytest.approx(covariance / (spread[0] * spread[1]) ** 0.5)


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
    assert "rank correlation -1.00 by time over 4 modules with 100.0 % of the time" in text
    assert "a (40.0 % of the time, 10.0 % of the FLOPs)" in text
    assert "FLOPs say little about where the time goes" in text
    assert "Python and the launch of each operator" in text


def test_a_gap_of_less_than_a_hundredth_of_the_time_is_not_named():
    # Shares of FLOPs 0.5 each; of time 0.505 and 0.495.
    assert not any(line.startswith("slow") for line in footer(side_by_side([1, 1], [5.05, 4.95])))


def test_what_a_module_does_itself_is_a_candidate_too():
    profile = side_by_side([1, 2], [4.0, 3.0])
    outside = profile.with_latency(LatencySummary(10.0, None, 1), {"": 10.0, "a": 4.0, "b": 3.0})
    # 3 ms of 10 are in neither, and none of the FLOPs.
    own = slow_for_their_flops(outside)[0]
    assert (own.path, own.row.path, own.time_share, own.flops_share) == ("Net (own operators)", "", 0.3, 0)
    assert not any("own operators" in point.path for point in slow_for_their_flops(profile))


def test_what_orders_modules_best_comes_first_each_with_a_number():
    profile = side_by_side([2, 3, 5, 7], [1.0, 2.0, 4.0, 3.0])  # four bytes for each FLOP
    rows = [replace(row, activations=count) for row, count in zip(profile.modules, (0, 1, 2, 4, 3), strict=True)]
    found = orderings(replace(profile, modules=tuple(rows)))
    assert list(found) == ["activations", "FLOPs", "bytes"]
    assert found["activations"] == pytest.approx(1)
    assert found["FLOPs"] == found["bytes"] == pytest.approx(rank_correlation(profile))
    line = "what orders modules by time best: activations 1.00, then FLOPs 0.44, bytes 0.44"
    assert any(text.startswith(line) for text in footer(replace(profile, modules=tuple(rows))))


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


def test_a_module_is_bound_by_memory_or_by_compute_where_both_rates_are_known():
    # Four bytes for each FLOP: 3 FLOPs take 3 s at 1 FLOP/s, and 12 bytes 6 s at 2 bytes/s, or 1.2 s at 10.
    def notes(bytes_per_s):
        config = {"flops.peak_tflops": 1e-12, "flops.peak_gb_per_s": bytes_per_s / 1e9}
        return [record["note"] for record in side_by_side([3, 5], [10_000.0, 10_000.0], **config).module_records()]

    assert notes(2) == ["", "bound by memory", "bound by memory"]
    assert notes(10) == ["", "bound by compute", "bound by compute"]


def test_nothing_is_above_a_peak_that_is_not_known():
    profile = side_by_side([3 * 10**15], [1.0])
    assert not any(map(profile.is_above_peak, profile.modules))
    assert profile.peak_flops_per_s is None


def test_a_note_of_the_module_stands_beside_that_of_its_rate():
    profile = side_by_side([3 * 10**9], [1.0], **{"flops.peak_tflops": 1e-3})
    rows = (profile.modules[0], dataclasses.replace(profile.modules[1], note="compiled"))
    assert dataclasses.replace(profile, modules=rows).module_records()[1]["note"] == "compiled, above peak"
