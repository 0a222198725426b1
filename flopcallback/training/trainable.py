"""TrainableFingerprint: which parameters of a model are trained, in a short text."""

from __future__ import annotations

import zlib
from operator import attrgetter

import torch
from torch import nn

__all__ = ["REFRESH", "TrainableFingerprint"]

REFRESH = 64
"""Readings after which the model is asked again which parameters it has."""

_requires_grad = attrgetter("requires_grad")


class TrainableFingerprint:
    """Tells apart steps in which different parameters require grad, at a price that every step can pay.

    Args:
        model: whose parameters are read.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._readings = 0
        self._parameters: list[nn.Parameter] = []
        self._elements = 0
        self._flags: list[bool] = []  # of the last reading: while they stay, so does the text
        self._text = ""

    def read(self) -> str:
        """Return the text for the parameters as they are now; equal texts mean equal parameters and flags."""
        if self._readings % REFRESH == 0:
            self._parameters = list(self._model.parameters())
            try:
                elements = sum(map(torch.numel, self._parameters))
            except ValueError:  # one is not initialized yet
                elements = 0
            if elements != self._elements:  # a layer was replaced
                self._elements, self._flags = elements, []
        self._readings += 1
        flags = list(map(_requires_grad, self._parameters))
        if flags != self._flags:
            self._flags = flags
            self._text = f"{sum(flags)} of {len(flags)}, {self._elements} elements: {zlib.crc32(bytes(flags)):08x}"
        return self._text
