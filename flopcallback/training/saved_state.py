"""Checks of the compute that a checkpoint holds, before any of it is booked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from flopcallback.training.kinds import BOUNDS, Sums
from flopcallback.training.ledger import USUAL_STEP, interpolated

__all__ = ["checked_state", "compute_in"]

LARGEST = 10**100
"""Largest number that is taken; no training ever will have spent as many FLOPs, and a float holds it."""

Check = Callable[[Any, str], None]


def compute_in(state: Any) -> Any:
    """Return the compute of a callback's or hook's state in a checkpoint; empty if there is none.

    Raises:
        ValueError: the state is no dict.
    """
    _mapping(state, "state")
    return state.get("compute", {})


def checked_state(state: Any, version: int) -> Mapping[str, Any]:
    """Return a state of `ComputeMeter`, in today's form, or raise an error.

    A checkpoint may come from anywhere, and a total that is wrong would stay wrong for good.

    Args:
        state: value from a checkpoint.
        version: today's version. Version 1 is read, too.

    Raises:
        ValueError: with the part that is none, its value and what is expected.
    """
    _mapping(state, "state")
    if state.get("version") not in (1, version) or state["version"] is True:
        raise ValueError(f"state of compute has version {state.get('version')!r:.40}, expected {version}")
    if state["version"] == 1:
        _parts(state, "state", samples=_amount_or_none, tokens=_amount_or_none, ledger=_old_ledger)
        return _upgraded(state, version)
    _parts(state, "state", step=_amount, samples=_amount_or_none, tokens=_amount_or_none, ledger=_ledger)
    return dict(state)


def _ledger(ledger: Any, name: str) -> None:
    amounts = dict.fromkeys(("steps", "audited", "largest"), _amount)
    sums = _row(*[_amount] * len(Sums._fields))
    counted = _row(_text, _text, _amount, _whole, _amount)
    rows = {"kinds": _list_of(_kind), "counted": _list_of(counted), "points": _list_of(_row(_amount, _amount))}
    _parts(ledger, name, **amounts, sums=sums, **rows)
    steps = sum(row[3][0] for row in ledger["kinds"]) + len(ledger["counted"])
    if steps > ledger["steps"] or ledger["audited"] > ledger["steps"]:
        raise ValueError(f"{name}: {max(steps, ledger['audited'])} steps of kinds cannot be among {ledger['steps']}")
    if not ledger["steps"] and any(ledger["sums"]):
        raise ValueError(f"{name}: {sum(ledger['sums'][:2]):,} FLOPs cannot come from 0 steps")


def _kind(row: Any, name: str) -> None:
    """Check the list that a `Kind` was written as."""
    numbers = _row(_amount, _amount, _whole, *[_amount] * 5)
    _row(_text, _amount, _cost_or_none, numbers, _amount, _row(_amount, _whole), _audits_or_none)(row, name)
    steps, observed, _, still_open, doubted, *_ = row[3]
    if observed + still_open + doubted > steps:
        raise ValueError(f"{name}: {observed + still_open + doubted} steps cannot be among {steps}")
    if row[6] and not row[2]:
        raise ValueError(f"{name} has audits and no cost")


def _cost_or_none(cost: Any, name: str) -> None:
    if cost != []:
        _row(*[_amount] * 4, _bound)(cost, name)


def _bound(bound: Any, name: str) -> None:
    if bound not in ("", *BOUNDS):
        raise _wrong(bound, name, f"one of {', '.join(BOUNDS)}, or empty")


def _audits_or_none(audits: Any, name: str) -> None:
    if audits != []:
        _row(_amount_above_0, *[_amount] * 4, _flag, _flag, *[_amount] * 3)(audits, name)


# --- States of version 1 ----------------------------------------------------------------------------------------------


def _old_ledger(ledger: Any, name: str) -> None:
    rows = {"costs": _row(_key, _cost, _whole), "counted": _row(_key, _amount, _whole)}
    rows["unseen"] = _row(_key, _amount, _amount, _amount)
    amounts = dict.fromkeys(("steps", "booked", "guessed"), _amount)
    _parts(ledger, name, **amounts, **{part: _list_of(row) for part, row in rows.items()})
    unseen = sum(row[1] for row in ledger["unseen"])
    if unseen > ledger["steps"]:
        raise ValueError(f"{name}: {unseen} steps of unseen kinds cannot be among {ledger['steps']} steps")
    if not ledger["steps"] and (ledger["booked"] or ledger["guessed"]):
        raise ValueError(f"{name}: {ledger['booked'] + ledger['guessed']:,} FLOPs cannot come from 0 steps")


def _key(key: Any, name: str) -> None:
    """Check the lists that a key of a kind was written as."""
    _row(_list_of(_list_of(_list_of(_amount))), _text, _amount, _list_of(_amount), _whole)(key, name)


def _cost(cost: Any, name: str) -> None:
    _row(_amount, _amount, _amount)(cost, name)


def _upgraded(state: Mapping[str, Any], version: int) -> Mapping[str, Any]:
    """Return a state of version 1 in today's form.

    Its sums are kept. Its kinds are not: they were told apart by less, and are observed anew.
    """
    old = state["ledger"]
    points = {_elements(key): cost[0] for key, cost, _ in old["costs"]}
    points = points or {_elements(key): USUAL_STEP * forward for key, forward, _ in old["counted"]}
    waiting = sum(count * interpolated(points, _elements(key)) for key, count, *_ in old["unseen"] if points)
    estimated = old["guessed"] + waiting
    ledger = {
        "steps": old["steps"],
        "audited": 0,
        "largest": max((cost[0] for _, cost, _ in old["costs"]), default=0),
        "sums": list(Sums(exact=old["booked"], estimated=estimated, unjudged=estimated)),
        "kinds": [],
        "counted": [],
        "points": [list(point) for point in points.items()] if old["costs"] else [],
    }
    return {**state, "version": version, "step": old["steps"], "ledger": ledger}


def _elements(key: Any) -> int:
    return sum(math.prod(shape) for shapes in key[0] for shape in shapes)


# --- Kinds of values --------------------------------------------------------------------------------------------------


def _parts(value: Any, name: str, **checks: Check) -> None:
    _mapping(value, name)
    for part, check in checks.items():
        if part not in value:
            raise ValueError(f"{name} has no {part!r}")
        check(value[part], f"{name}[{part!r}]")


def _row(*checks: Check) -> Check:
    def check_row(value: Any, name: str) -> None:
        if not isinstance(value, (list, tuple)) or len(value) != len(checks):
            raise _wrong(value, name, f"a list of {len(checks)}")
        for index, check in enumerate(checks):
            check(value[index], f"{name}[{index}]")

    return check_row


def _list_of(check: Check) -> Check:
    def check_list(value: Any, name: str) -> None:
        if not isinstance(value, (list, tuple)):
            raise _wrong(value, name, "a list")
        for index, item in enumerate(value):
            check(item, f"{name}[{index}]")

    return check_list


def _mapping(value: Any, name: str) -> None:
    if not isinstance(value, Mapping):
        raise _wrong(value, name, "a dict")


def _text(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise _wrong(value, name, "a text")


def _whole(value: Any, name: str) -> None:
    if type(value) is not int:  # a bool is none, and neither is a float
        raise _wrong(value, name, "a whole number")


def _amount(value: Any, name: str) -> None:
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise _wrong(value, name, "a whole number, 0 or more")


def _amount_above_0(value: Any, name: str) -> None:
    _amount(value, name)
    if not value:
        raise _wrong(value, name, "1 or more")


def _flag(value: Any, name: str) -> None:
    if type(value) is not bool:
        raise _wrong(value, name, "True or False")


def _amount_or_none(value: Any, name: str) -> None:
    if value is not None:
        _amount(value, name)


def _wrong(value: Any, name: str, expected: str) -> ValueError:
    return ValueError(f"{name} is {value!r:.40}, expected {expected}")
