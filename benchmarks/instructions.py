"""Floating-point operations by the processor's counters, over our count.

Usage: python benchmarks/instructions.py [MODEL] [--quick] [--forwards 20]

It runs `perf stat` on two processes that differ only in their number of forwards, and divides the difference. It needs
Linux, `perf` and a processor with readable counters: most virtual machines hide them. Without them the exit status is
2, and perf's message is printed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from models import MODELS, build

from flopcallback import FlopCountAnalysis

# Operations per count of an event, single precision. Intel: an event counts an instruction once, a fused multiply-add
# twice (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3B, and the kernel's tables of events).
# AMD: the event counts operations, a multiply-add as 2 (Processor Programming Reference, PMCx003).
EVENTS: Mapping[str, Mapping[str, int]] = {
    "GenuineIntel": {
        "fp_arith_inst_retired.scalar_single": 1,
        "fp_arith_inst_retired.128b_packed_single": 4,
        "fp_arith_inst_retired.256b_packed_single": 8,
        "fp_arith_inst_retired.512b_packed_single": 16,
    },
    "AuthenticAMD": {"fp_ret_sse_avx_ops.all": 1},
}


def vendor(cpuinfo: str) -> str:
    """Return the processor's vendor from `/proc/cpuinfo`, or an empty string."""
    lines = (line.split(":") for line in cpuinfo.splitlines() if line.startswith("vendor_id"))
    return next((value.strip() for _, value in lines), "")


def operations(written: str, per_count: Mapping[str, int]) -> int:
    """Sum the operations in the output of `perf stat -x,`.

    Args:
        written: perf's output.
        per_count: operations per count of each event.

    Raises:
        ValueError: an event was not counted, or perf does not know it.
    """
    counts = {}
    for line in written.splitlines():
        value, _, event, *_ = [*line.split(","), "", ""]  # perf writes other lines as well
        name = event.removesuffix(":u")
        if name in per_count and value.isdecimal():
            counts[name] = int(value)
    if missing := set(per_count) - set(counts):
        raise ValueError(f"perf did not count {', '.join(sorted(missing))}; it said: {written.strip()}")
    return sum(counts[name] * factor for name, factor in per_count.items())


def measured(model: str, forwards: int, per_count: Mapping[str, int], *, small: bool) -> int:
    """Count the operations of a process that makes `forwards` forwards.

    It builds the model as well. It has one thread, and only user space counts.
    """
    events = ",".join(f"{name}:u" for name in per_count)
    program = [sys.executable, Path(__file__), model, "--run", str(forwards), *(["--quick"] if small else [])]
    ran = subprocess.run(
        ["perf", "stat", "-x,", "-e", events, *program],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return operations(ran.stderr, per_count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="ResNet-50", choices=MODELS, metavar="MODEL")
    parser.add_argument("--quick", action="store_true", help="a small size of the same architecture")
    parser.add_argument("--forwards", type=int, default=20)
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    case = build(options.model, small=options.quick)
    if options.run is not None:
        for _ in range(options.run):
            case.call()
        return

    per_count = EVENTS.get(vendor(Path("/proc/cpuinfo").read_text(encoding="utf-8")), {})
    if not per_count:
        parser.exit(2, "no events are known for this processor\n")
    try:
        # The first forward of a process also chooses kernels and packs weights.
        first, later = (
            measured(options.model, count, per_count, small=options.quick) for count in (1, 1 + options.forwards)
        )
    except (FileNotFoundError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    seen = (later - first) / options.forwards
    # The processor counts a multiply-add as 2, so both of our figures do.
    products = FlopCountAnalysis(case.model, (), case.inputs).hardware_flops()[""]
    everything = FlopCountAnalysis(case.model, (), case.inputs, fma=2, elementwise=True).total()
    print(f"{options.model}: the processor {seen:,.0f}, products {products:,} ({seen / products:.3f}),", end=" ")
    print(f"with norms and elementwise {everything:,} ({seen / everything:.3f})")


if __name__ == "__main__":
    main()
