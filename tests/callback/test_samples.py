"""Samples and tokens of trainings on batches of every kind: right, or absent; the same in totals and in the profile."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn

from flopcallback import FlopHook

STEPS, OUT = 4, 3


@dataclass
class Atoms:
    positions: torch.Tensor
    owner: torch.Tensor

    @property
    def x(self):
        return self.positions


class Molecules(NamedTuple):
    graph: Atoms
    y: torch.Tensor

    @property
    def x(self):
        return self.graph.positions


@dataclass
class Table:
    x: torch.Tensor
    y: torch.Tensor

    def __iter__(self):  # of samples, as some batches are iterated
        return iter([Table(x, y) for x, y in zip(self.x, self.y, strict=True)])


class Nodes:
    """Nodes of several graphs, with attributes alone."""

    def __init__(self, nodes):
        self.x = torch.ones(nodes, 5)


class Graphs(Nodes):
    def __init__(self, *sizes):
        super().__init__(sum(sizes))
        self.num_graphs = len(sizes)

    def __iter__(self):
        return iter([("x", self.x)])


# Batches in turn, and samples of `STEPS` of them.
BATCHES = {
    "molecules": ([Molecules(Atoms(torch.ones(14, 5), torch.ones(14)), torch.ones(3, 1))], None),
    "table": ([Table(torch.ones(7, 5), torch.ones(7))], STEPS * 7),
    "graphs of the same nodes": ([Graphs(3, 4, 5), Graphs(6, 6)], STEPS // 2 * (3 + 2)),
    "nodes": ([Nodes(11)], None),
}


def model_of(read=lambda batch: batch.x):
    class OfBatches(nn.Linear):
        def forward(self, batch):
            return super().forward(read(batch))

    return OfBatches(5, OUT)


@pytest.fixture(params=BATCHES)
def case(request):
    return BATCHES[request.param]


def per_sample(numbers, batch, samples):
    """What the profile of the first batch says of a sample, and what it has to say."""
    first = samples and getattr(batch, "num_graphs", len(batch.x))
    return numbers.get("flops/forward_per_sample"), first and 2 * len(batch.x) * 5 * OUT / first


def test_in_a_plain_loop(case):
    batches, samples = case
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with FlopHook(model, optimizer, summary=False, strict=True) as hook:
        for step in range(STEPS):
            model(batches[step % len(batches)]).sum().backward()
            optimizer.step()
    assert hook.metrics().get("compute/samples_total") == samples
    said, right = per_sample(hook.metrics(), batches[0], samples)
    assert said == right


def fit(flavour, callbacks, folder, batches, training_step, **methods):
    """Train a LightningModule on batches as they are, and return the warnings that were shown."""

    class Module(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model_of()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    module = type("Module", (Module,), {"training_step": training_step, **methods})()
    loader = torch.utils.data.DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    options = dict.fromkeys(quiet, False)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        flavour.Trainer(
            accelerator="cpu", max_epochs=1, default_root_dir=folder, callbacks=callbacks, **options
        ).fit(module, loader, loader if "validation_step" in methods else None)  # fmt: skip
    return [str(warning.message) for warning in shown]


@pytest.mark.lightning
def test_under_a_trainer(lightning, tmp_path, case):
    from flopcallback import FlopCallback

    batches, samples = case
    callback = FlopCallback(summary=False, strict=True, report_dir=tmp_path / "report")
    fit(
        lightning, [callback], tmp_path, batches * (STEPS // len(batches)), lambda self, batch, _: self.net(batch).sum()
    )
    profile = callback.profiles["train"]
    assert profile.training.get("compute/samples_total") == samples
    said, right = per_sample(profile.scalars(), batches[0], samples)
    assert said == right


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 5), nn.Linear(5, OUT)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids)).mean(1)


def ids(samples, length):
    return torch.zeros(samples, length, dtype=torch.long)


def test_tokens_are_those_of_all_forwards_before_a_backward():
    model = Text()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with FlopHook(model, optimizer, summary=False, strict=True) as hook:
        for _ in range(STEPS):
            anchor, other = model(input_ids=ids(2, 3)), model(input_ids=ids(2, 50))
            (anchor - other).square().mean().backward()
            optimizer.step()
    numbers = hook.metrics()
    assert (numbers["compute/tokens_total"], numbers["compute/samples_total"]) == (STEPS * 2 * (3 + 50), STEPS * 2)


def test_tokens_of_micro_batches_are_added_up():
    model = Text()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with FlopHook(model, optimizer, summary=False, strict=True) as hook:
        for _ in range(STEPS):
            for length in (3, 50):
                model(input_ids=ids(2, length)).sum().backward()
            optimizer.step()
    numbers = hook.metrics()
    assert (numbers["compute/tokens_total"], numbers["compute/samples_total"]) == (STEPS * 2 * (3 + 50), STEPS * 2 * 2)


@pytest.mark.lightning
def test_under_a_trainer_tokens_are_those_of_the_batch_however_often_it_is_used(lightning, tmp_path):
    from flopcallback import FlopCallback

    text = Text()
    batch = {"query": {"input_ids": ids(2, 3)}, "answer": {"input_ids": ids(2, 50)}}

    def training_step(self, batch, _):
        parts = [text(**part) for part in (batch["query"], batch["answer"], batch["answer"])]
        return sum(parts).square().mean() + self.net.weight.sum()

    callback = FlopCallback(summary=False, strict=True, report_dir=tmp_path / "report")
    fit(lightning, [callback], tmp_path, [batch] * STEPS, training_step)
    training = callback.profiles["train"].training
    assert (training["compute/tokens_total"], training["compute/samples_total"]) == (STEPS * 2 * (3 + 50), STEPS * 2)


@pytest.mark.lightning
def test_lightnings_warning_of_an_ambiguous_size_is_shown_as_often_as_without_us(flavour, tmp_path):
    from flopcallback import FlopCallback

    data = importlib.import_module(f"{flavour.__name__}.utilities.data")
    batches = [[torch.ones(nodes, 5), torch.ones(2)] for nodes in (7, 7, 11, 7)]

    def step(self, batch, _):
        loss = self.net(type("Batch", (), {"x": batch[0]})).sum()
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def shown(*callbacks):
        data.warning_cache.clear()  # Lightning shows each text once per process
        told = fit(flavour, [*callbacks], tmp_path, batches, step, validation_step=step)
        return [text for text in told if "ambiguous collection" in text]

    without = shown()
    assert len(without) == 2  # one for 7 and one for 11
    assert shown(FlopCallback(summary=False, strict=True)) == without
