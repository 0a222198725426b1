"""Training steps of every kind, as `(model, optimizers, step(on))`; `on(is_forward=...)` surrounds a forward."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

BATCH, WIDE, INNER, OUT = 3, 5, 7, 2


def plain(model, x, *, optimizer=None, autocast=False):
    """Forward, backward and update."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.01)

    def step(on):
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            with on():
                y = model(x)
            loss = (y[0] if isinstance(y, tuple) else y).float().pow(2).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, [optimizer], step


def net():
    return nn.Sequential(nn.Linear(WIDE, INNER), nn.ReLU(), nn.Linear(INNER, OUT))


class Checkpointed(nn.Module):
    def __init__(self, *, is_reentrant, stops_early=True):
        super().__init__()
        self.head, self.block, self.tail = nn.Linear(WIDE, INNER), Block(INNER), nn.Linear(INNER, OUT)
        self.is_reentrant, self.stops_early = is_reentrant, stops_early

    def forward(self, x):
        options = {} if self.is_reentrant else {"early_stop": self.stops_early}
        return self.tail(checkpoint(self.block, self.head(x), use_reentrant=self.is_reentrant, **options))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 11), nn.Linear(11, width)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Attention(nn.Module):
    """Self-attention with one projection; its kernel saves what it gives back."""

    def __init__(self, *, checkpoints=False):
        super().__init__()
        self.project, self.checkpoints = nn.Linear(6, 18), checkpoints

    def attend(self, x):
        query, key, value = self.project(x).unflatten(-1, (3, 2, 3)).transpose(1, 3).unbind(2)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True).sum(1)

    def forward(self, x):
        return checkpoint(self.attend, x, use_reentrant=False) if self.checkpoints else self.attend(x)


class Product(torch.autograd.Function):
    """A product of matrices with a backward of one's own."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight.T, x.T @ grad


class OwnProduct(nn.Module):
    """A layer, then a product of one's own."""

    def __init__(self, product=Product.apply, wide=WIDE, inner=INNER, out=OUT):
        super().__init__()
        self.first, self.weight, self.product = nn.Linear(wide, inner), nn.Parameter(torch.randn(inner, out)), product

    def forward(self, x):
        return self.product(self.first(x), self.weight)


class Penalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = net()

    def forward(self, x):
        x = x.detach().requires_grad_()
        y = self.layers(x)
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y.sum() + gradient.pow(2).sum()


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.critic = nn.Linear(WIDE, INNER), nn.Linear(INNER, 1)


def gan():
    model = Pair()
    optimizers = [torch.optim.SGD(part.parameters(), 0.01) for part in (model.critic, model.generator)]

    def step(on):
        noise, real = torch.ones(BATCH, WIDE), torch.ones(BATCH, INNER)
        with on(is_forward=False):
            fake = model.generator(noise)
            (model.critic(real).sum() - model.critic(fake.detach()).sum()).backward()
            optimizers[0].step()
            optimizers[0].zero_grad()
            model.critic(fake).sum().backward()
            optimizers[1].step()
            optimizers[1].zero_grad()

    return model, optimizers, step


def closures():
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    x = torch.linspace(0, 1, BATCH * WIDE).view(BATCH, WIDE)

    def step(on):
        def closure():
            optimizer.zero_grad()
            with on():
                y = model(x)
            loss = (y - 1).pow(2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    return model, [optimizer], step


def with_graph():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def step(on):
        with on():
            y = model(torch.ones(BATCH, WIDE))
        gradients = torch.autograd.grad(y.sum(), list(model.parameters()), create_graph=True)
        sum(gradient.pow(2).sum() for gradient in gradients).backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, [optimizer], step


def image():
    layers = (nn.Conv2d(3, 5, 3, stride=2), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 10, 3, groups=5, padding=1))
    up = nn.ConvTranspose2d(10, 4, 3, stride=2, output_padding=1)
    return nn.Sequential(*layers, up, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def muon():
    model = net()
    return plain(model, torch.ones(BATCH, WIDE), optimizer=torch.optim.Muon([model[0].weight, model[2].weight], 0.01))


STEPS = {
    "linear": lambda: plain(net(), torch.ones(BATCH, WIDE)),
    "image": lambda: plain(image(), torch.ones(2, 3, 11, 13)),
    "image in float64": lambda: plain(image().double(), torch.ones(2, 3, 11, 13).double()),
    "encoder": lambda: plain(nn.TransformerEncoderLayer(14, 2, 11, batch_first=True), torch.ones(3, 5, 14)),
    "attention": lambda: plain(Attention(), torch.ones(2, 5, 6)),
    "attention, checkpointed": lambda: plain(Attention(checkpoints=True), torch.ones(2, 5, 6)),
    "gru": lambda: plain(nn.GRU(WIDE, INNER, 2, bidirectional=True), torch.ones(4, BATCH, WIDE)),
    "lstm": lambda: plain(nn.LSTM(WIDE, INNER, 2), torch.ones(4, BATCH, WIDE)),
    "lstm with projection": lambda: plain(nn.LSTM(WIDE, INNER, proj_size=2), torch.ones(4, BATCH, WIDE)),
    "lstm cell": lambda: plain(nn.LSTMCell(WIDE, INNER), torch.ones(BATCH, WIDE)),
    "reentrant": lambda: plain(Checkpointed(is_reentrant=True), torch.ones(BATCH, WIDE)),
    "as far as it must": lambda: plain(Checkpointed(is_reentrant=False), torch.ones(BATCH, WIDE)),
    "to the end": lambda: plain(Checkpointed(is_reentrant=False, stops_early=False), torch.ones(BATCH, WIDE)),
    "own function": lambda: plain(OwnProduct(), torch.ones(BATCH, WIDE)),
    "penalty": lambda: plain(Penalized(), torch.ones(BATCH, WIDE)),
    "with a graph": with_graph,
    "gan": gan,
    "closures": closures,
    "autocast": lambda: plain(net(), torch.ones(BATCH, WIDE), autocast=True),
    "adamw": lambda: plain(m := net(), torch.ones(BATCH, WIDE), optimizer=torch.optim.AdamW(m.parameters())),
    "bilinear": lambda: plain(Bilinear(), torch.ones(BATCH, WIDE)),
    "embedding": lambda: plain(nn.Sequential(nn.Embedding(13, WIDE), nn.Linear(WIDE, 13)), torch.arange(BATCH)),
    "vmap": lambda: plain(PerSample(), torch.ones(BATCH, 4, WIDE)),
    "muon": muon,
}


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Bilinear(WIDE, WIDE, OUT)

    def forward(self, x):
        return self.mix(x, x)


class PerSample(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDE, OUT)

    def forward(self, x):
        return torch.vmap(self.layer)(x)
