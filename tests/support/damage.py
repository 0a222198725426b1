"""Damage to files, as strategies of Hypothesis: JSON of other shapes, and bytes that were lost or changed.

It takes no part in the tests' collection.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

LARGE = 10**400
"""An integer that no float64 holds."""

DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]

JUNK = [
    *(None, True, False, 0, 1, -1, 7, 0.5, -0.5, LARGE, -LARGE, 10**299, 1e299, 1e-300, 1e308),
    *(float("nan"), float("inf"), "", "x", "\x1b[31m", "\ud800", "7", "a.b", [], [7], [[7]], {}, {"a": 7}, DEEP),
]


@st.composite
def damaged_json(draw: st.DrawFn, content: Any) -> str:
    """The content with one to three of its nodes replaced or left out, as JSON; now and then cut off."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(content))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        what = draw(st.sampled_from(["replace", "leave out", "twice"]))
        if what == "leave out":
            del holder[key]
        elif what == "twice" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(JUNK)))
    text = json.dumps(content)
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 9)) == 0 else text


@st.composite
def extreme_json(draw: st.DrawFn, content: Any) -> str:
    """The content with some of its numbers and texts as large, as small or as odd as they may be."""
    content = copy.deepcopy(content)
    places = [(holder, key) for holder, key in _places(content) if isinstance(holder[key], (int, float, str))]
    for holder, key in draw(st.lists(st.sampled_from(places), min_size=1, max_size=12, unique_by=str)):
        old = holder[key]
        if isinstance(old, bool):
            holder[key] = not old
        elif isinstance(old, str):
            holder[key] = draw(st.sampled_from(["", "\x1b[31m\x9b\x00\n\u202e", "很长" * 50, "<b>", "=1+1", old]))
        elif isinstance(old, int):
            holder[key] = draw(st.sampled_from([0, 1, 2**53 + 1, 10**21, 10**299]))
        else:
            holder[key] = draw(st.sampled_from([0, 0.0, 1e-300, 5e-324, 1e300]))
    return json.dumps(content)


def _places(node: Any, levels: int = 9) -> Iterator[tuple[Any, Any]]:
    """Every holder and key below a node, but not those at the bottom of `DEEP`."""
    below = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(below):
        yield node, key
        if levels:
            yield from _places(value, levels - 1)


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with bytes changed, left out, put in, or its end cut off."""
    damaged = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(damaged) - 1)))
        length = draw(st.sampled_from([1, 1, 4, 40]))
        what = draw(st.sampled_from(["change", "leave out", "put in", "zero", "cut"]))
        if what == "change":
            damaged[at : at + length] = draw(st.binary(min_size=length, max_size=length))
        elif what == "leave out":
            del damaged[at : at + length]
        elif what == "put in":
            damaged[at:at] = draw(st.binary(min_size=length, max_size=length))
        elif what == "zero":
            damaged[at : at + length] = bytes(length)
        else:
            del damaged[at:]
    return bytes(damaged)
