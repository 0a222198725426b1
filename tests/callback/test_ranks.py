"""Two real processes: every rank counts, one logs, nothing hangs, and the weights are those without us."""

from __future__ import annotations

import json
from pathlib import Path

import forked
import pytest

pytestmark = pytest.mark.slow

WIDE, OUT, BATCH = 5, 3, 4

COMMON = """
import hashlib, json, os, sys, warnings
from pathlib import Path

import torch
from torch import nn

folder, is_ours = Path(sys.argv[1]), sys.argv[2] == "ours"
torch.manual_seed(0)
rank = int(os.environ["RANK"])
net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


def leave(weights, profile):
    digest = hashlib.sha256(repr([tensor.tolist() for tensor in weights]).encode()).hexdigest()
    rows = {} if profile is None else {row.path: row.flops for row in profile.modules}
    (folder / f"rank{rank}.json").write_text(json.dumps({"weights": digest, "rows": rows}))
"""

LOOP = """
import contextlib
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from flopcallback import FlopHook

dist.init_process_group("gloo")
ddp = DistributedDataParallel(net)
optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
options = {"to": folder / "report", "warmup_steps": 0, "latency_steps": 2, "strict": True}
hook = FlopHook(ddp, optimizer, **options) if is_ours else contextlib.nullcontext()
with hook:
    for step in range(6):
        x = torch.full((4, 5), float(rank + step))
        loss = ddp(x).square().mean()
        dist.all_reduce(loss.detach())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
leave(net.parameters(), hook.profile if is_ours else None)
dist.destroy_process_group()
"""

TRAINER = """
warnings.filterwarnings("ignore")
from lightning.pytorch import LightningModule, Trainer

from flopcallback import FlopCallback


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        loss = self.net(batch).square().mean()
        self.log("loss", loss, sync_dist=True)
        return self.all_gather(loss.detach()).mean() * 0 + loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


data = torch.utils.data.DataLoader(torch.arange(48 * 5.0).view(48, 5) / 240, batch_size=4)
callback = FlopCallback(report_dir=folder / "report", warmup_steps=0, latency_steps=2, strict=True)
trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, callbacks=[callback] if is_ours else [],
)
trainer.fit(Module(), data)
leave(net.parameters(), callback.profiles.get("train"))
"""


def launch(script, folder, who):
    """Runs a script in two processes, and gives what each of them left, and what they printed."""
    folder.mkdir()
    file = folder / "script.py"
    file.write_text(COMMON + script, encoding="utf-8")
    ranks = [forked.start(file, folder, who, environment=environment) for environment in forked.of_ranks()]
    codes = forked.wait_for_all(ranks, 600)
    assert codes == [0, 0], [forked.printed(file, rank, "err") for rank in ranks]
    left = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    return left, "".join(forked.printed(file, rank) for rank in ranks)


@pytest.mark.parametrize(
    ("script", "prefix"),
    [
        pytest.param(LOOP, "", id="hook"),
        pytest.param(TRAINER, "net.", id="callback", marks=[pytest.mark.lightning, pytest.mark.models]),
    ],
)
def test_both_ranks_count_and_one_logs(tmp_path: Path, script, prefix):
    without, _ = launch(script, tmp_path / "without", "plain")
    with_us, printed = launch(script, tmp_path / "with", "ours")
    assert without[0]["weights"] == without[1]["weights"]
    assert [each["weights"] for each in with_us] == [each["weights"] for each in without]
    rows = {f"{prefix}0": 2 * BATCH * WIDE * 7, f"{prefix}1": 0, f"{prefix}2": 2 * BATCH * 7 * OUT}
    for each in with_us:
        assert {path: each["rows"][path] for path in rows} == rows
        assert each["rows"][""] == sum(rows.values())
    report = tmp_path / "with" / "report"
    profile = json.loads((report / "flopcallback.json").read_text())
    assert profile["forward_flops"] == sum(rows.values())
    assert profile["latency"]["steps"] == 2
    lines = (report / "scalars.jsonl").read_text().splitlines()
    assert ["compute/" in line for line in lines].count(False) == 2
    assert printed.count("nothing unknown") == 1
