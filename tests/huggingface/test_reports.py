"""Where the numbers of a training by `transformers.Trainer` go, read back."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from hf_training import FORWARD, STEP

from flopcallback.trackers import MemoryTracker

pytestmark = pytest.mark.models

transformers = pytest.importorskip("transformers", reason="the core's own environment has no optional packages")

EVALUATING = {"eval_strategy": "steps", "eval_steps": 4}


def test_without_report_to_files_are_in_the_folder_of_the_output(train, make_callback):
    left = train(make_callback())
    names = {file.name for file in (left.output / "flopcallback_report").iterdir()}
    assert {"flopcallback.html", "flopcallback.json", "flopcallback.txt"} <= names


def test_a_target_of_the_users_gets_numbers_when_the_trainer_logs_and_evaluates(train, make_callback):
    tracker = MemoryTracker()
    left = train(make_callback(tracker), logging_steps=3, **EVALUATING)
    totals = {
        step: values["compute/flops_total"] for step, values in tracker.scalars if "compute/flops_total" in values
    }
    assert totals == {3: 3 * STEP, 4: 4 * STEP, 6: 6 * STEP}
    assert not (left.output / "flopcallback_report").exists()


def test_numbers_are_logged_every_n_steps_if_that_is_asked_for(train, make_callback):
    tracker = MemoryTracker()
    train(make_callback(tracker, log_every_n_steps=4))
    assert [step for step, values in tracker.scalars if "compute/flops_total" in values] == [4, 6]


def test_nothing_of_ours_is_in_the_logs_of_the_trainer(train, make_callback):
    seen = []

    class Seeing(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs, **_):
            seen.extend(logs)

    left = train(make_callback(by_compute=["eval/loss"]), Seeing(), **EVALUATING)
    names = {*seen, *(name for entry in left.trainer.state.log_history for name in entry)}
    assert {"loss", "eval_loss", "train_loss"} <= names
    assert not [name for name in names if "/" in name]


def test_a_line_of_counts_and_one_of_times_are_printed(train, make_callback, capsys):
    train(make_callback(MemoryTracker(), summary=True))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("flopcallback: ")]
    assert ["times" in line for line in lines] == [True, True]  # to come, and none: it was too short
    assert all(f"forward {FORWARD / 1000:.2f} kFLOPs" in line for line in lines)


def test_another_callback_of_report_to_gets_the_numbers(train, make_callback, monkeypatch):
    got = {}

    class OtherReporter(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs, **_):
            got.update({(state.global_step, name): value for name, value in logs.items()})

    monkeypatch.setitem(transformers.integrations.INTEGRATION_TO_CALLBACK, "other", OtherReporter)
    left = train(OtherReporter(), make_callback())
    assert [got[step, "compute/flops_total"] for step in (2, 4, 6)] == [2 * STEP, 4 * STEP, 6 * STEP]
    assert (left.output / "flopcallback_report" / "flopcallback.html").is_file()  # such a callback takes no report


@pytest.mark.tensorboard
def test_tensorboard_has_numbers_tables_bars_and_the_page(train, make_callback):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    left = train(make_callback(by_compute=["eval/loss"]), report_to="tensorboard", **EVALUATING)
    (folder,) = (left.output / "runs").iterdir()
    assert len(list(folder.glob("events*"))) == 1  # nothing was written after the Trainer's callback had closed it
    events = EventAccumulator(str(folder)).Reload()
    totals = [(event.step, event.value) for event in events.Scalars("workload/flops_total")]
    assert totals == [(2, 2 * STEP), (4, 4 * STEP), (6, 6 * STEP)]
    assert {"train/loss", "eval/loss", "eval/loss_by_compute"} <= set(events.Tags()["scalars"])
    assert "workload/by_module" in events.Tags()["images"]
    assert "workload/tree/text_summary" in events.Tags()["tensors"]
    assert (folder / "flopcallback.html").is_file()


@pytest.mark.mlflow
def test_mlflow_has_numbers_and_the_page_in_the_run_of_the_trainer(train, make_callback, monkeypatch, tmp_path):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")  # another test of the process may have set one
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    train(make_callback(), report_to="mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(before)
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "workload/flops_total")
    assert [(each.step, each.value) for each in history] == [(2, 2 * STEP), (4, 4 * STEP), (6, 6 * STEP)]
    assert run.data.metrics["loss"]
    assert client.list_artifacts(run.info.run_id)


@pytest.fixture
def fresh_wandb():
    """W&B without what it remembers of the environment: of tests before in this process, and for those after."""
    import wandb

    wandb.teardown()
    yield wandb
    wandb.teardown()


@pytest.mark.wandb
def test_wandb_has_numbers_in_the_rows_of_the_trainers_losses(train, make_callback, fresh_wandb, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    train(make_callback(), report_to="wandb", run_name="run")
    fresh_wandb.finish()
    from flopcallback_wandb.log import records, values
    from wandb_files import RunFiles

    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    RunFiles(log.parent)  # waits for the process that writes it
    rows = [values(record.history.item) for record in records(log) if record.WhichOneof("record_type") == "history"]
    rows = [row for row in rows if "train/loss" in row]
    assert [row["workload/flops_total"] for row in rows] == [2 * STEP, 4 * STEP, 6 * STEP]
    assert [row["train/global_step"] for row in rows] == [2, 4, 6]


@pytest.mark.tensorboard
@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")  # the Trainer's default, where there is no GPU
def test_the_example_says_what_its_training_cost(tmp_path, capsys):
    script = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "huggingface.py"))
    script["main"](3, str(tmp_path))
    tokens, width, inner, words, length = 8 * 32, 64, 128, 64, 32
    linear = 2 * (4 * 2 * tokens * width * width + 3 * 2 * tokens * width * inner) + 2 * tokens * width * words
    attention = 2 * (2 * 2 * tokens * length * width)
    micro_batch = 3 * linear + attention * 7 // 2  # fused attention has five products in backward for two in forward
    assert f"{3 * 2 * micro_batch:,} FLOPs in 3 steps" in capsys.readouterr().out
    assert list(tmp_path.glob("runs/*/flopcallback.html"))
