"""Collectives inside a counted call cost no FLOPs and run; distributed tensors count what this process does."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from flopcallback import FlopCountAnalysis
from flopcallback.tracing.profiler_broker import begin_recording, end_recording, why_no_recording


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


# Deprecated, since 2.13 has new names for them.
GATHER = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
SCATTER = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


@pytest.mark.parametrize("collective", [GATHER, SCATTER])
@pytest.mark.usefixtures("process_group")
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_collectives_of_a_single_tensor_are_stepped_around(model_of, x, collective):
    def forward(self, x):
        y = self.a(x)
        collective(torch.empty_like(y), y.detach())
        return y

    flops = FlopCountAnalysis(model_of(forward, a=nn.Linear(3, 5)), x)
    assert flops.total() == 2 * 3 * 5
    assert flops.engine == "trace", flops.engine_reason


@pytest.mark.usefixtures("process_group")
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_a_distributed_model_with_buffers_is_traced(x):
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)))
    flops = FlopCountAnalysis(model, x)
    assert flops.by_module() == {"": 30 + 50, "module": 80, "module.0": 30, "module.1": 5 * (2 * 5)}
    assert flops.engine == "trace", flops.engine_reason


@pytest.fixture
def mesh(process_group):
    if not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    return dist.init_device_mesh("cpu", (1,))


@pytest.mark.parametrize("engine", ["auto", "dispatch", "observer"])
class TestDistributedTensors:
    def test_a_sharded_weight_counts_what_this_process_multiplies(self, mesh, engine, x):
        weight = distribute_tensor(torch.ones(3, 5), mesh, [Shard(1)])
        x = distribute_tensor(x, mesh, [Replicate()])
        flops = FlopCountAnalysis(torch.mm, (x, weight), engine=engine)
        assert flops.total() == 2 * 3 * 5
        assert flops.engine == ("observer" if engine == "observer" else "dispatch")
        assert not flops.is_lower_bound, flops.unknown_reasons()

    def test_a_tensor_parallel_model_is_counted_by_module(self, mesh, engine, x):
        model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7))
        parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        flops = FlopCountAnalysis(model, x, engine=engine)
        assert flops.by_module() == {"": 30 + 70, "0": 30, "1": 0, "2": 70}
        assert not flops.is_lower_bound, flops.unknown_reasons()

    def test_a_fully_sharded_model_is_counted_by_module(self, mesh, engine, x):
        model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7))
        for layer in model[0], model[2], model:
            fully_shard(layer, mesh=mesh)
        flops = FlopCountAnalysis(model, x, engine=engine)
        assert flops.by_module() == {"": 30 + 70, "0": 30, "1": 0, "2": 70}
        assert not flops.is_lower_bound, flops.unknown_reasons()
        assert type(model[0].weight) is DTensor  # sharded again
        model(x).sum().backward()
        assert model[0].weight.grad is not None


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.usefixtures("process_group")
def test_no_collective_has_a_record_that_may_outlive_the_recording():
    """Its end would be written, by the process group's thread, to memory that the profiler has freed."""
    recording = begin_recording()
    assert recording is not None, why_no_recording()
    dist.all_reduce(torch.ones(3))
    with torch.profiler.record_function("the user's"):
        torch.ones(3).add(1)
    names = {event.name() for event in end_recording(recording).events()}
    assert "aten::add" in names
    assert not {name for name in names if name.startswith("gloo:") or name == "the user's"}
