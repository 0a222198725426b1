"""`flopcallback compare`: runs on disk to a table, a CSV file and a page; what it refuses, and why."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import forked
import old_names
import pytest

from flopcallback.reporting import ModelProfile, ModuleRow
from flopcallback.trackers import LocalTracker

COMPUTE = "compute/flops_total"
STEP = 10**20 + 1


def train(folder, width, loss, *, prefix="", steps=3, **more):
    """Leaves what a training of one layer leaves: `width` parameters, `width * STEP` FLOPs a step."""
    work = {"params": width, "flops": 14 * width, "macs": 7 * width}
    profile = ModelProfile(
        "Net",
        phase="train",
        modules=(ModuleRow("", None, 0, "Net", calls=1, **work),),
        forward_flops=14 * width,
        forward_macs=7 * width,
        config={"flops.dtype": "float32"},
    )
    tracker = LocalTracker(folder)
    tracker.log_profile(profile, 0)
    tracker.log_scalars({prefix + name: value for name, value in profile.scalars().items()}, 0)
    for step in range(1, steps + 1):
        ours = {prefix + COMPUTE: width * STEP * step}
        tracker.log_scalars({**ours, "val/loss": loss + steps - step, **more}, step)


@pytest.fixture
def sweep(folder):
    for width, loss in ((8, 0.5), (16, 0.25), (32, 0.375)):
        train(folder / "sweep" / f"width-{width}", width, loss)
    return folder / "sweep"


def table(result):
    """The rows of the table: cells by run."""
    rows = [line.split() for line in result.stdout.splitlines() if "width-" in line]
    return {next(word for word in row if word.startswith("width-")): row for row in rows}


def test_a_folder_of_runs_is_compared_by_the_metric_that_they_share(flopcallback, sweep):
    result = flopcallback("compare", sweep)
    assert result.exit_code == 0, result.output
    rows = table(result)
    assert list(rows) == ["width-16", "width-32", "width-8"]
    assert [name for name, row in rows.items() if row[0] == "*"] == ["width-16", "width-8"]
    assert rows["width-16"][2:] == ["16", "224", "-", "-", "-", "4.80", "Z", "0.25"]  # 16 * 1e20 * 3
    assert result.stderr == ""


def test_runs_are_named_one_by_one_too_and_none_twice(flopcallback, sweep):
    result = flopcallback("compare", sweep / "width-8", sweep, sweep / "width-16" / "flopcallback.json")
    assert sorted(table(result)) == ["width-16", "width-32", "width-8"]


def test_the_mode_turns_the_front_around(flopcallback, sweep):
    rows = table(flopcallback("compare", sweep, "--mode", "max"))
    assert list(rows) == ["width-8", "width-32", "width-16"]
    assert [name for name, row in rows.items() if row[0] == "*"] == ["width-8"]


def test_the_csv_has_exact_integers_and_nothing_where_nothing_is_known(flopcallback, sweep, folder):
    result = flopcallback("compare", sweep, "--csv", "runs.csv", "--sort", "compute")
    assert "Written: runs.csv" in result.stderr
    with (folder / "runs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["width-8", "width-16", "width-32"]
    assert [int(row[COMPUTE]) for row in rows] == [width * STEP * 3 for width in (8, 16, 32)]
    assert {row["latency/forward_ms"] for row in rows} == {""}
    assert [row["on_front"] for row in rows] == ["true", "true", "false"]


def test_runs_of_an_older_version_are_compared_and_said_in_one_line(flopcallback, sweep):
    for name in ("width-8", "width-16"):
        profile = ModelProfile.from_json((sweep / name / "flopcallback.json").read_text(encoding="utf-8"))
        former = old_names.former_json(profile)
        (sweep / name / "flopcallback.json").write_text(json.dumps(former), encoding="utf-8")
        scalars = (sweep / name / "scalars.jsonl").read_text(encoding="utf-8")
        older = scalars.replace(COMPUTE, "compute/hw_flops_total").replace(
            f'"flops/forward": {profile.forward_flops}', f'"flops/forward": {profile.forward_macs}'
        )
        assert older.count("hw_flops") == 3
        (sweep / name / "scalars.jsonl").write_text(older, encoding="utf-8")
    result = flopcallback("compare", sweep)
    assert result.exit_code == 0, result.output
    assert table(result)["width-16"][2:] == ["16", "224", "-", "-", "-", "4.80", "Z", "0.25"]  # as of today's version
    assert result.stderr.startswith("What an older flopcallback wrote is read under today's names")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--html", "-o"])
def test_the_page_is_written(flopcallback, sweep, folder, option):
    assert flopcallback("compare", sweep, option, "runs.html").exit_code == 0
    page = (folder / "runs.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "3 runs compared by compute" in page


def test_of_several_metrics_that_of_validation_is_meant(flopcallback, folder):
    train(folder / "width-3", 3, 0.5, **{"train/loss": 0.1, "epoch": 1})
    assert "val/loss" in flopcallback("compare", "width-3").stdout


def test_where_several_could_be_meant_it_says_which_and_shows_the_rest(flopcallback, folder):
    for width in (3, 5):
        train(folder / f"width-{width}", width, 0.5, **{"val/acc": 0.1})
    result = flopcallback("compare", folder)
    assert result.exit_code == 0
    assert list(table(result)) == ["width-3", "width-5"]
    assert result.stderr == "No metric was chosen; --metric takes one of: val/acc, val/loss\n"
    assert "val/acc" in flopcallback("compare", folder, "--metric", "val/acc").stdout


def test_without_any_metric_there_is_a_table_all_the_same(flopcallback, folder):
    (folder / "width-3").mkdir()
    (folder / "width-3" / "scalars.jsonl").write_text(json.dumps({"step": 1, COMPUTE: 7}))
    result = flopcallback("compare", folder)
    assert result.exit_code == 0
    assert table(result)["width-3"][-2:] == ["-", "7"]
    assert "have no metric of their own" in result.stderr


@pytest.mark.parametrize("options", [[], ["--prefix", "mine/"]])
def test_a_prefix_is_found_or_given(flopcallback, folder, options):
    train(folder / "width-3", 3, 0.5, prefix="mine/")
    assert table(flopcallback("compare", folder, *options))["width-3"][2:5] == ["3", "42", "-"]


def test_of_two_prefixes_one_has_to_be_given(flopcallback, folder):
    lines = [{"step": 1, "one/flops/forward": 5}, {"step": 1, "two/flops/forward": 7}]
    (folder / "width-3").mkdir()
    (folder / "width-3" / "scalars.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = flopcallback("compare", folder)
    assert result.exit_code == 2
    assert "has figures under several prefixes (one/, two/): give one as --prefix" in result.stderr
    assert table(flopcallback("compare", folder, "--prefix", "two/"))["width-3"][1:3] == ["-", "7"]


def test_a_run_that_cannot_be_read_is_left_out_and_said(flopcallback, sweep):
    (sweep / "width-8" / "flopcallback.json").write_text("{}")
    result = flopcallback("compare", sweep)
    assert result.exit_code == 0
    assert sorted(table(result)) == ["width-16", "width-32"]
    assert "Left out: " in result.stderr
    assert "flopcallback.json is no profile of flopcallback's" in result.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["sweep", "--metric", "val/los"], "--metric val/los: no run has a metric 'val/los'; there are: odd, val/loss"),
        (["sweep", "--metric", "odd"], "--metric odd: the name does not say what is better; give --mode min or"),
        (["sweep", "--mode", "best"], "--mode best: it is min or max"),
        (["sweep", "--sort", "size"], "--sort size: there is no such column; there are run, params, flops, "),
        (["nowhere"], "nowhere: there is no such file or folder"),
        (["empty"], "empty: no runs are here. A run is a folder with flopcallback.json or scalars.jsonl"),
        (["sweep", "--csv", "no/such/folder.csv"], "no/such/folder.csv: No such file or directory"),
        (["broken"], "none of the runs could be read"),
    ],
)
def test_what_cannot_be_done_is_said_with_exit_code_2(flopcallback, folder, options, complaint):
    train(folder / "sweep" / "width-3", 3, 0.5, odd=1)
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "flopcallback.json").write_text("{}")
    result = flopcallback("compare", *options)
    assert result.exit_code == 2
    assert complaint in result.stderr


def test_the_help_names_what_a_run_may_be(flopcallback):
    words = " ".join(flopcallback("compare", "--help").stdout.split())
    for word in ("sqlite:///mlflow.db", "TensorBoard", "W&B", "--metric", "--mode", "--csv", "--html", "--prefix"):
        assert word in words


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 200])
def test_the_script_prints_a_table_that_fits_the_terminal(sweep, columns):
    script = Path(sys.executable).with_name("flopcallback")
    ran = forked.run(script, "compare", sweep, folder=sweep.parent, COLUMNS=str(columns))
    assert ran.returncode == 0, ran.stderr
    assert max(map(len, ran.stdout.splitlines())) <= columns
    assert "width-16" in ran.stdout
