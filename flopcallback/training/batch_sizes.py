"""Numbers of samples and tokens in a batch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from flopcallback.modules.structures import Shapes
from flopcallback.training.failures import Failures

__all__ = ["BatchSizes", "whole_number"]


Sizes = tuple[int | None, int | None]
"""Numbers of samples and tokens; None if unknown."""


UNITS = {"batch_size_fn": "samples", "tokens_fn": "tokens"}

MOST_CACHED = 4096
"""Entries of the cache; when it is full, it is emptied."""

TOKENS = "input_ids"
"""Name of the tokens in the batches of `transformers`."""


def whole_number(function: Callable[[Any], int], name: str, batch: Any) -> int:
    """Return the result of a user's function as an int.

    Args:
        function: the user's function.
        name: name of the option, for error messages.
        batch: argument of the function.

    Raises:
        TypeError: the result is not an integer.
        ValueError: the result is negative.
    """
    value = function(batch)
    try:
        number = operator.index(value)
    except Exception as error:
        raise TypeError(f"{name} returned {value!r:.80}, expected an int") from error
    if number < 0:
        raise ValueError(f"{name} returned {number}, expected 0 or more")
    return number


class BatchSizes:
    """Counter of the samples and tokens in batches.

    Args:
        samples: the user's function from a batch to its number of samples; None selects `default`.
        tokens: the user's function from a batch to its number of tokens; None counts the elements of `input_ids`.
        default: function from all inputs of the model to the number of samples; called once for equal shapes.
        failures: reports failures of the user's functions. A function that failed is not called again.
    """

    def __init__(
        self,
        samples: Callable[[Any], int] | None,
        tokens: Callable[[Any], int] | None,
        default: Callable[[Any], int | None],
        failures: Failures,
    ) -> None:
        self._functions: dict[str, Callable[[Any], int] | None] = {"batch_size_fn": samples, "tokens_fn": tokens}
        self._defaults = {"batch_size_fn": default, "tokens_fn": _elements_of_tokens}
        self._failures = failures
        # A user's function may look at values, not only at shapes: then nothing is taken from the cache.
        self._has_functions = samples is not None or tokens is not None
        self._cache: dict[tuple[Shapes, tuple[Any, ...]], Sizes] = {}

    def of(self, batch: Any, inputs: Any, shapes: Shapes) -> Sizes:
        """Return the samples and tokens of a batch; None if unknown.

        Args:
            batch: argument of the user's functions.
            inputs: all inputs of the model.
            shapes: shapes of the tensors in `inputs`.
        """
        named = inputs[-1] if type(inputs) is tuple and inputs else inputs  # of `(args, kwargs)`, the keyword arguments
        key = shapes, tuple(named) if isinstance(named, Mapping) else ()
        sizes = self._cache.get(key)
        if sizes is None or self._has_functions:
            sizes = self._ask("batch_size_fn", batch, inputs), self._ask("tokens_fn", batch, inputs)
            if len(self._cache) >= MOST_CACHED:
                self._cache.clear()
            self._cache[key] = sizes
        return sizes

    def _ask(self, name: str, batch: Any, inputs: Any) -> int | None:
        function = self._functions[name]
        if function is None:
            return self._defaults[name](inputs)
        try:
            return whole_number(function, name, batch)
        except Exception as error:  # noqa: BLE001 - a step of unknown size is still booked
            # The function is not called again, and the total is unknown from here on.
            self._functions[name], self._defaults[name] = None, _unknown
            self._failures.report(f"the number of {UNITS[name]} is not known", error)
            return None


def _unknown(_: Any) -> None:
    return None


def _elements_of_tokens(inputs: Any) -> int | None:
    """Return the number of elements of `input_ids`, or None.

    It is looked up in a mapping or an object, or in the parts of a list or tuple.
    """
    if isinstance(inputs, (list, tuple)):
        numbers = (_elements_of_tokens(part) for part in inputs)
        return next((number for number in numbers if number is not None), None)
    tokens = inputs.get(TOKENS) if isinstance(inputs, Mapping) else getattr(inputs, TOKENS, None)
    return tokens.numel() if isinstance(tokens, torch.Tensor) else None
