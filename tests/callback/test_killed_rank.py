"""A rank that is killed: the others end as they would without us, and nobody waits for it."""

from __future__ import annotations

import json
import signal

import forked
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there are no signals"),
]

SCRIPT = """
import functools, json, os, signal, sys, time, warnings
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import flopcallback.training.meter
from flopcallback import FlopCallbackWarning, FlopHook
from flopcallback.training.ranks import Ranks

flopcallback.training.meter.Ranks = functools.partial(Ranks, patience_s=1.0)
folder, is_ours, victim, way = Path(sys.argv[1]), sys.argv[2] == "ours", int(sys.argv[3]), sys.argv[4]
warnings.filterwarnings("ignore")
warnings.filterwarnings("always", category=FlopCallbackWarning)
# In a file, the store outlives rank 0, as that of torchrun does.
place = {"init_method": f"file://{folder}/store", "rank": int(os.environ["RANK"]), "world_size": 2}
dist.init_process_group("gloo", timeout=timedelta(seconds=60), **(place if way == "budget" else {}))
rank = dist.get_rank()
torch.manual_seed(0)
net = nn.Linear(5, 3)
net = DistributedDataParallel(net) if way == "together" else net
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
options = {"to": folder / "report", "warmup_steps": 0, "latency_steps": 2, "log_every_n_steps": 2, "summary": False}
options |= {"max_flops": 2 * 12 * 2 * 2 * 4 * 5 * 3} if way == "budget" else {}  # of 12 steps on each rank
found = {"steps": 0, "error": ""}
try:
    with FlopHook(net, optimizer, **options) if is_ours else nullcontext() as hook:
        for step in range(15 if way == "budget" else 8):
            if rank == victim and step == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            net(torch.ones(4, 5)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            found["steps"] += 1
            if victim == 2 and rank == 0 and step == 5:
                time.sleep(3)  # longer than it takes to doubt that it lives
            if way == "budget" and hook.should_stop:
                break
except RuntimeError as error:
    found["error"] = type(error).__name__
(folder / f"rank{rank}.json").write_text(json.dumps(found))
os._exit(0 if not found["error"] else 3)  # as after an error: no collective to leave the group by
"""


def begin(folder, *arguments):
    folder.mkdir()
    file = folder / "script.py"
    file.write_text(SCRIPT, encoding="utf-8")
    return [forked.start(file, folder, *arguments, environment=each) for each in forked.of_ranks()]


@pytest.mark.parametrize("way", ["together", "apart"])
@pytest.mark.parametrize("victim", [0, 1])
def test_the_other_rank_ends_as_without_us(tmp_path, victim, way):
    ranks = [process for who in ("plain", "ours") for process in begin(tmp_path / who, who, victim, way)]
    plain, ours = (codes := forked.wait_for_all(ranks, 120))[:2], codes[2:]
    assert plain[victim] == -signal.SIGKILL
    assert plain[1 - victim] == (3 if way == "together" else 0)
    assert ours == plain
    ends = [json.loads((tmp_path / who / f"rank{1 - victim}.json").read_text()) for who in ("plain", "ours")]
    assert ends[0] == ({"steps": 5, "error": "RuntimeError"} if way == "together" else {"steps": 8, "error": ""})
    assert ends[1] == ends[0]
    if victim == 1:  # the rank that logs is alive, and logs what it knew until then
        rows = [json.loads(line) for line in (tmp_path / "ours" / "report" / "scalars.jsonl").read_text().splitlines()]
        assert max(row.get("compute/flops_total", 0) for row in rows) > 0


def test_a_budget_does_not_wait_for_a_first_rank_that_is_gone(tmp_path):
    ranks = begin(tmp_path / "ours", "ours", 0, "budget")
    assert forked.wait_for_all(ranks, 120) == [-signal.SIGKILL, 0]  # a decision is awaited for up to 300 seconds
    assert json.loads((tmp_path / "ours" / "rank1.json").read_text()) == {"steps": 15, "error": ""}
    told = forked.printed(tmp_path / "ours" / "script.py", ranks[1], "err")
    assert told.count("FlopCallbackWarning: ") == 1
    assert "max_flops is not kept: RuntimeError: rank 0 has died" in told


def test_a_budget_waits_for_a_first_rank_that_is_slow(tmp_path):
    assert forked.wait_for_all(begin(tmp_path / "ours", "ours", 2, "budget"), 120) == [0, 0]
    ends = [json.loads((tmp_path / "ours" / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ends == [{"steps": 12, "error": ""}] * 2
