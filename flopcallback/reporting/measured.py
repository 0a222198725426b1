"""What was timed as one: innermost modules and the own operators of all others, out of a profile."""

from __future__ import annotations

import functools
import math
import re
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from flopcallback.profile.numbers import sum_of
from flopcallback.profile.rows import ModuleRow, share
from flopcallback.profile.times import IDLE, PYTHON, bytes_of
from flopcallback.reporting.points import OPTIMIZER, OTHERS, Point
from flopcallback.reporting.tree import OWN, module_tree, walk

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.profile.times import OperatorTime

__all__ = [
    "folded",
    "is_of_step",
    "measured_points",
    "points_of",
    "timed_innermost",
    "whole_flops",
    "whole_ms",
]

# Share of the time from which a module's own operator without FLOPs is a point of its own: views and additions of a
# transformer's blocks would else be most of its points.
WORTH_A_POINT = 0.002

# Share of a module's time below which what is left of it is rounding.
ROUNDING = 1e-6

OVERHEAD = (PYTHON, IDLE)

ATTENTION = "scaled_dot_product_attention"
PARTS_OF_ATTENTION = frozenset({"matmul", "baddbmm", "softmax", "dropout"})

# What fused attention is called inside, by kernel and in backward.
_ATTENTION = re.compile(r"scaled_dot_product_\w+")
# The backward of an operator has its name, with such an end.
_BACKWARD = re.compile(r"_backward(_data)?$")
# Autograd's node of it is `UnbindBackward0` for `unbind`.
_NODE, _NEXT_WORD = re.compile(r"(\w+)Backward\d+"), re.compile("(?<=[a-z0-9])(?=[A-Z])")
_PRODUCTS = {"mm": "matmul", "bmm": "matmul", "addmm": "linear"}  # which products become in backward


def is_of_step(profile: ModelProfile) -> bool:
    """Return whether points have the time of a training step, rather than that of the counted call."""
    return bool(profile.operator_times) or _has_step_times(profile)


def _has_step_times(profile: ModelProfile) -> bool:
    return profile.root is not None and profile.root.time is not None and profile.root.time.total > 0


def whole_ms(profile: ModelProfile) -> float | None:
    """Return the milliseconds that points are shares of; None if nothing was measured."""
    if profile.operator_times:
        return math.fsum(each.ms for each in profile.operator_times if _is_time(each.ms))
    if profile.root is not None and profile.root.time is not None and profile.root.time.total > 0:
        return profile.root.time.total
    return profile.forward_ms


def whole_flops(profile: ModelProfile) -> int:
    """Return the FLOPs that points are shares of."""
    if not is_of_step(profile):
        return profile.forward_flops
    return profile.step.total if profile.step is not None else sum(each.flops for each in profile.operator_times)


def points_of(profile: ModelProfile) -> list[Point]:
    """Return the points, those of identical modules as one, the slowest first."""
    return folded(profile, measured_points(profile))


def measured_points(profile: ModelProfile) -> list[Point]:
    """Return what was timed as one, each with a finite time above 0.

    They are modules without timed modules inside, and the own operators of all others, such as attention: one by one
    where operators were timed, else together. So are the operators of a module that does products of several kinds.
    With what Python and launches take between them, and with the time in which a device has nothing to do, they are all
    of the time.
    """
    ms, flops = whole_ms(profile), whole_flops(profile)
    return [
        replace(point, time_share=share(point.ms, ms) or 0.0, flops_share=share(point.flops, flops) or 0.0)
        for point in _points(profile)
    ]


def _points(profile: ModelProfile) -> Iterator[Point]:
    if profile.operator_times:
        return _by_operator(profile)
    if _has_step_times(profile):
        times = {row.path: row.time.total for row in profile.modules if row.time is not None}
        return _by_row(profile, times, is_step=True)
    times = {row.path: row.forward_ms for row in profile.modules if row.forward_ms is not None}
    return _by_row(profile, times, is_step=False)


def timed_innermost(profile: ModelProfile, times: Mapping[str, float]) -> set[str]:
    """Return the paths with a finite time above 0 that contain none of the others.

    Args:
        profile: profile with their rows.
        times: milliseconds by path of a row.
    """
    timed = {path for path, ms in times.items() if _is_time(ms)}
    return timed - _containers({row.path: row for row in profile.modules}, timed)


def _is_time(ms: float) -> bool:
    return 0 < ms < math.inf


def _containers(rows: Mapping[str, ModuleRow], timed: Iterable[str]) -> set[str]:
    """Return the paths of rows that have one of the timed rows inside."""
    containers: set[str] = set()
    for path in timed:
        ancestor = rows[path].parent
        # Ancestors of one that was seen have been seen too.
        while ancestor is not None and ancestor not in containers:
            containers.add(ancestor)
            ancestor = rows[ancestor].parent if ancestor in rows else None
    return containers


# --- From rows -------------------------------------------------------------------------------------------------------


def _by_row(profile: ModelProfile, times: Mapping[str, float], *, is_step: bool) -> Iterator[Point]:
    """Yield a point per row that is measured innermost, and one for what is left of each other row."""
    rows = {row.path: row for row in profile.modules}
    timed = {path: ms for path, ms in times.items() if _is_time(ms)}
    containers = _containers(rows, timed)
    own = _Own(profile)
    for path, ms in timed.items():
        row = rows[path]
        if path not in containers:
            flops = row.step.total if is_step and row.step is not None else row.flops
            moved = None if is_step else row.bytes
            yield Point(row, path, "", ms, flops, moved, row.bytes, row.activations)
            continue
        inside = [child for child in own.children[path] if child.calls]
        left_ms = ms - math.fsum(times.get(child.path, 0.0) for child in own.children[path])
        # What a child without a time took is in what is left.
        if left_ms > ROUNDING * ms and (is_step or all(child.path in times for child in inside)):
            flops = own.step_flops(row) if is_step else row.own_flops
            moved = own.bytes(row)
            yield Point(row, path, OWN, left_ms, flops, None if is_step else moved, moved, own.activations(row))


class _Own:
    """What rows have without the rows inside."""

    def __init__(self, profile: ModelProfile) -> None:
        self.children: defaultdict[str | None, list[ModuleRow]] = defaultdict(list)
        for row in profile.modules:
            self.children[row.parent].append(row)

    def bytes(self, row: ModuleRow) -> int:
        return max(0, row.bytes - sum(child.bytes for child in self.children[row.path]))

    def activations(self, row: ModuleRow) -> int:
        return max(0, row.activations - sum(child.activations for child in self.children[row.path]))

    def step_flops(self, row: ModuleRow) -> int:
        if row.step is None:
            return row.own_flops
        inside = sum(child.step.total for child in self.children[row.path] if child.step is not None)
        return max(0, row.step.total - inside)


# --- From operators --------------------------------------------------------------------------------------------------


def _by_operator(profile: ModelProfile) -> Iterator[Point]:
    """Yield a point per innermost module, and one per own operator of all other modules and of none."""
    rows = {row.path: row for row in profile.modules}
    times = [each for each in profile.operator_times if _is_time(each.ms)]
    containers = _containers(rows, {each.path for each in times if each.path in rows}) | _of_several_kinds(times)
    groups = _grouped(times, containers, whole_ms(profile) or 0.0)
    products: defaultdict[str | None, int] = defaultdict(int)  # own operators with FLOPs, by path
    for (path, operator), group in groups.items():
        products[path] += bool(operator) and any(each.flops for each in group)
    own = _Own(profile)
    for (path, operator), group in groups.items():
        row = _row_of(rows, path)
        flops = sum(each.flops for each in group)
        work = [each for each in group if each.operator not in OVERHEAD]
        if not operator and row.step is not None:
            flops = row.step.total
        yield Point(
            row=row,
            place=path or "",
            operator=operator,
            ms=math.fsum(each.ms for each in group),
            flops=flops,
            bytes=bytes_of(group),
            forward_bytes=None if operator else row.bytes,
            activations=_activations(own, row, path, operator, flops, products[path]),
            calls=sum(each.calls for each in work),
            overhead_ms=math.fsum(each.ms for each in group if each.operator in OVERHEAD),
            is_outside=path is None,
        )


def _of_several_kinds(times: Iterable[OperatorTime]) -> set[str]:
    """Return the paths of modules whose own operators do products of several kinds, as `nn.MultiheadAttention` does."""
    kinds: defaultdict[str, set[str]] = defaultdict(set)
    for each in times:
        # The backward of one operator may be several.
        if each.path is not None and each.flops and each.phase != "backward":
            kinds[each.path].add(_short(each.operator))
    return {path for path, names in kinds.items() if len(names) > 1}


def _grouped(
    times: Sequence[OperatorTime], containers: set[str], whole: float
) -> dict[tuple[str | None, str], list[OperatorTime]]:
    """Return operators by path and name of their point; what is between modules has none."""
    groups: defaultdict[tuple[str | None, str], list[OperatorTime]] = defaultdict(list)
    forward: defaultdict[str | None, set[str]] = defaultdict(set)  # names of operators, by path
    for each in times:
        if each.phase != "backward":
            forward[each.path].add(_short(each.operator))
    for each in times:
        if each.path is not None and each.path not in containers:
            groups[each.path, ""].append(each)
        elif each.path is None and each.phase == "optimizer":
            groups[None, OPTIMIZER].append(each)
        elif each.operator not in OVERHEAD:
            groups[each.path, _name_of(each, forward[each.path])].append(each)
    joined: defaultdict[tuple[str | None, str], list[OperatorTime]] = defaultdict(list)
    for (path, operator), group in groups.items():
        is_small = math.fsum(each.ms for each in group) < WORTH_A_POINT * whole
        is_other = operator not in ("", OPTIMIZER) and is_small and not any(each.flops for each in group)
        joined[path, OTHERS if is_other else operator] += group
    return dict(joined)


def _name_of(each: OperatorTime, forward: Container[str]) -> str:
    """Return the name of an operator's point.

    Args:
        each: the operator.
        forward: names of what its module does in forward.
    """
    name = _short(each.operator)
    # Without a kernel of its own, attention is several operators in backward.
    is_part = each.phase == "backward" and name in PARTS_OF_ATTENTION and name not in forward
    return ATTENTION if is_part and ATTENTION in forward else name


def _row_of(rows: Mapping[str, ModuleRow], path: str | None) -> ModuleRow:
    """Return the row of a path: the root's outside of the model, an empty one for a module added after the count."""
    return rows.get(path or "") or ModuleRow(path or "", None if not path else "", 0 if not path else 1, type="")


def _activations(own: _Own, row: ModuleRow, path: str | None, operator: str, flops: int, products: int) -> int | None:
    """Return the activations of a point; None where several own operators share those of their module."""
    if not operator:
        return row.activations
    # Only operators with FLOPs put out what counts as activations.
    if path is None or not flops:
        return 0
    return own.activations(row) if products == 1 else None


@functools.cache
def _short(operator: str) -> str:
    """Return an operator's name as a reader knows it, the same in forward and backward."""
    name = operator.removeprefix("aten::")
    if node := _NODE.fullmatch(name):
        name = _NEXT_WORD.sub("_", node[1]).lower()
    if _ATTENTION.search(name):
        return ATTENTION
    name = _BACKWARD.sub("", name).lstrip("_").removeprefix("native_")
    return _PRODUCTS.get(name, name) or operator


# --- Identical modules -----------------------------------------------------------------------------------------------


def folded(profile: ModelProfile, points: Iterable[Point]) -> list[Point]:
    """Join the points of identical modules side by side; return them in decreasing order of time."""
    root = module_tree(profile)
    places = {} if root is None else {path: line.node.path for line in walk(root) for path in line.node.paths}
    groups: defaultdict[tuple[str, str, bool], list[Point]] = defaultdict(list)
    for point in points:
        groups[places.get(point.place, point.place), point.operator, point.is_outside].append(point)
    joined = [_joined(place, group) for (place, *_), group in groups.items()]
    return sorted(joined, key=lambda point: -point.ms)


def _joined(place: str, group: Sequence[Point]) -> Point:
    return replace(
        group[0],
        place=place,
        ms=math.fsum(point.ms for point in group),
        flops=sum(point.flops for point in group),
        bytes=sum_of([point.bytes for point in group]),
        forward_bytes=sum_of([point.forward_bytes for point in group]),
        activations=sum_of([point.activations for point in group]),
        calls=sum(point.calls for point in group),
        overhead_ms=math.fsum(point.overhead_ms for point in group),
        modules=len(group),
        time_share=math.fsum(point.time_share for point in group),
        flops_share=math.fsum(point.flops_share for point in group),
    )
