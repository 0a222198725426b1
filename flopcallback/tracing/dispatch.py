"""Engine that observes operators at PyTorch's dispatcher, below autograd.

Everything of a thread passes there; other threads need a recorder of their own.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import DispatchKey
from torch.nn.parameter import is_lazy

from flopcallback.formulas.attention import PACKED
from flopcallback.formulas.op_call import OpCall, Scope, Value
from flopcallback.formulas.registry import Counted, lookup
from flopcallback.modules.compiled import COMPILED, After, CompiledCall, Return
from flopcallback.tracing.record import AUTOGRAD_FUNCTION, Region
from flopcallback.tracing.regions import FLEX_ATTENTION
from flopcallback.tracing.torch_private import (
    DENSE,
    LOOKED_INTO,
    PLAIN_TENSORS,
    OpOverload,
    OpOverloadPacket,
    TorchDispatchMode,
    as_without_modes,
    disable_current_modes,
    dispatch_modes,
    fake_mode,
    has_python_body,
    nested_shapes,
    operator_name,
    packed_weight,
    python_kernel,
    schema_of,
    stored_values,
    tree_leaves,
    views_are_marked,
)

__all__ = ["DispatchRecorder", "entered_operator", "in_schema_order", "look_up", "value_of"]


def value_of(argument: Any) -> Value:
    """Describe an operator's argument or result by shape, dtype or constant.

    The packed parameters of a quantized layer are described by their weight.
    """
    if isinstance(argument, torch.Tensor):
        if is_lazy(argument):
            return Value(dtype=argument.dtype)
        if argument.is_nested or argument.layout not in DENSE:
            return _without_shape(argument)
        return Value(tuple(argument.shape), argument.dtype, argument.device)
    if isinstance(argument, (list, tuple)):
        if any(isinstance(item, torch.Tensor) for item in argument):
            return Value(items=tuple(map(value_of, argument)))
        return Value(constant=list(argument))
    weight = packed_weight(argument)
    return Value(constant=argument) if weight is None else value_of(weight)


def _without_shape(tensor: torch.Tensor) -> Value:
    """Describe a nested tensor's components or a sparse tensor's stored elements.

    Work on either does not follow from its shape.
    """
    if tensor.is_nested:
        if tensor.layout != torch.strided:  # jagged: operators on its packed values arrive instead
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


def in_schema_order(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Value, ...]:
    """Describe all arguments in the order of the schema, defaults filled in.

    Lengths of packed sequences come with their values: those of a tensor on a device are waited for.
    """
    not_positional = _parameters(func)[len(args) :]
    arguments = (*args, *(kwargs.get(name, default) for name, default in not_positional))
    if (longest := PACKED.get(operator_name(func))) is None:
        return tuple(map(value_of, arguments))
    before, lengths, after = arguments[: longest - 3], arguments[longest - 3 : longest - 1], arguments[longest - 1 :]
    return (*map(value_of, before), *map(_with_values, lengths), *map(value_of, after))


def _with_values(argument: Any) -> Value:
    """Describe a small tensor with its values, where it has any."""
    value = value_of(argument)
    if type(argument) not in PLAIN_TENSORS or argument.is_meta:
        return value
    with disable_current_modes():
        return replace(value, constant=argument.tolist())


def _written_to(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    for position, argument in enumerate(schema_of(func).arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _must_decompose(func: OpOverload) -> bool:
    """Return whether a composite operator has to be decomposed here.

    Such operators are decomposed before they reach the mode, except under `inference_mode`. One that has a formula
    stays whole; both ways give the same count.
    """
    return _is_composite(func) and not isinstance(lookup(operator_name(func)), Counted)


@functools.cache
def _is_composite(func: OpOverload) -> bool:
    try:
        return func.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)
    except RuntimeError:  # an operator without a C++ registration, such as `aten::sym_size`
        return False


@functools.cache
def _is_looked_into(cls: type) -> bool:
    return any((base.__module__, base.__qualname__) in LOOKED_INTO for base in cls.__mro__)


def entered_operator(function: Any, args: Any, kwargs: Any) -> OpOverload | None:
    """Return the operator that a call runs, if a trace of its arguments does not say all that counts.

    It is a library's without a formula, and is composite or has a body in Python; or it takes packed sequences.

    Args:
        function: of a type in `regions.OVERLOADS`.
        args: positional arguments.
        kwargs: keyword arguments.
    """
    if isinstance(function, OpOverloadPacket):
        overloads = function.overloads()
        if len(overloads) != 1:  # which of them it will be is decided below Python
            return None
        function = getattr(function, overloads[0])
    operator: OpOverload = function
    if operator_name(operator) in PACKED:
        return operator
    if not _is_looked_through(operator):
        return None
    tensors = _tensors_of(args, kwargs)
    has_body = _is_composite(operator) or (bool(tensors) and has_python_body(operator, tensors[0].device))
    return operator if has_body else None


def _is_looked_through(func: OpOverload) -> bool:
    """Return whether an operator is a library's, without a formula."""
    name = operator_name(func)
    return not name.startswith(_TORCHS_OWN) and lookup(name) is None


_TORCHS_OWN = ("aten::", "prim::", "prims::")


def _tensors_of(args: Any, kwargs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]


def _as_without_a_mode(func: OpOverload) -> AbstractContextManager[Any]:
    """Let a composite operator mark its views, as without a mode.

    In a mode's handler the dispatch key that marks views is excluded. An unmarked view of a weight has no
    `requires_grad`, and `matmul` then multiplies in another order: the last digits of a `linear` on a transposed input
    would differ (2.13).
    """
    if not (_is_composite(func) or _is_looked_through(func)) or _marks_views(func):
        return nullcontext()
    return views_are_marked()


@functools.cache
def _marks_views(func: OpOverload) -> bool:
    """Return whether an operator marks its views before the mode sees it.

    To mark a view twice is an error.
    """
    return func.has_kernel_for_dispatch_key(DispatchKey.ADInplaceOrView)


def look_up(func: Any) -> None:
    """Fill the caches that decide how an operator is run.

    Afterwards, running it cannot fail here.

    Raises:
        Exception: this version of torch lacks what is asked.
    """
    if isinstance(func, OpOverload) and not _must_decompose(func):
        _as_without_a_mode(func)


class DispatchRecorder(TorchDispatchMode):
    """Dispatch mode that records every operator of its thread.

    Attributes:
        calls: recorded operators and regions, in order.

    Args:
        scope: returns the running modules, given the arguments of the operator.
        before_write: called with every tensor that is about to be written to.
        entered: operator that is being entered: what runs inside it is recorded without it.
    """

    # Higher-order operators (`cond`, flex attention) arrive as well and count as unknown; without this they raise.
    supports_higher_order_operators = True

    def __init__(
        self,
        scope: Callable[[tuple[Any, ...]], Scope],
        before_write: Callable[[torch.Tensor], None] | None = None,
        entered: str = "",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[OpCall | Region] = []
        self._entered = entered
        self._scope = scope
        self._thread = threading.get_ident()
        self._before_write = before_write
        self._is_suspended = False  # while a piece runs without modes: nothing inside of it is recorded
        # The fake mode around the call, if any. Operators under another one only compute shapes.
        self._fake_mode = fake_mode()

    def __enter__(self) -> Any:
        self._fake_mode = fake_mode()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if fake_mode() is not self._fake_mode:  # a distributed tensor computes the shape of a result on fake tensors
            return func(*args, **kwargs)
        if not isinstance(func, OpOverload):
            return self._record_higher_order(func, args, kwargs)
        if any(map(_is_looked_into, types)):  # the operators on the tensors inside will arrive
            return NotImplemented
        if _must_decompose(func):
            with self, _as_without_a_mode(func):
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if self._before_write is not None and schema_of(func).is_mutable:
            for tensor in _written_to(func, args, kwargs):
                self._before_write(tensor)
        kernel = python_kernel(func, _tensors_of(args, kwargs)) if _is_looked_through(func) else None
        if kernel is not None:
            return self._enter_operator(func, kernel, args, kwargs)
        with _as_without_a_mode(func):
            result = func(*args, **kwargs)
        self._keep(lambda: self._described(func, args, kwargs, result))
        return result

    def _enter_operator(self, func: OpOverload, kernel: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the Python code of a library's operator, and record what runs inside."""
        result: Any = None
        outer, self.calls = self.calls, []
        try:
            with as_without_modes(func), self, _as_without_a_mode(func):
                result = kernel(*args, **kwargs)
            return result
        finally:  # also after an error, as in `enter`
            body, self.calls = self.calls, outer
            if operator_name(func) == self._entered:
                self.calls += body
            else:
                self._keep(lambda: Region.of_operator(self._described(func, args, kwargs, result), body))

    def step_aside(self, call: CompiledCall) -> Return | None:
        """Leave this mode for compiled code, and record that as one operator."""
        if threading.get_ident() != self._thread or self._is_suspended:
            return None
        modes = _exit_topmost_recorders()

        def back(result: Any) -> After | None:
            for mode in reversed(modes):
                mode.__enter__()
            if not call.is_known:
                self._keep(lambda: self._named(COMPILED + call.name, call.args, call.kwargs, result))
            return None

        return back

    def _keep(self, call: Callable[[], OpCall | Region]) -> None:
        """Record an operator that has run.

        Takes a function, so that a subclass can guard against errors in the description.
        """
        self.calls.append(call())

    def _described(self, func: OpOverload, args: tuple[Any, ...], kwargs: Any, result: Any) -> OpCall:
        outputs = tuple(value_of(leaf) for leaf in tree_leaves(result))
        return OpCall(operator_name(func), in_schema_order(func, args, kwargs), outputs, self._scope(args))

    def _named(self, name: str, args: Any, kwargs: Any, result: Any, scope: Scope | None = None) -> OpCall:
        inputs = tuple(map(value_of, tree_leaves((args, kwargs))))
        return OpCall(name, inputs, tuple(map(value_of, tree_leaves(result))), scope or self._scope(args))

    def _record_higher_order(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        self._keep(lambda: self._named(f"higher_order::{func.name()}", args, kwargs, result))
        return result

    def region(self, kind: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an intercepted piece of a call.

        An autograd function is recorded with the operators inside, flex attention's kernel as a single operator.

        Args:
            kind: name of the piece, `prim::PythonOp.Swish`.
            call: the piece.
            args: positional arguments.
            kwargs: keyword arguments.
        """
        if kind == FLEX_ATTENTION:
            return self.aside(kind, call, args, kwargs)
        return self.enter(kind, call, args, kwargs) if kind.startswith(AUTOGRAD_FUNCTION) else call(*args, **kwargs)

    def enter(self, kind: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a piece, and record it as a region with its operators."""
        if threading.get_ident() != self._thread or self._is_suspended:
            return call(*args, **kwargs)
        outer, self.calls = self.calls, []
        outputs: list[Any] = []
        try:
            result = call(*args, **kwargs)
            outputs += tree_leaves(result)
            return result
        finally:  # also after an error: its operators have run, and the model may catch the error
            body, self.calls = self.calls, outer
            tensors = [leaf for leaf in outputs if isinstance(leaf, torch.Tensor)]
            self._keep(lambda: Region(self._named(kind, args, kwargs, tensors, self._scope(())), tuple(body)))

    def aside(self, kind: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a piece without modes, and record it as one operator."""
        if threading.get_ident() != self._thread:
            return call(*args, **kwargs)
        self._is_suspended, before = True, self._is_suspended
        try:
            with disable_current_modes():
                result = call(*args, **kwargs)
        finally:
            self._is_suspended = before
        self._keep(lambda: self._named(kind, args, kwargs, result))
        return result


def _exit_topmost_recorders() -> list[DispatchRecorder]:
    """Exit our modes on top of the stack, and return them.

    One below a mode of the user's stays: under that mode, nothing runs compiled anyway.
    """
    modes: list[DispatchRecorder] = []
    stack = dispatch_modes()
    while stack and isinstance(mode := stack.pop(), DispatchRecorder):
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        modes.append(mode)
    return modes
