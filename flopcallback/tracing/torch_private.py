"""Table of PyTorch's private names that this package uses.

It says who uses a name, and what is lost without it. No other file names one. Each is looked up once, when this file
is imported, and none is required: a value here may be None, and a function works without the name or reports that it
cannot. This file imports nothing of ours, so that `modules` may import it too.

A name is private if it, or a package that it is in, begins with an underscore. Not in the table:

- `Module._modules`, `_parameters`, `_buffers`, `_forward_hooks`, `_forward_pre_hooks`, `_get_name` and `_call_impl`:
  calls of modules need them, model libraries read them, and so do our files.
- `OpOverload._schema`: every `__torch_dispatch__` reads it. `schema_of` does, and the formulas, which import no other
  package of ours.
- The methods of `torch.Graph`, `Node` and `Value` that read a graph: public names without documentation.
- `concurrent.futures.thread._worker`: a pool's thread is recognized by `submit`, which starts it.
"""

from __future__ import annotations

import functools
import gc
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import or_
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import DispatchKey, nn

# Required: without it there is nothing to observe operators with.
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode  # noqa: PLC0414 - a re-export

if TYPE_CHECKING:
    from torch._ops import OpOverload as OpOverload  # noqa: PLC0414 - as above
    from torch._ops import OpOverloadPacket as OpOverloadPacket  # noqa: PLC0414
else:
    OpOverloadPacket, OpOverload = type(torch.ops.aten.mm), type(torch.ops.aten.mm.default)


class Private(NamedTuple):
    """A private name of PyTorch.

    Attributes:
        path: dotted path that begins with the package.
        used_by: files or packages of ours that use it.
        lost: what does not work without it.
        needed_by: `TRACER` or `RECORDS` if that cannot work at all without it, else empty.
        since: first version known to have it. 2.6, the oldest supported version, has them all.
    """

    path: str
    used_by: str
    lost: str
    needed_by: str = ""
    since: str = "<= 2.6"


TRACER, RECORDS = "the tracer", "the profiler's recording"

_ALL = "the tracer: the dispatcher counts"
_RECORDS = "records of operators"


def _rows(paths: str, used_by: str, lost: str, needed_by: str = "") -> tuple[Private, ...]:
    return tuple(Private(path, used_by, lost, needed_by) for path in paths.split())


NAMES: tuple[Private, ...] = (
    # --- The JIT tracer ---
    *_rows("torch._C._create_graph_by_tracing torch._C.Graph.create", "jit_trace", _ALL, TRACER),
    *_rows("torch._C._get_tracing_state torch._C._set_tracing_state", "jit_trace, function_mode", _ALL, TRACER),
    Private("torch._C._get_value_trace", "jit_trace, function_mode", _ALL, TRACER),
    *_rows("torch._C._set_value_trace torch._C.Graph.addInput", "function_mode", _ALL, TRACER),
    Private("torch._C.Graph.createClone", "function_mode", _ALL, TRACER),
    # `TorchFunctionMode` enters and leaves by these two, and through it the tracer answers questions about shapes.
    *_rows("torch.overrides._push_mode torch.overrides._pop_mode", "jit_trace", _ALL, TRACER),
    Private("torch._C._len_torch_function_stack", "jit_trace", _ALL, TRACER),
    # Nobody could say whether a call is inside a transform, through which the tracer does not go.
    Private("torch._C._functorch.maybe_current_level", "run", _ALL, TRACER),
    *_rows("torch._C._is_tracing torch.jit._trace.is_tracing", "jit_trace", "nothing: who asks by it is gone"),
    Private("torch._tensor", "jit_trace", "methods of tensors written in Python show with what they ask of shapes"),
    Private("torch._C._is_any_autocast_enabled", "function_mode", "speed: no node is copied"),
    # --- What the tracer is led past ---
    Private("torch.autograd._engine_run_backward", "regions, observer", _RECORDS, RECORDS),
    Private("torch._functorch.apis.vmap_impl", "regions", f"for vmap in a forward, {_ALL}"),
    *_rows(
        "torch._functorch.eager_transforms.grad_impl torch._functorch.eager_transforms.grad_and_value_impl "
        "torch._functorch.eager_transforms._vjp_with_argnums torch._functorch.eager_transforms._jvp_with_argnums",
        "regions",
        f"for this transform in a forward, {_ALL}",
    ),
    *_rows(
        "torch.distributed._broadcast_coalesced torch.distributed.ProcessGroup._allgather_base "
        "torch.distributed.ProcessGroup._reduce_scatter_base",
        "regions",
        f"for this collective in a forward, {_ALL}",
    ),
    # --- Autograd ---
    Private("torch._C._autograd._get_sequence_nr", "meter, owners, profiler_broker", _RECORDS, RECORDS),
    Private("torch._C._functions.AccumulateGrad._sequence_nr", "beside", "the backward of modules in compiled code"),
    Private("torch._C._current_graph_task_id", "outermost, latency", "nothing: the node that runs tells it, too"),
    Private("torch._C._current_autograd_node", "outermost, latency", "nothing: asked where the number is not known"),
    # --- The profiler ---
    *_rows(
        "torch.autograd._prepare_profiler torch.autograd._enable_profiler torch.autograd._disable_profiler "
        "torch.autograd._profiler_enabled torch._C._profiler._ExperimentalConfig",
        "profiler_broker",
        _RECORDS,
        RECORDS,
    ),
    # Without one of them, nobody could say that the user's profiler is about to begin, and both would run.
    *_rows(
        "torch.autograd._enable_profiler_legacy torch.autograd._disable_profiler_legacy "
        "torch.autograd.profiler._prepare_profiler torch.autograd.profiler._enable_profiler "
        "torch.autograd.profiler._disable_profiler torch.autograd.profiler._is_profiler_enabled "
        "torch.autograd.profiler_legacy._enable_profiler_legacy "
        "torch.autograd.profiler_legacy._disable_profiler_legacy",
        "users_profilers",
        _RECORDS,
        RECORDS,
    ),
    Private(
        "torch.autograd.profiler.KinetoStepTracker._step_dict",
        "users_profilers",
        "a profiler that warmed up before us: torch logs a warning when ours begins",
    ),
    Private("torch._C._profiler._RecordFunctionFast", "profiler_broker", _RECORDS, RECORDS),
    Private("torch._C._profiler.RecordScope", "profiler_broker", _RECORDS, RECORDS),
    Private("torch.autograd._enable_record_function", "plain_updates", "speed: plain updates leave records, too"),
    Private(
        "torch.utils.checkpoint._StopRecomputationError",
        "observer",
        "the last operator of each recomputation that checkpointing stops early counts, though it did not run",
    ),
    # --- The dispatcher ---
    Private("torch.utils._python_dispatch.TorchDispatchMode", "dispatch", "counting"),
    Private(
        "torch.utils._python_dispatch._disable_current_modes",
        "dispatch, snapshot, hardware",
        "nothing known: `_DisableTorchDispatch` does it for modes in Python",
    ),
    Private("torch._C._DisableTorchDispatch", "in its place", "nothing, while there is the other"),
    *_rows("torch._C._get_dispatch_mode torch._C._TorchDispatchModeKey", "dispatch", "speed: the stack is searched"),
    Private(
        "torch.utils._python_dispatch._get_current_dispatch_mode_stack",
        "in their place",
        "nothing, while there are the others",
    ),
    Private(
        "torch._C._SetExcludeDispatchKeyGuard",
        "dispatch",
        "under inference_mode, the last digits of a `linear` that the dispatcher observes",
    ),
    *_rows(
        "torch._C._dispatch_keys torch._C._after_ADInplaceOrView_keyset torch._C._RestorePythonTLSSnapshot "
        "torch._C._AutoDispatchBelowAutograd torch.library._impls",
        "dispatch",
        "what runs inside a library operator: it is unknown without a formula",
    ),
    Private("torch._mkldnn", "dispatch, recorded_values", "work on tensors in oneDNN's layout: it is unknown"),
    Private("torch.ScriptObject._type", "dispatch", "quantized convolutions: they are unknown, and shown so"),
    *_rows(
        "torch.utils._python_dispatch._is_in_torch_dispatch_mode "
        "torch.utils._python_dispatch._is_in_non_infra_torch_dispatch_mode",
        "threads",
        "nothing: without the flags, nobody reads them",
    ),
    Private(
        "torch._subclasses.fake_tensor.FakeTensorMode",
        "beside",
        "rows inside compiled code have no backward, and their forward is counted by a run of its own",
    ),
    Private("torch._C._jit_get_schemas_for_operator", "analysis", "nothing: `torch.ops` has the schemas, too"),
    # --- Leaving things as they were found ---
    *_rows(
        "torch.autograd._unsafe_preserve_version_counter torch._C._autograd._unsafe_set_version_counter",
        "snapshot",
        "a graph that saved a tensor before a count that writes to it refuses its backward",
    ),
    Private("torch._C._set_deterministic_algorithms", "snapshot", "speed: the public function imports the compiler"),
    Private("torch._C.TensorBase._is_view", "snapshot", "nothing: the base tells it, too"),
    Private("torch._C.TensorBase._version", "loop/objects", "steps of a compiled optimizer are not noticed"),
    Private("torch._C.TensorBase._base", "loop/watch", "a backward through the base of a view is not noticed"),
    Private(
        "torch._C.TensorBase._cdata", "marked_scopes", "work on sparse tensors that the observer sees: it is unknown"
    ),
    *_rows("torch._C.TensorBase._values", "dispatch", "work on sparse tensors: it is unknown, and shown so"),
    *_rows("torch._C.TensorBase._nested_tensor_size", "dispatch", "work on nested tensors: it is unknown, too"),
    Private("torch._C.StorageBase._cdata", "names", "tensors without memory, as meta ones, are not told apart"),
    Private(
        "torch.nn.Module._replicate_for_data_parallel",
        "wrappers",
        "replicas of DataParallel that are made in the counted call carry our wrappers",
    ),
    Private(
        "torch.jit._recursive.create_script_module",
        "wrappers",
        "a model that is scripted while it is watched: scripting may fail",
    ),
    Private("torch.nn.Module._compiled_call_impl", "outermost, regions", "`module.compile()` is not noticed"),
    *_rows(
        "torch.utils._pytree.tree_leaves torch.utils._pytree.tree_map",
        "many",
        "tensors in classes that only pytree knows are not found",
    ),
    # --- Several ranks ---
    Private("torch.distributed.distributed_c10d._get_default_store", "ranks", "sums over ranks: each counts apart"),
)

ATTRIBUTES: tuple[Private, ...] = (
    Private("_orig_mod", "outermost, regions", "what `torch.compile(module)` returns is not known as compiled"),
    *_rows(
        "_fsdp_wrapped_module _checkpoint_wrapped_module",
        "names",
        "the rows in such wrappers have longer names",
    ),
    Private("_torchdynamo_orig_callable", "outermost", "a `forward` that was compiled alone is not known as compiled"),
    # Which attribute `apply` asks its class for before it calls `forward`: by that, a function is seen at work.
    Private("_backward_cls", "regions", "the tracer: the dispatcher counts, without names of functions"),
    *_rows(
        "_TorchDynamoContext set_eval_frame _maybe_set_eval_frame",
        "compiled",
        "whole steps, once anything was compiled: nobody could say when compiled code runs",
    ),
    Private("callback_handler", "observer", "what the compiler does counts in a step that compiles"),
    Private("_optimizer_step_pre_hooks", "loop/objects", "as the next"),
    Private("_optimizer_step_code", "plain_updates", "speed: plain updates leave records, too"),
    Private("_optimizer_step_post_hooks", "loop/objects", "`FlopHook` refuses all optimizers, and says what to do"),
)
"""Attributes of instances, which cannot be looked up at import."""


def _lookup(path: str) -> Any:
    """Return the object at a dotted path, or None, without importing anything."""
    value: Any = sys.modules.get(path.partition(".")[0])
    for name in path.split(".")[1:]:
        value = getattr(value, name, None)
    return value


# At import, before anything is replaced: during a trace of ours, functions of `torch._C` deny that one is under way.
_found: dict[str, Any] = {private.path: _lookup(private.path) for private in NAMES}


def _why_no(user: str) -> str:
    missing = [private.path for private in NAMES if private.needed_by == user and _found[private.path] is None]
    return f"torch {torch.__version__} has no {', '.join(missing)}, which {user} needs" if missing else ""


def why_no_tracer() -> str:
    """Return which names the tracer lacks; empty if it can work."""
    return _why_no(TRACER)


def why_no_records() -> str:
    """Return which names a recording by the profiler lacks; empty if it can work."""
    return _why_no(RECORDS)


class Place(NamedTuple):
    """An attribute that can be replaced."""

    owner: Any
    name: str


def _places(*paths: str) -> Iterator[Place]:
    """Yield those of the attributes that exist now."""
    for path in paths:  # looked up each time, since some packages are imported late
        owner, _, name = path.rpartition(".")
        if _lookup(path) is not None:
            yield Place(_lookup(owner), name)


# --- The JIT tracer ---

tracing_state: Any = _found["torch._C._get_tracing_state"]
set_tracing_state: Any = _found["torch._C._set_tracing_state"]
get_value_trace: Any = _found["torch._C._get_value_trace"]
set_value_trace: Any = _found["torch._C._set_value_trace"]
create_graph_by_tracing: Any = _found["torch._C._create_graph_by_tracing"]
push_function_mode: Any = _found["torch.overrides._push_mode"]
pop_function_mode: Any = _found["torch.overrides._pop_mode"]
function_modes: Any = _found["torch._C._len_torch_function_stack"]
is_any_autocast_enabled: Any = _found["torch._C._is_any_autocast_enabled"] or (lambda: True)

PYTHON_FUNCTIONS: tuple[Any, ...] = tuple(
    filter(None, (torch.nn.functional, torch.functional, _found["torch._tensor"], torch.nn.init, torch.autograd))
)
"""Modules with functions written in Python, which ask whether a mode or a subclass handles them as a whole."""


def is_tracing() -> bool:
    """Return whether a trace is under way in this thread, ours included.

    `torch.jit.is_tracing` denies ours.
    """
    return tracing_state is not None and tracing_state() is not None


def is_counting() -> bool:
    """Return whether the trace under way in this thread is one of ours."""
    return is_tracing() and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]


def is_transforming() -> bool:
    """Return whether a transform of torch.func is under way."""
    level = _found["torch._C._functorch.maybe_current_level"]
    return level is not None and level() is not None


def tracing_questions() -> Iterator[Place]:
    """Yield the functions by which a model asks whether it is traced."""
    return _places("torch._C._is_tracing", "torch.jit.is_tracing", "torch.jit._trace.is_tracing")


def tracing_state_place() -> Iterator[Place]:
    """Yield the function by which `Module.__call__` asks for the tracing state."""
    return _places("torch._C._get_tracing_state")


# --- Code that the tracer cannot enter ---


def backward_engine() -> Iterator[Place]:
    """Yield the function that `torch.autograd.grad` and `Tensor.backward` call."""
    return _places("torch.autograd._engine_run_backward")


def transforms() -> Iterator[tuple[str, Place]]:
    """Yield the name and the function of each transform of torch.func."""
    paths = {
        "vmap": "torch._functorch.apis.vmap_impl",
        "grad": "torch._functorch.eager_transforms.grad_impl",
        "grad_and_value": "torch._functorch.eager_transforms.grad_and_value_impl",
        "vjp": "torch._functorch.eager_transforms._vjp_with_argnums",
        "jvp": "torch._functorch.eager_transforms._jvp_with_argnums",
    }
    for name, path in paths.items():
        yield from ((name, place) for place in _places(path))


def collectives() -> Iterator[Place]:
    """Yield the functions that send tensors to other processes."""
    methods = (
        "allreduce allreduce_coalesced allgather allgather_coalesced allgather_into_tensor_coalesced "
        "_allgather_base alltoall alltoall_base barrier broadcast gather recv recv_anysource reduce "
        "reduce_scatter reduce_scatter_tensor_coalesced _reduce_scatter_base scatter send "
        # 2.13 gave some of them new names.
        "all_gather_single all_gather_single_coalesced all_to_all_single reduce_scatter_single "
        "reduce_scatter_single_coalesced"
    )
    paths = (f"torch.distributed.ProcessGroup.{method}" for method in methods.split())
    return _places("torch.distributed._broadcast_coalesced", *paths)


RAISING_PACKAGES = ("torch._dynamo", "torch._functorch", "torch._subclasses", "torch.fx", "torch.jit")
"""Packages of tracers and compilers, which raise errors of their own."""


def is_compiler_imported() -> bool:
    """Return whether the compiler was imported, and so may have been used."""
    return "torch._dynamo" in sys.modules  # to import it takes a second


# --- Compiled modules ---

BACKWARD_CLASS = "_backward_cls"
EVAL_FRAME, DYNAMO_CONTEXT = "torch._dynamo.eval_frame", "_TorchDynamoContext"
SET_EVAL_FRAME, MAYBE_SET_EVAL_FRAME = "set_eval_frame", "_maybe_set_eval_frame"
INDUCTOR, INDUCTOR_CONFIG, REGISTRY = "inductor", "torch._inductor.config", "torch._dynamo.backends.registry"
CALLBACK_HANDLER = "callback_handler"
PRE_HOOKS, POST_HOOKS = "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"
STEP_CODE = "_optimizer_step_code"
"""Method that an optimizer calls between its update and the hooks after it."""
COMPILED_CALL = "_compiled_call_impl"
"""Attribute that `module.compile()` sets; the module's calls go through it."""

_ORIGINAL_MODULE = "_orig_mod"  # the child of what `torch.compile(module)` returns
WRAPPED_MODULES = (_ORIGINAL_MODULE, "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Names of the only child of a wrapper, of `torch.compile`, FSDP1 and activation checkpointing."""
_ORIGINAL_FUNCTION = "_torchdynamo_orig_callable"  # an attribute of what `torch.compile(function)` returns


def has_compiled_call(module: nn.Module) -> bool:
    """Return whether `module.compile()` was called."""
    return getattr(module, COMPILED_CALL, None) is not None


def original_module(module: nn.Module) -> nn.Module | None:
    """Return the module that `torch.compile` wrapped, or None for another module."""
    children = module._modules  # a scripted module's have no `get`
    if _ORIGINAL_MODULE in children:
        return children[_ORIGINAL_MODULE]
    return None


def is_compiled(module: nn.Module) -> bool:
    """Return whether calls of the module run compiled code.

    It is compiled by `torch.compile(module)`, `module.compile()` or `module.forward = torch.compile(module.forward)`.
    """
    is_wrapper = original_module(module) is not None
    return is_wrapper or has_compiled_call(module) or hasattr(vars(module).get("forward"), _ORIGINAL_FUNCTION)


# --- Autograd ---

UNKNOWN_NODES = -1
"""Stands for an unknown number of autograd nodes; no number of nodes equals it."""

_sequence_nr: Any = _found["torch._C._autograd._get_sequence_nr"]
_graph_task: Any = _found["torch._C._current_graph_task_id"]
_node: Any = _found["torch._C._current_autograd_node"]
can_count_nodes: bool = _sequence_nr is not None

nodes_so_far: Callable[[], int] = _sequence_nr or (lambda: 0)
"""Returns how many autograd nodes this thread has made so far; always 0 if that is unknown."""


def current_node() -> Any:
    """Return the autograd node that this thread's backward runs, or None."""
    return None if _node is None else _node()


def number_of(node: Any) -> int:
    """Return how many nodes its thread had made before an autograd node."""
    return int(node._sequence_nr())


def is_backward_running() -> bool:
    """Return whether autograd runs a backward in this thread.

    A call of a module is then a recomputation.
    """
    return current_node() is not None if _graph_task is None else _graph_task() != NO_TASK


NO_TASK = -1
"""Result of `backward_task` outside of a backward."""

backward_task: Callable[[], int] = _graph_task or (lambda: NO_TASK if current_node() is None else 0)
"""Returns the number of the backward in this thread; for where a call of `is_backward_running` would be too slow."""


# --- The profiler ---

_prepare_profiler: Any = _found["torch.autograd._prepare_profiler"]
_enable_profiler: Any = _found["torch.autograd._enable_profiler"]
_disable_profiler: Any = _found["torch.autograd._disable_profiler"]
BACKWARD_NODE = "autograd::engine::evaluate_function: "
"""Beginning of the name of the record around everything that a node of autograd does."""
OPTIMIZER_STEP = "Optimizer.step#"
"""Beginning of the name of the record around an optimizer's step."""
COMPILED_GRAPH = "## Call CompiledFxGraph"
"""Beginning of the name of the record around code that Inductor wrote."""

_is_profiling: Any = _found["torch.autograd._profiler_enabled"]
_autograd: Any = torch.autograd  # some of its public names are re-exports without a stub
_record_range: Any = _found["torch._C._profiler._RecordFunctionFast"]

enable_legacy_profiler: Any = _found["torch.autograd._enable_profiler_legacy"]
stop_records: Callable[[], Any] = _disable_profiler
"""Ends what `start_records` began, in the same thread; returns a `_ProfilerResult`.

Where libkineto runs no session, or one that another thread began after it, this ends the process or takes the other's
records (2.13).
"""


def prepare_records(device: str = "cpu") -> tuple[Any, set[Any]]:
    """Prepare libkineto for a session, and return what it is started with.

    If it runs one, that is cancelled.

    Args:
        device: type of a device whose work is recorded, too, where libkineto can.
    """
    known = _autograd.ProfilerActivity.__members__
    activities = {_autograd.ProfilerActivity.CPU, known.get(device.upper(), _autograd.ProfilerActivity.CPU)}
    options = _found["torch._C._profiler._ExperimentalConfig"]()
    # Shapes, and neither stacks, FLOPs, modules nor memory.
    config = _autograd.ProfilerConfig(_autograd.ProfilerState.KINETO, True, False, False, False, False, options)
    _prepare_profiler(config, activities)
    return config, activities


def start_records(device: str = "cpu") -> None:
    """Record the operators of this thread and of its backwards, and a device's work."""
    _enable_profiler(*prepare_records(device), _scopes())  # to enable what is not prepared ends the process (2.13)


def device_records(result: Any, timed_on: str) -> list[Any]:
    """Return the records of a device's work among those of a session."""
    if timed_on == "cpu":
        return []
    return [event for event in result.events() if event.device_type() != torch._C._autograd.DeviceType.CPU]


def _scopes() -> set[Any]:
    """Return the kinds of records to make; empty for all.

    A collective makes a range of its own, in the process group's thread, which may end after the session. It then
    writes to memory that the session has freed (2.13: heap corruption under gloo). With a process group there are
    no such ranges, and none of the user's. An optimizer of which the observer does not know then leaves no range.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return set()
    scopes = _found["torch._C._profiler.RecordScope"]
    return {*scopes.__members__.values()} - {scopes.USER_SCOPE}


def prepare_again(config: Any, activities: Any, *_: Any) -> None:
    """Prepare the user's profiler before it starts."""
    _prepare_profiler(config, activities)


switch_records: Callable[[bool], Any] = _found["torch.autograd._enable_record_function"] or (lambda is_on: None)
"""Switches all records of this thread off or on, whoever listens."""


def record_range(name: str) -> AbstractContextManager[Any]:
    """Return a context that leaves a record around what runs in it."""
    return _record_range(name)  # type: ignore[no-any-return]


def close_ranges() -> None:
    """Close all ranges by `record_function` that are open; to close one twice does no harm."""
    with disable_current_modes():
        for each in gc.get_objects():
            # Not `isinstance`, which asks proxies for `__class__`.
            if issubclass(type(each), torch.autograd.profiler.record_function) and each.record is not None:
                each.__exit__(None, None, None)


def is_profiling_here() -> bool:
    """Return whether a profiler records this thread."""
    return bool(_is_profiling())


def is_profiler_started() -> bool:
    """Return whether one of torch's own profilers is started, in any thread.

    False while a profiler with a schedule warms up.
    """
    return bool(getattr(torch.autograd.profiler, "_is_profiler_enabled", False))


def is_profiler_warming_up() -> bool:
    """Return whether a profiler with a schedule is prepared, and not started."""
    tracker = getattr(torch.autograd.profiler, "KinetoStepTracker", None)
    # A profiler with a schedule is in there until it is left; most processes have none, and need not be searched.
    if torch.profiler.profiler.PROFILER_STEP_NAME not in getattr(tracker, "_step_dict", ()):
        return False
    return any(
        each.current_action is torch.profiler.ProfilerAction.WARMUP and each.profiler is not None
        for each in gc.get_objects()
        if issubclass(type(each), torch.profiler.profile)  # not `isinstance`, as above
    )


def profiler_functions() -> Iterator[tuple[Place, str]]:
    """Yield the functions by which profilers are prepared, enabled and disabled."""
    for owner in ("torch.autograd", "torch.autograd.profiler"):
        for kind in ("prepare", "enable", "disable"):
            yield from ((place, kind) for place in _places(f"{owner}._{kind}_profiler"))
    for owner in ("torch.autograd", "torch.autograd.profiler_legacy"):
        for kind in ("enable", "disable"):
            yield from ((place, kind) for place in _places(f"{owner}._{kind}_profiler_legacy"))


def stopped_recomputation() -> Iterator[Place]:
    """Yield what is called as checkpointing stops a recomputation early."""
    if _lookup("torch.utils.checkpoint._StopRecomputationError") is None:
        return iter(())
    return _places("torch.utils.checkpoint._StopRecomputationError.__init__")


def compilation_callbacks() -> Any:
    """Return the handler of functions called around compilations, or None."""
    module = sys.modules.get("torch._dynamo.callback")  # not imported: it takes a second
    return getattr(module, CALLBACK_HANDLER, None)


# --- The dispatcher ---

_mode_of: Any = _found["torch._C._get_dispatch_mode"]
_mode_keys: Any = _found["torch._C._TorchDispatchModeKey"]
dispatch_modes: Any = _found["torch.utils._python_dispatch._get_current_dispatch_mode_stack"] or (lambda: ())
_fake_mode: Any = _found["torch._subclasses.fake_tensor.FakeTensorMode"]
_set_excluded: Any = _found["torch._C._SetExcludeDispatchKeyGuard"]
_schemas_of: Any = _found["torch._C._jit_get_schemas_for_operator"]

disable_current_modes: Callable[[], AbstractContextManager[Any]] = (
    _found["torch.utils._python_dispatch._disable_current_modes"]
    or _found["torch._C._DisableTorchDispatch"]
    or nullcontext
)

LOOKED_INTO = frozenset(
    {("torch.distributed.tensor", "DTensor"), ("torch.nested._internal.nested_tensor", "NestedTensor")}
)
"""Tensor subclasses that run their operators on tensors inside; those are recorded instead.

They are this process' part of a distributed tensor, and the packed rows of a jagged tensor.
"""


def fake_mode() -> Any:
    """Return the active `FakeTensorMode`, or None."""
    if _mode_of is not None and _mode_keys is not None:
        return _mode_of(_mode_keys.FAKE)
    return next((mode for mode in reversed(dispatch_modes()) if type(mode).__name__ == "FakeTensorMode"), None)


def new_fake_mode() -> Any:
    """Return a new `FakeTensorMode`, which takes real tensors for fake ones.

    Raises:
        RuntimeError: this version of torch has none.
    """
    if _fake_mode is None:
        raise RuntimeError(f"torch {torch.__version__} has no FakeTensorMode where it is looked for")
    return _fake_mode(allow_non_fake_inputs=True)


def views_are_marked() -> AbstractContextManager[Any]:
    """Return a context in which operators under a mode mark their views."""
    return nullcontext() if _set_excluded is None else _set_excluded(DispatchKey.ADInplaceOrView, False)


DENSE = frozenset({torch.strided, _found["torch._mkldnn"] or torch.strided})
"""Layouts of tensors whose shape says how many elements there are; oneDNN's orders them another way."""

_keys_of: Any = _found["torch._C._dispatch_keys"]
_below_autograd_keys: Any = _found["torch._C._after_ADInplaceOrView_keyset"]
_as_on_entry: Any = _found["torch._C._RestorePythonTLSSnapshot"]
_below_autograd: Any = _found["torch._C._AutoDispatchBelowAutograd"]
_CAN_ENTER = all(each is not None for each in (_keys_of, _below_autograd_keys, _as_on_entry, _below_autograd))
PLAIN_TENSORS = frozenset({torch.Tensor, nn.Parameter})
"""Types of tensors that are what they seem."""


def python_kernel(func: OpOverload, tensors: Sequence[torch.Tensor]) -> Callable[..., Any] | None:
    """Return the kernel of an operator, to be called past all modes, if it was written in Python.

    It takes the operator's arguments. None also if there is no tensor to choose it by, or one of a subclass.

    Args:
        func: the operator.
        tensors: its arguments that are tensors.
    """
    is_plain = bool(tensors) and all(type(tensor) in PLAIN_TENSORS for tensor in tensors)
    if not (_CAN_ENTER and is_plain and has_python_body(func, tensors[0].device)):
        return None
    keys = functools.reduce(or_, map(_keys_of, tensors)) & _below_autograd_keys
    return functools.partial(func.redispatch, keys)


@contextmanager
def as_without_modes(func: OpOverload) -> Iterator[None]:
    """Let a kernel that a mode calls run as it would without the mode.

    In a mode's handler autocast and autograd are switched off; here they are as the operator's caller had them.
    """
    # An operator with an autograd kernel of its own switches autograd off below it.
    has_autograd = func.has_kernel_for_dispatch_key(DispatchKey.Autograd)
    with _as_on_entry(), _below_autograd() if has_autograd else nullcontext():
        yield


def has_python_body(func: OpOverload, device: torch.device) -> bool:
    """Return whether an operator's kernel for a device was written in Python."""
    written = getattr(torch.library, "_impls", ())
    place = func.name().replace("::", "/")
    return any(f"{place}/{key}" in written for key in (device.type.upper(), "CompositeExplicitAutograd"))


def packed_weight(argument: Any) -> torch.Tensor | None:
    """Return the weight in the packed parameters of a quantized layer, else None."""
    kind = getattr(argument, "_type", None) if isinstance(argument, torch.ScriptObject) else None
    if kind is None or not kind().qualified_name().startswith("__torch__.torch.classes.quantized."):
        return None
    packed: Any = argument
    weight: torch.Tensor = packed.unpack()[0]
    return weight


def schema_of(func: OpOverload) -> Any:
    """Return the schema of an operator."""
    return func._schema


def operator_name(function: Any) -> str:
    """Return the name without overload of an operator, else an empty string."""
    if isinstance(function, OpOverloadPacket):
        function = getattr(function, next(iter(function.overloads())))
    return str(schema_of(function).name) if isinstance(function, OpOverload) else ""


def schemas_of(operator: str) -> list[str]:
    """Return the schemas of all overloads of an operator such as `aten::add`."""
    if _schemas_of is not None:
        return [str(schema) for schema in _schemas_of(operator)]
    namespace, _, name = operator.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name, None)
    return [str(schema_of(getattr(packet, overload))) for overload in packet.overloads()] if packet else []


# --- Tensors, storages, modules ---

_version: Any = _found["torch._C.TensorBase._version"]
_preserve: Any = (
    _found["torch._C._autograd._unsafe_set_version_counter"]
    and _found["torch.autograd._unsafe_preserve_version_counter"]
)
_has_storage_id: bool = _found["torch._C.StorageBase._cdata"] is not None

# The private function first: the public one imports the compiler's settings, which takes a second.
set_deterministic_algorithms: Any = (
    _found["torch._C._set_deterministic_algorithms"] or torch.use_deterministic_algorithms
)

REPLICATE = "_replicate_for_data_parallel"
"""Method of a module that makes a replica for another device."""

replicate: Any = _found["torch.nn.Module._replicate_for_data_parallel"]


def preserve_version_counter(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Return a context that restores a tensor's version counter at its end."""
    return nullcontext() if _preserve is None or _version is None else _preserve(tensor)


def base_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return the tensor that a view is a view of, or None."""
    return getattr(tensor, "_base", None)


def is_view(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is a view."""
    return tensor._is_view() if hasattr(tensor, "_is_view") else base_of(tensor) is not None


def stored_values(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return the stored values of a sparse COO tensor; None if unknown."""
    return tensor._values() if hasattr(tensor, "_values") else None


def identity_of(tensor: torch.Tensor) -> int | None:
    """Return the number by which the profiler's records call a tensor; None if unknown."""
    return getattr(tensor, "_cdata", None)


def nested_shapes(tensor: torch.Tensor) -> list[list[int]] | None:
    """Return the shapes of a nested tensor's components; None if unknown."""
    return tensor._nested_tensor_size().tolist() if hasattr(tensor, "_nested_tensor_size") else None


def storage_id(storage: torch.UntypedStorage) -> int | None:
    """Return an id of a storage; None if unknown."""
    return int(storage._cdata) if _has_storage_id else storage.data_ptr() or None


create_script_module: Any = _found["torch.jit._recursive.create_script_module"]
SCRIPT_MODULE_PLACE: tuple[Any, str] = (_lookup("torch.jit._recursive"), "create_script_module")
"""What makes a module of TorchScript, for `script` and `trace`, and where it is looked up."""


_MODE_FLAGS = ("_is_in_torch_dispatch_mode", "_is_in_non_infra_torch_dispatch_mode")


@contextmanager
def mode_flags_kept() -> Iterator[None]:
    """Keep torch's flags for active modes while a mode begins or ends.

    The flags are the process's, and a mode restores what it found. A thread that outlives the run would restore that
    the run's own mode is active, and `torch.compile` would no longer compile (seen in 2.6 and 2.9).
    """
    owner = torch.utils._python_dispatch
    before = {name: getattr(owner, name) for name in _MODE_FLAGS if hasattr(owner, name)}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def step_hooks_of(optimizer: Any) -> Any:
    """Return the hooks after an optimizer's step, or None.

    None for a wrapper that is an optimizer by type alone.
    """
    return getattr(optimizer, POST_HOOKS, None)


def is_in_outer_step(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a hook of an optimizer's step runs inside another call of its step.

    `__init__` of an optimizer makes `step` of its class call the hooks. Where a class calls `super().step()`, and its
    base was made use of by itself, both do: the hooks run once for each.
    """
    if sum(_calls_hooks(vars(base).get("step")) for base in type(optimizer).__mro__) < _NESTED:  # nearly always
        return False
    frame: types.FrameType | None = sys._getframe(1)
    steps = 0
    while frame is not None and steps < _NESTED:
        steps += frame.f_code is _STEP_WITH_HOOKS and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return steps == _NESTED


def _calls_hooks(step: Any) -> bool:
    return getattr(step, "hooked", None) is True


def _step(optimizer: Any) -> None:
    """Do nothing, as the step of no optimizer."""


_NESTED = 2
_STEP_WITH_HOOKS = getattr(torch.optim.Optimizer, "profile_hook_step", lambda step: step)(_step).__code__


def version_of(tensor: torch.Tensor) -> int:
    """Return how often a tensor was written to; always 0 if unknown."""
    return int(getattr(tensor, "_version", 0))


def default_store() -> Any:
    """Return the store of the default process group, or None."""
    get_store = _found["torch.distributed.distributed_c10d._get_default_store"]
    return None if get_store is None else get_store()


# --- Structures ---


def _plain_leaves(tree: Any) -> list[Any]:
    """Return the leaves of nested lists, tuples and dicts."""
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else None
    return [tree] if parts is None else [leaf for part in parts for leaf in _plain_leaves(part)]


def _plain_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply a function to each leaf of nested lists, tuples and dicts."""
    if type(tree) is dict:
        return {key: _plain_map(function, part) for key, part in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_plain_map(function, part) for part in tree)
    return function(tree)


tree_leaves: Callable[[Any], list[Any]] = _found["torch.utils._pytree.tree_leaves"] or _plain_leaves
tree_map: Callable[[Callable[[Any], Any], Any], Any] = _found["torch.utils._pytree.tree_map"] or _plain_map
