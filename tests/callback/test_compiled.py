"""Compiled models: compiled exactly as often as without us, trained to the same bit, and counted nevertheless."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytestmark = [pytest.mark.lightning, pytest.mark.models, pytest.mark.slow]

BATCH, PIXELS, CLASSES = 6, 49, 3
NET = BATCH * (PIXELS * 11 + 11 * 5)
HEAD = BATCH * 5 * CLASSES


@pytest.fixture
def callback():
    from flopcallback import FlopCallback

    return FlopCallback(warmup_steps=1, latency_steps=2, summary=False, strict=True)


@pytest.fixture
def compilations():
    """A backend that runs the graphs as they are; the list grows by one for each."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    backend.graphs = graphs
    yield backend
    torch._dynamo.reset()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(PIXELS, 11)
        self.norm = nn.BatchNorm1d(11)
        self.last = nn.Linear(11, 5)

    def forward(self, x):
        return self.last(F.relu(self.norm(self.first(x))))


def with_compiled_module(compile_):
    def make(flavour, calls):
        class Model(flavour.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = compile_(Net())
                self.head = nn.Linear(5, CLASSES)

            def training_step(self, batch, batch_idx):
                calls.one_more()
                loss = F.cross_entropy(self.head(self.net(batch[0].flatten(1))), batch[1])
                self.log("train/loss", loss)
                return loss

            def test_step(self, batch, batch_idx):
                self.log("test/loss", F.cross_entropy(self.head(self.net(batch[0].flatten(1))), batch[1]))

            def configure_optimizers(self):
                return torch.optim.Adam(self.parameters())

        return Model()

    return make


def as_a_wrapper(backend):
    return lambda net: torch.compile(net, backend=backend)


def in_place(backend):
    def compile_(net):
        net.compile(backend=backend)
        return net

    return compile_


def its_forward(backend):
    def compile_(net):
        net.forward = torch.compile(net.forward, backend=backend)
        return net

    return compile_


@pytest.mark.parametrize("how", [as_a_wrapper, in_place, its_forward])
@pytest.mark.parametrize("do", ["fit", "test"])
def test_a_compiled_module_is_counted_beside_the_real_call(
    lightning, run, callback, differences, leftovers, compilations, how, do
):
    make = with_compiled_module(how(compilations))
    without = run(lightning, make=make, do=do)
    compiled_without_us = len(compilations.graphs)
    torch._dynamo.reset()
    compilations.graphs.clear()
    with_ = run(lightning, [callback], make=make, do=do)
    assert len(compilations.graphs) == compiled_without_us > 0
    assert differences(without, with_) == []
    own_forward = [] if how is in_place else ["net.forward"]  # where `torch.compile` was put
    assert leftovers(with_.model) == leftovers(without.model) == own_forward
    profile = callback.profiles["train" if do == "fit" else "test"]
    by_path = {row.path: row for row in profile.modules}
    assert by_path["head"].flops == HEAD
    assert by_path["net"].hw_flops == 2 * NET
    assert by_path["net"].note == "compiled"
    if do == "fit":
        assert by_path["net"].forward_ms > 0
        inside = {path for path in by_path if path.startswith("net.")}
        assert {path for path in inside if by_path[path].forward_ms is not None} == set()
        assert ("net._orig_mod.first" if how is as_a_wrapper else "net.first") in inside


def make_compiled_whole(backend):
    def make(flavour, calls):
        class Model(flavour.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = Net()
                self.head = nn.Linear(5, CLASSES)

            def training_step(self, batch, batch_idx):
                # No `self.log`: in a compiled LightningModule it fails by itself (Lightning 2.6.6 on torch 2.13).
                return F.cross_entropy(self.head(self.net(batch[0].flatten(1))), batch[1])

            def configure_optimizers(self):
                return torch.optim.Adam(self.parameters())

        return torch.compile(Model(), backend=backend)

    return make


def test_a_compiled_lightning_module_is_counted_beside_the_real_step(
    lightning, run, callback, differences, compilations
):
    make = make_compiled_whole(compilations)
    without = run(lightning, make=make)
    compiled_without_us = len(compilations.graphs)
    torch._dynamo.reset()
    compilations.graphs.clear()
    with_ = run(lightning, [callback], make=make)
    assert len(compilations.graphs) == compiled_without_us > 0
    assert differences(without, with_) == []
    by_path = {row.path: row for row in callback.profiles["train"].modules}
    assert (by_path["net"].hw_flops, by_path["head"].flops) == (2 * NET, HEAD)


def test_a_compiled_function_in_the_step_is_counted_by_the_dispatcher(
    lightning, run, differences, compilations, leftovers, ours
):
    from flopcallback import FlopCallback

    def make(flavour, calls):
        mix = torch.compile(lambda x, w: F.relu(x @ w), backend=compilations)

        class Model(flavour.LightningModule):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(PIXELS, CLASSES))
                self.head = nn.Linear(CLASSES, CLASSES)

            def training_step(self, batch, batch_idx):
                loss = F.cross_entropy(self.head(mix(batch[0].flatten(1), self.weight)), batch[1])
                self.log("train/loss", loss)
                return loss

            def configure_optimizers(self):
                return torch.optim.Adam(self.parameters())

        return Model()

    callback = FlopCallback(warmup_steps=1, latency_steps=2, summary=False)
    without = run(lightning, make=make)
    compiled_without_us = len(compilations.graphs)
    torch._dynamo.reset()
    compilations.graphs.clear()
    with_ = run(lightning, [callback], make=make)
    assert len(compilations.graphs) == compiled_without_us > 0
    assert differences(without, with_) == []
    assert leftovers(with_.model) == []
    by_path = {row.path: row for row in callback.profiles["train"].modules}
    assert by_path["(training_step)"].hw_flops == 2 * BATCH * PIXELS * CLASSES
    assert len(ours(with_)) <= 1
