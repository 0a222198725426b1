"""What `docs/how-it-counts.md` says against other ways to count, each seen to happen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flopcallback import FlopCountAnalysis

x = torch.rand(2, 3)


class Gated(nn.Module):
    """One layer decides which way to go, and nothing else."""

    def __init__(self):
        super().__init__()
        self.gate, self.layer = nn.Linear(3, 1), nn.Linear(3, 5)

    def forward(self, x):
        return self.layer(x if self.gate(x).sum() > 0 else 2 * x)


class Functional(nn.Module):
    """The same product by three ways past `nn.Linear.__call__`."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 5, bias=False)

    def forward(self, x):
        return self.layer.forward(x) + F.linear(x, self.layer.weight) + x @ self.layer.weight.T


def calls_that_hooks_see(model: nn.Module, *inputs: torch.Tensor) -> set[str]:
    seen = set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: seen.add(name))
    model(*inputs)
    return seen


def flops_of_pytorchs_counter(call, *inputs) -> int:
    with FlopCounterMode(display=False) as counter:
        call(*inputs)
    return counter.get_total_flops()


def test_hooks_miss_functions_and_explicit_forward_calls():
    assert calls_that_hooks_see(Functional(), x) == {""}
    assert FlopCountAnalysis(Functional(), x).by_module() == {"": 3 * 2 * 3 * 5, "layer": 2 * 3 * 5}


def test_hooks_miss_the_output_projection_of_attention():
    attention = nn.MultiheadAttention(6, 2, batch_first=True)
    tokens = torch.rand(2, 3, 6)
    assert calls_that_hooks_see(attention, tokens, tokens, tokens) == {""}


def test_patches_miss_names_imported_before_and_products_inside_cpp(monkeypatch):
    linear_imported_before, seen = F.linear, []
    for owner, name in ((F, "linear"), (torch, "matmul"), (torch, "mm"), (torch, "addmm")):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, original=original: seen.append(args) or original(*args))
    linear_imported_before(x, torch.rand(5, 3))
    nn.LSTM(3, 5)(torch.rand(7, 2, 3))
    assert not seen
    F.linear(x, torch.rand(5, 3))
    assert len(seen) == 1


def test_the_public_tracer_loses_what_reaches_no_output():
    graph = torch.jit.trace(Stashing(), x).inlined_graph
    assert sum(node.kind() == "aten::linear" for node in graph.nodes()) == 1
    assert FlopCountAnalysis(Stashing(), x).total() == 2 * 3 * 7 + 2 * 3 * 5


class Stashing(nn.Module):
    """Keeps an auxiliary result on itself."""

    def __init__(self):
        super().__init__()
        self.auxiliary, self.layer = nn.Linear(3, 7), nn.Linear(3, 5)

    def forward(self, x):
        self.kept = self.auxiliary(x)
        return self.layer(x)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_public_tracer_wants_tensors_out():
    class Mixed(nn.Linear):
        def forward(self, x):
            return {"y": super().forward(x), "n": 3}

    with pytest.raises(RuntimeError, match="Tracer cannot infer type"):
        torch.jit.trace(Mixed(3, 5), x)
    assert FlopCountAnalysis(Mixed(3, 5), x).total() == 2 * 3 * 5


def test_symbolic_graphs_raise_at_an_if_on_data():
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(Gated())
    assert FlopCountAnalysis(Gated(), x).total() == 2 * 3 * 1 + 2 * 3 * 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what torch says about its own export
def test_export_raises_at_an_if_on_data():
    with pytest.raises(Exception, match="data-dependent"):
        torch.export.export(Gated(), (x,))


@pytest.mark.parametrize(
    ("call", "inputs", "multiply_adds"),
    [
        (F.scaled_dot_product_attention, [torch.rand(2, 3, 5, 7)] * 3, 2 * (2 * 3) * 5 * 5 * 7),
        (nn.LSTM(3, 5), [torch.rand(7, 2, 3)], 7 * 2 * 4 * 5 * (3 + 5)),
        (torch.mv, [torch.rand(3, 5), torch.rand(5)], 3 * 5),
    ],
    ids=["attention", "lstm", "mv"],
)
def test_what_pytorchs_counter_passes_over_on_a_cpu(call, inputs, multiply_adds):
    assert flops_of_pytorchs_counter(call, *inputs) == 0
    assert FlopCountAnalysis(call, tuple(inputs)).total() == multiply_adds


def test_the_fast_path_of_encoders_hides_them_from_the_dispatcher():
    encoder, tokens = nn.TransformerEncoderLayer(6, 2, 11, batch_first=True).eval(), torch.rand(2, 3, 6)
    with torch.no_grad():
        assert flops_of_pytorchs_counter(encoder, tokens) == 0
        counted = FlopCountAnalysis(encoder, tokens).hardware_flops()[""]
    projections, scores_and_values, linears = 4 * 2 * 3 * 6 * 6, 2 * 2 * 3 * 3 * 6, 2 * 2 * 3 * 6 * 11
    assert counted == 2 * (projections + scores_and_values + linears)
