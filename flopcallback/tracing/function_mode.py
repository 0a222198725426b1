"""What the tracer's function mode does with a call: answer it aside, trace it, or copy the node of one like it."""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from flopcallback.tracing.dispatch import entered_operator
from flopcallback.tracing.regions import CONVOLUTIONS, META_CONVOLUTION, OVERLOADS, RunRegion, is_meta_convolution
from flopcallback.tracing.torch_private import (
    PLAIN_TENSORS,
    get_value_trace,
    is_any_autocast_enabled,
    operator_name,
    set_tracing_state,
    set_value_trace,
    tracing_state,
    tree_leaves,
)

__all__ = ["BeforeWrite", "FunctionMode", "KnownTensors"]

BeforeWrite = Callable[[torch.Tensor], None]

# Asked under the tracer, these answer with traced tensors, or cost three nodes each; asked aside, with plain Python
# values, which is what the model's own code would see without us.
_SHAPE_QUESTIONS = frozenset(
    {
        torch.Tensor.shape.__get__,  # type: ignore[attr-defined]
        torch.Tensor.ndim.__get__,  # type: ignore[attr-defined]
        torch.Tensor.size,
        torch.Tensor.dim,
        torch.Tensor.ndimension,
        torch.Tensor.numel,
        torch.Tensor.nelement,
        torch.Tensor.stride,
        torch.Tensor.storage_offset,
        torch.Tensor.is_contiguous,
        torch.Tensor.data_ptr,
        torch.Tensor.__len__,
        torch.Tensor.__repr__,
        torch.numel,
    }
)
# The answers to these depend on the data: what the model then does holds for these inputs.
_DATA_QUESTIONS = frozenset(
    {
        torch.Tensor.item,
        torch.Tensor.tolist,
        torch.Tensor.numpy,
        torch.Tensor.equal,
        torch.Tensor.allclose,
        torch.Tensor.is_nonzero,
        torch.Tensor.__bool__,
        torch.Tensor.__int__,
        torch.Tensor.__float__,
        torch.Tensor.__complex__,
        torch.Tensor.__index__,
        torch.Tensor.__array__,
        torch.Tensor.__contains__,
        torch.Tensor.__format__,
        torch.equal,
        torch.allclose,
        torch.is_nonzero,
    }
)
_QUESTIONS = _SHAPE_QUESTIONS | _DATA_QUESTIONS
_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]

_FOLLOWS_DATA = "a tensor's value became a Python value: the count holds for the path that these inputs take"
# The tracer's complaint about a tensor that it has not seen and must not bake into the graph.
_UNSEEN = "Cannot insert a Tensor that requires grad as a constant"


class KnownTensors:
    """The tensors that are inputs of a graph.

    Args:
        graph: the graph under way.
    """

    def __init__(self, graph: torch.Graph) -> None:
        self._graph = graph
        # Held, so that no other tensor can come to have the id of one of these.
        self._known: dict[int, torch.Tensor] = {}

    def register(self, tensor: torch.Tensor) -> None:
        """Make a tensor an input of the graph, as it is now."""
        if tensor.requires_grad and tensor.is_leaf:
            self._known[id(tensor)] = tensor
        set_value_trace(tensor, self._graph.addInput())

    def make_leaves_known(self, arguments: Iterable[Any]) -> None:
        """Make graph inputs of unseen leaves that require grad.

        The tracer would complain about them otherwise, and a complaint prints the whole tensor, which takes seconds
        for a large one. A leaf is no operator's result, so there is nothing to ask the tracer first.
        """
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                if argument.requires_grad and argument.is_leaf and id(argument) not in self._known:
                    self.register(argument)
            elif isinstance(argument, (list, tuple)):
                self.make_leaves_known(argument)

    def make_known(self, arguments: Iterable[Any]) -> None:
        """Make graph inputs of the tensors that need it.

        These require grad, and the tracer has not seen them yet.
        """
        state = tracing_state()
        leaves = tree_leaves(list(arguments))
        self.make_leaves_known(leaves)
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor) and leaf.requires_grad and id(leaf) not in self._known:
                try:
                    get_value_trace(leaf)
                except RuntimeError:
                    set_tracing_state(state)  # the complaint has cost the tracer its state (2.13)
                    self.register(leaf)


class FunctionMode(TorchFunctionMode):
    """Answers questions about tensors past the tracer, and introduces unseen tensors to it.

    It stands in the way of every call of the model, so it looks at as little as it can.

    Args:
        graph: the graph under way.
        known: the tensors that are inputs of the graph.
        region: runs a piece that cannot be traced past the tracer.
        before_write: told of every tensor that is about to be written to.
    """

    def __init__(
        self, graph: torch.Graph, known: KnownTensors, region: RunRegion, before_write: BeforeWrite | None
    ) -> None:
        super().__init__()
        self._known = known
        self._repeats = Repeats(graph)
        self._region = region
        self._before_write = before_write

    def __torch_function__(self, func: Any, types_: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._before_write is not None and (_writes(func) or "out" in kwargs):
            for tensor in _written_to(func, args, kwargs):
                self._before_write(tensor)
        state = tracing_state()
        if state is None:
            return func(*args, **kwargs)
        if func in _QUESTIONS:
            if func in _DATA_QUESTIONS:
                warnings.warn(_FOLLOWS_DATA, torch.jit.TracerWarning, stacklevel=2)  # type: ignore[attr-defined]
            set_tracing_state(None)
            try:
                return func(*args, **kwargs)
            finally:
                set_tracing_state(state)
        if func == _SET_DATA:  # other memory, and maybe another shape: to the tracer it is another tensor
            func(*args, **kwargs)
            self._known.register(args[0])
            return None
        is_overload = type(func) in OVERLOADS
        if (is_overload or func in CONVOLUTIONS) and is_meta_convolution(func, args, kwargs):
            return self._region(META_CONVOLUTION, func, args, kwargs)
        if is_overload and (operator := entered_operator(func, args, kwargs)) is not None:
            return self._region(operator_name(operator), operator, args, kwargs)
        try:
            if type(func) is types.FunctionType:
                # Many operators: a second try after a complaint would count the first ones twice.
                self._known.make_known((*args, *kwargs.values()))
                return func(*args, **kwargs)
            self._known.make_leaves_known(args)
            try:
                return self._repeats.call(state, func, args, kwargs)
            except RuntimeError as error:
                if _UNSEEN not in str(error):
                    raise
                set_tracing_state(state)
                self._known.make_known((*args, *kwargs.values()))
                return func(*args, **kwargs)
        except BaseException:
            # An operator that raises leaves the tracer without its state (2.13), and the model may well go on.
            set_tracing_state(state)
            raise


def _written_to(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """Yield the tensors that a call of a PyTorch function writes to.

    Its name (`add_`, `_foreach_add_`) or its `out=` says so.
    """
    if _writes(func):
        # A list comes first where many are written to; the fused optimizers write to several lists.
        lists = args if func.__name__.startswith("_fused_") else args[:1]
        yield from (leaf for leaf in tree_leaves(lists) if isinstance(leaf, torch.Tensor))
    if "out" in kwargs:
        yield from (leaf for leaf in tree_leaves(kwargs["out"]) if isinstance(leaf, torch.Tensor))


_WRITING_OPERATORS = frozenset(
    # The last three hand the memory to somebody whose writes cannot be seen.
    """
    __setitem__ __iadd__ __isub__ __imul__ __imatmul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __iand__ __ior__
    __ixor__ numpy __array__ __dlpack__
    """.split()  # noqa: SIM905 - easier read without quotes
)


@functools.cache
def _writes(func: Any) -> bool:
    """Return whether a PyTorch function writes to its arguments, by its name."""
    name = getattr(func, "__name__", "")
    return name in _WRITING_OPERATORS or (name.endswith("_") and not name.endswith("__"))


# --- Repeats ---
#
# At every node, constants included, the tracer writes the whole Python stack down: some 20 us and 3 KB. A convolution
# is eighteen nodes. Layers repeat, and a copy shares constants and text with the original.

_CONSTANTS = frozenset(
    {
        int,
        float,
        complex,
        bool,
        str,
        type(None),
        type(...),
        torch.dtype,
        torch.device,
        torch.layout,
        torch.memory_format,
    }
)
_SEQUENCES = frozenset({tuple, list, torch.Size})
_LONGEST_SEQUENCE = 16  # of sizes, strides, indices; longer ones are data


class _Unusual(Exception):  # noqa: N818 - nothing went wrong
    """An argument that no form is made of."""


class _Pattern(NamedTuple):
    """The one operator that calls of a form are: its node, and which of its values are which tensors of the call."""

    node: torch.Node
    positions: dict[int, int]


class Repeats:
    """The forms of calls that one trace has met, and what the tracer made of them.

    A call that differs from an earlier one by nothing but its tensors gets a copy of the node that was made then.

    Args:
        graph: the graph under way.
    """

    def __init__(self, graph: torch.Graph) -> None:
        self._graph = graph
        self._patterns: dict[Hashable, _Pattern | None] = {}

    def call(self, state: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function that is not written in Python, and trace it.

        The tracer traces it, or we do, to the same effect.

        Args:
            state: the tracing state, to be restored.
            function: what to call.
            args: positional arguments.
            kwargs: keyword arguments.

        Raises:
            Exception: whatever the function raises; the tracer's complaint about an unseen tensor that requires grad.
        """
        tensors: list[torch.Tensor] = []
        try:
            form = _form(function, args, kwargs, tensors)
        except _Unusual:
            return function(*args, **kwargs)
        if form not in self._patterns:
            return self._learn(form, function, args, kwargs, tensors)
        pattern = self._patterns[form]
        if pattern is None:
            return function(*args, **kwargs)
        values = [get_value_trace(tensor) for tensor in tensors]
        set_tracing_state(None)
        try:
            result = function(*args, **kwargs)
        finally:
            set_tracing_state(state)
        self._copy(pattern, values, _outputs(result))
        return result

    def _learn(
        self,
        form: Hashable,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: Iterable[torch.Tensor],
    ) -> Any:
        positions = {get_value_trace(tensor).unique(): position for position, tensor in enumerate(tensors)}
        end = self._graph.return_node()
        before = end.prev()
        result = function(*args, **kwargs)
        new: list[torch.Node] = []
        node = end.prev()
        while node.isAfter(before):
            new.append(node)
            node = node.prev()
        self._patterns[form] = _pattern(new, positions, _outputs(result))
        return result

    def _copy(self, pattern: _Pattern, values: Sequence[torch.Value], results: Sequence[torch.Tensor]) -> None:
        def mapped(value: torch.Value) -> torch.Value:
            position = pattern.positions.get(value.unique())
            return value if position is None else values[position]

        node = self._graph.createClone(pattern.node, mapped)  # type: ignore[attr-defined]
        self._graph.insertNode(node)
        for output, tensor in zip(node.outputs(), results, strict=True):
            output.inferTypeFrom(tensor)
            set_value_trace(tensor, output)


def _pattern(new: Iterable[torch.Node], positions: dict[int, int], results: Sequence[torch.Tensor]) -> _Pattern | None:
    """Return what to copy for a call like this one, or None.

    There is a pattern where the `new` nodes are one operator on the call's tensors and on constants.
    """
    operators, constants = [], set()
    for node in new:
        kind = node.kind()
        if kind == "prim::Constant" or (kind == "prim::ListConstruct" and _is_constant(node)):
            constants.add(node.output().unique())
        else:
            operators.append(node)
    if len(operators) != 1 or not operators[0].kind().startswith("aten::"):
        return None
    (operator,) = operators
    inputs = {value.unique() for value in operator.inputs()}
    outputs = [value.unique() for value in operator.outputs()]
    is_whole = inputs <= constants | positions.keys() and bool(outputs)
    if not is_whole or [get_value_trace(result).unique() for result in results] != outputs:
        return None
    return _Pattern(operator, positions)


def _is_constant(node: torch.Node) -> bool:
    return all(value.node().kind() == "prim::Constant" for value in node.inputs())


def _outputs(result: Any) -> Sequence[torch.Tensor]:
    """Return an operator's output tensors, or none where it returned anything else."""
    if isinstance(result, torch.Tensor):
        return (result,)
    if isinstance(result, tuple) and all(isinstance(item, torch.Tensor) for item in result):
        return result
    return ()


def _form(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[torch.Tensor]
) -> Hashable:
    """Return all that decides which nodes a call makes.

    That is the function, its constants, and ranks and dtypes of its tensors. Under autocast it would not be all: casts
    of weights are made once and kept.
    """
    if "out" in kwargs or is_any_autocast_enabled():
        raise _Unusual
    named = [(name, _part(value, tensors)) for name, value in kwargs.items()]
    return (function, *[_part(value, tensors) for value in args], *named)


def _part(value: Any, tensors: list[torch.Tensor]) -> Hashable:
    kind = type(value)
    if kind in PLAIN_TENSORS:
        for position, tensor in enumerate(tensors):
            if tensor is value:
                return ("again", position)
        tensors.append(value)
        return (value.dim(), value.dtype)
    if kind in _CONSTANTS:
        return (kind, value)
    if kind in _SEQUENCES and len(value) <= _LONGEST_SEQUENCE:
        return (kind, *[_element(item) for item in value])
    if kind is slice:
        return (kind, _element(value.start), _element(value.stop), _element(value.step))
    raise _Unusual


def _element(value: Any) -> Hashable:
    """Return the key of a part within a sequence or a slice.

    There must be no tensor in it: the tracer puts those into a list.
    """
    if type(value) in PLAIN_TENSORS:
        raise _Unusual
    return _part(value, [])
