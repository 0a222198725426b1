"""Copies of traced nodes, for calls that differ only by their tensors.

At every node, constants included, the tracer writes the whole Python stack down: some 20 us and 3 KB. A convolution is
eighteen nodes. Layers repeat, and a copy shares constants and text with the original.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from flopcallback.tracing.torch_private import (
    get_value_trace,
    is_any_autocast_enabled,
    set_tracing_state,
    set_value_trace,
)

__all__ = ["Repeats"]

_PLAIN_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})
_CONSTANTS = frozenset(
    {
        int,
        float,
        complex,
        bool,
        str,
        type(None),
        type(...),
        torch.dtype,
        torch.device,
        torch.layout,
        torch.memory_format,
    }
)
_SEQUENCES = frozenset({tuple, list, torch.Size})
_LONGEST_SEQUENCE = 16  # of sizes, strides, indices; longer ones are data


class _Unusual(Exception):  # noqa: N818 - nothing went wrong
    """Signal that a call has an argument without a form."""


class _Pattern(NamedTuple):
    """The node of a form's only operator, and positions of its tensors."""

    node: torch.Node
    positions: dict[int, int]


class Repeats:
    """Cache of traced nodes by the form of the call.

    Args:
        graph: the graph under way.
    """

    def __init__(self, graph: torch.Graph) -> None:
        self._graph = graph
        self._patterns: dict[Hashable, _Pattern | None] = {}

    def call(self, state: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function in C, traced or with a copied node.

        Args:
            state: the tracing state, to be restored.
            function: what to call.
            args: positional arguments.
            kwargs: keyword arguments.

        Raises:
            Exception: whatever the function raises; the tracer's complaint about an unseen tensor that requires grad.
        """
        tensors: list[torch.Tensor] = []
        try:
            form = _form(function, args, kwargs, tensors)
        except _Unusual:
            return function(*args, **kwargs)
        if form not in self._patterns:
            return self._learn(form, function, args, kwargs, tensors)
        pattern = self._patterns[form]
        if pattern is None:
            return function(*args, **kwargs)
        values = [get_value_trace(tensor) for tensor in tensors]
        set_tracing_state(None)
        try:
            result = function(*args, **kwargs)
        finally:
            set_tracing_state(state)
        self._copy(pattern, values, _outputs(result))
        return result

    def _learn(
        self,
        form: Hashable,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: Iterable[torch.Tensor],
    ) -> Any:
        positions = {get_value_trace(tensor).unique(): position for position, tensor in enumerate(tensors)}
        end = self._graph.return_node()
        before = end.prev()
        result = function(*args, **kwargs)
        new: list[torch.Node] = []
        node = end.prev()
        while node.isAfter(before):
            new.append(node)
            node = node.prev()
        self._patterns[form] = _pattern(new, positions, _outputs(result))
        return result

    def _copy(self, pattern: _Pattern, values: Sequence[torch.Value], results: Sequence[torch.Tensor]) -> None:
        def mapped(value: torch.Value) -> torch.Value:
            position = pattern.positions.get(value.unique())
            return value if position is None else values[position]

        node = self._graph.createClone(pattern.node, mapped)  # type: ignore[attr-defined]
        self._graph.insertNode(node)
        for output, tensor in zip(node.outputs(), results, strict=True):
            output.inferTypeFrom(tensor)
            set_value_trace(tensor, output)


def _pattern(new: Iterable[torch.Node], positions: dict[int, int], results: Sequence[torch.Tensor]) -> _Pattern | None:
    """Return the pattern of nodes that are one operator, else None."""
    operators, constants = [], set()
    for node in new:
        kind = node.kind()
        if kind == "prim::Constant" or (kind == "prim::ListConstruct" and _is_constant(node)):
            constants.add(node.output().unique())
        else:
            operators.append(node)
    if len(operators) != 1 or not operators[0].kind().startswith("aten::"):
        return None
    (operator,) = operators
    inputs = {value.unique() for value in operator.inputs()}
    outputs = [value.unique() for value in operator.outputs()]
    is_whole = inputs <= constants | positions.keys() and bool(outputs)
    if not is_whole or [get_value_trace(result).unique() for result in results] != outputs:
        return None
    return _Pattern(operator, positions)


def _is_constant(node: torch.Node) -> bool:
    return all(value.node().kind() == "prim::Constant" for value in node.inputs())


def _outputs(result: Any) -> Sequence[torch.Tensor]:
    """Return the tensors of an operator's result; none for any other result."""
    if isinstance(result, torch.Tensor):
        return (result,)
    if isinstance(result, tuple) and all(isinstance(item, torch.Tensor) for item in result):
        return result
    return ()


def _form(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[torch.Tensor]
) -> Hashable:
    """Return all that decides which nodes a call makes.

    That is the function, its constants, and the ranks and dtypes of its tensors.

    Under autocast it would not be all: casts of weights are made once and kept.
    """
    if "out" in kwargs or is_any_autocast_enabled():
        raise _Unusual
    named = [(name, _part(value, tensors)) for name, value in kwargs.items()]
    return (function, *[_part(value, tensors) for value in args], *named)


def _part(value: Any, tensors: list[torch.Tensor]) -> Hashable:
    kind = type(value)
    if kind in _PLAIN_TENSORS:
        for position, tensor in enumerate(tensors):
            if tensor is value:
                return ("again", position)
        tensors.append(value)
        return (value.dim(), value.dtype)
    if kind in _CONSTANTS:
        return (kind, value)
    if kind in _SEQUENCES and len(value) <= _LONGEST_SEQUENCE:
        return (kind, *[_element(item) for item in value])
    if kind is slice:
        return (kind, _element(value.start), _element(value.stop), _element(value.step))
    raise _Unusual


def _element(value: Any) -> Hashable:
    """Return the form of an element of a sequence or a slice.

    It must be no tensor: the tracer puts those into a list.
    """
    if type(value) in _PLAIN_TENSORS:
        raise _Unusual
    return _part(value, [])
