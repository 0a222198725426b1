"""The second engine by itself: what its cached knowledge and its process-wide parts may not do."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
from torch import nn

from flopcallback import Cost, FlopCountAnalysis, register_formula, unregister_formula
from flopcallback.tracing.regions import replaced
from flopcallback.tracing.run import _doubled_recursion_limit

library = torch.library.Library("flopcallback_dispatch_tests", "DEF")
library.define("composite(Tensor x) -> Tensor")
library.impl("composite", lambda x: x @ x.t(), "CompositeImplicitAutograd")


@torch.inference_mode()
def composite(x):
    return torch.ops.flopcallback_dispatch_tests.composite(x)


def test_a_formula_registered_after_a_first_count_is_asked(x):
    def count():
        # A nested count goes to the dispatcher, where the operator arrives whole under inference mode.
        totals = []
        FlopCountAnalysis(lambda x: totals.append(FlopCountAnalysis(composite, x).total()), x).total()
        return totals[0]

    name = "flopcallback_dispatch_tests::composite"
    assert count() == 2 * 3 * 2
    register_formula(name, lambda call: Cost(fma=7777))
    try:
        assert count() == 7777
    finally:
        unregister_formula(name)
    assert count() == 2 * 3 * 2


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_attention_of_a_thread_that_the_call_did_not_start_is_not_counted():
    from torch.nn.attention.flex_attention import flex_attention

    q = torch.ones(1, 2, 16, 8)
    flex_attention(q, q, q)
    layer = nn.Linear(3, 5)

    def forward(x):
        begin.set()
        assert ended.wait(60)
        return layer(x)

    def beside():
        begin.wait(60)
        flex_attention(q, q, q)
        ended.set()

    begin, ended = threading.Event(), threading.Event()
    thread = threading.Thread(target=beside)
    thread.start()
    flops = FlopCountAnalysis(forward, torch.ones(2, 3), engine="dispatch")
    assert flops.by_operator() == {"addmm": 30}
    thread.join()


def test_replacements_may_end_in_another_order_than_they_began():
    class Owner:
        name = "original"

    limit = sys.getrecursionlimit()
    contexts = [(replaced(Owner, "name", str.upper), _doubled_recursion_limit()) for _ in range(2)]
    for context in contexts:
        for one in context:
            one.__enter__()
    assert Owner.name == "ORIGINAL"
    assert sys.getrecursionlimit() == 2 * limit
    for context in contexts:  # the first to begin is the first to end
        for one in context:
            one.__exit__(None, None, None)
    assert Owner.name == "original"
    assert sys.getrecursionlimit() == limit
