"""Operators whose kernels a GPU chooses, with their multiply-adds on paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["OperatorCase", "Perceptron", "operator_cases"]


@dataclass(frozen=True)
class OperatorCase:
    """A call with its multiply-adds.

    Attributes:
        name: what it shows.
        call: function of the inputs.
        inputs: tensors that require grad.
        forward: multiply-adds of the call.
        products: multiply-adds of forward and gradients, over those of the forward, as (numerator, denominator).
        needs_gpu: whether no CPU has these kernels.
        within: the context of the call.
    """

    name: str
    call: Callable[..., torch.Tensor]
    inputs: tuple[torch.Tensor, ...]
    forward: int
    products: tuple[int, int] = (3, 1)
    needs_gpu: bool = False
    within: Callable[[], AbstractContextManager[Any]] = field(default=nullcontext)

    def run(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Make the call."""
        with self.within():
            return self.call(*inputs)

    def step(self, *inputs: torch.Tensor) -> None:
        """Make the call, and add the gradients of all inputs and weights to theirs."""
        self.run(*inputs).float().sum().backward()

    @property
    def forward_and_backward(self) -> int:
        """Multiply-adds of call and gradients."""
        over, under = self.products
        return self.forward * over // under


def operator_cases(device: torch.device, dtype: torch.dtype) -> Iterator[OperatorCase]:
    """Yield the cases, small enough for any device.

    Args:
        device: where they run.
        dtype: of 16 bits, which the fused kernels of attention need.
    """
    yield from _products(device)
    yield from _convolutions(device)
    yield from _recurrent(device)
    yield from _attention(device, dtype)


def _random(device: torch.device, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, device=device, dtype=dtype, requires_grad=True)


def _products(device: torch.device) -> Iterator[OperatorCase]:
    layer = nn.Linear(24, 40).to(device)
    yield OperatorCase("linear", layer, (_random(device, 16, 24),), 16 * 24 * 40)
    left, right = _random(device, 3, 16, 24), _random(device, 3, 24, 40)
    yield OperatorCase("batched product", torch.bmm, (left, right), 3 * 16 * 24 * 40)
    heads = _random(device, 3, 5, 16, 24), _random(device, 3, 5, 40, 24)
    yield OperatorCase("einsum", lambda q, k: torch.einsum("bhqd,bhkd->bhqk", q, k), heads, 3 * 5 * 16 * 24 * 40)


def _convolutions(device: torch.device) -> Iterator[OperatorCase]:
    images = _random(device, 2, 16, 20, 20)
    pixels = 2 * 20 * 20
    for name, module, macs in (
        ("convolution", nn.Conv2d(16, 24, 3, padding=1), pixels * 9 * 16 * 24),
        ("convolution, padding='same'", nn.Conv2d(16, 24, 3, padding="same"), pixels * 9 * 16 * 24),
        ("convolution in 4 groups", nn.Conv2d(16, 24, 3, padding=1, groups=4), pixels * 9 * 4 * 24),
        ("depthwise convolution", nn.Conv2d(16, 16, 3, padding=1, groups=16), pixels * 9 * 16),
        ("dilated convolution", nn.Conv2d(16, 24, 3, padding=2, dilation=2), pixels * 9 * 16 * 24),
        ("transposed convolution", nn.ConvTranspose2d(16, 24, 2, stride=2), pixels * 4 * 16 * 24),
    ):
        module.to(device)
        yield OperatorCase(name, module, (images,), macs)
    last = nn.Conv2d(16, 24, 3, padding=1).to(device, memory_format=torch.channels_last)
    name, macs = "convolution, channels last", pixels * 9 * 16 * 24
    yield OperatorCase(name, last, (images,), macs)
    volume = nn.Conv3d(4, 6, 3, padding=1).to(device)
    inputs, macs = (_random(device, 2, 4, 8, 8, 8),), 2 * 8**3 * 27 * 4 * 6
    yield OperatorCase("convolution in 3 dimensions", volume, inputs, macs)


def _recurrent(device: torch.device) -> Iterator[OperatorCase]:
    rows, wide, hidden = 7 * 3, 24, 40
    for kind, gates in ((nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)):
        module = kind(wide, hidden, num_layers=2, bidirectional=True).to(device)
        # Of two levels, the second one reads both directions of the first.
        macs = rows * gates * hidden * 2 * ((wide + hidden) + (2 * hidden + hidden))
        # With a first state that requires grad: else the gradient of the first step is one product short on a CPU.
        inputs = (_random(device, 7, 3, wide), *(_random(device, 4, 3, hidden) for _ in range(1 + (kind is nn.LSTM))))
        yield OperatorCase(kind.__name__, _first_of(module), inputs, macs)
    # cuDNN has it; without it, a sequence of products.
    module = nn.LSTM(wide, hidden, proj_size=16).to(device)
    macs = rows * (4 * hidden * (wide + 16) + hidden * 16)
    inputs = (_random(device, 7, 3, wide),)
    yield OperatorCase("LSTM with a projection", _first_of(module), inputs, macs, needs_gpu=True)


def _first_of(module: nn.Module) -> Callable[..., torch.Tensor]:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = module

        def forward(self, x: torch.Tensor, *state: torch.Tensor) -> torch.Tensor:
            return self.layer(x, state if len(state) > 1 else state[0] if state else None)[0]

    return First()


def _attention(device: torch.device, dtype: torch.dtype) -> Iterator[OperatorCase]:
    batch, heads, queries, keys = 2, 3, 32, 48
    # Of a fused kernel's backward there are five products: it computes the scores again. 60 is no multiple of 8.
    for backend, products in (
        (SDPBackend.MATH, (3, 1)),
        (SDPBackend.FLASH_ATTENTION, (7, 2)),
        (SDPBackend.EFFICIENT_ATTENTION, (7, 2)),
        (SDPBackend.CUDNN_ATTENTION, (7, 2)),
    ):
        for width in (64, 60):
            yield OperatorCase(
                f"attention, {backend.name.lower()}, heads of {width}",
                F.scaled_dot_product_attention,
                tuple(_random(device, batch, heads, tokens, width, dtype=dtype) for tokens in (queries, keys, keys)),
                2 * batch * heads * queries * keys * width,
                products,
                needs_gpu=backend in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION),
                within=lambda backend=backend: sdpa_kernel(backend),
            )


class Perceptron(nn.Module):
    """Layers whose training step is known on paper.

    Args:
        wide: width of the inputs.
        width: width of the layers.
        depth: number of blocks of two layers, the inner width being four times the outer.
        out: width of the outputs.
    """

    def __init__(self, wide: int, width: int, depth: int, out: int) -> None:
        super().__init__()
        self.embed = nn.Linear(wide, width)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(depth))
        )
        self.head = nn.Linear(width, out)
        self.sizes = wide, width, depth, out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embed(x)))

    def forward_flops(self, rows: int) -> int:
        """Return the FLOPs of a forward of so many rows."""
        wide, width, depth, out = self.sizes
        return 2 * rows * (wide * width + depth * 8 * width * width + width * out)

    def step_flops(self, rows: int) -> int:
        """Return the FLOPs of a step: nobody asks for the gradient of the inputs."""
        wide, width, _, _ = self.sizes
        return 3 * self.forward_flops(rows) - 2 * rows * wide * width
