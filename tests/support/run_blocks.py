"""Runs the Python blocks of a Markdown file, one after the other, and compares what they print with what they say.

Usage: python run_blocks.py FILE [MARKER ...]

A block opens with ```python and, where it needs an optional package, the marker that `pyproject.toml` has for it:
```python lightning. Blocks of a file share their names. One that needs a marker which is not given is left out. What a
block should print stands behind its prints, `print(x)  # 30`, or in a block opened by ```text directly below it.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

FENCE = re.compile(r"^```(?P<language>\w*)(?P<markers>[ \w]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = re.compile(r"^ *print\(.*\)  +# (?P<shown>.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    line: int
    markers: frozenset[str]
    code: str
    expected: str


def blocks_of(text: str) -> list[Block]:
    """The Python blocks; `line` is that of their first line of code, `expected` is empty where nothing is said."""
    fences = list(FENCE.finditer(text))
    found = []
    for fence, following in zip_longest(fences, fences[1:]):
        if fence["language"] != "python":
            continue
        code = fence["code"]
        shown = "".join(match["shown"] + "\n" for match in SHOWN.finditer(code))
        if following is not None and following["language"] == "text":
            between = text[fence.end() : following.start()]
            shown = shown if between.strip() else following["code"]
        line = text.count("\n", 0, fence.start("code")) + 1
        found.append(Block(line, frozenset(fence["markers"].split()), code, shown))
    return found


def run(path: Path, markers: frozenset[str]) -> None:
    """Runs the blocks that need no other markers than these.

    Raises:
        AssertionError: a block prints something else than it says.
    """
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks_of(path.read_text(encoding="utf-8")):
        if not block.markers <= markers:
            continue
        code = compile("\n" * (block.line - 1) + block.code, str(path), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        if block.expected and _lines(printed.getvalue()) != _lines(block.expected):
            raise AssertionError(f"{path}:{block.line} prints\n{printed.getvalue()}and says\n{block.expected}")


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


if __name__ == "__main__":
    run(Path(sys.argv[1]), frozenset(sys.argv[2:]))
