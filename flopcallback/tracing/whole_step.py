"""The whole training step as it really ran, seen from below: forward, backward, recomputation, optimizer, by module."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from flopcallback.formulas.op_call import ROOT, OpCall, Scope
from flopcallback.modules.attempt import call_once
from flopcallback.modules.compiled import CompiledCall, CompiledCode, Return, in_use, stepping_aside
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.wrappers import wrap_on_instance
from flopcallback.tracing.dispatch import DispatchRecorder, look_up
from flopcallback.tracing.record import Record, Region
from flopcallback.tracing.regions import intercept_named, replaced
from flopcallback.tracing.run import DISPATCH, ObservedRun
from flopcallback.tracing.scopes import ModuleScopes
from flopcallback.tracing.torch_private import backward_engine, current_node, nodes_so_far, number_of, tree_leaves

__all__ = ["BACKWARD", "FORWARD", "OPTIMIZER", "PHASES", "RECOMPUTE", "StepObserver"]

PHASES = FORWARD, BACKWARD, RECOMPUTE, OPTIMIZER = "forward", "backward", "recompute", "optimizer"

COMPILED_NODE = "CompiledFunctionBackward"
"""What the node of a compiled forward is called in the graph (2.13, 2.14)."""

REASON = "a step is seen whole from below autograd"


class _StepDispatchRecorder(DispatchRecorder):
    """Whatever it fails at, the operator has run, and its result goes on.

    Attributes:
        failure: what the record failed at; it is not complete then.
    """

    failure: Exception | None = None

    def __init__(self, scope: Callable[[tuple[Any, ...]], Scope]) -> None:
        super().__init__(scope)
        self._known: set[Any] = set()  # operators that were looked up

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self._known and self.failure is None:
            try:
                look_up(func)
                self._known.add(func)
            except Exception as error:  # noqa: BLE001 - the operator is the training's, and runs
                self.failure = error
        if self.failure is not None:
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def region(self, kind: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As of a count, but what fails around the piece does not keep it from being run, once."""
        region = super().region

        def around(attempt: Callable[[], Any]) -> None:
            region(kind, lambda *_, **__: attempt(), args, kwargs)

        made = call_once(functools.partial(call, *args, **kwargs), around)
        self.failure = self.failure or made.failure
        return made.result

    def _keep(self, call: Callable[[], OpCall | Region]) -> None:
        if self.failure is None:
            try:
                super()._keep(call)
            except Exception as error:  # noqa: BLE001 - the training step is under way
                self.failure = error


class StepObserver:
    """Records every operator of one training step, with its phase and the module that it is done for.

    The step is inside `with watching():`. Operators are seen in calls that are made inside `with on():`, in each
    backward, and in the optimizers' steps; nothing of the mode is active in the user's code in between, so that no
    exception, no `break` and no mode of the user's can meet it. Compiled code meets none either: it runs as it is, and
    the step is not observed from there on.

    A backward operator belongs to the module whose forward made the node of the graph that it runs for. Nodes are
    numbered in the order in which they are made, and know their number. Work that autograd does with grad mode on
    without having been asked for a graph is a recomputation, as is any module's call within a backward.

    Args:
        names: the modules.
        optimizers: those whose steps are to be seen.
    """

    def __init__(self, names: ModuleNames, optimizers: Iterable[Any] = ()) -> None:
        self._names = names
        self._optimizers = tuple(optimizers)
        self._scopes = ModuleScopes(names)
        self._recorder = _StepDispatchRecorder(self._place)
        self._phases: dict[int, str] = {}  # by the identity of the scopes that `_placed` makes
        self._places: dict[tuple[str, Scope], Scope] = {}
        self._owners: dict[int, Scope] = {}  # of the nodes of the graph, by their numbers
        # Those under way: the phase, whether it makes a graph, and the modules that were running when it began.
        self._backwards: list[tuple[str, bool, Scope]] = []
        self._thread = threading.get_ident()
        self._depth = self._forwards = self._optimizer_steps = 0
        self._failure: Exception | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Puts what tells modules, backwards and optimizers apart around a step, and takes it away again."""
        with ExitStack() as undo:
            undo.enter_context(self._scopes.watch())
            for owner, name in backward_engine():
                undo.enter_context(replaced(owner, name, self._around_backward))
            undo.enter_context(stepping_aside(self._step_aside, self._note))
            for optimizer in self._optimizers:
                wrap_on_instance(optimizer, "step", self._around_optimizer, undo)
            yield

    @contextmanager
    def on(self, *, is_forward: bool = True) -> Iterator[None]:
        """Sees what is inside.

        Args:
            is_forward: a backward inside is part of the forward, as a penalty on gradients is; False where the step
                calls backward itself.
        """
        self._forwards += is_forward
        try:
            with self._mode():
                yield
        finally:
            self._forwards -= is_forward

    def runs(self) -> Mapping[str, ObservedRun]:
        """What was done in each phase."""
        calls: dict[str, list[OpCall | Region]] = {phase: [] for phase in PHASES}
        for call in self._recorder.calls:
            calls[self._phases[id(_scope_of(call))]].append(call)
        strays = frozenset(self._scopes.strays)
        return {
            phase: ObservedRun(
                Record(of_phase),
                self._names,
                self._scopes.calls if phase == FORWARD else Counter(),
                frozenset(self._scopes.called),
                strays if phase == FORWARD else frozenset(),
                {},
                DISPATCH,
                REASON,
            )
            for phase, of_phase in calls.items()
        }

    @contextmanager
    def _mode(self) -> Iterator[None]:
        if self._depth or self._failure is not None or threading.get_ident() != self._thread:
            yield
            return
        self._depth += 1
        try:
            with intercept_named(self._recorder.region), self._recorder:
                yield
        finally:
            self._depth -= 1

    def _around_backward(self, engine: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(engine)
        def run_backward(outputs: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self._thread:
                return engine(outputs, *args, **kwargs)
            self._note(_compiled_backward(outputs))
            makes_graph = bool(args[2] if len(args) > 2 else kwargs.get("create_graph"))
            made = call_once(
                functools.partial(engine, outputs, *args, **kwargs),
                functools.partial(self._see_backward, makes_graph),
            )
            self._note(made.failure)
            return made.result

        return run_backward

    def _see_backward(self, makes_graph: bool, engine: Callable[[], Any]) -> None:
        if self._backwards:
            phase = self._backwards[0][0]
        else:
            phase = FORWARD if self._forwards or self._scopes.current is not ROOT else BACKWARD
        self._backwards.append((phase, makes_graph, self._scopes.current))
        try:
            with self._mode():
                engine()
        finally:
            self._backwards.pop()

    @property
    def failure(self) -> Exception | None:
        """What of the step could not be seen."""
        return self._failure or self._recorder.failure or self._scopes.failure

    def _note(self, failure: Exception | None) -> None:
        self._failure = self._failure or failure

    def _step_aside(self, call: CompiledCall) -> Return | None:
        if not call.is_known:
            self._note(CompiledCode(call.name))
        return self._recorder.step_aside(call) if self._depth else None

    def _around_optimizer(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def closure_of(closure: Any) -> Any:
            """A closure is forward and backward again."""
            if not callable(closure):
                return closure

            @functools.wraps(closure)
            def outside(*args: Any, **kwargs: Any) -> Any:
                inside, self._optimizer_steps = self._optimizer_steps, 0
                try:
                    return closure(*args, **kwargs)
                finally:
                    self._optimizer_steps = inside

            return outside

        def see(attempt: Callable[[], Any]) -> None:
            self._optimizer_steps += 1
            try:
                with self._mode():
                    attempt()
            finally:
                self._optimizer_steps -= 1

        @functools.wraps(step)
        def optimizer_step(*args: Any, **kwargs: Any) -> Any:
            args = (closure_of(args[0]), *args[1:]) if args else args
            if "closure" in kwargs:
                kwargs = {**kwargs, "closure": closure_of(kwargs["closure"])}
            made = call_once(functools.partial(step, *args, **kwargs), see)
            self._note(made.failure)
            return made.result

        return optimizer_step

    def _place(self, arguments: tuple[Any, ...]) -> Scope:
        """The module that an operator is done for; notes its phase."""
        running = self._scopes.scope_of(arguments)
        if not self._backwards:
            self._own_node(running)
            return self._placed(OPTIMIZER if self._optimizer_steps and running is ROOT else FORWARD, running)
        phase, makes_graph, began = self._backwards[-1]
        node = current_node()  # None in what the engine does around its nodes
        owner = self._owners.get(number_of(node), began) if node is not None else began
        is_again = torch.is_grad_enabled() and not makes_graph
        scope = running if running is not began else owner
        if torch.is_grad_enabled():
            self._own_node(scope)
        return self._placed(RECOMPUTE if phase == BACKWARD and (is_again or running is not began) else phase, scope)

    def _placed(self, phase: str, scope: Scope) -> Scope:
        """A scope that is equal to this one, and this phase's alone."""
        own = self._places.get((phase, scope))
        if own is None:
            own = self._places[phase, scope] = Scope(*scope)
            self._phases[id(own)] = phase
        return own

    def _own_node(self, scope: Scope) -> None:
        """The node that was made last is that of the operator that runs now, unless it is an earlier one's already."""
        self._owners.setdefault(nodes_so_far() - 1, scope)


def _scope_of(recorded: OpCall | Region) -> Scope:
    """Of an operator, or of a piece that was entered."""
    return recorded.call.scope if isinstance(recorded, Region) else recorded.scope


def _compiled_backward(outputs: Any) -> Exception | None:
    """Says so where a backward from these will run compiled code; what looking for it failed at says so as well."""
    if not in_use():
        return None
    try:
        nodes = [output.grad_fn for output in tree_leaves(outputs) if isinstance(output, torch.Tensor)]
        seen = set(filter(None, nodes))
        waiting = list(seen)
        while waiting:
            node = waiting.pop()
            if node.name() == COMPILED_NODE:
                return CompiledCode("a backward")
            inner = {each for each, _ in node.next_functions if each is not None} - seen
            seen |= inner
            waiting += inner
    except Exception as error:  # noqa: BLE001 - the backward is the training's, and runs
        return error
    return None
