"""What the formula tests stand on: operator calls built by hand, and the calls that torch really makes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flopcallback.formulas.cost import Cost
from flopcallback.formulas.op_call import OpCall, Value
from flopcallback.formulas.registry import Counted, Free, lookup

Function = Callable[..., Any]


@pytest.fixture(scope="session")
def tensor() -> Callable[..., Value]:
    """`tensor(2, 3)` is the Value of a 2x3 tensor; `tensor()` has no dimension; `dtype=` as usual."""

    def build(*shape: int, dtype: torch.dtype = torch.float32) -> Value:
        return Value(shape=shape, dtype=dtype, device=torch.device("cpu"))

    return build


@pytest.fixture(scope="session")
def op_call() -> Callable[..., OpCall]:
    """`op_call("aten::cat", [tensor(2), tensor(3)], 0, out=tensor(5))`: what is no Value becomes a constant."""

    def build(operator: str, *inputs: Any, out: Value | Sequence[Value] = ()) -> OpCall:
        outputs = (out,) if isinstance(out, Value) else tuple(out)
        return OpCall(operator, tuple(map(_value, inputs)), outputs)

    return build


@pytest.fixture(scope="session")
def traced_calls() -> Callable[..., list[OpCall]]:
    """`traced_calls(fn, *inputs)`: what the JIT tracer records, in order; the inputs are tensors."""
    return _traced_calls


@pytest.fixture(scope="session")
def dispatched_calls() -> Callable[..., list[OpCall]]:
    """`dispatched_calls(fn, *inputs)`: what reaches the dispatcher, backward included, in order; any inputs."""
    return _dispatched_calls


@pytest.fixture(scope="session")
def total_cost() -> Callable[[Iterable[OpCall]], Cost]:
    """The sum over calls by the registry; an unknown operator is an error."""

    def add_up(calls: Iterable[OpCall]) -> Cost:
        return sum(map(_cost, calls), Cost())

    return add_up


@pytest.fixture(scope="session")
def both_engines() -> Callable[..., Cost]:
    """The cost as traced, after a check that what really runs adds up to the same in the default total.

    Weights of a module are frozen: the tracer takes none that requires grad from outside.
    """

    def count(fn: Function, *inputs: torch.Tensor) -> Cost:
        if isinstance(fn, torch.nn.Module):
            fn.requires_grad_(False)
        traced = sum(map(_cost, _traced_calls(fn, *inputs)), Cost())
        dispatched = sum(map(_cost, _dispatched_calls(fn, *inputs)), Cost())
        assert (traced.fma, traced.other) == (dispatched.fma, dispatched.other)
        return traced

    return count


def _cost(call: OpCall) -> Cost:
    entry = lookup(call.operator)
    if isinstance(entry, Counted):
        return entry.formula(call)
    assert isinstance(entry, Free), f"{call.operator} is unknown"
    return Cost()


def _traced_calls(fn: Function, *inputs: torch.Tensor) -> list[OpCall]:
    calls: list[OpCall] = []

    def record(*traced: torch.Tensor) -> torch.Tensor:
        fn(*traced)
        graph = torch._C._get_tracing_state().graph()
        calls.extend(_call_of_node(node) for node in graph.nodes() if not node.kind().startswith("prim::"))
        return traced[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # sizes as Python numbers, which opt_einsum takes
        torch._C._create_graph_by_tracing(record, inputs, lambda value: "", True, False, None, [])
    return calls


def _call_of_node(node: Any) -> OpCall:
    return OpCall(
        node.kind(),
        tuple(_value_of_edge(edge) for edge in node.inputs()),
        tuple(_value_of_edge(edge) for edge in node.outputs()),
    )


def _value_of_edge(edge: Any) -> Value:
    if edge.isCompleteTensor():
        kind = edge.type()
        return Value(shape=tuple(kind.sizes()), dtype=kind.dtype(), device=kind.device())
    if edge.node().kind() == "prim::ListConstruct":
        elements = tuple(map(_value_of_edge, edge.node().inputs()))
        if any(element.is_tensor for element in elements):
            return Value(items=elements)
        return Value(constant=[element.constant for element in elements])
    return Value(constant=edge.toIValue())


def _dispatched_calls(fn: Function, *inputs: Any) -> list[OpCall]:
    recorder = _Recorder()
    with recorder:
        fn(*inputs)
    return recorder.calls


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[OpCall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = tuple(
            _value(args[position] if position < len(args) else kwargs.get(argument.name, argument.default_value))
            for position, argument in enumerate(func._schema.arguments)
        )
        outputs = tuple(map(_value, result)) if isinstance(result, tuple) else (_value(result),)
        self.calls.append(OpCall(func._schema.name, inputs, outputs))
        return result


def _value(thing: Any) -> Value:
    if isinstance(thing, Value):
        return thing
    if isinstance(thing, torch.Tensor):
        return Value(shape=tuple(thing.shape), dtype=thing.dtype, device=thing.device)
    if isinstance(thing, (list, tuple)) and any(isinstance(item, (torch.Tensor, Value)) for item in thing):
        return Value(items=tuple(map(_value, thing)))
    return Value(constant=thing)
