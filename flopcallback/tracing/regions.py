"""Where the tracer cannot go: the doors into such pieces, each led past it while a trace is under way."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from flopcallback.modules.wrappers import wrap_on_instance
from flopcallback.tracing.torch_private import (
    COMPILED_CALL,
    SingleLevelFunction,
    backward_engine,
    collectives,
    has_compiled_call,
    is_compiler_imported,
    operator_name,
    original_module,
    transforms,
)

__all__ = [
    "AUTOGRAD_FUNCTION",
    "FLEX_ATTENTION",
    "META_CONVOLUTION",
    "RunRegion",
    "intercept_compiled_attention",
    "intercept_named",
    "intercept_untraceable",
    "is_meta_convolution",
    "replaced",
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
    """Replaces `owner.name` by `replacement(original)` for the time of the context, in whatever order contexts end."""
    key = (id(owner), name)
    with _lock:
        own = vars(owner).get(name, _INHERITED)
        mine = replacement(getattr(owner, name) if own is _INHERITED else own)
        first, standing = _originals.get(key, (own, 0))
        _originals[key] = first, standing + 1
        setattr(owner, name, mine)
    try:
        yield
    finally:
        with _lock:
            first, standing = _originals.pop(key)
            if standing > 1:
                _originals[key] = first, standing - 1
            if standing == 1 or vars(owner).get(name) is mine:
                before = first if standing == 1 else own
                delattr(owner, name) if before is _INHERITED else setattr(owner, name, before)


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
    # Below `Function.apply`, which many take hold of when a module is imported: `swish = Swish.apply`.
    with (
        nullcontext()
        if SingleLevelFunction is None
        else replaced(SingleLevelFunction, "apply", functools.partial(_autograd_function, region)),
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
        return _function(self._region, FLEX_ATTENTION, compiled)


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


def _autograd_function(region: RunRegion, original: Any) -> Any:
    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        call = original.__get__(None, cls) if isinstance(original, classmethod) else _built_in_apply(cls)
        if not issubclass(cls, torch.autograd.Function):  # what a transform of torch.func makes of one
            return call(*args, **kwargs)
        # Named as the tracer would name it, so that a handle for `prim::PythonOp.<Name>` is found.
        return region(f"{AUTOGRAD_FUNCTION}{cls.__name__}", call, args, kwargs)

    return classmethod(apply)


def _built_in_apply(cls: Any) -> Callable[..., Any]:
    return super(SingleLevelFunction, cls).apply  # type: ignore[no-any-return]


_CONVOLUTIONS = ("convolution", *(f"conv{kind}{dims}d" for kind in ("", "_transpose") for dims in (1, 2, 3)))
_CONVOLUTION_FUNCTIONS = frozenset(getattr(torch, name) for name in _CONVOLUTIONS)
_CONVOLUTION_OPERATORS = frozenset(f"aten::{name}" for name in _CONVOLUTIONS)


def is_meta_convolution(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call is a convolution of a meta tensor.

    The tracer writes no node for `convolution`: it relies on the operators below, which the other devices have (2.13,
    `DONT_RECORD_TRACE` in tools/autograd/gen_trace_type.py). Meta has a function in Python there, which meets traced
    sizes. Of the operators that multiply it is the only one.
    """
    if function not in _CONVOLUTION_FUNCTIONS and operator_name(function) not in _CONVOLUTION_OPERATORS:
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
