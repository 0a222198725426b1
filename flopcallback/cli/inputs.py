"""What a model is called with, as a command line says it: `1,3,224,224`, `input_ids=1,128:int64:0:1000`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from typing import Any

import torch

from flopcallback.cli.failures import UsageError

__all__ = ["parse_arguments", "parse_dtype", "parse_inputs"]

EXAMPLES = "such as 1,3,224,224 or 1,128:int64 or input_ids=1,128:int64:1000"

_INPUT = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>[^:=]*)(?::(?P<dtype>[a-z]\w*))?(?::(?P<range>-?\d+(?::-?\d+)?))?"
)

HIGH = 2
"""Integers are 0 or 1 unless a range is given: legal as token ids, masks and class labels alike."""


def parse_inputs(
    texts: Iterable[str], *, device: str | None, dtype: torch.dtype | None
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Positional and keyword arguments from texts such as `1,3,224,224` and `ids=1,128:int64:1000`.

    Args:
        texts: `[name=]shape[:dtype[:high | :low:high]]`; values are random, integers from `low` on and below `high`.
        device: where the tensors are made; None for the default.
        dtype: of tensors whose text says none; None for the default.

    Raises:
        UsageError: a text says something else, a name stands there twice.
    """
    args: list[torch.Tensor] = []
    kwargs: dict[str, torch.Tensor] = {}
    for text in texts:
        match = _INPUT.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"--input {text!r} is no shape, {EXAMPLES}")
        tensor = _tensor(text, match, device, dtype)
        name = match["name"]
        if name is None:
            args.append(tensor)
        elif name in kwargs:
            raise UsageError(f"--input {text!r}: {name} is given twice")
        else:
            kwargs[name] = tensor
    return tuple(args), kwargs


def _tensor(text: str, match: re.Match[str], device: str | None, dtype: torch.dtype | None) -> torch.Tensor:
    shape = _shape(text, match["shape"])
    kind = parse_dtype(match["dtype"], f"--input {text!r}") if match["dtype"] else dtype or torch.get_default_dtype()
    if kind.is_floating_point or kind.is_complex:
        if match["range"]:
            raise UsageError(f"--input {text!r}: a range of values is for integers, not for {_name(kind)}")
        return torch.rand(shape, device=device).to(kind)  # there is no random generator for every dtype
    low, high = _range(text, match["range"])
    return torch.randint(low, high, shape, device=device).to(kind)


def _shape(text: str, shape: str) -> tuple[int, ...]:
    parts = shape.strip().strip("()[]").rstrip(",")
    try:
        sizes = tuple(int(part) for part in parts.split(",")) if parts else ()
    except ValueError:
        raise UsageError(f"--input {text!r} is no shape, {EXAMPLES}") from None
    if any(size < 0 for size in sizes):
        raise UsageError(f"--input {text!r}: sizes are 0 or more")
    return sizes


def _range(text: str, values: str | None) -> tuple[int, int]:
    low, high = (0, HIGH) if values is None else ([0, *map(int, values.split(":"))][-2:])
    if low >= high:
        raise UsageError(f"--input {text!r}: no integer is from {low} on and below {high}")
    return low, high


def parse_dtype(name: str, owner: str) -> torch.dtype:
    """The dtype that PyTorch has under a name such as `bfloat16`.

    Raises:
        UsageError: there is none.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise UsageError(f"{owner}: PyTorch has no dtype {name!r}; it has float32, bfloat16, float16, int64, bool, ...")
    return dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def parse_arguments(texts: Iterable[str]) -> dict[str, Any]:
    """Keyword arguments from texts such as `width=64` and `name=small`: Python literals, or strings if they are none.

    Raises:
        UsageError: a text is no `name=value`.
    """
    arguments = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--arg {text!r} is no name=value, such as width=64")
        try:
            arguments[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[name] = value
    return arguments
