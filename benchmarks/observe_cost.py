"""What it costs to observe a training step by the profiler's records, next to PyTorch's own counter.

    python benchmarks/observe_cost.py [rounds] [--cpu]

With `--cpu` on one thread, by the processor time of that thread: for a machine that has other work to do. Interleaved
rounds in one process, forward, backward and update; medians over the plain step's. "Recording" is the step
inside of the records, "read" the step with all that follows it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flopcallback.modules.names import ModuleNames
from flopcallback.tracing import observer as observing
from flopcallback.tracing.observer import StepRecorder

ROUNDS = 7
IS_CPU = "--cpu" in sys.argv
_clock = time.thread_time if IS_CPU else time.perf_counter


class InvertedResidual(nn.Module):
    """Block of MobileNetV2 (Sandler et al., 2018, table 1)."""

    def __init__(self, width: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()]
        layers += [nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out))
        self.adds = stride == 1 and width == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


def mobilenet() -> tuple[nn.Module, torch.Tensor]:
    """Return MobileNetV2 of width 1 on 8 images of 96 x 96."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
    width = 32
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, out, count, stride in table:
        for number in range(count):
            layers.append(InvertedResidual(width, out, stride if number == 0 else 1, expansion))
            width = out
    layers += [nn.Conv2d(width, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1280, 1000)), torch.randn(8, 3, 96, 96)


class LlamaBlock(nn.Module):
    """Block of Llama: RMSNorm, rotary attention, gated feed-forward."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        y = self.norms[0](x)
        q, k, v = (part(y).view(batch, tokens, self.heads, -1).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self._rotate(q), self._rotate(k), v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(batch, tokens, width))
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))

    @staticmethod
    def _rotate(x: torch.Tensor) -> torch.Tensor:
        tokens, width = x.shape[-2:]
        angles = torch.arange(tokens)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin


class Language(nn.Module):
    def __init__(self, blocks: list[nn.Module], width: int, words: int) -> None:
        super().__init__()
        self.embed, self.blocks, self.head = nn.Embedding(words, width), nn.Sequential(*blocks), nn.Linear(width, words)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embed(tokens)))


def llama() -> tuple[nn.Module, torch.Tensor]:
    """Return 24 layers of width 256 on 2 texts of 64 words."""
    return Language([LlamaBlock(256, 4, 688) for _ in range(24)], 256, 2000), torch.randint(2000, (2, 64))


def bert() -> tuple[nn.Module, torch.Tensor]:
    """Return the encoder of BERT-base on 2 texts of 128 words."""
    layers = [nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True) for _ in range(12)]
    return Language(list(layers), 768, 3000), torch.randint(3000, (2, 128))


def measure(model: nn.Module, x: torch.Tensor, rounds: int) -> tuple[dict[str, float], int]:
    """Return seconds by way, and the number of records."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    names = ModuleNames({"": model})
    records = 0

    def step() -> None:
        model(x).float().pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def plain() -> float:
        return _seconds(step)

    def recording() -> float:
        """Time the step inside of the records alone."""
        with StepRecorder(names, [optimizer]).watching():
            return _seconds(step)

    def reading() -> float:
        def observed() -> None:
            observer = StepRecorder(names, [optimizer])
            with observer.watching():
                step()
            assert observer.failure is None, observer.failure
            observer.runs()

        return _seconds(observed)

    def counter() -> float:
        def counted() -> None:
            with FlopCounterMode(display=False):
                step()

        return _seconds(counted)

    def count(result: object) -> object:
        nonlocal records
        records = len(result.events())  # type: ignore[attr-defined]
        return result

    stop = observing.end_recording
    observing.end_recording = lambda recording: count(stop(recording))  # type: ignore[assignment]
    reading()
    observing.end_recording = stop
    ways = {"plain": plain, "recording": recording, "read": reading, "FlopCounterMode": counter}
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(way())
    return {name: statistics.median(values) for name, values in seconds.items()}, records


def _seconds(call: Callable[[], None]) -> float:
    start = _clock()
    call()
    return _clock() - start


def main() -> None:
    rounds = next((int(text) for text in sys.argv[1:] if text.isdigit()), ROUNDS)
    if IS_CPU:
        torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} rounds")
    print("| model | records | plain, ms | recording | read | FlopCounterMode |\n|---|---|---|---|---|---|")
    for name, make in {"MobileNetV2": mobilenet, "Llama, 24 layers of 256": llama, "BERT-base": bert}.items():
        torch.manual_seed(0)
        seconds, records = measure(*make(), rounds)
        base = seconds.pop("plain")
        ratios = " | ".join(f"{value / base:.2f}" for value in seconds.values())
        print(f"| {name} | {records:,} | {1000 * base:.0f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
