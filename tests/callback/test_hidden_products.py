"""Products of compiled code that leave no records: exact where it is certain that they ran, else not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flopcallback import FlopHook
from flopcallback.modules.compiled import chooses_kernels
from flopcallback.profile.rows import StepFlops
from flopcallback.tracing.torch_private import switch_records

pytestmark = [
    pytest.mark.slow,
    # 2026-11, torch 2.13: Dynamo asks every input of a compiled function for its grad, with or without us.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]

BATCH, WIDE, INNER, OUT = 5, 7, 11, 3
STEPS = 6


@pytest.fixture(autouse=True)
def compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make_net(wide=WIDE, out=OUT):
    return nn.Sequential(nn.Linear(wide, INNER), nn.Tanh(), nn.Linear(INNER, out))


def whole(model):
    return torch.compile(model)


def in_place(model):
    model.compile()
    return model


def child(model):
    return nn.Sequential(nn.Identity(), torch.compile(model))


def train(called, inputs):
    """The hook after a step for each of the inputs."""
    optimizer = torch.optim.SGD(called.parameters(), lr=0.01)
    options = {"warmup_steps": 0, "latency_steps": 2, "summary": False}
    with FlopHook(called, optimizer, **options) as hook:
        for x in inputs:
            called(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return hook


def spent(hook):
    numbers = hook.metrics()
    return numbers["compute/flops_total"], numbers["compute/estimated_pct"]


def layers(rows, wide, out):
    """FLOPs of the forward's two products."""
    return 2 * rows * wide * INNER, 2 * rows * INNER * out


@pytest.mark.parametrize("how", [whole, in_place, child], ids=lambda how: how.__name__)
@pytest.mark.parametrize(
    ("rows", "wide", "out"),
    [(BATCH, WIDE, OUT), (1, WIDE, OUT), (BATCH, 1, OUT), (BATCH, WIDE, 1), (1, 1, 1)],
    ids=["none", "one row", "one input", "one output", "one of each"],
)
def test_layers(how, rows, wide, out):
    hook = train(how(make_net(wide, out)), [torch.ones(rows, wide)] * STEPS)
    first, second = layers(rows, wide, out)
    assert hook.profile.step == StepFlops(forward=first + second, backward=first + 2 * second)
    by_layer = {row.path[-1]: row.step for row in hook.profile.modules if row.type == "Linear"}
    assert by_layer == {"0": StepFlops(first, first), "2": StepFlops(second, 2 * second)}
    assert hook.profile.step_note == ""
    assert spent(hook) == (STEPS * (2 * first + 3 * second), 0)


def test_each_kind_of_step():
    # A step that compiles makes nodes of autograd, by which it is of another kind than the next one of its shape.
    rows = [BATCH, BATCH, 1, BATCH, 2, 1, 1, 2, 2, BATCH]
    hook = train(whole(make_net(out=1)), [torch.ones(count, WIDE) for count in rows])
    first, second = layers(1, WIDE, 1)
    assert spent(hook) == (sum(rows) * (2 * first + 3 * second), 0)


def test_gradients_of_the_inputs():
    """The compiled part is in the middle, so that its input has a gradient."""
    last = torch.compile(nn.Linear(INNER, 1))
    hook = train(nn.Sequential(nn.Linear(WIDE, INNER), nn.Tanh(), last), [torch.ones(BATCH, WIDE)] * STEPS)
    first, second = layers(BATCH, WIDE, 1)
    assert hook.profile.step == StepFlops(forward=first + second, backward=first + 2 * second)
    assert spent(hook) == (STEPS * (2 * first + 3 * second), 0)


def test_an_eager_product_of_the_same_size_is_another_one():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.eager, self.fast = nn.Linear(WIDE, INNER), nn.Linear(INNER, 1), nn.Linear(INNER, 1)
            self.fast.compile()

        def forward(self, x):
            inside = self.body(x).tanh()
            return self.eager(inside) + self.fast(inside)

    hook = train(Net(), [torch.ones(BATCH, WIDE)] * STEPS)
    first, second = layers(BATCH, WIDE, 1)
    assert hook.profile.step == StepFlops(forward=first + 2 * second, backward=first + 4 * second)
    assert spent(hook) == (STEPS * (2 * first + 6 * second), 0)


def test_one_query():
    """Pooling by attention: one learned query for each sequence."""

    class Pooling(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.keys = nn.Parameter(torch.ones(1, 1, INNER)), nn.Linear(WIDE, INNER)

        def forward(self, x):
            keys = self.keys(x)
            scores = torch.bmm(self.query.expand(len(x), 1, INNER), keys.transpose(1, 2))
            return torch.bmm(scores.softmax(-1), keys)

    tokens = 13
    hook = train(whole(Pooling()), [torch.ones(BATCH, tokens, WIDE)] * STEPS)
    first, product = 2 * BATCH * tokens * WIDE * INNER, 2 * BATCH * tokens * INNER
    assert hook.profile.step == StepFlops(forward=first + 2 * product, backward=first + 4 * product)
    assert spent(hook) == (STEPS * (2 * first + 6 * product), 0)


# --- Where it is not certain ------------------------------------------------------------------------------------------


class WithAnUnusedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.unused = nn.Linear(WIDE, INNER), nn.Linear(INNER, OUT), nn.Linear(INNER, 1)

    def forward(self, x):
        inside = self.body(x).tanh()
        self.unused(inside)
        return self.head(inside)


class WithOneHeadTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(WIDE, INNER), nn.Linear(INNER, 1)

    def forward(self, x):
        inside = self.body(x).tanh()
        return self.head(inside) + self.head(inside)


class AskingForAValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(WIDE, INNER), nn.Linear(INNER, 1)

    def forward(self, x):
        inside = self.body(x).tanh()
        return self.head(inside if inside.sum() < 1e9 else -inside)


@pytest.mark.parametrize("kind", [WithAnUnusedHead, WithOneHeadTwice, AskingForAValue])
def test_a_product_that_may_have_been_left_out_is_not_called_exact(kind):
    """No result needs it; or another product is the same one; or fake tensors do not have what the code asks for."""
    hook = train(whole(kind()), [torch.ones(BATCH, WIDE)] * STEPS)
    assert spent(hook)[1] == 100


def test_a_call_that_has_no_backward_is_not_given_one():
    """All products of this model may be hidden, and of one of its two calls a backward is made."""
    model = torch.compile(nn.Linear(1, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with FlopHook(model, optimizer, warmup_steps=0, latency_steps=2, summary=False) as hook:
        for _ in range(STEPS):
            model(torch.ones(1, 1))
            model(torch.ones(1, 1)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    product = 2 * 1 * 1 * 1  # two forwards, and one gradient of the weight
    total, estimated_pct = spent(hook)
    assert estimated_pct == 100 or total == STEPS * 3 * product


def test_compiled_code_that_is_no_module_is_not_run_for_its_count():
    calls = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(WIDE, INNER)
            self.weight = nn.Parameter(torch.ones(INNER, 1))
            self.score = torch.compile(self.scored)

        @staticmethod
        def scored(inside, weight):
            calls.append(torch.compiler.is_compiling())
            return inside @ weight

        def forward(self, x):
            return self.score(self.body(x), self.weight)

    hook = train(Net(), [torch.ones(BATCH, WIDE)] * STEPS)
    assert spent(hook)[1] == 100
    assert len(calls) == STEPS  # as without us: what is compiled appends in each step


# --- Kernels of the compiler's own, as on a GPU -----------------------------------------------------------------------


@pytest.fixture
def compiled(monkeypatch):
    """A network by a compiler that torch knows by name, as it does those for GPUs."""
    from torch._dynamo.backends import registry

    def make(forwards, backwards):
        compiler = backend(forwards, backwards)
        compiler._tags = ()
        monkeypatch.setitem(registry._COMPILER_FNS, "own_kernels", compiler)
        monkeypatch.setitem(registry._BACKENDS, "own_kernels", None)
        return torch.compile(make_net(), backend="own_kernels")

    return make


def backend(forwards, backwards):
    """A compiler whose code leaves records in so many calls of a forward and of a backward only."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def compiler(most):
        def compile_graph(graph, _):
            calls = iter(range(1000))

            def run(*args):
                if next(calls) < most:
                    return graph(*args)
                switch_records(False)
                try:
                    return graph(*args)
                finally:
                    switch_records(True)

            return make_boxed_func(run)

        return compile_graph

    return aot_autograd(fw_compiler=compiler(forwards), bw_compiler=compiler(backwards))


ALWAYS, MANY = 1000, 60


def test_replays_are_booked_as_what_they_repeat(compiled):
    """A graph of CUDA's is run, then captured, then replayed, with no operator to be seen."""
    hook = train(compiled(2, 2), [torch.ones(BATCH, WIDE)] * MANY)
    first, second = layers(BATCH, WIDE, OUT)
    assert hook.profile.step == StepFlops(forward=first + second, backward=first + 2 * second)
    assert spent(hook) == (MANY * (2 * first + 3 * second), 0)


@pytest.mark.parametrize(("forwards", "backwards"), [(ALWAYS, 0), (0, ALWAYS), (0, 0)])
def test_kernels_without_records_are_no_zero(compiled, forwards, backwards):
    hook = train(compiled(forwards, backwards), [torch.ones(BATCH, WIDE)] * MANY)
    assert hook.profile.step is None
    first, second = layers(BATCH, WIDE, OUT)
    assert spent(hook) == (MANY * 3 * (first + second), 100)  # three forwards a step


def test_another_compiler_that_leaves_all_records_is_exact(compiled):
    hook = train(compiled(ALWAYS, ALWAYS), [torch.ones(BATCH, WIDE)] * STEPS)
    first, second = layers(BATCH, WIDE, OUT)
    assert spent(hook) == (STEPS * (2 * first + 3 * second), 0)


@pytest.mark.parametrize(
    ("options", "chooses"),
    [
        ({}, False),
        ({"backend": "aot_eager"}, False),
        ({"backend": backend(ALWAYS, ALWAYS)}, False),
        ({"mode": "reduce-overhead"}, True),
        ({"options": {"max_autotune": True}}, True),
    ],
    ids=["inductor", "none", "a function", "mode", "options"],
)
def test_which_compilers_may_use_kernels_of_their_own(options, chooses):
    torch.compile(make_net(), **options)(torch.ones(BATCH, WIDE))
    assert chooses_kernels() is chooses


def test_a_setting_that_makes_inductor_choose_kernels():
    import torch._inductor.config as inductor

    torch.compile(make_net())(torch.ones(BATCH, WIDE))
    with inductor.patch(max_autotune_gemm=True):  # `monkeypatch` would take the setting away altogether at its end
        assert chooses_kernels()
