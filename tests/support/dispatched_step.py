"""A whole training step from below, by PyTorch's dispatcher: what the observer of records is held against."""

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
from flopcallback.modules.compiled import CompiledCall, CompiledCode, Return, is_loaded, stepping_aside
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.wrappers import wrap_on_instance
from flopcallback.tracing.dispatch import DispatchRecorder, look_up
from flopcallback.tracing.phases import BACKWARD, FORWARD, OPTIMIZER, PHASES, RECOMPUTE
from flopcallback.tracing.record import OperatorLog, Region
from flopcallback.tracing.regions import intercept_named, replaced
from flopcallback.tracing.run import DISPATCH, ObservedRun
from flopcallback.tracing.scopes import ModuleScopes
from flopcallback.tracing.torch_private import backward_engine, nodes_so_far, tree_leaves

__all__ = ["BACKWARD", "FORWARD", "OPTIMIZER", "PHASES", "RECOMPUTE", "StepObserver"]

COMPILED_NODE = "CompiledFunctionBackward"
"""Name of the autograd node of a compiled forward (2.13, 2.14)."""

REASON = "a step is seen whole from below autograd"


class _StepDispatchRecorder(DispatchRecorder):
    """Recorder that never keeps an operator of the training from running.

    Attributes:
        failure: the first error in recording; the record is incomplete then, and nothing more is recorded.
    """

    failure: Exception | None = None

    def __init__(self, scope: Callable[[tuple[Any, ...]], Scope]) -> None:
        super().__init__(scope)
        self._looked_up: set[Any] = set()  # operators that can be run without an error of ours

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self._looked_up and self.failure is None:
            try:
                look_up(func)
                self._looked_up.add(func)
            except Exception as error:  # noqa: BLE001 - the operator is the training's, and runs
                self.failure = error
        if self.failure is not None:
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def region(self, kind: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an intercepted piece exactly once, whatever fails around it."""
        region = super().region

        def around(attempt: Callable[[], Any]) -> None:
            region(kind, lambda *_, **__: attempt(), args, kwargs)

        outcome = call_once(functools.partial(call, *args, **kwargs), around)
        self.failure = self.failure or outcome.failure
        return outcome.result

    def _keep(self, call: Callable[[], OpCall | Region]) -> None:
        if self.failure is None:
            try:
                super()._keep(call)
            except Exception as error:  # noqa: BLE001 - the training step is under way
                self.failure = error


class StepObserver:
    """Recorder of every operator of a training step, with phase and module.

    The step runs inside `with watching():`. Operators are recorded in calls inside `with on():`, in each backward, and
    in the optimizers' steps. In the user's code between these no mode is active, so that no exception, `break` or mode
    of the user's can interfere. Compiled code runs without our modes too; from its first call on the step counts as not
    observed.

    A backward operator belongs to the module whose forward made the autograd node that is running. Nodes are numbered
    in the order in which they are made, and know their number. Work of autograd with grad mode on, but without
    `create_graph`, is recomputation, as is any call of a module inside a backward.

    Args:
        names: the modules.
        optimizers: the optimizers that may step.
    """

    def __init__(self, names: ModuleNames, optimizers: Iterable[Any] = ()) -> None:
        self._names = names
        self._optimizers = tuple(optimizers)
        self._scopes = ModuleScopes(names)
        self._recorder = _StepDispatchRecorder(self._place)
        self._phases: dict[int, str] = {}  # by the id of a scope that `_placed` made
        self._places: dict[tuple[str, Scope], Scope] = {}
        self._owners: dict[int, Scope] = {}  # the scope that made each autograd node, by the node's number
        # Backwards under way, outermost first: phase, `create_graph`, and the modules that were running at its begin.
        self._backwards: list[tuple[str, bool, Scope]] = []
        self._thread = threading.get_ident()
        self._depth = 0  # 1 while the mode is active: a backward inside a forward does not enter it again
        self._forwards = 0  # how many `on(is_forward=True)` are open: a backward in there is part of the forward
        self._optimizer_steps = 0  # how many optimizers' steps are running; 0 again in a closure
        self._failure: Exception | None = None  # once set, nothing more is recorded

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Wrap modules, backward and optimizers during a step."""
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
        """Record the operators that run inside the context.

        Args:
            is_forward: count a backward inside as part of the forward, as a gradient penalty is; False if the step
                itself calls backward in there.
        """
        self._forwards += is_forward
        try:
            with self._mode():
                yield
        finally:
            self._forwards -= is_forward

    def runs(self) -> Mapping[str, ObservedRun]:
        """Return the observed run of each phase."""
        calls: dict[str, list[OpCall | Region]] = {phase: [] for phase in PHASES}
        for call in self._recorder.calls:
            calls[self._phases[id(_scope_of(call))]].append(call)
        strays = frozenset(self._scopes.strays)
        return {
            phase: ObservedRun(
                OperatorLog(of_phase),
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
            # Arguments of `_engine_run_backward`: outputs, grads, `retain_graph`, `create_graph`.
            makes_graph = bool(args[2] if len(args) > 2 else kwargs.get("create_graph"))
            outcome = call_once(
                functools.partial(engine, outputs, *args, **kwargs),
                functools.partial(self._see_backward, makes_graph, outputs),
            )
            self._note(outcome.failure)
            return outcome.result

        return run_backward

    def _see_backward(self, makes_graph: bool, outputs: Any, engine: Callable[[], Any]) -> None:
        if is_loaded() and _runs_compiled_code(outputs):
            self._note(CompiledCode("a backward"))
        if self._backwards:  # a backward inside a backward, as reentrant checkpointing starts one
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
        """The error that kept the step from being observed, or None."""
        return self._failure or self._recorder.failure or self._scopes.failure

    def _note(self, failure: Exception | None) -> None:
        self._failure = self._failure or failure  # the first: later ones may follow from it

    def _step_aside(self, call: CompiledCall) -> Return | None:
        if not call.is_known:
            self._note(CompiledCode(call.name))
        return self._recorder.step_aside(call) if self._depth else None

    def _around_optimizer(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def closure_of(closure: Any) -> Any:
            """Wrap a closure: its work is forward and backward, not the optimizer's."""
            if not callable(closure):
                return closure

            @functools.wraps(closure)
            def outside(*args: Any, **kwargs: Any) -> Any:
                steps, self._optimizer_steps = self._optimizer_steps, 0
                try:
                    return closure(*args, **kwargs)
                finally:
                    self._optimizer_steps = steps

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
            outcome = call_once(functools.partial(step, *args, **kwargs), see)
            self._note(outcome.failure)
            return outcome.result

        return optimizer_step

    def _place(self, arguments: tuple[Any, ...]) -> Scope:
        """Return the scope of an operator, and record the operator's phase."""
        running = self._scopes.scope_of(arguments)
        if not self._backwards:
            self._own_node(running)
            return self._placed(OPTIMIZER if self._optimizer_steps and running is ROOT else FORWARD, running)
        phase, makes_graph, began = self._backwards[-1]
        node = torch._C._current_autograd_node()  # None while the engine runs code around its nodes
        owner = self._owners.get(node._sequence_nr(), began) if node is not None else began
        is_recomputed = torch.is_grad_enabled() and not makes_graph
        # A module that was entered since the backward began is called by it; else the node's own module works.
        scope = running if running is not began else owner
        if torch.is_grad_enabled():
            self._own_node(scope)
        is_recomputed |= running is not began
        return self._placed(RECOMPUTE if phase == BACKWARD and is_recomputed else phase, scope)

    def _placed(self, phase: str, scope: Scope) -> Scope:
        """Return an equal scope that is unique to this phase.

        So the scope of a recorded operator tells its phase by its id.
        """
        unique = self._places.get((phase, scope))
        if unique is None:
            unique = self._places[phase, scope] = Scope(*scope)
            self._phases[id(unique)] = phase
        return unique

    def _own_node(self, scope: Scope) -> None:
        """Attribute the newest autograd node to a scope, unless it has one."""
        # Autograd makes an operator's node before the operator arrives here.
        self._owners.setdefault(nodes_so_far() - 1, scope)


def _scope_of(recorded: OpCall | Region) -> Scope:
    return recorded.call.scope if isinstance(recorded, Region) else recorded.scope


def _runs_compiled_code(outputs: Any) -> bool:
    """Return whether a backward from these outputs runs compiled code."""
    nodes = [output.grad_fn for output in tree_leaves(outputs) if isinstance(output, torch.Tensor)]
    seen = {node for node in nodes if node is not None}
    stack = list(seen)
    while stack:
        node = stack.pop()
        if node.name() == COMPILED_NODE:
            return True
        new = {inner for inner, _ in node.next_functions if inner is not None} - seen
        seen |= new
        stack += new
    return False
