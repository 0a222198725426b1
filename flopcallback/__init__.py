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
from flopcallback.fvcore.parameter_count import parameter_count, parameter_count_table
from flopcallback.fvcore.print_model_statistics import flop_count_str, flop_count_table

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
    "flop_count_str",
    "flop_count_table",
    "parameter_count",
    "parameter_count_table",
    "register_formula",
    "unregister_formula",
]
