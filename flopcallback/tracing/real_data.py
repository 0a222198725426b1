"""What a run asked of tensors that have no values: meta tensors, and fake ones, know their shapes alone."""

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
    """Says where a failed run asked for values that its tensors do not have, and what to do about it.

    The operator that raised is known from the dispatcher's record of it, the line from the traceback.

    Args:
        error: what a run under the dispatcher raised, with its traceback.

    Returns:
        The operator, the line of the model's code and the way out; None where something else went wrong.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    seen = [frame.f_locals for frame in frames if isinstance(frame.f_locals.get("self"), DispatchRecorder)]
    func, args = next(((each["func"], each["args"]) for each in reversed(seen) if "func" in each), (None, ()))
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
    # Indexing has such a shape by a mask only, and may fail for other reasons.
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
    """The innermost line that is neither PyTorch's nor ours: `in forward (net.py:12): x.sum() > 0`."""
    of_model = [one for one in traceback.extract_tb(tb) if not one.filename.startswith(_NOT_THE_MODELS)]
    if not of_model:
        return "in the call itself"
    innermost = of_model[-1]
    where = f"in {innermost.name}, {innermost.filename}:{innermost.lineno}"
    return f"{where}: `{expression}`" if (expression := _expression(innermost)) else where


def _expression(frame: traceback.FrameSummary) -> str:
    """What was being evaluated, where Python knows (3.11) and it stands on one line; else the line."""
    line = linecache.getline(frame.filename, frame.lineno or 0)
    start, end = getattr(frame, "colno", None), getattr(frame, "end_colno", None)
    if start is None or end is None or getattr(frame, "end_lineno", None) != frame.lineno:
        return line.strip()
    return line.encode()[start:end].decode(errors="replace").strip()
