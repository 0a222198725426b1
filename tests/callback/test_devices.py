"""FLOPs of 2 and 4 real processes that share a model: each rank's own part, their sum, samples once, one rank logs."""

from __future__ import annotations

import json

import forked
import pytest

pytestmark = pytest.mark.slow

BATCH, WIDE, HIDDEN, OUT, WORDS, STEPS = 3, 8, 12, 5, 4, 8

FLAT = ["flat", "flat, own parameters", "flat, in parts", "flat, gathered once", "flat, mixed"]
"""Scenarios of FSDP1, which makes one flat parameter of many."""

PEAK = 1e9
"""FLOP/s of one device, as the user gives it."""

# Forward and the gradient of the weight are a product each; the gradient of the input is another, where it is needed.
# A multiply-add is two FLOPs.
UP, DOWN = 2 * 2 * WIDE * HIDDEN, 3 * 2 * HIDDEN * OUT
"""FLOPs of a training step for each row, in the first and the second layer."""

SCRIPT = """
import hashlib, json, os, sys, warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy, FullyShardedDataParallel, MixedPrecision, MixedPrecisionPolicy, ShardingStrategy, fully_shard,
)
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from flopcallback import FlopCallbackWarning, FlopHook

folder = Path(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
found = {}
whole = dist.init_device_mesh("cpu", (world,))
grid = dist.init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp"))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(WIDE, HIDDEN), nn.Linear(HIDDEN, OUT)

    def forward(self, x):
        return self.down(self.up(x).relu())


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm = nn.Embedding(16, WIDE), nn.LayerNorm(WIDE)
        self.up, self.down = nn.Linear(WIDE, HIDDEN), nn.Linear(HIDDEN, OUT)

    def forward(self, input_ids):
        return self.down(self.up(self.norm(self.embed(input_ids))).relu())


def sharded(net, mesh=whole, **options):
    for layer in (net.up, net.down, net):
        fully_shard(layer, mesh=mesh, **options)
    return net


def flat(net, in_parts=False, **options):
    policy = None
    if in_parts:
        policy = lambda module, recurse, **_: recurse or isinstance(module, nn.Linear)
    return FullyShardedDataParallel(net, auto_wrap_policy=policy, device_id=torch.device("cpu"), **options)


def parallel(net, plan, mesh=whole):
    return parallelize_module(net, mesh, plan)


MEGATRON = {"up": ColwiseParallel(), "down": RowwiseParallel()}
SEQUENCE = {
    "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
    "norm": SequenceParallel(),
    "up": ColwiseParallel(input_layouts=Shard(1)),
    "down": RowwiseParallel(),
}


def watched(name, net, one_step):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FlopCallbackWarning)
        hook = None
        if is_ours:
            given = {"warmup_steps": 1, "latency_steps": 1, "log_every_n_steps": 2, "peak_flops": PEAK}
            hook = FlopHook(net, optimizer, to=folder / name, summary=False, strict=True, **given)
        for step in range(STEPS):
            one_step(net, step)
            optimizer.step()
            optimizer.zero_grad()
        if is_ours:
            hook.close()
            texts = [str(each.message) for each in caught if each.category is FlopCallbackWarning]
            rows = [row.path for row in hook.profile.modules]
            found[name] = {"numbers": hook.metrics(), "warnings": texts, "rows": rows}
    local = [each.to_local() if hasattr(each, "to_local") else each for each in net.parameters()]
    digests.setdefault(name, []).append(hashlib.sha256(repr([each.tolist() for each in local]).encode()).hexdigest())
    dist.barrier()


def batches(shares):
    def one_step(net, step):
        seed = 100 * step + rank // shares  # ranks that share the work on a batch have the same one
        x = torch.randn(BATCH, WIDE, generator=torch.Generator().manual_seed(seed))
        net(x).float().square().mean().backward()

    return one_step


def sentences(net, step):
    ids = torch.randint(16, (BATCH, WORDS), generator=torch.Generator().manual_seed(step))
    net(input_ids=ids).square().mean().backward()


def piped(schedule):
    def one_step(net, step):
        x = torch.randn(2 * BATCH, WIDE, generator=torch.Generator().manual_seed(step))
        if rank == 0:
            schedule.step(x)
        else:
            schedule.step(target=torch.zeros(2 * BATCH, 1))

    return one_step


def pipeline(name, net):
    given = torch.zeros(BATCH, net.in_features, requires_grad=rank > 0)  # else the first step finds out, by real work
    stage = PipelineStage(net, rank, 2, torch.device("cpu"), input_args=given, output_args=net(given))
    schedule = ScheduleGPipe(stage, 2, loss_fn=lambda y, target: (y - target).square().mean())
    watched(name, net, piped(schedule))


digests = {}
for is_ours in (False, True):
    each = batches(1)
    watched("ddp", DistributedDataParallel(Net()), each)
    watched("fsdp", sharded(Net()), each)
    watched("mixed", sharded(Net(), mp_policy=MixedPrecisionPolicy(torch.bfloat16)), each)
    watched("offload", sharded(Net(), offload_policy=CPUOffloadPolicy(pin_memory=False)), each)
    watched("flat", flat(Net()), each)
    watched("flat, own parameters", flat(Net(), use_orig_params=True), each)
    watched("flat, in parts", flat(Net(), in_parts=True, use_orig_params=True), each)
    watched("flat, gathered once", flat(Net(), sharding_strategy=ShardingStrategy.SHARD_GRAD_OP), each)
    watched("flat, mixed", flat(Net(), mixed_precision=MixedPrecision(torch.bfloat16)), each)
    same = batches(world)
    watched("column", parallel(Net(), {"up": ColwiseParallel(output_layouts=Replicate())}), same)
    watched("row", parallel(Net(), {"up": RowwiseParallel(input_layouts=Replicate())}), same)
    watched("megatron", parallel(Net(), MEGATRON), same)
    watched("sequence", parallel(Words(), SEQUENCE), sentences)
    if world == 4:
        watched("replicas of shards", sharded(Net(), grid), each)
        watched("grid", sharded(parallel(Net(), MEGATRON, grid["tp"]), grid["dp"]), batches(2))
    else:
        pipeline("pipeline", [nn.Linear(WIDE, HIDDEN), nn.Linear(HIDDEN, OUT)][rank])
        pipeline("equal stages", nn.Linear(WIDE, WIDE))
found["digests"] = digests
(folder / f"rank{rank}.json").write_text(json.dumps(found))
dist.destroy_process_group()
"""


def found_by(world, folder):
    sizes = "BATCH, WIDE, HIDDEN, OUT, WORDS, STEPS, PEAK"
    file = folder / "script.py"
    file.write_text(f"{sizes} = {BATCH, WIDE, HIDDEN, OUT, WORDS, STEPS, PEAK}\n{SCRIPT}", encoding="utf-8")
    ranks = [forked.start(file, folder, environment=environment) for environment in forked.of_ranks(world)]
    codes = forked.wait_for_all(ranks, 600)
    assert codes == [0] * world, [forked.printed(file, rank, "err") for rank in ranks]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module", params=[2, 4])
def runs(request, tmp_path_factory):
    """The number of ranks, the folder, and what each rank found in every scenario."""
    folder = tmp_path_factory.mktemp(f"world{request.param}")
    return request.param, folder, found_by(request.param, folder)


def expected(world):
    """By scenario: FLOPs of a step on each rank, and samples of a step, each once."""
    whole = BATCH * (UP + DOWN)
    words = BATCH * WORDS * (3 * 2 * WIDE * HIDDEN + DOWN) // world  # the normalization wants a gradient of its result
    shared = {
        **dict.fromkeys(["ddp", "fsdp", "mixed", "offload", *FLAT], ([whole] * world, world * BATCH)),
        **dict.fromkeys(["column", "row"], ([BATCH * (UP // world + DOWN)] * world, BATCH)),
        "megatron": ([whole // world] * world, BATCH),
        "sequence": ([words] * world, BATCH),
    }
    if world == 4:
        return shared | {"replicas of shards": ([whole] * 4, 4 * BATCH), "grid": ([whole // 2] * 4, 2 * BATCH)}
    square = 2 * BATCH * 2 * WIDE * WIDE
    stages = [2 * BATCH * UP, 2 * BATCH * DOWN]
    return shared | {
        "pipeline": (stages, None),
        "equal stages": ([2 * square, 3 * square], None),
    }


def test_each_rank_counts_its_own_part_of_a_step(runs):
    world, _, ranks = runs
    steps = {name: [rank[name]["numbers"]["flops/train_step"] for rank in ranks] for name in expected(world)}
    assert steps == {name: parts for name, (parts, _) in expected(world).items()}


def test_compute_is_the_sum_over_ranks_and_samples_count_once(runs):
    world, _, ranks = runs
    names = ("compute/flops_total", "compute/samples_total", "compute/estimated_pct", "compute/lower_bound_pct")
    found = {name: tuple(map(ranks[0][name]["numbers"].get, names)) for name in expected(world)}
    assert found == {
        name: (STEPS * sum(parts), None if samples is None else STEPS * samples, 0, None)
        for name, (parts, samples) in expected(world).items()
    }
    assert ranks[0]["sequence"]["numbers"]["compute/tokens_total"] == STEPS * BATCH * WORDS


def test_rows_have_the_names_of_the_model_without_wrappers(runs):
    names = {"sequence": ["", "embed", "norm", "up", "down"], "pipeline": [""], "equal stages": [""]}
    for rank in runs[2]:
        found = {name: rank[name]["rows"] for name in expected(runs[0])}
        assert found == {name: names.get(name, ["", "up", "down"]) for name in found}


def test_one_rank_logs_and_nobody_warns(runs):
    world, folder, ranks = runs
    for name in expected(world):
        assert [rank[name]["warnings"] for rank in ranks] == [[]] * world
        assert not any(number.startswith("compute/") for rank in ranks[1:] for number in rank[name]["numbers"])
        rows = [json.loads(line) for line in (folder / name / "scalars.jsonl").read_text().splitlines()]
        assert sum("flops/forward" in row for row in rows) == 1
        assert rows[-1]["compute/flops_total"] == ranks[0][name]["numbers"]["compute/flops_total"]


def test_throughput_counts_samples_once_and_is_of_one_device(runs):
    world, folder, _ = runs
    seen = 0
    for name, (_, samples) in expected(world).items():
        rows = [json.loads(line) for line in (folder / name / "scalars.jsonl").read_text().splitlines()]
        timed = [row for row in rows if "perf/tflops_per_sec" in row]
        for row in timed:  # none where all steps of so short a training were observed
            seen += 1
            in_a_step = row.get("perf/samples_per_sec", 0) * row["perf/step_time_ms"] / 1e3
            assert in_a_step == pytest.approx(samples or 0)
            assert row["perf/mfu_pct"] == pytest.approx(100 * row["perf/tflops_per_sec"] * 1e12 / PEAK)
    assert seen


def test_every_rank_trains_to_the_same_digits(runs):
    for rank in runs[2]:
        for name, (without, with_us) in rank["digests"].items():
            assert without == with_us, name
