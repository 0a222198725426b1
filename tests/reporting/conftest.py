"""Profiles made by hand: the reference net of the original tool, and nets of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profile.rows import LatencySummary, ModuleRow, OperatorRow, StepFlops
from flopcallback.profile.times import PYTHON, OperatorTime, StepTime

if TYPE_CHECKING:
    from collections.abc import Callable


def example_profile() -> ModelProfile:
    """conv(1→6, 3×3), pool, conv(6→16, 3×3), pool, three linear layers, on one 1×32×32 image."""
    conv1 = 2 * (30 * 30 * 6 * 1 * 3 * 3)
    conv2 = 2 * (13 * 13 * 16 * 6 * 3 * 3)
    fc1, fc2, fc3 = 2 * (576 * 120), 2 * (120 * 84), 2 * (84 * 10)
    total = conv1 + conv2 + fc1 + fc2 + fc3
    rows = [
        layer(
            "conv1", "Conv2d", params=6 * 1 * 3 * 3 + 6, flops=conv1, activations=6 * 30 * 30, shape="(1, 6, 30, 30)"
        ),
        layer("pool1", "MaxPool2d", shape="(1, 6, 15, 15)"),
        layer("conv2", "Conv2d", params=16 * 6 * 3 * 3 + 16, flops=conv2, activations=16 * 13 * 13),
        layer("pool2", "MaxPool2d", shape="(1, 16, 6, 6)"),
        layer("fc1", "Linear", params=576 * 120 + 120, flops=fc1, activations=120, shape="(1, 120)"),
        layer("fc2", "Linear", params=120 * 84 + 84, flops=fc2, activations=84, shape="(1, 84)"),
        layer("fc3", "Linear", params=84 * 10 + 10, flops=fc3, activations=10, shape="(1, 10)"),
    ]
    return ModelProfile(
        name="LeNet",
        phase="train",
        modules=(root("LeNet", rows), *rows),
        operators=(
            OperatorRow("aten::linear", 3, fc1 + fc2 + fc3, "matmul", macs=(fc1 + fc2 + fc3) // 2),
            OperatorRow("aten::_convolution", 2, conv1 + conv2, "convolution", macs=(conv1 + conv2) // 2),
        ),
        config={
            "flops.elementwise": False,
            "flops.engine": "trace",
            "flops.device": "cpu",
            "flops.dtype": "float32",
            "flops.input_shapes": [[1, 1, 32, 32]],
            "flops.is_lower_bound": False,
            "flops.unknown_operators": [],
            "flops.version": "0.1.0",
        },
        batch_size=1,
        forward_flops=total,
        forward_macs=total // 2,
    )


def measured(profile: ModelProfile) -> ModelProfile:
    """The profile with a time for each row: 0.1 ms for a leaf and 0.1 us more per thousand FLOPs, sums above."""
    parents = {row.parent for row in profile.modules}
    times = {row.path: 0.1 + 0.0001 * row.flops / 1000 for row in profile.modules if row.path not in parents}
    for row in reversed(profile.modules):
        if row.parent is not None:
            times[row.parent] = times.get(row.parent, 0.0) + times[row.path]
    spread = {path: (0.9 * time, 1.2 * time) for path, time in times.items()}
    return profile.with_latency(
        LatencySummary(forward_ms=times.get("", 0.5), step_ms=3.5, steps=20, how="CPU clock"), times, spread
    )


def in_steps(profile: ModelProfile) -> ModelProfile:
    """The profile with the times of training steps, no two alike: forward by FLOPs, twice that backward, an optimizer.

    A module's own operator is attention where it contains others, and a tenth of its forward is Python's.
    """
    parents = {row.parent for row in profile.modules}
    operators, flops, times = [], {}, {}
    for at, row in enumerate(reversed(profile.modules)):
        parts = []
        if row.path:
            ms = 0.1 + row.own_flops / 1e6 + at / 7919
            name = "aten::scaled_dot_product_attention" if row.path in parents else f"aten::{row.type.lower()}"
            parts = [
                OperatorTime(row.path, name, "forward", 0.9 * ms, 1, row.own_flops),
                OperatorTime(row.path, PYTHON, "forward", 0.1 * ms),
                OperatorTime(row.path, f"{name}_backward", "backward", 2 * ms, 1, 2 * row.own_flops),
            ]
        else:
            parts = [OperatorTime(None, "AdamW.step", "optimizer", 5.0, 1), OperatorTime("", PYTHON, "forward", 0.5)]
        operators += parts
        own_time = sum((StepTime(**{part.phase: part.ms}) for part in parts), StepTime())
        own_flops = sum((StepFlops(**{part.phase: part.flops}) for part in parts), StepFlops())
        times[row.path] = times.get(row.path, StepTime()) + own_time
        flops[row.path] = flops.get(row.path, StepFlops()) + own_flops
        if row.parent is not None:
            times[row.parent] = times.get(row.parent, StepTime()) + times[row.path]
            flops[row.parent] = flops.get(row.parent, StepFlops()) + flops[row.path]
    step_ms = times[""].total
    latency = LatencySummary(
        forward_ms=times[""].forward,
        step_ms=step_ms,
        steps=20,
        how="CPU clock",
        step_spread=(0.8 * step_ms, 1.2 * step_ms),
        cpu_share=0.95,
        observed_ms=1.1 * step_ms,
        observed_steps=4,
    )
    forward_ms = {path: time.forward for path, time in times.items()}
    spread = {path: (0.9 * ms, 1.1 * ms) for path, ms in forward_ms.items()}
    return profile.with_step(flops).with_latency(latency, forward_ms, spread).with_times(times, operators)


def layer(
    path: str,
    kind: str,
    *,
    params: int = 0,
    flops: int = 0,
    macs: int | None = None,
    activations: int = 0,
    shape: str | None = None,
) -> ModuleRow:
    """A leaf whose work is all multiply-adds unless `macs` says otherwise, at the depth that its dots say."""
    return ModuleRow(
        path=path,
        parent=path.rpartition(".")[0],
        depth=path.count(".") + 1,
        type=kind,
        calls=1,
        params=params,
        params_trainable=params,
        flops=flops,
        own_flops=flops,
        macs=flops // 2 if macs is None else macs,
        activations=activations,
        output_shape=shape,
    )


def container(path: str, kind: str, rows: list[ModuleRow], *, own_flops: int = 0) -> ModuleRow:
    """A module that contains the rows directly below its path, and does `own_flops` itself."""
    below = [row for row in rows if row.parent == path]
    return ModuleRow(
        path=path,
        parent=path.rpartition(".")[0] if path else None,
        depth=path.count(".") + 1 if path else 0,
        type=kind,
        calls=1,
        params=sum(row.params for row in below),
        params_trainable=sum(row.params_trainable for row in below),
        flops=own_flops + sum(row.flops for row in below),
        own_flops=own_flops,
        macs=own_flops // 2 + sum(row.macs for row in below),
        activations=sum(row.activations for row in below),
    )


def root(kind: str, rows: list[ModuleRow]) -> ModuleRow:
    """The model around its rows."""
    return container("", kind, rows)


def flat_profile(count: int, *, name: str = "Wide") -> ModelProfile:
    """`count` linear layers side by side, each one larger than the one before."""
    rows = [layer(f"layer{index}", "Linear", params=7 + index, flops=1000 * (index + 1)) for index in range(count)]
    return profile_of(name, rows)


def decoder_profile(layers: int = 24, *, name: str = "Llama") -> ModelProfile:
    """A transformer of identical blocks, three levels deep, with attention's own operators in `self_attn`."""
    width, hidden, tokens, vocabulary = 64, 176, 128, 1000
    rows = [layer("model.embed_tokens", "Embedding", params=vocabulary * width)]
    blocks: list[ModuleRow] = []
    for index in range(layers):
        path = f"model.layers.{index}"
        project = 2 * (tokens * width * width)
        heads = [layer(f"{path}.self_attn.{name}", "Linear", params=width * width, flops=project) for name in "qkvo"]
        attention = container(f"{path}.self_attn", "Attention", heads, own_flops=2 * (2 * tokens * tokens * width))
        feed = 2 * (tokens * width * hidden)
        gates = [
            layer(f"{path}.mlp.{name}_proj", "Linear", params=width * hidden, flops=feed)
            for name in ("gate", "up", "down")
        ]
        mlp = container(f"{path}.mlp", "MLP", [*gates, layer(f"{path}.mlp.act_fn", "SiLU")])
        norm = layer(f"{path}.input_layernorm", "RMSNorm", params=width, macs=4 * tokens * width)
        inside = [norm, attention, *heads, mlp, *gates, layer(f"{path}.mlp.act_fn", "SiLU")]
        blocks += [container(path, "DecoderLayer", inside), *inside]
    stack = container("model.layers", "ModuleList", blocks)
    norm = layer("model.norm", "RMSNorm", params=width, macs=4 * tokens * width)
    model = container("model", "LlamaModel", [*rows, stack, norm])
    head = layer("lm_head", "Linear", params=vocabulary * width, flops=2 * (tokens * vocabulary * width))
    return profile_of(name, [model, *rows, stack, *blocks, norm, head])


def profile_of(name: str, rows: list[ModuleRow], **more: object) -> ModelProfile:
    """The rows under a root, all their FLOPs in one operator."""
    top = root(name, rows)
    operators = (OperatorRow("aten::linear", len(rows), top.flops, "matmul", macs=top.macs),)
    return ModelProfile(
        name=name,
        phase="train",
        modules=(top, *rows),
        operators=operators,
        batch_size=8,
        forward_flops=top.flops,
        forward_macs=top.macs,
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture
def lenet() -> ModelProfile:
    """The reference net, not measured."""
    return example_profile()


@pytest.fixture(name="measured")
def measured_() -> Callable[[ModelProfile], ModelProfile]:
    return measured


@pytest.fixture(name="in_steps")
def in_steps_() -> Callable[[ModelProfile], ModelProfile]:
    return in_steps


@pytest.fixture
def flat() -> Callable[..., ModelProfile]:
    return flat_profile


@pytest.fixture
def decoder() -> Callable[..., ModelProfile]:
    return decoder_profile


@pytest.fixture
def model_of() -> Callable[..., ModelProfile]:
    """A profile of any rows: `model_of("Net", [...])`."""
    return profile_of


@pytest.fixture(name="layer")
def layer_() -> Callable[..., ModuleRow]:
    return layer


@pytest.fixture(name="container")
def container_() -> Callable[..., ModuleRow]:
    return container


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """One browser for the tests of a file."""
    from chromium import Chromium

    made = Chromium(tmp_path_factory.mktemp("chromium"))
    yield made
    made.close()
