"""Peak rates of a device: given, measured, or from a table."""

from __future__ import annotations

import functools
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from flopcallback.measuring.peaks import ROWS, Row
from flopcallback.tracing.torch_private import disable_current_modes

__all__ = [
    "MEASURE",
    "PEAK_VARIABLE",
    "Peak",
    "measured_bandwidth",
    "measured_peak",
    "peak_for",
    "peak_in_table",
    "precision_of",
]

MEASURE = "measure"
PEAK_VARIABLE = "FLOPCALLBACK_PEAK_FLOPS"

# Words of a driver's device name that never tell two devices apart.
_VENDOR_WORDS = frozenset({"nvidia", "tesla", "geforce", "amd", "instinct"})

_REPEATS = 3  # of each size, at least

# Elements of each array of the triad. STREAM wants arrays of four times the last cache: three of float32 are 192 MiB,
# which is that for all but the largest servers, and fits beside a training.
_TRIAD = 2**24

_FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
_PRECISIONS = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    **{getattr(torch, name): "float8" for name in _FLOAT8},
}


@dataclass(frozen=True, slots=True)
class Peak:
    """Peak rates of a device.

    Attributes:
        flops_per_s: FLOP/s of dense matrix products, a multiply-add being two FLOPs.
        source: origin of the figure, for people to read.
        bytes_per_s: bytes/s to and from the device's memory; None if unknown.
    """

    flops_per_s: float
    source: str
    bytes_per_s: float | None = None

    @property
    def rates(self) -> tuple[float, float | None]:
        """FLOP/s and bytes/s."""
        return self.flops_per_s, self.bytes_per_s

    @property
    def gb_per_s(self) -> float | None:
        """The same in 1e9 bytes/s."""
        return None if self.bytes_per_s is None else self.bytes_per_s / 1e9


def peak_for(
    device: torch.device,
    dtype: torch.dtype,
    given: float | str | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    name_of: Callable[[torch.device], str | None] | None = None,
) -> Peak | None:
    """Return the peak of a device for matrix products; None if unknown.

    Args:
        device: the device; the peak of a CPU is known only if it is given or measured.
        dtype: dtype of the matrices. For float32, PyTorch's settings decide whether the peak is that of TF32.
        given: FLOP/s, or "measure" for `measured_peak`, and for `measured_bandwidth` of what is not in the table, once
            per process. With None, the environment variable `FLOPCALLBACK_PEAK_FLOPS` decides, a number or "measure",
            and without it the table.
        environ: the environment.
        name_of: returns the driver's name of a device.

    Raises:
        ValueError: `given`, or the variable, is neither a finite number above 0 nor "measure"; or matrices cannot be
            multiplied in `dtype` on `device`.
    """
    name = (_driver_name if name_of is None else name_of)(device)
    row = None if name is None else _row_of(name)
    # The argument wins over the variable. An empty variable is none.
    where, value = ("peak_flops", given) if given is not None else (PEAK_VARIABLE, environ.get(PEAK_VARIABLE) or None)
    if value is None:
        return None if row is None else _peak_in(row, precision_of(dtype))
    if value == MEASURE:
        flops_per_s, source = _measured_once(device, dtype, precision_of(dtype))
        return Peak(flops_per_s, source, _bytes_per_s(row) or _bandwidth_once(device))
    # A given rate says nothing about memory: that figure is still the table's.
    return Peak(_number(value, where), f"given as {where}", _bytes_per_s(row))


def peak_in_table(device_name: str, dtype: torch.dtype | str) -> Peak | None:
    """Return the table's peak (`peaks.py`) for a device name; None if unknown.

    The row with the longest match in whole words is taken, and only if it explains every word of the device's name: an
    "RTX 4090 Laptop GPU" is no "RTX 4090", and a MIG slice of an A100 is no A100.

    Args:
        device_name: name as returned by `torch.cuda.get_device_name()`.
        dtype: a dtype, or one of `flopcallback.measuring.peaks.PRECISIONS`, such as "tfloat32". Here float32 is IEEE
            float32, whatever PyTorch is set to.
    """
    row = _row_of(device_name)
    precision = dtype if isinstance(dtype, str) else _PRECISIONS.get(dtype)
    return None if row is None else _peak_in(row, precision)


def precision_of(dtype: torch.dtype) -> str | None:
    """Return the precision in which PyTorch multiplies CUDA matrices of `dtype`.

    It is one of `PRECISIONS`, or None. Settings decide for float32 (`torch.set_float32_matmul_precision`, default IEEE)
    and for float16 (`torch.backends.cuda.matmul.allow_fp16_accumulation`, default False).
    """
    matmul = torch.backends.cuda.matmul
    if dtype == torch.float32 and _may_use_tf32():
        return "tfloat32"
    if dtype == torch.float16 and getattr(matmul, "allow_fp16_accumulation", False):  # torch >= 2.7
        return "float16_accumulate"
    return _PRECISIONS.get(dtype)


def _may_use_tf32() -> bool:
    # torch >= 2.9 has a setting per backend, and raises on reading the old one after the new one was set.
    precision = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if precision is not None:
        return bool(precision == "tf32")
    return torch.get_float32_matmul_precision() != "highest"


def _driver_name(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9.]+", name.lower())) - _VENDOR_WORDS


def _row_of(device_name: str) -> Row | None:
    words = _words(device_name)
    matches = [(name, row) for row in ROWS for name in map(_words, row.names) if name <= words]
    longest, row = max(matches, key=lambda match: len(match[0]), default=(frozenset(), None))
    # Any word left over, such as "Laptop" or "MIG", makes it another device.
    return row if longest == words else None


def _peak_in(row: Row, precision: str | None) -> Peak | None:
    tflops = None if precision is None else row.tflops.get(precision)
    if tflops is None:
        return None
    first, *further = row.sources
    return Peak(tflops * 1e12, f"{first}" + (f" and {len(further)} more" if further else ""), _bytes_per_s(row))


def _bytes_per_s(row: Row | None) -> float | None:
    return None if row is None or row.gb_per_s is None else row.gb_per_s * 1e9


def _number(value: float | str, where: str) -> float:
    try:
        number = float("nan") if isinstance(value, bool) else float(value)  # True would be 1 FLOP/s
    except (TypeError, ValueError):
        number = float("nan")
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f'{where} is {value!r}, expected FLOP/s: a finite number above 0, or "{MEASURE}"')
    return number


@functools.cache
def _measured_once(device: torch.device, dtype: torch.dtype, precision: str | None) -> tuple[float, str]:
    """Measure the peak once per device, dtype and precision.

    `precision` is only part of the key: after PyTorch was set differently, the peak is measured again.
    """
    return measured_peak(device, dtype)


def measured_peak(
    device: torch.device,
    dtype: torch.dtype,
    *,
    clock: Callable[[], float] = time.perf_counter,
    budget_s: float = 1.0,
) -> tuple[float, str]:
    """Measure the FLOP/s of dense square matrix products.

    Sizes double up to 8192, as long as the next size is expected to fit into `budget_s`; the fastest counts. No random
    number is drawn. PyTorch's allocator keeps the GPU memory of three matrices.

    Args:
        device: device to measure.
        dtype: dtype of the matrices.
        clock: returns seconds.
        budget_s: seconds for all products together.

    Returns:
        FLOP/s, and a description of the measurement.

    Raises:
        ValueError: matrices cannot be multiplied in `dtype` on `device`.
    """
    fastest, fastest_size, begin = 0.0, 0, clock()
    for size in (256, 512, 1024, 2048, 4096, 8192):
        try:
            seconds = _seconds_of_product(size, device, dtype, clock, budget_s / 10)
        # NotImplementedError and torch.OutOfMemoryError are RuntimeErrors.
        except (RuntimeError, TypeError) as error:
            if fastest:  # smaller sizes could be timed; this one does not fit into memory
                break
            text = f'peak_flops="{MEASURE}" cannot multiply matrices of {dtype} on {device}; give a number of FLOP/s'
            raise ValueError(text) from error
        if 2 * size**3 / seconds > fastest:
            fastest, fastest_size = 2 * size**3 / seconds, size
        # Twice the size is 8 times the work.
        if clock() - begin + 8 * _REPEATS * seconds > budget_s:
            break
    return fastest, f"measured: {fastest_size} x {fastest_size} matrix product in {str(dtype).removeprefix('torch.')}"


def _seconds_of_product(
    size: int, device: torch.device, dtype: torch.dtype, clock: Callable[[], float], at_least_s: float
) -> float:
    """Return the shortest time of several products of one size.

    Args:
        size: rows and columns.
        device: device to measure.
        dtype: dtype of the matrices.
        clock: returns seconds.
        at_least_s: seconds of products after which `_REPEATS` of them suffice.
    """
    if dtype not in _PRECISIONS:
        raise TypeError(dtype)
    # This may run in the middle of a training step, where autocast would change the dtype and a FLOP counter would
    # count these products.
    with disable_current_modes(), torch.no_grad(), torch.autocast(device.type, enabled=False):
        # Not `torch.rand`, which would move the random state of the training.
        left = torch.linspace(-1, 1, size * size, dtype=dtype, device=device).view(size, size)
        right, out = left.flip(0), torch.empty_like(left)
        return _fastest(lambda: torch.mm(left, right, out=out), device, clock, at_least_s)


@functools.cache
def _bandwidth_once(device: torch.device) -> float | None:
    """Measure the bandwidth once per device; None if the arrays do not fit into its memory."""
    try:
        return measured_bandwidth(device)
    # NotImplementedError and torch.OutOfMemoryError are RuntimeErrors.
    except RuntimeError:
        return None


def measured_bandwidth(
    device: torch.device,
    *,
    clock: Callable[[], float] = time.perf_counter,
    elements: int = _TRIAD,
    at_least_s: float = 0.1,
) -> float:
    """Measure the bytes/s of a device's memory by STREAM's triad, `a = b + scalar * c`.

    As there, an element counts three times: read twice and written once. The fastest of several rounds counts
    (McCalpin, "Memory Bandwidth and Machine Balance in Current High Performance Computers", 1995). No random number is
    drawn.

    Args:
        device: device to measure.
        clock: returns seconds.
        elements: elements of each of the three arrays of float32.
        at_least_s: seconds of rounds after which three of them suffice.

    Raises:
        RuntimeError: the arrays do not fit into the device's memory, or it cannot add.
    """
    # As in `_seconds_of_product`, this may run in the middle of a training step.
    with disable_current_modes(), torch.no_grad():
        read, also_read = (torch.full((elements,), value, dtype=torch.float32, device=device) for value in (1.0, 2.0))
        written = torch.empty_like(read)
        seconds = _fastest(lambda: torch.add(read, also_read, alpha=3.0, out=written), device, clock, at_least_s)
    return 3 * elements * read.element_size() / seconds


def _fastest(work: Callable[[], object], device: torch.device, clock: Callable[[], float], at_least_s: float) -> float:
    """Return the shortest of several times of some work, in seconds.

    Args:
        work: work that the device may do asynchronously.
        device: the device.
        clock: returns seconds.
        at_least_s: seconds of work after which `_REPEATS` rounds suffice.
    """
    synchronize = torch.get_device_module(device).synchronize
    times: list[float] = []
    work()  # untimed: the first call chooses kernels and loads libraries
    while len(times) < _REPEATS or sum(times) < at_least_s:
        synchronize()
        begin = clock()
        work()
        synchronize()
        times.append(clock() - begin)
    return min(times)
