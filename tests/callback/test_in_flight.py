"""A call that has to happen anyway is observed, happens exactly once, and shows its own errors as they are."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from torch import nn

from flopcallback.modules.attempt import Attempt, call_once
from flopcallback.modules.names import ModuleNames
from flopcallback.profiling.build import profile_of
from flopcallback.profiling.conditions import conditions_of
from flopcallback.tracing.in_flight import observe_beside, observe_each_call, observe_in_flight, raised_by_tracing

BATCH = 7


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
        self.head = nn.Linear(5, 2)
        self.history = []

    def forward(self, x):
        self.history.append(len(x))
        return self.head(self.inner(x))


@pytest.fixture
def net():
    torch.manual_seed(2)
    return Net()


@pytest.fixture
def x():
    return torch.arange(3.0 * BATCH).view(BATCH, 3)


def flops(observed, net, x):
    profile = profile_of(observed, net, conditions_of("call", net, x))
    return {row.path: row.flops for row in profile.modules}


@pytest.mark.parametrize("engine", ["trace", "dispatch"])
def test_the_call_happens_once_and_its_live_result_is_handed_on(net, x, engine):
    calls = []

    def call():
        calls.append(1)
        return {"scores": net(x)}

    observed = observe_in_flight(call, ModuleNames({"": net}), x, engine=engine)
    observed.result["scores"].sum().backward()
    assert len(calls) == 1
    assert net.head.weight.grad is not None
    assert observed.failure is None
    assert flops(observed, net, x)["head"] == 2 * (BATCH * 5 * 2)


def test_an_error_of_the_call_is_raised_after_one_call(net, x):
    calls = []

    def call():
        calls.append(net(x))
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        observe_in_flight(call, ModuleNames({"": net}), x)
    assert len(calls) == 1
    assert net.history == [BATCH]


def untraceable(net, x):
    """A call whose last operator the tracer refuses, since no function mode could show it the weight before."""
    hidden = nn.Parameter(torch.ones(2))

    def call():
        scores = net(x)
        with torch._C.DisableTorchFunction():
            return scores * hidden

    return call


def test_where_the_tracer_stops_the_call_is_put_back_and_repeated_and_recorded(net, x):
    torch.manual_seed(5)
    plain = Net()
    plain.load_state_dict(net.state_dict())
    torch.manual_seed(9)
    expected, rest = untraceable(plain, x)(), torch.rand(3)
    torch.manual_seed(9)
    observed = observe_in_flight(untraceable(net, x), ModuleNames({"": net}), x)
    assert torch.equal(observed.result, expected)
    assert torch.equal(torch.rand(3), rest)
    assert net.history == plain.history == [BATCH]
    assert torch.equal(net.inner[1].running_mean, plain.inner[1].running_mean)
    assert "Cannot insert a Tensor that requires grad" in str(observed.failure)
    assert observed.runs[0].engine == "observer"
    assert observed.runs[0].engine_reason.startswith("the tracer stopped with RuntimeError: Cannot insert a Tensor")


def test_what_else_the_call_may_change_is_put_back_where_it_is_named(net, x):
    log, stops_the_tracer = {"seen": 0}, untraceable(net, x)

    def call():
        log["seen"] += 1
        return stops_the_tracer()

    observed = observe_in_flight(call, ModuleNames({"": net}), x, keep=[log])
    assert observed.failure is not None
    assert log == {"seen": 1}


def test_inputs_and_parameters_that_were_written_to_are_put_back(net, x):
    before, weight = x.clone(), net.head.weight.detach().clone()
    stops_the_tracer = untraceable(net, x)

    def call():
        x.mul_(2)
        with torch.no_grad():
            net.head.weight.add_(1)
        return stops_the_tracer()

    observed = observe_in_flight(call, ModuleNames({"": net}), x)
    assert observed.runs[0].engine == "observer"
    assert torch.equal(x, 2 * before)
    assert torch.equal(net.head.weight, weight + 1)


def test_modules_in_plain_lists_are_put_back_too(net, x):
    net.metrics, stops_the_tracer = [nn.BatchNorm1d(3)], untraceable(net, x)

    def call():
        net.metrics[0](x)
        return stops_the_tracer()

    observed = observe_in_flight(call, ModuleNames({"": net}), x)
    assert observed.failure is not None
    assert net.metrics[0].num_batches_tracked == 1


def test_what_is_known_not_to_be_traceable_is_not_traced(net):
    eye, names = torch.eye(2).to_sparse(), ModuleNames({"": net})
    observed = observe_in_flight(lambda: net(eye @ torch.ones(2, 3)), names, eye)
    assert observed.failure is None
    assert observed.runs[0].engine == "observer"
    assert "sparse" in observed.runs[0].engine_reason


def test_filters_of_warnings_stay_those_of_the_call(net, x):
    def call():
        warnings.filterwarnings("ignore", message="set in the call")
        return net(x) if net(x).sum() > -1e9 else None

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        observe_in_flight(call, ModuleNames({"": net}), x)
        assert warnings.filters[1:] == before
        assert warnings.filters[0][1].pattern == "set in the call"


def test_call_by_call_what_is_not_a_forward_stays_unseen(net, x):
    def call():
        loss = net.inner(x).sum()
        loss.backward()
        return net.head(net.inner(x).detach())

    observed = observe_each_call(call, ModuleNames({"": net}))
    assert observed.result.shape == (BATCH, 2)
    assert [run.engine for run in observed.runs] == ["trace"] * 3
    counted = flops(observed, net, x)
    assert counted["inner.0"] == 2 * (2 * BATCH * 3 * 5)  # called twice
    assert counted["head"] == 2 * (BATCH * 5 * 2)
    assert all("forward" not in vars(module) for module in net.modules())


def test_call_by_call_what_could_not_be_seen_makes_the_total_a_lower_bound(net, x, monkeypatch):
    from flopcallback.tracing import in_flight

    def for_the_head_alone(names, arguments, keep, snapshot_of=in_flight._snapshot_of):
        if len(net.history):
            raise LookupError("out of order")
        return snapshot_of(names, arguments, keep)

    monkeypatch.setattr(in_flight, "_snapshot_of", for_the_head_alone)

    def call():
        hidden = net.inner(x)
        net.history.append("seen")
        return net.head(hidden)

    observed = observe_each_call(call, ModuleNames({"": net}))
    assert observed.unseen == {"head": "LookupError: out of order"}
    profile = profile_of(observed, net, conditions_of("call", net, x))
    unknown = {row.path: row.unknown_calls for row in profile.modules}
    assert (unknown[""], unknown["head"], unknown["inner"]) == (1, 1, 0)
    assert profile.is_lower_bound
    assert profile.unknown == {"module head": "LookupError: out of order"}


def test_call_by_call_an_error_of_a_module_is_raised_as_it_is(net, x):
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        observe_each_call(lambda: net(x[:, :2]), ModuleNames({"": net}))
    assert all("forward" not in vars(module) for module in net.modules())


def test_beside_the_call_nothing_is_changed_by_counting(net, x):
    observed = observe_beside(lambda: "the real call", net, ModuleNames({"": net}), (x,), {})
    assert observed.result == "the real call"
    assert (net.history, int(net.inner[1].num_batches_tracked)) == ([], 0)
    assert flops(observed, net, x)["head"] == 2 * (BATCH * 5 * 2)


def test_beside_a_call_what_cannot_be_counted_is_no_error_of_the_call(net, x):
    def broken(x):
        raise LookupError("cannot be counted")

    observed = observe_beside(lambda: "the real call", broken, ModuleNames({"": net}), (x,), {})
    assert (observed.result, observed.runs, str(observed.failure)) == ("the real call", (), "cannot be counted")


# --- Whose an error is ------------------------------------------------------------------------------------------------


def raised_by(call):
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - any kind is to be told apart
        return error
    raise AssertionError


def raise_(error):
    raise error


def raise_from(error, cause):
    try:
        cause()
    except BaseException as caught:
        raise error from caught


def refused():
    return torch.ones(2, 3) @ torch.ones(2, 3)


def from_flopcallback():
    exec(compile("raise ValueError('ours')", "ours.py", "exec"), {"__name__": "flopcallback.tracing.run"})


@pytest.mark.parametrize(
    ("call", "ours"),
    [
        (functools.partial(raise_, ValueError()), False),
        (functools.partial(raise_, RuntimeError()), False),
        (functools.partial(raise_, KeyboardInterrupt()), False),
        (functools.partial(int, "x"), False),
        (lambda: {}["absent"], False),
        (functools.partial(nn.functional.nll_loss, torch.ones(2, 3), torch.ones(3)), False),  # `raise` in torch
        (functools.partial(raise_, torch.OutOfMemoryError()), False),
        (refused, True),  # by its looks it may be the tracer's
        (from_flopcallback, True),
        (functools.partial(raise_from, ValueError(), refused), True),
    ],
)
def test_whose_an_error_is(call, ours):
    assert raised_by_tracing(raised_by(call)) is ours


def test_what_an_operator_refuses_under_both_engines_is_its_own():
    assert not raised_by_tracing(raised_by(refused), raised_by(refused))
    assert raised_by_tracing(raised_by(from_flopcallback), raised_by(from_flopcallback))


# --- Made sure of -----------------------------------------------------------------------------------------------------


def test_a_call_is_made_though_nothing_around_it_works():
    made = call_once(lambda: "result", lambda attempt: raise_(LookupError("before")))
    assert (made.result, str(made.failure)) == ("result", "before")


def test_a_call_that_ended_is_not_made_again():
    calls = []

    def around(attempt):
        attempt()
        raise LookupError("after")

    made = call_once(lambda: calls.append(1), around)
    assert (len(calls), str(made.failure)) == (1, "after")


def test_an_error_while_the_call_is_under_way_is_the_calls():
    with pytest.raises(LookupError, match="its own"):
        call_once(lambda: raise_(LookupError("its own")), lambda attempt: attempt())


def test_an_attempt_knows_how_far_it_came():
    attempt = Attempt(lambda: raise_(LookupError()))
    assert (attempt.has_begun, attempt.has_ended) == (False, False)
    with pytest.raises(LookupError):
        attempt()
    assert (attempt.has_begun, attempt.has_ended) == (True, False)
