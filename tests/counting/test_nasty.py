"""Awkward models and ways of calling them; every expected count is multiply-adds derived by hand beside its case.

Each model has `fc`, an `nn.Linear(3, 5)`, which does `FC = 2 * 3 * 5` on its input `[2, 3]`.
"""

from __future__ import annotations

import copy
import functools
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn, ones
from torch.func import functional_call, grad, jvp, stack_module_state, vjp, vmap
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_sequence
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from flopcallback import FlopCountAnalysis

FC = 2 * 3 * 5
CASES = []
pytestmark = pytest.mark.usefixtures("no_tracing_state_left")


class Model(nn.Module):
    def __init__(self, body, **children):
        super().__init__()
        self.body, self.fc = body, nn.Linear(3, 5)
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, *args):
        return self.body(self, *args)


def case(expected, *inputs, **children):
    """Adds `def forward(self, *inputs)` of a model with these children; counts by module, or of the whole."""

    def add(forward):
        expectation = expected if isinstance(expected, dict) else {"": expected}
        CASES.append(pytest.param(forward, children, inputs or (ones(2, 3),), expectation, id=forward.__name__))

    return add


# --- Operators --------------------------------------------------------------------------------------------------------


def mha(queries, keys, widths=6 + 6, attended=0):
    return 2 * (2 * queries * 6 * 6 + keys * widths * 6 + 2 * queries * (attended or keys) * 6)


@case(
    {"plain": mha(5, 11), "extra": mha(5, 11, attended=13), "other": mha(5, 11, 5 + 7), "fast": mha(5, 5)},
    *(ones(5, 2, 6), ones(11, 2, 6)),
    plain=nn.MultiheadAttention(6, 3, dropout=0.1),
    extra=nn.MultiheadAttention(6, 3, add_bias_kv=True, add_zero_attn=True),
    other=nn.MultiheadAttention(6, 3, kdim=5, vdim=7),
    fast=nn.MultiheadAttention(6, 3).eval(),
)
def multi_head_attention_with_every_option(self, q, k):
    self.plain(q, k, k), self.extra(q, k, k, need_weights=False), self.other(q, k[..., :5], ones(11, 2, 7))
    return torch.no_grad()(self.fast)(q, q, q)


ENCODER_LAYER = mha(5, 5) + 2 * (2 * 5 * 6 * 11) + 2 * 5 * (2 * 5 * 6)  # two linear layers; two norms, 5 an element


@case(
    {"encoder": 3 * ENCODER_LAYER, "encoder.layers.1": ENCODER_LAYER, "encoder.layers.1.linear1": 2 * 5 * 6 * 11},
    ones(2, 5, 6),
    encoder=nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 11, batch_first=True), 3).eval(),
)
def the_fast_path_of_an_encoder_keeps_its_modules_apart(self, x):
    return torch.no_grad()(self.encoder)(x)


@case(
    {"lstm": 7 * 2 * 4 * 5 * (3 + 5 + 10 + 5), "gru": 7 * 3 * 5 * (3 + 5), "cell": 14 * 3 * 5 * (3 + 5)},
    ones(7, 2, 3),
    lstm=nn.LSTM(3, 5, 2, bidirectional=True, dropout=0.2),
    gru=nn.GRU(3, 5, bias=False),
    cell=nn.GRUCell(3, 5),
)
def recurrent_layers_packed_unbatched_and_as_cells(self, x):
    self.lstm(pack_sequence([ones(5, 3), ones(2, 3)])), self.gru(x[:, 0])
    state = ones(2, 5)
    for step in x:
        state = self.cell(step, state)


# --- Autograd and transforms ------------------------------------------------------------------------------------------


class Inner(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, flag, module):
        return module(x @ weight.t())


class Outer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, module):
        return Inner.apply(x, weight, "a flag", module)


@case({"": FC + 2 * 5 * 7, "fc": 0, "head": 2 * 5 * 7}, head=nn.Linear(5, 7))
def an_autograd_function_in_another_that_calls_a_module(self, x):
    return Outer.apply(x, self.fc.weight, self.head)


@case(
    {"fc": 2 * FC, "chain": FC + 2 * 5 * 7},
    ones(2, 3, requires_grad=True),
    chain=nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7)),
)
def checkpoints_in_checkpoints(self, x):
    inner = functools.partial(checkpoint, self.fc, use_reentrant=False)
    checkpoint(lambda x, scale: inner(x) * scale, x, scale=2, use_reentrant=False)
    checkpoint(inner, x, use_reentrant=True)
    return checkpoint_sequential(self.chain, 2, x, use_reentrant=False)


# y; g = y @ W; the gradients of g's square for y and W; those of y for x and W.
@case(FC + FC + 2 * FC + 2 * FC, ones(2, 3, requires_grad=True))
def a_second_derivative_inside_the_forward(self, x):
    y = self.fc(x)
    (g,) = torch.autograd.grad(y, x, grad_outputs=y, create_graph=True)
    (g**2).sum().backward()


# Seven times, and once; forward and one product for x, twice; a product and two of its tangents.
@case(7 * FC + FC + 2 * FC + 2 * FC + 3 * (2 * 3 * 2))
def transforms_of_functions(self, x):
    vmap(vmap(self.fc))(ones(7, 2, 3)), vmap(self.fc, in_dims=1, chunk_size=1)(x.t())
    grad(lambda x: self.fc(x).sum())(x), vjp(self.fc, x)[1](ones(2, 5))
    return jvp(lambda x: x @ x.t(), (x,), (x,))


@case(4 * FC)
def an_ensemble_of_stacked_models(self, x):
    parameters, buffers = stack_module_state([self.fc, nn.Linear(3, 5), nn.Linear(3, 5)])
    functional_call(self.fc, {"weight": ones(5, 3), "bias": ones(5)}, (x,))
    return vmap(lambda p, b: functional_call(self.fc, (p, b), (x,)))(parameters, buffers)


class Square(nn.Module):
    def forward(self, weight):
        return weight @ weight


@case(
    # Two squares for three calls; in training W v, W' u and sigma = u' (W v) on top.
    {"square": 2 * 27 + 3 * 18, "square.parametrizations.weight": 2 * 27, "spectral": FC + 3 * 15 + 5},
    square=parametrize.register_parametrization(nn.Linear(3, 3), "weight", Square()),
    spectral=parametrizations.spectral_norm(nn.Linear(3, 5)),
)
def parametrizations_cached_and_not(self, x):
    with parametrize.cached():
        self.square(x), self.square(x)
    return self.square(x), self.spectral(x)


# --- Python -----------------------------------------------------------------------------------------------------------


@case({"fc": (9 + 1) * FC, "head": 0}, head=nn.Linear(7, 2))
def errors_are_caught_and_the_model_goes_on(self, x):
    wrong = ones(7, 7)
    for attempt in (
        lambda: x @ wrong,
        lambda: torch.ops.aten.mm.default(x, wrong),
        lambda: torch.ops.aten.mm(x, nn.Parameter(wrong)),
        lambda: F.conv2d(x, wrong),
        lambda: F.multi_head_attention_forward(x, x, x, 7, 2, None, None, None, None, True, 0.0, x, None),
        lambda: grad(self.fc)(x),  # `fc` runs; its result is no scalar
        lambda: self.head(x),
        lambda: x[5],
        lambda: torch.linalg.cholesky(x),
    ):
        with pytest.raises((RuntimeError, IndexError, AssertionError)):
            attempt()
        self.fc(x)


# Three halvings; a row for each of three values; each of two rows.
@case({"square": 3 * 18, "fc": (3 + 2) * 15}, torch.full((2, 3), 8.0), square=nn.Linear(3, 3))
def loops_and_branches_that_follow_the_data(self, x):
    while x.abs().max() > 1:
        x = self.square(x) * 0 + x / 2
    for value in x[0].tolist():
        self.fc(x if value > 100 else x[:1])
    return [self.fc(row) for row in x]


@case(3 * 18 + 2 * 3 * 7 + 2 * 7 * 2 + 2 * 2 * 11, table=nn.ParameterDict({"w": ones(2, 11)}))
def modules_that_no_container_knows(self, x):
    for module in [nn.Linear(3, 3) for _ in range(3)]:
        x = module(x)
    self.late = nn.Linear(3, 7)
    return nn.Linear(7, 2)(self.late(x)) @ self.table["w"]


@case(3 * FC)
def copies_made_in_the_forward_are_models_of_their_own(self, x):
    twin = copy.deepcopy(self.fc).requires_grad_(False)
    twin.weight.zero_(), twin.bias.zero_()
    assert not twin(x).any()
    assert "forward" not in vars(twin)
    return pickle.loads(pickle.dumps(self.fc))(x) - self.fc(x)


class Called(nn.Linear):
    def __call__(self, x):
        return super().__call__(x) @ ones(5, 2)

    def __setattr__(self, name, value):
        assert name != "forward"
        super().__setattr__(name, value)


class Static(nn.Module):
    @staticmethod
    def forward(x):
        return x @ ones(3, 5)


class Steps(nn.Linear):
    def forward(self, x):
        for _ in range(3):
            yield super().forward(x)


@case(
    {"": FC + 2 * 5 * 2 + FC + 3 * FC + FC, "called": FC, "static": FC},
    called=Called(3, 5),
    static=Static(),
    steps=Steps(3, 5),
)
def classes_with_their_own_ways(self, x):
    replaced = nn.Identity()
    replaced.forward = functools.partial(self.fc)
    return self.called(x), self.static(x), list(self.steps(x)), replaced(x)


# --- State and modes --------------------------------------------------------------------------------------------------


# The gradient of the weight is a product too.
@case({"": FC + FC + 2 * 3 * 7, "fc": FC + 2 * 3 * 7}, ones(2, 3), norm=nn.BatchNorm1d(3))
def weights_and_buffers_written_in_every_way(self, x):
    with torch.no_grad():
        self.fc.weight[0] = 5
        self.fc.weight += 1
        torch._foreach_mul_([self.fc.weight, self.fc.bias], 2.0)
        self.norm.running_mean.resize_(7).zero_()
    self.fc(x).sum().backward()
    torch.optim.Adam(self.fc.parameters(), fused=True).step()
    self.fc.weight.data, self.fc.bias = ones(7, 3), None
    return self.fc(x)


@case({"fc": FC}, ones(1, 3).expand(2, 3))
def an_expanded_input(self, x):
    return self.fc(x)


class Spelt(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear:
            return args[0] @ args[1].t() + args[2] @ torch.eye(5)
        return function(*args, **(kwargs or {}))


@case({"fc": FC + 5 * 5 + 4 * FC})
def modes_of_the_user_inside(self, x):
    with Spelt():
        self.fc(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert self.fc(x).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert self.fc(x).dtype == torch.float32
    with torch.inference_mode():
        self.fc(x.clone())
    torch.set_grad_enabled(False)
    with torch.device("cpu"), torch.random.fork_rng():
        torch.manual_seed(3)
        return self.fc(x + torch.rand(3))


class Marked(torch.Tensor):
    pass


@case({"fc": FC, "conv": 7 * 1 * 10}, ones(2, 3).as_subclass(Marked), conv=nn.Conv1d(5, 7, 2))
def tensors_of_a_subclass(self, x):
    y = self.conv(self.fc(x).t()[None])
    assert isinstance(y, Marked)
    return F.interpolate(y, 2 * y.shape[-1])


@pytest.mark.parametrize("engine", ["trace", "dispatch"])
@pytest.mark.parametrize(("forward", "children", "inputs", "expected"), CASES)
def test_the_count_is_right_and_nothing_is_left_behind(forward, children, inputs, expected, engine):
    model = Model(forward, **children)
    before = {module: set(vars(module)) for module in model.modules()}
    values, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    flops = FlopCountAnalysis(model, inputs, engine=engine)
    assert {name: flops.total(name) for name in expected} == expected
    assert not flops.is_lower_bound
    assert {module: set(vars(module)) for module in model.modules()} == before
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert all(tensor.grad is None for tensor in (*model.parameters(), *inputs) if isinstance(tensor, torch.Tensor))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt("mine"), StopIteration("mine")])
def test_an_error_of_the_model_comes_out_as_it_is_and_leaves_nothing(error):
    def forward(self, x):
        self.norm(self.fc(x))
        raise error

    model = Model(forward, norm=nn.BatchNorm1d(5))
    with pytest.raises(type(error), match="mine"):
        FlopCountAnalysis(model, ones(2, 3)).total()
    assert not model.norm.running_mean.any()
    assert "forward" not in vars(model.fc)


def test_a_thread_that_works_beside_a_count_is_not_disturbed():
    def work():
        while not done.is_set():
            seen.append(torch.autograd.grad(beside(ones(2, 3)).sum(), beside.bias)[0].tolist())

    beside, done, seen = nn.Linear(3, 5), threading.Event(), []
    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert FlopCountAnalysis(nn.Sequential(*[nn.Linear(3, 3) for _ in range(30)]), ones(2, 3)).total() == 30 * 18
    finally:
        done.set()
        thread.join()
    assert seen
    assert all(one == [2.0] * 5 for one in seen)
