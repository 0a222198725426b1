"""The W&B adapter, read back from the offline runs that W&B writes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import re
import sys
import time
from pathlib import Path

import pytest
from numpy import asarray
from wandb_files import RunFiles

from flopcallback.profile.columns import text_columns
from flopcallback.profile.metrics import METRICS
from flopcallback.reporting import LatencySummary, ModelProfile, html_page, latency_chart, module_chart, pixels
from flopcallback.trackers import Tracker, tracker_for

pytestmark = [
    pytest.mark.wandb,
    # 2026-11, wandb 0.31: it leaves the temporary folder of a table's artifact to the garbage collector.
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
]

FLAVOURS = ("lightning.pytorch", "pytorch_lightning")


@pytest.fixture(autouse=True)
def finished(wandb_folders):
    """No run is left open for another test."""
    import wandb

    yield
    wandb.finish()


def settings(**more):
    import wandb

    quiet = {"silent": True, "console": "off", "x_disable_stats": True, "disable_git": True}
    return wandb.Settings(**{**quiet, "disable_job_creation": True, **more})


@pytest.fixture
def start(tmp_path):
    """Starts a run, as a user would."""
    import wandb

    def started(**options):
        return wandb.init(**{"dir": tmp_path, "mode": "offline", "project": "p", "settings": settings(), **options})

    return started


@pytest.fixture
def run(start):
    return start()


def ended(run):
    """The run as it stands on disk when it is over."""
    folder = Path(run.dir).parent
    run.finish()
    return RunFiles(folder)


def logged(run, *profiles, prefix=""):
    """The profiles written by one tracker and read back."""
    tracker = tracker_for(run, prefix=prefix)
    for step, profile in enumerate(profiles):
        tracker.log_profile(profile, step)
    tracker.close()
    return ended(run)


# Where it writes to


def test_a_run_finds_its_tracker(run):
    from flopcallback_wandb import WandbTracker

    assert isinstance(tracker_for(run), WandbTracker)
    assert isinstance(tracker_for(run), Tracker)


def test_the_string_wandb_is_the_active_run(run):
    tracker_for("wandb").log_scalars({"flops/forward": 7}, 0)
    assert ended(run).kept["flops/forward"] == 7


@pytest.mark.lightning
@pytest.mark.parametrize("package", FLAVOURS)
def test_lightnings_logger_of_either_name_writes_into_its_own_run(tmp_path, net, package):
    logger = importlib.import_module(f"{package}.loggers").WandbLogger(save_dir=tmp_path, settings=settings())
    tracker = tracker_for(logger)
    tracker.log_scalars({"flops/forward": 8}, 2)
    tracker.log_profile(net([3, 5]), 2)
    tracker.close()
    read = ended(logger.experiment)
    assert read.kept["flops/forward"] == 8
    assert len(read.table("workload/modules")) == 3


@pytest.mark.parametrize("name", ["wandb", "wandb.run"])
def test_a_string_that_is_no_active_run_is_refused_with_the_way_out(name):
    from flopcallback_wandb import WandbTracker

    with pytest.raises((TypeError, RuntimeError), match=r"run = wandb\.init\(\.\.\.\)"):
        WandbTracker(name)


def test_what_is_no_run_is_refused_with_the_way_out():
    from flopcallback_wandb import WandbTracker

    with pytest.raises(TypeError, match=r"<object object.*> is no run of W&B's\. Make a run"):
        WandbTracker(object())


def test_without_wandb_the_error_names_the_command(monkeypatch):
    from flopcallback_wandb import WandbTracker

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match="pip install wandb"):
        WandbTracker("wandb")


def test_a_folder_called_wandb_is_not_taken_for_the_package(monkeypatch):
    from flopcallback_wandb import WandbTracker

    monkeypatch.setitem(sys.modules, "wandb", type(sys)("wandb"))
    with pytest.raises(ModuleNotFoundError, match="pip install wandb"):
        WandbTracker("wandb")


def test_closing_leaves_the_run_open_for_its_owner(run, net):
    tracker = tracker_for(run)
    tracker.log_profile(net([3]), 0)
    tracker.close()
    run.log({"train/loss": 0.5})
    assert ended(run).rows[-1]["train/loss"] == 0.5


def test_a_disabled_run_is_written_to_without_complaint(start, net, timed):
    run = start(mode="disabled")
    tracker = tracker_for(run)
    tracker.log_scalars({"flops/forward": 2**70}, 0)
    tracker.log_profile(net([3, 5]), 0)
    tracker.log_profile(timed(net([3, 5])), 1)
    tracker.close()
    assert run.summary["flopcallback"]["flops/forward"] == 3 + 5


# Numbers


def test_integers_are_exact_in_the_history_and_in_our_entry_of_the_summary(run):
    values = {"flops/forward": 2**62 + 1, "model/params": 7, "compute/flops_total": 2**63 - 1}
    tracker_for(run).log_scalars(values, 3)
    read = ended(run)
    (row,) = read.rows
    assert row["workload/flops_total"] == read.summary["workload/flops_total"] == 2**63 - 1
    assert {name: read.kept[name] for name in values} == values


def test_integers_that_a_float_would_round_stand_there_as_digits(run):
    tracker = tracker_for(run)
    tracker.log_scalars({"flops/forward": 2**70 + 1, "model/params": 2**53, "compute/flops_total": 2**53 + 1}, 0)
    tracker.log_scalars({"compute/flops_total": 2**64 + 3}, 1)
    run.log({"train/loss": 1.0})
    read = ended(run)
    assert float(read.rows[0]["workload/flops_total"]) == float(2**64)
    assert {name: value for name, value in read.kept.items() if name.endswith("_exact")} == {
        "flops/forward_exact": str(2**70 + 1),
        "compute/flops_total_exact": str(2**64 + 3),
    }


def test_digits_are_those_of_the_latest_fit(run):
    tracker_for(run).log_scalars({"flops/forward": 2**60 + 1}, 0)
    tracker_for(run).log_scalars({"flops/forward": 7}, 0)
    assert ended(run).kept == {"flops/forward": 7}


def test_what_a_later_fit_does_not_have_any_more_is_gone(run, net):
    unknown = [dataclasses.replace(net([3]).modules[0], unknown_calls=2), *net([3]).modules[1:]]
    tracker_for(run).log_profile(net([3], modules=tuple(unknown)), 0)
    assert run.summary["flopcallback"]["flops/unknown_calls"] == 2
    tracker_for(run).log_profile(net([3]), 0)
    assert "flops/unknown_calls" not in ended(run).kept


def test_two_trackers_of_a_run_keep_their_numbers_side_by_side(run):
    student, teacher = (tracker_for(run, prefix=f"{name}/") for name in ("student", "teacher"))
    student.log_scalars({"student/flops/forward": 3}, 0)
    teacher.log_scalars({"teacher/flops/forward": 5}, 0)
    student.log_scalars({"student/compute/estimated_pct": 0.0}, 1)
    kept = {"student/flops/forward": 3, "teacher/flops/forward": 5, "student/compute/estimated_pct": 0.0}
    assert ended(run).kept == kept


def test_the_summary_that_is_printed_at_the_end_shows_the_users_numbers(start, capfd):
    run = start(settings=settings(silent=False))
    names = [name for metric in METRICS for name in (metric.name, f"validate/{metric.name}")]
    tracker_for(run).log_scalars({name: 7 for name in names if not name.startswith("validate/perf")}, 0)
    run.log({"epoch": 1, "train/loss": 0.25, "val/loss": 0.5})
    run.finish()
    printed = capfd.readouterr().err.partition("Run summary:")[2]
    assert [line.split()[1] for line in printed.splitlines()[1:4]] == ["epoch", "train/loss", "val/loss"]


def test_numbers_that_are_not_finite_are_kept(run):
    tracker_for(run).log_scalars({"perf/mfu_pct": math.nan, "perf/step_time_ms": math.inf}, 0)
    (row,) = ended(run).rows
    assert (row["workload/mfu_pct"], row["workload/step_time_ms"]) == ("NaN", "Infinity")


def test_numbers_that_no_row_follows_are_written_when_the_run_finishes(run):
    run.log({"train/loss": 1.0})
    tracker_for(run).log_scalars({"perf/step_time_ms": 2.5}, 25)
    read = ended(run)
    assert [row.get("train/loss") for row in read.rows] == [1, None]
    assert (read.rows[1]["workload/step_time_ms"], read.rows[1]["workload/step"]) == (2.5, 25)


def test_without_steps_numbers_join_the_next_row_of_the_user(run):
    tracker = tracker_for(run)
    for step in range(3):
        tracker.log_scalars({"perf/samples_per_sec": 10.0 + step}, step)
        run.log({"train/loss": float(step)})
    rows = ended(run).rows
    assert [(row["train/loss"], row["workload/samples_per_sec"], row["workload/step"]) for row in rows] == [
        (0, 10, 0),
        (1, 11, 1),
        (2, 12, 2),
    ]


def of_the_user(rows):
    return [(row["_step"], row["train/loss"]) for row in rows if "train/loss" in row]


def training_with_steps(run, net, timed, tracker=None):
    """A user's loop that passes `step=`, starts anywhere, leaves some out, and logs twice at each."""
    for step in (3, 4, 7, 11):
        if tracker is not None:
            tracker.log_scalars({"perf/samples_per_sec": 1.0 * step, "flops/forward": 5}, step)
            tracker.log_profile(timed(net([3, 5])) if step == 7 else net([3, 5]), step)
        run.log({"train/loss": step / 10}, step=step)
        run.log({"train/accuracy": step / 20}, step=step)
    return ended(run).rows


def test_a_user_who_passes_steps_finds_every_row_where_it_would_be(start, net, timed, capfd):
    alone = training_with_steps(start(settings=settings(silent=False)), net, timed)
    run = start(settings=settings(silent=False))
    capfd.readouterr()
    beside = training_with_steps(run, net, timed, tracker_for(run))
    assert [step for step, _ in of_the_user(alone)] == [3, 4, 7, 11]
    assert of_the_user(beside) == of_the_user(alone)
    assert [row["workload/step"] for row in beside if "workload/step" in row] == [3, 4, 7, 11]
    assert "WARNING" not in capfd.readouterr().err


def test_wandb_would_have_warned_of_a_row_that_is_dropped(start, capfd):
    run = start(settings=settings(silent=False))
    run.log({"train/loss": 1.0}, step=5)
    run.log({"train/loss": 2.0}, step=3)
    # A thread of W&B's asks for warnings every 0.1 s, and one that is not asked for by the end is lost (0.29).
    printed, until = "", time.monotonic() + 30
    while "WARNING" not in printed and time.monotonic() < until:
        time.sleep(0.05)
        printed += capfd.readouterr().err
    run.finish()
    assert "WARNING" in printed


def test_numbers_have_an_axis_of_their_own_and_the_users_keep_theirs(run):
    run.define_metric("train/*", step_metric="epoch")
    tracker = tracker_for(run, prefix="v1.2/")
    tracker.log_scalars({"v1.2/perf/mfu_pct": 30.0}, 50)
    tracker.log_scalars({"v1.2/perf/mfu_pct": 40.0}, 100)
    run.log({"train/loss": 1.0})
    metrics = ended(run).metrics
    assert metrics[r"v1\.2/workload/step"]["options"]["hidden"]
    assert {name: metric.get("step_metric") for name, metric in metrics.items()} == {
        "train/*": "epoch",
        r"v1\.2/workload/step": None,
        r"v1\.2/workload/mfu_pct": "v1.2/workload/step",
    }


def test_a_dot_in_a_name_has_to_be_escaped_for_wandb_to_find_it(run):
    run.define_metric("a.b/loss", summary="max")
    run.define_metric(r"a\.b/accuracy", summary="max")
    for value in (3, 2):
        run.log({"a.b/loss": value, "a.b/accuracy": value})
    summary = ended(run).summary
    assert (summary["a.b/loss"], summary["a.b/accuracy"]) == (2, {"max": 3})


# Tables, charts, report, artifact


FIRST_COLUMNS = ["path", "forward_ms", "latency_share", "step_ms", "step_time_share", "flops"]


def awkward(net, **more):
    names = ["encoder.layers.0", "__init__", "a/b", "卷积|层", "🙂", 'a"b\\c', "$x^2$"]
    return net([3, 5, 7, 11, 13, 17, 2**64 + 19], names=names, **more)


def test_the_tables_are_the_records_of_the_profile(run, net, timed):
    profile = timed(awkward(net))
    read = logged(run, profile)
    root, *others = profile.module_records()
    named = [{**root, "path": "Net"}, *({**record, "parent": "Net"} for record in others)]
    assert read.table("workload/modules") == named
    assert read.table("workload/operators") == profile.operator_records()
    assert list(read.table("workload/modules")[0])[:6] == FIRST_COLUMNS


def column_types(read, table):
    """What the table's own artifact says of each column."""
    (content,) = (files[f"{table}.table.json"] for _, _, files in read.artifacts if f"{table}.table.json" in files)
    types = json.loads(content)["column_types"]["params"]["type_map"]
    return {name: {each["wb_type"] for each in kind["params"]["allowed_types"]} for name, kind in types.items()}


def test_a_column_without_any_value_has_its_type(run, net):
    profile = net([3, 5])
    read = logged(run, profile)
    assert {row["forward_ms"] for row in read.table("workload/modules")} == {None}
    assert set(read.table("workload/modules")[0]) == set(profile.module_records()[0])
    types = column_types(read, "workload/modules")
    assert types["forward_ms"] == types["flops"] == {"none", "number"}
    assert types["output_shape"] == types["path"] == {"none", "string"}


def test_every_column_of_text_is_known_as_one(net):
    profile = awkward(net, unknown={"aten::linear": "no formula"})
    records = [profile.module_records()[1], profile.operator_records()[0]]
    texts = {name for record in records for name, value in record.items() if isinstance(value, str)}
    assert texts | {"output_shape"} == {column.key for column in text_columns()}


def test_a_new_column_is_in_the_table_with_its_type(run, net, frozen_column):
    read = logged(run, net([3, 5]))
    assert [row["params_frozen"] for row in read.table("workload/modules")] == [3 + 5, 3, 5]
    assert column_types(read, "workload/modules")["params_frozen"] == {"none", "number"}


def test_a_time_that_is_not_finite_is_no_number_in_a_table(run, net):
    profile = net([3, 5]).with_latency(LatencySummary(1.0), {"layer0": math.nan, "layer1": math.inf})
    assert {row["forward_ms"] for row in logged(run, profile).table("workload/modules")} == {None}


def test_the_report_goes_up_at_once_and_again_with_times(run, net, timed):
    tracker = tracker_for(run)
    tracker.log_profile(net([3, 5]), 0)
    run.log({"train/loss": 1.0})
    tracker.log_profile(timed(net([3, 5])), 25)
    run.log({"train/loss": 0.5})
    tracker.close()
    read = ended(run)
    assert read.logged("workload/report") == [0, 1]
    assert read.file("workload/report") == html_page(timed(net([3, 5])))


@pytest.mark.parametrize("key", ["workload/modules", "workload/operators", "workload/by_module", "workload/latency"])
def test_tables_and_charts_are_logged_once_with_times(run, net, timed, key):
    read = logged(run, net([3, 5]), timed(net([3, 5])))
    assert len(read.logged(key)) == 1


def test_tables_come_when_training_ends_where_no_times_came(run, net):
    tracker = tracker_for(run)
    tracker.log_profile(net([3, 5]), 0)
    run.log({"train/loss": 1.0})
    tracker.close()
    tracker.close()
    read = ended(run)
    assert read.logged("workload/report") == [0]
    assert read.logged("workload/modules") == read.logged("workload/operators") == [1]
    assert read.logged("workload/latency") == []


def test_figures_are_the_images_that_other_trackers_have(run, net, timed):
    from PIL import Image

    profile = timed(net([5, 3], names=["a.b", "c"]))
    read = logged(run, profile)
    drawn = {"by_module": module_chart(profile), "latency": latency_chart(profile)}
    for name, figure in drawn.items():
        with Image.open(read.folder / "files" / read.summary[f"workload/{name}.path"]) as image:
            assert (asarray(image.convert("RGB")) == pixels(figure)).all()


def test_without_matplotlib_all_but_the_figures_is_logged(run, net, timed, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        tracker_for(run).log_profile(timed(net([3, 5])), 0)
    read = ended(run)
    assert [read.logged(f"workload/{name}") for name in ("report", "modules", "operators", "by_module")] == [
        *([[0]] * 3),
        [],
    ]
    assert len(artifacts(read)) == 1


def artifacts(read):
    return {name: files for kind, name, files in read.artifacts if kind == "flopcallback"}


def test_the_artifact_has_the_profile_and_the_page(run, net, timed):
    profile = timed(awkward(net))
    found = artifacts(logged(run, profile, prefix="a student's/"))
    assert found.keys() == {f"flopcallback-{run.id}-a-student-s"}
    (files,) = found.values()
    assert ModelProfile.from_json(files["flopcallback.json"]) == profile
    assert files["flopcallback.html"] == html_page(profile)


def test_an_artifacts_name_is_one_that_wandb_takes(start, net):
    run = start(id="läuft 2 " + "x" * 56)
    (name,) = artifacts(logged(run, net([3]), prefix="Größe L/"))
    assert re.fullmatch(r"[\w.-]{1,128}", name, re.ASCII)


def test_the_config_has_the_conditions(run, net):
    conditions = {"flops.elementwise": True, "flops.input_shapes": [[2, 3], None], "flops.engine_reason": None}
    read = logged(run, net([3], config=conditions))
    assert {name: read.config[name] for name in conditions} == conditions


def test_the_summary_has_the_integers_of_a_profile_alone(run, net):
    read = logged(run, net([3, 5]))
    assert (read.kept["flops/forward"], read.kept["model/params"]) == (3 + 5, 3 + 5)


def test_prefix_and_phase_stand_in_front_of_all_names(run, net, timed):
    profile = dataclasses.replace(timed(net([3, 5], config={"flops.dtype": "half"})), phase="validate")
    read = logged(run, profile, prefix="student/")
    names = {"modules", "operators", "report", "by_module", "latency"}
    panels = {name.removesuffix("._type") for name in read.summary if name.endswith("._type")}
    assert panels == {f"student/validate/workload/{name}" for name in names}
    assert read.config["student/validate/flops.dtype"] == "half"
    assert read.kept["student/validate/flops/forward"] == 3 + 5
    assert artifacts(read).keys() == {f"flopcallback-validate-{run.id}-student"}


def test_a_profile_without_any_module_is_logged(run):
    read = logged(run, ModelProfile("Nothing"))
    assert read.logged("workload/report") == [0]
    assert read.logged("workload/modules") == []


def test_a_single_module_is_logged(run, net):
    read = logged(run, net([], forward_flops=7))
    assert [row["path"] for row in read.table("workload/modules")] == ["Net"]


def test_of_more_modules_than_wandb_shows_the_largest_are_shown_and_the_rest_is_told(run, net, timed, monkeypatch):
    import wandb

    assert wandb.Table.MAX_ROWS == 10_000
    monkeypatch.setattr(wandb.Table, "MAX_ROWS", 10)
    profile = timed(net([(index * 7) % 30 for index in range(30)]))
    read = logged(run, profile)
    *shown, last = read.table("workload/modules")
    assert {key for key, value in last.items() if value is not None} == {"path"}
    # The root and all modules but the 8 largest are 31 - 9.
    assert last["path"] == "… 22 more"
    paths = [row.path or "Net" for row in profile.modules if row.path == "" or row.flops >= 22]
    assert [row["path"] for row in shown] == paths


# Again in the same run


PANELS = ("workload/report", "workload/modules", "workload/operators", "workload/by_module")


def fit(run, profile, timed, prefix=""):
    """What a training logs; each has a tracker of its own."""
    tracker = tracker_for(run, prefix=prefix)
    tracker.log_scalars({prefix + name: value for name, value in profile.scalars().items()}, 0)
    tracker.log_profile(profile, 0)
    run.log({"train/loss": 1.0})
    if timed is not None:
        tracker.log_profile(timed(profile), 25)
        run.log({"train/loss": 0.5})
    tracker.close()
    run.log({"train/epoch": 1})


def test_a_second_fit_shows_the_same_model_once(run, net, timed):
    fit(run, net([3, 5]), timed)
    fit(run, net([3, 5]), lambda profile: profile.with_latency(LatencySummary(2.0), {"layer0": 7.0}))
    read = ended(run)
    assert read.logged("workload/report") == [0, 1]
    assert all(read.logged(panel) == [1] for panel in PANELS[1:])
    assert len(artifacts(read)) == 1
    assert read.kept["flops/forward"] == 3 + 5


def test_a_second_fit_of_another_model_shows_it(run, net, timed):
    fit(run, net([3, 5], config={"flops.dtype": "float32"}), timed)
    fit(run, net([3, 7], config={"flops.dtype": "bfloat16"}), timed)
    read = ended(run)
    assert all(read.logged(panel) == [1, 4] for panel in PANELS[1:])
    assert [row["flops"] for row in read.table("workload/modules")] == [3 + 7, 3, 7]
    assert read.config["flops.dtype"] == "bfloat16"


def test_a_second_fit_shows_the_times_that_the_first_had_not(run, net, timed):
    fit(run, net([3, 5]), None)
    fit(run, net([3, 5]), timed)
    fit(run, net([3, 5]), None)
    read = ended(run)
    assert read.logged("workload/modules") == [1, 3]
    assert {row["forward_ms"] for row in read.table("workload/modules")} == {None, 0.5}


def test_a_fit_that_broke_off_before_its_tables_has_them_in_the_next(run, net):
    tracker_for(run).log_profile(net([3, 5]), 0)
    run.log({"train/loss": 1.0})
    fit(run, net([3, 5]), None)
    read = ended(run)
    assert read.logged("workload/report") == [0]
    assert read.logged("workload/modules") == [2]


def test_a_resumed_run_shows_the_same_model_no_second_time(start, net, timed):
    first = start(id="same", resume="allow")
    fit(first, net([3, 5], config={"flops.version": "1"}), timed)
    config = ended(first).config
    # Offline W&B resumes nothing; online the run begins with the config that it had.
    ours = {name: value for name, value in config.items() if name.startswith("flops.")}
    resumed = start(id="same", resume="allow", config=ours)
    fit(resumed, net([3, 5], config={"flops.version": "1"}), timed)
    read = ended(resumed)
    assert all(read.logged(panel) == [] for panel in PANELS)
    assert read.kept["flops/forward"] == 3 + 5


def test_a_run_that_was_given_the_config_of_another_shows_its_model(start, net, timed):
    first = start()
    fit(first, net([3, 5]), timed)
    ours = {name: value for name, value in ended(first).config.items() if name.startswith("flops.")}
    second = start(config=ours)
    fit(second, net([3, 5]), timed)
    assert ended(second).logged("workload/modules") == [1]


def test_a_peak_that_is_measured_anew_makes_no_other_model(run, net, timed):
    for peak in (1.25, 1.5):
        fit(run, net([3, 5], config={"flops.dtype": "half", "flops.peak_tflops": peak}), timed)
    read = ended(run)
    assert read.logged("workload/modules") == [1]
    assert read.config["flops.peak_tflops"] == 1.5


def test_two_models_in_a_run_have_their_own_panels_behind_their_prefixes(run, net, timed):
    fit(run, net([3, 5]), timed, prefix="teacher/")
    fit(run, net([3, 5]), timed, prefix="student/")
    read = ended(run)
    assert read.logged("teacher/workload/modules") == [1]
    assert read.logged("student/workload/modules") == [4]


# A training

BATCH, IN, HIDDEN, OUT, BATCHES = 2, 3, 5, 7, 6
FIRST, SECOND = 2 * BATCH * IN * HIDDEN, 2 * BATCH * HIDDEN * OUT


def make_net():
    from torch import nn

    return nn.Sequential(nn.Linear(IN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT))


def make_model(flavour):
    import torch

    class Regression(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make_net()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            loss = self(batch).square().mean()
            self.log("train/loss", loss)
            return loss

        def validation_step(self, batch, _):
            self.log("val/loss", self(batch).square().mean())

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.ones(BATCH * BATCHES, IN), batch_size=BATCH)

        val_dataloader = train_dataloader

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    flavour.seed_everything(11, verbose=False)
    return Regression()


def make_callback():
    from flopcallback import FlopCallback

    return FlopCallback(warmup_steps=1, latency_steps=2, summary=False, strict=True)


def trainer_of(flavour, logger, *callbacks, **options):
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    fixed = {"accelerator": "cpu", "max_epochs": 1, "limit_val_batches": 0, "log_every_n_steps": 1}
    return flavour.Trainer(logger=logger, callbacks=list(callbacks), **{**fixed, **quiet, **options})


@pytest.fixture(params=FLAVOURS)
def flavour(request):
    """Lightning, under either of its names."""
    return importlib.import_module(request.param)


@pytest.fixture
def lightning():
    """Lightning, under its present name."""
    return importlib.import_module(FLAVOURS[0])


@pytest.fixture
def make_logger(tmp_path):
    def made(flavour, **options):
        loggers = importlib.import_module(f"{flavour.__name__}.loggers")
        return loggers.WandbLogger(save_dir=tmp_path, **{"settings": settings(), **options})

    return made


def steps_of(read, name):
    return [row["trainer/global_step"] for row in read.rows if name in row]


@pytest.mark.lightning
def test_a_training_with_either_lightning_shows_its_profile(flavour, make_logger):
    logger = make_logger(flavour)
    trainer_of(flavour, logger, make_callback()).fit(make_model(flavour))
    read = ended(logger.experiment)
    assert steps_of(read, "train/loss") == [0, 1, 2, 3, 4, 5]
    assert steps_of(read, "workload/flops_total") == [0, 1, 2, 3, 4, 5]
    assert read.logged("flops/forward") == read.logged("latency/step_ms") == []
    assert read.kept["latency/step_ms"] > 0
    assert all("train/loss" in row for row in read.rows)
    assert read.logged("workload/report") == [0, 3]
    assert read.logged("workload/modules") == read.logged("workload/operators") == [3]
    assert read.kept["flops/forward"] == FIRST + SECOND


@pytest.mark.lightning
def test_what_lightning_logs_is_the_same_with_and_without_us(lightning, make_logger):
    def trained(*callbacks):
        logger = make_logger(lightning)
        trainer_of(lightning, logger, *callbacks, log_every_n_steps=2).fit(make_model(lightning))
        rows = ended(logger.experiment).rows
        return [(row["_step"], row["trainer/global_step"], row["train/loss"]) for row in rows]

    alone = trained()
    assert [step for _, step, _ in alone] == [1, 3, 5]
    assert trained(make_callback()) == alone


@pytest.mark.lightning
def test_tables_have_the_integers_that_an_analysis_of_the_same_batch_gives(lightning, make_logger):
    import torch

    from flopcallback import FlopCountAnalysis

    logger, model = make_logger(lightning), make_model(lightning)
    trainer_of(lightning, logger, make_callback()).fit(model)
    read = ended(logger.experiment)
    analysis = FlopCountAnalysis(model, torch.ones(BATCH, IN))
    modules = {row["path"]: row["flops"] for row in read.table("workload/modules")}
    modules.pop("(training_step)", None)
    modules[""] = modules.pop("Regression")
    assert modules == dict(analysis.hardware_flops())
    assert modules == {"": FIRST + SECOND, "net": FIRST + SECOND, "net.0": FIRST, "net.1": 0, "net.2": SECOND}
    operators = {row["operator"]: row["flops"] for row in read.table("workload/operators") if row["flops"]}
    assert sum(operators.values()) == read.kept["flops/forward"] == analysis.hardware_flops()[""]


@pytest.mark.lightning
def test_fits_and_evaluations_with_one_logger_add_what_is_new(lightning, make_logger):
    logger, model, callback = make_logger(lightning), make_model(lightning), make_callback()
    for _ in range(2):
        trainer_of(lightning, logger, callback).fit(model)
    trainer_of(lightning, logger, callback, limit_val_batches=2).validate(model, verbose=False)
    read = ended(logger.experiment)
    assert len(read.logged("workload/modules")) == len(read.logged("validate/workload/modules")) == 1
    assert read.kept["flops/forward"] == read.kept["validate/flops/forward"] == FIRST + SECOND
    assert len(artifacts(read)) == 2


@pytest.mark.lightning
def test_in_a_run_that_the_user_started_no_axis_is_defined(lightning, make_logger, run):
    logger = make_logger(lightning)
    with pytest.warns(UserWarning, match="There is a wandb run already in progress"):
        assert logger.experiment is run
    trainer_of(lightning, logger, make_callback()).fit(make_model(lightning))
    run.log({"mine": 1})
    read = ended(run)
    assert read.metrics == {}
    assert read.kept["flops/forward"] == FIRST + SECOND
    assert "train/loss" in read.rows[0]
    assert (read.rows[-1]["_step"], read.rows[-1]["mine"]) == (BATCHES, 1)


@pytest.mark.lightning
def test_a_disabled_logger_does_not_stop_a_training(lightning, make_logger):
    logger = make_logger(lightning, mode="disabled")
    trainer_of(lightning, logger, make_callback()).fit(make_model(lightning))
    assert logger.experiment.summary["flopcallback"]["flops/forward"] == FIRST + SECOND


def test_a_plain_loop_that_passes_steps_shows_its_profile(run):
    import torch

    from flopcallback import FlopHook

    model = make_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with FlopHook(model, optimizer, to=run, warmup_steps=1, latency_steps=2, summary=False, strict=True):
        for step in range(0, 50, 10):
            loss = model(torch.ones(BATCH, IN)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.log({"train/loss": loss.item()}, step=step)
    read = ended(run)
    assert [step for step, _ in of_the_user(read.rows)] == [0, 10, 20, 30, 40]
    assert len(read.rows) == 5
    assert [row["flops"] for row in read.table("workload/modules")] == [FIRST + SECOND, FIRST, 0, SECOND]
    assert len(read.logged("workload/modules")) == 1
