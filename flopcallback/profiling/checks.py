"""Checks of the options that users set: one row per option."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

__all__ = ["check_options"]


def check_options(owner: str, **given: Any) -> None:
    """Raise an error for the first option with a wrong value.

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


def _is_whole(value: object) -> bool:
    # A bool is an int to Python, and would pass for 0 or 1.
    return isinstance(value, int) and not isinstance(value, bool)


def _is_amount(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 0


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_function(value: object) -> bool:
    return value is None or callable(value)


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) and name for name in value)


# By option: the check, and the text for what is expected.
_ROWS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "fma": (
        lambda value: _is_whole(value) and value in (1, 2),
        "1 (a multiply-add is one FLOP) or 2 (it is two)",
    ),
    "elementwise": (_is_flag, "True or False"),
    "warmup_steps": (_is_count, "a whole number, 0 or more"),
    "latency_steps": (_is_count, "a whole number, 0 or more"),
    "log_every_n_steps": (
        lambda value: value is None or (_is_whole(value) and value > 0),
        "1 or more, or None",
    ),
    "max_hw_flops": (lambda value: value is None or _is_amount(value), "FLOPs above 0, or None"),
    "peak_flops": (
        lambda value: value is None or value == "measure" or _is_amount(value),
        'FLOP/s above 0, "measure" or None',
    ),
    "batch_size_fn": (_is_function, "a function or None"),
    "tokens_fn": (_is_function, "a function or None"),
    "flops_fn": (_is_function, "a function or None"),
    "by_compute": (_is_list_of_names, "a list of names of metrics, such as ['val/loss']"),
    "prefix": (lambda value: isinstance(value, str), "a string"),
    "report_dir": (lambda value: value is None or isinstance(value, (str, os.PathLike)), "a folder or None"),
    "summary": (_is_flag, "True or False"),
    "strict": (_is_flag, "True or False"),
}
