"""Runs read back from folders: those that LocalTracker writes, and Lightning's CSVLogger beside them."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from flopcallback.runs import RunsError, find_runs
from flopcallback.trackers import LocalTracker

COMPUTE = "compute/flops_total"
STEP = 10**20 + 3
"""FLOPs of a step: more than a float keeps exactly."""


@pytest.fixture
def train(net):
    """Leaves in a folder what a training with these FLOPs by layer leaves there."""

    def trained(folder, flops=(7, 11)):
        tracker = LocalTracker(folder)
        profile = net(flops, phase="train", config={"flops.peak_tflops": 2})
        tracker.log_profile(profile, 0)
        tracker.log_scalars(profile.scalars(), 0)
        for step in (10, 20):
            tracker.log_scalars({COMPUTE: STEP * step, "val/loss": 3.0 / step}, step)
        return folder

    return trained


def test_a_folder_is_read_with_exact_integers(train, tmp_path):
    (found,) = find_runs(train(tmp_path / "report"))
    run = found.read()
    assert (run.name, run.place) == ("report", str(tmp_path / "report"))
    assert run.figures["flops/forward"] == 7 + 11
    assert run.figures[COMPUTE] == STEP * 20
    assert run.series[COMPUTE] == ((10, STEP * 10), (20, STEP * 20))
    assert run.series["val/loss"] == ((10, 0.3), (20, 0.15))
    assert run.config["flops.peak_tflops"] == 2


def test_a_folder_of_folders_has_all_of_them_named_by_the_way_there(train, tmp_path):
    for name in ("wide", "deep/seed-0", "deep/seed-1"):
        train(tmp_path / "sweep" / name)
    runs = [found.read() for found in find_runs(tmp_path / "sweep")]
    assert [run.name for run in runs] == ["deep/seed-0", "deep/seed-1", "wide"]


@pytest.mark.parametrize("file", ["flopcallback.json", "scalars.jsonl"])
def test_a_file_of_a_folder_stands_for_it(train, tmp_path, file):
    (found,) = find_runs(train(tmp_path / "report") / file)
    assert found.read().name == "report"


def test_a_profile_that_was_counted_without_training_is_a_run_without_compute(net, tmp_path):
    (tmp_path / "net.json").write_text(net((5, 3)).to_json(), encoding="utf-8")
    (found,) = find_runs(tmp_path / "net.json")
    run = found.read()
    assert run.name == "net"
    assert run.figures["flops/forward"] == 5 + 3
    assert run.series == {}


def test_numbers_without_a_profile_are_a_run_too(tmp_path):
    LocalTracker(tmp_path / "bare").log_scalars({COMPUTE: 7}, 1)
    (found,) = find_runs(tmp_path)
    assert found.read().figures == {COMPUTE: 7}


def test_the_line_that_a_killed_training_left_unfinished_is_passed_over(train, tmp_path):
    with (train(tmp_path / "report") / "scalars.jsonl").open("a") as file:
        file.write('{"step": 30, "val/lo')
    (found,) = find_runs(tmp_path)
    assert found.read().series["val/loss"] == ((10, 0.3), (20, 0.15))


def test_a_broken_line_in_the_middle_is_said(tmp_path):
    (tmp_path / "scalars.jsonl").write_text('{"step": 1, "a": 1}\nnothing\n{"step": 2, "a": 1}\n')
    (found,) = find_runs(tmp_path)
    with pytest.raises(RunsError, match=r"scalars\.jsonl, line 2: 'nothing' is no line of numbers with their step"):
        found.read()


def test_a_json_file_that_is_no_profile_is_said(tmp_path):
    (tmp_path / "flopcallback.json").write_text("[]")
    (found,) = find_runs(tmp_path)
    with pytest.raises(RunsError, match=r"flopcallback\.json is no profile of flopcallback's"):
        found.read()


def test_a_number_that_was_not_finite_is_not_taken_for_one(tmp_path):
    LocalTracker(tmp_path).log_scalars({"val/loss": math.inf}, 1)
    (found,) = find_runs(tmp_path)
    assert math.isnan(found.read().figures["val/loss"])


def test_where_there_are_no_runs_it_says_what_a_run_is(tmp_path):
    with pytest.raises(RunsError, match=r"no runs are here\. A run is a folder with flopcallback\.json"):
        find_runs(tmp_path)
    with pytest.raises(RunsError, match="nowhere: there is no such file or folder"):
        find_runs(tmp_path / "nowhere")
    with pytest.raises(RunsError, match="no runs are here"):
        find_runs("s3://bucket/runs")


def test_no_tracker_is_imported_for_a_folder_of_ours(train, tmp_path):
    code = (
        "import sys; from flopcallback.runs import find_runs; find_runs(sys.argv[1])[0].read();"
        "print(sorted({'wandb', 'mlflow', 'tensorboard', 'lightning'} & set(sys.modules)))"
    )
    folder = train(tmp_path / "report")
    ran = subprocess.run([sys.executable, "-c", code, folder], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


@pytest.mark.lightning
def test_metrics_come_from_lightnings_csv_beside_the_report(train, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name="sweep")
    logger.log_metrics({"val/loss": 0.7, COMPUTE: 1.0, "epoch": 0}, step=10)
    logger.log_metrics({"train/loss": 0.9}, step=12)
    logger.log_metrics({"val/acc": 0.25}, step=20)
    logger.save()
    train(tmp_path / "sweep" / "version_0" / "flopcallback_report")
    (found,) = find_runs(tmp_path)
    run = found.read()
    assert run.name == "sweep/version_0"
    assert run.series["val/acc"] == ((20, 0.25),)
    assert run.series["train/loss"] == ((12, 0.9),)
    assert run.series[COMPUTE][-1] == (20, STEP * 20)
    assert run.own_metrics() == {"val/loss", "train/loss", "val/acc"}


@pytest.mark.lightning
def test_a_training_under_lightning_is_read_as_it_was(tmp_path):
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.loggers import CSVLogger

    from flopcallback import FlopCallback

    class Line(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 5)

        def training_step(self, batch, _):
            return self.layer(batch).square().mean()

        def validation_step(self, batch, _):
            self.log("val/loss", self.layer(batch).square().mean())

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.ones(14, 3), batch_size=7)

        val_dataloader = train_dataloader

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    logger = CSVLogger(tmp_path, name="line")
    callback = FlopCallback(summary=False, strict=True, prefix="mine/")
    Trainer(accelerator="cpu", max_epochs=2, logger=logger, callbacks=[callback], **quiet).fit(Line())
    (found,) = find_runs(tmp_path)
    run = found.read()
    assert run.prefixes() == ["mine/"]
    bare = run.without_prefix("mine/")
    assert bare.name == "line/version_0"
    assert bare.figures["flops/forward"] == 2 * (7 * 3 * 5)
    assert bare.figures["model/params"] == 3 * 5 + 5
    assert len(bare.series["val/loss"]) == 2
