"""Collectives inside a counted call: they run, they cost no FLOPs, and the tracer goes on behind them."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from flopcallback import FlopCountAnalysis


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_collectives_are_stepped_around(model_of, x):
    def forward(self, x):
        y = self.a(x)
        dist.all_reduce(y.detach())
        gathered = [torch.empty_like(y)]
        dist.all_gather(gathered, y.detach())
        dist.barrier()
        return self.b(y)

    flops = FlopCountAnalysis(model_of(forward, a=nn.Linear(3, 5), b=nn.Linear(5, 7)), x)
    assert flops.by_module() == {"": 30 + 70, "a": 30, "b": 70}
    assert flops.engine == "trace", flops.engine_reason
    assert not flops.is_lower_bound


@pytest.mark.usefixtures("process_group")
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_a_distributed_model_with_buffers_is_traced(x):
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)))
    flops = FlopCountAnalysis(model, x)
    assert flops.by_module() == {"": 30 + 50, "module": 80, "module.0": 30, "module.1": 5 * (2 * 5)}
    assert flops.engine == "trace", flops.engine_reason
