"""Statistics by module and operator: conventions, unknown operators, formulas of one's own, wrong use."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch
from torch import nn

import flopcallback
from flopcallback import (
    ActivationCountAnalysis,
    BytesCountAnalysis,
    Cost,
    FlopCountAnalysis,
    OperatorAnalysis,
    register_formula,
    unregister_formula,
)

pytestmark = pytest.mark.usefixtures("no_tracing_state_left")


@torch.library.custom_op("flopcallback_tests::gram", mutates_args=())
def gram(x: torch.Tensor) -> torch.Tensor:
    """A product that PyTorch does not see."""
    rows = x.detach().numpy()
    return torch.from_numpy(rows @ rows.T)


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 7))


def test_both_conventions_come_from_one_run(net, x):
    products = 2 * 3 * 5 + 2 * 5 * 7
    norm = 5 * (2 * 5)
    assert FlopCountAnalysis(net, x).total() == products + norm
    assert FlopCountAnalysis(net, x, fma=2).total() == 2 * products + norm
    assert FlopCountAnalysis(net, x, elementwise=True).total() == products + norm + 2 * 5
    assert FlopCountAnalysis(net, x).hardware_flops() == {"": 2 * products, "0": 60, "1": 0, "2": 0, "3": 140}


def test_activations_and_bytes_are_instances_of_the_same_analysis(net, x):
    assert ActivationCountAnalysis(net, x).by_module() == {"": 10 + 14, "0": 10, "1": 0, "2": 0, "3": 14}
    moved = BytesCountAnalysis(net, x).by_module()
    assert moved["0"] == 4 * (2 * 3 + 5 * 3 + 5 + 2 * 5)  # input, weight, bias, output, four bytes each
    assert moved["2"] == 4 * (2 * 5 + 2 * 5)
    assert BytesCountAnalysis(nn.Flatten(), torch.ones(2, 3, 5)).total() == 0


def test_a_statistic_of_your_own(net, x):
    largest = OperatorAnalysis(net, x, formula=lambda call: {"elements": call.outputs[0].numel})
    assert largest.total("3") == 14
    assert largest.by_operator() == {"elements": 10 + 10 + 10 + 14}


def test_an_unknown_operator_is_named_and_makes_a_lower_bound(model_of, x, caplog):
    flops = FlopCountAnalysis(model_of(lambda self, x: gram(self.fc(x)), fc=nn.Linear(3, 5)), x)
    with caplog.at_level(logging.WARNING):
        assert flops.total() == 30
    assert flops.unknown_ops() == {"flopcallback_tests::gram": 1}
    assert flops.unknown_reasons() == {"flopcallback_tests::gram": "no formula"}
    assert flops.unknown_ops("fc") == {}
    assert flops.is_lower_bound
    assert [record.message for record in caplog.records] == [
        "The total is a lower bound: no count for flopcallback_tests::gram"
    ]


def test_a_count_without_unknown_operators_says_nothing(net, x, caplog, capfd):
    FlopCountAnalysis(net, x).total()
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_a_registered_formula_counts_an_operator_of_your_own(x):
    register_formula("flopcallback_tests::gram", lambda call: Cost(fma=call.inputs[0].shape[1] * call.outputs[0].numel))
    try:
        flops = FlopCountAnalysis(gram, x)
        assert flops.total() == 3 * (2 * 2)
        assert flops.hardware_flops()[""] == 2 * 3 * (2 * 2)
        assert not flops.is_lower_bound
    finally:
        unregister_formula("flopcallback_tests::gram")


def test_a_formula_that_fails_is_one_unknown_operator(net, x):
    def fails(*_):
        raise IndexError("no such dimension")

    for flops in (
        FlopCountAnalysis(net, x).set_op_handle("aten::layer_norm", fails),
        FlopCountAnalysis(net, x).set_formula("aten::layer_norm", fails),
    ):
        assert flops.total() == 2 * 3 * 5 + 2 * 5 * 7
        assert flops.unknown_reasons() == {"aten::layer_norm": "its formula failed: IndexError: no such dimension"}
        assert flops.is_lower_bound


def test_a_handle_or_formula_set_to_none_makes_an_operator_free(net, x):
    products = 2 * 3 * 5 + 2 * 5 * 7
    for flops in (
        FlopCountAnalysis(net, x).set_op_handle("aten::layer_norm", None),
        FlopCountAnalysis(net, x).set_formula("aten::layer_norm", None),
    ):
        assert flops.total() == products
        assert not flops.is_lower_bound


def test_a_formula_for_one_analysis(net, x):
    flops = FlopCountAnalysis(net, x, fma=2).set_formula("aten::relu", lambda call: Cost(fma=call.outputs[0].numel))
    assert flops.total("2") == 2 * (2 * 5)


@pytest.mark.parametrize("analysis", [ActivationCountAnalysis, BytesCountAnalysis])
def test_a_formula_for_one_analysis_goes_before_what_any_statistic_does_by_default(analysis, net, x):
    assert analysis(net, x).set_formula("aten::relu", lambda call: 1000).total("2") == 1000
    view = analysis(nn.Flatten(), torch.ones(2, 3, 5)).set_formula("aten::flatten", lambda call: 7)
    assert view.total() == 7


def test_settings_survive_a_copy_and_the_original_is_not_changed(net, x):
    original = FlopCountAnalysis(net, x, fma=2).ancestor_mode("caller").set_op_handle("aten::layer_norm", None)
    twin = original.copy(new_inputs=torch.ones(11, 3))
    assert type(twin) is FlopCountAnalysis
    assert twin.total() == 2 * 11 * (3 * 5 + 5 * 7)
    twin.set_op_handle("aten::linear", None)
    assert original.total() == 2 * 2 * (3 * 5 + 5 * 7)


def test_nothing_runs_before_a_result_is_asked_for(model_of, x):
    runs = []
    flops = FlopCountAnalysis(model_of(lambda self, x: runs.append(1)), x)
    assert runs == []
    flops.total()
    flops.by_module()
    flops.set_op_handle("aten::relu", None).total()
    assert runs == [1]


@pytest.mark.parametrize("fma", [0, 3, True, "2", 1.5])
def test_fma_is_one_or_two(net, x, fma):
    with pytest.raises(ValueError, match=r"fma is .*, expected 1 \(a multiply-add is one FLOP\) or 2 \(it is two\)"):
        FlopCountAnalysis(net, x, fma=fma)


def test_an_unknown_module_name_gets_the_nearest_names(model_of, x):
    flops = FlopCountAnalysis(model_of(lambda self, x: self.encoder(x), encoder=nn.Linear(3, 5)), x)
    with pytest.raises(KeyError, match=r"no module is named 'encodr'; did you mean 'encoder'\?"):
        flops.total("encodr")
    with pytest.raises(KeyError, match="there are 2 modules"):
        flops.total("zzz")
    with pytest.raises(TypeError, match="module name is 3, expected a string"):
        flops.total(3)


def test_inputs_on_another_device_than_the_model(x):
    with pytest.raises(ValueError, match=r"inputs are on cpu, the model is on meta: .* inputs.to\('meta'\)"):
        FlopCountAnalysis(nn.Linear(3, 5, device="meta"), x).total()


def test_a_lazy_module_without_inputs():
    with pytest.raises(ValueError, match="lazy modules that are not initialised, and no inputs were given"):
        FlopCountAnalysis(nn.LazyLinear(5)).total()


def test_other_wrong_use(net, x):
    with pytest.raises(TypeError, match="model is 3, expected a module or another callable"):
        FlopCountAnalysis(3, x)
    with pytest.raises(TypeError, match="'aten::add' is a name without function"):
        FlopCountAnalysis(net, x).set_op_handle("aten::add")
    with pytest.raises(TypeError, match="'aten::add': 3, expected an operator's name and a function or None"):
        FlopCountAnalysis(net, x).set_op_handle("aten::add", 3)
    with pytest.raises(ValueError, match="ancestor_mode: mode is 'parent', expected one of 'owner', 'caller'"):
        FlopCountAnalysis(net, x).ancestor_mode("parent")
    with pytest.raises(ValueError, match="tracer_warnings: mode is 'some'"):
        FlopCountAnalysis(net, x).tracer_warnings("some")
    with pytest.raises(RuntimeError, match=r"call total\(\) first"):
        FlopCountAnalysis(net, x).unsupported_ops()


def test_the_models_own_error_is_the_one_that_shows(model_of, x):
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        FlopCountAnalysis(nn.Linear(7, 5), x).total()


def test_an_empty_batch_costs_nothing(net):
    assert FlopCountAnalysis(net, torch.ones(0, 3)).total() == 0


def test_public_names_are_importable():
    assert all(hasattr(flopcallback, name) for name in flopcallback.__all__)


def test_an_analysis_can_be_copied_and_pickled(x):
    flops = FlopCountAnalysis(nn.Linear(3, 5), x, fma=2)
    assert flops.total() == 60
    for twin in (copy.deepcopy(flops), pickle.loads(pickle.dumps(flops))):
        assert twin.total() == 60
    assert flops.unsupported_ops() == {}


def test_what_is_handed_out_can_be_changed_without_harm(net, x):
    flops = FlopCountAnalysis(net, x)
    total = flops.total()
    for handed_out in (flops.by_operator(), flops.by_module_and_operator()[""], flops.unsupported_ops()):
        handed_out["linear"] += 1000
        handed_out["aten::relu"] += 1000
    assert flops.total() == total
    assert flops.unsupported_ops() == {}


def test_lower_bounds_name_the_modules(model_of, x):
    inner = model_of(lambda self, x: gram(x))
    flops = FlopCountAnalysis(model_of(lambda self, x: self.inner(self.fc(x)), fc=nn.Linear(3, 5), inner=inner), x)
    assert flops.lower_bounds() == {"", "inner"}


def test_a_class_is_no_model(x):
    with pytest.raises(TypeError, match=r"model is the class Linear, expected a module, such as Linear\(\.\.\.\)"):
        FlopCountAnalysis(nn.Linear, (5, 7))


@pytest.mark.parametrize("returned", [30, 30.0, None, Cost(fma=7.5)])
def test_a_formula_that_returns_something_else_is_told_so(returned, x, caplog):
    flops = FlopCountAnalysis(gram, x).set_formula("flopcallback_tests::gram", lambda call: returned)
    assert flops.total() == 0
    assert flops.is_lower_bound
    assert "Cost" in flops.unknown_reasons()["flopcallback_tests::gram"]
    assert "its formula failed" in caplog.text


def test_a_formula_needs_the_whole_name_of_the_operator(net, x):
    with pytest.raises(ValueError, match=r'set_formula: operator is \'linear\', expected "namespace::name"'):
        FlopCountAnalysis(net, x).set_formula("linear", lambda call: Cost())


def test_hardware_flops_ask_an_analysis_own_formula_where_nobody_knows_another(x):
    flops = FlopCountAnalysis(gram, x).set_formula("flopcallback_tests::gram", lambda call: Cost(fma=12))
    assert (flops.total(), flops.hardware_flops()[""]) == (12, 24)


def test_a_copy_with_new_inputs_has_none_of_the_old_arguments(x):
    flops = FlopCountAnalysis(nn.Linear(3, 5), kwargs={"input": x})
    assert flops.copy(new_inputs=(torch.ones(7, 3),)).total() == 7 * 3 * 5
    assert flops.copy(new_kwargs={"input": torch.ones(7, 3)}).total() == 7 * 3 * 5
    assert flops.copy().total() == 2 * 3 * 5


def test_its_text_says_what_it_is(net, x, model_of):
    flops = FlopCountAnalysis(net, x)
    assert repr(flops) == "FlopCountAnalysis(Sequential, not run yet)"
    total = flops.total()
    assert repr(flops) == f"FlopCountAnalysis(Sequential): {total:,}"
    unknown = FlopCountAnalysis(model_of(lambda self, x: gram(x)), x)
    unknown.total()
    assert repr(unknown) == "FlopCountAnalysis(ModelOf): >= 0"
