"""Operators of a user's own: an autograd function and a custom operator by body or formula, in both engines."""

from __future__ import annotations

import pytest
import torch
from torch import nn, ones

from flopcallback import Cost, FlopCountAnalysis, register_formula, unregister_formula

pytestmark = pytest.mark.usefixtures("no_tracing_state_left")
ENGINES = pytest.mark.parametrize("engine", ["trace", "dispatch"])


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        return x @ weight

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError


class OfModules(torch.autograd.Function):
    """With the context set up apart, which other machinery of PyTorch's leads to."""

    @staticmethod
    def forward(x, weight, module):
        return module(Product.apply(x, weight))

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass


product, of_modules = Product.apply, OfModules.apply  # as many do when a module is imported


@torch.library.custom_op("flopcallback_tests::banded", mutates_args=())
def banded(x: torch.Tensor, bands: torch.Tensor) -> torch.Tensor:
    return torch.stack([x.roll(shift, dims=-1) * band for shift, band in enumerate(bands)]).sum(0)


@pytest.fixture
def formula_for():
    names = []

    def register(name, formula):
        register_formula(name, formula)
        names.append(name)

    yield register
    for name in names:
        unregister_formula(name)


@ENGINES
class TestAnAutogradFunction:
    @pytest.mark.parametrize("apply", [lambda x, w: Product.apply(x, w), product], ids=["by its class", "by its apply"])
    def test_is_counted_by_its_body(self, model_of, x, engine, apply):
        model = model_of(lambda self, x: apply(self.fc(x), ones(5, 7)), fc=nn.Linear(3, 5))
        flops = FlopCountAnalysis(model, x, engine=engine)
        assert flops.by_module() == {"": 30 + 70, "fc": 30}
        assert flops.unsupported_ops()["prim::PythonOp.Product"] == 1
        assert flops.unknown_ops() == {}

    def test_that_calls_modules_and_others_gives_each_its_own(self, model_of, x, engine):
        model = model_of(lambda self, x: of_modules(x, ones(3, 5), self.fc), fc=nn.Linear(5, 7))
        assert FlopCountAnalysis(model, x, engine=engine).by_module() == {"": 30 + 70, "fc": 70}

    @pytest.mark.parametrize("apply", [lambda x, w: Product.apply(x, w), product], ids=["by its class", "by its apply"])
    def test_is_counted_by_a_registered_formula_instead(self, x, engine, apply, formula_for):
        formula_for("prim::PythonOp.Product", lambda call: Cost(fma=call.inputs[0].numel * call.outputs[0].shape[1]))
        flops = FlopCountAnalysis(lambda x: apply(x, ones(3, 7)), x, engine=engine)
        assert flops.by_operator() == {"PythonOp.Product": 6 * 7}
        assert flops.hardware_flops()[""] == 2 * 6 * 7
        assert flops.verify() == ()

    def test_in_another_by_the_formula_of_the_inner(self, x, engine, formula_for):
        formula_for("prim::PythonOp.Product", lambda call: Cost(fma=1000))
        flops = FlopCountAnalysis(lambda x: of_modules(x, ones(3, 5), nn.Linear(5, 7)), x, engine=engine)
        assert flops.total() == 1000 + 70

    def test_in_another_by_the_formula_of_the_outer_alone(self, x, engine, formula_for):
        formula_for("prim::PythonOp.OfModules", lambda call: Cost(fma=1000))
        formula_for("prim::PythonOp.Product", lambda call: Cost(fma=1))
        flops = FlopCountAnalysis(lambda x: of_modules(x, ones(3, 5), nn.Linear(5, 7)), x, engine=engine)
        assert flops.by_operator() == {"PythonOp.OfModules": 1000}

    def test_is_counted_by_the_formula_of_one_analysis(self, x, engine):
        flops = FlopCountAnalysis(lambda x: product(x, ones(3, 7)), x, engine=engine)
        assert flops.set_formula("prim::PythonOp.Product", lambda call: Cost(fma=17)).total() == 17
        assert flops.set_formula("prim::PythonOp.Product", None).total() == 0

    def test_whose_forward_is_called_directly_is_no_operator(self, x, engine, formula_for):
        class Twice(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, weight):
                return Product.forward(ctx, x, weight) + Product.apply(x, weight)

        formula_for("prim::PythonOp.Product", lambda call: Cost(fma=1000))
        assert FlopCountAnalysis(lambda x: Twice.apply(x, ones(3, 7)), x, engine=engine).total() == 2 * 3 * 7 + 1000

    def test_that_raises_costs_what_it_did_and_nothing_else(self, x, engine):
        """The model goes on, and so do count and tracer."""

        class Raises(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, weight):
                raise ArithmeticError(x @ weight)

        def model(x):
            with pytest.raises(ArithmeticError):
                Raises.apply(x, ones(3, 5))
            return product(x, ones(3, 7))

        assert FlopCountAnalysis(model, x, engine=engine).total() == 2 * 3 * 5 + 2 * 3 * 7

    @pytest.mark.parametrize("is_enabled", [True, False])
    def test_runs_in_the_grad_modes_that_it_runs_in_by_itself(self, x, engine, is_enabled):
        modes = []

        class Asks(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                modes.append(torch.is_grad_enabled())
                return x * 2

        def model(x):
            with torch.set_grad_enabled(is_enabled):
                y = Asks.apply(x)
                modes.append(torch.is_grad_enabled())
            assert y.requires_grad is is_enabled
            return y

        FlopCountAnalysis(model, x.requires_grad_(), engine=engine).total()
        assert modes == [False, is_enabled]

    def test_is_left_as_found(self, x, engine):
        owners = type(Product), *Product.__mro__
        before = [dict(vars(owner)) for owner in owners]
        FlopCountAnalysis(lambda x: product(x, ones(3, 7)), x, engine=engine).total()
        assert [dict(vars(owner)) for owner in owners] == before
        assert torch.equal(product(x, ones(3, 7)), x @ ones(3, 7))


class Itself(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)


class Several(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x + 1, None, "a flag", x


class WorkInItsContext(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x + 1

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0] * output)


class OfALeafMadeInside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, leaf):
        return x + leaf


@ENGINES
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize(
    "apply",
    [
        Itself.apply,
        InPlace.apply,
        lambda y: Several.apply(y)[0],
        lambda y: Several.apply(y)[3],
        WorkInItsContext.apply,
        lambda y: OfALeafMadeInside.apply(y, torch.ones(5, requires_grad=True)),
    ],
    ids=["itself", "in place", "several: new", "several: itself", "work in its context", "a leaf made inside"],
)
def test_what_an_autograd_function_returns_goes_on_to_be_counted(model_of, x, engine, apply, grad):
    model = model_of(lambda self, x: self.after(apply(self.fc(x))), fc=nn.Linear(3, 5), after=nn.Linear(5, 7))
    with torch.set_grad_enabled(grad):
        for prune in (False, True):
            flops = FlopCountAnalysis(model, x, engine=engine, prune=prune and engine == "trace")
            assert flops.by_module() == {"": 30 + 70, "fc": 30, "after": 70}


@pytest.mark.parametrize("apply", [lambda x, w: Product.apply(x, w), product], ids=["by its class", "by its apply"])
def test_an_autograd_function_of_a_parameter_that_nobody_knows_of_is_counted(x, apply):
    """The tracer does not take one that an autograd function is the first to use."""
    hidden = nn.Parameter(ones(3, 7))
    assert FlopCountAnalysis(lambda x: apply(x, hidden), x).total() == 2 * 3 * 7


def test_pruning_keeps_what_an_autograd_function_is_given(model_of, x):
    model = model_of(lambda self, x: (self.unused(x), product(self.fc(x), ones(5, 7)))[1],
                     fc=nn.Linear(3, 5), unused=nn.Linear(3, 11))  # fmt: skip
    assert FlopCountAnalysis(model, x, prune=True).by_module() == {"": 30 + 70, "fc": 30, "unused": 0}


@ENGINES
class TestACustomOperator:
    def test_is_counted_by_what_runs_inside_without_a_formula(self, x, engine):
        flops = FlopCountAnalysis(banded, (x, ones(5, 3)), elementwise=True, engine=engine)
        # Five products with a band, and a sum over them.
        assert flops.by_operator() == {"mul": 5 * 6, "sum": 5 * 6}
        assert not flops.is_lower_bound

    def test_is_counted_by_a_registered_formula(self, model_of, x, engine, formula_for):
        formula_for("flopcallback_tests::banded", lambda call: Cost(fma=call.inputs[0].numel * call.inputs[1].shape[0]))
        model = model_of(lambda self, x: self.fc(banded(x, ones(5, 3))), fc=nn.Linear(3, 7))
        flops = FlopCountAnalysis(model, x, engine=engine)
        assert flops.by_operator()["banded"] == 6 * 5
        assert flops.by_module() == {"": 6 * 5 + 2 * 3 * 7, "fc": 2 * 3 * 7}
        assert not flops.is_lower_bound
        assert flops.verify() == ()

    def test_in_an_autograd_function_and_under_inference_mode(self, x, engine, formula_for):
        class Banded(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return banded(x, ones(5, 3))

        formula_for("flopcallback_tests::banded", lambda call: Cost(fma=30))
        with torch.inference_mode():
            assert FlopCountAnalysis(lambda x: Banded.apply(x), x, engine=engine).total() == 30

    def test_of_pytorchs_own_registry_counts_too(self, x, engine, monkeypatch):
        from torch.utils import flop_counter

        packet = torch.ops.flopcallback_tests.banded
        monkeypatch.setitem(flop_counter.flop_registry, packet, lambda x, bands, *, out_val: 2 * x.numel() * len(bands))
        assert FlopCountAnalysis(banded, (x, ones(5, 3)), engine=engine).total() == 6 * 5


@ENGINES
@pytest.mark.skipif(not hasattr(torch.library, "triton_op"), reason="torch without triton_op")
def test_a_triton_operator_is_one_too(x, engine, formula_for):
    """Without Triton, its body is PyTorch's."""

    @torch.library.triton_op("flopcallback_tests::scaled", mutates_args=())
    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    seen = FlopCountAnalysis(scaled, x, elementwise=True, engine=engine)
    assert seen.by_operator() == {"mul": 6}
    assert not seen.is_lower_bound
    formula_for("flopcallback_tests::scaled", lambda call: Cost(other=call.inputs[0].numel))
    assert FlopCountAnalysis(scaled, x, engine=engine).total() == 6


def test_where_torch_does_not_let_functions_be_seen_the_tracer_is_not_used(monkeypatch, x):
    """A version whose `apply` looks up other attributes: traced, the work of a function would be a silent zero."""
    from flopcallback.tracing import regions

    regions.sees_functions.cache_clear()
    monkeypatch.setattr(regions, "BACKWARD_CLASS", "_an_attribute_that_nobody_looks_up")
    try:
        flops = FlopCountAnalysis(lambda x: product(x, ones(3, 7)), x)
        assert (flops.total(), flops.engine) == (2 * 3 * 7, "dispatch")
        assert flops.engine_reason == "this version of torch does not let the tracer see autograd functions"
    finally:
        regions.sees_functions.cache_clear()
