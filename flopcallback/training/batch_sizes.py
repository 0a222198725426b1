"""Numbers of samples and tokens in a batch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flopcallback.modules.batches import tokens_in
from flopcallback.modules.structures import CallKey
from flopcallback.training.failures import Failures

__all__ = ["BatchSizes", "StepSizes", "whole_number"]


UNITS = {"batch_size_fn": "samples", "tokens_fn": "tokens"}


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


MOST_CACHED = 4096
"""Entries of the cache; when it is full, it is emptied."""


@dataclass(slots=True)
class StepSizes:
    """Samples and tokens of the batches of a step so far.

    Attributes:
        samples: number of samples; None once it is unknown for any batch.
        tokens: number of tokens; None likewise, but as long as a batch goes on, a further call of it may have some.
        earlier: tokens of all batches but the last.
    """

    samples: int | None
    tokens: int | None
    earlier: int | None

    def add_tokens(self, tokens: int | None) -> None:
        """Add the tokens of a further call of the last batch, which may have none."""
        known = self.earlier if self.tokens is None else self.tokens
        if tokens is not None and known is not None:
            self.tokens = known + tokens


class BatchSizes:
    """Counter of the samples and tokens in batches.

    Args:
        samples: the user's function from a batch to its number of samples; None selects `default`.
        tokens: the user's function from a batch to its number of tokens; None counts the elements of `input_ids`.
        default: function from all inputs of the model to the number of samples.
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
        self._defaults = {"batch_size_fn": default, "tokens_fn": tokens_in}
        self._failures = failures
        self._cache: dict[CallKey | None, tuple[int | None, int | None]] = {}  # of inputs without objects
        self._counts_calls = tokens is None  # the user's function knows the tokens of a batch, not of each call

    def add(self, step: StepSizes, batch: Any, inputs: Any, key: CallKey | None = None, *, is_new: bool = True) -> None:
        """Add a model call to a step: a batch counts once, and the tokens of each call.

        Args:
            step: the step.
            batch: argument of the user's functions.
            inputs: all inputs of the call.
            key: key of `inputs`; None if nothing is known of them.
            is_new: False if the call reuses the batch of the previous call.
        """
        if not is_new:
            if self._counts_calls:
                step.add_tokens(tokens_in(inputs))
            return
        samples, tokens = self._cache.get(key) or self._sizes_of(batch, inputs, key)
        step.samples = None if samples is None or step.samples is None else step.samples + samples
        step.earlier = step.tokens
        step.tokens = None if tokens is None or step.tokens is None else step.tokens + tokens

    def known(self, key: CallKey | None) -> tuple[int | None, int | None] | None:
        """Return samples and tokens of all batches with a key; None if each is to be asked, or none was so far."""
        return self._cache.get(key)

    def _sizes_of(self, batch: Any, inputs: Any, key: CallKey | None) -> tuple[int | None, int | None]:
        sizes = self._ask("batch_size_fn", batch, inputs), self._ask("tokens_fn", batch, inputs)
        # The user's functions may look at values, and objects say what no shape tells.
        if key is not None and not key.objects and not any(self._functions.values()):
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
