"""Compute of two real processes: the sum is exact to the integer, one rank logs, and nothing hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest

pytestmark = pytest.mark.slow

WIDE, HIDDEN, OUT = 5, 7, 3

# A multiply-add is two FLOPs. The backward of the first layer has no gradient of the input to make.
ROW = (2 + 2) * WIDE * HIDDEN + (2 + 2 + 2) * HIDDEN * OUT
"""FLOPs of a training step for each row of the batch."""

TIMEOUT_S = 600

COMMON = """
import functools, json, os, sys, time, warnings
from pathlib import Path

import torch
from torch import nn

import flopcallback.training.meter
from flopcallback import FlopCallbackWarning, FlopHook
from flopcallback.training.ranks import Ranks

folder = Path(sys.argv[1])
flopcallback.training.meter.Ranks = functools.partial(Ranks, patience_s=1.0, join_s=0.5, answer_s=20.0)
found = {}


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


def leave(rank):
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
"""

LOOPS = """
import torch.distributed as dist
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

rank = int(os.environ.get("RANK", sys.argv[2] if len(sys.argv) > 2 else "0"))
OPTIONS = {"warmup_steps": 0, "latency_steps": 2, "log_every_n_steps": 2, "summary": False}


def train(hook, model, optimizer, shapes, *, reduce=True, at=lambda step: None):
    for step, shape in enumerate(shapes):
        loss = model(torch.ones(*shape, 5)).square().mean()
        if reduce:
            dist.all_reduce(loss.detach())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        at(step)
        if hook is not None and hook.should_stop:
            return step
    return None


def scenario(name, shapes, *, is_parallel=True, here=True, at=lambda hook, step: None, model=None, **options):
    net = model or make_net()
    net = DistributedDataParallel(net) if is_parallel else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dist.barrier()
    began = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FlopCallbackWarning)
        hook = FlopHook(net, optimizer, to=folder / name, **OPTIONS, **options) if here else None
        result = {}
        try:
            if hook is not None:
                hook.load_state_dict(states.get(name, {}))
            result["stopped"] = train(hook, net, optimizer, shapes, reduce=is_parallel, at=lambda s: at(hook, s))
            if hook is not None:
                hook.close()
        except ZeroDivisionError as error:  # as `with hook:` does it
            hook.__exit__(type(error), error, None)
        result |= {"seconds": time.monotonic() - began, "numbers": {} if hook is None else hook.metrics()}
        result["state"] = {} if hook is None else hook.state_dict()
    result["warnings"] = [str(each.message) for each in caught if each.category is FlopCallbackWarning]
    found[name] = result
    dist.barrier()


states = json.loads((folder / "state.json").read_text())

# The hook of a loop that has no process group yet.
early = make_net()
early_optimizer = torch.optim.SGD(early.parameters(), lr=0.1)
early_hook = FlopHook(early, early_optimizer, to=folder / "early", **OPTIONS)
early_hook.load_state_dict(states.get("early", {}))
if len(sys.argv) > 2:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
else:
    dist.init_process_group("gloo")
train(early_hook, DistributedDataParallel(early), early_optimizer, [[2], [2], [[3], [2]][rank]])
early_hook.close()
found["early"] = {"numbers": early_hook.metrics()}

scenario("uneven", [[4], [4], [4], [4], [[3], [2]][rank]])
scenario("lengths", [[[2, 3], [2, 5], [2, 3]], [[2, 4], [1, 3], [2, 4]]][rank])
if len(sys.argv) <= 2:

    def fail(hook, step):
        if rank == 1 and step == 2:
            raise ZeroDivisionError

    def sleep(hook, step):
        if rank == 1 and step == 1:
            time.sleep(0.7)

    def save(hook, step):
        if rank == 0 and step == 2:
            alone = time.monotonic()
            found["kept"] = hook.state_dict()
            found["alone"] = time.monotonic() - alone

    scenario("hook on rank 0 alone", [[4]] * 3, here=rank == 0)
    scenario("hook on rank 1 alone", [[4]] * 3, here=rank == 1, max_flops=1e18)
    scenario("ends early", [[4]] * (6 - 3 * rank), is_parallel=False)
    scenario("raises", [[4]] * 6, is_parallel=False, at=fail)
    scenario("slow", [[4]] * 5, is_parallel=False, at=sleep)
    scenario("saved alone", [[4]] * 5, at=save)
    scenario("resumed", [[4]] * 2)
    scenario("budget", [[4 - rank]] * 30, max_flops=10 * 7 * ROW + 1)
    scenario("budget that is met", [[4 - rank]] * 30, max_flops=10 * 7 * ROW)
    scenario("budget of unequal steps", [[1 + 2 * rank + 3 * (step % 3)] for step in range(30)], max_flops=50 * ROW)
    scenario("budget that was loaded", [[4 - rank]] * 30, max_flops=10 * 7 * ROW)

    net = DistributedDataParallel(make_net())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FlopCallbackWarning)
        with FlopHook(net, optimizer, to=folder / "join", **OPTIONS) as hook:
            began = time.monotonic()
            with Join([net]):
                train(hook, net, optimizer, [[4]] * [7, 3][rank], reduce=False)
            seconds = time.monotonic() - began
        texts = [str(each.message) for each in caught if each.category is FlopCallbackWarning]
        found["join"] = {"numbers": hook.metrics(), "seconds": seconds, "warnings": texts}

# The group is gone before the hook is closed.
net = make_net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
hook = FlopHook(net, optimizer, to=folder / "destroyed", **OPTIONS)
train(hook, net, optimizer, [[2 + rank]] * 3, reduce=False)
dist.barrier()
dist.destroy_process_group()
hook.close()
found["destroyed"] = {"numbers": hook.metrics(), "state": hook.state_dict()}
leave(rank)
"""

TRAINER = """
warnings.filterwarnings("ignore")
from lightning.pytorch import LightningModule, Trainer

from flopcallback import FlopCallback


class Module(LightningModule):
    def __init__(self, rows):
        super().__init__()
        self.net = make_net()
        self.rows = rows

    def training_step(self, batch, batch_idx):
        loss = self.net(batch).square().mean()
        self.log("loss", loss, sync_dist=True)
        return self.all_gather(loss.detach()).mean() * 0 + loss

    def validation_step(self, batch, batch_idx):
        self.log("val", self.net(batch).square().mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        batches = [torch.ones(*shape, 5) for shape in self.rows[self.global_rank]]
        return torch.utils.data.DataLoader(batches, batch_size=None)

    val_dataloader = train_dataloader


class Leave(FlopCallback):
    def teardown(self, trainer, pl_module, stage):
        super().teardown(trainer, pl_module, stage)
        found[str(trainer.max_epochs)] = {
            "steps": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "numbers": dict(self.profiles["train"].training),
            "state": self.state_dict(),
        }
        leave(trainer.global_rank)


def fit(rows, epochs, accumulate=1, **options):
    callback = Leave(report_dir=folder / str(epochs), warmup_steps=0, latency_steps=2, strict=True, **options)
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=sys.argv[2], max_epochs=epochs, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=2,
        use_distributed_sampler=False, num_sanity_val_steps=1, accumulate_grad_batches=accumulate, callbacks=[callback],
    )
    trainer.fit(Module(rows))


if __name__ == "__main__":
    # Two epochs; the last batches have 3 and 2 samples, one batch has another length.
    fit([[(4,), (4,), (4, 2), (3,)], [(4,), (4, 3), (4,), (2,)]], 2)
    if sys.argv[2] == "ddp":
        fit([[(4,)] * 6, [(3,)] * 6], 3, max_flops=10 * 7 * ROW)
        fit([[(4,)] * 6, [(3,)] * 6], 4, max_flops=10 * 7 * ROW + 1, accumulate=3)
"""


def write(folder, script):
    file = folder / "script.py"
    file.write_text((COMMON + script).replace("ROW", str(ROW)), encoding="utf-8")
    return file


def found_in(folder):
    """What each rank found."""
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def fork(file, arguments=((), ()), environments=(None, None)):
    """Runs a script in two processes, with arguments and an environment for each; gives what each of them found."""
    each = zip(arguments, environments, strict=True)
    ranks = [forked.start(file, file.parent, *more, environment=environment) for more, environment in each]
    codes = forked.wait_for_all(ranks, TIMEOUT_S)
    assert codes == [0, 0], [forked.printed(file, rank, "err") for rank in ranks]
    return found_in(file.parent)


def run(command):
    ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    """What both ranks found in all loops of `LOOPS`, in the environment of `torchrun`; by the name of the loop."""
    folder = tmp_path_factory.mktemp("loops")
    before = {"steps": 5, "booked": 20 * ROW, "guessed": 0, "costs": [], "counted": [], "unseen": []}
    state = {"compute": {"version": 1, "ledger": before, "samples": 20, "tokens": None}}
    (folder / "state.json").write_text(json.dumps({"resumed": state, "budget that was loaded": state}))
    ranks = fork(write(folder, LOOPS), environments=forked.of_ranks())
    return {name: [rank[name] for rank in ranks] for name in ranks[0] if name in ranks[1]}, folder


EXPECTED = {  # rows of both ranks, and their samples where they differ
    "early": (2 + 2 + 3) + (2 + 2 + 2),
    "uneven": (4 * 4 + 3) + (4 * 4 + 2),
    "lengths": (2 * 3 + 2 * 5 + 2 * 3) + (2 * 4 + 1 * 3 + 2 * 4),
    "ends early": 6 * 4 + 3 * 4,
    "raises": 6 * 4 + 3 * 4,
    "slow": 2 * 5 * 4,
    "saved alone": 2 * 5 * 4,
    "resumed": 20 + 2 * 2 * 4,
    "join": 7 * 4 + 3 * 4,
    "destroyed": 3 * 2 + 3 * 3,
}
SAMPLES = {"lengths": (2 + 2 + 2) + (2 + 1 + 2)}


def totals(loop):
    numbers = loop["numbers"]
    assert numbers["compute/estimated_pct"] == 0
    return numbers["compute/flops_total"], numbers["compute/samples_total"]


@pytest.mark.parametrize("name", EXPECTED)
def test_compute_is_the_sum_over_both_ranks(loops, name):
    first, second = loops[0][name]
    assert totals(first) == (EXPECTED[name] * ROW, SAMPLES.get(name, EXPECTED[name]))
    assert not [number for number in second["numbers"] if number.startswith("compute/")]
    logged = [json.loads(line) for line in (loops[1] / name / "scalars.jsonl").read_text().splitlines()]
    assert [row for row in logged if "compute/flops_total" in row][-1]["compute/flops_total"] == totals(first)[0]


@pytest.mark.parametrize("name", [name for name in EXPECTED if name not in ("early", "join", "destroyed")])
def test_the_first_rank_has_the_state_of_both(loops, name):
    first, second = loops[0][name]
    assert first["state"]["compute"]["ledger"]["sums"][0] == EXPECTED[name] * ROW
    assert second["state"] == {"compute": {}}


def test_logs_on_the_way_are_of_the_same_step_on_all_ranks(loops):
    rows = [json.loads(line) for line in (loops[1] / "uneven" / "scalars.jsonl").read_text().splitlines()]
    sums = {row["step"]: row["compute/flops_total"] for row in rows if "compute/flops_total" in row}
    assert sums == {1: 2 * 8 * ROW, 3: 4 * 8 * ROW, 4: (4 * 8 + 3 + 2) * ROW}


def test_a_hook_on_one_rank_alone_says_so_and_goes_on(loops):
    first, second = loops[0]["hook on rank 0 alone"]
    assert totals(first) == (3 * 4 * ROW, 3 * 4)
    assert [text.count("rank 1 books no steps (every rank is to have") for text in first["warnings"]] == [1]
    first, second = loops[0]["hook on rank 1 alone"]
    assert second["stopped"] is None
    assert [text.count("max_flops is not kept: RuntimeError: rank 0 books no") for text in second["warnings"]] == [1]


def test_a_state_that_one_rank_alone_asks_for_is_said_to_lack_the_other(loops):
    first, second = loops[0]["saved alone"]
    assert [text.count("rank 1 did not answer in time") for text in first["warnings"]] == [1]
    assert second["warnings"] == []


@pytest.mark.parametrize("name", ["uneven", "lengths", "ends early", "raises", "slow", "resumed"])
def test_nothing_is_warned_of_where_all_goes_well(loops, name):
    assert [loop["warnings"] for loop in loops[0][name]] == [[], []]


@pytest.mark.parametrize(
    ("name", "last_step", "rows"),
    [
        ("budget", 10, 11 * 7),  # 10 steps lack one FLOP
        ("budget that is met", 9, 10 * 7),
        ("budget of unequal steps", 5, 4 + 10 + 16 + 4 + 10 + 16),  # 44 after the one before
        ("budget that was loaded", 7, 20 + 8 * 7),  # 20 + 7 * 7 = 69 after the one before
    ],
)
def test_both_ranks_stop_after_the_step_that_spends_the_budget(loops, name, last_step, rows):
    both = loops[0][name]
    assert [loop["stopped"] for loop in both] == [last_step, last_step]
    assert totals(both[0])[0] == rows * ROW


def test_ranks_that_meet_in_a_file_and_have_no_launcher(tmp_path: Path):
    """Before there is a process group, both take themselves for the first: one logs, and nothing is loaded twice."""
    before = {"steps": 5, "booked": 20 * ROW, "guessed": 0, "costs": [], "counted": [], "unseen": []}
    state = {"compute": {"version": 1, "ledger": before, "samples": 20, "tokens": None}}
    (tmp_path / "state.json").write_text(json.dumps({"early": state}))
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    ranks = fork(write(tmp_path, LOOPS), [("0",), ("1",)], [environment] * 2)
    before = {"early": 20}
    for name in ("early", "uneven", "lengths", "destroyed"):
        assert totals(ranks[0][name])[0] == (before.get(name, 0) + EXPECTED[name]) * ROW
        assert "compute/flops_total" not in ranks[1][name]["numbers"]
        lines = (tmp_path / name / "scalars.jsonl").read_text().splitlines()
        assert sum("flops/forward" in json.loads(line) for line in lines) == 1


@pytest.mark.lightning
@pytest.mark.models
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_trainers_on_two_ranks(tmp_path: Path, strategy):
    """Started as users start them: by `torchrun`, and by the Trainer itself."""
    file = write(tmp_path, TRAINER)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d"]
    torchrun += ["--rdzv-endpoint=localhost:0"]
    run([sys.executable, *(torchrun if strategy == "ddp" else []), file, tmp_path, strategy])
    first, second = found_in(tmp_path)
    rows = 2 * ((4 + 4 + 8 + 3) + (4 + 12 + 4 + 2))
    assert totals(first["2"]) == (rows * ROW, 2 * ((4 + 4 + 4 + 3) + (4 + 4 + 4 + 2)))
    assert first["2"]["state"]["compute"]["ledger"]["sums"][0] == rows * ROW
    assert second["2"]["state"] == {}
    lines = [json.loads(line) for line in (tmp_path / "2" / "scalars.jsonl").read_text().splitlines()]
    sums = {line["step"]: line["compute/flops_total"] for line in lines if "compute/flops_total" in line}
    assert sums == {1: (16 + 8) * ROW, 3: 41 * ROW, 5: (41 + 24) * ROW, 7: 82 * ROW}
    if strategy == "ddp":
        # 10 steps of 4 + 3 rows spend the first budget. The second takes an eleventh batch: the step that has it ends
        # with the twelfth.
        assert [each["3"]["steps"] for each in (first, second)] == [10, 10]
        assert totals(first["3"])[0] == 10 * 7 * ROW
        assert [each["4"]["steps"] for each in (first, second)] == [4, 4]
        assert totals(first["4"])[0] == 12 * 7 * ROW
