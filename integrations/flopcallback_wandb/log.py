"""The log of a W&B run, `run-*.wandb`, record by record.

The Python class that read it is gone since W&B 0.30, and `wandb leet inspect` exists since 0.31. The file is the same
in all of them: blocks as in a log of LevelDB (https://github.com/google/leveldb/blob/main/doc/log_format.md) behind a
header of W&B's, and in the blocks W&B's own Protocol Buffers.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flopcallback.runs import RunsError

__all__ = ["records", "values"]

# First bytes of the file.
IDENTITY = b":W&B"
# Bytes of a header, of the file and of each piece alike, and of a block.
HEADER, BLOCK = 7, 32768

# Kinds of pieces: a whole message, or a part of one.
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(log: Path) -> Iterator[Any]:
    """Yield the records of a log (`wandb_internal.proto`).

    The log of a run that is still running or was killed may end anywhere; the complete records are yielded.

    Raises:
        RunsError: the file is no such log, or a record in it is broken.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    try:
        content = log.read_bytes()
    except OSError as error:
        raise RunsError(f"{log}: {error.strerror}") from error
    if not content:
        raise RunsError(f"{log}: nothing is in it yet")
    if not content.startswith(IDENTITY):
        raise RunsError(f"{log} is no log of W&B's")
    for at, message in _messages(content, log):
        try:
            yield Record.FromString(message)
        except DecodeError as error:
            raise RunsError(f"{log} is damaged: no record begins at byte {at} ({error})") from error


def _messages(content: bytes, log: Path) -> Iterator[tuple[int, bytes]]:
    """Yield messages, each joined from one or several pieces, with the place where they begin."""
    begin, pieces = 0, list[bytes]()
    for at, kind, piece in _pieces(content, log):
        # A message begins where none is open, and goes on where one is.
        if (kind in (_FULL, _FIRST)) == bool(pieces):
            raise RunsError(f"{log} is damaged: a piece of a record is missing before byte {at}")
        begin = begin if pieces else at
        pieces.append(piece)
        if kind in (_FULL, _LAST):
            yield begin, b"".join(pieces)
            pieces.clear()


def _pieces(content: bytes, log: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield place, kind and data of each piece.

    A last piece that is cut off is left out: a run that is going on, or was killed, may end anywhere.
    """
    at = HEADER
    while at + HEADER <= len(content):
        # No piece begins if its header does not fit into the block.
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", content, at)
        end = at + HEADER + length
        if kind in (_FULL, _FIRST, _MIDDLE, _LAST) and HEADER + length <= left:
            if end > len(content):
                return
            # Over the kind and the data, as W&B writes it; LevelDB's own is another.
            if zlib.crc32(content[at + HEADER - 1 : end]) == checksum:
                yield at, kind, content[at + HEADER : end]
                at = end
                continue
        # A file system that was cut off leaves zeros at the end.
        if not content[at:].strip(b"\0"):
            return
        raise RunsError(f"{log} is damaged at byte {at}")


def values(items: Iterable[Any]) -> dict[str, Any]:
    """Return items of a history, summary or config by name.

    The name of a nested item has dots.
    """
    values_by_name: dict[str, Any] = {}
    for item in items:
        values_by_name.update(_flat(item.key or ".".join(item.nested_key), _value(item)))
    return values_by_name


def _value(item: Any) -> Any:
    """Return the value of an item."""
    # JSON as text, or, in the history since W&B 0.30, a typed value.
    kind = item.WhichOneof("value") if "value" in item.DESCRIPTOR.oneofs_by_name else None
    if kind in ("boolean", "integer", "number", "text"):
        return getattr(item, kind)
    text = item.json if kind == "json" else item.value_json
    return json.loads(text) if text else None


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield name, value
