"""Train with Lightning Fabric, and count with one line more.

Usage: python examples/fabric_loop.py [--precision fp32|bf16] [--accumulate 4] [--to ./report]

The hook is given what `fabric.setup` returned. A step ends where the optimizer steps: after all batches whose
gradients are accumulated.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flopcallback import FlopHook

SAMPLES, PIXELS, HIDDEN, CLASSES, BATCH = 240, 64, 96, 10, 10


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def data() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(SAMPLES, PIXELS, generator=generator)
    return DataLoader(TensorDataset(images, images.argmax(1) % CLASSES), BATCH)


def train(model: nn.Module, precision: str = "fp32", accumulate: int = 1, to: Any = None) -> FlopHook:
    """Train for an epoch, and return the hook with its figures."""
    fabric = Fabric(devices=1, precision="bf16-mixed" if precision == "bf16" else "32-true")
    fabric.launch()
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    batches = fabric.setup_dataloaders(data())
    with FlopHook(model, optimizer, to=to, summary=to is not None) as hook:
        for number, (images, labels) in enumerate(batches, 1):
            is_accumulating = number % accumulate != 0
            with fabric.no_backward_sync(model, enabled=is_accumulating):
                loss = nn.functional.cross_entropy(model(images), labels)
                fabric.backward(loss)
            if not is_accumulating:
                optimizer.step()
                optimizer.zero_grad()
    return hook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--to", default="./report")
    options = parser.parse_args()
    torch.manual_seed(0)
    hook = train(net(), options.precision, options.accumulate, options.to)
    print(f"{hook.metrics()['compute/flops_total']:,} FLOPs in {hook.metrics()['compute/samples_total']:,} samples")


if __name__ == "__main__":
    main()
