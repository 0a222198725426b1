"""Counts beside a training: what code is written to do, on tensors without values."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flopcallback.formulas.op_call import Scope
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.snapshot import left_as_found, private_copies
from flopcallback.modules.structures import tensors_in
from flopcallback.modules.wrappers import without_wrappers
from flopcallback.tracing.dispatch import DispatchRecorder
from flopcallback.tracing.observed import DISPATCH, ObservedRun
from flopcallback.tracing.phases import Nodes
from flopcallback.tracing.record import OperatorLog
from flopcallback.tracing.regions import intercept_named, without_compilation, without_fast_paths
from flopcallback.tracing.run import filtered_warnings
from flopcallback.tracing.scopes import ModuleScopes
from flopcallback.tracing.torch_private import (
    current_node,
    disable_current_modes,
    new_fake_mode,
    nodes_so_far,
    number_of,
    tree_map,
)

__all__ = ["Written", "count_as_written"]

REASON = "compiled code is counted as it is written, beside its call, on tensors without values"


@dataclass(frozen=True, slots=True)
class Written:
    """A call as it is written.

    Attributes:
        forward: its operators.
        backward: those of a backward through all its results, recomputation included; None where there is none.
    """

    forward: ObservedRun
    backward: ObservedRun | None


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
        Exception: the call needs values of tensors, or something else that fake tensors do not have.
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
        stack.enter_context(filtered_warnings("none"))  # the real call gives those of the model
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


class _Run:
    """One run on fake tensors, and who made the nodes of autograd in it."""

    def __init__(self, names: ModuleNames, fakes: _Fakes) -> None:
        self._names = names
        self._fakes = fakes
        self._scopes = ModuleScopes(names)
        self._nodes = Nodes()
        self._thread = threading.get_ident()
        self._scopes.on_change = self._begin_nodes

    def of(self, call: Callable[[], Any]) -> Written:
        """Run the call, then a backward through its results."""
        self._begin_nodes(self._scopes.current)
        # In this thread also for tensors of another device, whose backward has a thread of its own.
        with self._scopes.watch(), self._fakes.mode, torch.autograd.set_multithreading_enabled(False):
            result, calls = self._recorded(call, self._scopes.scope_of)
            forward = self._forward(calls, result)
            outputs = {id(each): each for each in tensors_in(result) if each.grad_fn is not None}
            leaves = self._fakes.leaves()
            backward = self._backward([*outputs.values()], leaves) if outputs and leaves else None
        if self._scopes.failure is not None:
            raise self._scopes.failure
        return Written(forward, backward)

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
        recorder = DispatchRecorder(scope)
        with intercept_named(recorder.region), recorder:
            result = call()
        return result, OperatorLog(recorder.calls)

    def _begin_nodes(self, scope: Scope) -> None:
        self._nodes.begin(self._thread, nodes_so_far(), scope)

    def _scope_of_node(self, arguments: tuple[Any, ...]) -> Scope:
        """Return the module whose forward made the node at work, or that checkpointing has called again."""
        running = self._scopes.scope_of(arguments)
        node = current_node()
        if running.module or node is None:
            return running
        return self._nodes.owner(self._thread, number_of(node)) or running
