"""Rows of modules inside compiled code: those of the eager model, forward and backward, of an undisturbed training."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from torch import nn

from flopcallback import FlopHook
from flopcallback.profile.rows import StepFlops

pytestmark = [
    pytest.mark.slow,
    # 2026-11, torch 2.13: Dynamo asks every input of a compiled function for its grad, with or without us.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]

BATCH, PATCHES, WIDE, HEADS, CLASSES = 3, 4, 6, 2, 5  # images of 4 x 4 pixels, in patches of 2 x 2
TOKENS, PIXELS = BATCH * PATCHES, 3 * 2 * 2
STEPS = 5

# FLOPs of the products, two for a multiply-add.
CUT, QKV, OUT = 2 * TOKENS * PIXELS * WIDE, 2 * TOKENS * WIDE * 3 * WIDE, 2 * TOKENS * WIDE * WIDE
UP, HEAD = 2 * TOKENS * WIDE * 4 * WIDE, 2 * BATCH * WIDE * CLASSES
SCORES = 2 * BATCH * PATCHES * PATCHES * WIDE  # of queries and keys, and as many of weights and values
# Flash attention computes the scores again in its backward: five products for the forward's two.
FORWARD = {"cut": CUT, "block.qkv": QKV, "block.out": OUT, "block.up": UP, "block.down": UP, "head": HEAD}
BACKWARD = {name: 2 * flops for name, flops in FORWARD.items()} | {"cut": CUT}  # the images need no gradient
BLOCK = QKV + OUT + 2 * UP
FORWARD |= {"block": BLOCK + 2 * SCORES, "": CUT + BLOCK + 2 * SCORES + HEAD}
BACKWARD |= {"block": 2 * BLOCK + 5 * SCORES, "": CUT + 2 * (BLOCK + HEAD) + 5 * SCORES}
STEP = FORWARD[""] + BACKWARD[""]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDE)
        self.qkv, self.out = nn.Linear(WIDE, 3 * WIDE), nn.Linear(WIDE, WIDE)
        self.up, self.down = nn.Linear(WIDE, 4 * WIDE), nn.Linear(4 * WIDE, WIDE)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.down(nn.functional.gelu(self.up(x)))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.cut, self.block = nn.Conv2d(3, WIDE, 2, 2), Block()
        self.norm, self.dropout = nn.BatchNorm1d(PATCHES), nn.Dropout(0.3)
        self.head = nn.Linear(WIDE, CLASSES)

    def forward(self, images):
        x = self.block(self.cut(images).flatten(2).transpose(1, 2))
        return self.head(self.dropout(self.norm(x)).mean(1))


class Graphs:
    """A compiler that counts the graphs it is given."""

    def __init__(self, backend):
        self.compiled = 0
        self._backend = torch._dynamo.lookup_backend(backend)

    def __call__(self, graph, inputs):
        self.compiled += 1
        return self._backend(graph, inputs)


@pytest.fixture(params=["aot_eager", "inductor"])
def graphs(request):
    torch._dynamo.reset()
    yield Graphs(request.param)
    torch._dynamo.reset()


def whole(model, backend):
    return torch.compile(model, backend=backend)


def in_place(model, backend):
    model.compile(backend=backend)
    return model


def child(model, backend):
    model.block = torch.compile(model.block, backend=backend)
    return model


def child_in_place(model, backend):
    model.block.compile(backend=backend)
    return model


def forward_of_a_child(model, backend):
    model.block.forward = torch.compile(model.block.forward, backend=backend)
    return model


HOWS = [whole, in_place, child, child_in_place, forward_of_a_child]
WHOLE = (whole, in_place)


def train(hook, how, backend, steps=STEPS, images=lambda: torch.randn(BATCH, 3, 4, 4)):
    """What a training leaves, and the hook."""
    torch._dynamo.reset()
    torch.manual_seed(3)
    model = ViT()
    called = how(model, backend)
    optimizer = torch.optim.Adam(model.parameters())
    with hook(called, optimizer) as seen:
        for _ in range(steps):
            called(images()).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return {"weights": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}, seen


def unwatched(*_):
    return contextlib.nullcontext()


def watched(model, optimizer):
    return FlopHook(model, optimizer, warmup_steps=0, latency_steps=2, summary=False, strict=True)


def by_path(profile):
    return {row.path: row for row in profile.modules}


@pytest.mark.parametrize("how", HOWS, ids=lambda how: how.__name__)
def test_they_are_those_of_the_eager_model(graphs, how):
    _, hook = train(watched, how, graphs)
    profile = hook.profile
    rows = by_path(profile)
    assert {name: row.flops for name, row in rows.items() if row.flops} == FORWARD
    assert {name: row.step for name, row in rows.items() if row.step.total} == {
        name: StepFlops(forward=FORWARD[name], backward=BACKWARD[name]) for name in FORWARD
    }
    assert profile.step_note == ""
    assert not profile.is_lower_bound
    assert hook.metrics()["compute/flops_total"] == STEPS * STEP
    assert hook.metrics()["compute/estimated_pct"] == 0


@pytest.mark.parametrize("how", HOWS, ids=lambda how: how.__name__)
def test_they_are_marked_and_no_others(graphs, how):
    _, hook = train(watched, how, graphs)
    notes = {name: row.note for name, row in by_path(hook.profile).items()}
    inside = {name for name, note in notes.items() if note == "as written"}
    block = {"block.norm", "block.qkv", "block.out", "block.up", "block.down"}
    assert inside - {"block"} == (block | {"cut", "norm", "dropout", "head"} if how in WHOLE else block)


@pytest.mark.parametrize("how", HOWS, ids=lambda how: how.__name__)
def test_a_training_and_its_compilations_are_as_without_us(graphs, how, differences):
    untouched, _ = train(unwatched, how, graphs)
    compiled, graphs.compiled = graphs.compiled, 0
    left, _ = train(watched, how, graphs)
    assert differences(left, untouched) == []
    assert graphs.compiled == compiled > 0


def test_of_several_calls_in_a_step_each_is_in_them(graphs):
    """Gradients accumulate; from one call, which is counted, follow two."""

    torch.manual_seed(3)
    model = ViT()
    called = torch.compile(model, backend=graphs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(called, optimizer) as hook:
        for _ in range(STEPS):
            for _ in range(2):
                called(torch.randn(BATCH, 3, 4, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    rows = by_path(hook.profile)
    assert rows["block.up"].flops == UP
    assert rows["block.up"].step == StepFlops(forward=2 * UP, backward=4 * UP)
    assert hook.profile.step.total == 2 * STEP
    assert hook.profile.step_note == ""


class Asking(ViT):
    """Its code asks for a value, which fake tensors do not have; the compiler breaks the graph there."""

    def forward(self, images):
        scores = super().forward(images)
        return scores if scores.sum() > -1e9 else -scores


def test_where_the_code_asks_for_values_there_is_no_backward_by_module_which_is_said(graphs):
    torch.manual_seed(3)
    model = Asking()
    called = torch.compile(model, backend=graphs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(called, optimizer) as hook:
        for _ in range(STEPS):
            called(torch.randn(BATCH, 3, 4, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    rows = by_path(hook.profile)
    assert {name: row.flops for name, row in rows.items() if row.flops} == FORWARD
    assert rows["block.up"].step == StepFlops(forward=UP)
    assert hook.profile.step == StepFlops(forward=FORWARD[""], backward=BACKWARD[""])
    assert hook.profile.step_note == (
        "Asking is compiled: its backward is not known by module, as its code asks for values of tensors"
    )


class WithAnUnusedPart(ViT):
    """The compiler leaves out what no result needs; as it is written, it runs."""

    def forward(self, images):
        x = self.block(self.cut(images).flatten(2).transpose(1, 2))
        self.head(x)
        return self.head(self.dropout(self.norm(x)).mean(1))


def test_where_compiled_code_left_work_out_its_row_has_what_ran_and_the_difference_is_said(graphs):
    torch.manual_seed(3)
    model = WithAnUnusedPart()
    called = torch.compile(model, backend=graphs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(called, optimizer) as hook:
        for _ in range(STEPS):
            called(torch.randn(BATCH, 3, 4, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    rows, unused = by_path(hook.profile), PATCHES * HEAD  # of each token instead of each image
    assert rows["head"].flops == HEAD + unused
    assert rows["head"].step == StepFlops(forward=HEAD + unused, backward=2 * HEAD)
    assert hook.profile.step == StepFlops(forward=FORWARD[""], backward=BACKWARD[""])
    assert hook.profile.step_note == (
        f"its forward has {FORWARD['']:,} FLOPs, 1 counted call would have {FORWARD[''] + unused:,}: "
        "WithAnUnusedPart differ"
    )


# --- Several ranks ----------------------------------------------------------------------------------------------------

RANKS = """
import contextlib, json, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flopcallback import FlopHook

torch.set_num_threads(1)
dist.init_process_group("gloo")
batch, wide, inner, out, steps = map(int, sys.argv[2:])


def train(is_watched):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(wide, inner), nn.BatchNorm1d(inner), nn.Tanh(), nn.Linear(inner, out))
    if sys.argv[1] == "around":
        called = torch.compile(DistributedDataParallel(model), backend="aot_eager")
    else:
        called = DistributedDataParallel(torch.compile(model, backend="aot_eager"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with FlopHook(called, optimizer, summary=False) if is_watched else contextlib.nullcontext() as hook:
        for _ in range(steps):
            called(torch.randn(batch, wide)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return [each.tolist() for each in [*model.parameters(), *model.buffers()]], hook


alone, _ = train(False)
left, hook = train(True)
if dist.get_rank() == 0:
    rows = {row.type + row.path[-1]: row.step.backward for row in hook.profile.modules if row.type == "Linear"}
    print(json.dumps({"numbers": hook.metrics(), "rows": rows, "is_same": left == alone}))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize("where", ["around", "inside"])
def test_data_parallel_ranks_train_as_they_would(tmp_path, where):
    """Compiled around the wrapper, whose own forward exchanges buffers, and inside of it."""
    batch, wide, inner, out, steps = 5, 7, 11, 3, 6
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "ranks.py"), where]
    command += map(str, (batch, wide, inner, out, steps))
    processes = []
    for rank in range(2):
        ours = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env={**os.environ, **ours}, **pipes))
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    seen = json.loads(outputs[0][0].splitlines()[-1])
    first, last = 2 * batch * wide * inner, 2 * batch * inner * out
    assert seen["is_same"]
    assert seen["rows"] == {"Linear0": first, "Linear3": 2 * last}
    assert seen["numbers"]["compute/flops_total"] == 2 * steps * (2 * first + 3 * last)
    assert seen["numbers"]["compute/estimated_pct"] == 0
