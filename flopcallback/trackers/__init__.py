"""Trackers: their protocol, how they are found, and two simple ones."""

from flopcallback.trackers.discovery import (
    GROUP,
    NoTrackerError,
    described,
    folder_of,
    new_name,
    takes_name,
    tracker_for,
)
from flopcallback.trackers.local import LocalTracker
from flopcallback.trackers.memory import MemoryTracker
from flopcallback.trackers.protocol import DrawsByCompute, HasPage, KeepsTraining, Tracker
from flopcallback.trackers.sending import Request, Sender, SendsRequests, TooSlowError, within

__all__ = [
    "GROUP",
    "DrawsByCompute",
    "HasPage",
    "KeepsTraining",
    "LocalTracker",
    "MemoryTracker",
    "NoTrackerError",
    "Request",
    "Sender",
    "SendsRequests",
    "TooSlowError",
    "Tracker",
    "described",
    "folder_of",
    "new_name",
    "takes_name",
    "tracker_for",
    "within",
]
