"""Where profiles and numbers go: the trainer's loggers, read back, or files where no logger can show them."""

from __future__ import annotations

import json
import struct
import warnings
from dataclasses import replace
from pathlib import Path

import places
import pytest

from flopcallback.reporting import ModelProfile
from flopcallback.trackers import MemoryTracker

pytestmark = [pytest.mark.lightning, pytest.mark.models]

# Measured in later steps.
WITH_TIMES = ("latency/",)
# Logged again and again.
AS_IT_GOES_ON = ("compute/", "perf/")


@pytest.fixture
def make_callback():
    from flopcallback import FlopCallback

    def make_callback(**options):
        return FlopCallback(**{"warmup_steps": 1, "latency_steps": 2, "strict": True, **options})

    return make_callback


def as_float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def rows_of_profiles(rows):
    return [(step, row) for step, row in rows if not any(name.startswith(AS_IT_GOES_ON) for name in row)]


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0, "scalars": 0}).Reload()


@pytest.mark.tensorboard
def test_tensorboard_shows_scalars_texts_figures_and_a_file(flavour, run, make_callback):
    callback = make_callback()
    training = run(flavour, [callback], loggers=lambda folder: [flavour.loggers.TensorBoardLogger(folder)])
    profile = callback.profiles["train"]
    folder = training.trainer.loggers[1].log_dir
    events = read_events(folder)
    notes = [(e.step, json.loads(e.tensor_proto.string_val[0])) for e in events.Tensors("flopcallback")]
    numbers = profile.scalars()
    times = {name: numbers.pop(name) for name in ("latency/forward_ms", "latency/step_ms")}
    assert rows_of_profiles(notes) == [(0, numbers), (3, times)]
    (shown,) = places.hyperparameters_in_tensorboard(Path(folder))
    assert shown == {**numbers, **times, "compute/estimated_pct": 0.0}
    points = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    ours = {tag: value for tag, value in points.items() if not tag.startswith(("train/", "val/", "epoch"))}
    # The peak is not known, so TFLOP/s stand for MFU; a wait of 0 is no point.
    charts = {
        "workload/flops_total": "compute/flops_total",
        "workload/samples_per_sec": "perf/samples_per_sec",
        "workload/step_time_ms": "perf/step_time_ms",
        "workload/tflops_per_sec": "perf/tflops_per_sec",
        "workload/data_wait_pct": "perf/data_wait_pct",
    }
    in_notes = {
        chart: [(step, as_float32(row[name])) for step, row in notes if row.get(name)] for chart, name in charts.items()
    }
    assert ours == {chart: values for chart, values in in_notes.items() if values or chart != "workload/data_wait_pct"}
    assert ours["workload/flops_total"] == [(step, (step + 1) * numbers["flops/train_step"]) for step in range(15)]
    texts = {tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"]}
    assert {"workload/tree", "workload/modules", "workload/operators"} <= texts
    assert {"workload/by_module", "workload/latency"} <= set(events.Tags()["images"])
    tree = events.Tensors("workload/tree/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert f"{profile.forward_flops:,} FLOPs" in tree
    assert ModelProfile.from_json((Path(folder) / "flopcallback.json").read_text()) == profile


def test_numbers_are_logged_once_at_the_step_that_they_belong_to(lightning, run, make_callback, monkeypatch):
    tracker = MemoryTracker()
    monkeypatch.setattr("flopcallback.lightning.loggers.tracker_for", lambda logger, prefix: tracker)
    callback = make_callback(summary=False)
    training = run(lightning, [callback], accumulate_grad_batches=2)
    (first, counted), (last, timed) = rows_of_profiles(tracker.scalars)
    assert "flops/forward" in counted
    assert timed
    assert all(name.startswith(WITH_TIMES) for name in timed)
    steps = [step for step, row in training.rows if "train/loss_step" in row]
    assert first == 0
    assert last in steps  # Lightning's own axis, which steps once in two batches here
    assert [step for step, _ in tracker.profiles] == [first, last]
    assert tracker.profiles[0][1].latency is None
    assert replace(tracker.profiles[1][1], training=callback.profiles["train"].training) == callback.profiles["train"]
    assert tracker.closed


def test_a_prefix_stands_in_front_of_all_names(lightning, run, make_callback, monkeypatch):
    tracker, prefixes = MemoryTracker(), []
    monkeypatch.setattr(
        "flopcallback.lightning.loggers.tracker_for", lambda logger, prefix: prefixes.append(prefix) or tracker
    )
    run(lightning, [make_callback(prefix="student/")])
    assert prefixes == ["student/"]
    assert all(name.startswith("student/") for _, scalars in tracker.scalars for name in scalars)


def test_each_logger_gets_it_and_one_that_fails_is_named(lightning, run, make_callback, monkeypatch, ours):
    good = MemoryTracker()

    class Broken(MemoryTracker):
        def log_profile(self, profile, step):
            raise OSError("no space left")

    trackers = iter([Broken(), good])
    monkeypatch.setattr("flopcallback.lightning.loggers.tracker_for", lambda logger, prefix: next(trackers))
    training = run(
        lightning, [make_callback(strict=False)], loggers=lambda folder: [lightning.loggers.CSVLogger(folder)]
    )
    (told,) = ours(training)
    assert told.startswith("the tracker MemoryLogger (memory) failed: OSError: no space left.")
    assert [step for step, _ in good.profiles] == [0, 3]


def test_a_fast_dev_run_prints_one_line_and_writes_nothing(lightning, run, make_callback, capsys, tmp_path):
    training = run(lightning, [make_callback(report_dir=tmp_path / "report")], fast_dev_run=True)
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if "FLOPs" in line]
    assert len(lines) == 1
    assert lines[0].startswith("flopcallback: forward ")
    assert "report" not in lines[0]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["calls.txt"]  # the test's own
    assert training.calls_counted == 1


@pytest.mark.parametrize("kind", ["no logger", "CSVLogger", "a logger that nobody knows"])
def test_without_a_tracker_the_table_is_printed_once_and_files_are_written(
    lightning, run, make_callback, kind, capsys, tmp_path
):
    options, loggers = {}, None
    if kind == "no logger":
        options["logger"] = False
    elif kind == "CSVLogger":
        options["logger"] = lightning.loggers.CSVLogger(tmp_path / "csv")
    callback = make_callback()
    training = run(lightning, [callback], loggers=loggers, **options)
    printed = capsys.readouterr().out
    folder = tmp_path / ("csv/lightning_logs/version_0" if kind == "CSVLogger" else "run0") / "flopcallback_report"
    assert printed.count("Classifier, one train step, forward:") == 1
    page = (folder / "flopcallback.html").relative_to(tmp_path)  # the working directory
    assert printed.count(f"report: {page}") == 2  # with the counts, and with the times
    assert ModelProfile.from_json((folder / "flopcallback.json").read_text()) == callback.profiles["train"]
    lines = (folder / "scalars.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["flops/forward"] == callback.profiles["train"].forward_flops
    assert training.calls_counted == 15


def test_a_report_folder_can_be_asked_for_beside_a_tracker(lightning, run, make_callback, monkeypatch, tmp_path):
    monkeypatch.setattr("flopcallback.lightning.loggers.tracker_for", lambda logger, prefix: MemoryTracker())
    run(lightning, [make_callback(report_dir=tmp_path / "report")])
    assert (tmp_path / "report" / "flopcallback.json").exists()


def test_files_hold_one_training_and_the_evaluations_after_it(lightning, run, make_callback, tmp_path, loader):
    def steps_in_file():
        lines = (tmp_path / "report" / "scalars.jsonl").read_text().splitlines()
        return [(json.loads(line)["step"], "test/flops/forward" in line) for line in lines if "compute/" not in line]

    callback = make_callback(report_dir=tmp_path / "report", summary=False)
    training = run(lightning, [callback])
    training.trainer.test(training.model, loader(shuffle=False), verbose=False)
    assert steps_in_file() == [(0, False), (3, False), (15, True)]
    run(lightning, [make_callback(report_dir=tmp_path / "report", summary=False)])
    assert steps_in_file() == [(0, False), (3, False)]
    run(lightning, [callback])
    assert steps_in_file() == [(0, False), (3, False)]


def test_with_a_tracker_a_line_of_counts_and_one_with_times_are_printed(
    lightning, run, make_callback, monkeypatch, capsys
):
    monkeypatch.setattr("flopcallback.lightning.loggers.tracker_for", lambda logger, prefix: MemoryTracker())
    callback = make_callback()
    run(lightning, [callback])
    counts, line = [line for line in capsys.readouterr().out.splitlines() if line.startswith("flopcallback: ")]
    assert counts.startswith("flopcallback: forward 319 kFLOPs, train step ")
    assert counts.endswith(", times to come; report: MemoryLogger (memory)")
    assert line.startswith("flopcallback: forward 319 kFLOPs, ")
    assert "slowest: " in line
    assert line.endswith(", no MFU: peak not known (peak_flops=); report: MemoryLogger (memory)")


def test_nothing_is_printed_without_a_summary(lightning, run, make_callback, capsys):
    run(lightning, [make_callback(summary=False)], logger=False)
    assert "forward" not in capsys.readouterr().out


def test_a_progress_bar_is_not_torn(lightning, run, make_callback, capsys):
    run(lightning, [make_callback()], logger=False, enable_progress_bar=True)
    printed = capsys.readouterr().out
    assert "Classifier, one train step, forward:" in printed
    before = printed.partition("Classifier, one train step, forward:")[0]
    assert not before or before.endswith("\n") or before.rstrip(" ").endswith("\r")


def test_other_ranks_count_and_log_nothing(lightning, run, make_callback, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(lightning.Trainer, "is_global_zero", property(lambda self: False))
    monkeypatch.setattr(
        "flopcallback.lightning.loggers.tracker_for", lambda logger, prefix: pytest.fail("asked for a tracker")
    )
    callback = make_callback()
    run(lightning, [callback])
    assert callback.profiles["train"].forward_flops > 0
    assert "forward" not in capsys.readouterr().out
    assert not (tmp_path / "run0" / "flopcallback_report").exists()


def test_tracer_warnings_do_not_reach_the_user_and_filters_stay_theirs(lightning, run, make_callback, classifier):
    import torch
    from torch import nn

    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(49, 3)

        def forward(self, x):
            warnings.filterwarnings("ignore", message="set in the first step")
            scores = self.linear(x.flatten(1))
            return scores if scores.sum() > -1e9 else -scores

    def make(flavour, calls):
        return classifier(flavour, calls, net=Asks)

    before = list(warnings.filters)
    training = run(lightning, [make_callback()], make=make, max_epochs=1)
    assert [w for w in training.warnings if issubclass(w.category, torch.jit.TracerWarning)] == []
    assert warnings.filters == before
