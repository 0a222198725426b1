"""Runs read back from W&B's own offline folders."""

from __future__ import annotations

import math
import re
import struct
import time
import zlib
from pathlib import Path

import pytest
from wandb_files import RunFiles

from flopcallback.runs import RunsError, find_runs
from flopcallback.trackers import tracker_for

pytestmark = [
    pytest.mark.wandb,
    # 2026-11, wandb 0.31: it leaves the temporary folder of a table's artifact to the garbage collector.
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
]


COMPUTE = "compute/flops_total"
STEP = 2**53 + 1
"""FLOPs of a step: more than a browser keeps exactly."""


@pytest.fixture
def start(wandb_folders, tmp_path):
    """Starts a run, as a user would."""
    import wandb

    def started(name=None):
        quiet = {"silent": True, "console": "off", "x_disable_stats": True, "disable_git": True}
        settings = wandb.Settings(**quiet, disable_job_creation=True)
        return wandb.init(dir=tmp_path, mode="offline", project="p", name=name, config={"lr": 0.1}, settings=settings)

    yield started
    wandb.finish()


@pytest.fixture
def train(start, net):
    """Makes a run, as a user's loop would, and gives its folder."""

    def trained(name=None, *, prefix=""):
        run = start(name)
        tracker = tracker_for(run, prefix=prefix)
        profile = net((7, 11), phase="train", config={"flops.peak_tflops": 2})
        tracker.log_scalars({prefix + key: value for key, value in profile.scalars().items()}, 0)
        tracker.log_profile(profile, 0)
        for step in (1, 2, 3):
            if step < 3:
                tracker.log_scalars({f"{prefix}{COMPUTE}": STEP * step}, step)
            run.log({"val/loss": 1 / step if step < 3 else math.nan, "kind": "text"})
        tracker.close()
        run.finish()
        folder = Path(run.dir).parent
        RunFiles(folder)  # another process writes it, and waits for nobody; this waits for that
        return folder

    return trained


def test_an_offline_run_is_read_with_history_summary_and_config(train):
    (found,) = find_runs(train("width 8"))
    run = found.read()
    assert run.name == "width 8"
    assert run.figures["flops/forward"] == 7 + 11
    assert run.figures[COMPUTE] == STEP * 2
    assert run.series[COMPUTE] == ((0, STEP), (1, STEP * 2))
    assert [value for _, value in run.series["val/loss"][:2]] == [1.0, 0.5]
    assert math.isnan(run.figures["val/loss"])
    assert (run.config["flops.peak_tflops"], run.config["lr"]) == (2, 0.1)
    assert run.own_metrics() == {"val/loss"}


def test_a_metric_stands_at_the_compute_of_its_own_row(train):
    from flopcallback.reporting.comparison import metric_against_compute

    (found,) = find_runs(train())
    assert metric_against_compute(found.read(), "val/loss") == [(STEP, 1.0), (STEP * 2, 0.5)]


def test_a_folder_of_runs_has_each_of_them_once(train, tmp_path):
    for name in ("one", "two"):
        train(name)
    assert (tmp_path / "wandb" / "latest-run").is_symlink()
    for place in (tmp_path, tmp_path / "wandb"):
        assert sorted(found.read().name for found in find_runs(place)) == ["one", "two"]


def test_a_prefix_is_found(train):
    (found,) = find_runs(train(prefix="mine/"))
    run = found.read()
    assert run.prefixes() == ["mine/"]
    bare = run.without_prefix("mine/")
    assert (bare.figures["flops/forward"], bare.config["flops.peak_tflops"]) == (7 + 11, 2)
    assert bare.figures[COMPUTE] == STEP * 2


def test_a_log_of_many_blocks_is_read_as_wandb_itself_reads_it(start):
    import wandb
    from flopcallback_wandb.log import records, values

    run = start()
    for step in range(700):
        run.log({"a": step / 7, "b": {"c": step, "d": 2**60 + step}, "text": "x" * (step % 311), "flag": True})
    run.log({"table": wandb.Table(columns=["x"], data=[["y" * 70_000]]), "inf": -math.inf})
    run.log({"long": "z" * 100_000})
    run.finish()
    read = RunFiles(Path(run.dir).parent)
    (log,) = read.folder.glob("run-*.wandb")
    rows = [values(record.history.item) for record in records(log) if record.WhichOneof("record_type") == "history"]
    assert log.stat().st_size > 5 * 32768
    assert len(rows) == 702
    assert [{**row, "inf": str(row["inf"])} if "inf" in row else row for row in rows] == [
        {**row, "inf": "-inf"} if "inf" in row else row for row in read.rows
    ]


def test_a_run_that_was_cut_off_is_read_as_far_as_it_goes(train):
    folder = train()
    (log,) = folder.glob("run-*.wandb")
    log.write_bytes(log.read_bytes()[:-40])
    (found,) = find_runs(folder)
    assert found.read().figures["flops/forward"] == 7 + 11


def test_a_log_that_is_none_is_said(tmp_path, wandb_folders):
    folder = tmp_path / "offline-run-1"
    folder.mkdir()
    (folder / "run-1.wandb").write_text("nothing of the kind, at some length")
    (found,) = find_runs(folder)
    with pytest.raises(RunsError, match=r"run-1\.wandb is no log of W&B's"):
        found.read()


# --- Damage -----------------------------------------------------------------------------------------------------------


def log_of(folder):
    (log,) = folder.glob("run-*.wandb")
    return log


def test_a_byte_that_changed_is_said_with_its_place(train):
    log = log_of(train())
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 0xFF
    log.write_bytes(content)
    (found,) = find_runs(log.parent)
    with pytest.raises(RunsError, match=r"run-\w+\.wandb is damaged at byte \d+$"):
        found.read()


def test_zeros_at_the_end_are_what_a_file_system_leaves(train):
    log = log_of(train())
    before = log.read_bytes()
    log.write_bytes(before + bytes(100_000))
    (found,) = find_runs(log.parent)
    assert found.read().figures["flops/forward"] == 7 + 11
    log.write_bytes(before[:-20] + bytes(100_000))
    (found,) = find_runs(log.parent)
    with pytest.raises(RunsError, match="is damaged at byte"):
        found.read()


def piece(kind, data):
    """A piece as W&B writes it: the checksum is over the kind and the data."""
    return struct.pack("<IHB", zlib.crc32(bytes([kind]) + data), len(data), kind) + data


def whole(*records):
    """A log of these records, each in one piece, in one block."""
    return b":W&B\xe1\xbe\x00" + b"".join(piece(1, record.SerializeToString()) for record in records)


@pytest.mark.parametrize(
    ("kinds", "is_read"),
    [((1,), True), ((2, 4), True), ((2, 3, 3, 4), True), ((2,), True), ((4,), False), ((3,), False), ((2, 1), False)],
)
def test_pieces_make_records_in_their_order_alone(tmp_path, kinds, is_read):
    log = tmp_path / "run-1.wandb"
    log.write_bytes(b":W&B\xe1\xbe\x00" + b"".join(piece(kind, b"") for kind in (1, *kinds)))
    (found,) = find_runs(tmp_path)
    if is_read:
        # A last record that has no end yet is none.
        assert found.read().figures == {}
    else:
        with pytest.raises(RunsError, match=r"run-1\.wandb is damaged: a piece of a record is missing before byte"):
            found.read()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"x"', None),
        ("0.5", None),
        ("NaN", None),
        ("1" + "0" * 400, "val/loss is 1000"),
        ("[" * 5000, "record 1: a value is no JSON"),
        ("{", "record 1: a value is no JSON"),
        ("\ud83d", "record 1: a value is no JSON"),
    ],
)
def test_a_value_that_is_none_is_said(tmp_path, text, said):
    from wandb.proto.wandb_internal_pb2 import Record

    record = Record()
    item = record.history.item.add(key="val/loss")
    item.value_json = text.encode("ascii", "replace").decode()
    (tmp_path / "run-1.wandb").write_bytes(whole(record))
    (found,) = find_runs(tmp_path)
    if said is None:
        found.read()
    else:
        with pytest.raises(RunsError, match=re.escape(said)):
            found.read()


@pytest.mark.parametrize("step", ['"3"', "3.5", "true", "null", "[3]"])
def test_a_step_that_is_no_whole_number_is_said(tmp_path, step):
    from wandb.proto.wandb_internal_pb2 import Record

    record = Record()
    record.history.item.add(key="_step", value_json=step)
    record.history.item.add(key="val/loss", value_json="0.5")
    (tmp_path / "run-1.wandb").write_bytes(whole(record))
    (found,) = find_runs(tmp_path)
    with pytest.raises(RunsError, match=r"a step is .*, which is no whole number"):
        found.read()


def test_a_record_of_many_pieces_is_read_in_time_that_grows_with_its_length(tmp_path):
    """Four times the length takes four times as long; pieces that are joined one by one take sixteen times."""
    from flopcallback_wandb.log import records
    from wandb.proto.wandb_internal_pb2 import Record

    def seconds(length):
        record = Record()
        record.history.item.add(key="a", value_json=f'"{"x" * length}"')
        content, message, at = bytearray(b":W&B\xe1\xbe\x00"), record.SerializeToString(), 0
        while at < len(message):
            end = at + 32768 - len(content) % 32768 - 7
            content += piece(4 if end >= len(message) else 3 if at else 2, message[at:end])
            at = end
        (tmp_path / "run-1.wandb").write_bytes(content)
        begin = time.process_time()
        (read,) = records(tmp_path / "run-1.wandb")
        assert len(read.history.item[0].value_json) == length + 2
        return time.process_time() - begin

    # Of several tries the best: other work on the machine makes single ones slower.
    assert any(seconds(4 * 10**7) < 10 * seconds(10**7) for _ in range(5))


@pytest.mark.parametrize("content", [b"", b":W&B\xe1\xbe\x00", b":W&B\xe1\xbe\x00" + bytes(70)])
def test_a_log_with_no_record_in_it_is_no_run_yet(tmp_path, content):
    log = tmp_path / "offline-run-1" / "run-1.wandb"
    log.parent.mkdir()
    log.write_bytes(content)
    (found,) = find_runs(tmp_path)
    with pytest.raises(RunsError, match=rf"^{log}: nothing is in it yet$"):
        found.read()


def test_digits_that_python_does_not_read_are_refused_in_own_words(start):
    run = start()
    run.summary["flops/forward_exact"] = "9" * 5000
    run.finish()
    (found,) = find_runs(Path(run.dir).parent)
    with pytest.raises(RunsError, match="flops/forward_exact has 5,000 digits, too many to be a number of a training"):
        found.read()
