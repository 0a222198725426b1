"""Error of FLOP counters against multiply-adds on paper.

Usage: python benchmarks/accuracy.py [--quick] [--peers] [--page] [MODEL ...]

The work is matrix products, convolutions, attention and recurrent layers. Norms and other operators, for which the
counters have different conventions, are left out if a counter reports them separately. PyTorch's counter counts 2 per
multiply-add: its figure is halved. fvcore gets the tensors-in, tensors-out wrapper that it needs.
--peers adds the counters that `peers.py` installs. --page writes the table into docs/accuracy.md.
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

# fvcore's names of the work in question.
FVCORE_PRODUCTS = frozenset({"conv", "linear", "matmul", "addmm", "mm", "bmm", "einsum"})


def ours(case: Case) -> int:
    with torch.set_grad_enabled(case.grad):
        # FLOPs are 2 per multiply-add, without norms and elementwise work.
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
    """Format the error in percent of the truth.

    An exact figure is `0`, a rounded one `0.00`.
    """
    return "0" if counted == on_paper else f"{100 * (counted - on_paper) / on_paper:+.2f}"


def of_counter(counter: Callable[[Case], int], case: Case) -> str:
    """Format the error of a counter in this process."""
    try:
        return error(counter(case), case.multiply_adds)
    except Exception as failure:  # noqa: BLE001 - a counter that cannot count a model is a result too
        return f"fails: {type(failure).__name__}"


def of_peer(answer: peers.Answer, on_paper: int) -> str:
    """Format the error of a counter in another process."""
    return f"fails: {answer.error}" if answer.multiply_adds is None else error(answer.multiply_adds, on_paper)


def row(name: str, peer_names: list[str], *, small: bool) -> list[str]:
    """Return a model's row of the table.

    The reason why a peer has no figure goes to stderr.
    """
    case = build(name, small=small)
    on_paper = case.multiply_adds
    errors = [of_counter(counter, case) for counter in COUNTERS.values()]
    # The peers' processes build the model again: this one need not be in memory as well.
    del case
    gc.collect()
    answers = peers.ask(peer_names, name, small=small) if peer_names else []
    for peer, answer in zip(peer_names, answers, strict=True):
        if answer.error:
            print(f"{name}: {peer}: {answer.error}: {answer.message}", file=sys.stderr)
    return [name, f"{on_paper:,}", *errors, *(of_peer(answer, on_paper) for answer in answers)]


def with_table(page: str, table: str) -> str:
    """Replace the table of a page.

    Raises:
        ValueError: the page has no place for a table.
    """
    if TABLE.search(page) is None:
        raise ValueError("no place for the table: two comments, written by benchmarks/accuracy.py and end")
    # A function, since a table may contain backslashes, which a template would interpret.
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
    peer_names = [peer for peer, package in peers.PACKAGES.items() if package in installed]
    rows = []
    for name in options.models or MODELS:
        rows.append(row(name, peer_names, small=options.quick))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)

    facts = [environment("transformers", "fvcore"), *(f"{package} {version}" for package, version in installed.items())]
    table = markdown(["model", "multiply-adds", *COUNTERS, *peer_names], rows)
    result = f"{', '.join(facts)}.\n\n{table}"
    print(f"\n{result}")
    if options.page:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")
    sys.exit(any(ours_error != "0" for _, _, ours_error, *_ in rows))


if __name__ == "__main__":
    main()
