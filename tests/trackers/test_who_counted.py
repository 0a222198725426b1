"""Who counted, why it was not the tracer, and where the two engines differ: in every place that a person looks at."""

from __future__ import annotations

import contextlib
from pathlib import Path

import mlflow_stores as stores
import places
import pytest
import torch
from torch import nn

from flopcallback import FlopCountAnalysis, FlopHook
from flopcallback.profiling.on_demand import profile_call
from flopcallback.reporting import html_page, markdown_modules, plain_table, rich_text

TRACKERS = [
    pytest.param("wandb", marks=pytest.mark.wandb),
    pytest.param("tensorboard", marks=pytest.mark.tensorboard),
    pytest.param("mlflow", marks=pytest.mark.mlflow),
]
pytestmark = [
    # 2026-11, wandb 0.31: it leaves the temporary folder of a table's artifact to the garbage collector.
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
    # 2026-11, mlflow 3.17 on SQLAlchemy 2.1: its own tables, when they are first imported.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]

NODES, WIDE, OUT = 3, 5, 7
REASON = "the tracer loses operators on sparse tensors"
PRODUCTS = NODES * WIDE + NODES * WIDE * OUT  # as many stored elements as nodes, each times a row of the weight


class GraphNet(nn.Module):
    """Takes the adjacency of a graph, a sparse matrix, which the tracer does not see."""

    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.ones(NODES, WIDE)), nn.Linear(WIDE, OUT)

    def forward(self, adjacency):
        return self.head(torch.sparse.mm(adjacency, self.weight))


class Mixed(nn.Module):
    """Multiplies in a compiled function, too, which the counted forward does not see, and the observed step does."""

    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.ones(WIDE, OUT)), nn.Linear(OUT, OUT)
        self.mix = torch.compile(lambda x, weight: x @ weight, backend="eager")

    def forward(self, x):
        return self.head(self.mix(x, self.weight))


def adjacency():
    return torch.eye(NODES).to_sparse()


@contextlib.contextmanager
def place_of(kind, request):
    """A real run to write to, and a function that reads back its config, as far as it has one, and its texts."""
    folder = request.getfixturevalue("tmp_path")
    if kind == "wandb":
        request.getfixturevalue("wandb_folders")
        run = places.start_wandb(folder)
        try:
            yield run, lambda: wandb_has(run)
        finally:
            run.finish()
    elif kind == "mlflow":
        run = stores.Run(request.getfixturevalue("sqlite"), folder)
        yield (run.client, run.id), lambda: mlflow_has(run)
    else:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(folder)) as writer:
            yield writer, lambda: tensorboard_has(writer, folder)


def wandb_has(run):
    run.finish()
    files = places.RunFiles(Path(run.dir).parent)
    return files.config, [files.file("workload/report")]


def mlflow_has(run):
    return run.tags(), [run.file(f"flops/report.{form}").decode() for form in ("html", "md")]


def tensorboard_has(writer, folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer.close()
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    table = events.Tensors("workload/modules/text_summary")[-1].tensor_proto.string_val[0].decode()
    return None, [table, (folder / "flopcallback.html").read_text(encoding="utf-8")]


def train(model, batch, target):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with FlopHook(model, optimizer, to=target, warmup_steps=1, latency_steps=2, summary=False, strict=True) as hook:
        for _ in range(6):
            model(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return hook.profile


def test_the_result_names_the_engine_and_the_reason():
    flops = FlopCountAnalysis(GraphNet(), adjacency())
    assert (flops.total(), flops.engine, flops.engine_reason) == (PRODUCTS, "dispatch", REASON)


@pytest.mark.parametrize(
    "draw", [plain_table, lambda profile: rich_text(profile, width=200), markdown_modules, html_page]
)
def test_every_text_names_them(draw):
    text = " ".join(draw(profile_call(GraphNet(), adjacency())).split())
    assert f"because {REASON}" in text
    assert "counted by dispatch" in text


@pytest.mark.parametrize("kind", TRACKERS)
def test_every_tracker_names_them(kind, request):
    with place_of(kind, request) as (target, read):
        profile = train(GraphNet(), adjacency(), target)
        config, texts = read()
    assert profile.forward_flops == 2 * PRODUCTS
    if config is not None:  # TensorBoard has none; its texts say it
        assert (config["flops.engine"], config["flops.engine_reason"]) == ("observer", REASON)
    for text in texts:
        assert f", because {REASON}" in text
        assert "counted by observer" in text


@pytest.mark.parametrize("kind", TRACKERS)
def test_every_tracker_says_where_the_engines_differ(kind, request):
    with place_of(kind, request) as (target, read):
        train(Mixed(), torch.ones(NODES, WIDE), target)
        _, texts = read()
    head, mix = 2 * NODES * OUT * OUT, 2 * NODES * WIDE * OUT
    for text in texts:
        assert f"its forward has {head + mix} FLOPs, 1 counted call would have {head}: Mixed differ" in text


@pytest.mark.parametrize("kind", TRACKERS)
def test_every_tracker_says_that_they_agree(kind, request):
    with place_of(kind, request) as (target, read):
        train(nn.Linear(WIDE, OUT), torch.ones(NODES, WIDE), target)
        _, texts = read()
    assert all("verified: both engines count the same forward in every module" in text for text in texts)
