"""A second path to `profiling/on_demand.py`: users import a count on demand from here, whichever room it is in."""

from flopcallback.profiling.on_demand import profile_call, verify_call

__all__ = ["profile_call", "verify_call"]
