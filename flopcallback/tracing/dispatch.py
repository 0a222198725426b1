"""The second way to see operators: PyTorch's dispatcher, below autograd, where nothing can hide but threads."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import DispatchKey
from torch.nn.parameter import is_lazy

from flopcallback.formulas.op_call import OpCall, Scope, Value
from flopcallback.formulas.registry import Counted, lookup
from flopcallback.modules.compiled import COMPILED, After, CompiledCall, Return
from flopcallback.tracing.record import Region
from flopcallback.tracing.regions import AUTOGRAD_FUNCTION, FLEX_ATTENTION
from flopcallback.tracing.torch_private import (
    LOOKED_INTO,
    OpOverload,
    TorchDispatchMode,
    disable_current_modes,
    dispatch_modes,
    fake_mode,
    nested_shapes,
    operator_name,
    schema_of,
    stored_values,
    tree_leaves,
    views_are_marked,
)

__all__ = ["DispatchRecorder", "look_up", "value_of"]


def value_of(argument: Any) -> Value:
    """Describes a live argument or result of an operator."""
    if isinstance(argument, torch.Tensor):
        if is_lazy(argument):
            return Value(dtype=argument.dtype)
        if argument.is_nested or argument.layout != torch.strided:
            return _without_shape(argument)
        return Value(tuple(argument.shape), argument.dtype, argument.device)
    if isinstance(argument, (list, tuple)):
        if any(isinstance(item, torch.Tensor) for item in argument):
            return Value(items=tuple(map(value_of, argument)))
        return Value(constant=list(argument))
    return Value(constant=argument)


def _without_shape(tensor: torch.Tensor) -> Value:
    """Describes a nested tensor by its components, a sparse one by what it stores; neither's shape tells the work."""
    if tensor.is_nested:
        if tensor.layout != torch.strided:  # jagged: its operators arrive as those of the tensor that holds its values
            return Value(dtype=tensor.dtype)
        if (shapes := nested_shapes(tensor)) is None:
            return Value(dtype=tensor.dtype)
        items = tuple(Value(tuple(shape), tensor.dtype, tensor.device) for shape in shapes)
        return Value(dtype=tensor.dtype, items=items)
    if tensor.dense_dim() or tensor.device.type == "meta":
        return Value(dtype=tensor.dtype)
    values = stored_values(tensor) if tensor.layout == torch.sparse_coo else tensor.values()
    return Value(dtype=tensor.dtype, stored=None if values is None else values.numel())


@functools.cache
def _parameters(func: OpOverload) -> tuple[tuple[str, Any], ...]:
    return tuple((a.name, a.default_value if a.has_default_value() else None) for a in schema_of(func).arguments)


def _in_schema_order(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Value, ...]:
    rest = _parameters(func)[len(args) :]
    return tuple(map(value_of, args)) + tuple(value_of(kwargs.get(name, default)) for name, default in rest)


def _written_to(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    for position, argument in enumerate(schema_of(func).arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _must_decompose(func: OpOverload) -> bool:
    """Whether an operator reaches the mode whole (under `inference_mode`) that is normally split up before.

    It is split here too, unless there is a formula for the whole; both give the same count.
    """
    return _is_composite(func) and not isinstance(lookup(operator_name(func)), Counted)


@functools.cache
def _is_composite(func: OpOverload) -> bool:
    try:
        return func.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)
    except RuntimeError:  # what only Python knows, such as `aten::sym_size`
        return False


@functools.cache
def _is_looked_into(cls: type) -> bool:
    return any((base.__module__, base.__qualname__) in LOOKED_INTO for base in cls.__mro__)


def _as_without_a_mode(func: OpOverload) -> AbstractContextManager[Any]:
    """Lets an operator that reached the mode whole mark the views that it makes, as it does where there is no mode.

    A mode's handler runs past the marking. An unmarked view of a weight does not say `requires_grad`, and `matmul` then
    multiplies in another order: the last digits of a `linear` on a transposed input would differ (2.13).
    """
    if not _is_composite(func) or _marks_views(func):
        return nullcontext()
    return views_are_marked()


@functools.cache
def _marks_views(func: OpOverload) -> bool:
    """Whether an operator's views are marked before the mode sees it; twice is an error."""
    return func.has_kernel_for_dispatch_key(DispatchKey.ADInplaceOrView)


def look_up(func: Any) -> None:
    """Finds out how an operator is to be run, as far as that is remembered.

    Raises:
        Exception: this version of torch does not say so where it is asked.
    """
    if isinstance(func, OpOverload) and not _must_decompose(func):
        _as_without_a_mode(func)


class DispatchRecorder(TorchDispatchMode):
    """Records every operator that runs in this thread while the mode is active.

    Attributes:
        calls: what was recorded, in order.

    Args:
        scope: tells which modules are running, given the arguments of the operator.
        before_write: told of every tensor that is about to be written to.
    """

    # Higher-order operators (`cond`, flex attention) come here as well, and show as unknown, instead of raising.
    supports_higher_order_operators = True

    def __init__(
        self,
        scope: Callable[[tuple[Any, ...]], Scope],
        before_write: Callable[[torch.Tensor], None] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[OpCall | Region] = []
        self._scope = scope
        self._thread = threading.get_ident()
        self._before_write = before_write
        self._is_past = False  # a piece is running past the mode
        self._fake_mode = fake_mode()

    def __enter__(self) -> Any:
        self._fake_mode = fake_mode()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if fake_mode() is not self._fake_mode:  # asks for a shape: how a distributed tensor finds out what it will be
            return func(*args, **kwargs)
        if not isinstance(func, OpOverload):
            return self._record_higher_order(func, args, kwargs)
        if any(map(_is_looked_into, types)):
            return NotImplemented
        if _must_decompose(func):
            with self, _as_without_a_mode(func):
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if self._before_write is not None and schema_of(func).is_mutable:
            for tensor in _written_to(func, args, kwargs):
                self._before_write(tensor)
        with _as_without_a_mode(func):
            result = func(*args, **kwargs)
        self._keep(lambda: self._described(func, args, kwargs, result))
        return result

    def step_aside(self, call: CompiledCall) -> Return | None:
        """Takes this mode away for a call of compiled code, which is recorded as one operator behind it."""
        if threading.get_ident() != self._thread or self._is_past:
            return None
        modes = _taken_off()

        def back(result: Any) -> After | None:
            for mode in reversed(modes):
                mode.__enter__()
            if not call.is_known:
                self._keep(lambda: self._named(COMPILED + call.name, call.args, call.kwargs, result))
            return None

        return back

    def _keep(self, call: Callable[[], OpCall | Region]) -> None:
        """Records what has run; the operator's result is there already."""
        self.calls.append(call())

    def _described(self, func: OpOverload, args: tuple[Any, ...], kwargs: Any, result: Any) -> OpCall:
        outputs = tuple(value_of(leaf) for leaf in tree_leaves(result))
        return OpCall(operator_name(func), _in_schema_order(func, args, kwargs), outputs, self._scope(args))

    def _named(self, name: str, args: Any, kwargs: Any, result: Any, scope: Scope | None = None) -> OpCall:
        inputs = tuple(map(value_of, tree_leaves((args, kwargs))))
        return OpCall(name, inputs, tuple(map(value_of, tree_leaves(result))), scope or self._scope(args))

    def _record_higher_order(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        self._keep(lambda: self._named(f"higher_order::{func.name()}", args, kwargs, result))
        return result

    def region(self, kind: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a piece that a door leads to: an autograd function is entered, flex attention's kernel goes past."""
        if kind == FLEX_ATTENTION:
            return self.aside(kind, call, args, kwargs)
        return self.enter(kind, call, args, kwargs) if kind.startswith(AUTOGRAD_FUNCTION) else call(*args, **kwargs)

    def enter(self, kind: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a piece that has a name of its own, and records it as one operator with what ran inside."""
        if threading.get_ident() != self._thread or self._is_past:
            return call(*args, **kwargs)
        outer, self.calls = self.calls, []
        outputs: list[Any] = []
        try:
            result = call(*args, **kwargs)
            outputs += tree_leaves(result)
            return result
        finally:  # what ran before a piece raised has run, and the model may catch the error
            body, self.calls = self.calls, outer
            tensors = [leaf for leaf in outputs if isinstance(leaf, torch.Tensor)]
            self._keep(lambda: Region(self._named(kind, args, kwargs, tensors, self._scope(())), tuple(body)))

    def aside(self, kind: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a piece that cannot run under a mode, past this one, and records it as one operator."""
        if threading.get_ident() != self._thread:
            return call(*args, **kwargs)
        self._is_past, before = True, self._is_past
        try:
            with disable_current_modes():
                result = call(*args, **kwargs)
        finally:
            self._is_past = before
        self._keep(lambda: self._named(kind, args, kwargs, result))
        return result


def _taken_off() -> list[DispatchRecorder]:
    """Takes those modes of ours off that are uppermost; below a mode of the user's, nothing is compiled anyway."""
    modes: list[DispatchRecorder] = []
    stack = dispatch_modes()
    while stack and isinstance(mode := stack.pop(), DispatchRecorder):
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        modes.append(mode)
    return modes
