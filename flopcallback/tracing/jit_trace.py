"""Engine that observes operators under PyTorch's JIT tracer.

`torch.jit.trace` itself wants tensors in and out and prunes what it returns; the tracer below it does neither. The
graph is taken inside the traced function, and the tracer is left by an exception, so that none of its passes runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from flopcallback.formulas.op_call import OpCall, Scope, Value
from flopcallback.modules.compiled import COMPILED, After, CompiledCall, Return, stepping_aside
from flopcallback.tracing.dispatch import DispatchRecorder, in_schema_order, value_of
from flopcallback.tracing.function_mode import BeforeWrite, FunctionMode, KnownTensors
from flopcallback.tracing.observed import NotNow
from flopcallback.tracing.record import AUTOGRAD_FUNCTION, REGION_MARK, SCOPE_MARK, GraphLog, Region
from flopcallback.tracing.regions import (
    FLEX_ATTENTION,
    META_CONVOLUTION,
    intercept_untraceable,
    replaced,
)
from flopcallback.tracing.scopes import ModuleScopes
from flopcallback.tracing.threads import Threads
from flopcallback.tracing.torch_private import (
    PLAIN_TENSORS,
    PYTHON_FUNCTIONS,
    OpOverload,
    create_graph_by_tracing,
    function_modes,
    get_value_trace,
    pop_function_mode,
    push_function_mode,
    set_tracing_state,
    set_value_trace,
    tracing_questions,
    tracing_state,
    tracing_state_place,
    tree_leaves,
)

__all__ = ["trace"]

T = TypeVar("T")

# The tracer asks for the name of each variable; as a function in C, this costs no frame of Python each time.
_NO_NAME = "".format

# The replacements of a trace are process-wide; two that overlap could not be taken back in order.
_ONE_AT_A_TIME = threading.Lock()


class _Leave(Exception):  # noqa: N818 - nothing went wrong
    """Exit from the tracer once the graph is complete."""


def trace(
    call: Callable[[], T],
    scopes: ModuleScopes,
    tensors: Iterable[torch.Tensor] = (),
    *,
    before_write: BeforeWrite | None = None,
    threads: Threads | None = None,
) -> tuple[T, GraphLog]:
    """Run `call` once and return its result and its operators.

    Args:
        call: what to run.
        scopes: tells which modules are running; `scopes.watch()` has to be active.
        tensors: parameters and inputs; only a matter of speed, the others are met as they appear.
        before_write: told of every tensor that is about to be written to.
        threads: has what runs in other threads.

    Raises:
        Exception: whatever `call` raises, and whatever the tracer cannot do; the two cannot be told apart from here.
    """
    return _Tracer(scopes, before_write, threads).run(call, tensors)


class _Tracer:
    """One trace under way."""

    def __init__(
        self,
        scopes: ModuleScopes,
        before_write: BeforeWrite | None,
        threads: Threads | None = None,
    ) -> None:
        self._scopes = scopes
        self._threads = threads or Threads(scopes, before_write)
        self._before_write = before_write
        self._marks: dict[Scope, int] = {}
        self._regions: list[Region] = []
        self._recorder: DispatchRecorder | None = None  # of the region under way
        self._graph: torch.Graph
        self._known: KnownTensors

    def run(self, call: Callable[[], T], tensors: Iterable[torch.Tensor]) -> tuple[T, GraphLog]:
        if not _ONE_AT_A_TIME.acquire(blocking=False):
            raise NotNow("a trace is under way in another thread, and replaces parts of torch meanwhile")
        try:
            return self._run(call, tensors)
        finally:
            _ONE_AT_A_TIME.release()

    def _run(self, call: Callable[[], T], tensors: Iterable[torch.Tensor]) -> tuple[T, GraphLog]:
        result: list[T] = []
        returned: list[torch.Value] = []

        def traced() -> None:
            self._graph = tracing_state().graph()
            self._known = KnownTensors(self._graph)
            for tensor in tensors:
                self._known.register(tensor)
            with ExitStack() as stack:
                stack.enter_context(_denied_to_models())
                stack.enter_context(_python_functions_entered())
                stack.enter_context(intercept_untraceable(self.region))
                stack.enter_context(self._marking_scopes())
                stack.enter_context(FunctionMode(self._graph, self._known, self.region, self._before_write))
                stack.enter_context(stepping_aside(self._step_aside, self._fail))
                result.append(call())
            returned.extend(self._values_of(result[0]))
            raise _Leave

        with suppress(_Leave):
            create_graph_by_tracing(traced, (), _NO_NAME, True, False, None, [])
        return result[0], GraphLog(self._graph, list(self._marks), self._regions, returned, self._threads.calls)

    def region(self, kind: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an untraceable piece under the dispatcher, as a region."""
        state = tracing_state()
        if state is None:
            aside = self._threads.recorder() or self._recorder
            return call(*args, **kwargs) if aside is None else aside.region(kind, call, args, kwargs)
        operator = call if isinstance(call, OpOverload) and kind != META_CONVOLUTION else None
        recorder = DispatchRecorder(self._scopes.scope_of, self._before_write, entered=kind if operator else "")
        outputs: list[torch.Tensor] = []
        # An autograd function has a node of the tracer's own, which has these values. It is not complete yet, and the
        # nodes that come before it are copied into it: they may use nothing that comes from elsewhere.
        handed = [] if kind.startswith(AUTOGRAD_FUNCTION) else self._values_handed_to((args, kwargs))
        set_tracing_state(None)
        self._recorder = None if kind == FLEX_ATTENTION else recorder
        try:
            with _without_function_modes() if kind == FLEX_ATTENTION else recorder:
                result = call(*args, **kwargs)
            outputs += (leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
            return result
        finally:  # what ran before a piece raised has run, and the model may catch the error
            self._recorder = None
            in_order = _values_in((args, kwargs)) if operator is None else in_schema_order(operator, args, kwargs)
            seen = OpCall(kind, in_order, tuple(map(value_of, outputs)), self._scopes.current)
            set_tracing_state(state)
            values = self._mark(REGION_MARK, len(self._regions), handed, len(outputs))
            for output, value in zip(outputs, values, strict=True):
                set_value_trace(output, value)
            made = Region if operator is None else Region.of_operator
            self._regions.append(made(seen, tuple(recorder.calls)))

    def _step_aside(self, call: CompiledCall) -> Return | None:
        """Stop tracing for compiled code, and mark it in the graph afterwards."""
        state = tracing_state()
        modes = ExitStack()
        if state is None:  # in a region, which a recorder looks into
            aside = self._threads.recorder() or self._recorder
            recorded = None if aside is None else aside.step_aside(call)
        else:
            handed = self._values_handed_to((call.args, call.kwargs))
            set_tracing_state(None)
        modes.enter_context(_without_function_modes(FunctionMode))

        def back(result: Any) -> After | None:
            modes.close()
            if state is None:
                return None if recorded is None else recorded(result)
            set_tracing_state(state)
            outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            for output in outputs:
                self._known.register(output)
            inputs = _values_in((call.args, call.kwargs))
            seen = OpCall(COMPILED + call.name, inputs, tuple(map(value_of, outputs)), self._scopes.current)
            self._mark(REGION_MARK, len(self._regions), handed)
            self._regions.append(Region(seen, None))
            return None

        return back

    def _fail(self, error: Exception) -> None:
        self._scopes.failure = error

    def _values_handed_to(self, arguments: Any) -> list[torch.Value]:
        """Return the graph's values for a region's inputs, which `prune` keeps."""
        tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
        self._known.make_known(tensors)
        return [get_value_trace(tensor) for tensor in tensors]

    def _values_of(self, result: Any) -> list[torch.Value]:
        """Return the graph's values for the call's results, which `prune` keeps."""
        if tracing_state() is None:
            raise RuntimeError("the tracer lost its state during the run")
        leaves = list(_tensors_within(result, set()))
        self._known.make_known(leaves)
        return [get_value_trace(leaf) for leaf in leaves]

    @contextmanager
    def _marking_scopes(self) -> Iterator[None]:
        def mark(scope: Scope) -> None:
            if tracing_state() is not None:  # inside a region, the dispatcher asks for the scope itself
                self._mark(SCOPE_MARK, self._marks.setdefault(scope, len(self._marks)))

        before, self._scopes.on_change = self._scopes.on_change, mark
        mark(self._scopes.current)
        try:
            yield
        finally:
            self._scopes.on_change = before

    def _mark(
        self, kind: str, index: int, values: Sequence[torch.Value] = (), outputs: int = 0
    ) -> Iterator[torch.Value]:
        # A node that we append ourselves costs no walk of the Python stack, and unlike `push_scope` opens no block.
        node = self._graph.create(kind, list(values), outputs)
        node.i_("index", index)
        self._graph.insertNode(node)
        return node.outputs()


def _values_in(arguments: Any) -> tuple[Value, ...]:
    return tuple(map(value_of, tree_leaves(arguments)))


@contextmanager
def _python_functions_entered() -> Iterator[None]:
    """Let the mode see the operators inside of functions written in Python.

    A mode is off while it handles a call, so that inside of `F.interpolate` or `F.multi_head_attention_forward`, handed
    to it whole, sizes would be traced tensors again. Tensor subclasses still get them whole.
    """
    with ExitStack() as stack:
        for owner in PYTHON_FUNCTIONS:
            for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"):
                if hasattr(owner, name):
                    stack.enter_context(replaced(owner, name, _for_subclasses_only))
        yield


def _for_subclasses_only(original: Callable[..., bool]) -> Callable[..., bool]:
    def has_torch_function(*args: Any) -> bool:
        if tracing_state() is None:
            return original(*args)
        candidates = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
        return any(_is_overriding(candidate) for candidate in candidates) and original(*args)

    return has_torch_function


def _is_overriding(candidate: Any) -> bool:
    return type(candidate) not in PLAIN_TENSORS and hasattr(candidate, "__torch_function__")


def _tensors_within(value: Any, seen: set[int], depth: int = 8) -> Iterator[torch.Tensor]:
    """Yield the tensors of a result, also inside objects unknown to pytree.

    No deeper than results go: an object may hold on to half of the program.
    """
    if id(value) in seen or depth == 0:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
        return
    if hasattr(value, "__dict__") and not isinstance(value, (type, torch.nn.Module)):
        yield from _tensors_within(vars(value), seen, depth - 1)
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors_within(item, seen, depth - 1)


@contextmanager
def _without_function_modes(kind: type[TorchFunctionMode] = TorchFunctionMode) -> Iterator[None]:
    """Remove function modes of a kind, by default all, during the context."""
    modes = [pop_function_mode() for _ in range(function_modes())]
    others = [mode for mode in reversed(modes) if not isinstance(mode, kind)]
    for mode in others:
        push_function_mode(mode)
    try:
        yield
    finally:
        for _ in others:
            pop_function_mode()
        for mode in reversed(modes):
            push_function_mode(mode)


@contextmanager
def _denied_to_models() -> Iterator[None]:
    """Hide the trace from models and PyTorch's modules, which would act differently."""
    with ExitStack() as stack:
        for owner, name in tracing_questions():
            stack.enter_context(replaced(owner, name, lambda original: lambda: False))
        # Without it `Module.__call__` takes a detour, one more frame for the tracer to write down at every operator.
        for owner, name in tracing_state_place():
            stack.enter_context(replaced(owner, name, lambda original: lambda: None))
        yield
