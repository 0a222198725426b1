"""The one owner, in this process, of a session of PyTorch's profiler on our behalf.

One recording at a time. The user's own profiler always wins (`users_profilers.py`): when it is prepared or started,
ours is ended first, and the recording is lost, with a reason.

What is built around (torch 2.13):

- libkineto has one session for the process. Where a second one begins, the first is cancelled; who then ends the first
  ends the process.
- A session belongs to the thread that began it, and records that thread and the threads of its backward. With
  `profile_all_threads` it could record others too, but an operator of theirs that runs while the session ends writes
  to memory that is not the session's any more: with threads at work, every hundredth session ended the process. So it
  is not used.
- For the same reason a record that is open when its session ends must be closed before another session begins, theirs
  included. Marks of ours are; ranges by `record_function`, as torch has one around each optimizer's step, are searched
  and closed. An operator cannot be closed: a profiler of the user's that begins within one, in a hook of a backward
  for example, and outlives it, is a danger that remains.
- To begin and end an empty session takes 0.28 ms.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

from flopcallback.tracing import torch_private
from flopcallback.tracing.torch_private import nodes_so_far
from flopcallback.tracing.users_profilers import UsersProfilers

__all__ = [
    "MAX_RECORDS",
    "Recording",
    "abandon_here",
    "begin_recording",
    "end_recording",
    "install",
    "mark_here",
    "uninstall",
    "why_no_recording",
]

MAX_RECORDS = 90_000
"""Bound of a recording's records: 0.5 kB of memory each while recording, 5 kB once read."""

# A step was seen to make 15 to 60 records for each autograd node of its forward, three or more of them in the forward;
# a forward without grad 4 to 30 for each call of a module. There is no counter of records to ask.
RECORDS_PER_NODE = 18
RECORDS_PER_CHECK = 10

PATIENCE_S = 5.0
"""For how long the user's profiler, in another thread, waits for ours to end.

Ours ends in its own thread, at the next call of a module. Only if that thread in turn waits for the user's profiler is
the time used up; torch then logs warnings.
"""

THEIRS = "the user's profiler is at work"
FORKED = "the process was forked"
ENDING = "the process ends"
SOMEBODY_ELSE = "its session was ended by somebody else"
ELSEWHERE = "its step did not end in the thread in which it began"
IN_BACKWARD = "its step ended inside a backward"

END = "flopcallback end"
"""Name of a record that a session ends with."""

END_IS_AMONG = 20
"""Among how many of the last outermost records it is, unless a record is open; a backward's threads may have others."""

Result = Any
"""What torch's `_disable_profiler` returns."""


class Recording:
    """What a listener gets: a session of the profiler.

    A recording that nobody holds any more ends by itself.

    Attributes:
        why: why the recording is lost; empty while it is not.
    """

    def __init__(self, session: _Session, max_records: int) -> None:
        self.why = ""
        self._session = session
        self._max_records = max_records
        self._checks = 0
        self._nodes = nodes_so_far()

    @property
    def is_lost(self) -> bool:
        """Whether there are no records, nor will be."""
        return bool(self.why)

    def check(self) -> bool:
        """Return whether the recording goes on; call it often, from its thread.

        Ends the session if the user's profiler waits for that, or before its records take too much memory.
        """
        self._checks += 1
        if threading.get_ident() != self._session.thread:
            return not self.why
        nodes = nodes_so_far() - self._nodes
        if max(nodes * RECORDS_PER_NODE, self._checks * RECORDS_PER_CHECK) > self._max_records:
            _broker.abandon(self._session, f"the step has more than {self._max_records} records")
        elif self._session.must_end:
            _broker.settle()
        return not self.why

    def mark(self, name: str) -> Mark:
        """Return a context that leaves a record around what runs in it; for the recording's own thread."""
        return Mark(self._session, name)


class Mark:
    """A record around a piece of code, for as long as its recording goes on."""

    __slots__ = ("_record", "_session")

    def __init__(self, session: _Session, name: str) -> None:
        self._session = session
        self._record: Any = torch_private.record_range(name)

    def __enter__(self) -> None:
        if not self._session.has_ended.is_set():
            self._record.__enter__()
            self._session.marks.append(self._record)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._session.marks and self._session.marks[-1] is self._record:  # else the session's end has closed it
            self._session.marks.pop()
            self._record.__exit__(None, None, None)


class _Session:
    """A session of the profiler, of one thread.

    Attributes:
        recording: whom it is for; None before, and once it is lost.
        marks: records that are open, outermost first.
        must_end: its own thread is to end it, at its next call; no other thread can.
        is_taken: the user's profiler waited in vain, and made libkineto cancel it.
    """

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.owner = threading.current_thread()
        self.recording: weakref.ref[Recording] | None = None
        self.marks: list[Any] = []
        self.must_end = False
        self.is_taken = False
        self.has_ended = threading.Event()

    @property
    def is_here(self) -> bool:
        """Whether it is of this thread."""
        return self.thread == threading.get_ident()

    def lose(self, why: str) -> None:
        """Lose the recording, and leave the session to its own thread."""
        recording = None if self.recording is None else self.recording()
        if recording is not None:
            recording.why = recording.why or why
        self.recording, self.must_end = None, True


class _Broker:
    """State of the process; `_lock` guards all of it, and is never held while waiting."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a recording may be garbage-collected within
        self._session: _Session | None = None
        self._theirs = UsersProfilers(self._lock, self._give_way, self._end_for_them)
        self._has_left_open = False  # whether ranges may be open that an ended session has a record of
        self._has_used_kineto = False
        self._is_watching_process = False
        self._is_ending = False  # at exit: nobody would end another session
        self._unusable = ""  # why there is never a recording again

    # --- What listeners ask for ---

    def begin(self, max_records: int, device: str) -> Recording | None:
        with self._lock:
            self.settle()
            self.install()  # before the question: it looks for profilers that are at work already
            try:
                session = None if self._why_not() else self._start(device)
            finally:
                self.uninstall()
            if session is None:
                return None
            try:
                recording = Recording(session, max_records)
                session.recording = weakref.ref(recording, lambda _: self._dropped(session))
            except BaseException:  # a KeyboardInterrupt, for one: the caller has no handle to end it with
                self.abandon(session, "interrupted")
                raise
            return recording

    def end(self, recording: Recording) -> Result | None:
        with self._lock:
            session = recording._session
            if session.recording is None:  # it is lost, or has ended
                self.settle()
                return None
            if not session.is_here:
                session.lose(ELSEWHERE)
                return None
            if torch_private.is_backward_running():  # it would leave this thread's state of the profiler on
                session.lose(IN_BACKWARD)
                return None
            session.recording, session.must_end = None, True  # if this fails, the next one to come ends it
            result = self._stop(session)
            recording.why = "" if result is not None else SOMEBODY_ELSE
        return result

    def session_here(self) -> _Session | None:
        """Return the session of this thread."""
        session = self._session  # without the lock: no other thread begins or ends one of this thread
        return session if session is not None and session.is_here else None

    def why_not(self) -> str:
        with self._lock:
            self.settle()
            self.install()
            try:
                return self._why_not()
            finally:
                self.uninstall()

    def abandon(self, session: _Session, why: str) -> None:
        """Lose a session's recording; it ends now, or in its own thread."""
        with self._lock:
            session.lose(why)
            self.settle()

    def settle(self) -> None:
        """End what this thread has left to end."""
        with self._lock:
            session = self._session
            if session is None:
                return
            if session.is_here:
                # What libkineto cancelled stays until the user's profiler is out: to end it would end the user's.
                is_stuck = torch_private.is_backward_running() or (session.is_taken and self._theirs.are_at_work)
                if session.must_end and not is_stuck:
                    self._break_off(session)
            elif not session.owner.is_alive() and not self._theirs.are_at_work:
                self._take_over(session)  # a thread that is gone cannot end its session

    def install(self) -> None:
        with self._lock:
            self._theirs.install()

    def uninstall(self) -> None:
        with self._lock:
            if self._has_left_open and self._theirs.listeners == 1:
                self._close_ranges()  # while somebody is there who does
            self._theirs.uninstall()

    # --- Sessions ---

    def _why_not(self) -> str:
        if missing := torch_private.why_no_records():
            return missing
        if self._unusable or self._is_ending:
            return self._unusable or ENDING
        if self._theirs.are_at_work:
            return THEIRS
        if torch_private.is_backward_running():  # its records are open, and an ended session may have seen their begin
            return "a backward is running"
        if self._session is not None:
            return "another recording is under way" if self._session.is_here else "another thread records"
        if torch_private.is_profiling_here():
            return THEIRS
        # Somebody outside the process may start a profiler, which nothing here would see.
        return "KINETO_USE_DAEMON is set" if "KINETO_USE_DAEMON" in os.environ else ""

    def _start(self, device: str) -> _Session | None:
        self._watch_process()
        if self._has_left_open:
            self._close_ranges()
        self.install()
        session = self._session = _Session()
        try:
            self._has_used_kineto = True
            self._theirs.note_ours()
            torch_private.start_records(device)
        except RuntimeError as error:
            self._session = None
            self.uninstall()
            self._unusable = f"torch's profiler does not start: {error}"
            return None
        except BaseException:
            self._session = None
            self.uninstall()
            raise
        return session

    def _break_off(self, session: _Session) -> Result | None:
        """End a session in its own thread where ranges may be open, closing them."""
        if not session.is_taken:
            torch_private.close_ranges()  # now, while they are recorded: torch logs a warning of one without an end
        result = self._stop(session)
        if not session.is_taken:
            self._has_left_open = False
        return result

    def _stop(self, session: _Session) -> Result | None:
        """End a session in its own thread, and return the result."""
        has_left_open = True
        self._forget(session)
        failure: Exception | None = None
        try:
            try:
                while session.marks:
                    session.marks.pop().__exit__(None, None, None)
                if not session.is_taken:
                    with torch_private.record_range(END):
                        pass
            except Exception as error:  # noqa: BLE001 - raised below, once the profiler is off
                failure = error
            if session.is_taken:
                torch_private.prepare_records()  # to end what libkineto has not even prepared ends the process
                return torch_private.stop_records()
            result = torch_private.stop_records()
            if failure is not None:
                raise failure
            has_left_open = all(root.name != END for root in result.experimental_event_tree()[-END_IS_AMONG:])
            return result
        except RuntimeError:  # it was ended behind our back, by a function of `torch._C`
            return None
        finally:
            self._has_left_open |= has_left_open
            session.has_ended.set()
            self.uninstall()

    def _close_ranges(self) -> None:
        """Close ranges that an ended session may have seen begin, so that another session may begin.

        At its end, a range of an ended session writes to what was that session's memory, if another session is on.
        """
        torch_private.close_ranges()
        self._has_left_open = False

    def _forget(self, session: _Session) -> None:
        session.must_end, session.recording = False, None
        if self._session is session:
            self._session = None

    def _take_over(self, session: _Session) -> None:
        """Have libkineto cancel a session of another thread; torch logs a warning."""
        session.lose(ELSEWHERE)
        self._forget(session)
        torch_private.start_records()
        torch_private.stop_records()
        self.uninstall()

    def _dropped(self, session: _Session) -> None:
        """End a session whose recording nobody holds any more."""
        with self._lock:
            if session.recording is not None:
                self.abandon(session, "nobody holds it")

    # --- The user's profilers ---

    def _give_way(self, is_second: bool) -> None:
        """End our session before a profiler of the user's goes on; a second one may already be at work."""
        with self._lock:
            session = self._session
            if session is not None:
                session.lose(THEIRS)
                if session.is_here and not (session.is_taken and is_second):
                    self._break_off(session)
            if self._has_left_open:
                self._close_ranges()
            waits_for = self._session
        if waits_for is None or waits_for.is_here:
            return
        if waits_for.owner.is_alive():
            waits_for.has_ended.wait(PATIENCE_S)
        waits_for.is_taken = not waits_for.has_ended.is_set()

    def _end_for_them(self) -> tuple[bool, Result | None]:
        """End our session of this thread, for somebody who ends whatever is on.

        Returns:
            Whether there was one, and its result.
        """
        session = self.session_here()
        if session is None:
            return False, None
        session.lose(THEIRS)
        return True, self._break_off(session)

    # --- The process ---

    def _watch_process(self) -> None:
        if self._is_watching_process:
            return
        self._is_watching_process = True
        atexit.register(self._at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._hold,
                after_in_parent=self._release,
                after_in_child=self._in_child,
            )

    def _at_exit(self) -> None:
        """End a session that is open: with one, the process would not end well."""
        with self._lock:
            self._is_ending = True
            if self._session is not None:
                self._session.lose(ENDING)
            self.settle()
            session = self._session
        if session is not None:
            session.has_ended.wait(1)
            with self._lock:
                if self._session is session and not self._theirs.are_at_work:
                    self._take_over(session)

    def _hold(self) -> None:
        self._lock.acquire()  # so that no session begins or ends in the middle of a fork

    def _release(self) -> None:
        self._lock.release()

    def _in_child(self) -> None:
        """End in a forked child what the parent records."""
        self._lock = self._theirs.lock = threading.RLock()  # the old one is held, by the thread that forked
        session = self._session
        if session is not None:
            session.lose(FORKED)
            if session.is_here:
                self._stop(session)
            else:
                self._forget(session)  # with its thread
                self.uninstall()
                self._unusable = "the process was forked while another thread was recording"
        if self._has_used_kineto:
            _end_without_destructors()


def _end_without_destructors() -> None:
    """Have this forked child end as multiprocessing's do, if it ends by itself.

    libkineto's thread is not in the child, and its destructor waits for that thread: a child that does not end by
    `os._exit` would hang, as after any use of torch's profiler (2.13).
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit") and hasattr(libc, "__cxa_atexit"):
        # Run in reverse order, after Python has ended: what C code has printed is written, and `_exit(status)` ends it.
        libc.on_exit(libc._exit, None)
        getattr(libc, "__cxa_atexit")(libc.fflush, None, None)


_broker = _Broker()


def begin_recording(*, max_records: int = MAX_RECORDS, device: str = "cpu") -> Recording | None:
    """Begin a recording of this thread's operators.

    Begin and end it outside of operators and, for speed, of ranges by `record_function` that it would see only the
    begin of: one that is open at the end makes the next session search for it, which takes 0.1 s for a million objects.

    Args:
        max_records: bound of its records, estimated; see `Recording.check`.
        device: type of a device whose work is recorded, too.

    Returns:
        The recording, or None; `why_no_recording` then gives the reason.
    """
    return _broker.begin(max_records, device)


def end_recording(recording: Recording) -> Result | None:
    """End a recording, and return the session's result; None if the recording is lost."""
    return _broker.end(recording)


def why_no_recording() -> str:
    """Return why no recording could begin now; empty if one could."""
    return _broker.why_not()


def abandon_here(why: str) -> None:
    """Lose the recording of this thread, so that another one can begin."""
    session = _broker.session_here()
    if session is not None:
        _broker.abandon(session, why)


def mark_here(name: str) -> AbstractContextManager[None]:
    """Return a context that leaves a mark in the session of this thread, if there is one."""
    session = _broker.session_here()
    return nullcontext() if session is None else Mark(session, name)


def install() -> None:
    """Watch what the user's profilers do, until `uninstall`.

    Calls may be nested. Call it as early as possible: a profiler that warms up already is found, but not every way to
    make one warm up is.
    """
    _broker.install()


def uninstall() -> None:
    """Undo one call of `install`."""
    _broker.uninstall()
