"""TrainableFingerprint: a short text for the parameters that require grad."""

from __future__ import annotations

import zlib
from operator import attrgetter

import torch
from torch import nn

__all__ = ["REFRESH", "TrainableFingerprint"]

REFRESH = 64
"""Readings between two traversals of the module tree for its parameters."""

_requires_grad = attrgetter("requires_grad")


class TrainableFingerprint:
    """Fingerprint of the parameters that require grad.

    It is cheap enough to read in every step.

    Args:
        model: model under training.
    """

    __slots__ = ("_elements", "_flags", "_model", "_parameters", "_readings", "_text")

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._readings = 0
        self._parameters: list[nn.Parameter] = []  # as of the last traversal
        self._elements = 0  # of all parameters; 0 if one is uninitialized
        self._flags: list[bool] = []  # at the last reading; emptied to make the next one renew `_text`
        self._text = ""

    def read(self) -> str:
        """Return the fingerprint of the present parameters.

        It differs if other parameters require grad, or if their number or total size is another one. A replaced layer
        of another size is noticed within `REFRESH` readings.
        """
        if self._readings % REFRESH == 0:
            self._parameters = list(self._model.parameters())
            try:
                elements = sum(map(torch.numel, self._parameters))
            except ValueError:  # from `numel` of an uninitialized parameter of a lazy module
                elements = 0
            if elements != self._elements:  # a layer was replaced
                self._elements, self._flags = elements, []
        self._readings += 1
        flags = list(map(_requires_grad, self._parameters))
        if flags != self._flags:
            self._flags = flags
            self._text = f"{sum(flags)} of {len(flags)}, {self._elements} elements: {zlib.crc32(bytes(flags)):08x}"
        return self._text
