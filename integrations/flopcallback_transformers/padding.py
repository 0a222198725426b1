"""Tokens of a training that are padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from flopcallback.modules.batches import TOKENS
from flopcallback.tracing.observer import StepRecorder
from flopcallback.training.training import Plan, Training

__all__ = ["PaddedTraining", "Padding"]

MASK = "attention_mask"
"""Name of the mask beside `input_ids`: 1 for a token, 0 for padding."""


class Padding:
    """Share of padding among the tokens of steps.

    Masks are summed on their device after the step, and read when the share is asked for: no step waits for a device.
    """

    def __init__(self) -> None:
        self._masks: list[torch.Tensor] = []  # those of the step in progress
        self._tokens = 0  # elements of all masks since the last `take`
        self._attended: list[torch.Tensor] = []  # number of tokens that are none of padding, a tensor per device

    def note(self, inputs: Any) -> None:
        """Note the masks of a model call.

        Args:
            inputs: all inputs of the call, `(args, kwargs)`.
        """
        self._masks += _masks_in(inputs)

    def discard_step(self) -> None:
        """Forget the masks of a step that did not end."""
        self._masks.clear()

    def end_step(self) -> None:
        """Add the masks of the step."""
        masks, self._masks = self._masks, []
        with torch.no_grad():
            for mask in masks:
                self._tokens += mask.numel()
                self._add(torch.count_nonzero(mask))

    def take(self) -> float | None:
        """Return the share since the last call in percent; None if no call had a mask. It waits for the device."""
        tokens, attended = self._tokens, self._attended
        self._tokens, self._attended = 0, []
        return 100 * (1 - sum(map(int, attended)) / tokens) if tokens else None

    def _add(self, number: torch.Tensor) -> None:
        for index, total in enumerate(self._attended):
            if total.device == number.device:
                self._attended[index] = total + number
                return
        self._attended.append(number)


class PaddedTraining(Training):
    """A training that notes which of its tokens are padding."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.padding = Padding()

    def begin_step(
        self,
        inputs: Any,
        batch: Any,
        optimizers: Iterable[Any] = (),
        *,
        site: str | None = None,
        has_grad: bool = True,
        watching: StepRecorder | None = None,
        backwards: int = 0,
    ) -> Plan:
        """Begin a step with its first call; see `Training.begin_step`."""
        self.padding.discard_step()
        if has_grad:  # as tokens are counted
            self.padding.note(inputs)
        return super().begin_step(
            inputs, batch, optimizers, site=site, has_grad=has_grad, watching=watching, backwards=backwards
        )

    def add_batch(self, inputs: Any, batch: Any, *, is_new: bool = True) -> None:
        """Add the batch of a further call; see `Training.add_batch`."""
        self.padding.note(inputs)
        super().add_batch(inputs, batch, is_new=is_new)


def _masks_in(inputs: Any) -> Iterator[torch.Tensor]:
    """Yield the masks that have the shape of the tokens beside them."""
    args, kwargs = inputs
    for part in (kwargs, *args):
        if isinstance(part, Mapping):
            tokens, mask = part.get(TOKENS), part.get(MASK)
            if isinstance(tokens, torch.Tensor) and isinstance(mask, torch.Tensor) and mask.shape == tokens.shape:
                yield mask
