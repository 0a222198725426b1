"""Small models that do ordinary things in unusual ways.

Counters tend to miss them. Each comes with its multiply-adds on paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
import truth
from cases import Case
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["NASTY"]


class ExplicitForward(nn.Module):
    """Layers that work without being called.

    The work goes through `.forward()`, a method, and a weight passed to a function.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(width, width) for _ in range(3))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second.forward(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self.encode(self.first.forward(x)), self.third.weight)


def explicit_forward(small: bool) -> Case:
    rows, width = (5, 7) if small else (512, 1024)
    return Case(ExplicitForward(width), {"x": torch.randn(rows, width)}, 3 * truth.linear(rows, width, width))


class FunctionsAlone(nn.Module):
    """Parameters without layers.

    They take part in less common products than `matmul`, and in a convolution padded by name.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(channels, 1, 5))
        self.square = nn.Parameter(torch.randn(width, width))
        self.vector = nn.Parameter(torch.randn(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        filtered = F.conv1d(x, self.kernel, padding="same", groups=len(self.kernel))
        mixed = torch.tensordot(filtered, self.square, dims=1)
        scores = torch.baddbmm(x.new_zeros(()), mixed, x.mT)
        return torch.mv(torch.addmm(self.vector, (scores @ x).flatten(0, 1), self.square), self.vector)


def functions_alone(small: bool) -> Case:
    batch, channels, width = (2, 3, 7) if small else (4, 64, 512)
    rows = batch * channels
    on_paper = (
        batch * truth.convolution(width, channels, channels, 5, groups=channels)
        + 2 * truth.linear(rows, width, width)
        + 2 * truth.linear(rows, width, channels)
        + truth.linear(rows, width, 1)
    )
    return Case(FunctionsAlone(channels, width), {"x": torch.randn(batch, channels, width)}, on_paper)


class Force(nn.Module):
    """Gradient of an energy by position, inside the forward.

    Models of molecules compute forces this way.
    """

    def __init__(self, ins: int, width: int) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(ins, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.energy.append(nn.Linear(width, 1))

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        positions = positions.detach().requires_grad_()
        return torch.autograd.grad(self.energy(positions).sum(), positions)[0]


def force(small: bool) -> Case:
    """Build the case of a gradient inside the forward.

    The backward to the positions costs as much as the forward: no gradient of a weight is computed.
    """
    rows, ins, width = (5, 3, 7) if small else (512, 96, 512)
    forward = truth.linear(rows, ins, width) + truth.linear(rows, width, width) + truth.linear(rows, width, 1)
    return Case(Force(ins, width), {"positions": torch.randn(rows, ins)}, 2 * forward, grad=True)


class Ensemble(nn.Module):
    """Members of an ensemble under `vmap`, which merges their products."""

    def __init__(self, members: int, ins: int, outs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(members, ins, outs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.vmap(lambda weight: torch.tanh(x @ weight))(self.weights)


def ensemble(small: bool) -> Case:
    members, rows, ins, outs = (3, 5, 7, 11) if small else (8, 256, 512, 384)
    on_paper = truth.linear(members * rows, ins, outs)
    return Case(Ensemble(members, ins, outs), {"x": torch.randn(rows, ins)}, on_paper)


class Shared(nn.Module):
    """One layer used in three places, the last under a checkpoint."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.again = self.layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.again(F.relu(self.layer(x)))
        return checkpoint(self.layer, x, use_reentrant=True)


def shared(small: bool) -> Case:
    rows, width = (5, 7) if small else (512, 1024)
    return Case(Shared(width), {"x": torch.randn(rows, width)}, 3 * truth.linear(rows, width, width), grad=True)


class LowRank(nn.Module):
    """Einsum of three operands, with a cost that depends on the order."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(width, rank)), nn.Parameter(torch.randn(rank, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bi,ir,rj->bj", x, self.left, self.right)


def low_rank(small: bool) -> Case:
    """Build the case of an einsum of three operands.

    Rows meet the narrow factor first: the cheapest order, and the order as written.
    """
    rows, width, rank = (5, 7, 3) if small else (512, 1024, 16)
    on_paper = truth.linear(rows, width, rank) + truth.linear(rows, rank, width)
    return Case(LowRank(width, rank), {"x": torch.randn(rows, width)}, on_paper)


NASTY: Mapping[str, Callable[[bool], Case]] = {
    "explicit forward": explicit_forward,
    "functions alone": functions_alone,
    "gradient inside": force,
    "ensemble by vmap": ensemble,
    "shared, checkpointed": shared,
    "einsum of three": low_rank,
}
