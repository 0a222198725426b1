"""Compiled models: compiled exactly as often as without us, trained to the same bit, and counted nevertheless."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flopcallback.profile.rows import StepFlops

pytestmark = [pytest.mark.lightning, pytest.mark.models, pytest.mark.slow]

BATCH, PIXELS, CLASSES = 6, 49, 3
NET = 2 * BATCH * (PIXELS * 11 + 11 * 5)
HEAD = 2 * BATCH * 5 * CLASSES


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
    assert by_path["net"].flops == NET
    assert by_path["net"].note == "compiled"
    if do == "fit":
        assert by_path["net"].forward_ms > 0
        inside = {path for path in by_path if path.startswith("net.")}
        assert {path for path in inside if by_path[path].forward_ms is not None} == set()
        assert {"net.first", "net.last"} <= inside
        steps = {path.rpartition(".")[2]: by_path[path].step for path in inside if by_path[path].step.total}
        first, last = 2 * BATCH * PIXELS * 11, 2 * BATCH * 11 * 5
        assert (steps["first"], steps["last"]) == (StepFlops(first, first), StepFlops(last, 2 * last))
        assert {by_path[path].note for path in inside} == {"as written"}
        assert by_path["net"].step == StepFlops(NET, first + 2 * last)
        assert by_path["head"].step == StepFlops(HEAD, 2 * HEAD)
        assert profile.step_note == ""


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
    assert (by_path["net"].flops, by_path["head"].flops) == (NET, HEAD)


def compiled_function(backend):
    return torch.compile(lambda x, w: F.relu(x @ w), backend=backend, fullgraph=True), lambda optimizer: None


def compiled_optimizer(backend):
    def compile_step(optimizer):
        optimizer.step = torch.compile(optimizer.step, backend=backend)

    return lambda x, w: F.relu(x @ w), compile_step


def with_something_compiled(what, compilations, automatically=True):
    def make(flavour, calls):
        mix, prepare = what(compilations)

        class Model(flavour.LightningModule):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(PIXELS, CLASSES))
                self.head = nn.Linear(CLASSES, CLASSES)
                self.automatic_optimization = automatically

            def forward(self, x):
                return self.head(mix(x.flatten(1), self.weight))

            def training_step(self, batch, batch_idx):
                calls.one_more()
                loss = F.cross_entropy(self(batch[0]), batch[1])
                self.log("train/loss", loss)
                if not automatically:
                    self.manual_backward(loss)
                    self.optimizers().step()
                    self.optimizers().zero_grad()
                return loss

            def test_step(self, batch, batch_idx):
                self.log("test/loss", self(batch[0]).mean())

            def configure_optimizers(self):
                optimizer = torch.optim.Adam(self.parameters())
                prepare(optimizer)
                return optimizer

        return Model()

    return make


@pytest.mark.parametrize(
    ("what", "automatically", "do"),
    [
        (compiled_function, True, "fit"),
        (compiled_function, True, "test"),
        (compiled_function, False, "fit"),
        (compiled_optimizer, False, "fit"),
    ],
)
def test_a_compiled_function_or_optimizer_in_the_step_runs_as_it_is(
    lightning, run, callback, differences, compilations, leftovers, ours, what, automatically, do
):
    make = with_something_compiled(what, compilations, automatically)
    without = run(lightning, make=make, do=do)
    compiled_without_us = len(compilations.graphs)
    torch._dynamo.reset()
    compilations.graphs.clear()
    with_ = run(lightning, [callback], make=make, do=do)
    assert len(compilations.graphs) == compiled_without_us > 0
    assert differences(without, with_) == []
    assert leftovers(with_.model) == []
    assert ours(with_) == []
    profile = callback.profiles["train" if do == "fit" else "test"]
    # Under manual optimisation the calls of modules are counted, of which one is the head's.
    head, mix = 2 * BATCH * CLASSES * CLASSES, 2 * BATCH * PIXELS * CLASSES
    if what is compiled_function:
        # An evaluation is read from records, which the compiled product has here, and elsewhere may not have.
        assert profile.forward_flops == head + (mix if do == "test" else 0)
        assert list(profile.unknown) == ["torch.compile::<lambda>"]
        assert profile.is_lower_bound
    else:
        assert profile.forward_flops == head + mix
        assert not profile.unknown
    # The whole step has the compiled product, too; of the images no gradient is asked.
    if do == "fit":
        assert profile.step == StepFlops(forward=head + mix, backward=2 * head + mix)
    told = f"its forward has {head + mix:,} FLOPs, 1 counted call would have {head:,}"
    assert profile.step_note.startswith(told if do == "fit" and what is compiled_function else "")
    assert not profile.step_note or what is compiled_function


def test_a_step_that_a_compiled_optimizer_makes_is_not_seen_which_is_said_once(
    lightning, run, callback, differences, compilations, leftovers, ours
):
    make = with_something_compiled(compiled_optimizer, compilations)
    without = run(lightning, make=make)
    compiled_without_us = len(compilations.graphs)
    torch._dynamo.reset()
    compilations.graphs.clear()
    with_ = run(lightning, [callback], make=make)
    assert len(compilations.graphs) == compiled_without_us > 0
    assert differences(without, with_) == []
    assert leftovers(with_.model) == []
    assert callback.profiles == {}
    (told,) = ours(with_)
    assert "no training step was seen, so none is counted: compiled code (Adam.step) makes it" in told
    assert not any("compute/flops_total" in row for _, row in with_.rows)
