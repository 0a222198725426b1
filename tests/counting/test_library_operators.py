"""Operators of a library without a formula: counted by what runs inside, or unknown; training as without us."""

from __future__ import annotations

import pytest
import torch
from torch import nn, ones

from flopcallback import Cost, FlopCountAnalysis, FlopHook

pytestmark = pytest.mark.usefixtures("no_tracing_state_left")

ROWS, INS, OUTS = 3, 8, 16
PRODUCT = ROWS * INS * OUTS
ENGINES = pytest.mark.parametrize("engine", ["auto", "trace", "dispatch", "observer"])

_library = torch.library.Library("flopcallback_library", "DEF")
_library.define("composite(Tensor a, Tensor b) -> Tensor")
_library.impl("composite", lambda a, b: a @ b, "CompositeImplicitAutograd")
_library.define("on_cpu(Tensor a, Tensor b) -> Tensor")
_library.impl("on_cpu", lambda a, b: a @ b, "CPU")
_library.define("named(Tensor a, *, Tensor b, float scale=2.0) -> Tensor")
_library.impl("named", lambda a, *, b, scale=2.0: (a @ b) * scale, "CompositeExplicitAutograd")


def _operator(name, mutates=()):
    return torch.library.custom_op(f"flopcallback_library::{name}", mutates_args=mutates)


@_operator("python")
def python(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b


@_operator("with_backward")
def with_backward(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradients(ctx, grad):
    a, b = ctx.saved_tensors
    return grad.to(b.dtype) @ b.T, a.T @ grad.to(a.dtype)


with_backward.register_autograd(_gradients, setup_context=_save)


@_operator("with_shapes")
def with_shapes(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b


@with_shapes.register_fake
def _(a, b):
    return a.new_empty(a.shape[0], b.shape[1])


@_operator("nested")
def nested(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return python(a, b) * 2


@_operator("writes", mutates=("out",))
def writes(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(a @ b)


@_operator("opaque")
def opaque(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Work that leaves PyTorch, as a kernel of Triton does."""
    return torch.from_numpy(a.detach().numpy() @ b.detach().numpy())


@_operator("half_opaque")
def half_opaque(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A product that is seen, into memory that something else writes to."""
    out = torch.empty(a.shape[0], b.shape[1])
    out.numpy()[:] = (a @ b).numpy()
    return out


@_operator("raises")
def raises(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a @ b
    raise ValueError("the model's own")


class Calls(nn.Module):
    def __init__(self, operator):
        super().__init__()
        self.operator = operator
        self.weight = nn.Parameter(ones(INS, OUTS))

    def forward(self, x):
        return self.operator(x, self.weight)


def into_new_memory(a, b):
    out = torch.zeros(ROWS, OUTS)
    with torch.no_grad():
        writes(a, b, out)
    return out


# From torch 2.14 on, the call of an overload of a `custom_op` leaves no record, only what runs inside does.
LEAVES_RECORDS = torch.__version__ < (2, 14)
ENGINES_THAT_SEE_OPERATORS = pytest.mark.parametrize(
    "engine",
    [
        *("auto", "trace", "dispatch"),
        pytest.param("observer", marks=pytest.mark.skipif(not LEAVES_RECORDS, reason="operators leave no record")),
    ],
)

VISIBLE = {
    "composite": lambda a, b: torch.ops.flopcallback_library.composite(a, b),
    "composite by its overload": lambda a, b: torch.ops.flopcallback_library.composite.default(a, b),
    "on one device": lambda a, b: torch.ops.flopcallback_library.on_cpu(a, b),
    "arguments by name": lambda a, b: torch.ops.flopcallback_library.named(a, b=b),
    "Python": lambda a, b: python(a, b),
    "Python with a backward": lambda a, b: with_backward(a, b),
    "one inside another": lambda a, b: nested(a, b),
    "one that writes": into_new_memory,
}


@ENGINES
@pytest.mark.parametrize("operator", VISIBLE.values(), ids=VISIBLE)
def test_what_runs_inside_counts_in_its_module(engine, operator):
    flops = FlopCountAnalysis(nn.Sequential(Calls(operator)), ones(ROWS, INS), engine=engine)
    assert flops.by_module() == {"": PRODUCT, "0": PRODUCT}
    assert not flops.is_lower_bound
    assert flops.unknown_ops() == {}


@ENGINES_THAT_SEE_OPERATORS
def test_what_leaves_pytorch_is_unknown(engine):
    flops = FlopCountAnalysis(nn.Sequential(Calls(opaque)), ones(ROWS, INS), engine=engine)
    assert flops.total() == 0
    assert flops.unknown_ops() == {"flopcallback_library::opaque": 1}
    assert flops.is_lower_bound


@ENGINES_THAT_SEE_OPERATORS
def test_a_half_that_is_seen_does_not_look_like_the_whole(engine):
    flops = FlopCountAnalysis(Calls(half_opaque).requires_grad_(False), ones(ROWS, INS), engine=engine)
    assert flops.total() == PRODUCT
    assert flops.unknown_ops() == {"flopcallback_library::half_opaque": 1}
    assert flops.is_lower_bound


@ENGINES
def test_what_ran_before_an_error_has_run(engine):
    def model(a, b):
        try:
            return raises(a, b)
        except ValueError:
            return a

    assert FlopCountAnalysis(model, (ones(ROWS, INS), ones(INS, OUTS)), engine=engine).total() == PRODUCT


@ENGINES
def test_a_formula_of_one_analysis_goes_before_what_is_inside(engine):
    named = torch.ops.flopcallback_library.named
    flops = FlopCountAnalysis(lambda a, b: named(a, b=b), (ones(ROWS, INS), ones(INS, OUTS)), engine=engine)
    assert flops.set_formula("flopcallback_library::named", _sevenfold).total() == 7 * 2 * ROWS * INS


def _sevenfold(call):
    # In the schema's order, with the default of the third.
    source, weight, scale = call.inputs
    assert weight.shape == (INS, OUTS)
    return Cost(fma=7 * int(scale.constant) * source.numel)


@pytest.mark.parametrize("engine", ["auto", "dispatch"])
def test_on_tensors_without_memory_a_rule_for_shapes_runs_in_place_of_a_body(engine):
    with torch.device("meta"):
        models, x = [Calls(torch.ops.flopcallback_library.composite), Calls(with_shapes)], ones(ROWS, INS)
    composite, in_python = (FlopCountAnalysis(model, x, engine=engine) for model in models)
    assert composite.total() == PRODUCT
    assert in_python.unknown_ops() == {"flopcallback_library::with_shapes": 1}
    assert in_python.is_lower_bound


def train(operator, *, counted, autocast):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INS, INS), Calls(operator), nn.Linear(OUTS, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = FlopHook(model, optimizer, summary=False) if counted else None
    for step in range(3):
        x = torch.randn(ROWS, INS, generator=torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = model(x)
        y.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    if hook is not None:
        hook.close()
    return [parameter.detach() for parameter in model.parameters()], hook


# PyTorch's own, for an operator that has a kernel and no derivative.
@pytest.mark.filterwarnings("ignore:.*an autograd kernel was not registered:UserWarning")
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("name", ["composite", "on one device", "Python with a backward"])
def test_a_training_has_every_digit_and_counts_the_backward(name, autocast):
    operator = VISIBLE[name]
    if name == "Python with a backward" and autocast:
        operator = _in_float32
    plain, _ = train(operator, counted=False, autocast=autocast)
    watched, hook = train(operator, counted=True, autocast=autocast)
    assert all(map(torch.equal, plain, watched))
    numbers = hook.metrics()
    first, last = ROWS * INS * INS, ROWS * OUTS * 4
    # The first layer has no gradient of its input.
    assert numbers["flops/train_step"] == 2 * (2 * first + 3 * PRODUCT + 3 * last)
    assert numbers["compute/flops_total"] == 3 * numbers["flops/train_step"]
    assert numbers["compute/estimated_pct"] == 0
    assert not hook.profile.unknown


def _in_float32(a, b):
    return with_backward(a.float(), b)


class InFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return python(a, b)

    @staticmethod
    def backward(ctx, grad):
        return _gradients(ctx, grad)


@pytest.mark.parametrize("operator", [InFunction.apply, python], ids=["in a function", "by itself"])
def test_a_body_runs_under_the_callers_autocast_while_it_is_looked_into(operator):
    """In the handler of a mode autocast is off, and the body would multiply in float32."""
    seen = []

    def model(a, b):
        with torch.autocast("cpu", torch.bfloat16):
            seen.append(operator(a, b).dtype)
        return a

    model(ones(ROWS, INS), ones(INS, OUTS))
    for engine in ("trace", "dispatch"):
        assert FlopCountAnalysis(model, (ones(ROWS, INS), ones(INS, OUTS)), engine=engine).total() == PRODUCT
    assert len(set(seen)) == 1
