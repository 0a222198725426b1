"""Interception of code that the tracer cannot enter, such as autograd functions."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from flopcallback.modules.compiled import After, CompiledCall, Return, as_written, stepping_aside, with_known_count
from flopcallback.modules.wrappers import wrap_on_instance
from flopcallback.tracing.record import AUTOGRAD_FUNCTION
from flopcallback.tracing.torch_private import (
    BACKWARD_CLASS,
    COMPILED_CALL,
    OpOverload,
    OpOverloadPacket,
    backward_engine,
    collectives,
    disable_current_modes,
    has_compiled_call,
    is_compiler_imported,
    operator_name,
    original_module,
    transforms,
)

__all__ = [
    "CONVOLUTIONS",
    "FLEX_ATTENTION",
    "META_CONVOLUTION",
    "OVERLOADS",
    "RunRegion",
    "intercept_compiled_attention",
    "intercept_named",
    "intercept_untraceable",
    "is_meta_convolution",
    "replaced",
    "sees_functions",
    "without_compilation",
    "without_fast_paths",
]

FLEX_ATTENTION = "higher_order::flex_attention"
META_CONVOLUTION = "flopcallback::meta_convolution"
RunRegion = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Function that runs a piece of a call: `region(kind, call, args, kwargs)` returns `call(*args, **kwargs)`."""


_lock = threading.Lock()  # guards `_originals` and the replacements themselves
# By id of the owner and name: the value before the first of the active replacements, and how many are active.
_originals: dict[tuple[int, str], tuple[Any, int]] = {}
_INHERITED = object()  # instead of a value: the owner has none of its own, and is to have none again


@contextmanager
def replaced(owner: Any, name: str, replacement: Callable[[Any], Any]) -> Iterator[None]:
    """Replace `owner.name` by `replacement(original)`, but not for compiled code.

    Contexts in several threads may end in any order.
    """
    key = (id(owner), name)
    with _lock:
        before = vars(owner).get(name, _INHERITED)
        replacing = replacement(getattr(owner, name) if before is _INHERITED else before)
        first, active = _originals.get(key, (before, 0))
        _originals[key] = first, active + 1
        setattr(owner, name, replacing)

    def step_aside(_: CompiledCall) -> Return | None:
        if vars(owner).get(name) is not replacing:
            return None
        _set_own(owner, name, before)

        def back(_: Any) -> After | None:
            if vars(owner).get(name, _INHERITED) is before:
                setattr(owner, name, replacing)
            return None

        return back

    try:
        with stepping_aside(step_aside, lambda error: None):
            yield
    finally:
        with _lock:
            first, active = _originals.pop(key)
            if active > 1:
                _originals[key] = first, active - 1
            # If another replacement covers this one, it stays until the last of them ends.
            if active == 1 or vars(owner).get(name) is replacing:
                _set_own(owner, name, first if active == 1 else before)


def _set_own(owner: Any, name: str, value: Any) -> None:
    if value is not _INHERITED:
        setattr(owner, name, value)
    elif name in vars(owner):  # else it is gone since compiled code was called
        delattr(owner, name)


@contextmanager
def intercept_untraceable(region: RunRegion) -> Iterator[None]:
    """Run through `region` whatever the tracer cannot follow.

    The replacements are process-wide; in a thread that traces nothing, `region` has to make the call directly.
    """
    with ExitStack() as stack:
        stack.enter_context(intercept_named(region))
        for owner, name, kind in _entry_points():
            stack.enter_context(replaced(owner, name, functools.partial(_function, region, kind)))
        yield


@contextmanager
def intercept_named(region: RunRegion) -> Iterator[None]:
    """Run autograd functions and flex attention's kernel through `region`.

    Their names appear in no operator: formulas and handles need the region.
    """
    # Replacing `apply` would not do: from torch 2.14 on it is a C method, and many modules bind it at their import
    # (`swish = Swish.apply`). But every `apply` looks up attributes of its class, and the metaclass sees that.
    with (
        replaced(type(torch.autograd.Function), "__getattribute__", functools.partial(_applied_functions, region)),
        intercept_compiled_attention(region),
    ):
        yield


@contextmanager
def intercept_compiled_attention(region: RunRegion) -> Iterator[None]:
    """Run flex attention's kernel, which it compiles when called, through `region`.

    Query, key and value are the first three tensors of the call.
    """
    # Users import `flex_attention` by name, so it cannot be replaced; the `torch` that it looks up in its module can.
    flex = sys.modules.get("torch.nn.attention.flex_attention")
    if flex is None:
        yield
        return
    with replaced(flex, "torch", functools.partial(_TorchForFlexAttention, region)):
        yield


class _TorchForFlexAttention:
    """Stand-in for `torch` with a `compile` that runs functions through a region."""

    def __init__(self, region: RunRegion, original: Any) -> None:
        self._region = region
        self._torch = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

    def compile(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled = self._torch.compile(function, **options)

        @functools.wraps(compiled)
        def counted(*args: Any, **kwargs: Any) -> Any:
            with with_known_count():  # by the formula for the kernel
                return compiled(*args, **kwargs)

        return _function(self._region, FLEX_ATTENTION, counted)


def _entry_points() -> Iterator[tuple[Any, str, str]]:
    """Yield owner, attribute and region kind of each untraceable function."""
    # `torch.autograd.grad` and `Tensor.backward`: a backward inside a trace raises.
    yield from ((*place, "flopcallback::backward") for place in backward_engine())
    # Scripted and traced modules and functions: the tracer records the call of a function, or raises.
    yield torch.ScriptMethod, "__call__", "prim::CallMethod"
    yield torch.ScriptFunction, "__call__", "prim::CallFunction"
    # Transforms of torch.func wrap tensors at a level of their own, which the tracer does not know.
    yield from ((*place, f"flopcallback::{name}") for name, place in transforms())
    # Collectives: the tracer does not know process groups.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        yield from ((*place, "flopcallback::collective") for place in collectives())


def _function(region: RunRegion, kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def through_region(*args: Any, **kwargs: Any) -> Any:
        return region(kind, original, args, kwargs)

    return through_region


def _applied_functions(region: RunRegion, original: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """Return a `__getattribute__` that gives `apply` a `forward` in a region."""
    applied = _Applied()

    def __getattribute__(cls: Any, name: str) -> Any:  # noqa: N807
        attribute = original(cls, name)
        if name == BACKWARD_CLASS:  # `apply` makes the context from it, and looks up `forward` next (2.6 to 2.14)
            applied.function, applied.grad_mode = cls, torch.is_grad_enabled()
        elif name == "forward" and applied.function is cls:
            applied.function = None
            if issubclass(cls, torch.autograd.Function):  # else a transform of torch.func has made another class of it
                kind = f"{AUTOGRAD_FUNCTION}{cls.__name__}"  # the tracer's name, which handles and formulas use
                return functools.partial(_forward, functools.partial(region, kind), attribute, applied.grad_mode)
        return attribute

    return __getattribute__


class _Probe(torch.autograd.Function):
    """Autograd function without effect, to test whether `apply` is noticed."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)


@functools.cache
def sees_functions() -> bool:
    """Return whether this torch lets us notice calls of autograd functions.

    That depends on the attributes which `apply` looks up. If another version looked up none, the tracer would silently
    count nothing for such a function, so it must not be used.
    """
    seen: list[str] = []

    def region(kind: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.append(kind)
        return call(*args, **kwargs)

    with disable_current_modes(), torch.no_grad(), intercept_named(region):
        _Probe.apply(torch.empty(0))  # type: ignore[no-untyped-call]
    return bool(seen)


class _Applied(threading.local):
    """State of an `apply` under way in this thread.

    Without it, a direct call of a function's `forward` would be taken for an operator.

    Attributes:
        function: the class; None again once its `forward` was looked up.
        grad_mode: grad mode of the caller; `apply` switches it off for `forward`.
    """

    function: Any = None
    grad_mode = False


def _forward(region: Callable[..., Any], forward: Callable[..., Any], grad_mode: bool, *args: Any) -> Any:
    """Run the forward of an autograd function in a region.

    The region gets the arguments of `apply`, in its caller's grad mode. The forward itself gets its context too, and
    runs without grad, as PyTorch runs it.
    """
    has_context = bool(args) and isinstance(args[0], torch.autograd.function.FunctionCtx)
    context, arguments = (args[:1], args[1:]) if has_context else ((), args)

    def without_grad(*arguments: Any) -> Any:
        with torch.set_grad_enabled(False):
            return forward(*context, *arguments)

    with torch.set_grad_enabled(grad_mode):
        return region(without_grad, arguments, {})


_CONVOLUTIONS = ("convolution", *(f"conv{kind}{dims}d" for kind in ("", "_transpose") for dims in (1, 2, 3)))
CONVOLUTIONS = frozenset(getattr(torch, name) for name in _CONVOLUTIONS)
OVERLOADS = frozenset({OpOverload, OpOverloadPacket})
_CONVOLUTION_OPERATORS = frozenset(f"aten::{name}" for name in _CONVOLUTIONS)


def is_meta_convolution(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a call is a convolution of a meta tensor.

    The tracer writes no node for `convolution`: it relies on the operators below (2.13, `DONT_RECORD_TRACE` in
    tools/autograd/gen_trace_type.py). On meta tensors there are none, but a Python function that gets traced sizes. No
    other operator that multiplies has this fault.

    Args:
        function: a member of `CONVOLUTIONS`, or of a type in `OVERLOADS`.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
    """
    if function not in CONVOLUTIONS and operator_name(function) not in _CONVOLUTION_OPERATORS:
        return False
    source = args[0] if args else kwargs.get("input")
    return isinstance(source, torch.Tensor) and source.is_meta


@contextmanager
def without_compilation(modules: list[nn.Module]) -> Iterator[None]:
    """Run compiled modules and functions eagerly, and keep their compiled code."""
    # The wrapper around a compiled module raises under a tracer before it looks at the stance, so the module inside is
    # called instead. Inside a compiled function nothing can be called: there the stance does it, for the dispatcher.
    with ExitStack() as stack:
        for module in modules:
            if original_module(module) is not None:
                wrap_on_instance(module, "forward", functools.partial(_original_forward, module), stack)
            if has_compiled_call(module):
                wrap_on_instance(module, COMPILED_CALL, _no_compiled_call, stack)
        if is_compiler_imported():  # else nothing was compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(as_written())
        yield


def _no_compiled_call(_: Any) -> Any:
    return None  # `Module.__call__` then calls `_call_impl`


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """Switch off the fused operators of encoder layers and attention.

    They would hide the modules inside from the dispatcher. The tracer does not need this: its function mode switches
    them off. The last digits of a result change, so this is not for a real call.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _original_forward(module: nn.Module, _: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return original_module(module)(*args, **kwargs)  # type: ignore[misc]

    return forward
