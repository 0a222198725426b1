"""Logs of the operators of a run, as the engines leave them.

The shapes of a traced operator are read from the graph when they are asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from flopcallback.formulas.op_call import ROOT, OpCall, Scope, Value
from flopcallback.formulas.registry import Free, lookup

__all__ = [
    "AUTOGRAD_FUNCTION",
    "GraphLog",
    "Operation",
    "OperatorLog",
    "Region",
    "leaves_memory_empty",
    "leaves_some_empty",
    "read_value",
]

AUTOGRAD_FUNCTION = "prim::PythonOp."  # the tracer's prefix; the name of the function's class follows
# Kinds of the nodes that we insert into a traced graph. Their attribute `index` refers to `GraphLog.scopes` and
# `GraphLog.regions`.
SCOPE_MARK = "flopcallback::scope"
REGION_MARK = "flopcallback::region"


@dataclass(slots=True)
class Operation:
    """One operator of a log.

    Attributes:
        operator: schema name without overload.
        scope: the modules that were running.
        node: its node in the traced graph; None if the dispatcher saw it.
        values: cache of the values read so far in this pass over the graph: one operator's output is another's input.
        seen: shapes and constants, as the dispatcher saw them, or once they were read from the graph.
        body: the operators inside a piece that the tracer could not enter (an autograd function, a scripted module).
            They are counted in place of the operator unless it has a formula of its own.
    """

    operator: str
    scope: Scope
    node: torch.Node | None = None
    values: dict[int, Value] = field(default_factory=dict)
    seen: OpCall | None = None
    body: tuple[Operation, ...] | None = None

    def call(self) -> OpCall:
        """Return the shapes, dtypes and constants that formulas take."""
        if self.seen is None:
            assert self.node is not None
            inputs, outputs = map(self._value, self.node.inputs()), map(self._value, self.node.outputs())
            self.seen = OpCall(self.operator, tuple(inputs), tuple(outputs), self.scope)
        return self.seen

    def _value(self, value: torch.Value) -> Value:
        key = value.unique()
        if (cached := self.values.get(key)) is None:
            cached = self.values[key] = read_value(value)
        return cached


@dataclass(frozen=True, slots=True)
class Region:
    """A named piece of a run, with a body of operators.

    An autograd function, or code that the tracer cannot enter.
    """

    call: OpCall
    body: tuple[OpCall | Region, ...] | None  # None: it was not entered, as compiled code is not

    def operation(self) -> Operation:
        """Return the region as one operation with a body."""
        if self.body is None:
            return Operation(self.call.operator, self.call.scope, seen=self.call)
        return Operation(self.call.operator, self.call.scope, seen=self.call, body=tuple(map(_seen, self.body)))

    @classmethod
    def of_operator(cls, call: OpCall, body: Sequence[OpCall | Region]) -> Region:
        """Return a library's operator with what could be seen of its work.

        Where a kernel that PyTorch does not see did some of it, the operator itself is unknown among what it did.
        """
        names = set(_names(body))
        if all(isinstance(lookup(name), Free) for name in names):
            return cls(call, None)
        return cls(call, (*body, call) if leaves_some_empty(names) else tuple(body))


def _names(body: Iterable[OpCall | Region]) -> Iterator[str]:
    """Yield the operators of a body, with those inside of autograd functions."""
    for inner in body:
        if isinstance(inner, Region) and inner.call.operator.startswith(AUTOGRAD_FUNCTION):
            yield from _names(inner.body or ())
        else:
            yield inner.call.operator if isinstance(inner, Region) else inner.operator


def _seen(call: OpCall | Region) -> Operation:
    return call.operation() if isinstance(call, Region) else Operation(call.operator, call.scope, seen=call)


# Operators that allocate memory and write nothing to it.
_EMPTY = frozenset(
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
)


def leaves_memory_empty(operators: Collection[str]) -> bool:
    """Return whether no operator of a body can have computed its result.

    Then a kernel did the work, unseen by PyTorch. It is so if nothing ran at all, or if memory was allocated and every
    operator is free and writes nothing.
    """
    makes = not operators or not _EMPTY.isdisjoint(operators)
    return makes and not any(_may_write(name) for name in operators)


def _may_write(operator: str) -> bool:
    row = lookup(operator)
    # What other processes have sent is written to memory that was allocated for it.
    return operator.endswith("_") or not isinstance(row, Free) or row.reason == "communication"


def leaves_some_empty(operators: Collection[str]) -> bool:
    """Return whether memory was allocated, and no operator by its name writes to any.

    Then a kernel wrote to it, unseen by PyTorch, or it is not used.
    """
    return not _EMPTY.isdisjoint(operators) and not any(name.endswith("_") for name in operators)


@dataclass(frozen=True, slots=True)
class OperatorLog:
    """Operators that the dispatcher saw, or PyTorch's profiler.

    Attributes:
        calls: operators of the thread that made the call, in order.
        beside: operators of other threads.
    """

    calls: Sequence[OpCall | Region]
    beside: Sequence[OpCall | Region] = ()

    def operations(self, *, prune: bool = False) -> Iterator[Operation]:
        """Yield all operators in order.

        `prune` has no effect: the dispatcher sees no data flow.
        """
        yield from map(_seen, self.calls)
        yield from map(_seen, self.beside)


@dataclass(frozen=True, slots=True)
class GraphLog:
    """Operators that the tracer saw.

    Attributes:
        graph: the whole graph, before any pass; it has to live as long as its nodes are used.
        scopes: the scopes that the marks in the graph refer to, by index.
        regions: the regions that the marks in the graph refer to, by index.
        results: the graph's values for the tensors that the run returned.
        beside: operators of other threads, which the dispatcher saw.
    """

    graph: torch.Graph
    scopes: list[Scope]
    regions: list[Region]
    results: list[torch.Value]
    beside: Sequence[OpCall | Region] = ()

    def lost(self) -> str | None:
        """Return the kind of tensors without shapes in the graph, or None.

        `"nested"` or `"sparse"`, if the run made such tensors: neither they nor the results computed from them have
        shapes in the graph.
        """
        for kind, _ in _nodes(self.graph):
            if kind.startswith(_MAKERS):
                return "nested" if "nested" in kind else "sparse"
        return None

    def operations(self, *, prune: bool = False) -> Iterator[Operation]:
        """Yield all operators in order.

        With `prune`, only those that the results of the run depend on.
        """
        live = _live_nodes(self.graph, self.results) if prune else None
        scope = ROOT
        values: dict[int, Value] = {}
        for index, (kind, node) in enumerate(_nodes(self.graph)):
            if kind == "prim::Constant":  # first, as two of three nodes are constants
                continue
            if kind == SCOPE_MARK:
                scope = self.scopes[node.i("index")]
            elif kind == REGION_MARK:
                yield self.regions[node.i("index")].operation()
            elif not kind.startswith("prim::") and (live is None or index in live) and _has_run(kind, node):
                yield Operation(kind, scope, node, values)
        yield from map(_seen, self.beside)


# Beginnings of the operators that make nested or sparse tensors.
_MAKERS = (
    "aten::_nested_",
    "aten::to_sparse",
    "aten::_to_sparse",
    "aten::sparse_c",
    "aten::_sparse_c",
    "aten::sparse_b",
)


def _has_run(kind: str, node: torch.Node) -> bool:
    """Return whether an operator ended without an error.

    One that raised an error, which the model caught, has a node without outputs.
    """
    return node.outputsSize() > 0 or kind.startswith("aten::_foreach_")  # the in-place ones return nothing


def read_value(value: torch.Value) -> Value:
    """Convert a value of a traced graph to plain data.

    Returns:
        A tensor, a list of tensors, or a constant; else an empty `Value`.
    """
    if value.isCompleteTensor():
        tensor_type: Any = value.type()
        return Value(
            tuple(tensor_type.sizes()),
            tensor_type.dtype(),
            tensor_type.device(),
            needs_grad=tensor_type.requires_grad(),
        )
    node = value.node()
    kind = node.kind()
    if kind == "prim::Constant":
        return _constant(value.toIValue())
    if kind == "prim::ListConstruct":
        items = tuple(map(read_value, node.inputs()))
        if any(item.is_tensor for item in items):
            return Value(items=items)
        return Value(constant=[item.constant for item in items])
    if value.type().kind() == "ListType":
        return _unpacked(value)
    return Value()


def _constant(constant: Any) -> Value:
    return _shared_constant(constant) if type(constant) in _COMMON else Value(constant=constant)


_COMMON = frozenset({bool, int, float, str, type(None)})
# Every convolution has the same few flags and sizes. `typed`, since True and 1 are different constants.
_shared_constant = functools.lru_cache(maxsize=4096, typed=True)(lambda constant: Value(constant=constant))


def _unpacked(value: torch.Value) -> Value:
    """Read an operator's list of results from the node that unpacks it."""
    for use in value.uses():
        if use.user.kind() == "prim::ListUnpack":
            return Value(items=tuple(map(read_value, use.user.outputs())))
    return Value()


def _nodes(block: torch.Graph | torch.Block) -> Iterator[tuple[str, torch.Node]]:
    """Yield every node with its kind in order, also inside blocks.

    We open no block, but whoever calls the tracer's `push_scope` does, such as fvcore's hooks, which stay on a model
    after fvcore has failed on it.
    """
    for node in block.nodes():
        kind = node.kind()
        yield kind, node
        if kind == "prim::TracedModuleForward":
            for inner in node.blocks():
                yield from _nodes(inner)


_KEPT = (REGION_MARK, "prim::PythonOp")  # an autograd function is a region too


def _live_nodes(graph: torch.Graph, results: list[torch.Value]) -> set[int]:
    """Return the positions of the nodes that `results` depend on.

    An operator that writes to an argument counts as a use of everything that may share the argument's memory: after
    `x[0] = f(y)`, `f` is live if any view of `x` is.
    """
    alias = _AliasSets()
    nodes = [node for _, node in _nodes(graph)]
    for node in nodes:
        for a, b in _aliases(node):
            alias.join(a.unique(), b.unique())
    live_values = {alias.find(value.unique()) for value in results}
    live_nodes: set[int] = set()
    for index in range(len(nodes) - 1, -1, -1):
        node = nodes[index]
        # A region ran past the tracer, and what it wrote to is not in the graph: regions are always live.
        if node.kind() in _KEPT or any(alias.find(output.unique()) in live_values for output in node.outputs()):
            live_nodes.add(index)
            live_values.update(alias.find(value.unique()) for value in node.inputs())
    return live_nodes


def _aliases(node: torch.Node) -> Iterator[tuple[torch.Value, torch.Value]]:
    """Yield pairs of a node's inputs and outputs that may share memory.

    The output is then a view of the input, or the input itself, written to.
    """
    if node.kind() in ("prim::ListConstruct", "prim::ListUnpack", "prim::TupleConstruct", "prim::TupleUnpack"):
        yield from ((i, o) for i in node.inputs() for o in node.outputs())
        return
    inputs = list(node.inputs())
    outputs = list(node.outputs())
    if not node.kind().startswith("aten::") or not inputs or not outputs:
        return
    if _shares_memory(node.schema()):
        yield from ((inputs[0], output) for output in outputs)


def _shares_memory(schema: str) -> bool:
    return "Tensor(" in schema.partition("->")[2]


class _AliasSets:
    """Disjoint sets (union-find) of values that may share memory."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def find(self, value: int) -> int:
        root = value
        while (above := self._parent.get(root, root)) != root:
            root = above
        self._parent[value] = root
        return root

    def join(self, a: int, b: int) -> None:
        self._parent[self.find(a)] = self.find(b)
