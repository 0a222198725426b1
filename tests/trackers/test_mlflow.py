"""The MLflow adapter, read back by MLflow's client from a bare SQLite store and through a real server."""

from __future__ import annotations

import dataclasses
import io
import math
import shutil
import sys

import mlflow_stores as stores
import pytest

from flopcallback.profile.times import StepTime
from flopcallback.reporting import ModelProfile, html_page, markdown_modules
from flopcallback.trackers import Tracker, tracker_for

pytestmark = [
    pytest.mark.mlflow,
    # 2026-11, mlflow 3.17 on SQLAlchemy 2.1: its own tables, when they are first imported.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]


FILES = {"modules.json", "operators.json", "report.json", "report.md", "report.html", "by_module.png"}
TABLES = [{"path": f"flops/{name}.json", "type": "table"} for name in ("modules", "operators")]


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """What MLflow would write to the working directory stays in the test's, and its global address is put back."""
    monkeypatch.chdir(tmp_path)
    with stores.fluent_state_put_back():
        yield


@pytest.fixture(params=["sqlite", "server"])
def run(request, tmp_path):
    return stores.Run(request.getfixturevalue(request.param), tmp_path / "artifacts")


@pytest.fixture
def local(sqlite, tmp_path):
    return stores.Run(sqlite, tmp_path / "artifacts")


def exact(records):
    """What a table has to give back of records: all, but floats to four digits, and no column without any value."""
    empty = {key for key in records[0] if all(record[key] is None for record in records)}
    return [
        {
            key: pytest.approx(value, rel=1e-3) if isinstance(value, float) else value
            for key, value in record.items()
            if key not in empty
        }
        for record in records
    ]


def named(profile):
    """The records of modules, where the root has the model's name."""
    root, *others = profile.module_records()
    return [{**root, "path": profile.name}, *({**record, "parent": profile.name} for record in others)]


def test_metrics_are_floats_at_their_step(run):
    run.tracker().log_scalars({"compute/flops_total": 2**70 + 1, "perf/mfu_pct": 41.7}, 3)
    assert run.points("workload/flops_total") == [(3, 2.0**70)]
    assert run.points("workload/mfu_pct") == [(3, 41.7)]


def test_what_is_not_finite_is_nan(run):
    run.tracker().log_scalars({"perf/mfu_pct": math.nan, "perf/step_time_ms": math.inf}, 4)
    assert [math.isnan(value) for _, value in run.points("workload/mfu_pct")] == [True]
    assert [math.isnan(value) for _, value in run.points("workload/step_time_ms")] == [True]


def test_a_profile_makes_tables_reports_and_a_figure(run, net):
    run.tracker().log_profile(net([3, 5]), 7)
    assert run.files() == FILES
    assert run.rows() == exact(named(net([3, 5])))
    assert run.rows("operators") == exact(net([3, 5]).operator_records())
    assert run.shown_as_tables() == TABLES


def test_the_reports_are_those_of_the_profile(run, net, timed):
    profile = timed(net([3, 5]))
    run.tracker().log_profile(profile, 7)
    assert ModelProfile.from_json(run.file("flops/report.json")) == profile
    assert run.file("flops/report.html").decode() == html_page(profile) + "\n"
    text = run.file("flops/report.md").decode()
    assert text.startswith("# Net at step 7\n")
    assert markdown_modules(profile) in text


def test_integers_beyond_any_float_are_exact_in_tags_tables_and_report(run, net):
    profile = net([2**70 + 1, 2**69 + 7])
    run.tracker().log_profile(profile, 0)
    assert run.tags()["flops.forward"] == str(2**70 + 2**69 + 8)
    assert [row["flops"] for row in run.rows()] == [2**70 + 2**69 + 8, 2**70 + 1, 2**69 + 7]
    assert run.rows("operators")[0]["flops"] == 2**70 + 2**69 + 8
    assert ModelProfile.from_json(run.file("flops/report.json")) == profile


def test_any_name_stands_in_the_tables_and_reports(run, net, timed):
    names = ["a/b", "卷积|层", "x.y", "__init__", "$\\alpha$", "🙂"]
    run.tracker().log_profile(timed(net([3, 5, 7, 11, 13, 17], names=names)), 0)
    assert [row["path"] for row in run.rows()] == ["Net", *names]
    assert run.files() == FILES | {"latency.png"}


def test_a_profile_without_any_module_is_logged(run):
    run.tracker().log_profile(ModelProfile("Nothing"), 0)
    assert run.rows() == run.rows("operators") == []
    assert run.files() == FILES


def test_a_table_that_a_browser_could_not_open_is_shown_as_text(local, net):
    local.tracker().log_profile(net(range(1, 2000)), 0)
    assert local.shown_as_tables() == TABLES
    local.tracker().log_profile(net(range(1, 2001)), 0)
    assert local.shown_as_tables() == TABLES[1:]


def test_a_new_column_is_in_the_table_at_its_place(local, net, frozen_column):
    local.tracker().log_profile(net([3, 5]), 0)
    assert [row["params_frozen"] for row in local.rows()] == [3 + 5, 3, 5]
    assert list(local.rows()[0])[:5] == ["path", "params_frozen", "flops", "flops_share", "type"]


def test_times_come_first_and_columns_without_any_value_are_left_out(local, net, timed):
    profile = timed(net([3, 5]))
    whole = profile.with_times({"": StepTime(9.0), "layer0": StepTime(2.0), "layer1": StepTime(1.0)}, [])
    local.tracker().log_profile(net([3, 5]), 0)
    assert list(local.rows()[0])[:4] == ["path", "flops", "flops_share", "type"]
    local.tracker().log_profile(profile, 25)
    assert list(local.rows()[0])[:4] == ["path", "forward_ms", "latency_share", "flops"]
    local.tracker().log_profile(whole, 25)
    assert list(local.rows()[0])[:5] == ["path", "step_ms", "step_time_share", "flops", "flops_share"]
    assert [(row["path"], row["step_ms"]) for row in local.rows()] == [("Net", 9), ("layer0", 2), ("layer1", 1)]


def test_a_time_that_is_no_number_is_null(run, net, timed):
    profile = net([3, 5])
    rows = (*profile.modules[:2], dataclasses.replace(profile.modules[2], forward_ms=math.nan))
    run.tracker().log_profile(dataclasses.replace(profile, modules=rows), 0)
    assert run.rows()[2]["forward_ms"] is None


def test_figures_are_pictures_and_the_scatter_waits_for_times(run, net, timed):
    from PIL import Image

    tracker = run.tracker()
    tracker.log_profile(net([3, 5]), 0)
    assert run.files() == FILES
    tracker.log_profile(timed(net([3, 5])), 25)
    for name in ("by_module", "latency"):
        image = Image.open(io.BytesIO(run.file(f"flops/{name}.png")))
        assert image.format == "PNG"
        assert image.width >= 900
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 24)) > 50


def test_a_later_profile_replaces_tables_and_report(run, net, timed):
    run.tracker().log_profile(net([3, 5]), 0)
    run.tracker().log_profile(timed(net([3, 5])), 25)
    assert [row["forward_ms"] for row in run.rows()] == [None, 0.5, 0.5]
    assert run.file("flops/report.md").startswith(b"# Net at step 25\n")
    assert run.shown_as_tables() == TABLES


def test_tables_of_the_users_own_stay_tables(run, net):
    run.client.log_table(run.id, {"mine": [1, 2]}, "mine.json")
    run.tracker().log_profile(net([3, 5]), 0)
    run.client.log_table(run.id, {"mine": [3]}, "other.json")
    own = [{"path": name, "type": "table"} for name in ("mine.json", "other.json")]
    assert run.shown_as_tables() == [own[0], *TABLES, own[1]]


def test_mlflows_own_reader_reads_the_table(run, net):
    import mlflow

    run.tracker().log_profile(net([3, 5]), 0)
    mlflow.set_tracking_uri(run.uri)  # It searches by the fluent function, whoever's client it is.
    table = run.client.load_table(run.experiment, "flops/modules.json", run_ids=[run.id])
    assert list(table["path"]) == ["Net", "layer0", "layer1"]
    assert list(table["flops"]) == [8, 3, 5]


def test_numbers_that_do_not_change_are_tags_without_a_chart_and_a_later_fit_replaces_them(run):
    run.tracker().log_scalars({"flops/forward": 8, "latency/step_ms": 2.5, "flops/optimizer": 0}, 0)
    run.tracker().log_scalars({"flops/forward": 8, "latency/step_ms": 3.5, "compute/estimated_pct": 0.0}, 30)
    assert run.found().data.metrics == {}
    assert run.tags() == {"flops.forward": "8", "latency.step_ms": "3.5", "compute.estimated_pct": "0.0"}


def test_a_value_that_repeats_is_a_point_each_time(run):
    tracker = run.tracker()
    for step in (10, 20, 30):
        tracker.log_scalars({"perf/mfu_pct": 50.0}, step)
    assert run.points("workload/mfu_pct") == [(10, 50), (20, 50), (30, 50)]


def test_numbers_of_the_first_count_are_params_and_no_later_fit_fails_on_them(run, net, timed):
    run.tracker(prefix="a/").log_profile(timed(net([3, 5])), 0)
    first = {"a.flops.forward": "8", "a.flops.forward_per_sample": "2", "a.model.params": "8"}
    assert run.found().data.params == first
    run.tracker(prefix="a/").log_profile(net([3, 7]), 0)
    assert run.found().data.params == first
    assert run.tags()["a.flops.forward"] == "10"


def test_what_a_later_fit_does_not_have_any_more_is_empty(run, net):
    unknown = [dataclasses.replace(net([3]).modules[0], unknown_calls=2), *net([3]).modules[1:]]
    run.tracker().log_profile(net([3], modules=tuple(unknown)), 0)
    assert run.tags()["flops.unknown_calls"] == "2"
    run.tracker().log_profile(net([3]), 0)
    assert run.tags()["flops.unknown_calls"] == ""
    assert "flops.optimizer" not in run.tags()


def test_conditions_are_tags(run, net):
    config = {"flops.dtype": "half", "flops.elementwise": False, "flops.device": "cpu", "flops.input_shapes": [[4, 3]]}
    run.tracker().log_profile(net([3, 5], config=config), 0)
    conditions = {
        "flops.dtype": "half",
        "flops.elementwise": "false",
        "flops.device": "cpu",
        "flops.input_shapes": "[[4, 3]]",
    }
    numbers = {"flops.forward": "8", "flops.forward_per_sample": "2", "model.params": "8"}
    assert run.tags() == conditions | numbers


def test_a_condition_that_is_not_known_has_no_tag_and_loses_that_of_an_earlier_fit(run, net):
    run.tracker().log_profile(net([3], config={"flops.engine_reason": "", "flops.peak_tflops": 67.0}), 0)
    assert run.tags()["flops.peak_tflops"] == "67.0"
    assert "flops.engine_reason" not in run.tags()
    run.tracker().log_profile(net([3], config={"flops.engine_reason": "", "flops.peak_tflops": None}), 0)
    assert run.tags()["flops.peak_tflops"] == ""


def test_a_condition_that_is_too_long_for_a_tag_says_that_it_is_cut(run, net):
    run.tracker().log_profile(net([3], config={"flops.input_shapes": [[1] * 9000], "flops.dtype": "x" * 8000}), 0)
    assert run.tags()["flops.input_shapes"].startswith("[[1, 1, ")
    assert run.tags()["flops.input_shapes"].endswith(" … (cut; whole in report.json)")
    assert len(run.tags()["flops.input_shapes"]) == 8000
    assert run.tags()["flops.dtype"] == "x" * 8000


def test_prefix_and_phase_stand_in_front_of_tags_and_paths(run, net):
    profile = dataclasses.replace(net([3, 5], config={"flops.dtype": "half"}), phase="validate")
    run.tracker(prefix="student/").log_profile(profile, 0)
    assert run.files("student/validate/flops") == FILES
    assert run.tags()["student.validate.flops.dtype"] == "half"
    assert run.tags()["student.validate.flops.forward"] == "8"
    assert run.shown_as_tables()[0]["path"] == "student/validate/flops/modules.json"


def test_what_mlflow_takes_in_no_name_is_replaced(run, net):
    tracker = run.tracker(prefix="/../学生 (50%)?#: //")
    tracker.log_scalars({"/../学生 (50%)?#: //compute/flops_total": 8}, 0)
    tracker.log_profile(net([3, 5]), 0)
    assert run.points("学生 -50----: /workload/flops_total") == [(0, 8)]
    assert run.files("学生 -50----- /flops") == FILES
    assert run.rows(folder="学生 -50----- /flops") == exact(named(net([3, 5])))
    assert run.tags()["学生 -50----: .flops.forward"] == "8"


def test_the_run_stays_its_owners(run, net):
    tracker = run.tracker()
    tracker.log_scalars({"flops/forward": 8}, 0)
    tracker.log_profile(net([3, 5]), 0)
    tracker.close()
    found = run.found()
    assert found.info.status == "RUNNING"
    assert "mlflow.note.content" not in found.data.tags
    assert run.number_in_experiment() == 1


def test_all_but_figures_is_there_where_figures_cannot_be_drawn(local, net, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        local.tracker().log_profile(net([3, 5]), 0)
    assert local.files() == FILES - {"by_module.png"}
    assert local.tags()["flops.forward"] == "8"


def test_a_client_with_a_run_finds_its_tracker(local):
    from flopcallback_mlflow import MLflowTracker

    assert isinstance(local.tracker(), MLflowTracker)
    assert isinstance(local.tracker(), Tracker)
    assert MLflowTracker(local.client, local.id).run_id == local.id


def test_the_active_run_and_a_run_write_into_themselves(local):
    import mlflow

    mlflow.set_tracking_uri(local.uri)
    with mlflow.start_run(run_id=local.id) as active:
        for name, target in (("by_name", "mlflow"), ("active", active), ("run", local.found())):
            tracker_for(target).log_scalars({f"{name}/compute/flops_total": 3}, 0)
    assert set(local.found().data.metrics) == {f"{name}/workload/flops_total" for name in ("by_name", "active", "run")}
    assert local.number_in_experiment() == 1


def test_no_active_run_is_an_error_with_the_way_out_and_none_is_started(local, monkeypatch):
    import mlflow

    mlflow.set_tracking_uri(local.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", local.experiment)
    with pytest.raises(RuntimeError, match=r"none is active in this thread.*with mlflow.start_run.*MlflowClient\(\)"):
        tracker_for("mlflow")
    assert mlflow.active_run() is None
    assert local.number_in_experiment() == 1


def test_a_run_of_another_store_is_refused_with_the_way_out(local, tmp_path, empty_database):
    import mlflow

    shutil.copy(empty_database, tmp_path / "other.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(ValueError, match=rf"the run {local.id} is not in sqlite:.*other.db.*\(client, run_id\)"):
        tracker_for(local.found())


def test_what_is_no_run_is_refused_with_the_way_out(local):
    from flopcallback_mlflow import MLflowTracker

    for target, run_id, complaint in (
        (local.client, None, "an MlflowClient came with None for the id of a run"),
        ((local.client, 3), None, "an MlflowClient came with 3 "),
        (local.id, None, f"the string '{local.id}' is no run"),
        ("mlflow", local.id, "goes with an MlflowClient, not with 'mlflow'"),
        (object(), None, "<object object at .* is no run of MLflow's"),
    ):
        with pytest.raises(TypeError, match=rf"MLflowTracker: .*{complaint}.*\(MlflowClient\(\), run_id\)"):
            MLflowTracker(target, run_id)


def test_without_mlflow_the_error_says_how_to_install_it(monkeypatch):
    from flopcallback_mlflow import MLflowTracker

    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ModuleNotFoundError, match="pip install mlflow"):
        MLflowTracker("mlflow")
