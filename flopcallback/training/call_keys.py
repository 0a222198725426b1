"""CallKeys: keys of a training's calls, without names and numbers that never settle."""

from __future__ import annotations

from typing import Any

from flopcallback.modules.structures import CallKey

__all__ = ["FEW", "CallKeys"]

FEW = 16
"""Values of a number among a call's inputs, and sets of names, that make keys of their own."""


class CallKeys:
    """Keys of the calls in a training.

    A plain number among the inputs may choose the work, as a depth does, or only count: `batch_idx`, or the
    `num_items_in_batch` of transformers' Trainer. With a counter in it, each step would be a kind of its own, and
    nearly all of them estimates. A depth has few values. So the first `FEW` values of a number are part of the
    key, and further ones are all the same; likewise names in dicts, which may be those of samples.
    """

    def __init__(self) -> None:
        self._names: set[tuple[str, ...]] = set()
        self._numbers: dict[tuple[tuple[str, ...], int], set[int]] = {}  # values of a number by names and position

    def settled(self, key: CallKey) -> CallKey:
        """Return a key without what has had too many values. One without names and numbers is settled as it is."""
        if key.names in self._names and not key.numbers:  # nearly all calls
            return key
        names = key.names if _is_among(key.names, self._names) else ()
        numbers = tuple(self._number(names, *item) for item in enumerate(key.numbers))
        return key._replace(names=names, numbers=numbers)

    def _number(self, names: tuple[str, ...], position: int, number: int | None) -> int | None:
        values = self._numbers.setdefault((names, position), set())
        return number if number is None or _is_among(number, values) else None


def _is_among(value: Any, values: set[Any]) -> bool:
    """Return whether a value is one of the first `FEW`, and note it if so."""
    if value not in values:
        if len(values) >= FEW:
            return False
        values.add(value)
    return True
