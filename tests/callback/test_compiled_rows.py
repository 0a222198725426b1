"""Rows of modules inside compiled code: those of the eager model, forward and backward, of an undisturbed training."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import forked
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


@pytest.fixture(scope="module", params=["aot_eager", "inductor"])
def backend(request):
    return request.param


@pytest.fixture
def graphs(backend):
    torch._dynamo.reset()
    yield Graphs(backend)
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


def train(hook, how, backend, make=ViT, *, calls=1):
    """What a training of some calls a step leaves, and the hook."""
    torch._dynamo.reset()
    torch.manual_seed(3)
    model = make()
    called = how(model, backend)
    optimizer = torch.optim.Adam(model.parameters())
    with hook(called, optimizer) as seen:
        for _ in range(STEPS):
            for _ in range(calls):
                called(torch.randn(BATCH, 3, 4, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return {"weights": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}, seen


def unwatched(*_):
    return contextlib.nullcontext()


def watched(model, optimizer):
    return FlopHook(model, optimizer, warmup_steps=0, latency_steps=2, summary=False, strict=True)


def by_path(profile):
    return {row.path: row for row in profile.modules}


@dataclass(frozen=True)
class Runs:
    """The same training twice, with us and without.

    Attributes:
        how: what is compiled.
        plain: what it leaves without us.
        left: what it leaves with us.
        compiled: number of graphs without and with us.
        hook: ours.
    """

    how: Callable
    plain: dict
    left: dict
    compiled: tuple[int, int]
    hook: FlopHook


@pytest.fixture(scope="module", params=HOWS, ids=lambda how: how.__name__)
def runs(request, backend):
    plain_graphs, graphs = Graphs(backend), Graphs(backend)
    plain, _ = train(unwatched, request.param, plain_graphs)
    left, hook = train(watched, request.param, graphs)
    torch._dynamo.reset()
    return Runs(request.param, plain, left, (plain_graphs.compiled, graphs.compiled), hook)


def test_they_are_those_of_the_eager_model(runs):
    profile = runs.hook.profile
    rows = by_path(profile)
    assert {name: row.flops for name, row in rows.items() if row.flops} == FORWARD
    assert {name: row.step for name, row in rows.items() if row.step.total} == {
        name: StepFlops(forward=FORWARD[name], backward=BACKWARD[name]) for name in FORWARD
    }
    assert profile.step_note == ""
    assert not profile.is_lower_bound
    assert runs.hook.metrics()["compute/flops_total"] == STEPS * STEP
    assert runs.hook.metrics()["compute/estimated_pct"] == 0


def test_they_are_marked_and_no_others(runs):
    notes = {name: row.note for name, row in by_path(runs.hook.profile).items()}
    inside = {name for name, note in notes.items() if note == "as written"}
    block = {"block.norm", "block.qkv", "block.out", "block.up", "block.down"}
    assert inside - {"block"} == (block | {"cut", "norm", "dropout", "head"} if runs.how in WHOLE else block)


def test_a_training_and_its_compilations_are_as_without_us(runs, differences):
    assert differences(runs.left, runs.plain) == []
    without, with_us = runs.compiled
    assert with_us == without > 0


def test_of_several_calls_in_a_step_each_is_in_them(graphs):
    """Gradients accumulate; from one call, which is counted, follow two."""
    _, hook = train(watched, whole, graphs, calls=2)
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
    _, hook = train(watched, whole, graphs, Asking)
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
    _, hook = train(watched, whole, graphs, WithAnUnusedPart)
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
batch, wide, inner, out, steps = map(int, sys.argv[1:])


def train(where, is_watched):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(wide, inner), nn.BatchNorm1d(inner), nn.Tanh(), nn.Linear(inner, out))
    if where == "around":
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


found = {}
for where in ("around", "inside"):
    alone, _ = train(where, False)
    left, hook = train(where, True)
    rows = {row.type + row.path[-1]: row.step.backward for row in hook.profile.modules if row.type == "Linear"}
    found[where] = {"numbers": hook.metrics(), "rows": rows, "is_same": left == alone}
print(json.dumps(found))
dist.barrier()
dist.destroy_process_group()
"""


def test_data_parallel_ranks_train_as_they_would(tmp_path):
    """Compiled around the wrapper, whose own forward exchanges buffers, and inside of it."""
    batch, wide, inner, out, steps = 5, 7, 11, 3, 6
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    given = (batch, wide, inner, out, steps)
    ranks = [forked.start(script, *given, environment=environment) for environment in forked.of_ranks()]
    codes = forked.wait_for_all(ranks, 600)
    assert codes == [0, 0], [forked.printed(script, rank, "err") for rank in ranks]
    found = json.loads(forked.printed(script, ranks[0]).splitlines()[-1])
    first, last = 2 * batch * wide * inner, 2 * batch * inner * out
    assert found.keys() == {"around", "inside"}
    for seen in found.values():
        assert seen["is_same"]
        assert seen["rows"] == {"Linear0": first, "Linear3": 2 * last}
        assert seen["numbers"]["compute/flops_total"] == 2 * steps * (2 * first + 3 * last)
        assert seen["numbers"]["compute/estimated_pct"] == 0
