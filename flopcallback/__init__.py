"""FLOPs of PyTorch models, by module and by operator.

They are counted on the first real batch and logged by the tracker in use.
"""

import importlib
import typing

from flopcallback._version import __version__

if typing.TYPE_CHECKING:
    from flopcallback.counting.analysis import ActivationCountAnalysis as ActivationCountAnalysis
    from flopcallback.counting.analysis import BytesCountAnalysis as BytesCountAnalysis
    from flopcallback.counting.analysis import FlopCountAnalysis as FlopCountAnalysis
    from flopcallback.counting.analysis import OperatorAnalysis as OperatorAnalysis
    from flopcallback.counting.verification import Difference as Difference
    from flopcallback.formulas.cost import Cost as Cost
    from flopcallback.formulas.op_call import OpCall as OpCall
    from flopcallback.formulas.op_call import Value as Value
    from flopcallback.formulas.registry import register_formula as register_formula
    from flopcallback.formulas.registry import unregister_formula as unregister_formula
    from flopcallback.fvcore.parameter_count import parameter_count as parameter_count
    from flopcallback.fvcore.parameter_count import parameter_count_table as parameter_count_table
    from flopcallback.fvcore.print_model_statistics import flop_count_str as flop_count_str
    from flopcallback.fvcore.print_model_statistics import flop_count_table as flop_count_table
    from flopcallback.lightning.callback import FlopCallback as FlopCallback
    from flopcallback.loop.hook import FlopHook as FlopHook
    from flopcallback.profiling.measure import measure_latency as measure_latency
    from flopcallback.training.failures import FlopCallbackWarning as FlopCallbackWarning

# Where each public name is defined. A name is imported when it is first asked for (PEP 562): all of them together take
# a tenth of a second, and most programs use one or two.
_HOMES = {
    "ActivationCountAnalysis": "counting.analysis",
    "BytesCountAnalysis": "counting.analysis",
    "Cost": "formulas.cost",
    "Difference": "counting.verification",
    "FlopCallbackWarning": "training.failures",
    "FlopCountAnalysis": "counting.analysis",
    "FlopHook": "loop.hook",
    "OpCall": "formulas.op_call",
    "OperatorAnalysis": "counting.analysis",
    "Value": "formulas.op_call",
    "flop_count_str": "fvcore.print_model_statistics",
    "flop_count_table": "fvcore.print_model_statistics",
    "measure_latency": "profiling.measure",
    "parameter_count": "fvcore.parameter_count",
    "parameter_count_table": "fvcore.parameter_count",
    "register_formula": "formulas.registry",
    "unregister_formula": "formulas.registry",
}

# Not in `__all__`: it needs Lightning, under the name that is in use, and `from flopcallback import *` works without.
_OPTIONAL_HOMES = {"FlopCallback": "lightning.callback"}

# Packages that the documentation names; `import flopcallback` alone is enough to reach them.
_PUBLIC_PACKAGES = frozenset({"formulas", "fvcore", "reporting", "runs", "testing", "trackers"})

__all__ = [  # noqa: PLE0604 - every name but the version is imported by `__getattr__`
    "__version__",
    *_HOMES,
]


def __getattr__(name: str) -> typing.Any:
    """Import a public name when it is first asked for."""
    if name in _PUBLIC_PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    home = _HOMES.get(name) or _OPTIONAL_HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_OPTIONAL_HOMES})
