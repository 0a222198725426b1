"""Error of counters against multiply-adds on paper: matrix products, convolutions, attention, recurrent layers.

Usage: python benchmarks/accuracy.py [--quick] [--peers] [--page] [MODEL ...]

Norms and other operators, about whose cost the counters differ by convention, are left out where a counter tells them
apart. PyTorch's counter says 2 per multiply-add: halved. fvcore gets the tensors-in, tensors-out wrapper that it needs.
With --peers come the counters that `peers.py` installs. With --page the table goes into docs/accuracy.md.
The exit status is 1 if ours is not exact on every model.
"""

from __future__ import annotations

import argparse
import gc
import logging
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import peers
import torch
from cases import Case, TensorsOnly
from models import MODELS, build
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


PAGE = Path(__file__).parents[1] / "docs" / "accuracy.md"
TABLE = re.compile(r"(?<=<!-- written by benchmarks/accuracy.py -->\n).*?(?=<!-- end -->)", re.DOTALL)


def error(counted: int, on_paper: int) -> str:
    """In percent of the truth; what is exact to the last multiply-add is marked as such."""
    return "0" if counted == on_paper else f"{100 * (counted - on_paper) / on_paper:+.2f}"


def of_counter(counter: Callable[[Case], int], case: Case) -> str:
    """The error of a counter of this process."""
    try:
        return error(counter(case), case.multiply_adds)
    except Exception as failure:  # noqa: BLE001 - a counter that cannot count a model is a result too
        return f"fails: {type(failure).__name__}"


def of_peer(answer: peers.Answer, on_paper: int) -> str:
    """The error of a counter of another process."""
    return f"fails: {answer.error}" if answer.multiply_adds is None else error(answer.multiply_adds, on_paper)


def row(name: str, others: list[str], *, small: bool) -> list[str]:
    """A model's line of the table; why a peer gave no figure goes to the standard error stream."""
    case = build(name, small=small)
    on_paper = case.multiply_adds
    errors = [of_counter(counter, case) for counter in COUNTERS.values()]
    del case
    gc.collect()
    answers = peers.ask(others, name, small=small) if others else []
    for peer, answer in zip(others, answers, strict=True):
        if answer.error:
            print(f"{name}: {peer}: {answer.error}: {answer.message}", file=sys.stderr)
    return [name, f"{on_paper:,}", *errors, *(of_peer(answer, on_paper) for answer in answers)]


def with_table(page: str, table: str) -> str:
    """The page with another table.

    Raises:
        ValueError: the page has no place for one.
    """
    if TABLE.search(page) is None:
        raise ValueError("no place for the table: two comments, written by benchmarks/accuracy.py and end")
    return TABLE.sub(lambda _: f"\n{table}\n\n", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes of the same architectures")
    parser.add_argument("--peers", action="store_true", help="the counters that peers.py installs, as well")
    parser.add_argument("--page", action="store_true", help=f"write the table into {PAGE.name}")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("fvcore").setLevel(logging.ERROR)

    installed = peers.versions() if options.peers else {}
    others = [peer for peer, package in peers.PACKAGES.items() if package in installed]
    rows = []
    for name in options.models or MODELS:
        rows.append(row(name, others, small=options.quick))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)

    facts = [environment("transformers", "fvcore"), *(f"{package} {which}" for package, which in installed.items())]
    table = markdown(["model", "multiply-adds", *COUNTERS, *others], rows)
    result = f"{', '.join(facts)}.\n\n{table}"
    print(f"\n{result}")
    if options.page:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")
    sys.exit(any(each[2] != "0" for each in rows))


if __name__ == "__main__":
    main()
