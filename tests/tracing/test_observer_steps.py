"""Whole steps by the profiler's records: by module and phase as the dispatcher sees them, and not one digit changes."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from dispatched_step import StepObserver
from observed_steps import BATCH, INNER, OUT, STEPS, WIDE

from flopcallback.modules.names import ModuleNames
from flopcallback.profiling.build import StepAnalysis
from flopcallback.tracing.observer import StepRecorder
from flopcallback.tracing.phases import PHASES

# PyTorch says once that oneDNN has no LSTM with projections.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")


def observed(observer_class, name):
    """FLOPs by phase and module, what is unknown, and the parameters after the step."""
    torch.manual_seed(0)
    model, optimizers, step = STEPS[name]()
    observer = observer_class(ModuleNames({"": model}), optimizers)
    with observer.watching():
        step(observer.on)
    if observer.failure is not None:
        raise observer.failure
    counts = {phase: StepAnalysis.of_run(run, model) for phase, run in observer.runs().items()}
    unknown = {phase: dict(analysis.unknown_ops()) for phase, analysis in counts.items()}
    flops = {(phase, module): flops for phase in PHASES for module, flops in counts[phase].by_module().items() if flops}
    return flops, unknown, list(model.parameters())


def unobserved(name):
    torch.manual_seed(0)
    model, _, step = STEPS[name]()
    step(StepRecorder(ModuleNames({"": model})).on)
    return list(model.parameters())


@pytest.mark.parametrize("name", STEPS)
def test_a_step_has_the_flops_that_the_dispatcher_sees_in_each_module_and_phase(name):
    recorded, unknown, _ = observed(StepRecorder, name)
    dispatched, _, _ = observed(StepObserver, name)
    assert recorded == dispatched
    assert not any(unknown.values())


def test_a_step_that_begins_inside_its_optimizer_has_that_ones_work_as_the_optimizers():
    model, (optimizer,), step = STEPS["closures"]()
    observers = []

    def watched(closure):
        """Begin to watch in the first closure, as a loop does that is seen by its calls alone."""
        undo = ExitStack()

        def first():
            if not observers:
                observers.append(StepRecorder(ModuleNames({"": model})))
                undo.enter_context(observers[0].watching(is_in_optimizer=True))
            return closure()

        with undo:
            return plain(first)

    plain = optimizer.step
    optimizer.step = watched
    step(lambda: observers[0].on())
    counts = {phase: StepAnalysis.of_run(run, model) for phase, run in observers[0].runs().items()}
    calls = counts["forward"].module_calls()["0"]
    first, second = 2 * BATCH * WIDE * INNER, 2 * BATCH * INNER * OUT
    assert counts["forward"].total() == calls * (first + second)
    assert counts["backward"].total() == calls * (first + 2 * second)
    assert counts["optimizer"].total() > 0  # products of directions


@pytest.mark.parametrize("name", STEPS)
def test_not_one_digit_of_the_parameters_changes(name):
    _, _, recorded = observed(StepRecorder, name)
    assert all(map(torch.equal, recorded, unobserved(name)))


def of_the_gradient(gradient):
    return 2 * gradient


def in_a_span(gradient):
    with torch.profiler.record_function("hook"):
        return gradient


@pytest.mark.parametrize("hook", [of_the_gradient, in_a_span])
def test_the_backward_behind_a_hook_of_a_tensor_belongs_to_the_module_that_made_it(hook):
    """FSDP1 puts such a hook on what each of its modules gives."""

    class Hooked(torch.nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            y.register_hook(hook)
            return y

    model = torch.nn.Sequential(torch.nn.Linear(WIDE, INNER), Hooked(INNER, OUT))
    observer = StepRecorder(ModuleNames({"": model}))
    with observer.watching():
        with observer.on():
            y = model(torch.ones(BATCH, WIDE))
        y.sum().backward()
    backward = StepAnalysis.of_run(observer.runs()["backward"], model).by_module()
    first, second = 2 * BATCH * WIDE * INNER, 2 * (2 * BATCH * INNER * OUT)
    assert {name: flops for name, flops in backward.items() if flops} == {"": first + second, "0": first, "1": second}
