"""Where the tracer cannot go: the doors into such pieces, each led past it while a trace is under way."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from flopcallback.modules.compiled import After, CompiledCall, Return, as_written, known, stepping_aside
from flopcallback.modules.wrappers import wrap_on_instance
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
    "AUTOGRAD_FUNCTION",
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
AUTOGRAD_FUNCTION = "prim::PythonOp."  # as the tracer calls it; its class' name follows
RunRegion = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


_lock = threading.Lock()
# (owner, name) -> what stood there before the first of the replacements that stand, and how many do.
_originals: dict[tuple[int, str], tuple[Any, int]] = {}
_INHERITED = object()


@contextmanager
def replaced(owner: Any, name: str, replacement: Callable[[Any], Any]) -> Iterator[None]:
    """Replaces `owner.name` by `replacement(original)` for the time of the context, in whatever order contexts end.

    Compiled code does not meet the replacement.
    """
    key = (id(owner), name)
    with _lock:
        own = vars(owner).get(name, _INHERITED)
        mine = replacement(getattr(owner, name) if own is _INHERITED else own)
        first, standing = _originals.get(key, (own, 0))
        _originals[key] = first, standing + 1
        setattr(owner, name, mine)

    def step_aside(_: CompiledCall) -> Return | None:
        if vars(owner).get(name) is not mine:
            return None
        _put(owner, name, own)

        def back(_: Any) -> After | None:
            if vars(owner).get(name, _INHERITED) is own:
                setattr(owner, name, mine)
            return None

        return back

    try:
        with stepping_aside(step_aside, lambda error: None):
            yield
    finally:
        with _lock:
            first, standing = _originals.pop(key)
            if standing > 1:
                _originals[key] = first, standing - 1
            if standing == 1 or vars(owner).get(name) is mine:
                before = first if standing == 1 else own
                _put(owner, name, before)


def _put(owner: Any, name: str, value: Any) -> None:
    delattr(owner, name) if value is _INHERITED else setattr(owner, name, value)


@contextmanager
def intercept_untraceable(region: RunRegion) -> Iterator[None]:
    """Sends what the tracer cannot follow through `region(kind, call, args, kwargs)`.

    These are process-wide replacements; `region` passes straight through in a thread that traces nothing.
    """
    with ExitStack() as stack:
        stack.enter_context(intercept_named(region))
        for owner, name, kind in _doors():
            stack.enter_context(replaced(owner, name, functools.partial(_function, region, kind)))
        yield


@contextmanager
def intercept_named(region: RunRegion) -> Iterator[None]:
    """Sends what has a name that no operator bears through `region`: autograd functions, flex attention's kernel."""
    # Replacing `apply` would not do: from torch 2.14 on it is a C method, and many modules keep one from their import
    # on (`swish = Swish.apply`). But every `apply` looks up attributes of its class, and the metaclass sees that.
    with (
        replaced(type(torch.autograd.Function), "__getattribute__", functools.partial(_applied_functions, region)),
        intercept_compiled_attention(region),
    ):
        yield


@contextmanager
def intercept_compiled_attention(region: RunRegion) -> Iterator[None]:
    """Sends flex attention's kernel, which it compiles on the spot, through `region`.

    Users import `flex_attention` by name, so the function itself is out of reach; the `torch.compile` that it looks up
    in its own module is not. Query, key and value are the first three tensors of the call.
    """
    flex = sys.modules.get("torch.nn.attention.flex_attention")
    if flex is None:
        yield
        return
    with replaced(flex, "torch", functools.partial(_TorchForFlexAttention, region)):
        yield


class _TorchForFlexAttention:
    """`torch`, except that what it compiles runs through a region."""

    def __init__(self, region: RunRegion, original: Any) -> None:
        self._region = region
        self._torch = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

    def compile(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled = self._torch.compile(function, **options)

        @functools.wraps(compiled)
        def counted(*args: Any, **kwargs: Any) -> Any:
            with known():  # by the formula for the kernel
                return compiled(*args, **kwargs)

        return _function(self._region, FLEX_ATTENTION, counted)


def _doors() -> Iterator[tuple[Any, str, str]]:
    # `torch.autograd.grad` and `Tensor.backward`: a backward inside a trace raises.
    yield from ((*place, "flopcallback::backward") for place in backward_engine())
    # Scripted and traced modules and functions: the tracer records the call of a function, or raises.
    yield torch.ScriptMethod, "__call__", "prim::CallMethod"
    yield torch.ScriptFunction, "__call__", "prim::CallFunction"
    # The transforms of torch.func wrap tensors at a level of their own, which the tracer does not know.
    yield from ((*place, f"flopcallback::{name}") for name, place in transforms())
    # What sends tensors to other processes: the tracer does not know a process group.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        yield from ((*place, "flopcallback::collective") for place in collectives())


def _function(region: RunRegion, kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def past_the_tracer(*args: Any, **kwargs: Any) -> Any:
        return region(kind, original, args, kwargs)

    return past_the_tracer


def _applied_functions(region: RunRegion, original: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """Looks up attributes of autograd functions, and gives `apply` a `forward` that runs in a region."""
    applied = _Applied()

    def __getattribute__(cls: Any, name: str) -> Any:  # noqa: N807
        attribute = original(cls, name)
        if name == BACKWARD_CLASS:  # `apply` makes the context of this, and calls `forward` next (seen in 2.6 to 2.14)
            applied.function, applied.grad_mode = cls, torch.is_grad_enabled()
        elif name == "forward" and applied.function is cls:
            applied.function = None
            if issubclass(cls, torch.autograd.Function):  # else it is what a transform of torch.func makes of one
                kind = f"{AUTOGRAD_FUNCTION}{cls.__name__}"  # the tracer's name, which handles and formulas use
                return functools.partial(_forward, functools.partial(region, kind), attribute, applied.grad_mode)
        return attribute

    return __getattribute__


class _Probe(torch.autograd.Function):
    """Does nothing, and is applied to see whether that is noticed."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)


@functools.cache
def sees_functions() -> bool:
    """Return whether this torch lets an autograd function be seen at work.

    The way in rests on which attributes `apply` looks up. Should another version look up none, the tracer would count
    nothing for such a function, and say nothing: then it must not be used.
    """
    seen: list[str] = []

    def region(kind: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.append(kind)
        return call(*args, **kwargs)

    with disable_current_modes(), torch.no_grad(), intercept_named(region):
        _Probe.apply(torch.empty(0))  # type: ignore[no-untyped-call]
    return bool(seen)


class _Applied(threading.local):
    """The autograd function whose `apply` is under way in this thread, and the grad mode of its caller.

    Without it, a direct call of a function's `forward` would be taken for an operator.
    """

    function: Any = None
    grad_mode = False


def _forward(region: Callable[..., Any], forward: Callable[..., Any], grad_mode: bool, *args: Any) -> Any:
    """Runs the forward of an autograd function in a region, with the arguments and in the grad mode of `apply`.

    The forward itself still gets its context, and runs without grad.
    """
    has_context = bool(args) and isinstance(args[0], torch.autograd.function.FunctionCtx)
    context, given = (args[:1], args[1:]) if has_context else ((), args)

    def without_grad(*given: Any) -> Any:
        with torch.set_grad_enabled(False):
            return forward(*context, *given)

    with torch.set_grad_enabled(grad_mode):
        return region(without_grad, given, {})


_CONVOLUTIONS = ("convolution", *(f"conv{kind}{dims}d" for kind in ("", "_transpose") for dims in (1, 2, 3)))
CONVOLUTIONS = frozenset(getattr(torch, name) for name in _CONVOLUTIONS)
OVERLOADS = frozenset({OpOverload, OpOverloadPacket})
_CONVOLUTION_OPERATORS = frozenset(f"aten::{name}" for name in _CONVOLUTIONS)


def is_meta_convolution(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a call is a convolution of a meta tensor.

    The tracer writes no node for `convolution`: it relies on the operators below, which the other devices have (2.13,
    `DONT_RECORD_TRACE` in tools/autograd/gen_trace_type.py). Meta has a function in Python there, which meets traced
    sizes. Of the operators that multiply it is the only one.

    Args:
        function: one of `CONVOLUTIONS`, or of a type in `OVERLOADS`; nothing else can be one.
        args: of the call.
        kwargs: of the call.
    """
    if function not in CONVOLUTIONS and operator_name(function) not in _CONVOLUTION_OPERATORS:
        return False
    source = args[0] if args else kwargs.get("input")
    return isinstance(source, torch.Tensor) and source.is_meta


@contextmanager
def without_compilation(modules: list[nn.Module]) -> Iterator[None]:
    """Runs compiled modules as they were written, and leaves what was compiled alone.

    The wrapper around a compiled module raises under a tracer before it looks at `torch.compiler.set_stance`, so the
    module inside is called instead. A compiled function has no way in: the stance lets the dispatcher see through it.
    """
    with ExitStack() as stack:
        for module in modules:
            if original_module(module) is not None:
                wrap_on_instance(module, "forward", functools.partial(_original_forward, module), stack)
            if has_compiled_call(module):
                wrap_on_instance(module, COMPILED_CALL, _nothing, stack)
        if is_compiler_imported():  # else nothing was compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(as_written())
        yield


def _nothing(_: Any) -> Any:
    return None


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """Runs encoder layers and attention as their modules, which one fused operator would hide from the dispatcher.

    The tracer needs no such thing: its function mode switches them off. They change the last digits of a result, so
    this is for counts beside the real call.
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
