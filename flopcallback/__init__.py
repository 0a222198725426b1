"""FLOPs per module and per operator, traced on the first real batch and logged by the tracker in use."""

from flopcallback.counting.analysis import (
    ActivationCountAnalysis,
    BytesCountAnalysis,
    FlopCountAnalysis,
    OperatorAnalysis,
)
from flopcallback.counting.op_call import OpCall, Value
from flopcallback.formulas.cost import Cost
from flopcallback.formulas.registry import register_formula, unregister_formula

__version__ = "0.1.0"

__all__ = [
    "ActivationCountAnalysis",
    "BytesCountAnalysis",
    "Cost",
    "FlopCountAnalysis",
    "OpCall",
    "OperatorAnalysis",
    "Value",
    "__version__",
    "register_formula",
    "unregister_formula",
]
