"""Report folders whose files are not as they were written: each error names the file, and the line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flopcallback.reporting import ModelProfile
from flopcallback.runs import RunsError, find_runs

GOOD = b'{"step": 1, "val/loss": 0.5}\n'


def read(folder):
    (found,) = find_runs(folder)
    return found.read()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"step": 2, "val/loss": "x"}', "val/loss is 'x', which is no number"),
        (b'{"step": 2, "val/loss": true}', "val/loss is True, which is no number"),
        (b'{"step": 2, "val/loss": [1]}', "val/loss is [1], which is no number"),
        (b'{"step": 2, "val/loss": 1' + b"0" * 400 + b"}", "which is too large to be compared"),
        (b'{"step": 2, "val/loss": 1' + b"0" * 5000 + b"}", "an integer has too many digits"),
        (b'{"step": true, "val/loss": 1}', "a step is True, which is no whole number"),
        (b'{"step": 1.5, "val/loss": 1}', "a step is 1.5, which is no whole number"),
        (b'{"step": NaN, "val/loss": 1}', "a step is nan, which is no whole number"),
        (b'{"step": "2", "val/loss": 1}', "a step is '2', which is no whole number"),
        (b'{"step": null}', "a step is None, which is no whole number"),
        (b'{"val/loss": 1}', "it has no step"),
        (b"[1]", "it has no step"),
        (b"7", "it has no step"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"step": 2, "val/\0loss": 1}', "Invalid control character"),
        (b"\0\0\0\0", "Expecting value"),
        (b'{"step": 2, "val/\xff": 1}', "can't decode"),
        (b"", "Expecting value"),
    ],
)
def test_a_line_that_is_not_as_it_was_written_is_named(tmp_path, line, said):
    (tmp_path / "scalars.jsonl").write_bytes(GOOD + line + b"\n" + GOOD)
    with pytest.raises(RunsError) as raised:
        read(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}/scalars.jsonl, line 2: ")
    assert said in str(raised.value)
    assert len(str(raised.value)) < len(str(tmp_path)) + 300
    # So it is at the end, but for a line whose end was not written.
    (tmp_path / "scalars.jsonl").write_bytes(GOOD + line + b"\n")
    with pytest.raises(RunsError, match="line 2: "):
        read(tmp_path)
    (tmp_path / "scalars.jsonl").write_bytes(GOOD + line)
    assert read(tmp_path).series == {"val/loss": ((1, 0.5),)}


def test_a_name_with_a_line_separator_of_unicode_splits_no_line(tmp_path):
    (tmp_path / "scalars.jsonl").write_text('{"step": 1, "a\u2028b\x85": 0.5}\n', encoding="utf-8")
    assert read(tmp_path).figures == {"a\u2028b\x85": 0.5}


@pytest.fixture
def with_csv(tmp_path):
    """Reads a run with a `metrics.csv` of this content."""

    def with_content(content):
        (tmp_path / "scalars.jsonl").write_bytes(GOOD)
        (tmp_path / "metrics.csv").write_bytes(content)
        return read(tmp_path)

    return with_content


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"x,0.5", "the step is 'x'"),
        (b"1.5,0.5", "the step is '1.5'"),
        (b"nan,0.5", "the step is 'nan'"),
        (b"1e400,0.5", "the step is '1e400'"),
        (b"1" + b"0" * 305 + b",0.5", "which is no whole number that could be one"),
        (b"2,\xff", "it is no text in UTF-8"),
        (b"2," + b"x" * 200_000, "field larger than field limit"),
    ],
)
def test_a_row_that_is_not_as_it_was_written_is_named(tmp_path, with_csv, row, said):
    with pytest.raises(RunsError) as raised:
        with_csv(b"step,val/acc\n1,0.25\n" + row + b"\n4,0.5\n")
    assert str(raised.value).startswith(f"{tmp_path}/metrics.csv, line 3: ")
    assert said in str(raised.value)


def test_what_a_csv_may_have_is_read(with_csv):
    run = with_csv(b"step,epoch,val/acc,note\n1,0,0.25,text\n,0,0.5,\n3,0,,\n4,0,nan,\n5.0,0,1e400\n")
    assert [(step, str(value)) for step, value in run.series["val/acc"]] == [(1, "0.25"), (4, "nan"), (5, "inf")]
    assert run.own_metrics() == {"val/acc", "val/loss"}


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here that even root cannot read")
@pytest.mark.parametrize("name", ["scalars.jsonl", "flopcallback.json", "metrics.csv"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    (tmp_path / "scalars.jsonl").write_bytes(GOOD)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("/proc/self/mem")
    with pytest.raises(RunsError, match=rf"{name}.*Input/output error"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["scalars.jsonl", "flopcallback.json", "events.out.tfevents.1", "run-1.wandb"])
def test_a_folder_or_a_pipe_of_a_files_name_is_no_run(tmp_path, name):
    (tmp_path / "a" / name).mkdir(parents=True)
    if hasattr(os, "mkfifo"):
        (tmp_path / "b").mkdir()
        os.mkfifo(tmp_path / "b" / name)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunsError, match="no runs are here"):
        find_runs(tmp_path)


def test_a_damaged_profile_is_named_with_the_field(tmp_path):
    content = json.loads(ModelProfile("Net").to_json())
    (tmp_path / "flopcallback.json").write_text(json.dumps({**content, "batch_size": "2"}))
    (tmp_path / "net.json").write_text(json.dumps({**content, "config": None}))
    with pytest.raises(RunsError, match=r"flopcallback\.json is no profile of flopcallback's: batch_size is '2'"):
        read(tmp_path)
    with pytest.raises(RunsError, match=r"net\.json is no profile of flopcallback's: config is None"):
        read(tmp_path / "net.json")
