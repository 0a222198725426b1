"""Compiled functions and optimizers in a step run as they are, compile as often as without us, and are seen."""

from __future__ import annotations

import contextlib
import sys

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from flopcallback import FlopCountAnalysis, FlopHook
from flopcallback.modules import compiled
from flopcallback.profile.rows import StepFlops
from flopcallback.trackers import MemoryTracker

pytestmark = [
    pytest.mark.slow,
    # 2026-11, torch 2.13: Dynamo asks every input of a compiled function for its grad, with or without us.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]

BATCH, LAST_BATCH, WIDE, INNER, OUT = 7, 5, 11, 13, 3
STEPS, STEPS_AFTER = 7, 2  # the hook is closed in between
FIRST, SECOND = 2 * BATCH * WIDE * INNER, 2 * BATCH * INNER * OUT  # FLOPs of the forward's two products


@pytest.fixture
def backend():
    """Runs the graphs as AOT autograd makes them, and counts how many there are."""
    import torch._dynamo.testing

    torch._dynamo.reset()
    yield torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()


def unwatched(*_):
    return contextlib.nullcontext()


def watched(model, optimizer, **options):
    return FlopHook(
        model, optimizer, **{"warmup_steps": 0, "latency_steps": 2, "summary": False, "strict": True, **options}
    )


class Net(nn.Module):
    """Two layers; what is between them is compiled, by `compile_it`."""

    def __init__(self, compile_it):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(WIDE, INNER), nn.LayerNorm(INNER), nn.Linear(INNER, OUT)
        self.between = [self.make(compile_it)]

    def make(self, compile_it):
        return compile_it(lambda x: F.gelu(x) * torch.sigmoid(x))

    def forward(self, x):
        return self.last(self.between[0](self.first(x)))


class AMethodThatCallsModules(Net):
    def make(self, compile_it):
        return compile_it(self.scaled)

    def scaled(self, x):
        return self.norm(torch.relu(x))


class AModuleThatIsNoChild(Net):
    def make(self, compile_it):
        return compile_it(self.norm)


class InsideAFunction(Net):
    def make(self, compile_it):
        forward = compile_it(lambda x: x * torch.sigmoid(x))
        backward = compile_it(lambda x: torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x))))

        class Swish(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return forward(x)

            @staticmethod
            def backward(ctx, grad):
                return grad * backward(*ctx.saved_tensors)

        return Swish.apply


class InACheckpoint(Net):
    def forward(self, x):
        def piece(x):
            return self.between[0](self.first(x))

        return self.last(torch.utils.checkpoint.checkpoint(piece, x, use_reentrant=False))


class AFunctionThatRaises(Net):
    """Its error is caught, and the forward goes on."""

    def make(self, compile_it):
        def fails(x):
            raise ValueError("the model's own")

        return compile_it(fails)

    def forward(self, x):
        inside = self.first(x)
        with contextlib.suppress(ValueError):
            self.between[0](inside)
        return self.last(inside)


def train(hook, kind, compile_it, backend, optimizer_of=None, loss=lambda scores: scores.square().mean()):
    """What a training leaves, how often it compiled, and the hook."""
    torch._dynamo.reset()
    backend.frame_count = 0
    torch.manual_seed(3)
    model = kind(compile_it)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    step = optimizer.step if optimizer_of is None else optimizer_of(optimizer)

    def steps(count):
        for index in range(count):
            rows = BATCH if index % 4 < 3 else LAST_BATCH  # another shape compiles once more
            loss(model(torch.randn(rows, WIDE))).backward()
            step()
            optimizer.zero_grad()

    with hook(model, optimizer) as seen:
        steps(STEPS)
    steps(STEPS_AFTER)
    left = {"weights": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
    return left, backend.frame_count, seen


KINDS = [Net, AMethodThatCallsModules, AModuleThatIsNoChild, InsideAFunction, InACheckpoint]


WHOLE = [(kind, True) for kind in KINDS]  # torch compiles no function whole that raises


@pytest.mark.parametrize(("kind", "fullgraph"), [*WHOLE, *((kind, False) for kind in [*KINDS, AFunctionThatRaises])])
def test_a_compiled_function_in_the_forward_runs_as_it_is(backend, differences, kind, fullgraph):
    def compile_it(function):
        return torch.compile(function, backend=backend, fullgraph=fullgraph)

    untouched, graphs, _ = train(unwatched, kind, compile_it, backend)
    left, graphs_with_us, hook = train(watched, kind, compile_it, backend)
    assert differences(left, untouched) == []
    assert graphs_with_us == graphs
    assert graphs or kind is AFunctionThatRaises
    profile = hook.profile
    assert profile.forward_flops == FIRST + SECOND  # what is not compiled
    assert profile.is_lower_bound
    (name,) = profile.unknown
    assert name.startswith("torch.compile::")
    assert "compiled code runs as it is" in profile.unknown[name]
    # Of the step all is seen; the inputs require no grad.
    again = FIRST if kind is InACheckpoint else 0
    assert profile.step == StepFlops(forward=FIRST + SECOND, backward=FIRST + 2 * SECOND, recompute=again)
    assert profile.step_note == ""
    full, short = STEPS - 1, LAST_BATCH / BATCH
    assert hook.metrics()["compute/flops_total"] == (full + short) * (2 * FIRST + 3 * SECOND + again)
    assert hook._watch._steps == STEPS


def test_names_of_what_is_compiled(backend):
    def compile_it(function):
        return torch.compile(function, backend=backend)

    names = [next(iter(train(watched, kind, compile_it, backend)[2].profile.unknown)) for kind in KINDS[:3]]
    assert names == [
        "torch.compile::<lambda>",
        "torch.compile::AMethodThatCallsModules.scaled",
        "torch.compile::LayerNorm",
    ]


def test_a_compiled_loss_is_seen(backend, differences):
    def loss(scores):
        return (scores.square() + scores.tanh()).mean()

    fast = torch.compile(loss, backend=backend, fullgraph=True)
    untouched, graphs, _ = train(unwatched, Net, lambda function: function, backend, loss=fast)
    left, graphs_with_us, hook = train(watched, Net, lambda function: function, backend, loss=fast)
    assert differences(left, untouched) == []
    assert graphs_with_us == graphs > 0
    assert hook.profile.forward_flops == FIRST + SECOND
    assert not hook.profile.unknown
    assert hook.profile.step == StepFlops(forward=FIRST + SECOND, backward=FIRST + 2 * SECOND)
    assert hook.profile.step_note == ""


def test_a_backward_of_what_was_compiled_and_called_before_the_step_is_in_it(backend, differences):
    """The compiled code was called before the model, where nothing of ours is watching."""

    def run(hook):
        torch._dynamo.reset()
        torch.manual_seed(3)
        encoder = torch.compile(nn.Linear(WIDE, WIDE), backend=backend)
        model = Net(lambda function: function)
        optimizer = torch.optim.SGD([*encoder.parameters(), *model.parameters()], lr=0.1)
        with hook(model, optimizer) as seen:
            for _ in range(STEPS):
                model(encoder(torch.randn(BATCH, WIDE))).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        return [each.detach().clone() for each in encoder.parameters()], seen

    untouched, _ = run(unwatched)
    left, hook = run(watched)
    assert differences(left, untouched) == []
    # The first layer's input has a gradient now, for the encoder's weight.
    encoder = 2 * BATCH * WIDE * WIDE
    assert hook.profile.step == StepFlops(forward=FIRST + SECOND, backward=2 * FIRST + 2 * SECOND + encoder)
    assert hook.profile.step_note == ""


def test_a_function_that_is_compiled_later_leaves_what_was_observed(backend, differences):
    def run(hook):
        torch._dynamo.reset()
        torch.manual_seed(3)
        model = Net(lambda function: function)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with hook(model, optimizer) as seen:
            for index in range(STEPS):
                if index == 4:
                    model.between[0] = torch.compile(model.between[0], backend=backend, fullgraph=True)
                model(torch.randn(BATCH, WIDE)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        return [each.detach().clone() for each in model.parameters()], seen

    untouched, _ = run(unwatched)
    left, hook = run(watched)
    assert differences(left, untouched) == []
    # A backward does the second layer's product twice, the first one's once: the inputs require no grad.
    assert hook.profile.step.total == 2 * FIRST + 3 * SECOND
    assert hook.metrics()["compute/flops_total"] == STEPS * (2 * FIRST + 3 * SECOND)


# --- Optimizers -------------------------------------------------------------------------------------------------------


def compiled_step(optimizer, backend):
    return torch.compile(optimizer.step, backend=backend)


def compiled_function(optimizer, backend):
    def step():
        optimizer.step()

    return torch.compile(step, backend=backend)


def in_its_place(optimizer, backend):
    optimizer.step = torch.compile(optimizer.step, backend=backend)
    return lambda: optimizer.step()


OPTIMIZERS = [compiled_step, compiled_function, in_its_place]


@pytest.mark.parametrize("how", OPTIMIZERS)
def test_a_compiled_optimizer_ends_its_steps_and_runs_as_it_is(backend, differences, how):
    tracker = MemoryTracker()

    def hook(model, optimizer):
        return watched(model, optimizer, to=tracker, log_every_n_steps=2)

    arguments = Net, lambda function: function, backend, lambda optimizer: how(optimizer, backend)
    untouched, graphs, _ = train(unwatched, *arguments)
    left, graphs_with_us, hook = train(hook, *arguments)
    assert differences(left, untouched) == []
    assert graphs_with_us == graphs > 0
    assert hook._watch._steps == STEPS
    assert hook.profile.latency.step_ms > 0
    assert hook.profile.step == StepFlops(forward=FIRST + SECOND, backward=FIRST + 2 * SECOND)
    assert hook.profile.step_note == ""
    full = 2 * FIRST + 3 * SECOND
    assert hook.metrics()["compute/flops_total"] == (STEPS - 1) * full + full * LAST_BATCH // BATCH
    assert [step for step, numbers in tracker.scalars if "compute/flops_total" in numbers] == [1, 3, 5, 6]


class OwnUpdate(torch.optim.Optimizer):
    """Its update alone is compiled; it steps as others do."""

    def __init__(self, parameters, update):
        super().__init__(list(parameters), {"lr": 1e-2})
        self.update = update

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.update(parameter, parameter.grad, group["lr"])


def test_a_compiled_update_inside_an_optimizer_runs_as_it_is(backend, differences):
    def run(hook):
        torch._dynamo.reset()
        backend.frame_count = 0
        torch.manual_seed(3)

        @torch.compile(backend=backend, fullgraph=True)
        def update(parameter, grad, rate):
            parameter.sub_(grad.tanh() * rate)

        model = nn.Linear(WIDE, OUT)
        optimizer = OwnUpdate(model.parameters(), update)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
        with hook(model, optimizer) as seen:
            for _ in range(STEPS):
                model(torch.ones(BATCH, WIDE)).square().mean().backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        return [each.detach().clone() for each in model.parameters()], backend.frame_count, seen

    untouched, graphs, _ = run(unwatched)
    left, graphs_with_us, hook = run(watched)
    assert differences(left, untouched) == []
    assert graphs_with_us == graphs > 0
    assert hook._watch._steps == STEPS
    assert hook.profile.step == StepFlops(forward=2 * BATCH * WIDE * OUT, backward=2 * BATCH * WIDE * OUT)
    assert hook.profile.step_note == ""


def test_compiled_code_that_writes_to_parameters_between_steps_ends_none(backend):
    model = nn.Linear(WIDE, OUT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    @torch.compile(backend=backend)
    def clip(parameters):
        for parameter in parameters:
            parameter.clamp_(-1, 1)

    with watched(model, optimizer) as hook:
        for _ in range(STEPS):
            model(torch.ones(BATCH, WIDE)).square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                clip(list(model.parameters()))
    assert hook._watch._steps == STEPS


def test_compiled_code_in_a_hook_of_the_users_at_an_optimizer(backend, differences):
    """The optimizer is going through its hooks while ours is taken away."""

    def run(hook):
        torch._dynamo.reset()
        torch.manual_seed(3)
        model = nn.Linear(WIDE, OUT)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        average, calls = torch.zeros(OUT), []
        mix = torch.compile(lambda old, new: old * 0.9 + new * 0.1, backend=backend)

        def follow(*_):
            calls.append(1)
            average.copy_(mix(average, model.bias.detach()))

        optimizer.register_step_pre_hook(follow)
        with hook(model, optimizer) as seen:
            optimizer.register_step_post_hook(follow)
            for _ in range(STEPS):
                model(torch.ones(BATCH, WIDE)).square().mean().backward()
                optimizer.step()
        return (average, len(calls)), seen

    untouched, _ = run(unwatched)
    left, hook = run(watched)
    assert differences(left, untouched) == []
    assert left[1] == 2 * STEPS
    assert hook._watch._steps == STEPS


# --- Around -----------------------------------------------------------------------------------------------------------


def test_the_line_says_what_was_not_counted(backend, capsys):
    def hook(model, optimizer):
        return watched(model, optimizer, summary=True)

    train(hook, Net, lambda function: torch.compile(function, backend=backend), backend)
    line = capsys.readouterr().out
    assert "estimated" not in line
    assert "forward >= " in line
    assert "unknown: torch.compile::<lambda>" in line


def test_a_count_beside_training_looks_into_a_compiled_function(backend):
    model = Net(lambda function: torch.compile(function, backend=backend))
    flops = FlopCountAnalysis(model, torch.ones(BATCH, WIDE))
    assert 2 * flops.total() == FIRST + SECOND
    assert not flops.unknown_ops()
    assert backend.frame_count == 0


def test_nothing_stays_in_the_compiler(backend):
    module = sys.modules["torch._dynamo.eval_frame"]
    before = module.set_eval_frame, module._maybe_set_eval_frame
    train(watched, Net, lambda function: torch.compile(function, backend=backend), backend)
    assert (module.set_eval_frame, module._maybe_set_eval_frame) == before
    assert not compiled._observers
    assert not compiled._suspended


def test_where_compiled_code_cannot_be_told_nothing_is_observed_and_the_loop_goes_on(backend, differences, monkeypatch):
    def compile_it(function):
        return torch.compile(function, backend=backend)

    untouched, _, _ = train(unwatched, Net, compile_it, backend)
    monkeypatch.setattr(compiled, "_wrappers", frozenset)
    with pytest.warns(UserWarning, match="compiled code that it may run cannot be told from other code"):
        left, _, hook = train(lambda *given: watched(*given, strict=False), Net, compile_it, backend)
    assert differences(left, untouched) == []
    assert hook.profile is None


@pytest.mark.parametrize("at", ["leave", "back"])
def test_what_cannot_step_aside_is_told_behind_the_call(backend, at):
    told = []

    def leave(call):
        if at == "leave":
            raise LookupError("injected")
        return back

    def back(result):
        raise LookupError("injected")

    double = torch.compile(lambda x: 2 * x, backend=backend)
    with compiled.stepping_aside(leave, told.append):
        result = double(torch.ones(3))
        assert result.tolist() == [2, 2, 2]
    assert [str(error) for error in told] == ["injected"]
    assert not compiled._suspended


def test_of_several_the_last_one_leaves_first_and_comes_back_last(backend):
    order = []

    def stands(name):
        def leave(call):
            order.append(f"{name} leaves {call.name}")

            def back(result):
                order.append(f"{name} is back, with {result.tolist()}")
                return lambda: order.append(f"{name} goes on")

            return back

        return leave

    double = torch.compile(lambda x: 2 * x, backend=backend)
    with compiled.stepping_aside(stands("a"), order.append), compiled.stepping_aside(stands("b"), order.append):
        double(torch.ones(1))
    assert order == [
        "b leaves <lambda>",
        "a leaves <lambda>",
        "a is back, with [2.0]",
        "b is back, with [2.0]",
        "a goes on",
        "b goes on",
    ]
