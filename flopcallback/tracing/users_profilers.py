"""Profilers of the user's, and when they are at work.

libkineto does not tell that a session begins, so the functions by which torch's profilers begin and end are replaced
while anybody listens.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import Any

from flopcallback.tracing import torch_private

__all__ = ["UsersProfilers"]


class UsersProfilers:
    """Watch over all profilers of this process that are not ours.

    Attributes:
        lock: guards the state; never held while waiting.
        listeners: listeners and open sessions of ours, for which the replacements stay.

    Args:
        lock: guards the state.
        give_way: ends what is ours before one of theirs goes on; is told whether another of theirs is at work.
        end_ours: ends what is ours in this thread; returns whether there was anything, and its result.
    """

    def __init__(
        self,
        lock: threading.RLock,
        give_way: Callable[[bool], None],
        end_ours: Callable[[], tuple[bool, Any]],
    ) -> None:
        self.lock = lock
        self.listeners = 0
        self._give_way = give_way
        self._end_ours = end_ours
        self._replaced: list[tuple[torch_private.Place, Any, Any]] = []  # each with its original and its replacement
        # What they did, as far as the replacements saw.
        self._active = 0  # how many are started
        self._is_prepared = False  # one warms up
        self._is_stale = False  # a session of ours used up what a profiler prepared before we could see it

    @property
    def are_at_work(self) -> bool:
        """True while one of theirs is started or warms up."""
        return bool(self._active or self._is_prepared or torch_private.is_profiler_started())

    def note_ours(self) -> None:
        """Note that a session of ours begins, which uses up what libkineto has prepared."""
        self._is_stale = True

    def install(self) -> None:
        """Replace the functions, until the same number of calls of `uninstall`."""
        if self.listeners == 0:
            self._replace()
        self.listeners += 1

    def uninstall(self) -> None:
        """Undo one call of `install`."""
        self.listeners -= 1
        if self.listeners == 0:
            self._put_back()

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
        for place, original, replacement in self._replaced:
            if getattr(place.owner, place.name, None) is replacement:  # else somebody has put theirs around it
                setattr(place.owner, place.name, original)
        self._replaced.clear()
        # Nobody sees from now on what the user's profilers do.
        self._active, self._is_prepared = 0, False

    def _around_prepare(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(prepare)
        def prepared(*args: Any, **kwargs: Any) -> Any:
            is_second = self.are_at_work
            self._is_prepared = True  # first: from now on nobody begins
            try:
                self._give_way(is_second)
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
            with self.lock:
                is_second = self._active > 0
                self._active += 1
            try:
                self._give_way(is_second)
                # It was prepared before the replacements were there; to start what is not prepared ends the process.
                if self._is_stale and not self._is_prepared and enable is not torch_private.enable_legacy_profiler:
                    torch_private.prepare_again(*args, **kwargs)
                result = enable(*args, **kwargs)
            except BaseException:
                with self.lock:
                    self._active -= 1
                raise
            self._is_prepared = False
            return result

        return enabled

    def _around_disable(self, disable: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(disable)
        def disabled(*args: Any, **kwargs: Any) -> Any:
            with self.lock:
                if not self.are_at_work:
                    # Lightning's PyTorchProfiler, before it begins, ends whatever is on in its thread.
                    was_ours, result = self._end_ours()
                    if was_ours:
                        return result
            try:
                return disable(*args, **kwargs)
            finally:
                with self.lock:
                    self._active = max(0, self._active - 1)
                    self._is_prepared = False

        return disabled
