"""What goes wrong in the original counter, D9 to D16 of `docs/from-fvcore.md`, and must not go wrong here."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flopcallback.fvcore import FlopCountAnalysis, flop_count_str, flop_count_table

# Linear(5, 7) on 3 rows, the piece that many of the models below are made of.
LINEAR = 3 * 5 * 7


def rows():
    return torch.ones(3, 5)


def flops_of(model, *inputs):
    analysis = FlopCountAnalysis(model, inputs)
    assert not analysis.unknown_ops()
    return analysis


class Around(nn.Module):
    def __init__(self, child, call=lambda child, x: child(x)):
        super().__init__()
        self.child = child
        self.call = call

    def forward(self, x):
        return self.call(self.child, x)


# --- D9: sizes are tensors while the original counts -----------------------------------------------------------------


def test_d9_sizes_are_python_ints():
    def forward(fc, x):
        assert isinstance(x.shape[0], int)
        assert isinstance(x.size(1), int)
        assert {3: "three"}[len(x)] == "three"
        return fc(x)

    assert FlopCountAnalysis(Around(nn.Linear(5, 7), forward), rows()).total() == LINEAR


def test_d9_a_sharded_model_can_be_counted_again_and_again():
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 11))
        for module in (*model, model):
            fully_shard(module, mesh=mesh)
        for _ in range(2):
            analysis = flops_of(model, rows())
            assert analysis.by_module() == {"": LINEAR + 3 * 7 * 11, "0": LINEAR, "1": 3 * 7 * 11}
            model(rows())
    finally:
        dist.destroy_process_group()


# --- D10: what does not reach an output is left out, without a word --------------------------------------------------


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.auxiliary = nn.Linear(5, 1), nn.Linear(5, 11)
        self.kept, self.body = nn.Linear(5, 13), nn.Linear(5, 7)
        self.stash = None

    def forward(self, x):
        if self.gate(x).sum() > 1e9:
            raise ValueError("the gate is closed")
        self.auxiliary(x)
        self.stash = self.kept(x)
        return self.body(x)


def test_d10_what_reaches_no_output_is_counted():
    analysis = FlopCountAnalysis(Deciding(), rows())
    parts = {"gate": 3 * 5 * 1, "auxiliary": 3 * 5 * 11, "kept": 3 * 5 * 13, "body": LINEAR}
    assert analysis.by_module() == {"": sum(parts.values()), **parts}
    assert analysis.uncalled_modules() == set()


def test_d10_leaving_it_out_is_a_choice():
    assert FlopCountAnalysis(Deciding(), rows(), prune=True).total() == LINEAR


# --- D11: explicit `.forward()` and other methods leave the module at 0 and "uncalled" -------------------------------


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 7))

    def forward(self, x):
        return x @ self.weight

    def encode(self, x):
        return x @ self.weight


class ByMethods(nn.Module):
    def __init__(self):
        super().__init__()
        self.by_forward, self.by_encode = Block(), Block()

    def forward(self, x):
        return self.by_forward.forward(x) + self.by_encode.encode(x)


def test_d11_explicit_forward_and_other_methods_are_the_modules_own_work():
    analysis = FlopCountAnalysis(ByMethods(), rows())
    assert analysis.by_module() == {"": 2 * LINEAR, "by_forward": LINEAR, "by_encode": LINEAR}
    assert analysis.uncalled_modules() == set()


def test_d11_by_caller_they_stay_the_work_of_whoever_calls():
    analysis = FlopCountAnalysis(ByMethods(), rows()).ancestor_mode("caller")
    assert analysis.by_module() == {"": 2 * LINEAR, "by_forward": 0, "by_encode": 0}
    assert analysis.uncalled_modules() == {"by_forward", "by_encode"}


# --- D12: what the tracer cannot follow raises, or counts 0 ----------------------------------------------------------


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ w.T, x.T @ grad


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_d12_checkpointing(use_reentrant):
    def call(child, x):
        return checkpoint(child, x, use_reentrant=use_reentrant)

    analysis = flops_of(Around(nn.Linear(5, 7), call), rows().requires_grad_())
    assert analysis.by_module() == {"": LINEAR, "child": LINEAR}


def test_d12_a_custom_autograd_function():
    analysis = flops_of(Around(Block(), lambda child, x: Product.apply(x, child.weight)), rows().requires_grad_())
    assert analysis.by_operator() == {"mm": LINEAR}


@pytest.mark.parametrize("compile_child", [torch.jit.script, lambda child: torch.jit.trace(child, rows())])
def test_d12_a_scripted_or_traced_child(compile_child):
    analysis = flops_of(Around(compile_child(nn.Linear(5, 7))), rows())
    assert analysis.by_module() == {"": LINEAR, "child": LINEAR}


def test_d12_a_scripted_function():
    @torch.jit.script
    def product(x, w):
        return x @ w

    analysis = flops_of(Around(Block(), lambda child, x: product(x, child.weight)), rows())
    assert analysis.total() == LINEAR
    assert analysis.unsupported_ops()["prim::CallFunction"] == 1


def test_d12_a_compiled_child():
    analysis = flops_of(Around(torch.compile(nn.Linear(5, 7), backend="eager")), rows())
    assert analysis.by_module()["child"] == LINEAR
    assert analysis.total() == LINEAR


def test_d12_a_child_compiled_in_place():
    child = nn.Linear(5, 7)
    child.compile(backend="eager")
    assert flops_of(Around(child), rows()).by_module() == {"": LINEAR, "child": LINEAR}


def test_d12_a_functional_call():
    def call(child, x):
        doubled = {name: 2 * parameter for name, parameter in child.named_parameters()}
        return torch.func.functional_call(child, doubled, (x,))

    assert flops_of(Around(nn.Linear(5, 7), call), rows()).by_module() == {"": LINEAR, "child": LINEAR}


def test_d12_a_gradient_inside_the_forward():
    def call(child, x):
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(child(x).sum(), x)
        return slope

    # The gradient of the input is one more product of the same size: [3, 7] @ [7, 5].
    analysis = flops_of(Around(nn.Linear(5, 7), call), rows())
    assert analysis.total() == 2 * LINEAR
    assert analysis.by_module()["child"] == LINEAR


def test_d12_flex_attention(model_of):
    from torch.nn.attention.flex_attention import flex_attention

    query, key, value = torch.ones(2, 3, 5, 16), torch.ones(2, 3, 7, 16), torch.ones(2, 3, 7, 16)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        analysis = flops_of(model_of(flex_attention), query, key, value)
        assert analysis.total() == 2 * 3 * 5 * 7 * (16 + 16)


# --- D13: a layer norm of odd rank ends the analysis -----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (1, 2, 3, 1, 2, 7)])
def test_d13_layer_norm_of_any_rank(shape):
    numel = torch.ones(shape).numel()
    assert flops_of(nn.LayerNorm(7), torch.ones(shape)).by_operator() == {"layer_norm": 5 * numel}


# --- D14: hooks, statistics and the random state change --------------------------------------------------------------


class Failing(nn.Module):
    def forward(self, x):
        raise ArithmeticError("half-way")


def state_of(model):
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m))) for m in model.modules()]
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return hooks, tensors, torch.get_rng_state()


@pytest.mark.parametrize("ending", [nn.Identity, Failing])
def test_d14_the_model_and_the_random_state_are_left_as_found(ending):
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(0.5), ending()).train()
    hooks, tensors, random_state = state_of(model)
    try:
        FlopCountAnalysis(model, torch.rand(3, 5)).total()
    except ArithmeticError:
        assert ending is Failing
    hooks_after, tensors_after, random_state_after = state_of(model)
    assert hooks_after == hooks
    torch.testing.assert_close(tensors_after, tensors, rtol=0, atol=0)
    # The inputs above were drawn after the state was read.
    torch.set_rng_state(random_state)
    torch.rand(3, 5)
    assert torch.equal(torch.get_rng_state(), random_state_after)


def test_d14_hooks_that_the_original_left_behind_hide_nothing():
    # What it puts on every module, and what stays there when a forward raises.
    def push(module, inputs):
        if (tracing := torch._C._get_tracing_state()) is not None:
            tracing.push_scope("name")

    def pop(module, inputs, outputs):
        if (tracing := torch._C._get_tracing_state()) is not None:
            tracing.pop_scope()

    model = nn.Sequential(nn.Linear(5, 7), nn.Sequential(nn.Linear(7, 11)), nn.Linear(11, 2))
    for module in model.modules():
        module.register_forward_pre_hook(push)
        module.register_forward_hook(pop)
    second, third = 3 * 7 * 11, 3 * 11 * 2
    for prune in (False, True):
        analysis = FlopCountAnalysis(model, rows(), prune=prune)
        by_module = {"": LINEAR + second + third, "0": LINEAR, "1": second, "1.0": second, "2": third}
        assert analysis.by_module() == by_module


# --- D15: a name with "/" raises -------------------------------------------------------------------------------------


def test_d15_names_with_a_slash():
    model = nn.Sequential()
    model.add_module("a/b", nn.Sequential(nn.Linear(5, 7)))
    model.add_module("c", nn.Sequential())
    model.c.add_module("d/e", nn.Linear(7, 11))
    second = 3 * 7 * 11
    for mode in ("owner", "caller"):
        analysis = FlopCountAnalysis(model, rows()).ancestor_mode(mode)
        assert analysis.by_module() == {
            "": LINEAR + second,
            "a/b": LINEAR,
            "a/b.0": LINEAR,
            "c": second,
            "c.d/e": second,
        }


# --- D16: dozens of log lines; the tables switch the caller's warnings off for good ----------------------------------


class Arithmetic(nn.Module):
    def forward(self, x):
        return torch.softmax(x * 2 + 1, -1) - x.mean()


def logged(caplog):
    return [record.getMessage() for record in caplog.records]


def test_d16_elementwise_operators_are_no_reason_to_log(caplog):
    with caplog.at_level(logging.INFO):
        FlopCountAnalysis(nn.Sequential(nn.Linear(5, 7), Arithmetic()), rows()).total()
    assert not logged(caplog)


def test_d16_one_line_names_everything_that_is_missing(caplog, model_of):
    def unknown(x):
        return torch.linalg.lstsq(x, x, driver="gelsd").solution * torch.linalg.matrix_exp(x).sum()

    with caplog.at_level(logging.INFO):
        analysis = FlopCountAnalysis(model_of(unknown), torch.eye(5))
        analysis.total()
    (line,) = logged(caplog)
    assert "lower bound" in line
    assert all(operator in line for operator in analysis.unknown_ops())


def test_d16_a_line_per_operator_is_there_for_who_asks(caplog):
    FlopCountAnalysis(Arithmetic(), rows()).unsupported_ops_warnings(True).total()
    assert "Unsupported operator aten::add encountered 1 time(s)" in logged(caplog)


@pytest.mark.parametrize("text_of", [flop_count_table, flop_count_str])
def test_d16_texts_leave_the_warnings_as_they_were(caplog, text_of):
    analysis = FlopCountAnalysis(Arithmetic(), rows()).unsupported_ops_warnings(True).tracer_warnings("all")
    text_of(analysis)
    assert not logged(caplog)
    twin = analysis.copy()
    twin.total()
    assert "Unsupported operator aten::add encountered 1 time(s)" in logged(caplog)
    assert twin._warn_trace == "all"


def test_d16_texts_leave_the_warnings_as_they_were_when_the_model_raises():
    analysis = FlopCountAnalysis(Failing(), rows()).unsupported_ops_warnings(True)
    with pytest.raises(ArithmeticError):
        flop_count_table(analysis)
    assert analysis._enable_warn_unsupported_ops is True
