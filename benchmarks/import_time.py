"""Time that `import flopcallback` adds to `import torch`.

Usage: python benchmarks/import_time.py [--rounds 11]

Each import has a fresh process, and the two statements take turns.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys

STATEMENTS = ("import torch", "import torch, flopcallback")
PROBE = "import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"


def import_ms(statement: str) -> float:
    """Return the milliseconds of `statement` in a new interpreter, without its start-up."""
    # -I ignores PYTHONPATH and the working directory: the installed package is imported.
    command = [sys.executable, "-I", "-c", PROBE.format(statement=statement)]
    return 1000 * float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11, help="processes per statement")
    rounds = parser.parse_args().rounds

    for statement in STATEMENTS:  # untimed: writes byte code and fills the disk cache
        import_ms(statement)
    times_ms = [tuple(import_ms(statement) for statement in STATEMENTS) for _ in range(rounds)]

    print(f"Python {platform.python_version()}, {platform.machine()}, median of {rounds} processes each")
    for statement, column in zip(STATEMENTS, zip(*times_ms, strict=True), strict=True):
        print(f"{statement:<28} {statistics.median(column):8.1f} ms")
    # Of pairs that ran one after the other, which load on the machine changes alike.
    added = statistics.median(ours - torch for torch, ours in times_ms)
    print(f"{'added by flopcallback':<28} {added:8.1f} ms")


if __name__ == "__main__":
    main()
