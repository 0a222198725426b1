"""Tensors, their shapes and plain numbers in anything that a call is given."""

from __future__ import annotations

import functools
import sys
from collections import UserDict, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice, repeat
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from flopcallback.tracing.torch_private import stored_values

__all__ = [
    "MOST_VALUES",
    "PLAIN",
    "CallKey",
    "Facts",
    "Shapes",
    "facts_of",
    "holds_tensors",
    "is_plain",
    "is_wanted",
    "key_of",
    "parts_of",
    "shapes_of",
    "tensors_in",
]


Shapes = tuple[tuple[int, ...], ...]

Facts = tuple[Any, ...]
"""What `facts_of` returns: flat, so that it is quickly made and looked up."""

MOST_VALUES = 1_000
"""Values that are looked at in plain containers, and as many in objects; with more, nothing is known."""

MOST_FACTS = 64
"""Containers, and values in each, beyond which inputs are known by their key alone."""

LONG = 8
"""Items of a plain list up to which each number in it counts; longer ones are data, known by their length."""

PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device})
"""Types of values that hold no others."""

CLOSED = (
    nn.Module,
    Dataset,
    DataLoader,
    torch.optim.Optimizer,
    Iterator,
    type,
    ModuleType,
    FunctionType,
    MethodType,
    BuiltinFunctionType,
    functools.partial,
)
"""Types of objects that are no inputs, whatever they hold."""

CONTAINERS = (dict, tuple, list, deque)
"""Types whose items are looked at, also in subclasses."""

STRIDED = torch.strided
Tensor = torch.Tensor  # looked up for each value of each call


class _Layout(NamedTuple):
    """What instances of a type hold, and where.

    Attributes:
        is_wanted: whether they are tensors or arrays.
        container: the type whose methods give their items; None if they have none.
        has_dict: whether they have a `__dict__`.
        slots: names of their slots.
    """

    is_wanted: bool = False
    container: type[Any] | None = None
    has_dict: bool = False
    slots: tuple[str, ...] = ()


_layouts: WeakKeyDictionary[type, _Layout] = WeakKeyDictionary()  # what `_layout_of` answered


class CallKey(NamedTuple):
    """What is known of the inputs of a call: calls with different keys may differ in cost.

    Attributes:
        shapes: shapes of the tensors and NumPy arrays.
        numbers: plain ints and bools in plain tuples, lists and dicts; lengths of longer lists of plain values. None
            stands for one that a user of the key left out.
        with_grad: positions in `shapes` of the tensors that require grad, since backward works for these, too.
        names: names in each plain dict, such as those of arguments: a model may do other work for another task.
        objects: number of values that are no tensors, plain containers or plain values, outside of each other.
    """

    shapes: Shapes
    numbers: tuple[int | None, ...] = ()
    with_grad: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    objects: int = 0


def key_of(inputs: Any) -> CallKey | None:
    """Return the key of a call's inputs, or None if nothing is known.

    Objects are searched for tensors through `__dict__` and `__slots__`, which runs no code of theirs. Numbers in them
    are left out: many count something that has no cost. Values of tensors are not read, and no device is waited for.

    Args:
        inputs: a batch, or `(args, kwargs)`.

    Returns:
        None if there is no tensor or array, more than `MOST_VALUES` values, or a tensor that cannot be asked.
    """
    # This runs in every step: the usual types come first, and objects are left for later.
    shapes: list[tuple[int, ...]] = []
    numbers: list[int] = []
    with_grad: list[int] = []
    names: list[str] = []
    objects: list[Any] = []
    containers: list[Any] = [(inputs,)]  # grows as it is walked through
    left = MOST_VALUES
    for parts in containers:
        left -= len(parts) + 1
        if left < 0:
            return None
        for part in parts:
            kind = type(part)
            if kind is Tensor and part.layout is STRIDED:
                try:
                    shapes.append(part.shape)
                except RuntimeError:  # nested tensors of this layout have none
                    objects.append(part)
                    continue
                if part.requires_grad:
                    with_grad.append(len(shapes) - 1)
            elif kind is dict:
                if part:
                    names.append(_names_of(part))
                    containers.append(part.values())
            elif kind is tuple or kind is list:
                if len(part) > LONG and is_plain(part):
                    numbers.append(len(part))
                else:
                    containers.append(part)
            elif kind is int or kind is bool:
                numbers.append(part)
            elif kind in PLAIN:
                continue
            elif UserDict in kind.__mro__:  # such as transformers' BatchEncoding
                containers.append((object.__getattribute__(part, "__dict__").get("data"),))
            else:
                objects.append(part)
    if objects:
        facts = _facts_of(objects)
        if facts is None:
            return None
        with_grad += [len(shapes) + position for position, (_, requires_grad) in enumerate(facts) if requires_grad]
        shapes += [shape for shape, _ in facts]
    if not shapes:
        return None
    return CallKey(tuple(shapes), tuple(numbers), tuple(with_grad), tuple(names), len(objects))


def facts_of(inputs: Any) -> Facts | None:
    """Return what determines the key of plain inputs.

    Equal facts mean equal results of `key_of`, of which this is the short form: it runs in every step.

    Args:
        inputs: as of `key_of`.

    Returns:
        Shapes, `requires_grad` and names as they are met. None if there is anything but tensors in plain containers, or
        too much.
    """
    # Most calls get a few tensors by position.
    kind = type(inputs)
    parts = (inputs,) if kind is Tensor else inputs
    if kind is tuple and len(inputs) == 2 and type(inputs[1]) is dict and not inputs[1]:
        parts = inputs[0]
    if type(parts) is not tuple or len(parts) > MOST_FACTS:
        return _nested_facts_of(inputs)
    facts: list[Any] = []
    for part in parts:
        if type(part) is not Tensor or part.layout is not STRIDED:
            return _nested_facts_of(inputs)
        try:
            facts.append(part.shape)
        except RuntimeError:  # as in `key_of`
            return None
        facts.append(part.requires_grad)
    return tuple(facts)


def _nested_facts_of(inputs: Any) -> Facts | None:
    facts: list[Any] = []
    containers: list[Any] = [(inputs,)]  # grows as it is walked through
    for parts in containers:
        if len(parts) > MOST_FACTS or len(containers) > MOST_FACTS:
            return None
        for part in parts:
            kind = type(part)
            if kind is Tensor and part.layout is STRIDED:
                try:
                    facts += part.shape, part.requires_grad
                except RuntimeError:  # as above
                    return None
            elif kind is tuple or kind is list:
                containers.append(part)
            elif kind is dict:
                if part:
                    facts.append(_names_of(part))
                    containers.append(part.values())
            else:
                return None
    return tuple(facts)


def _names_of(named: dict[Any, Any]) -> str:
    try:
        return " ".join(named)
    except TypeError:  # other keys may count the samples, and are not kept
        return ""


def shapes_of(structure: Any) -> Shapes:
    """Return the shapes of `key_of`; none if nothing is known."""
    key = key_of(structure)
    return () if key is None else tuple(map(tuple, key.shapes))


def tensors_in(structure: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a batch or a result; none if it has more than `MOST_VALUES` values.

    Searched are plain containers, and objects through `__dict__` and `__slots__`.
    """
    yield from (each for each in _search([structure]) or () if isinstance(each, Tensor))


def holds_tensors(value: Any) -> bool:
    """Return whether an object holds tensors or arrays, or too many values to tell."""
    return _search([value]) != []


def is_wanted(kind: type) -> bool:
    """Return whether values of a type are tensors or arrays."""
    return (_layouts.get(kind) or _layout_of(kind)).is_wanted


def parts_of(value: Any) -> list[Any]:
    """Return what a container or an object holds, up to `MOST_VALUES` and more, without running code of its class."""
    kind = type(value)
    return _parts_of(value, _layouts.get(kind) or _layout_of(kind))


def is_plain(items: tuple[Any, ...] | list[Any]) -> bool:
    """Return whether the items hold nothing: the first `MOST_VALUES` of them decide."""
    return PLAIN.issuperset(map(type, islice(items, MOST_VALUES)))


def _search(values: Iterable[Any]) -> list[Any] | None:
    """Return the tensors and arrays in any values; None after `MOST_VALUES` of these."""
    found: list[Any] = []
    stack = [*values][::-1]
    entered: set[int] = set()  # ids of objects, which may hold each other
    for _ in repeat(None, MOST_VALUES):
        if not stack:
            return found
        value = stack.pop()
        kind = type(value)
        if kind in PLAIN:
            continue
        layout = _layouts.get(kind) or _layout_of(kind)
        if layout.is_wanted:
            found.append(value)
        elif id(value) not in entered:
            entered.add(id(value))
            stack += _parts_of(value, layout)[::-1]
    return found if not stack else None


def _parts_of(value: Any, layout: _Layout) -> list[Any]:
    """Return what a container or an object holds, without running code of its class."""
    parts: list[Any] = []
    if layout.container is dict:
        parts += islice(dict.values(value), MOST_VALUES + 1)
        if parts:  # such as transformers' ModelOutput, whose attributes are its items once more
            return parts
    elif layout.container is not None:
        parts += islice(layout.container.__iter__(value), MOST_VALUES + 1)
        if is_plain(parts):
            parts.clear()
    if layout.has_dict:
        parts += islice(object.__getattribute__(value, "__dict__").values(), MOST_VALUES + 1)
    for name in layout.slots:
        with suppress(AttributeError):  # of a slot that was never filled
            parts.append(object.__getattribute__(value, name))
    return parts


def _layout_of(kind: type) -> _Layout:
    if issubclass(kind, Tensor) or _is_array(kind):
        layout = _Layout(is_wanted=True)
    elif issubclass(kind, CLOSED):
        layout = _Layout()
    else:
        container = next((base for base in CONTAINERS if issubclass(kind, base)), None)
        layout = _Layout(container=container, has_dict=bool(kind.__dictoffset__), slots=_slots_of(kind))
    _layouts[kind] = layout
    return layout


def _slots_of(kind: type) -> tuple[str, ...]:
    # Names, not descriptors: these would keep the class. Of several of a name, the most derived one.
    members = {name: member for base in reversed(kind.__mro__) for name, member in vars(base).items()}
    members.pop("__dict__", None)
    return tuple(name for name, member in members.items() if type(member) is MemberDescriptorType)


def _is_array(kind: type) -> bool:
    numpy = sys.modules.get("numpy")  # no array without it
    return numpy is not None and issubclass(kind, numpy.ndarray)


def _facts_of(values: Iterable[Any]) -> list[tuple[tuple[int, ...], bool]] | None:
    """Return shape and `requires_grad` of the tensors and arrays in any values; None if any is not known."""
    found = _search(values)
    if found is None:
        return None
    try:
        return [(_shape(value), isinstance(value, Tensor) and value.requires_grad) for value in found]
    except (RuntimeError, TypeError):  # a subclass of tensors may refuse
        return None


def _shape(tensor: Any) -> tuple[int, ...]:
    """Return the shape of a tensor or array; of nested and sparse tensors also that of what is stored."""
    if not isinstance(tensor, Tensor) or (tensor.layout is STRIDED and not tensor.is_nested):
        return tensor.shape  # type: ignore[no-any-return]
    with torch.no_grad():  # a step's autograd nodes are counted, and a look at values would make one
        values = stored_values(tensor) if tensor.layout is torch.sparse_coo else tensor.values()
    sizes = (tensor.size(0),) if tensor.is_nested else tensor.shape
    return (*sizes, *(() if values is None else values.shape))
