"""Explanations of failed runs: meta and fake tensors have no values."""

from __future__ import annotations

import linecache
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from flopcallback.tracing.dispatch import DispatchRecorder
from flopcallback.tracing.torch_private import OpOverload, operator_name, tree_leaves

__all__ = ["needs_real_data"]

_NOT_THE_MODELS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
_HAS_NONE = "meta and fake tensors have shapes and no values"
_WAY_OUT = (
    "Count with real tensors (a smaller configuration, where memory is short), or keep the model from asking: give it "
    "the value as a Python number, or an argument with which it does not come by that line"
)
_FAKE_WAY_OUT = (
    "Make model and inputs under one FakeTensorMode and count inside of it (`with mode: ...`), or make the mode with "
    "allow_non_fake_inputs=True"
)


def needs_real_data(error: BaseException) -> str | None:
    """Explain a run that failed because its tensors have no values.

    Args:
        error: raised by a run under the dispatcher, with its traceback.

    Returns:
        The operator, the line of the model's code and what to do; None if the error has another cause.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    # The innermost frame of `__torch_dispatch__` has the operator that raised.
    seen = [frame.f_locals for frame in frames if isinstance(frame.f_locals.get("self"), DispatchRecorder)]
    func, args = next(((names["func"], names["args"]) for names in reversed(seen) if "func" in names), (None, ()))
    if not isinstance(func, OpOverload):
        return None
    place = f"{_place(error.__traceback__)} ({operator_name(func)})"
    if any(frame.f_code.co_name == "validate_and_convert_non_fake_tensors" for frame in frames):
        return f"a fake tensor meets one that is real, or of another mode: {place}. {_FAKE_WAY_OUT}"
    if (asked := _asked(func, args)) is None or not any(map(_has_no_values, tree_leaves(args))):
        return None
    return f"{asked}, and {_HAS_NONE}: {place}. {_WAY_OUT}"


def _asked(func: OpOverload, args: tuple[Any, ...]) -> str | None:
    if torch.Tag.data_dependent_output in func.tags:
        return "the model turns a tensor's value into a Python value"
    # The shape of an indexed tensor depends on values only if the index is a mask; else the error has another cause.
    if torch.Tag.dynamic_output_shape in func.tags and (operator_name(func) != "aten::index" or _has_mask(args)):
        return "the model makes a tensor whose shape depends on another one's values"
    if operator_name(func) == "aten::_to_copy":  # `tolist`, `cpu`
        return "the model copies a tensor's values to another device"
    return None


def _has_mask(args: tuple[Any, ...]) -> bool:
    return any(leaf.dtype in (torch.bool, torch.uint8) for leaf in tree_leaves(args[1:]) if _is_tensor(leaf))


def _has_no_values(leaf: Any) -> bool:
    return _is_tensor(leaf) and (leaf.is_meta or hasattr(leaf, "fake_mode"))


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def _place(tb: TracebackType | None) -> str:
    """Describe the innermost line of the model's code.

    That is the innermost one in neither PyTorch's files nor ours, such as "in forward, net.py:12: `x.sum() > 0`".
    """
    model_frames = [frame for frame in traceback.extract_tb(tb) if not frame.filename.startswith(_NOT_THE_MODELS)]
    if not model_frames:
        return "in the call itself"
    innermost = model_frames[-1]
    place = f"in {innermost.name}, {innermost.filename}:{innermost.lineno}"
    return f"{place}: `{expression}`" if (expression := _expression(innermost)) else place


def _expression(frame: traceback.FrameSummary) -> str:
    """Return the evaluated expression, or the whole line if that is unknown.

    Python knows it from 3.11 on; an expression of several lines is not cut out.
    """
    line = linecache.getline(frame.filename, frame.lineno or 0)
    start, end = getattr(frame, "colno", None), getattr(frame, "end_colno", None)
    if start is None or end is None or getattr(frame, "end_lineno", None) != frame.lineno:
        return line.strip()
    return line.encode()[start:end].decode(errors="replace").strip()
