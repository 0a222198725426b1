"""profile_call: the rows of one call, without times; on any device, of any callable."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flopcallback import FlopCountAnalysis
from flopcallback.counting.verification import Difference
from flopcallback.profiling.on_demand import profile_call, verify_call
from flopcallback.reporting import EngineDifference, Verdict

x = torch.ones(2, 3)


def test_a_profile_has_the_counts_and_no_times():
    profile = profile_call(nn.Sequential(nn.Linear(3, 5), nn.ReLU()), x)
    assert (profile.phase, profile.name, profile.batch_size) == ("call", "Sequential", 2)
    assert {row.path: row.flops for row in profile.modules} == {"": 60, "0": 2 * (2 * 3 * 5), "1": 0}
    assert {row.path: row.macs for row in profile.modules} == {"": 30, "0": 2 * 3 * 5, "1": 0}
    assert profile.forward_ms is None


def test_elementwise_work_is_in_macs_alone():
    profile = profile_call(nn.Sequential(nn.Linear(3, 5), nn.ReLU()), x, elementwise=True)
    assert (profile.forward_flops, profile.forward_macs) == (2 * (2 * 3 * 5), 2 * 3 * 5 + 2 * 5)


def test_a_model_on_the_meta_device_is_counted():
    profile = profile_call(nn.Linear(3, 5, device="meta"), x.to("meta"))
    assert (profile.forward_flops, profile.config["flops.device"]) == (2 * (2 * 3 * 5), "meta")


def test_a_function_is_a_row_around_the_modules_that_it_calls():
    first, second = nn.Linear(3, 5), nn.Linear(5, 7)

    def both(x):
        return second(first(x))

    profile = profile_call(both, x)
    assert (profile.name, profile.root.type) == ("both", "function")
    assert {row.path: row.flops for row in profile.modules[1:]} == {"first": 2 * (2 * 3 * 5), "second": 2 * (2 * 5 * 7)}


def test_an_engine_can_be_asked_for():
    profile = profile_call(nn.Linear(3, 5), x, engine="dispatch")
    assert (profile.config["flops.engine"], profile.forward_flops) == ("dispatch", 2 * (2 * 3 * 5))
    with pytest.raises(RuntimeError, match="the tracer loses operators on sparse tensors"):
        profile_call(torch.mm, (torch.eye(2).to_sparse(), x), engine="trace")
    with pytest.raises(ValueError, match="profile_call: engine is 'fast', expected one of 'auto', "):
        profile_call(nn.Linear(3, 5), x, engine="fast")


def test_a_verdict_says_that_the_engines_agree():
    assert verify_call(nn.TransformerEncoderLayer(6, 2, 11), torch.rand(7, 2, 6)) == Verdict()


def test_a_verdict_names_its_engines():
    assert verify_call(nn.Linear(3, 5), x).engines == ("trace", "dispatch")
    asked = ("observer", "trace")
    assert verify_call(nn.Linear(3, 5), x, engines=asked) == Verdict(engines=asked)
    sparse = torch.mm, (torch.eye(2).to_sparse(), x)
    assert verify_call(*sparse, engines=("dispatch", "observer")) == Verdict(engines=("dispatch", "observer"))
    why = "the tracer cannot count this call: the tracer loses operators on sparse tensors"
    assert verify_call(*sparse, engines=asked) == Verdict(reason=why, engines=asked)
    with pytest.raises(ValueError, match="verify_call: engines is 'trace', expected two different ones of 'trace', "):
        verify_call(nn.Linear(3, 5), x, engines="trace")


def test_a_verdict_lists_differences_as_plain_data(monkeypatch):
    monkeypatch.setattr(FlopCountAnalysis, "verify", lambda analysis, **_: (Difference("fc", "matmul", 60, 0),))
    assert verify_call(nn.Linear(3, 5), x) == Verdict((EngineDifference("fc", "matmul", 60, 0),))


def test_a_verdict_says_which_engine_alone_can_count_and_why(monkeypatch):
    only = verify_call(torch.mm, (torch.eye(2).to_sparse(), x))
    assert only.reason == "only the dispatcher can count this call: the tracer loses operators on sparse tensors"

    def refuse(analysis, **_):
        raise RuntimeError("a mode is in the way")

    monkeypatch.setattr(FlopCountAnalysis, "verify", refuse)
    assert verify_call(nn.Linear(3, 5), x).reason == "only the tracer can count this call: a mode is in the way"


def test_what_the_model_raises_is_no_verdict():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        verify_call(nn.Linear(5, 3), x)


def test_what_cannot_be_counted_is_refused_under_this_name():
    with pytest.raises(TypeError, match=r"profile_call: model is the class Linear, expected a module"):
        profile_call(nn.Linear, x)
    with pytest.raises(TypeError, match=r"profile_call: model is 3, expected a module or another callable"):
        profile_call(3, x)
    with pytest.raises(ValueError, match=r"profile_call: the model has lazy modules that are not initialised"):
        profile_call(nn.LazyLinear(5), x)
    with pytest.raises(ValueError, match=r"profile_call: fma is 3, expected 1"):
        profile_call(nn.Linear(3, 5), x, fma=3)
