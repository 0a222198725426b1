"""A net that several processes know: one trains it, and another, which runs this file, prints its FLOPs by module."""

from __future__ import annotations

import json
import sys

import torch
from torch import nn

BATCH, WIDE, HIDDEN, OUT = 2, 7, 5, 3

NAMES = ("a/b", "__relu__", "卷积")


def make_net() -> nn.Sequential:
    torch.manual_seed(11)
    net = nn.Sequential()
    for name, module in zip(NAMES, (nn.Linear(WIDE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT)), strict=True):
        net.add_module(name, module)
    return net


def batch() -> torch.Tensor:
    return torch.ones(BATCH, WIDE)


class Whole(nn.Module):
    """The net one level down, where a LightningModule has it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


if __name__ == "__main__":
    from flopcallback import FlopCountAnalysis

    analysis = FlopCountAnalysis(Whole(), batch())
    flops = analysis.hardware_flops()
    json.dump({"forward": flops[""], "modules": dict(flops)}, sys.stdout)
