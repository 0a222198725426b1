"""Train with Hugging Face Accelerate, and count with one line more.

Usage: python examples/accelerate_loop.py [--precision fp32|bf16] [--accumulate 4] [--to ./report]

The hook is given what `accelerator.prepare` returned. A step ends where the optimizer steps: after all batches whose
gradients are accumulated.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from accelerate import Accelerator
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
    accelerator = Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no", gradient_accumulation_steps=accumulate
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, batches = accelerator.prepare(model, optimizer, data())
    with FlopHook(model, optimizer, to=to, summary=to is not None) as hook:
        for images, labels in batches:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(images), labels)
                accelerator.backward(loss)
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
