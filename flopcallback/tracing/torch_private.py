"""Holds every private name of PyTorch that this package uses: who uses it, and what is lost without it.

No other file names one. Each is looked up once, when this file is imported, and none is required: a value here may be
None, and a function works without the name or says that it cannot. This file imports nothing of ours, so that `modules`
may import it too.

A name is private if it, or a package that it is in, begins with an underscore. Not in the table:

- `Module._modules`, `_parameters`, `_buffers`, `_forward_hooks`, `_forward_pre_hooks`, `_get_name` and `_call_impl`:
  calls of modules need them, model libraries read them, and so do our files.
- `OpOverload._schema`: every `__torch_dispatch__` reads it. `schema_of` does, and the formulas, which import no room.
- The methods of `torch.Graph`, `Node` and `Value` that read a graph: public names without documentation.
- `concurrent.futures.thread._worker`: the thread of a pool is known by who starts it, which is `submit`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import DispatchKey, nn

# Without it there is nothing to see operators with.
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode  # noqa: PLC0414 - handed on

if TYPE_CHECKING:
    from torch._ops import OpOverload as OpOverload  # noqa: PLC0414 - as above
    from torch._ops import OpOverloadPacket as OpOverloadPacket  # noqa: PLC0414
else:
    OpOverloadPacket, OpOverload = type(torch.ops.aten.mm), type(torch.ops.aten.mm.default)


class Private(NamedTuple):
    """A private name of PyTorch.

    Attributes:
        path: from the package on.
        used_by: the file or the room.
        lost: what is lost without it.
        needed_by: what cannot work without it at all: `TRACER`, `WHOLE_STEP`, or nothing.
        since: the first version that is known to have it; 2.6 is the oldest that is supported, and has them all.
    """

    path: str
    used_by: str
    lost: str
    needed_by: str = ""
    since: str = "<= 2.6"


TRACER, WHOLE_STEP = "the tracer", "the observer of whole steps"

_ALL = "the tracer: the dispatcher counts"
_STEPS = "whole steps: compute is estimated"


def _rows(paths: str, used_by: str, lost: str, needed_by: str = "") -> tuple[Private, ...]:
    return tuple(Private(path, used_by, lost, needed_by) for path in paths.split())


NAMES: tuple[Private, ...] = (
    # --- The JIT tracer ---
    *_rows("torch._C._get_tracing_state torch._C._create_graph_by_tracing", "jit_trace", _ALL, TRACER),
    *_rows("torch._C._set_tracing_state torch._C._get_value_trace", "jit_trace, repeats", _ALL, TRACER),
    *_rows("torch._C._set_value_trace torch._C.Graph.createClone", "jit_trace, repeats", _ALL, TRACER),
    *_rows("torch._C.Graph.create torch._C.Graph.addInput", "jit_trace", _ALL, TRACER),
    # `TorchFunctionMode` enters and leaves by these two, and through it the tracer answers questions about shapes.
    *_rows("torch.overrides._push_mode torch.overrides._pop_mode", "jit_trace", _ALL, TRACER),
    Private("torch._C._len_torch_function_stack", "jit_trace", _ALL, TRACER),
    # Nobody could say whether a call is inside a transform, through which the tracer does not go.
    Private("torch._C._functorch.maybe_current_level", "run", _ALL, TRACER),
    *_rows("torch._C._is_tracing torch.jit._trace.is_tracing", "jit_trace", "nothing: who asks by it is gone"),
    Private("torch._tensor", "jit_trace", "methods of tensors written in Python show with what they ask of shapes"),
    Private("torch._C._is_any_autocast_enabled", "repeats", "speed: no node is copied"),
    # --- What the tracer is led past ---
    Private("torch.autograd._engine_run_backward", "regions, whole_step", _STEPS, WHOLE_STEP),
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
    Private("torch._C._autograd._get_sequence_nr", "whole_step, meter", _STEPS, WHOLE_STEP),
    Private("torch._C._current_autograd_node", "whole_step", _STEPS, WHOLE_STEP),
    Private("torch._C._functions.AccumulateGrad._sequence_nr", "whole_step", _STEPS, WHOLE_STEP),
    Private("torch._C._current_graph_task_id", "outermost, latency", "nothing: the node that runs tells it, too"),
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
    Private("_torchdynamo_orig_callable", "outermost", "a `forward` that was compiled alone is not known as compiled"),
    # Which attribute `apply` asks its class for before it calls `forward`: by that, a function is seen at work.
    Private("_backward_cls", "regions", "the tracer: the dispatcher counts, without names of functions"),
    *_rows(
        "_TorchDynamoContext set_eval_frame _maybe_set_eval_frame",
        "compiled",
        "whole steps, once anything was compiled: nobody could say when compiled code runs",
    ),
    Private("_optimizer_step_pre_hooks", "loop/objects", "as the next"),
    Private("_optimizer_step_post_hooks", "loop/objects", "`FlopHook` refuses all optimizers, and says what to do"),
)
"""Names that instances alone have."""


def _lookup(path: str) -> Any:
    """What a path leads to, or None; nothing is imported for it."""
    found: Any = sys.modules.get(path.partition(".")[0])
    for name in path.split(".")[1:]:
        found = getattr(found, name, None)
    return found


# Before anything is replaced: during a trace of ours, `torch._C` denies that one is under way.
_found: dict[str, Any] = {private.path: _lookup(private.path) for private in NAMES}


def _why_no(user: str) -> str:
    missing = [private.path for private in NAMES if private.needed_by == user and _found[private.path] is None]
    return f"torch {torch.__version__} has no {', '.join(missing)}, which {user} needs" if missing else ""


def why_no_tracer() -> str:
    """Say which names the tracer lacks; empty where it can work."""
    return _why_no(TRACER)


def why_no_whole_step() -> str:
    """Say which names the observer of whole steps lacks; empty where it can work."""
    return _why_no(WHOLE_STEP)


class Place(NamedTuple):
    """An attribute that can be replaced for a while."""

    owner: Any
    name: str


def _places(*paths: str) -> Iterator[Place]:
    """Those that there are; asked each time, since some packages are imported late."""
    for path in paths:
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
"""Where functions written in Python ask whether a mode or a subclass wants to have them whole."""


def is_tracing() -> bool:
    """Tell whether a trace is under way in this thread, ours or anybody's; `torch.jit.is_tracing` denies ours."""
    return tracing_state is not None and tracing_state() is not None


def is_transforming() -> bool:
    """Tell whether a transform of torch.func is under way."""
    level = _found["torch._C._functorch.maybe_current_level"]
    return level is not None and level() is not None


def tracing_questions() -> Iterator[Place]:
    """Functions that tell a model whether it is traced."""
    return _places("torch._C._is_tracing", "torch.jit.is_tracing", "torch.jit._trace.is_tracing")


def tracing_state_place() -> Iterator[Place]:
    """Where `Module.__call__` asks for the state of the tracer."""
    return _places("torch._C._get_tracing_state")


# --- What the tracer is led past ---

"""The class below `autograd.Function`."""


def backward_engine() -> Iterator[Place]:
    """What `torch.autograd.grad` and `Tensor.backward` start."""
    return _places("torch.autograd._engine_run_backward")


def transforms() -> Iterator[tuple[str, Place]]:
    """The transforms of torch.func, by name."""
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
    """What sends tensors to other processes."""
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
"""Packages of a tracer or a compiler, which raise by themselves."""


def is_compiler_imported() -> bool:
    """Tell whether anything can have been compiled; to import the compiler takes a second."""
    return "torch._dynamo" in sys.modules


# --- Compiled modules ---

BACKWARD_CLASS = "_backward_cls"
EVAL_FRAME, DYNAMO_CONTEXT = "torch._dynamo.eval_frame", "_TorchDynamoContext"
SET_EVAL_FRAME, MAYBE_SET_EVAL_FRAME = "set_eval_frame", "_maybe_set_eval_frame"
PRE_HOOKS, POST_HOOKS = "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"
COMPILED_CALL = "_compiled_call_impl"
"""The attribute of a module that `module.compile()` sets, and that its calls go through."""

_ORIGINAL_MODULE = "_orig_mod"  # the child of what `torch.compile(module)` returns
_ORIGINAL_FUNCTION = "_torchdynamo_orig_callable"  # an attribute of what `torch.compile(function)` returns


def has_compiled_call(module: nn.Module) -> bool:
    """Tell whether `module.compile()` was called."""
    return getattr(module, COMPILED_CALL, None) is not None


def original_module(module: nn.Module) -> nn.Module | None:
    """Return the module inside what `torch.compile(module)` returned; None for any other module."""
    children = module._modules  # those of a scripted module have no `get`
    if _ORIGINAL_MODULE in children:
        return children[_ORIGINAL_MODULE]
    return None


def is_compiled_function(function: Any) -> bool:
    """Tell whether `torch.compile(function)` returned it."""
    return hasattr(function, _ORIGINAL_FUNCTION)


# --- Autograd ---

UNKNOWN_NODES = -1
"""Instead of a number of nodes; no number is equal to it."""

_sequence_nr: Any = _found["torch._C._autograd._get_sequence_nr"]
_graph_task: Any = _found["torch._C._current_graph_task_id"]
_node: Any = _found["torch._C._current_autograd_node"]
can_count_nodes: bool = _sequence_nr is not None

nodes_so_far: Callable[[], int] = _sequence_nr or (lambda: 0)
"""Counts the nodes that autograd has made in this thread: it numbers them. 0 where nobody knows."""


def current_node() -> Any:
    """Return the node of the graph that a backward in this thread is at; None in what is done around nodes."""
    return None if _node is None else _node()


def number_of(node: Any) -> int:
    """Return the number of a node: how many this thread had made before."""
    return int(node._sequence_nr())


def is_backward_running() -> bool:
    """Tell whether autograd is at work in this thread, so that a call of a module is a recomputation."""
    return current_node() is not None if _graph_task is None else _graph_task() != -1


# --- The dispatcher ---

_mode_of: Any = _found["torch._C._get_dispatch_mode"]
_mode_keys: Any = _found["torch._C._TorchDispatchModeKey"]
dispatch_modes: Any = _found["torch.utils._python_dispatch._get_current_dispatch_mode_stack"] or (lambda: ())
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
"""Subclasses whose operators are made of operators on the tensors inside, which say what really runs.

On this process' part of a distributed tensor, on the rows that a jagged tensor has.
"""


def fake_mode() -> Any:
    """Return the mode that gives tensors without values, if one is on."""
    if _mode_of is not None and _mode_keys is not None:
        return _mode_of(_mode_keys.FAKE)
    return next((mode for mode in reversed(dispatch_modes()) if type(mode).__name__ == "FakeTensorMode"), None)


def views_are_marked() -> AbstractContextManager[Any]:
    """Let operators mark the views that they make, where a handler runs past the marking."""
    return nullcontext() if _set_excluded is None else _set_excluded(DispatchKey.ADInplaceOrView, False)


def schema_of(func: OpOverload) -> Any:
    """Return the schema of an operator."""
    return func._schema


def operator_name(function: Any) -> str:
    """Return the name without overload of a function in `torch.ops`; empty for other functions."""
    if isinstance(function, OpOverloadPacket):
        function = getattr(function, next(iter(function.overloads())))
    return str(schema_of(function).name) if isinstance(function, OpOverload) else ""


def schemas_of(operator: str) -> list[str]:
    """Return the schemas of all overloads of an operator, `aten::add`, as texts."""
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

# Not the public function first: it imports the compiler's settings, which takes a second.
set_deterministic_algorithms: Any = (
    _found["torch._C._set_deterministic_algorithms"] or torch.use_deterministic_algorithms
)

REPLICATE = "_replicate_for_data_parallel"
"""The method of a module that makes a replica of it for another device."""

replicate: Any = _found["torch.nn.Module._replicate_for_data_parallel"]


def preserve_version_counter(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Return what puts the tensor's version back when it exits, to the one that it has now."""
    return nullcontext() if _preserve is None or _version is None else _preserve(tensor)


def base_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return the tensor that this one is a view of."""
    return getattr(tensor, "_base", None)


def is_view(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is a view."""
    return tensor._is_view() if hasattr(tensor, "_is_view") else base_of(tensor) is not None


def stored_values(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return what a sparse tensor in coordinates stores; None where that cannot be asked."""
    return tensor._values() if hasattr(tensor, "_values") else None


def nested_shapes(tensor: torch.Tensor) -> list[list[int]] | None:
    """Return the shapes of a nested tensor's components; None where they cannot be asked."""
    return tensor._nested_tensor_size().tolist() if hasattr(tensor, "_nested_tensor_size") else None


def storage_id(storage: torch.UntypedStorage) -> int | None:
    """Return what tells a storage from others; None where nothing does."""
    return int(storage._cdata) if _has_storage_id else storage.data_ptr() or None


create_script_module: Any = _found["torch.jit._recursive.create_script_module"]
SCRIPT_MODULE_PLACE: tuple[Any, str] = (_lookup("torch.jit._recursive"), "create_script_module")
"""What makes a module of TorchScript, for `script` and `trace`, and where it is looked up."""


def step_hooks_of(optimizer: Any) -> Any:
    """Return the hooks that run after an optimizer's step; None for a wrapper that is an optimizer in name alone."""
    return getattr(optimizer, POST_HOOKS, None)


def version_of(tensor: torch.Tensor) -> int:
    """Return how often a tensor was written to; always 0 where nobody can be asked."""
    return int(getattr(tensor, "_version", 0))


def default_store() -> Any:
    """Return the store that the default process group has; None where it has none, or nobody can be asked."""
    ask = _found["torch.distributed.distributed_c10d._get_default_store"]
    return None if ask is None else ask()


# --- Structures ---


def _plain_leaves(tree: Any) -> list[Any]:
    """The leaves of nested lists, tuples and dicts."""
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else None
    return [tree] if parts is None else [leaf for part in parts for leaf in _plain_leaves(part)]


def _plain_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same nested lists, tuples and dicts, of what a function makes of each leaf."""
    if type(tree) is dict:
        return {key: _plain_map(function, part) for key, part in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_plain_map(function, part) for part in tree)
    return function(tree)


tree_leaves: Callable[[Any], list[Any]] = _found["torch.utils._pytree.tree_leaves"] or _plain_leaves
tree_map: Callable[[Callable[[Any], Any], Any], Any] = _found["torch.utils._pytree.tree_map"] or _plain_map
