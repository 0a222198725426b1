"""Inputs of a model, written on a command line.

Examples are `1,3,224,224` and `input_ids=1,128:int64:0:1000`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from typing import Any

import torch

from flopcallback.cli.failures import UsageError

__all__ = ["parse_arguments", "parse_dtype", "parse_inputs"]

EXAMPLES = "such as 1,3,224,224 or 1,128:int64 or input_ids=1,128:int64:1000"

# [name=]shape[:dtype][:range]; `_shape` checks the shape, to tell a user what is wrong with it.
_INPUT = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>[^:=]*)(?::(?P<dtype>[a-z]\w*))?(?::(?P<range>-?\d+(?::-?\d+)?))?"
)

HIGH = 2
"""Without a range, integers are 0 or 1: valid token ids, masks and class labels alike."""


def parse_inputs(
    texts: Iterable[str], *, device: str | None, dtype: torch.dtype | None
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Parse positional and keyword arguments from texts.

    Texts are such as `1,3,224,224` and `ids=1,128:int64:1000`.

    Args:
        texts: `[name=]shape[:dtype[:high | :low:high]]`; values are random, integers from `low` up to but below `high`.
        device: device of the tensors; None for the default.
        dtype: dtype of tensors without one in their text; None for the default.

    Raises:
        UsageError: a text has another form, or a name is given twice.
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
        return torch.rand(shape, device=device).to(kind)  # not every dtype has a random generator, float8 for one
    low, high = _range(text, match["range"])
    return torch.randint(low, high, shape, device=device).to(kind)


def _shape(text: str, shape: str) -> tuple[int, ...]:
    # `(1, 3)` and `[1, 3]` are what Python prints; a tuple of one has a trailing comma.
    parts = shape.strip().strip("()[]").rstrip(",")
    try:
        sizes = tuple(int(part) for part in parts.split(",")) if parts else ()
    except ValueError:
        raise UsageError(f"--input {text!r} is no shape, {EXAMPLES}") from None
    if any(size < 0 for size in sizes):
        raise UsageError(f"--input {text!r}: sizes are 0 or more")
    return sizes


def _range(text: str, values: str | None) -> tuple[int, int]:
    # A single number is the upper bound.
    low, high = (0, HIGH) if values is None else ([0, *map(int, values.split(":"))][-2:])
    if low >= high:
        raise UsageError(f"--input {text!r}: no integer is from {low} on and below {high}")
    return low, high


def parse_dtype(name: str, owner: str) -> torch.dtype:
    """Return PyTorch's dtype of a name such as `bfloat16`.

    Args:
        name: name in the module `torch`.
        owner: option to name in the error.

    Raises:
        UsageError: there is no such dtype.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise UsageError(f"{owner}: PyTorch has no dtype {name!r}; it has float32, bfloat16, float16, int64, bool, ...")
    return dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def parse_arguments(texts: Iterable[str]) -> dict[str, Any]:
    """Parse keyword arguments from texts such as `width=64` and `name=small`.

    A value is a Python literal, or a string if it is none.

    Raises:
        UsageError: a text is not `name=value`.
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
