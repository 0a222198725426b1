"""Profiles of older schemas, which had FLOPs at 1 per multiply-add beside those at 2.

What was `hw_flops` is `flops` today, and what was `flops` is `macs`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from flopcallback.profile.metrics import today
from flopcallback.profile.old_names import warn_of_older_version
from flopcallback.profile.reading import parsed, read
from flopcallback.profile.rows import LatencySummary, ModuleRow, OperatorRow, StepFlops
from flopcallback.profile.times import LATER_TIMES
from flopcallback.profile.verdict import LATER_FIELDS, Verdict

__all__ = ["FMA", "OLD_SCHEMAS", "is_old", "old_convention", "renewed"]

OLD_SCHEMAS = {
    1: ("step", "step_note", "verdict", "training"),
    2: ("verdict", "training"),
    3: ("training",),
}
"""Schemas of older versions, each with the fields that came after its first files."""

FMA = "flops.fma"
"""Entry of the config that said whether a multiply-add was 1 FLOP or 2."""

# Their FLOPs, where a multiply-add was 1, are half of today's; the other families had no multiply-adds.
_PRODUCTS = frozenset({"convolution", "matmul", "attention", "recurrent", "custom"})


@dataclass(frozen=True, slots=True)
class _Module:
    """Row of a module, as `ModuleRow` was."""

    path: str
    parent: str | None
    depth: int
    type: str
    calls: int = 0
    params: int = 0
    params_trainable: int = 0
    flops: int = 0
    own_flops: int = 0
    hw_flops: int = 0
    activations: int = 0
    bytes: int = 0
    forward_ms: float | None = None
    forward_ms_spread: tuple[float, float] | None = None
    step: StepFlops | None = None
    unknown_calls: int = 0
    output_shape: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Operator:
    """Row of an operator, as `OperatorRow` was."""

    operator: str
    calls: int
    flops: int
    family: str = ""
    status: str = "counted"


@dataclass(frozen=True, slots=True)
class _Profile:
    """Profile, as `ModelProfile` was."""

    name: str
    phase: str = "call"
    modules: tuple[_Module, ...] = ()
    operators: tuple[_Operator, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    forward_flops: int = 0
    forward_hw_flops: int = 0
    unknown: Mapping[str, str] = field(default_factory=dict)
    latency: LatencySummary | None = None
    step: StepFlops | None = None
    step_note: str = ""
    verdict: Verdict | None = None
    training: Mapping[str, int | float] = field(default_factory=dict)


def renewed(content: Any, schema: int) -> dict[str, Any]:
    """Return the fields of today's profile from the JSON of an older one.

    Args:
        content: the JSON, without its schema.
        schema: one of `OLD_SCHEMAS`.

    Raises:
        ValueError: a field is not as it was written; the message names it.
    """
    old: _Profile = read(
        _Profile, content, optional=(*OLD_SCHEMAS[schema], *LATER_TIMES, *LATER_FIELDS, "without_grad")
    )
    fma = 2 if read(int, old.config.get(FMA, 1), f"config[{FMA!r}]") == 2 else 1
    warn_of_older_version()
    changed = {
        "modules": _modules(old.modules, fma),
        "operators": tuple(_operators(old, fma)),
        "config": {name: value for name, value in old.config.items() if name != FMA},
        "forward_flops": old.forward_hw_flops,
        "forward_macs": _macs(old.forward_flops, old.forward_hw_flops, fma),
        "training": today(old.training),
    }
    same = {item.name: getattr(old, item.name) for item in fields(_Profile) if item.name != "forward_hw_flops"}
    return {**same, **changed}


def is_old(text: str | bytes) -> bool:
    """Return whether a JSON is a profile of an older version.

    Raises:
        ValueError: it is no JSON.
    """
    content = parsed(text)
    schema = content.get("flopcallback_profile") if isinstance(content, dict) else None
    return isinstance(schema, int) and schema in OLD_SCHEMAS


def old_convention(text: str | bytes) -> dict[str, Any]:
    """Return what the config of a profile says of a multiply-add, which only that of an older version does."""
    return {FMA: parsed(text)["config"].get(FMA, 1)} if is_old(text) else {}


def _macs(flops: int, hw_flops: int, fma: int) -> int:
    """Return former FLOPs at 1 per multiply-add, whatever they were counted at."""
    return flops if fma == 1 else max(0, flops - hw_flops // 2)


def _modules(modules: Sequence[_Module], fma: int) -> tuple[ModuleRow, ...]:
    inside: Counter[str | None] = Counter()
    for row in modules[1:]:
        inside[row.parent] += row.hw_flops
    return tuple(_module(row, inside[row.path], fma) for row in modules)


def _module(old: _Module, inside: int, fma: int) -> ModuleRow:
    values = {item.name: getattr(old, item.name) for item in fields(_Module) if item.name != "hw_flops"}
    changed = {
        "flops": old.hw_flops,
        "own_flops": max(0, old.hw_flops - inside),
        "macs": _macs(old.flops, old.hw_flops, fma),
    }
    return ModuleRow(**{**values, **changed})


def _operators(old: _Profile, fma: int) -> list[OperatorRow]:
    """Return the operators, with FLOPs only where these are certain.

    An operator of a family of products may have had operations that are no multiply-add. Were there any, twice the
    former FLOPs of such families would add up to more than the FLOPs of the call.
    """
    twice = [row.flops * 2 // fma if row.family in _PRODUCTS else 0 for row in old.operators]
    has_families = all(row.family for row in old.operators if row.flops)
    if not (has_families and sum(twice) == old.forward_hw_flops):
        macs = [row.flops if fma == 1 else None for row in old.operators]
        return [_operator(row, None, count) for row, count in zip(old.operators, macs, strict=True)]
    return [
        _operator(row, flops, _macs(row.flops, flops, fma)) for row, flops in zip(old.operators, twice, strict=True)
    ]


def _operator(old: _Operator, flops: int | None, macs: int | None) -> OperatorRow:
    if old.status == "unknown":
        flops = macs = 0
    return OperatorRow(old.operator, old.calls, flops, old.family, old.status, macs)
