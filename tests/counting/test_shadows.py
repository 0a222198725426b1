"""What stands in front of a method for a while is not seen by the copies that a model makes of itself."""

from __future__ import annotations

import copy
import pickle
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from flopcallback import FlopCountAnalysis
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.wrappers import wrap_on_instance
from flopcallback.tracing.in_flight import observe_in_flight


class WithTarget(nn.Module):
    """Makes a copy of its network in the first forward, as self-supervised models do."""

    def __init__(self, make_copy) -> None:
        super().__init__()
        self.net = nn.Linear(3, 5)
        self.target = None
        self.make_copy = make_copy

    def forward(self, x):
        if self.target is None:
            self.target = self.make_copy(self.net)
            with torch.no_grad():
                for parameter in self.target.parameters():
                    parameter.data = torch.zeros_like(parameter)
        return self.net(x), self.target(x)


COPIES = [copy.deepcopy, copy.copy, lambda module: pickle.loads(pickle.dumps(module))]


@pytest.mark.parametrize("make_copy", COPIES, ids=["deepcopy", "copy", "pickle"])
def test_a_copy_made_in_flight_is_a_module_of_its_own(make_copy, x):
    if make_copy is copy.copy:
        make_copy = lambda module: copy.deepcopy(copy.copy(module))  # noqa: E731 - a shallow copy shares its parameters
    model = WithTarget(make_copy)
    observed = observe_in_flight(lambda: model(x), ModuleNames({"": model}), (x,))
    assert torch.count_nonzero(observed.result[0])
    assert not torch.count_nonzero(observed.result[1])
    assert "forward" not in vars(model.target)
    assert not torch.count_nonzero(model(x)[1])
    assert FlopCountAnalysis.of_run(observed.runs[0], model).total() == 2 * 30
    assert "__reduce_ex__" not in vars(nn.Module)


def test_a_replica_has_no_shadow():
    module = nn.Linear(3, 5)
    with ExitStack() as undo:
        wrap_on_instance(module, "forward", lambda method: method, undo)
        assert "forward" in vars(module)
        assert "forward" not in vars(module._replicate_for_data_parallel())


def test_a_copy_keeps_a_forward_that_the_user_replaced(x):
    module = nn.Linear(3, 5)
    module.forward = print
    with ExitStack() as undo:
        wrap_on_instance(module, "forward", lambda method: lambda x: x, undo)
        wrap_on_instance(module, "forward", lambda method: lambda x: x, undo)
        assert copy.deepcopy(module).forward is print
    assert module.forward is print
    assert "__reduce_ex__" not in vars(nn.Module)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]], ids=["in order", "out of order"])
def test_a_forward_that_the_user_puts_over_shadows_stays_and_is_copied(order):
    module, stacks = nn.Linear(3, 5), [ExitStack(), ExitStack()]
    for stack in stacks:
        wrap_on_instance(module, "forward", lambda method: lambda x: x, stack)
    module.forward = print
    assert copy.deepcopy(module).forward is print
    for index in order:
        stacks[index].close()
        assert module.forward is print
    assert "__reduce_ex__" not in vars(nn.Module)
