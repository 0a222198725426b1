"""Time of one count over one plain forward, for three counters.

Usage: python benchmarks/count_time.py [--quick] [--rounds 7] [--threads N] [MODEL ...]

The counters take turns in one process. In every round each counter counts once, with a new analysis and right after a
plain `no_grad` forward of its own; the ratio of such a pair is robust against other load on the machine. The script
prints medians over the rounds, without the first round. The column of milliseconds is the forward's median.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from cases import Case, TensorsOnly
from models import MODELS, build
from report import environment, markdown
from torch.utils.flop_counter import FlopCounterMode

from flopcallback import FlopCountAnalysis

DEFAULT = (
    "BERT", "GPT-2", "Llama, grouped queries", "ViT-B", "ResNet-50", "MobileNetV2", "Llama, 24 layers of 256",
)  # fmt: skip


def ours(case: Case) -> int:
    return FlopCountAnalysis(case.model, (), case.inputs).total()


def fvcore(case: Case) -> int:
    from fvcore.nn import FlopCountAnalysis as Ancestor

    analysis = Ancestor(TensorsOnly(case), tuple(case.inputs.values()))
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()


def torch_counter(case: Case) -> int:
    with FlopCounterMode(display=False) as counter:
        case.call()
    return counter.get_total_flops()


COUNTERS: dict[str, Callable[[Case], Any]] = {"ours": ours, "fvcore": fvcore, "FlopCounterMode": torch_counter}


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def one_round(case: Case) -> dict[str, tuple[float, float]]:
    """Return seconds of a plain forward and of a count, by counter."""
    return {name: (seconds(case.call), seconds(lambda c=counter: c(case))) for name, counter in COUNTERS.items()}


def measured(name: str, rounds: int, *, small: bool) -> list[str]:
    """Measure a row of the table."""
    case = build(name, small=small)
    with torch.no_grad():
        pairs = [one_round(case) for _ in range(rounds + 1)][1:]  # the first round loads code and fills caches
    ratios = [statistics.median(pair[name][1] / pair[name][0] for pair in pairs) for name in COUNTERS]
    forward_s = statistics.median(forward for pair in pairs for forward, _ in pair.values())
    return [name, f"{1000 * forward_s:.0f}", *(f"{ratio:.2f}" for ratio in ratios)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--quick", action="store_true", help="small models, 3 rounds: shows that it runs, no more")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of torch; its own default otherwise")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("fvcore").setLevel(logging.ERROR)

    rows = []
    for name in options.models or DEFAULT:
        rows.append(measured(name, 3 if options.quick else options.rounds, small=options.quick))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
        gc.collect()

    print(f"\n{environment('transformers', 'fvcore')}\n")
    print(markdown(["model", "forward, ms", *COUNTERS], rows))


if __name__ == "__main__":
    main()
