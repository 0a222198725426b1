"""Counts beside a training: what code is written to do, on tensors without values."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flopcallback.formulas.op_call import OpCall, Scope
from flopcallback.modules.names import ModuleNames, storage_of
from flopcallback.modules.snapshot import left_as_found, private_copies
from flopcallback.modules.structures import tensors_in
from flopcallback.modules.wrappers import without_wrappers
from flopcallback.tracing.dispatch import DispatchRecorder
from flopcallback.tracing.observed import DISPATCH, ObservedRun
from flopcallback.tracing.phases import Nodes
from flopcallback.tracing.record import OperatorLog, Region
from flopcallback.tracing.regions import intercept_named, without_compilation, without_fast_paths
from flopcallback.tracing.scopes import ModuleScopes
from flopcallback.tracing.torch_private import (
    current_node,
    disable_current_modes,
    new_fake_mode,
    nodes_so_far,
    number_of,
    tree_map,
)

__all__ = ["NotOnFakes", "Written", "count_as_written"]

DEVICE_OF = torch.ops.prim.device.default

REASON = "compiled code is counted as it is written, beside its call, on tensors without values"


class NotOnFakes(Exception):  # noqa: N818 - nothing went wrong
    """Reason for no count: the call itself, or its backward, raised on fake tensors."""


@dataclass(frozen=True, slots=True)
class Written:
    """A call as it is written.

    Attributes:
        forward: its operators.
        backward: those of a backward through all its results, recomputation included; None where there is none.
        certain: scopes of operators that no compiler leaves out, by id.
    """

    forward: ObservedRun
    backward: ObservedRun | None
    certain: Mapping[int, Scope]

    def has_run(self, call: OpCall) -> bool:
        """Return whether an operator runs however the code is compiled.

        That is, something needs its result, and no other operator has the same one.
        """
        return id(call.scope) in self.certain


def count_as_written(
    call: Callable[..., Any], names: ModuleNames, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Written:
    """Run a call and its backward on fake tensors, with nothing compiled.

    Nothing is computed, and nothing of the training is touched: for the time of the run, the modules have fake tensors
    in the place of their parameters, buffers and other tensors. Their attributes, the random states and the modes are
    restored.

    Args:
        call: the function to run; it works on `names`.
        names: the modules to attribute work to.
        args: positional arguments, real tensors among them.
        kwargs: keyword arguments.

    Raises:
        NotOnFakes: the call needs values of tensors, or something else that fake tensors do not have.
    """
    fakes = _Fakes()
    modules = list(names.unique.values())
    with ExitStack() as stack:
        stack.enter_context(without_wrappers())
        stack.enter_context(disable_current_modes())
        stack.enter_context(_in_their_place(modules, fakes))
        stack.enter_context(left_as_found(modules))
        stack.enter_context(without_compilation(modules))
        stack.enter_context(without_fast_paths())
        stack.enter_context(_without_cast_cache())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # the real call gives those of the model
        fake_args, fake_kwargs = tree_map(fakes.of, private_copies((args, kwargs)))
        return _Run(names, fakes).of(lambda: call(*fake_args, **fake_kwargs))


class _Fakes:
    """Fake tensors in the place of real ones.

    Attributes:
        mode: the mode that they belong to.
    """

    def __init__(self) -> None:
        self.mode = new_fake_mode()
        self._made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # real and fake, by the id of the real one

    def of(self, value: Any) -> Any:
        """Return a fake leaf for a tensor, the same one each time; anything else as it is."""
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self._made:
            # Detached: a view of another tensor, or a result of the user's, would bring what it was made of.
            fake = self.mode.from_tensor(value if value.is_leaf else value.detach())
            self._made[id(value)] = value, fake.requires_grad_(value.requires_grad)
        return self._made[id(value)][1]

    def leaves(self) -> list[torch.Tensor]:
        """Return the fake tensors that a backward gives gradients."""
        return [fake for _, fake in self._made.values() if fake.requires_grad]


@contextmanager
def _in_their_place(modules: Iterable[nn.Module], fakes: _Fakes) -> Iterator[None]:
    """Put fake tensors in the place of all tensors that modules have.

    Into dictionaries and lists directly: a `__setattr__` of the user's notices nothing, and compiled code finds the
    same objects afterwards.
    """
    replaced: list[tuple[Any, Any, torch.Tensor]] = []
    try:
        for module in modules:
            own = vars(module)
            for holder in (own, *own.values()):
                for key, value in list(_items(holder)):
                    if isinstance(value, torch.Tensor):
                        replaced.append((holder, key, value))
                        holder[key] = fakes.of(value)
        yield
    finally:
        for holder, key, value in replaced:
            holder[key] = value


def _items(holder: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(holder, dict):
        return holder.items()
    return enumerate(holder) if isinstance(holder, list) else ()


@contextmanager
def _without_cast_cache() -> Iterator[None]:
    """Keep autocast from remembering weights in another dtype that are fake."""
    is_on = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(is_on)


class _Recorder(DispatchRecorder):
    """Recorder of operators on fake tensors.

    Attributes:
        failure: the first error in recording; raised when the run has ended.
    """

    failure: Exception | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # First: C++ code asks a fake tensor for its device where an error of ours would end the process (2.13).
        if func is DEVICE_OF:
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _keep(self, call: Callable[[], OpCall | Region]) -> None:
        try:
            super()._keep(call)
        except Exception as error:  # noqa: BLE001 - the operator has run, and C++ code may wait for it
            self.failure = self.failure or error


class _Run:
    """One run on fake tensors, and who made the nodes of autograd in it."""

    def __init__(self, names: ModuleNames, fakes: _Fakes) -> None:
        self._names = names
        self._fakes = fakes
        self._scopes = ModuleScopes(names)
        self._nodes = Nodes()
        self._thread = threading.get_ident()
        self._forwards, self._backwards = _Operators(), _Operators()
        self._scopes.on_change = self._begin_nodes

    def of(self, call: Callable[[], Any]) -> Written:
        """Run the call, then a backward through its results."""
        self._begin_nodes(self._scopes.current)
        # In this thread also for tensors of another device, whose backward has a thread of its own.
        with self._scopes.watch(), self._fakes.mode, torch.autograd.set_multithreading_enabled(False):
            result, calls = self._recorded(call, self._scope_in_forward)
            forward = self._forward(calls, result)
            outputs = {id(each): each for each in tensors_in(result) if each.grad_fn is not None}
            leaves = self._fakes.leaves()
            backward = self._backward([*outputs.values()], leaves) if outputs and leaves else None
        if self._scopes.failure is not None:
            raise self._scopes.failure
        certain = [*self._forwards.certain(self._backwards.nodes), *self._backwards.certain()]
        return Written(forward, backward, {id(scope): scope for scope in certain})

    def _forward(self, calls: OperatorLog, result: Any) -> ObservedRun:
        scopes = self._scopes
        # The call itself is the root's, also where it is a function's.
        scopes.calls[""] += 1
        scopes.called.add("")
        if isinstance(result, torch.Tensor) and not result.is_nested:
            scopes.output_shapes[""] = tuple(result.shape)
        return self._run(calls, Counter(scopes.calls), dict(scopes.output_shapes))

    def _backward(self, outputs: list[torch.Tensor], leaves: list[torch.Tensor]) -> ObservedRun:
        def engine() -> None:
            # Not `backward`: a real leaf that the model has in a place where it was not found would get a fake grad.
            torch.autograd.grad(outputs, leaves, list(map(torch.ones_like, outputs)), allow_unused=True)

        _, calls = self._recorded(engine, self._scope_of_node)
        return self._run(calls, Counter(), {})

    def _run(self, calls: OperatorLog, modules: Counter[str], shapes: dict[str, tuple[int, ...]]) -> ObservedRun:
        called, strays = frozenset(self._scopes.called), frozenset(self._scopes.strays)
        return ObservedRun(calls, self._names, modules, called, strays, shapes, DISPATCH, REASON)

    def _recorded(self, call: Callable[[], Any], scope: Callable[[tuple[Any, ...]], Scope]) -> tuple[Any, OperatorLog]:
        recorder = _Recorder(scope)
        with intercept_named(recorder.region), recorder:
            try:
                result = call()
            except Exception as error:
                raise NotOnFakes(str(error)) from error
        if recorder.failure is not None:
            raise recorder.failure
        return result, OperatorLog(recorder.calls)

    def _begin_nodes(self, scope: Scope) -> None:
        self._nodes.begin(self._thread, nodes_so_far(), scope)

    def _scope_in_forward(self, arguments: tuple[Any, ...]) -> Scope:
        # Autograd makes the node of an operator before the operator arrives at the dispatcher.
        needs_grad = torch.is_grad_enabled() and any(
            isinstance(each, torch.Tensor) and each.requires_grad for each in arguments
        )
        node = nodes_so_far() - 1 if needs_grad else None
        return self._forwards.add(self._scopes.scope_of(arguments), arguments, node)

    def _scope_of_node(self, arguments: tuple[Any, ...]) -> Scope:
        """Return the module whose forward made the node at work, or that checkpointing has called again."""
        scope, node = self._scopes.scope_of(arguments), current_node()
        number = None if node is None else number_of(node)
        if number is not None and not scope.module:
            scope = self._nodes.owner(self._thread, number) or scope
        return self._backwards.add(scope, arguments, number)


class _Operators:
    """Operators of a run on fake tensors, each by a scope of its own.

    Attributes:
        nodes: numbers of the nodes of autograd that made or ran them.
    """

    def __init__(self) -> None:
        self.nodes: set[int] = set()
        self._made: list[tuple[Scope, int | None, tuple[Any, ...]]] = []
        self._arguments: list[Any] = []  # kept, so that an id stands for one tensor; fake ones have no memory

    def add(self, scope: Scope, arguments: tuple[Any, ...], node: int | None) -> Scope:
        """Add an operator; return its scope, an equal one that is no other operator's."""
        own = Scope(*scope)
        tensors = [each for each in arguments if isinstance(each, torch.Tensor)]
        self._arguments += tensors
        self._made.append((own, node, tuple(map(_identity, tensors))))
        if node is not None:
            self.nodes.add(node)
        return own

    def certain(self, nodes_run: Collection[int] | None = None) -> Iterator[Scope]:
        """Yield the scopes of operators that no other one repeats.

        Args:
            nodes_run: nodes that a backward has run: the results of their operators are needed. None if all are.
        """
        repeated = Counter(inputs for _, _, inputs in self._made)
        for scope, node, inputs in self._made:
            if repeated[inputs] == 1 and (nodes_run is None or node in nodes_run):
                yield scope


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what two tensors with the same values share, if they are views of the same memory."""
    if tensor.layout != torch.strided:
        return (id(tensor),)
    return storage_of(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
