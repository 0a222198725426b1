"""measure_latency: counts and times one call on demand, calls the model as it is, and leaves everything as found."""

from __future__ import annotations

import copy
import functools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flopcallback import FlopCountAnalysis, measure_latency

BATCH, WIDTH, HIDDEN, CLASSES = 2, 3, 5, 7
FLOPS = 2 * BATCH * (WIDTH * HIDDEN + HIDDEN * CLASSES)
QUICK = {"warmup_steps": 1, "latency_steps": 2}
COUNTING, WITHOUT_CLOCK_A_ROUND = 2, 3


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, HIDDEN)

    def forward(self, x):
        return self.linear(x).relu()


class Net(nn.Module):
    """Two layers, the first within a container; `seen` grows by what `look` says at each call."""

    def __init__(self, look=lambda net: None):
        super().__init__()
        self.blocks = nn.ModuleList([Block()])
        self.head = nn.Linear(HIDDEN, CLASSES)
        self.__dict__["look"], self.__dict__["seen"] = look, Log()

    def forward(self, x):
        self.seen.append(self.look(self))
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def encode(self, x):
        return self.blocks[0](x)


class Log:
    """Not a list: what a model keeps in one is put back."""

    def __init__(self):
        self.all = ()

    def append(self, item):
        self.all += (item,)


@pytest.fixture
def x():
    return torch.arange(float(BATCH * WIDTH)).view(BATCH, WIDTH)


# --- What it gives ----------------------------------------------------------------------------------------------------


def test_it_counts_what_an_analysis_counts_and_times_every_module_that_ran(x):
    profile = measure_latency(Net(), x, **QUICK)
    assert (profile.phase, profile.name, profile.batch_size) == ("call", "Net", BATCH)
    assert profile.forward_flops == FLOPS
    assert {row.path: row.flops for row in profile.modules} == FlopCountAnalysis(Net(), x).hardware_flops()
    assert all(row.forward_ms > 0 for row in profile.modules)
    assert all(low <= high for low, high in (row.forward_ms_spread for row in profile.modules))
    assert profile.latency.steps == QUICK["latency_steps"]
    assert profile.latency.step_ms is None
    assert profile.latency.how == "CPU clock, the whole call by torch.utils.benchmark"


def test_the_row_of_the_model_is_the_whole_and_no_module_has_more_than_that(x):
    narrow = nn.Sequential(nn.Sequential(nn.Sequential(*[nn.Identity() for _ in range(97)])))
    profile = measure_latency(narrow, x, warmup_steps=0, latency_steps=7)
    assert profile.root.forward_ms == profile.latency.forward_ms
    assert profile.latency_share(profile.root) == 1
    assert all(profile.latency_share(row) <= 1 for row in profile.modules)
    assert all(row.forward_ms_spread[0] <= profile.forward_ms for row in profile.modules)


def test_elementwise_work_and_the_peak_can_be_chosen(x):
    profile = measure_latency(Net(), x, elementwise=True, peak_flops=1e-3, **QUICK)
    assert profile.forward_flops == FLOPS
    assert profile.forward_macs == FLOPS // 2 + BATCH * HIDDEN  # the ReLU
    assert profile.peak_flops_per_s == pytest.approx(1e-3)
    assert profile.is_above_peak(profile.root)


def test_modules_have_clocks_in_one_call_of_each_round_and_when_they_are_counted(x):
    net = Net(look=lambda net: "forward" in vars(net.head))
    measure_latency(net, x, warmup_steps=3, latency_steps=5)
    assert net.seen.all.count(True) == COUNTING + 5
    assert net.seen.all.count(False) == 3 + WITHOUT_CLOCK_A_ROUND * 5


def test_out_of_time_one_round_is_made_in_any_case(x):
    net = Net()
    profile = measure_latency(net, x, warmup_steps=11, latency_steps=13, max_s=0)
    assert profile.latency.steps == 1
    assert len(net.seen.all) == COUNTING + 1 + 1 + WITHOUT_CLOCK_A_ROUND


# --- What it calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_the_model_is_called_in_the_modes_that_the_caller_has_set(x, training, grad):
    net = Net(look=lambda net: (net.training, torch.is_grad_enabled())).train(training)
    with torch.set_grad_enabled(grad):
        measure_latency(net, x, **QUICK)
    assert set(net.seen.all) == {(training, grad)}


def test_autocast_is_the_callers(x):
    net = Net(look=lambda net: torch.is_autocast_enabled("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        profile = measure_latency(net, x, **QUICK)
    assert set(net.seen.all) == {True}
    assert profile.config["flops.dtype"] == "bfloat16"


def test_the_number_of_threads_is_the_callers(x):
    before = torch.get_num_threads()
    net = Net(look=lambda net: torch.get_num_threads())
    try:
        torch.set_num_threads(before + 1)
        measure_latency(net, x, **QUICK)
        assert set(net.seen.all) == {before + 1}
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_arguments_are_those_of_an_analysis(x):
    class Sum(nn.Module):
        def forward(self, pair, *, times):
            return F.linear(pair["a"] + pair["b"], torch.ones(HIDDEN, WIDTH)) * times

    profile = measure_latency(Sum(), {"a": x, "b": x}, {"times": 3}, **QUICK)
    assert profile.forward_flops == 2 * BATCH * WIDTH * HIDDEN
    assert measure_latency(lambda a, b: a @ b.T, (x, x), **QUICK).forward_flops == 2 * BATCH * WIDTH * BATCH


def test_of_a_method_the_owner_is_the_root(x):
    profile = measure_latency(Net().encode, x, **QUICK)
    assert (profile.name, profile.forward_flops) == ("Net", 2 * BATCH * WIDTH * HIDDEN)
    assert {row.path for row in profile.modules if row.forward_ms is None} == {"head"}


def test_of_a_function_the_modules_that_it_names_are_told_apart(x):
    first, train = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def score(x):
        return train(first(x)).relu()

    profile = measure_latency(score, x, **QUICK)
    rows = {row.path: row for row in profile.modules}
    assert (profile.name, profile.root.type) == ("score", "function")
    assert rows["first"].flops == 2 * BATCH * WIDTH * HIDDEN
    assert rows["train"].flops == 2 * BATCH * HIDDEN * CLASSES
    assert rows[""].params == WIDTH * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES
    assert all(row.forward_ms > 0 for row in profile.modules)


class Cache:
    def __init__(self):
        self.keys = []


def test_an_input_with_a_state_is_the_same_for_each_call_that_is_timed(x):
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.__dict__["lengths"] = Log()

        def forward(self, x, cache):
            cache.keys.append(x)
            self.lengths.append(len(cache.keys))
            return torch.cat(cache.keys)

    decoder, cache = Decoder(), Cache()
    measure_latency(decoder, (x, cache), warmup_steps=2, latency_steps=3)
    a_block_of_two, alone = (1, 2), (1,)
    assert decoder.lengths.all == (1,) * (COUNTING + 2) + 3 * (alone + a_block_of_two + alone)
    assert cache.keys == []


@pytest.mark.slow
@pytest.mark.parametrize("is_in_place", [False, True])
def test_a_compiled_module_is_one_row_and_is_compiled_as_often_as_without_us(x, is_in_place):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    net = Net()
    if is_in_place:
        net.blocks[0].compile(backend=backend)
    else:
        net.blocks[0] = torch.compile(net.blocks[0], backend=backend)
    profile = measure_latency(net, x, **QUICK)
    rows = {row.path: row for row in profile.modules}
    assert rows["blocks.0"].note == "compiled"
    assert rows["blocks.0"].forward_ms > 0
    assert rows["blocks.0"].flops == rows["blocks.0.linear"].flops == 2 * BATCH * WIDTH * HIDDEN
    assert {path for path, row in rows.items() if row.forward_ms is None} == {
        path for path in rows if path.startswith("blocks.0.")
    }
    assert len(graphs) == 1
    torch._dynamo.reset()


# --- What it leaves ---------------------------------------------------------------------------------------------------


class Restless(nn.Module):
    """Changes whatever a forward can change, and raises from the call on that it is told."""

    def __init__(self, raises_from=math.inf):
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.drop = nn.Dropout(0.5)
        self.history = []
        self.__dict__["log"], self.__dict__["raises_from"] = Log(), raises_from

    def forward(self, x):
        self.log.append(1)
        self.history.append(random.random())
        with torch.no_grad():
            self.weight.mul_(1.01)
            x.add_(1)
        if len(self.log.all) >= self.raises_from:
            raise KeyError("the model's own")
        return self.drop(self.norm(x) * self.weight) + torch.randn(WIDTH)


def state(model, x):
    own = (dict(model.state_dict()), model.history, model.weight.grad, x, vars(model).keys(), vars(model.norm).keys())
    return copy.deepcopy([*own[:4], *map(list, own[4:])]), random.getstate(), torch.get_rng_state()


def assert_same(a, b):
    torch.testing.assert_close(a[0][0], b[0][0], rtol=0, atol=0)
    torch.testing.assert_close([a[0][2], a[0][3], a[2]], [b[0][2], b[0][3], b[2]], rtol=0, atol=0)
    assert (a[0][1], a[0][4:], a[1]) == (b[0][1], b[0][4:], b[1])


CALLS = COUNTING + QUICK["warmup_steps"] + (1 + WITHOUT_CLOCK_A_ROUND) * QUICK["latency_steps"]


def test_model_inputs_and_random_states_are_as_they_were(x):
    model = Restless()
    model.weight.grad = torch.full((WIDTH,), 3.0)
    before = state(model, x)
    measure_latency(model, x, **QUICK)
    assert len(model.log.all) == CALLS
    assert_same(before, state(model, x))


def test_so_they_are_for_what_partial_makes_of_a_model(x):
    model = Restless()
    before = state(model, x)
    measure_latency(functools.partial(model), x, **QUICK)
    assert_same(before, state(model, x))


# The first call of each kind: counted, observed once more, warming up, with clocks, without.
@pytest.mark.parametrize("call", [1, 1 + COUNTING, 2 + COUNTING, 3 + COUNTING, CALLS])
def test_so_they_are_where_the_model_raises(x, call):
    model = Restless(raises_from=call)
    model.weight.grad = torch.full((WIDTH,), 3.0)
    before = state(model, x)
    with pytest.raises(KeyError, match="the model's own"):
        measure_latency(model, x, **QUICK)
    assert_same(before, state(model, x))


def test_the_test_above_sees_what_a_call_changes(x):
    model = Restless()
    before = state(model, x)
    model(x)
    with pytest.raises(AssertionError):
        assert_same(before, state(model, x))


# --- What it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fma": 3}, r"measure_latency: fma is 3, expected 1, 2 or None"),
        ({"elementwise": "yes"}, r"measure_latency: elementwise is 'yes', expected True or False"),
        ({"warmup_steps": -1}, r"measure_latency: warmup_steps is -1, expected a whole number, 0 or more"),
        ({"latency_steps": 0}, r"measure_latency: latency_steps is 0, expected 1 or more\. FlopCountAnalysis counts"),
        ({"latency_steps": 2.5}, r"measure_latency: latency_steps is 2\.5, expected a whole number"),
        ({"peak_flops": -1.0}, r"measure_latency: peak_flops is -1\.0, expected FLOP/s above 0"),
        ({"max_s": -1}, r"measure_latency: max_s is -1, expected seconds, 0 or more"),
        ({"max_s": float("nan")}, r"measure_latency: max_s is nan, expected seconds, 0 or more"),
        ({"max_s": None}, r"measure_latency: max_s is None, expected seconds, 0 or more"),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_expected(x, options, message):
    with pytest.raises(ValueError, match=message):
        measure_latency(Net(), x, **options)


def test_what_is_no_model_is_refused(x):
    with pytest.raises(
        TypeError, match=r"measure_latency: model is the class Linear, expected .* such as Linear\(\.\.\.\)"
    ):
        measure_latency(nn.Linear, x)
    with pytest.raises(TypeError, match=r"measure_latency: model is 3, expected a module or another callable"):
        measure_latency(3, x)


def test_what_cannot_be_run_is_refused_with_the_way_out(x):
    with pytest.raises(
        ValueError, match=r"lazy modules that are not initialised\. Call it once, as in model\(\*inputs\)"
    ):
        measure_latency(nn.LazyLinear(5), x)
    with torch.device("meta"):
        model, inputs = Net(), torch.ones(BATCH, WIDTH)
    with pytest.raises(ValueError, match=r"on the meta device, .* or count it by FlopCountAnalysis"):
        measure_latency(model, inputs)
