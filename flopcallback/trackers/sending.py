"""Sender: requests of a tracker over a network, made in a thread of their own."""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar, runtime_checkable

__all__ = ["MOST_WAITING", "Request", "Sender", "SendsRequests", "TooSlowError", "within"]

MOST_WAITING = 1000
"""Entries that wait to be sent; some 100 MB if all of them were profiles of a large model."""

Request = Callable[[], object]
"""One exchange with a server. It is called once, in the thread of the sender."""

Entry = TypeVar("Entry")
Result = TypeVar("Result")


@runtime_checkable
class SendsRequests(Protocol):
    """A tracker that writes over a network, and lets others choose when.

    A training makes such requests in a thread of their own, so that no step waits for a server.
    """

    def send_by(self, send: Callable[[Request], None]) -> bool:
        """Give every request to `send` from now on, in place of making it.

        What is drawn or read from the profile is drawn and read before: `send` is called with requests alone. They are
        made in order, one at a time.

        Returns:
            False if no network is in between; requests are then made at once, as before.
        """


class TooSlowError(RuntimeError):
    """Error for an entry that is not sent, since too many others wait."""


class Sender(Generic[Entry]):
    """One thread that makes requests in order.

    The thread exists as long as there is something to send. It ends with the first request that raises; nothing is sent
    after that. An entry is whatever the caller wants back if it could not be sent.

    Args:
        at_exit: called if the process ends while entries wait.
        most_waiting: number of entries that may wait.
    """

    def __init__(self, at_exit: Callable[[], None], *, most_waiting: int = MOST_WAITING) -> None:
        self._at_exit = at_exit
        self._most_waiting = most_waiting
        self._changed = threading.Condition()  # guards everything below
        self._waiting: deque[tuple[Entry, Sequence[Request]]] = deque()  # the first one is being sent
        self._worker: threading.Thread | None = None  # None if nothing is being sent
        self._failure: Exception | None = None  # raised by a request; nothing is sent from then on
        self._is_stopped = False  # True after `take`: the worker ends with the request that it is making
        self._process = os.getpid()  # a forked child has the entries, but no worker

    def add(self, entry: Entry, requests: Sequence[Request]) -> None:
        """Send requests after all earlier ones, without waiting for them.

        Raises:
            TooSlowError: too many entries wait already; this one is not sent.
        """
        with self._changed:
            if len(self._waiting) >= self._most_waiting:
                raise TooSlowError(f"{len(self._waiting):,} entries wait to be sent, and no more are taken")
            self._waiting.append((entry, requests))
            if self._worker is None:
                # Not an executor's thread, which Python joins at exit, however long a server takes.
                self._worker = threading.Thread(target=self._send, name="flopcallback sender", daemon=True)
                atexit.register(self._exit)
                self._worker.start()

    def check(self) -> None:
        """Raise what an earlier request has raised."""
        with self._changed:
            if self._failure is not None:
                raise self._failure

    def wait(self, seconds: float, late: str = "") -> None:
        """Wait until everything is sent.

        Args:
            seconds: longest wait.
            late: text of the error after that time; by default it names the seconds.

        Raises:
            TimeoutError: some of it is not sent yet.
            Exception: a request has raised it.
        """
        with self._changed:
            is_done = self._changed.wait_for(lambda: self._worker is None, timeout=seconds)
        self.check()
        if not is_done:
            raise TimeoutError(late or f"it was not sent within {seconds:.3g} s")

    def take(self) -> list[Entry]:
        """Stop sending, and return the entries that were not sent, oldest first.

        The first of them may have been sent in part.
        """
        with self._changed:
            self._is_stopped = True
            unsent = [entry for entry, _ in self._waiting]
            self._waiting.clear()
        atexit.unregister(self._exit)
        return unsent

    def _send(self) -> None:
        while True:
            with self._changed:
                if not self._waiting or self._is_stopped:
                    self._end()
                    return
                _, requests = self._waiting[0]
            try:
                for request in requests:
                    if self._is_stopped:
                        break
                    request()
            except Exception as error:  # noqa: BLE001 - `check` raises it in the training's thread
                with self._changed:
                    self._failure = error
                    self._end()
                return
            with self._changed:
                if not self._is_stopped:
                    self._waiting.popleft()

    def _end(self) -> None:
        """Note that this thread ends."""
        self._worker = None
        if not self._waiting:
            atexit.unregister(self._exit)
        self._changed.notify_all()

    def _exit(self) -> None:
        if os.getpid() == self._process:
            self._at_exit()


def within(seconds: float, question: Callable[[], Result]) -> Result:
    """Return the answer to a question, asked in a thread of its own.

    Raises:
        TimeoutError: there is no answer yet.
        Exception: the question has raised it.
    """
    answers: list[Result] = []
    failures: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that asks
            failures.append(error)

    thread = threading.Thread(target=ask, name="flopcallback question", daemon=True)
    thread.start()
    thread.join(seconds)
    for failure in failures:
        raise failure
    if not answers:
        raise TimeoutError(f"there is no answer after {seconds:g} s")
    return answers[0]
