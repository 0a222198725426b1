"""Outlet: one tracker of a training, and what it has not got yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flopcallback.reporting import ModelProfile
from flopcallback.trackers import KeepsTraining, LocalTracker, Request, Sender, SendsRequests, Tracker
from flopcallback.trackers.local import next_number

__all__ = ["Entry", "Outlet", "described"]


@dataclass(eq=False, slots=True)
class Entry:
    """What is logged to all trackers at once.

    Attributes:
        step: step of the training.
        scalars: numbers by their final names.
        profile: profile to log after the numbers; None if there is none.
        is_final: True if the profile was logged before, and has got the totals of a training that is over.
        outlets: outlets that have written it.
        number: place in the order of logging.
    """

    step: int
    scalars: Mapping[str, int | float] = field(default_factory=dict)
    profile: ModelProfile | None = None
    is_final: bool = False
    outlets: list[Outlet] = field(default_factory=list)
    number: int = field(default_factory=next_number)

    def write_to(self, tracker: Tracker) -> None:
        """Write it by the methods of a tracker."""
        if self.scalars:
            tracker.log_scalars(self.scalars, self.step)
        if self.profile is None:
            return
        if not self.is_final:
            tracker.log_profile(self.profile, self.step)
        elif isinstance(tracker, KeepsTraining):
            tracker.log_training(self.profile)


def described(entries: Sequence[Entry]) -> str:
    """Return in words what entries have, such as `numbers of 3 steps (5 to 15), 1 profile`."""
    steps = sorted({entry.step for entry in entries if entry.scalars})
    profiles = sum(entry.profile is not None for entry in entries)
    texts = []
    if steps:
        texts.append(f"numbers of step {steps[0]}")
    if len(steps) > 1:
        texts = [f"numbers of {len(steps):,} steps ({steps[0]} to {steps[-1]})"]
    if profiles:
        texts.append(f"{profiles} profile{'s' if profiles > 1 else ''}")
    return ", ".join(texts)


class Outlet:
    """One tracker of a training.

    A tracker that writes over a network is given a thread for it: `write` does not wait for its requests.

    Args:
        name: name that tells the user where the tracker writes to.
        tracker: the tracker.
        at_exit: called if the process ends while entries wait to be sent.

    Attributes:
        is_over: True once the tracker failed; it is not asked again.
    """

    def __init__(self, name: str, tracker: Tracker, at_exit: Callable[[], None]) -> None:
        self.name = name
        self.tracker = tracker
        self.is_over = False
        self._requests: list[Request] = []  # of the entry that is being written
        self._sender: Sender[Entry] | None = None  # None for a tracker that writes at once
        if isinstance(tracker, SendsRequests) and tracker.send_by(self._requests.append):
            self._sender = Sender(at_exit)

    @property
    def is_folder(self) -> bool:
        """True for a folder of report files."""
        return isinstance(self.tracker, LocalTracker)

    @property
    def is_sending(self) -> bool:
        """True if the tracker writes over a network."""
        return self._sender is not None

    def write(self, entry: Entry) -> None:
        """Write an entry, unless it was written here before.

        Raises:
            TooSlowError: too many entries wait to be sent already.
            Exception: the tracker failed, at this entry or an earlier one.
        """
        if self in entry.outlets:
            return
        if self._sender is None:
            entry.write_to(self.tracker)
        else:
            self._sender.check()
            try:
                entry.write_to(self.tracker)
            finally:  # what was prepared before an error, such as a missing matplotlib, is sent nevertheless
                requests = list(self._requests)
                self._requests.clear()
                self._sender.add(entry, requests)
        entry.outlets.append(self)

    def keep(self, entries: Iterable[Entry]) -> None:
        """Write entries into a folder in their order of logging.

        Other entries may have been written before; a profile that has been replaced since is left out.

        Raises:
            OSError: they cannot be written.
        """
        assert isinstance(self.tracker, LocalTracker)
        missing = [entry for entry in entries if self not in entry.outlets]
        self.tracker.insert_scalars([(entry.number, entry.step, entry.scalars) for entry in missing if entry.scalars])
        for entry in missing:
            if entry.profile is not None:
                self.tracker.insert_profile(entry.number, entry.step, entry.profile)
            entry.outlets.append(self)

    def close(self) -> None:
        """Close the tracker, which writes what it has buffered."""
        if not self.is_over:
            self.write(_Close())

    def wait(self, seconds: float, late: str) -> None:
        """Wait until everything is sent.

        Args:
            seconds: longest wait.
            late: text of the error after that time.

        Raises:
            TimeoutError: some of it is not sent yet.
            Exception: a request has raised it.
        """
        if self._sender is not None:
            self._sender.wait(seconds, late)

    def take(self) -> list[Entry]:
        """Send nothing more, and return the entries that were not sent."""
        unsent = [] if self._sender is None else self._sender.take()
        return [entry for entry in unsent if not isinstance(entry, _Close)]


class _Close(Entry):
    """Last entry of a tracker, without any content."""

    def __init__(self) -> None:
        super().__init__(0)

    def write_to(self, tracker: Tracker) -> None:
        """Close the tracker."""
        tracker.close()
