"""Trackers: their protocol, how they are found, and two simple ones."""

from flopcallback.trackers.discovery import GROUP, NoTrackerError, described, folder_of, new_name, tracker_for
from flopcallback.trackers.local import LocalTracker
from flopcallback.trackers.memory import MemoryTracker
from flopcallback.trackers.protocol import DrawsByCompute, KeepsTraining, Tracker

__all__ = [
    "GROUP",
    "DrawsByCompute",
    "KeepsTraining",
    "LocalTracker",
    "MemoryTracker",
    "NoTrackerError",
    "Tracker",
    "described",
    "folder_of",
    "new_name",
    "tracker_for",
]
