"""Checks of the compute that a checkpoint holds, before any of it is booked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["check_state", "compute_in"]

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


def check_state(state: Any, version: int) -> None:
    """Raise an error unless a value is a state of `ComputeMeter`.

    A checkpoint may come from anywhere, and a total that is wrong would stay wrong for good.

    Args:
        state: value from a checkpoint.
        version: version of the states that can be read.

    Raises:
        ValueError: with the part that is none, its value and what is expected.
    """
    _mapping(state, "state")
    if state.get("version") != version or state["version"] is True:
        raise ValueError(f"state of compute has version {state.get('version')!r:.40}, expected {version}")
    _parts(state, "state", samples=_amount_or_none, tokens=_amount_or_none, ledger=_ledger)


def _ledger(ledger: Any, name: str) -> None:
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
    """Check the lists that a `StepKey` was written as."""
    _row(_list_of(_list_of(_list_of(_amount))), _text, _amount, _list_of(_amount), _whole)(key, name)


def _cost(cost: Any, name: str) -> None:
    _row(_amount, _amount, _amount)(cost, name)


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


def _amount_or_none(value: Any, name: str) -> None:
    if value is not None:
        _amount(value, name)


def _wrong(value: Any, name: str, expected: str) -> ValueError:
    return ValueError(f"{name} is {value!r:.40}, expected {expected}")
