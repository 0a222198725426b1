"""Checks of the options that users set: one row per option."""

from __future__ import annotations

import math
import operator
import os
import warnings
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

from flopcallback.profile.numbers import plain_number
from flopcallback.profile.old_names import OldNameWarning

__all__ = ["NO_FMA", "checked_options", "max_flops_of", "warn_of_fma"]

NO_FMA = (
    "FLOPs are 2 per multiply-add, and fma changes nothing any more. The column macs has the count at 1, and so has "
    "FlopCountAnalysis, whose fma= stays."
)


def checked_options(owner: str, **given: Any) -> dict[str, Any]:
    """Check options, and return them with plain numbers and paths.

    A number of NumPy's or of an element of a tensor becomes Python's own; `~` becomes the home folder.

    Args:
        owner: public name of the class or function that has the options.
        given: the options by name; each has a row in `_ROWS`.

    Raises:
        ValueError: with the owner, the option, its value and the expected values.
    """
    for name, value in given.items():
        is_fine, expected = _ROWS[name]
        if not is_fine(value):
            raise ValueError(f"{owner}: {name} is {value!r}, expected {expected}")
    return {name: _plain(name, value) for name, value in given.items()}


def warn_of_fma(owner: str, fma: int | None) -> None:
    """Warn the caller of a public function or class that `fma=` has no effect.

    Raises:
        ValueError: it is neither 1 nor 2.
    """
    checked_options(owner, fma=fma)
    if fma is not None:
        warnings.warn(f"{owner}: {NO_FMA}", OldNameWarning, stacklevel=3)


def max_flops_of(owner: str, max_flops: float | None, max_hw_flops: float | None) -> float | None:
    """Return the budget that the caller of a public class gives under either name.

    Raises:
        ValueError: both are given.
    """
    if max_hw_flops is None:
        return max_flops
    if max_flops is not None:
        raise ValueError(f"{owner}: max_flops and max_hw_flops are both given; max_hw_flops is its former name")
    warnings.warn(f"{owner}: max_hw_flops is called max_flops now", OldNameWarning, stacklevel=3)
    return max_hw_flops


def _plain(name: str, value: Any) -> Any:
    if name in _NUMBERS and value is not None and not isinstance(value, str):
        return plain_number(value)
    if name in _FLAGS:
        return bool(value)
    return Path(value).expanduser() if name == "report_dir" and value is not None else value


def _is_whole(value: Any) -> bool:
    # A bool is an int to Python, and would pass for 0 or 1.
    if isinstance(value, bool):
        return False
    try:
        operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # the latter two are tensors of several elements
        return False
    return True


def _is_amount(value: Any) -> bool:
    is_number = _is_whole(value) or (isinstance(value, Real) and not isinstance(value, bool))
    return is_number and bool(0 < value < math.inf)


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 0


def _is_flag(value: Any) -> bool:
    if isinstance(value, bool):
        return True
    try:
        return isinstance(value.item(), bool)  # of NumPy's, or an element of a tensor
    except (AttributeError, TypeError, ValueError, RuntimeError):  # the latter two are arrays of several elements
        return False


def _is_folder(value: Any) -> bool:
    if not isinstance(value, (str, os.PathLike)):
        return False
    path = os.fspath(value)
    if not isinstance(path, str) or not path or "\0" in path:
        return False
    try:
        Path(path).expanduser()
    except RuntimeError:  # `~name` of a user that does not exist
        return False
    return True


def _is_function(value: object) -> bool:
    return value is None or callable(value)


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) and name for name in value)


# By option: the check, and the text for what is expected.
_ROWS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "fma": (
        lambda value: value is None or (_is_whole(value) and value in (1, 2)),
        "1, 2 or None, and has no effect",
    ),
    "elementwise": (_is_flag, "True or False"),
    "warmup_steps": (_is_count, "a whole number, 0 or more"),
    "latency_steps": (_is_count, "a whole number, 0 or more"),
    "log_every_n_steps": (
        lambda value: value is None or (_is_whole(value) and value > 0),
        "1 or more, or None",
    ),
    "observe": (lambda value: value in ("auto", "always", "never"), '"auto", "always" or "never"'),
    "max_flops": (lambda value: value is None or _is_amount(value), "FLOPs above 0, or None"),
    "peak_flops": (
        lambda value: value is None or value == "measure" or _is_amount(value),
        'FLOP/s above 0, "measure" or None',
    ),
    "batch_size_fn": (_is_function, "a function or None"),
    "tokens_fn": (_is_function, "a function or None"),
    "flops_fn": (_is_function, "a function or None"),
    "by_compute": (_is_list_of_names, "a list of names of metrics, such as ['val/loss']"),
    "prefix": (lambda value: isinstance(value, str), "a string"),
    "report_dir": (
        lambda value: value is None or _is_folder(value),
        "a folder ('.' is the working directory) or None",
    ),
    "summary": (_is_flag, "True or False"),
    "strict": (_is_flag, "True or False"),
}

_NUMBERS = frozenset({"warmup_steps", "latency_steps", "log_every_n_steps", "max_flops", "peak_flops"})
"""Options that are numbers, or texts or None in place of one."""

_FLAGS = frozenset({"elementwise", "summary", "strict"})
"""Options that are True or False."""
