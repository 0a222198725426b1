"""Where calls of modules pass, and which of them are outermost; compiled modules are left closed."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from flopcallback.modules.attempt import call_once
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.snapshot import is_isolated
from flopcallback.modules.wrappers import is_reached, wrap_on_instance
from flopcallback.tracing.torch_private import (
    COMPILED_CALL,
    has_compiled_call,
    is_backward_running,
    is_compiled_function,
    is_tracing,
    original_module,
)

__all__ = ["CallSite", "call_sites", "has_forward", "is_compiled", "outermost_calls"]


class CallSite(NamedTuple):
    """A module, and the attribute of the instance that each of its calls goes through."""

    name: str
    module: nn.Module
    attribute: str


Intercept = Callable[[CallSite, Callable[[], Any], tuple[Any, ...], dict[str, Any]], None]


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of the module run compiled code.

    That is `torch.compile(module)`, `module.compile()`, or `module.forward = torch.compile(module.forward)`.
    """
    forward = vars(module).get("forward")
    return original_module(module) is not None or has_compiled_call(module) or is_compiled_function(forward)


def has_forward(module: nn.Module) -> bool:
    """Whether the module can be called; a `ModuleList` cannot."""
    # Asked past descriptors: a scripted module's class has one that only an instance can be asked for.
    of_class = inspect.getattr_static(type(module), "forward", None)
    return of_class is not nn.Module.forward or "forward" in vars(module)


def call_sites(names: ModuleNames) -> Iterator[CallSite]:
    """Every module that can be called, except those within compiled ones.

    A wrapper within a compiled module would be compiled along, and make it compile once more.
    """
    closed: list[str] = []
    for name, module in names.unique.items():
        if any(name.startswith(prefix) for prefix in closed):
            continue
        if is_compiled(module):
            closed.append(f"{name}." if name else "")
        if has_compiled_call(module):
            yield CallSite(name, module, COMPILED_CALL)
        elif has_forward(module):
            yield CallSite(name, module, "forward")


@contextmanager
def outermost_calls(
    names: ModuleNames,
    intercept: Intercept,
    on_failure: Callable[[CallSite, Exception], None],
    *,
    only: Collection[str] | None = None,
    passes: Callable[[CallSite, tuple[Any, ...], dict[str, Any]], bool] | None = None,
    raised: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Has each call of a module that no other module makes go through `intercept(site, call, args, kwargs)`.

    `call()` makes the call, with those arguments; `intercept` has to make it once. Calls that a backward makes
    (recomputation), those that are being compiled or traced, and those of other threads pass.

    Args:
        names: the modules.
        intercept: goes around a call.
        on_failure: is told, after the call was made, what `intercept` failed at other than in the call itself. What it
            raises reaches whoever made the call.
        only: names of the modules whose calls are of interest; by default all.
        passes: is asked before such a call, and says whether it is made as it is: quicker than to `intercept` it.
        raised: is told that one that was made as it is raised.
    """
    thread = threading.get_ident()
    busy = is_over = False

    def may_pass(site: CallSite, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        try:
            return passes is not None and (_is_no_step() or passes(site, args, kwargs))
        except Exception as error:  # noqa: BLE001 - the call is the user's, and is made
            on_failure(site, error)
            return True

    def wrap(site: CallSite, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def outermost(*args: Any, **kwargs: Any) -> Any:
            nonlocal busy
            # First: to a compiler the rest is then dead code, and no reason to break its graph.
            if torch.compiler.is_compiling():
                return method(*args, **kwargs)
            if is_over or busy or threading.get_ident() != thread:
                return method(*args, **kwargs)
            if passes is not None and may_pass(site, args, kwargs):
                busy = True
                try:
                    return method(*args, **kwargs)
                except BaseException:
                    if not _is_no_step():  # as checkpointing ends a recomputation
                        raised()
                    raise
                finally:
                    busy = False
            is_looked_up = False

            def call() -> Any:
                return (getattr(site.module, site.attribute) if is_looked_up else method)(*args, **kwargs)

            def around(attempt: Callable[[], Any]) -> None:
                nonlocal is_looked_up
                if _is_no_step():
                    attempt()
                    return
                # An engine will have wrapped it by then, and sees what the module does as the module's own. But where
                # the user has wrapped this one, their part of the call is on its way already.
                is_looked_up = is_reached(site.module, site.attribute, outermost)
                intercept(site, attempt, args, kwargs)

            busy = True
            try:
                made = call_once(call, around)
            finally:
                busy = False
            if made.failure is not None:
                on_failure(site, made.failure)
            return made.result

        return outermost

    with ExitStack() as undo:
        for site in call_sites(names):
            if only is not None and site.name not in only:
                continue
            wrap_on_instance(site.module, site.attribute, functools.partial(wrap, site), undo)
        try:
            yield
        finally:
            is_over = True  # a user who has wrapped one of these goes on to call it


def _is_no_step() -> bool:
    """Whether modules are called for a recomputation, an export, or the count of a model that contains them."""
    return is_backward_running() or is_tracing() or is_isolated()
