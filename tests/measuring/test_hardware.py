"""What a device can do at most: given, measured, or the row of a table."""

from __future__ import annotations

import datetime
import math
import re
from pathlib import Path

import pytest
import torch

from flopcallback.measuring.hardware import (
    Peak,
    measured_bandwidth,
    measured_peak,
    peak_for,
    peak_in_table,
    precision_of,
)
from flopcallback.measuring.peaks import PRECISIONS, ROWS, Row

CPU = torch.device("cpu")
PAGE = Path(__file__).parents[2] / "docs" / "hardware.md"

# As drivers call them; one of the row's figures in 1e12 FLOP/s, which is half of what is printed where that is with
# sparsity; the memory's 1e9 bytes/s.
DEVICES = [
    ("Tesla V100-SXM2-32GB", torch.float16, 125, 900),
    ("Tesla V100-PCIE-16GB", torch.float16, 112, 900),
    ("Tesla V100S-PCIE-32GB", torch.float16, 130, None),
    ("Tesla T4", torch.float16, 65, 320),
    ("Quadro RTX 6000", torch.float16, 130.5, 672),
    ("NVIDIA A10", torch.bfloat16, 125, 600),
    ("NVIDIA A30", torch.bfloat16, 165, 933),
    ("NVIDIA A40", torch.bfloat16, 149.7, 696),
    ("NVIDIA A100-SXM4-40GB", torch.bfloat16, 312, 1555),
    ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312, 2039),
    ("NVIDIA A100-PCIE-40GB", torch.bfloat16, 312, 1555),
    ("NVIDIA A100 80GB PCIe", torch.bfloat16, 312, 1935),
    ("NVIDIA A800-SXM4-80GB", torch.bfloat16, 312, None),
    ("NVIDIA RTX A4000", torch.float32, 19.2, 448),
    ("NVIDIA RTX A5000", torch.float32, 27.8, None),
    ("NVIDIA RTX A6000", torch.bfloat16, 309.7 / 2, 768),
    ("NVIDIA GeForce RTX 3060", torch.float32, 12.7, None),
    ("NVIDIA GeForce RTX 3060 Ti", torch.bfloat16, 32.4, None),
    ("NVIDIA GeForce RTX 3070", torch.bfloat16, 40.6, 448),
    ("NVIDIA GeForce RTX 3070 Ti", torch.bfloat16, 43.5, None),
    ("NVIDIA GeForce RTX 3080 Ti", torch.bfloat16, 68.2, None),
    ("NVIDIA GeForce RTX 3090", torch.bfloat16, 71, 936),
    ("NVIDIA GeForce RTX 3090 Ti", torch.bfloat16, 80, None),
    ("NVIDIA L4", torch.bfloat16, 121, 300),
    ("NVIDIA L40", torch.float32, 90.5, 864),
    ("NVIDIA L40S", torch.bfloat16, 362.05, 864),
    ("NVIDIA GeForce RTX 4060 Ti", torch.bfloat16, 44.1, None),
    ("NVIDIA GeForce RTX 4070", torch.bfloat16, 58.3, None),
    ("NVIDIA GeForce RTX 4080", torch.bfloat16, 97.5, 716.8),
    ("NVIDIA GeForce RTX 4080 SUPER", torch.bfloat16, 104.5, 736),
    ("NVIDIA GeForce RTX 4090", torch.bfloat16, 165.2, 1008),
    ("NVIDIA H20", torch.bfloat16, 147, 4000),
    ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.4, 3350),
    ("NVIDIA H100 PCIe", torch.bfloat16, 756, 2000),
    ("NVIDIA H200", torch.bfloat16, 1979 / 2, 4800),
    ("NVIDIA H200 NVL", torch.bfloat16, 1671 / 2, 4800),
    ("NVIDIA B200", torch.bfloat16, 2250, None),
    ("NVIDIA B300 SXM6 AC", torch.bfloat16, 2250, 8000),
    ("NVIDIA GB200", torch.float8_e4m3fn, 5000, 8000),
    ("NVIDIA GeForce RTX 5080", torch.float32, 56.3, None),
    ("NVIDIA GeForce RTX 5090", torch.bfloat16, 209.5, 1792),
    ("AMD Instinct MI210", torch.bfloat16, 181, 1638.4),
    ("AMD Instinct MI250X", torch.bfloat16, 383 / 2, 3276.8 / 2),
    ("AMD Instinct MI300A", torch.bfloat16, 980.6, 5300),
    ("AMD Instinct MI300X", torch.bfloat16, 1307.4, 5300),
    ("AMD Instinct MI325X", torch.bfloat16, 1307.4, 6000),
    ("AMD Instinct MI350X", torch.bfloat16, 2309.6, 8000),
    ("AMD Instinct MI355X", torch.bfloat16, 2516.6, 8000),
]

# Each has a row's name in it, or nearly so, and is another device.
STRANGERS = [
    "NVIDIA A10G",
    "NVIDIA A10M",
    "NVIDIA A16",
    "NVIDIA A2",
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
    "NVIDIA A100-SXM-64GB",
    "NVIDIA A100X",
    "NVIDIA A30 MIG 1g.6gb",
    "GRID A100-10C",
    "NVIDIA A800 40GB Active",
    "NVIDIA RTX A2000",
    "NVIDIA RTX A4000 Laptop GPU",
    "NVIDIA RTX A4500",
    "NVIDIA RTX A5500",
    "NVIDIA RTX 4000 Ada Generation",
    "NVIDIA RTX 6000 Ada Generation",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
    "Quadro RTX 5000",
    "Quadro RTX 8000",
    "NVIDIA GeForce RTX 3060 Laptop GPU",
    "NVIDIA GeForce RTX 3080",
    "NVIDIA GeForce RTX 3080 Laptop GPU",
    "NVIDIA GeForce RTX 3080 Ti Laptop GPU",
    "NVIDIA GeForce RTX 4060",
    "NVIDIA GeForce RTX 4070 SUPER",
    "NVIDIA GeForce RTX 4070 Ti",
    "NVIDIA GeForce RTX 4070 Ti SUPER",
    "NVIDIA GeForce RTX 4080 Laptop GPU",
    "NVIDIA GeForce RTX 4090 D",
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA GeForce RTX 5070",
    "NVIDIA GeForce RTX 5070 Ti",
    "NVIDIA GeForce RTX 5080 Laptop GPU",
    "NVIDIA GeForce RTX 5090 D",
    "NVIDIA GeForce RTX 5090 Laptop GPU",
    "NVIDIA H100",
    "NVIDIA H100 NVL",
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    "NVIDIA H20-3e",
    "NVIDIA H200 MIG 1g.18gb",
    "NVIDIA H800",
    "NVIDIA GH200 480GB",
    "NVIDIA GH200 144G HBM3e",
    "NVIDIA GB300",
    "NVIDIA L20",
    "NVIDIA L40G",
    "NVIDIA T400 4GB",
    "NVIDIA T4G",
    "Tesla V100-FHHL-16GB",
    "Tesla V100-SXM3-32GB",
    "AMD Instinct MI250",
    "AMD Instinct MI250X/MI250",
    "AMD Instinct MI300X VF",
    "Intel(R) Data Center GPU Max 1550",
    "",
]

# Names that are in one another, or nearly so.
LOOKALIKES = [
    ("NVIDIA A40", "NVIDIA RTX A4000", torch.float32),
    ("NVIDIA L4", "NVIDIA L40", torch.float32),
    ("NVIDIA L4", "NVIDIA L40S", torch.bfloat16),
    ("NVIDIA L40", "NVIDIA L40S", torch.float32),
    ("NVIDIA H20", "NVIDIA H200", torch.bfloat16),
    ("NVIDIA H200", "NVIDIA H200 NVL", torch.bfloat16),
    ("NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3", torch.bfloat16),
    ("Quadro RTX 6000", "NVIDIA RTX A6000", torch.float16),
    ("NVIDIA GeForce RTX 3060", "NVIDIA GeForce RTX 3060 Ti", torch.float32),
    ("NVIDIA GeForce RTX 4080", "NVIDIA GeForce RTX 4080 SUPER", torch.bfloat16),
    ("Tesla V100-PCIE-32GB", "Tesla V100S-PCIE-32GB", torch.float16),
]


def of(driver_name: str | None):
    """A driver that calls every device by one name."""
    return {"environ": {}, "name_of": lambda device: driver_name}


@pytest.fixture(autouse=True)
def _pytorch_as_it_comes():
    # torch >= 2.9 keeps the setting per backend and takes the old one along.
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("name", "dtype", "tflops", "gb_per_s"), DEVICES, ids=[device[0] for device in DEVICES])
def test_a_device_string_finds_its_row(name, dtype, tflops, gb_per_s):
    peak = peak_in_table(name, dtype)
    assert peak.flops_per_s == pytest.approx(tflops * 1e12, rel=1e-12)
    assert peak.bytes_per_s == (None if gb_per_s is None else gb_per_s * 1e9)
    assert re.search(r", https://\S+, read 20\d\d-\d\d-\d\d( and \d more)?$", peak.source)


@pytest.mark.parametrize("row", ROWS, ids=[row.names[0] for row in ROWS])
def test_every_row_is_found_by_one_of_these_strings(row):
    drivers = [" " + driver.replace("-", " ") for driver, *_ in DEVICES]
    assert len([driver for driver in drivers if any(driver.endswith(" " + name) for name in row.names)]) == 1


@pytest.mark.parametrize("name", STRANGERS)
def test_another_device_finds_no_row(name):
    assert [precision for precision in PRECISIONS if peak_in_table(name, precision) is not None] == []


@pytest.mark.parametrize(("name", "other", "dtype"), LOOKALIKES)
def test_names_that_are_alike_are_told_apart(name, other, dtype):
    assert peak_in_table(name, dtype).flops_per_s != peak_in_table(other, dtype).flops_per_s


@pytest.mark.parametrize("memory", ["40GB", "80GB"])
def test_cards_that_differ_in_memory_alone_are_told_apart_by_it(memory):
    sxm, pcie = f"NVIDIA A100-SXM4-{memory}", {"40GB": "NVIDIA A100-PCIE-40GB", "80GB": "NVIDIA A100 80GB PCIe"}[memory]
    rates = [peak_in_table(name, torch.bfloat16).bytes_per_s for name in (sxm, pcie)]
    assert rates == {"40GB": [1555e9, 1555e9], "80GB": [2039e9, 1935e9]}[memory]


@pytest.mark.parametrize("row", ROWS, ids=[row.names[0] for row in ROWS])
def test_a_row_has_its_vendors_own_text_or_two_others_that_were_read(row):
    assert any(source.vendor for source in row.sources) or len({source.document for source in row.sources}) >= 2
    assert len(set(row.sources)) == len(row.sources)
    for source in row.sources:
        assert re.fullmatch(r"https://\S+", source.url)
        assert datetime.date.fromisoformat(source.read_on) >= datetime.date(2026, 11, 23)


def test_no_two_rows_have_one_name():
    names = [tuple(sorted(re.split(r"\W+", name.lower()))) for row in ROWS for name in row.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("row", ROWS, ids=[row.names[0] for row in ROWS])
def test_matrix_units_double_with_half_the_bits_so_that_no_sparse_figure_hides_among_dense_ones(row):
    dense = row.tflops
    for wide, narrow in (("tfloat32", "bfloat16"), ("bfloat16", "float8")):
        if wide in dense and narrow in dense:
            assert dense[narrow] / dense[wide] == pytest.approx(2, rel=0.02)
    if "bfloat16" in dense and "float16" in dense:
        assert dense["bfloat16"] == dense["float16"]


def test_a_precision_that_a_row_does_not_have_is_not_known():
    assert peak_in_table("Tesla T4", torch.bfloat16) is None
    assert peak_in_table("NVIDIA A100-SXM4-40GB", torch.float8_e4m3fn) is None
    assert peak_in_table("NVIDIA L40", torch.bfloat16) is None
    assert peak_in_table("NVIDIA L4", torch.int8) is None


def test_float32_is_what_pytorch_makes_of_it():
    a100 = of("NVIDIA A100-SXM4-80GB")
    assert peak_for(CPU, torch.float32, **a100).flops_per_s == 19.5e12
    torch.set_float32_matmul_precision("high")
    assert peak_for(CPU, torch.float32, **a100).flops_per_s == 156e12
    assert peak_for(CPU, torch.bfloat16, **a100).flops_per_s == 312e12


def test_a_device_without_tf32_stays_at_float32():
    torch.set_float32_matmul_precision("high")
    assert precision_of(torch.float32) == "tfloat32"
    assert peak_for(CPU, torch.float32, **of("Tesla V100-SXM2-16GB")).flops_per_s == 15.7e12


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch < 2.9 has one setting for all backends"
)
def test_the_newer_setting_of_one_backend_counts_as_well():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        assert precision_of(torch.float32) == "tfloat32"
    finally:
        matmul.fp32_precision = before


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "allow_fp16_accumulation"), reason="torch < 2.7 sums float16 in float32"
)
def test_float16_summed_in_float16_has_a_peak_of_its_own():
    matmul = torch.backends.cuda.matmul
    rtx_4080 = of("NVIDIA GeForce RTX 4080")
    assert peak_for(CPU, torch.float16, **rtx_4080).flops_per_s == 97.5e12
    matmul.allow_fp16_accumulation = True
    try:
        assert peak_for(CPU, torch.float16, **rtx_4080).flops_per_s == 195e12
        assert peak_for(CPU, torch.float16, **of("NVIDIA L4")) is None
    finally:
        matmul.allow_fp16_accumulation = False


def test_what_is_given_comes_first_then_the_variable_then_the_table():
    l4 = of("NVIDIA L4")
    variable = {"FLOPCALLBACK_PEAK_FLOPS": "7e12"}
    assert peak_for(CPU, torch.bfloat16, 5e12, **{**l4, "environ": variable}) == Peak(
        5e12, "given as peak_flops", 300e9
    )
    assert peak_for(CPU, torch.bfloat16, **{**l4, "environ": variable}) == Peak(
        7e12, "given as FLOPCALLBACK_PEAK_FLOPS", 300e9
    )
    assert peak_for(CPU, torch.bfloat16, **{**l4, "environ": {"FLOPCALLBACK_PEAK_FLOPS": ""}}).flops_per_s == 121e12


def test_a_cpu_and_a_device_that_nobody_knows_have_no_peak():
    assert peak_for(CPU, torch.float32, environ={}) is None
    assert peak_for(torch.device("meta"), torch.float32, environ={}) is None
    assert peak_for(CPU, torch.float32, **of("NVIDIA GeForce RTX 3080")) is None


@pytest.mark.parametrize("given", [0, -1.0, math.inf, math.nan, True, "fast", "-3"])
def test_a_peak_that_is_none_is_refused_by_name(given):
    with pytest.raises(
        ValueError, match=re.escape(f"peak_flops is {given!r}, expected FLOP/s: a finite number above 0")
    ):
        peak_for(CPU, torch.float32, given, environ={})


def test_a_variable_that_is_no_peak_is_refused_by_name():
    with pytest.raises(ValueError, match="FLOPCALLBACK_PEAK_FLOPS is '312 TFLOPS', expected FLOP/s"):
        peak_for(CPU, torch.float32, environ={"FLOPCALLBACK_PEAK_FLOPS": "312 TFLOPS"})


class Clock:
    """Every look at it is `tick_s` later than the last one."""

    def __init__(self, tick_s: float):
        self.now_s, self.tick_s = 0.0, tick_s

    def __call__(self) -> float:
        self.now_s += self.tick_s
        return self.now_s


def test_a_measured_peak_is_flops_over_seconds_of_the_largest_product_that_fits():
    # A product takes one tick. 3 of them at 256, and the next size is expected at 3 x 8 ticks: with 3 + 1 looks at the
    # clock each two ticks apart that makes more than 30 ticks, so a budget of 1 tick ends it at the first size.
    flops_per_s, how = measured_peak(CPU, torch.float32, clock=Clock(0.25), budget_s=0.25)
    assert flops_per_s == 2 * 256**3 / 0.25
    assert how == "measured: 256 x 256 matrix product in float32"


def test_a_larger_product_is_tried_while_there_is_time_and_the_fastest_counts():
    # Each look 0.01 s later: 3 products at 256 and at 512 need 2 x 3 looks each, the clock is asked twice more.
    # After 256: 0.07 s gone, 3 x 8 x 0.01 s expected: 0.31 s. After 512: 0.14 + 0.24 s is beyond 0.35 s.
    flops_per_s, how = measured_peak(CPU, torch.float32, clock=Clock(0.01), budget_s=0.35)
    assert flops_per_s == pytest.approx(2 * 512**3 / 0.01)
    assert how == "measured: 512 x 512 matrix product in float32"


def test_a_cpu_has_a_peak_when_it_is_measured_and_it_is_measured_once():
    peak = peak_for(CPU, torch.float32, "measure", environ={})
    assert peak.flops_per_s > 0
    assert re.fullmatch(r"measured: (\d+) x \1 matrix product in float32", peak.source)
    assert peak_for(CPU, torch.float32, environ={"FLOPCALLBACK_PEAK_FLOPS": "measure"}) == peak


def test_measuring_leaves_training_as_it_was():
    torch.manual_seed(11)
    before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        measured_peak(CPU, torch.float32, clock=Clock(0.25), budget_s=0.25)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_num_threads(), torch.get_default_dtype()) == before[1:]
    assert torch.is_grad_enabled()


def test_a_measured_bandwidth_is_three_times_the_elements_over_the_seconds_of_a_round():
    # A round takes one tick, and three of them are more than enough.
    assert measured_bandwidth(CPU, clock=Clock(0.25), elements=1000) == 3 * 4 * 1000 / 0.25


def test_the_triad_writes_what_it_should_and_leaves_training_as_it_was(monkeypatch):
    torch.manual_seed(11)
    before, results, add = torch.get_rng_state(), [], torch.add

    def seen(*args, **options):
        results.append(add(*args, **options))

    monkeypatch.setattr(torch, "add", seen)
    measured_bandwidth(CPU, clock=Clock(0.25), elements=7)
    assert all(torch.equal(result, torch.full((7,), 1.0 + 3.0 * 2.0)) for result in results)
    assert len(results) == 1 + 3  # the first is not timed
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()


def test_the_bandwidth_of_a_cpu_is_measured_where_its_peak_is_and_is_not_known_otherwise():
    assert peak_for(CPU, torch.float32, "measure", environ={}).bytes_per_s > 0
    assert peak_for(CPU, torch.float32, 1e12, environ={}).bytes_per_s is None
    assert peak_for(CPU, torch.float32, 1e12, **of("NVIDIA A100-SXM4-80GB")).gb_per_s == 2039


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_what_cannot_be_multiplied_cannot_be_measured(dtype):
    text = f'peak_flops="measure" cannot multiply matrices of {dtype} on cpu; give a number of FLOP/s'
    with pytest.raises(ValueError, match=re.escape(text)):
        measured_peak(CPU, dtype)


def line_of(row: Row) -> str:
    """A row as the page shows it."""
    figures = [f"{row.tflops[precision]:g}" if precision in row.tflops else "" for precision in PRECISIONS]
    bandwidth = "" if row.gb_per_s is None else f"{row.gb_per_s:g}"
    sources = "; ".join(f"[{source.document}{'*' * source.vendor}]({source.url})" for source in row.sources)
    read_on = ", ".join(sorted({source.read_on for source in row.sources}))
    return f"| {', '.join(row.names)} | {' | '.join(figures)} | {bandwidth} | {sources}, read {read_on} |"


def test_the_page_shows_the_rows_as_they_are():
    shown = re.findall(r"^\| .*, read (?:(?:, )?20\d\d-\d\d-\d\d)+ \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert shown == [line_of(row) for row in ROWS]
