"""Every public name of the original is here, and can be called in every way that the original can be called."""

from __future__ import annotations

import importlib
import inspect
from typing import TypeVar

import pytest

import flopcallback.fvcore

pytestmark = pytest.mark.peers

PACKAGE_NAMES = (
    "FlopCountAnalysis",
    "ActivationCountAnalysis",
    "flop_count",
    "activation_count",
    "flop_count_table",
    "flop_count_str",
    "parameter_count",
    "parameter_count_table",
)
SUBMODULE_NAMES = {
    "jit_analysis": ("JitModelAnalysis", "Statistics"),
    "jit_handles": (
        "Handle",
        "get_shape",
        "generic_activation_jit",
        "addmm_flop_jit",
        "linear_flop_jit",
        "bmm_flop_jit",
        "conv_flop_count",
        "conv_flop_jit",
        "einsum_flop_jit",
        "matmul_flop_jit",
        "norm_flop_counter",
        "batchnorm_flop_jit",
        "elementwise_flop_counter",
    ),
    "flop_count": ("FlopCountAnalysis", "flop_count", "_DEFAULT_SUPPORTED_OPS"),
    "activation_count": ("ActivationCountAnalysis", "activation_count", "_DEFAULT_SUPPORTED_OPS"),
    "parameter_count": ("parameter_count", "parameter_count_table"),
    "print_model_statistics": (
        "flop_count_table",
        "flop_count_str",
        "_fill_missing_statistics",
        "_format_size",
        "_group_by_module",
        "_indicate_uncalled_modules",
        "_model_stats_str",
        "_model_stats_table",
        "_pretty_statistics",
        "_remove_zero_statistics",
    ),
}
METHODS = (
    "total",
    "by_operator",
    "by_module",
    "by_module_and_operator",
    "unsupported_ops",
    "uncalled_modules",
    "canonical_module_name",
    "set_op_handle",
    "clear_op_handles",
    "copy",
    "tracer_warnings",
    "ancestor_mode",
    "unsupported_ops_warnings",
    "uncalled_modules_warnings",
)
IN_SUBMODULES = [(module, name) for module, names in SUBMODULE_NAMES.items() for name in names]


def assert_takes_what(theirs, ours):
    """Parameters of the same names, kinds and defaults in the same places; more of them only where optional."""
    wanted = list(inspect.signature(theirs).parameters.values())
    offered = list(inspect.signature(ours).parameters.values())
    for theirs_one, ours_one in zip(wanted, offered, strict=False):
        assert (ours_one.name, ours_one.kind) == (theirs_one.name, theirs_one.kind)
        if theirs_one.default is not inspect.Parameter.empty:
            assert ours_one.default == theirs_one.default
    assert len(offered) >= len(wanted)
    assert all(more.default is not inspect.Parameter.empty for more in offered[len(wanted) :])


@pytest.mark.parametrize("name", PACKAGE_NAMES)
def test_the_package_offers_the_name(original, name):
    assert hasattr(original.package, name)
    assert name in flopcallback.fvcore.__all__


@pytest.mark.parametrize(("module", "name"), IN_SUBMODULES)
def test_the_submodule_offers_the_name_with_the_same_parameters(original, module, name):
    theirs = getattr(getattr(original, module), name)
    ours = getattr(importlib.import_module(f"flopcallback.fvcore.{module}"), name)
    if inspect.isfunction(theirs) or inspect.isclass(theirs):
        assert_takes_what(theirs, ours)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("analysis", ["JitModelAnalysis", "FlopCountAnalysis", "ActivationCountAnalysis"])
def test_the_analyses_have_the_method_with_the_same_parameters(original, analysis, method):
    module = {"JitModelAnalysis": "jit_analysis", "FlopCountAnalysis": "flop_count"}.get(analysis, "activation_count")
    theirs = getattr(getattr(getattr(original, module), analysis), method)
    assert_takes_what(theirs, getattr(getattr(flopcallback.fvcore, analysis), method))


def test_the_lists_above_leave_out_no_public_name(original):
    for module, names in SUBMODULE_NAMES.items():
        theirs = getattr(original, module)
        defined = {
            name
            for name, value in vars(theirs).items()
            if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == theirs.__name__
            if not isinstance(value, TypeVar)
        }
        assert defined <= set(names)
    methods = {name for name in vars(original.jit_analysis.JitModelAnalysis) if not name.startswith("_")}
    assert methods == set(METHODS)


@pytest.mark.parametrize("module", ["flop_count", "activation_count"])
def test_the_default_handles_cover_those_of_the_original(original, module):
    theirs = getattr(original, module)._DEFAULT_SUPPORTED_OPS
    ours = importlib.import_module(f"flopcallback.fvcore.{module}")._DEFAULT_SUPPORTED_OPS
    assert theirs.keys() <= ours.keys()
    assert all(map(callable, ours.values()))


def test_both_counters_are_analyses_of_the_common_base():
    assert issubclass(flopcallback.fvcore.FlopCountAnalysis, flopcallback.fvcore.JitModelAnalysis)
    assert issubclass(flopcallback.fvcore.ActivationCountAnalysis, flopcallback.fvcore.JitModelAnalysis)
