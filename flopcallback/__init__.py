"""FLOPs per module and per operator, traced on the first real batch and logged by the tracker in use."""

import importlib
import typing

from flopcallback._version import __version__
from flopcallback.counting.analysis import (
    ActivationCountAnalysis,
    BytesCountAnalysis,
    FlopCountAnalysis,
    OperatorAnalysis,
)
from flopcallback.counting.verification import Difference
from flopcallback.formulas.cost import Cost
from flopcallback.formulas.op_call import OpCall, Value
from flopcallback.formulas.registry import register_formula, unregister_formula
from flopcallback.fvcore.parameter_count import parameter_count, parameter_count_table
from flopcallback.fvcore.print_model_statistics import flop_count_str, flop_count_table
from flopcallback.loop.hook import FlopHook
from flopcallback.profiling.measure import measure_latency
from flopcallback.training.failures import FlopCallbackWarning

if typing.TYPE_CHECKING:
    from flopcallback.lightning.callback import FlopCallback as FlopCallback

__all__ = [
    "ActivationCountAnalysis",
    "BytesCountAnalysis",
    "Cost",
    "Difference",
    "FlopCallbackWarning",
    "FlopCountAnalysis",
    "FlopHook",
    "OpCall",
    "OperatorAnalysis",
    "Value",
    "__version__",
    "flop_count_str",
    "flop_count_table",
    "measure_latency",
    "parameter_count",
    "parameter_count_table",
    "register_formula",
    "unregister_formula",
]

# Imported when it is asked for: the callback imports Lightning, under the name that is in use. It is not in `__all__`,
# so that `from flopcallback import *` works without.
_ON_DEMAND = {"FlopCallback": "flopcallback.lightning.callback"}


def __getattr__(name: str) -> typing.Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ON_DEMAND[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_DEMAND})
