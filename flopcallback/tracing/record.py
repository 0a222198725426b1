"""What an engine leaves: every operator of one run, in order; an operator's shapes are read when somebody asks."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from flopcallback.formulas.op_call import ROOT, OpCall, Scope, Value

__all__ = ["GraphRecord", "Operation", "Record", "Region", "read_value"]

SCOPE_MARK = "flopcallback::scope"
REGION_MARK = "flopcallback::region"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator of a record.

    Attributes:
        operator: schema name without overload.
        scope: the modules that were running.
        node: where it stands in the traced graph; None for what the dispatcher saw.
        body: for a piece that the tracer could not enter (an autograd function, a scripted module): what ran inside
            it. It is counted in place of the operator unless the operator itself has a formula.
        values: what was already read of the graph in this pass over it: one operator's output is another's input.
    """

    operator: str
    scope: Scope
    node: torch.Node | None = None
    values: dict[int, Value] = field(default_factory=dict)
    seen: OpCall | None = None
    body: tuple[Operation, ...] | None = None

    def call(self) -> OpCall:
        """Shapes, dtypes and constants, as a formula wants them."""
        if self.seen is not None:
            return self.seen
        assert self.node is not None
        inputs = tuple(map(self._value, self.node.inputs()))
        return OpCall(self.operator, inputs, tuple(map(self._value, self.node.outputs())), self.scope)

    def _value(self, value: torch.Value) -> Value:
        key = value.unique()
        if (known := self.values.get(key)) is None:
            known = self.values[key] = read_value(value)
        return known


@dataclass(frozen=True, slots=True)
class Region:
    """A piece of a run with a name of its own: an autograd function, or what went past the tracer."""

    call: OpCall
    body: tuple[OpCall | Region, ...] | None  # None: it was not looked into

    def operation(self) -> Operation:
        """The piece as one operation with a body."""
        if self.body is None:
            return Operation(self.call.operator, self.call.scope, seen=self.call)
        return Operation(self.call.operator, self.call.scope, seen=self.call, body=tuple(map(_seen, self.body)))


def _seen(call: OpCall | Region) -> Operation:
    return call.operation() if isinstance(call, Region) else Operation(call.operator, call.scope, seen=call)


@dataclass(frozen=True, slots=True)
class Record:
    """What the dispatcher saw; `beside`: in other threads."""

    calls: Sequence[OpCall | Region]
    beside: Sequence[OpCall | Region] = ()

    def operations(self, *, prune: bool = False) -> Iterator[Operation]:
        """All operators in order; the dispatcher sees no data flow, so `prune` has nothing to go by."""
        yield from map(_seen, self.calls)
        yield from map(_seen, self.beside)


@dataclass(frozen=True, slots=True)
class GraphRecord:
    """What the tracer saw.

    Attributes:
        graph: the whole graph, as it was before any pass; it has to live as long as its nodes are used.
        scopes: what the scope marks in the graph point to.
        regions: what the region marks in the graph point to.
        results: the graph's values for the tensors that the run returned.
        beside: what ran in other threads.
    """

    graph: torch.Graph
    scopes: list[Scope]
    regions: list[Region]
    results: list[torch.Value]
    beside: Sequence[OpCall | Region] = ()

    def lost(self) -> str | None:
        """Tensors that the run made and that have no shape in the graph, nor has what is computed of them."""
        for kind, _ in _nodes(self.graph):
            if kind.startswith(_MAKERS):
                return "nested" if "nested" in kind else "sparse"
        return None

    def operations(self, *, prune: bool = False) -> Iterator[Operation]:
        """All operators in order; with `prune`, only those whose results reach what the run returned."""
        live = _live_nodes(self.graph, self.results) if prune else None
        scope = ROOT
        values: dict[int, Value] = {}
        for index, (kind, node) in enumerate(_nodes(self.graph)):
            if kind == "prim::Constant":  # two nodes of three
                continue
            if kind == SCOPE_MARK:
                scope = self.scopes[node.i("index")]
            elif kind == REGION_MARK:
                yield self.regions[node.i("index")].operation()
            elif not kind.startswith("prim::") and (live is None or index in live) and _has_run(kind, node):
                yield Operation(kind, scope, node, values)
        yield from map(_seen, self.beside)


_MAKERS = (
    "aten::_nested_",
    "aten::to_sparse",
    "aten::_to_sparse",
    "aten::sparse_c",
    "aten::_sparse_c",
    "aten::sparse_b",
)


def _has_run(kind: str, node: torch.Node) -> bool:
    """Whether an operator came back: one that raised, and whose error the model caught, has no outputs."""
    return node.outputsSize() > 0 or kind.startswith("aten::_foreach_")


def read_value(value: torch.Value) -> Value:
    """A value of a traced graph as plain data: a tensor, a list of them, or a constant; else empty."""
    if value.isCompleteTensor():
        of: Any = value.type()
        return Value(tuple(of.sizes()), of.dtype(), of.device())
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
# The same few flags and sizes come again at every convolution. Typed: True and 1 are not one constant.
_shared_constant = functools.lru_cache(maxsize=4096, typed=True)(lambda constant: Value(constant=constant))


def _unpacked(value: torch.Value) -> Value:
    """A list that an operator returned: the tracer unpacks it at once."""
    for use in value.uses():
        if use.user.kind() == "prim::ListUnpack":
            return Value(items=tuple(map(read_value, use.user.outputs())))
    return Value()


def _nodes(block: torch.Graph | torch.Block) -> Iterator[tuple[str, torch.Node]]:
    """All nodes and their kinds in order, those within blocks too.

    We open no block, but whoever calls the tracer's `push_scope` does: fvcore's hooks, for one, which stay on a model
    that it failed on.
    """
    for node in block.nodes():
        kind = node.kind()
        yield kind, node
        if kind == "prim::TracedModuleForward":
            for inner in node.blocks():
                yield from _nodes(inner)


_KEPT = (REGION_MARK, "prim::PythonOp")  # an autograd function is a region too


def _live_nodes(graph: torch.Graph, results: list[torch.Value]) -> set[int]:
    """Positions of the nodes that `results` depend on.

    An operator that writes into an argument counts as a use of everything that may share the argument's memory, so
    `x[0] = f(y)` keeps `f` alive whenever any view of `x` is.
    """
    alias = _AliasSets()
    nodes = [node for _, node in _nodes(graph)]
    for node in nodes:
        for a, b in _aliases(node):
            alias.join(a.unique(), b.unique())
    live = {alias.find(value.unique()) for value in results}
    kept: set[int] = set()
    for index in range(len(nodes) - 1, -1, -1):
        node = nodes[index]
        if node.kind() in _KEPT or any(alias.find(output.unique()) in live for output in node.outputs()):
            kept.add(index)
            live.update(alias.find(value.unique()) for value in node.inputs())
    return kept


def _aliases(node: torch.Node) -> Iterator[tuple[torch.Value, torch.Value]]:
    """Pairs of an input and an output of a node that may share memory: a view, or an argument written to."""
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
    """Disjoint sets of values that may share memory."""

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
