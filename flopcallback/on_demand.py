"""A second path to `profiling/on_demand.py`.

Users import a count on demand from here, so it stays when that file moves between rooms.
"""

from flopcallback.profiling.on_demand import profile_call, verify_call

__all__ = ["profile_call", "verify_call"]
