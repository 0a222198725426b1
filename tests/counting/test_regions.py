"""What the tracer cannot follow goes past it: the rest stays traced, the count stays right, attribution too."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flopcallback import Cost, FlopCountAnalysis, register_formula, unregister_formula

pytestmark = pytest.mark.usefixtures("no_tracing_state_left")


class MatmulWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ w.t(), x.t() @ grad


def counted(model, x, expected, engine="trace"):
    """Checks the count with the engine that takes the call by itself, and with the dispatcher alone."""
    flops = FlopCountAnalysis(model, x)
    assert flops.by_module() == expected
    assert flops.engine == engine, flops.engine_reason
    assert not flops.is_lower_bound, flops.unknown_reasons()
    dispatched = FlopCountAnalysis(model, x, engine="dispatch")
    assert dispatched.by_module() == expected
    assert not dispatched.is_lower_bound, dispatched.unknown_reasons()
    if engine == "trace":
        assert flops.verify() == ()
    return flops


def test_scripted_and_traced_children(model_of, x):
    children = {
        "scripted": torch.jit.script(nn.Linear(3, 5)),
        "traced": torch.jit.trace(nn.Linear(5, 7), x.new_ones(2, 5)),
    }
    model = model_of(lambda self, x: self.last(self.traced(self.scripted(x))), **children, last=nn.Linear(7, 11))
    counted(model, x, {"": 30 + 70 + 154, "scripted": 30, "traced": 70, "last": 154})


def test_work_inside_a_scripted_module_goes_to_the_owner_of_the_parameters(model_of, x):
    scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7)))
    model = model_of(lambda self, x: self.inner(x), inner=scripted)
    flops = counted(model, x, {"": 100, "inner": 100, "inner.0": 30, "inner.1": 0, "inner.2": 70})
    assert flops.uncalled_modules() == {"inner.1"}


def test_a_scripted_function(model_of, x):
    @torch.jit.script
    def gram(x):
        return x @ x.t()

    flops = counted(model_of(lambda self, x: gram(self.fc(x)), fc=nn.Linear(3, 5)), x, {"": 30 + 2 * 2 * 5, "fc": 30})
    assert flops.unsupported_ops()["prim::CallFunction"] == 1


# Dynamo looks at `.grad` of what the model computes (2.13); a warning is an error here.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_children_and_the_compiled_code_stays(model_of, x):
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    child = torch.compile(nn.Linear(3, 5), backend=backend)
    in_place = model_of(lambda self, x: self.fc(x), fc=nn.Linear(5, 7))
    in_place.compile(backend=backend)
    model = model_of(lambda self, x: self.in_place(self.child(x)), child=child, in_place=in_place)
    model(x)
    before = len(compilations)
    assert before == 2
    counted(model, x, {"": 30 + 70, "child": 30, "child._orig_mod": 30, "in_place": 70, "in_place.fc": 70})
    model(x)
    assert len(compilations) == before


def test_a_compiled_function_is_left_to_the_dispatcher(model_of, x):
    product = torch.compile(lambda a, b: a @ b, backend="eager")
    model = model_of(lambda self, x: product(self.fc(x), torch.ones(5, 7)), fc=nn.Linear(3, 5))
    flops = counted(model, x, {"": 30 + 70, "fc": 30}, engine="dispatch")
    assert "dynamo" in flops.engine_reason


def test_an_autograd_function_is_counted_by_its_body(model_of, x):
    model = model_of(lambda self, x: MatmulWithGradient.apply(self.fc(x), torch.ones(5, 7)), fc=nn.Linear(3, 5))
    flops = counted(model, x, {"": 30 + 70, "fc": 30})
    assert flops.by_operator() == {"linear": 30, "mm": 70}


def test_a_handle_for_an_autograd_function_goes_before_its_body(model_of, x):
    model = model_of(lambda self, x: MatmulWithGradient.apply(self.fc(x), torch.ones(5, 7)), fc=nn.Linear(3, 5))
    flops = FlopCountAnalysis(model, x).set_op_handle("prim::PythonOp.MatmulWithGradient", lambda i, o: 42)
    assert flops.by_operator() == {"linear": 30, "PythonOp.MatmulWithGradient": 42}


def test_a_registered_formula_for_an_autograd_function_goes_before_its_body(x):
    register_formula("prim::PythonOp.MatmulWithGradient", lambda call: Cost(fma=call.inputs[0].numel))
    try:
        assert FlopCountAnalysis(lambda x: MatmulWithGradient.apply(x, torch.ones(3, 7)), x).total() == 2 * 3
    finally:
        unregister_formula("prim::PythonOp.MatmulWithGradient")


def test_an_autograd_function_that_calls_modules(x):
    """Its traced form raises; the modules that it calls are attributed all the same."""
    fc = nn.Linear(3, 5)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = fc

        def forward(self, x):
            return checkpoint(self.fc, x, use_reentrant=True)

    counted(Net(), x.requires_grad_(), {"": 30, "fc": 30})


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_counts_the_forward_once(model_of, x, use_reentrant):
    model = model_of(
        lambda self, x: checkpoint(self.block, x, use_reentrant=use_reentrant),
        block=nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7)),
    )
    counted(model, x.requires_grad_(), {"": 100, "block": 100, "block.0": 30, "block.1": 70})


def test_a_gradient_taken_inside_the_forward_is_work_of_the_forward(model_of, x):
    def forward(self, x):
        y = self.fc(x)
        (gradient,) = torch.autograd.grad(y.square().sum(), self.fc.weight, create_graph=True)
        return y @ gradient

    # Forward 2x3 @ 3x5; the weight's gradient 5x2 @ 2x3; then 2x5 @ 5x3.
    counted(model_of(forward, fc=nn.Linear(3, 5)), x, {"": 30 + 30 + 30, "fc": 30})


def test_a_backward_inside_the_forward(model_of, x):
    def forward(self, x):
        self.fc(x).sum().backward()
        return self.fc.weight.grad.sum()

    model = model_of(forward, fc=nn.Linear(3, 5))
    counted(model, x, {"": 60, "fc": 30})
    assert model.fc.weight.grad is None


def test_transforms_of_torch_func(model_of, x):
    fc = nn.Linear(3, 5)
    counted(model_of(lambda self, x: torch.vmap(self.fc)(x), fc=fc), x, {"": 30, "fc": 30})
    gradient = model_of(lambda self, x: torch.func.grad(lambda x: self.fc(x).square().sum())(x), fc=fc)
    # 2x3 @ 3x5, then the input's gradient 2x5 @ 5x3; the parameters are constants to the transform.
    counted(gradient, x, {"": 60, "fc": 30})
    jacobian = model_of(lambda self, x: torch.func.jacrev(self.fc)(x[0]), fc=fc)
    counted(jacobian, x, {"": 15 + 5 * 15, "fc": 15})


def test_functional_call(model_of, x):
    model = model_of(
        lambda self, x: torch.func.functional_call(self.fc, {"weight": self.fc.weight * 2}, (x,)), fc=nn.Linear(3, 5)
    )
    counted(model, x, {"": 30, "fc": 30})


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_attention(model_of):
    from torch.nn.attention.flex_attention import flex_attention

    q = torch.ones(1, 2, 16, 8)
    model = model_of(lambda self, q: self.out(flex_attention(q, q, q)), out=nn.Linear(8, 3))
    counted(model, q, {"": 2 * (2 * 16 * 16 * 8) + 2 * 16 * 8 * 3, "out": 2 * 16 * 8 * 3})


def test_weights_cast_by_an_outer_autocast_are_left_to_the_dispatcher(x):
    fc = nn.Linear(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        fc(x)  # the cast weight is cached, and no tracer has seen the cast
        counted(fc, x, {"": 30}, engine="dispatch")


def test_gradients_by_every_door(model_of, x):
    """A gradient penalty, a backward with given gradients, a vector-Jacobian product: the trace goes on behind them."""

    def penalty(self, x):
        x = x.detach().requires_grad_()
        y = self.fc(x)
        (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
        return self.last(gradient)

    # 2x3 @ 3x5, back 2x5 @ 5x3, then 2x3 @ 3x7.
    counted(model_of(penalty, fc=nn.Linear(3, 5), last=nn.Linear(3, 7)), x, {"": 30 + 30 + 42, "fc": 30, "last": 42})

    def backward(self, x):
        y = self.fc(x)
        y.backward(torch.ones_like(y))
        return y

    counted(model_of(backward, fc=nn.Linear(3, 5)), x, {"": 30 + 30, "fc": 30})
    product = model_of(lambda self, x: torch.func.vjp(self.fc, x)[1](x.new_ones(2, 5)), fc=nn.Linear(3, 5))
    counted(product, x, {"": 30 + 30, "fc": 30})


class RaisesAfterAProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        torch.mm(x, x.t())
        raise ValueError("no")


def test_what_ran_before_a_region_raised_is_counted(model_of, x):
    def forward(self, x):
        try:
            RaisesAfterAProduct.apply(x)
        except ValueError:
            return self.fc(x)

    assert FlopCountAnalysis(model_of(forward, fc=nn.Linear(3, 5)), x).by_operator() == {"mm": 12, "linear": 30}


def test_forward_mode_differentiation_has_no_unknown_operator(x):
    fc = nn.Linear(3, 5)
    flops = FlopCountAnalysis(lambda x: torch.func.jvp(fc, (x,), (x,)), x)
    assert flops.unknown_ops() == {}
    assert not flops.is_lower_bound
