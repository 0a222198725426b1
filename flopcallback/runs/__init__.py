"""Finished or running trainings, read from where they were logged."""

from flopcallback.runs.find import GROUP, find_runs
from flopcallback.runs.folders import folder_name, read_profile, series_of
from flopcallback.runs.record import FoundRun, RunRecord, RunsError, Series, without_password

__all__ = [
    "GROUP",
    "FoundRun",
    "RunRecord",
    "RunsError",
    "Series",
    "find_runs",
    "folder_name",
    "read_profile",
    "series_of",
    "without_password",
]
