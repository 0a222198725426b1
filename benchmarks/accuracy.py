"""Error of three counters against multiply-adds on paper: products, convolutions, attention, recurrent layers.

Usage: python benchmarks/accuracy.py [--quick] [MODEL ...]

Norms and other operators, about whose cost the counters differ by convention, are left out of all three. PyTorch's
counter says 2 per multiply-add: halved. fvcore gets the tensors-in, tensors-out wrapper that it needs.
The exit status is 1 if ours is not exact on every model.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import warnings
from collections.abc import Callable

import torch
from models import MODELS, Case, TensorsOnly, build
from report import environment, markdown
from torch.utils.flop_counter import FlopCounterMode

from flopcallback import FlopCountAnalysis

# What fvcore counts of these kinds of work, by its own names.
FVCORE_PRODUCTS = frozenset({"conv", "linear", "matmul", "addmm", "mm", "bmm", "einsum"})


def ours(case: Case) -> int:
    with torch.set_grad_enabled(case.grad):
        return FlopCountAnalysis(case.model, (), case.inputs).hardware_flops()[""] // 2


def fvcore(case: Case) -> int:
    from fvcore.nn import FlopCountAnalysis as Ancestor

    analysis = Ancestor(TensorsOnly(case), tuple(case.inputs.values()))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.set_grad_enabled(case.grad):
        by_operator = analysis.by_operator()
    return round(sum(count for name, count in by_operator.items() if name in FVCORE_PRODUCTS))


def torch_counter(case: Case) -> int:
    with FlopCounterMode(display=False) as counter:
        case.call()
    return counter.get_total_flops() // 2


COUNTERS: dict[str, Callable[[Case], int]] = {"ours": ours, "fvcore": fvcore, "FlopCounterMode": torch_counter}


def error(counter: Callable[[Case], int], case: Case) -> str:
    """In percent of the truth; what is exact to the last multiply-add is marked as such."""
    try:
        difference = counter(case) - case.multiply_adds
    except Exception as failure:  # noqa: BLE001 - a counter that cannot count a model is a result too
        return f"fails ({type(failure).__name__})"
    return "0" if difference == 0 else f"{100 * difference / case.multiply_adds:+.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes of the same architectures")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("fvcore").setLevel(logging.ERROR)

    rows = []
    for name in options.models or MODELS:
        case = build(name, small=options.quick)
        rows.append([name, f"{case.multiply_adds:,}", *(error(counter, case) for counter in COUNTERS.values())])
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
        del case
        gc.collect()

    print(f"\n{environment('transformers', 'fvcore')}\n")
    print(markdown(["model", "multiply-adds", *(f"{name}, %" for name in COUNTERS)], rows))
    sys.exit(any(row[2] != "0" for row in rows))


if __name__ == "__main__":
    main()
