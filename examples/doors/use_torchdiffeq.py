"""torchdiffeq: `odeint_adjoint` runs its function without grad. A module around it is what the hook can count."""

import torch
from check import check, linear
from torch import nn
from torchdiffeq import odeint_adjoint

BATCH, WIDE, HIDDEN, TIMES, STEPS = 5, 3, 16, 4, 6


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDE, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, WIDE))

    def forward(self, time, x):
        return self.net(x)


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.field, self.times = Field(), torch.linspace(0, 1, TIMES)

    def forward(self, x):
        return odeint_adjoint(self.field, x, self.times, method="euler")


def train(hook_of):
    model = Flow()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with hook_of(model, optimizer):
        for _ in range(STEPS):
            model(torch.randn(BATCH, WIDE)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.parameters()


if __name__ == "__main__":
    forward, _ = linear(BATCH, WIDE, HIDDEN, WIDE)
    # Euler's method evaluates once for each interval. The adjoint evaluates again with grad, and takes the gradient of
    # weights and state: twice the products of the forward.
    check("torchdiffeq", train, STEPS * (TIMES - 1) * (1 + 1 + 2) * forward)
