"""`docs/metrics.md` names what is logged, and `docs/tensorboard.md` its tags: all of it, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flopcallback.profile import metrics
from flopcallback.trackers import MemoryTracker

pytestmark = pytest.mark.lightning

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def names_in_table(heading: str, page: Path = PAGE) -> set[str]:
    """What stands in backticks in the first column of the table below a heading."""
    section = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    return set(re.findall(r"`([^`]+)`", " ".join(cells)))


def make_regression():
    from lightning.pytorch import LightningModule

    class Regression(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))

        def training_step(self, batch, _):
            return checkpoint(self.net, batch, use_reentrant=False).square().mean()  # some recomputation

        def validation_step(self, batch, _):
            self.net(batch)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.ones(12, 3), batch_size=2)

        val_dataloader = train_dataloader

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    return Regression()


def make_memory_logger():
    """A logger of Lightning's that is a tracker itself."""
    from lightning.pytorch.loggers.logger import DummyLogger

    class MemoryLogger(DummyLogger, MemoryTracker):
        def __init__(self):
            DummyLogger.__init__(self)
            MemoryTracker.__init__(self)

    return MemoryLogger()


@pytest.fixture
def logged(tmp_path):
    from lightning.pytorch import Trainer

    from flopcallback import FlopCallback

    options = {"peak_flops": 1e12, "tokens_fn": torch.numel, "log_every_n_steps": 2}
    logger = make_memory_logger()
    callback = FlopCallback(warmup_steps=1, latency_steps=2, summary=False, strict=True, **options)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=logger,
        callbacks=[callback],
        default_root_dir=tmp_path,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = make_regression()
    trainer.fit(model)
    trainer.limit_val_batches = 1
    trainer.validate(model, verbose=False)
    return logger


def not_as_on_the_page():
    """The names that only one of the page and `metrics.py` has, or has among the numbers that are logged once."""
    once = {metric.name for metric in metrics.METRICS if metric.when != "log"}
    again = {metric.name for metric in metrics.METRICS if metric.when == "log"}
    return (once ^ names_in_table("Numbers")) | (again ^ names_in_table("As training goes on"))


def test_the_page_names_the_metrics_in_the_table_of_when_they_are_logged():
    assert not_as_on_the_page() == set()


def test_the_page_says_which_numbers_have_a_chart_under_which_name():
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `") and "/" in line]
    on_page = {tuple(re.findall(r"`([^`]+)`", line)[:2]) for line in lines if "`workload/" in line}
    assert on_page == {(metric.name, metric.chart) for metric in metrics.METRICS if metric.chart}


def test_a_run_has_at_most_six_charts():
    values = {metric.name: 1 for metric in metrics.METRICS}
    charts, kept = metrics.placed(values)
    assert len(charts) <= 6
    assert len(charts) + len(kept) == len(values)


def test_a_new_metric_has_to_be_on_the_page(joules_metric):
    assert not_as_on_the_page() == {"perf/samples_per_joule"}


def test_a_training_logs_every_metric_and_nothing_else(logged):
    names = {name for _, values in logged.scalars for name in values}
    not_here = (
        metrics.ERROR,
        metrics.WITHOUT_GRAD,
        metrics.STEP_WITHOUT_GRAD,
        metrics.UNKNOWN_CALLS,  # everything has a count
        metrics.TRAIN_STEP_PHASES["optimizer"],
        metrics.LOWER_BOUND,
        metrics.UPPER_BOUND,
        metrics.PADDING,  # Hugging Face only
        metrics.MBU,  # needs the bandwidth of a device
    )
    wanted = {metric.name for metric in metrics.METRICS} - {metric.name for metric in not_here}
    assert {name for name in names if not name.startswith("validate/")} == wanted


def test_evaluation_has_the_same_names_behind_its_phase_without_times_and_whole_steps(logged):
    names = {name for _, values in logged.scalars for name in values if name.startswith("validate/")}
    counted = {metric for metric in metrics.METRICS if metric.when == "count"} - {metrics.UNKNOWN_CALLS}
    assert names == {f"validate/{metric.name}" for metric in counted}


def test_the_page_names_the_columns_and_the_conditions(logged):
    _, profile = logged.profiles[-1]
    assert set(profile.module_records()[0]) == names_in_table("The module table")
    assert set(profile.operator_records()[0]) == names_in_table("The operator table")
    assert set(profile.config) == names_in_table("Under which conditions")


@pytest.mark.tensorboard
def test_the_page_on_tensorboard_names_its_tags(logged):
    from flopcallback_tensorboard import TensorBoardTracker

    class Writer:
        def __init__(self):
            self.tags = set()

        def add_text(self, tag, *_, **__):
            self.tags.add(tag)

        add_scalar = add_image = add_text

        def flush(self):
            pass

    writer = Writer()
    timed = next(profile for _, profile in logged.profiles if profile.latency is not None)
    TensorBoardTracker(writer).log_profile(timed, 0)
    assert writer.tags == names_in_table("What stands where", PAGE.with_name("tensorboard.md"))


def test_the_page_names_the_files(logged, tmp_path):
    from flopcallback.trackers import LocalTracker

    tracker = LocalTracker(tmp_path / "report")
    tracker.log_scalars({"flops/forward": 1}, 0)
    tracker.log_profile(next(profile for _, profile in logged.profiles), 0)
    text = PAGE.read_text(encoding="utf-8").partition("\n## Files\n")[2]
    written = {path.name for path in (tmp_path / "report").iterdir()}
    named = re.findall(r"`([^`]+)`", text)
    assert written == {name for name in named if re.search(r"\.(html|json|jsonl|txt|md)$", name)}
