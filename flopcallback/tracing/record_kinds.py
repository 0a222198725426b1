"""Kinds of the profiler's records, by their names."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import DispatchKey

from flopcallback.formulas.cost import HARDWARE_FAMILIES, Family
from flopcallback.formulas.registry import Counted, Free, lookup
from flopcallback.tracing.marks import STOPPED, Mark, Marks
from flopcallback.tracing.record import AUTOGRAD_FUNCTION
from flopcallback.tracing.torch_private import BACKWARD_NODE, OPTIMIZER_STEP, schemas_of

__all__ = ["Kind", "Kinds", "Rank", "is_operator"]


class Rank(IntEnum):
    """Weight of a record: one inside another counts instead of it if its rank is as high.

    So a softmax inside an attention does not count instead of the attention.
    """

    NONE = 0
    ELEMENTWISE = 1
    OTHER = 2  # normalization, resampling, Fourier transforms
    UNKNOWN = 3
    PRODUCT = 4


class Kind(NamedTuple):
    """What a record of one name is.

    Attributes:
        rank: what it counts for; NONE if it does not count itself.
        mark: what it says if it is a mark.
        is_node: autograd works on one of its nodes inside.
        is_optimizer: an optimizer steps inside.
        is_leaf: nothing that counts can be inside.
        is_free: it costs nothing.
        is_composite: all of its work is inside.
        region: the name of what has operators inside, and may have a formula of its own.
        is_whole: it has a formula of its own, for whatever is inside.
        family: the family of its work, where that tells what counts instead of it.
    """

    rank: Rank = Rank.NONE
    mark: Mark | None = None
    is_node: bool = False
    is_optimizer: bool = False
    is_leaf: bool = False
    is_free: bool = False
    is_composite: bool = False
    region: str = ""
    is_whole: bool = False
    family: Family | None = None

    @property
    def is_open(self) -> bool:
        """Return whether it is nothing but what is inside: a mark, or an autograd function."""
        return self.mark is not None or self.region.startswith(AUTOGRAD_FUNCTION)


class Kinds:
    """Kinds of records, each looked up once: registered formulas may change between two runs.

    Attributes:
        leaves: names of records in which nothing counts.

    Args:
        families: operators of other families do not count; None if all do.
    """

    def __init__(self, families: Collection[Family] | None) -> None:
        self.leaves: set[str] = set()
        self._families = families
        self._kinds: dict[str, Kind] = {}
        self._functions: set[str] | None = None  # names of autograd functions, once a record may be one's

    def of(self, name: str) -> Kind:
        """Return the kind of a record."""
        if (kind := self._kinds.get(name)) is None:
            kind = self._kinds[name] = self._kind_of(name)
            if kind.is_leaf:
                self.leaves.add(name)
        return kind

    def _kind_of(self, name: str) -> Kind:
        if (mark := Marks.read(name)) is not None:
            if mark.kind == STOPPED:
                return Kind(mark=mark, is_leaf=True)
            return Kind(mark=mark)
        if name.startswith(BACKWARD_NODE):
            self._kinds[name.removeprefix(BACKWARD_NODE)] = Kind()  # the node's own record, which is no function
            return Kind(is_node=True)
        if name.startswith(OPTIMIZER_STEP):
            return Kind(is_optimizer=True)
        namespace, _, rest = name.partition("::")
        if not rest or not is_operator(name):
            return self._function(name)
        row = lookup(name)
        if isinstance(row, Free):
            return Kind(is_leaf=True, is_free=True)
        is_composite = _is_composite(name)
        if namespace not in ("aten", "prim", "prims"):
            rank = Rank.PRODUCT if isinstance(row, Counted) else Rank.NONE if is_composite else Rank.UNKNOWN
            return Kind(rank, region=name, is_whole=isinstance(row, Counted), is_composite=is_composite)
        if row is None:
            return Kind(Rank.UNKNOWN, is_composite=is_composite)
        if row.family in HARDWARE_FAMILIES:
            return Kind(Rank.PRODUCT, is_composite=is_composite)
        if self._families is not None and row.family not in self._families:
            # Nothing inside it multiplies matrices, unless it is composite.
            return Kind(is_leaf=not is_composite)
        rank = Rank.ELEMENTWISE if row.family is Family.ELEMENTWISE else Rank.OTHER
        return Kind(rank, is_composite=is_composite, family=row.family)

    def _function(self, name: str) -> Kind:
        """Return the kind of a record that is no operator's: maybe an autograd function's."""
        if self._functions is None:
            self._functions = set(_names_of_functions(torch.autograd.Function))
        if name not in self._functions:
            return Kind()
        region = AUTOGRAD_FUNCTION + name
        return Kind(region=region, is_whole=isinstance(lookup(region), Counted))


def _names_of_functions(cls: type) -> Iterator[str]:
    function: type
    for function in cls.__subclasses__():
        yield function.__name__
        yield from _names_of_functions(function)


@functools.cache
def _is_composite(operator: str) -> bool:
    """Return whether an operator is made of others, in one of its overloads."""
    namespace, _, name = operator.partition("::")
    packet = getattr(getattr(torch.ops, namespace, None), name, None)
    if packet is None:
        return False
    try:
        return any(
            getattr(packet, overload).has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)
            for overload in packet.overloads()
        )
    except RuntimeError:  # an operator without a registration in C++
        return False


_operators: set[str] = set()  # names that are known to be an operator's; others may become one


def is_operator(name: str) -> bool:
    """Return whether a record's name is that of a registered operator."""
    if name not in _operators and schemas_of(name):
        _operators.add(name)
    return name in _operators
