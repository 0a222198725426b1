"""The one owner, in this process, of PyTorch's profiler on our behalf.

Listeners ask for a recording; recordings of one thread that overlap share a session. The user's own profiler always
wins: when it is prepared or started, ours is ended first, and our recordings are lost, with a reason.

What is built around (torch 2.13):

- libkineto has one session for the process. Where a second one begins, the first is cancelled; who then ends the first
  ends the process. So the functions by which torch's profilers begin and end are replaced while anybody listens.
- A session belongs to the thread that began it, and records that thread and the threads of its backward. With
  `profile_all_threads` it could record others too, but an operator of theirs that runs while the session ends writes
  to memory that is not the session's any more: with threads at work, every hundredth session ended the process. So it
  is not used. Other threads can have a recording of their own in the cheap mode, which knows no libkineto.
- For the same reason a record that is open when its session ends must be closed before another session begins, theirs
  included. Marks of ours are; ranges by `record_function`, as torch has one around each optimizer's step, are searched
  and closed. An operator cannot be closed: a profiler of the user's that begins within one, in a hook of a backward
  for example, and outlives it, is a danger that remains.
- To begin and end an empty session takes 0.28 ms, in the cheap mode 0.005 ms.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

from flopcallback.tracing import torch_private
from flopcallback.tracing.torch_private import nodes_so_far

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

MAX_RECORDS = 120_000
"""Bound of a recording's records: 0.5 kB of memory each while recording, 4 kB once read."""

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

END = "flopcallback end"
"""Name of a record that a full session ends with."""

END_IS_AMONG = 20
"""Among how many of the last outermost records it is, unless a record is open; a backward's threads may have others."""

Result = Any
"""What torch's `_disable_profiler` returns; in the cheap mode, the lists of `_disable_profiler_legacy`."""


class Recording:
    """What one listener gets: a share of a session.

    A recording that nobody holds any more ends by itself.

    Attributes:
        is_legacy: True if recorded in the cheap mode: names, shapes and times, no dtypes and no constants.
        start_ns: begin, by `time.time_ns`, which is the records' clock to within a few microseconds.
        end_ns: end, by the same clock; 0 before.
        why: why the recording is lost; empty while it is not.
        result: the session's result; None until the last of its recordings has ended, and if lost.
    """

    def __init__(self, session: _Session, max_records: int, on_result: Callable[[Recording], None] | None) -> None:
        self.is_legacy = session.is_legacy
        self.start_ns = time.time_ns()
        self.end_ns = 0
        self.why = ""
        self.result: Result | None = None
        self._session = session
        self._max_records = max_records
        self._on_result = on_result
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
        marks: records that are open, outermost first.
        must_end: its own thread is to end it, at its next call; no other thread can.
        is_taken: the user's profiler waited in vain, and made libkineto cancel it.
    """

    def __init__(self, *, is_legacy: bool) -> None:
        self.is_legacy = is_legacy
        self.thread = threading.get_ident()
        self.owner = threading.current_thread()
        self.open: list[weakref.ref[Recording]] = []
        self.ended: list[Recording] = []  # which wait for the result
        self.marks: list[Any] = []
        self.must_end = False
        self.is_taken = False
        self.has_ended = threading.Event()

    def lose(self, why: str) -> None:
        """Lose all recordings, and leave the session to its own thread."""
        for recording in (*(reference() for reference in self.open), *self.ended):
            if recording is not None:
                recording.why = recording.why or why
        self.open, self.ended = [], []
        self.must_end = True


class _Broker:
    """State of the process; `_lock` guards all of it, and is never held while waiting."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a recording may be garbage-collected within
        self._sessions: dict[int, _Session] = {}  # by thread
        self._kineto: _Session | None = None  # the one among them that libkineto runs
        self._users = 0  # listeners and open sessions, for which the replacements stay
        self._replaced: list[tuple[torch_private.Place, Any, Any]] = []  # each with its original and its replacement
        # What the user's profilers did, as far as the replacements saw.
        self._active = 0  # how many are started
        self._is_prepared = False  # one warms up
        self._is_stale = False  # a session of ours used up what a profiler prepared before we could see it
        # Whether ranges may be open that an ended session has a record of, by the kind of session.
        self._has_left_open = {False: False, True: False}
        self._has_used_kineto = False
        self._is_watching_process = False
        self._no_kineto = ""  # why there are cheap recordings only
        self._is_ending = False  # at exit: nobody would end another session
        self._unusable = ""  # why there is never a recording again

    # --- What listeners ask for ---

    def begin(
        self, *, legacy: bool, cuda: bool, max_records: int, on_result: Callable[[Recording], None] | None
    ) -> Recording | None:
        with self._lock:
            self.settle()
            self.install()  # before the question: it looks for profilers that are at work already
            try:
                if self._why_not(legacy=legacy):
                    return None
                session = self._sessions.get(threading.get_ident()) or self._start(legacy=legacy, cuda=cuda)
            finally:
                self.uninstall()
            if session is None:
                return None
            try:
                recording = Recording(session, max_records, on_result)
                session.open.append(weakref.ref(recording, functools.partial(self._dropped, session)))
            except BaseException:  # a KeyboardInterrupt, for one: the caller has no handle to end it with
                if not session.open:
                    self.abandon(session, "interrupted")
                raise
            return recording

    def end(self, recording: Recording) -> Result | None:
        with self._lock:
            session = recording._session
            if recording.end_ns:
                return recording.result
            recording.end_ns = time.time_ns()
            if recording.why:
                self.settle()
                return None
            session.open = [each for each in session.open if each() not in (None, recording)]
            if session.thread != threading.get_ident():
                recording.why = ELSEWHERE
            else:
                session.ended.append(recording)
            if session.open:
                return None
            if session.thread != threading.get_ident():
                session.lose(ELSEWHERE)
                return None
            done, result = session.ended, self._stop(session)
            for each in done:
                each.result = result
                each.why = "" if result is not None else SOMEBODY_ELSE
        for each in done:
            if each._on_result is not None and each is not recording:
                each._on_result(each)
        return result

    def session_here(self) -> _Session | None:
        """Return the session of this thread."""
        return self._sessions.get(threading.get_ident())  # without the lock: no other thread changes this entry

    def why_not(self, *, legacy: bool) -> str:
        with self._lock:
            self.settle()
            self.install()
            try:
                return self._why_not(legacy=legacy)
            finally:
                self.uninstall()

    def abandon(self, session: _Session, why: str) -> None:
        """Lose a session's recordings; it ends now, or in its own thread."""
        with self._lock:
            session.lose(why)
            self.settle()

    def settle(self) -> None:
        """End what this thread has left to end."""
        with self._lock:
            session = self._sessions.get(threading.get_ident())
            # What libkineto cancelled stays until the user's profiler is out: to end it would end the user's.
            if session is not None and session.must_end and not (session.is_taken and self._is_theirs()):
                self._break_off(session)
            kineto = self._kineto
            # A thread that is gone cannot end its session.
            if kineto is not None and not kineto.owner.is_alive() and not self._is_theirs():
                self._take_over(kineto)

    def install(self) -> None:
        with self._lock:
            if self._users == 0:
                self._replace()
            self._users += 1

    def uninstall(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._put_back()

    # --- Sessions ---

    def _why_not(self, *, legacy: bool) -> str:
        here = self._sessions.get(threading.get_ident())
        if missing := torch_private.why_no_records():
            return missing
        if self._unusable or self._is_ending:
            return self._unusable or ENDING
        if self._is_theirs():
            return THEIRS
        if torch_private.is_backward_running():  # its records are open, and an ended session may have seen their begin
            return "a backward is running"
        if here is not None:
            if here.is_taken:
                return THEIRS
            return "a cheap recording is under way" if here.is_legacy and not legacy else ""
        if torch_private.is_profiling_here():
            return THEIRS
        if not legacy and (self._no_kineto or self._sessions):
            return self._no_kineto or "another thread records"
        # Somebody outside the process may start a profiler, which nothing here would see.
        return "KINETO_USE_DAEMON is set" if "KINETO_USE_DAEMON" in os.environ else ""

    def _is_theirs(self) -> bool:
        return bool(self._active or self._is_prepared or torch_private.is_profiler_started())

    def _start(self, *, legacy: bool, cuda: bool) -> _Session | None:
        self._watch_process()
        if self._has_left_open[False] or (self._has_left_open[True] and not legacy):
            self._close_ranges()
        self.install()
        session = _Session(is_legacy=legacy)
        self._sessions[session.thread] = session
        try:
            if legacy:
                torch_private.start_legacy_records()
            else:
                self._kineto, self._has_used_kineto, self._is_stale = session, True, True
                torch_private.start_records(cuda=cuda)
        except RuntimeError as error:
            self._forget(session)
            self.uninstall()
            self._unusable = f"torch's profiler does not start: {error}"
            return None
        except BaseException:
            self._forget(session)
            self.uninstall()
            raise
        return session

    def _break_off(self, session: _Session) -> Result | None:
        """End a session in its own thread where ranges may be open, closing them."""
        is_clean = not session.is_taken and len(self._sessions) == 1  # those of another thread's session are its own
        if is_clean:
            torch_private.close_ranges()  # now, while they are recorded: torch logs a warning of one without an end
        result = self._stop(session)
        if is_clean:
            self._has_left_open = {False: False, True: False}
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
                if not (session.is_legacy or session.is_taken):
                    with torch_private.record_range(END):
                        pass
            except Exception as error:  # noqa: BLE001 - raised below, once the profiler is off
                failure = error
            if session.is_legacy:
                return torch_private.stop_legacy_records()
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
            self._has_left_open[session.is_legacy] |= has_left_open
            session.has_ended.set()
            self.uninstall()

    def _close_ranges(self) -> None:
        """Close ranges that an ended session may have seen begin, so that another session may begin.

        At its end, a range of an ended session writes to what was that session's memory, if another session is on.
        """
        torch_private.close_ranges()
        self._has_left_open = {False: False, True: False}

    def _forget(self, session: _Session) -> None:
        session.must_end = False
        session.open, session.ended = [], []
        if self._sessions.get(session.thread) is session:
            del self._sessions[session.thread]
        if self._kineto is session:
            self._kineto = None

    def _take_over(self, session: _Session) -> None:
        """Have libkineto cancel a session of another thread; torch logs a warning."""
        self._forget(session)
        torch_private.start_records(cuda=False)
        torch_private.stop_records()
        self.uninstall()

    def _dropped(self, session: _Session, reference: weakref.ref[Recording]) -> None:
        with self._lock:
            if reference not in session.open:
                return
            session.open = [each for each in session.open if each is not reference]
            if not session.open:
                self.abandon(session, "nobody holds it")

    # --- The user's profilers ---

    def _give_way(self, *, is_second: bool) -> None:
        """End our session before the user's profiler goes on.

        Args:
            is_second: whether another profiler of the user's is at work.
        """
        with self._lock:
            for session in self._sessions.values():
                session.lose(THEIRS)
            here = self._sessions.get(threading.get_ident())
            if here is not None and not (here.is_taken and is_second):
                self._break_off(here)
            if any(self._has_left_open.values()):
                self._close_ranges()
            waits_for = self._kineto
        if waits_for is None:
            return
        if waits_for.owner.is_alive():
            waits_for.has_ended.wait(PATIENCE_S)
        waits_for.is_taken = not waits_for.has_ended.is_set()

    def _around_prepare(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(prepare)
        def prepared(*args: Any, **kwargs: Any) -> Any:
            is_second = self._is_theirs()
            self._is_prepared = True  # first: from now on nobody begins
            try:
                self._give_way(is_second=is_second)
                result = prepare(*args, **kwargs)
            except BaseException:
                self._is_prepared = False
                raise
            self._is_stale = False
            return result

        return prepared

    def _around_enable(self, enable: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(enable)
        def enabled(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                is_second = self._active > 0
                self._active += 1
            try:
                self._give_way(is_second=is_second)
                # It was prepared before the replacements were there; to start what is not prepared ends the process.
                if self._is_stale and not self._is_prepared and enable is not torch_private.enable_legacy_profiler:
                    torch_private.prepare_again(*args, **kwargs)
                result = enable(*args, **kwargs)
            except BaseException:
                with self._lock:
                    self._active -= 1
                raise
            self._is_prepared = False
            return result

        return enabled

    def _around_disable(self, disable: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(disable)
        def disabled(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                ours = self._sessions.get(threading.get_ident())
                if ours is not None and not self._is_theirs():
                    # Lightning's PyTorchProfiler, before it begins, ends whatever is on in its thread.
                    ours.lose(THEIRS)
                    return self._break_off(ours)
            try:
                return disable(*args, **kwargs)
            finally:
                with self._lock:
                    self._active = max(0, self._active - 1)
                    self._is_prepared = False

        return disabled

    def _replace(self) -> None:
        # Else libkineto prints two lines at each use. It looks once, before its first use, be that ours or the user's.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        if torch_private.is_profiler_warming_up():
            self._is_prepared = True
        around = {"prepare": self._around_prepare, "enable": self._around_enable, "disable": self._around_disable}
        for place, kind in torch_private.profiler_functions():
            original = getattr(place.owner, place.name)
            replacement = around[kind](original)
            setattr(place.owner, place.name, replacement)
            self._replaced.append((place, original, replacement))

    def _put_back(self) -> None:
        if any(self._has_left_open.values()):
            self._close_ranges()  # while somebody is there who does
        for place, original, replacement in self._replaced:
            if getattr(place.owner, place.name, None) is replacement:  # else somebody has put theirs around it
                setattr(place.owner, place.name, original)
        self._replaced.clear()
        # Nobody sees from now on what the user's profilers do.
        self._active, self._is_prepared = 0, False

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
        """End sessions that are open: with one, the process would not end well."""
        with self._lock:
            self._is_ending = True
            for session in list(self._sessions.values()):
                session.lose(ENDING)
            self.settle()
            kineto = self._kineto
        if kineto is not None:
            kineto.has_ended.wait(1)
            with self._lock:
                if self._kineto is kineto and not self._is_theirs():
                    self._take_over(kineto)

    def _hold(self) -> None:
        self._lock.acquire()  # so that no session begins or ends in the middle of a fork

    def _release(self) -> None:
        self._lock.release()

    def _in_child(self) -> None:
        """End in a forked child what the parent records."""
        self._lock = threading.RLock()  # the old one is held, by the thread that forked
        here = self._sessions.get(threading.get_ident())
        for session in list(self._sessions.values()):
            session.lose(FORKED)
            if session is not here:
                self._forget(session)  # with its thread
                self.uninstall()
                if not session.is_legacy:
                    self._no_kineto = "the process was forked while another thread was recording"
        if here is not None:
            self._stop(here)
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


def begin_recording(
    *,
    legacy: bool = False,
    cuda: bool = False,
    max_records: int = MAX_RECORDS,
    on_result: Callable[[Recording], None] | None = None,
) -> Recording | None:
    """Begin a recording of this thread's operators.

    Joins the session of this thread if there is one; a cheap recording joins a full one, too. Begin and end it outside
    of operators and, for speed, of ranges by `record_function` that it would see only the begin of: one that is open at
    the end makes the next session search for it, which takes 0.1 s for a million objects.

    Args:
        legacy: record in the cheap mode, at a fifth of the time to read.
        cuda: record what runs on CUDA devices, too, if this recording begins the session.
        max_records: bound of its records, estimated; see `Recording.check`.
        on_result: called with the recording once there is a result, if its session outlives it.

    Returns:
        The recording, or None; `why_no_recording` then gives the reason.
    """
    return _broker.begin(legacy=legacy, cuda=cuda, max_records=max_records, on_result=on_result)


def end_recording(recording: Recording) -> Result | None:
    """End a recording, and return its session's result.

    Records of other recordings may be among the result's: those between `start_ns` and `end_ns` are its own.

    Returns:
        The result; None if the recording is lost, or if another recording keeps the session on. It then comes as
        `recording.result`, and `on_result` is called.
    """
    return _broker.end(recording)


def why_no_recording(*, legacy: bool = False) -> str:
    """Return why no recording could begin now; empty if one could."""
    return _broker.why_not(legacy=legacy)


def abandon_here(why: str) -> None:
    """Lose the recordings of this thread, so that another one can have a session of its own."""
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
