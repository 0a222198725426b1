"""Interception of the outermost module calls; compiled modules are not entered."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from flopcallback.modules.attempt import call_once
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.snapshot import isolation
from flopcallback.modules.wrappers import is_reached, wrap_on_instance
from flopcallback.tracing.torch_private import (
    COMPILED_CALL,
    NO_TASK,
    backward_task,
    has_compiled_call,
    is_compiled,
    is_counting,
    tracing_state,
)

__all__ = ["CallSite", "call_sites", "has_forward", "is_compiled", "outermost_calls"]


class CallSite(NamedTuple):
    """A module and the instance attribute through which its calls go."""

    name: str
    module: nn.Module
    attribute: str


Intercept = Callable[[CallSite, Callable[[], Any], tuple[Any, ...], dict[str, Any]], None]


def has_forward(module: nn.Module) -> bool:
    """Return whether the module can be called; a `ModuleList` cannot."""
    # `getattr_static`: the class of a scripted module has a descriptor here that works on instances only.
    class_forward = inspect.getattr_static(type(module), "forward", None)
    return class_forward is not nn.Module.forward or "forward" in vars(module)


def call_sites(names: ModuleNames, methods: Mapping[str, set[str]] | None = None) -> Iterator[CallSite]:
    """Yield every module that can be called, except those inside compiled ones.

    A wrapper inside a compiled module would be compiled into it, and cause a recompilation.

    Args:
        names: the modules.
        methods: further methods by which modules are entered, by canonical name.
    """
    compiled_prefixes: list[str] = []
    for name, module in names.unique.items():
        if any(name.startswith(prefix) for prefix in compiled_prefixes):
            continue
        is_closed = is_compiled(module)
        if is_closed:
            compiled_prefixes.append(f"{name}." if name else "")
        if is_closed and has_compiled_call(module):
            yield CallSite(name, module, COMPILED_CALL)
        elif has_forward(module):
            yield CallSite(name, module, "forward")
        # The root is entered by the call itself.
        for method in methods.get(name, ()) if methods and name and not is_closed else ():
            yield CallSite(name, module, method)


@contextmanager
def outermost_calls(
    names: ModuleNames,
    intercept: Intercept,
    on_failure: Callable[[CallSite, Exception], None],
    *,
    only: Collection[str] | None = None,
    fast_path: Callable[[CallSite, tuple[Any, ...], dict[str, Any]], bool] | None = None,
    on_raise: Callable[[], None] = lambda: None,
    on_traced: Callable[[CallSite, tuple[Any, ...], dict[str, Any]], None] | None = None,
) -> Iterator[None]:
    """Route each outermost call of a module through `intercept(site, call, args, kwargs)`.

    `call()` makes the call with those arguments; `intercept` has to call it once. Not intercepted are calls made by a
    backward (recomputation), calls that are being compiled or traced, and calls in other threads.

    Args:
        names: the modules.
        intercept: runs a call.
        on_failure: receives, after the call, an error that `intercept` raised outside of it. An error raised by
            `on_failure` itself reaches the caller.
        only: names of the modules to intercept; all by default.
        fast_path: decides before a call whether to make it directly, which costs less than `intercept`.
        on_raise: called when a call on the fast path has raised.
        on_traced: called before a call that somebody else here is counting, which can be noted and not intercepted.
    """
    thread = threading.get_ident()
    is_busy = False  # while a module is called: calls that it makes of other modules are not outermost
    is_over = False  # once the context has ended: a wrapper of the user's may still call ours

    def is_skipped(site: CallSite, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if on_traced is not None and is_counting() and not isolation.depth:
            on_traced(site, args, kwargs)
        return True

    def note_raise(site: CallSite) -> None:
        try:
            if not _is_outside_step():  # checkpointing ends a recomputation by an exception
                on_raise()
        except Exception as error:  # noqa: BLE001 - it would hide the user's exception
            on_failure(site, error)

    def wrap(site: CallSite, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def outermost(*args: Any, **kwargs: Any) -> Any:
            nonlocal is_busy
            # First: to a compiler the rest is then dead code, and no reason to break its graph.
            if torch.compiler.is_compiling():
                return method(*args, **kwargs)
            if is_over or is_busy or threading.get_ident() != thread:
                return method(*args, **kwargs)
            is_fast = False
            if fast_path is not None:
                try:
                    is_fast = is_skipped(site, args, kwargs) if _is_outside_step() else fast_path(site, args, kwargs)
                except Exception as error:  # noqa: BLE001 - the call is the user's, and is made
                    on_failure(site, error)
                    is_fast = True
            if is_fast:
                is_busy = True
                try:
                    return method(*args, **kwargs)
                except BaseException:
                    note_raise(site)
                    raise
                finally:
                    is_busy = False
            is_looked_up = False  # True: take the attribute's value at the time of the call, not `method`

            def call() -> Any:
                return (getattr(site.module, site.attribute) if is_looked_up else method)(*args, **kwargs)

            def around(attempt: Callable[[], Any]) -> None:
                nonlocal is_looked_up
                if _is_outside_step():
                    is_skipped(site, args, kwargs)
                    attempt()
                    return
                # By then an engine has wrapped the attribute, and attributes the call to the module. But if the user
                # has wrapped ours, looking it up would run the user's wrapper a second time.
                is_looked_up = is_reached(site.module, site.attribute, outermost)
                intercept(site, attempt, args, kwargs)

            is_busy = True
            try:
                outcome = call_once(call, around)
            finally:
                is_busy = False
            if outcome.failure is not None:
                on_failure(site, outcome.failure)
            return outcome.result

        return outermost

    with ExitStack() as undo:
        for site in call_sites(names):
            if only is not None and site.name not in only:
                continue
            wrap_on_instance(site.module, site.attribute, functools.partial(wrap, site), undo)
        try:
            yield
        finally:
            is_over = True


def _is_outside_step() -> bool:
    """Return whether a recomputation, an export or a count is under way."""
    # Functions of torch's own, as this runs in every step.
    is_traced = tracing_state is not None and tracing_state() is not None
    return backward_task() != NO_TASK or is_traced or isolation.depth > 0
