"""How many samples and tokens a batch has."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from flopcallback.modules.structures import Shapes
from flopcallback.training.failures import Failures

__all__ = ["BatchSizes", "whole_number"]


Sizes = tuple[int | None, int | None]
"""Samples and tokens; None where they are not known."""


UNKNOWN = {"batch_size_fn": "samples", "tokens_fn": "tokens"}
MOST_KNOWN = 4096

TOKENS = "input_ids"
"""What tokens are called in the batches of `transformers` and of what follows it."""


def whole_number(function: Callable[[Any], int], name: str, batch: Any) -> int:
    """What a user's function says of a batch.

    Raises:
        TypeError: it is no integer.
        ValueError: it is below 0.
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
    """How many samples and tokens batches have; None where that is not known.

    Args:
        samples: the user's function, or None.
        tokens: the user's function, or None: the elements of what is called `input_ids`.
        default: samples of all that the model is given, where the user has no function; asked once for each shapes.
        failures: where failures of the user's functions go, which are not asked again.
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
        self._has_functions = samples is not None or tokens is not None
        self._known: dict[tuple[Shapes, tuple[Any, ...]], Sizes] = {}

    def of(self, batch: Any, inputs: Any, shapes: Shapes) -> Sizes:
        """Samples and tokens of a batch.

        Args:
            batch: what the user's functions are asked about.
            inputs: all that the model is given.
            shapes: of the tensors in it.
        """
        named = inputs[-1] if type(inputs) is tuple and inputs else inputs  # where a call's keyword arguments are
        key = shapes, tuple(named) if isinstance(named, Mapping) else ()
        known = self._known.get(key)
        if known is None or self._has_functions:
            known = self._ask("batch_size_fn", batch, inputs), self._ask("tokens_fn", batch, inputs)
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[key] = known
        return known

    def _ask(self, name: str, batch: Any, inputs: Any) -> int | None:
        function = self._functions[name]
        if function is None:
            return self._defaults[name](inputs)
        try:
            return whole_number(function, name, batch)
        except Exception as error:  # noqa: BLE001 - a step whose size is not known is a step
            self._functions[name], self._defaults[name] = None, _unknown
            self._failures.report(f"the number of {UNKNOWN[name]} is not known", error)
            return None


def _unknown(_: Any) -> None:
    return None


def _elements_of_tokens(inputs: Any) -> int | None:
    """In a mapping or an object, or in one of those that a list or tuple has."""
    if isinstance(inputs, (list, tuple)):
        found = (_elements_of_tokens(part) for part in inputs)
        return next((tokens for tokens in found if tokens is not None), None)
    tokens = inputs.get(TOKENS) if isinstance(inputs, Mapping) else getattr(inputs, TOKENS, None)
    return tokens.numel() if isinstance(tokens, torch.Tensor) else None
