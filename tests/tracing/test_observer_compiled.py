"""Steps with compiled code: what ran counts, nothing is compiled that would not be, and no digit changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flopcallback import FlopCountAnalysis
from flopcallback.modules.names import ModuleNames
from flopcallback.profiling.build import StepAnalysis
from flopcallback.tracing.observer import StepRecorder
from flopcallback.tracing.phases import BACKWARD, FORWARD, OPTIMIZER

BATCH, WIDE, INNER, OUT = 8, 5, 7, 3
FIRST, SECOND = 2 * BATCH * WIDE * INNER, 2 * BATCH * INNER * OUT
ROUNDS = 4

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the compiler's own


@pytest.fixture(params=["aot_eager", "inductor"])
def graphs(request, compiler):
    """A compiler that counts the graphs it is given."""
    return Graphs(request.param)


@pytest.fixture
def compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    def __init__(self, backend):
        self.compiled = 0
        self._backend = torch._dynamo.lookup_backend(backend)

    def __call__(self, graph, inputs):
        self.compiled += 1
        return self._backend(graph, inputs)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDE, INNER), nn.ReLU(), nn.Linear(INNER, OUT))


def whole(model, optimizer, graphs):
    compiled = torch.compile(model, backend=graphs)
    return compiled, lambda: compiled(torch.ones(BATCH, WIDE)).sum().backward()


def raw_model_of_a_compiled_copy(model, optimizer, graphs):
    return model, whole(model, optimizer, graphs)[1]


def child(model, optimizer, graphs):
    model[2] = torch.compile(model[2], backend=graphs)
    return model, lambda: model(torch.ones(BATCH, WIDE)).sum().backward()


def function_that_calls_modules(model, optimizer, graphs):
    loss = torch.compile(lambda x: model(x).sum(), backend=graphs, fullgraph=True)
    return model, lambda: loss(torch.ones(BATCH, WIDE)).backward()


def optimizer_step(model, optimizer, graphs):
    optimizer.step = torch.compile(optimizer.step, backend=graphs)
    return model, lambda: model(torch.ones(BATCH, WIDE)).sum().backward()


def broken_graph(model, optimizer, graphs):
    @torch.compile(backend=graphs)
    def loss(x):
        hidden = model[0](x)
        torch._dynamo.graph_break()
        return model[2](hidden.relu()).sum()

    return model, lambda: loss(torch.ones(BATCH, WIDE)).backward()


KINDS = (whole, raw_model_of_a_compiled_copy, child, function_that_calls_modules, optimizer_step, broken_graph)


def train(kind, graphs, *, observed):
    """Parameters after some steps, and FLOPs by phase and module of each step."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    root, step = kind(model, optimizer, graphs)
    seen = []
    for number in range(ROUNDS):
        observer = StepRecorder(ModuleNames({"": root}), [optimizer])
        # On and off, so that what is installed for a step would be met by a guard of the next one's.
        if observed and number != 1:
            with observer.watching(), observer.on(is_forward=False):
                step()
                optimizer.step()
            assert observer.failure is None
            runs = observer.runs()
            seen.append({phase: +StepAnalysis.of_run(run, root).by_module() for phase, run in runs.items()})
        else:
            step()
            optimizer.step()
        optimizer.zero_grad()
    return list(model.parameters()), seen


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_step_counts_what_ran_also_the_one_that_compiles(kind, graphs):
    _, seen = train(kind, graphs, observed=True)
    is_by_module = kind in (child, optimizer_step)
    layers = {"0": FIRST, "2": SECOND} if is_by_module else {}
    gradients = {"0": FIRST, "2": 2 * SECOND} if is_by_module else {}
    for step in seen:
        assert step[FORWARD] == {"": FIRST + SECOND, **layers}
        assert step[BACKWARD] == {"": FIRST + 2 * SECOND, **gradients}
        assert step[OPTIMIZER] == {}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_as_many_graphs_are_compiled_and_every_digit_is_the_same(kind, graphs):
    observed, _ = train(kind, graphs, observed=True)
    compiled, graphs.compiled = graphs.compiled, 0
    torch._dynamo.reset()
    plain, _ = train(kind, graphs, observed=False)
    assert compiled == graphs.compiled > 0
    assert all(map(torch.equal, observed, plain))


def test_a_compiled_model_is_counted_as_it_runs(graphs):
    compiled = torch.compile(net(), backend=graphs)
    compiled(torch.ones(BATCH, WIDE))
    before = graphs.compiled
    assert FlopCountAnalysis(compiled, torch.ones(BATCH, WIDE), fma=2, engine="observer").total() == FIRST + SECOND
    assert graphs.compiled == before


class Mixes(nn.Module):
    def __init__(self, mix, wide, out):
        super().__init__()
        self.weight, self.head, self.mix = nn.Parameter(torch.ones(wide, out)), nn.Linear(out, OUT), mix

    def forward(self, x):
        return self.head(self.mix(x, self.weight))


def batched(x, weight):
    return torch.bmm(x[None], weight[None])[0]


@pytest.mark.parametrize("shape", [(BATCH, WIDE, INNER), (1, WIDE, INNER), (BATCH, 1, INNER), (BATCH, WIDE, 1)])
@pytest.mark.parametrize("mix", [torch.mm, batched], ids=["mm", "bmm"])
def test_a_compiled_function_may_have_done_more_than_its_records_say(mix, shape, graphs):
    rows, wide, out = shape
    model = Mixes(torch.compile(mix, backend=graphs), wide, out)
    head, product = 2 * rows * out * OUT, 2 * rows * wide * out
    model.requires_grad_(False)  # with gradients the compiler's autograd function is not known either
    analysis = FlopCountAnalysis(model, torch.ones(rows, wide), fma=2, engine="observer")
    assert analysis.total() in (head, head + product)  # a compiler may write a thin product as a loop
    assert list(analysis.unsupported_ops()) == [f"torch.compile::{mix.__name__}"]
