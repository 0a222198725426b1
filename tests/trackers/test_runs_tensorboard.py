"""Runs read back from real event files."""

from __future__ import annotations

import pytest

from flopcallback.runs import RunsError, find_runs
from flopcallback.trackers import tracker_for

pytestmark = pytest.mark.tensorboard

COMPUTE = "compute/flops_total"


@pytest.fixture
def train(net):
    """Leaves in a folder what a training leaves there, with the user's loss beside it."""
    from torch.utils.tensorboard import SummaryWriter

    def trained(folder, *, prefix=""):
        writer = SummaryWriter(str(folder))
        tracker = tracker_for(writer, prefix=prefix)
        profile = net((2**25 + 1, 11), phase="train", config={"flops.peak_tflops": 2})
        tracker.log_scalars({prefix + name: value for name, value in profile.scalars().items()}, 0)
        tracker.log_profile(profile, 0)
        for step in (10, 20):
            tracker.log_scalars({f"{prefix}{COMPUTE}": 2**20 * step}, step)
            writer.add_scalar("val/loss", 1 / 2**step, step)
        writer.close()
        return folder

    return trained


def test_a_run_has_its_scalars_and_the_exact_integers_of_the_file_beside_them(train, tmp_path):
    (found,) = find_runs(train(tmp_path / "width-8"))
    run = found.read()
    assert run.name == "width-8"
    assert run.figures["flops/forward"] == 2**25 + 1 + 11  # a float32 would be 4 less
    assert run.series[COMPUTE] == ((10, 2**20 * 10), (20, 2**20 * 20))
    assert run.series["val/loss"] == ((10, 1 / 2**10), (20, 1 / 2**20))
    assert run.config["flops.peak_tflops"] == 2


def test_every_folder_with_events_is_a_run_and_is_found_once(train, tmp_path):
    for name in ("a", "b/0"):
        train(tmp_path / name)
    assert [found.read().name for found in find_runs(tmp_path)] == ["a", "b/0"]


@pytest.mark.parametrize("prefix", ["mine/", "mine."])
def test_a_prefix_is_found_in_events_and_file(train, tmp_path, prefix):
    (found,) = find_runs(train(tmp_path / "net", prefix=prefix))
    run = found.read()
    assert run.prefixes() == [prefix]
    bare = run.without_prefix(prefix)
    assert bare.figures["flops/forward"] == 2**25 + 1 + 11
    assert bare.config["flops.peak_tflops"] == 2
    assert bare.own_metrics() == {"val/loss"}


def test_more_than_ten_thousand_points_are_all_read(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(10_007):
            writer.add_scalar("loss", 1.0, step)
    (found,) = find_runs(tmp_path)
    assert len(found.read().series["loss"]) == 10_007


def test_scalars_in_the_newer_form_are_read(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("val/loss", 0.5, 3, new_style=True)
    (found,) = find_runs(tmp_path)
    assert found.read().series["val/loss"] == ((3, 0.5),)


def test_a_file_beside_the_events_that_is_no_profile_is_said(train, tmp_path):
    (train(tmp_path) / "flopcallback.json").write_text("{}")
    (found,) = find_runs(tmp_path)
    with pytest.raises(RunsError, match=r"flopcallback\.json is no profile"):
        found.read()


# --- Damage -----------------------------------------------------------------------------------------------------------


def events_of(folder):
    (events,) = folder.glob("*tfevents*")
    return events


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.9])
def test_a_byte_that_changed_is_said_with_its_place(train, tmp_path, place):
    """TensorBoard stops there without a word, and what came before would pass for the whole run."""
    events = events_of(train(tmp_path))
    content = bytearray(events.read_bytes())
    content[int(place * len(content))] ^= 0xFF
    events.write_bytes(content)
    (found,) = find_runs(tmp_path)
    with pytest.raises(RunsError, match=r"tfevents.* is damaged at byte \d+$"):
        found.read()


def test_a_run_that_was_cut_off_is_read_as_far_as_it_goes(train, tmp_path):
    events = events_of(train(tmp_path))
    whole = events.read_bytes()
    for content, points in ((whole[:-1], 1), (whole[:-1] + b"", 1), (whole + bytes(70_000), 2), (whole + b"\x07", 2)):
        events.write_bytes(content)
        (found,) = find_runs(tmp_path)
        assert len(found.read().series["val/loss"]) == points


@pytest.mark.parametrize("content", [b"", b"\x18\0\0\0", bytes(700)])
def test_a_file_with_no_event_in_it_is_no_run_yet(train, tmp_path, content):
    train(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "events.out.tfevents.1").write_bytes(content)
    whole, empty = find_runs(tmp_path)
    assert whole.read().name == "a"
    with pytest.raises(RunsError, match=rf"^{tmp_path}/b: nothing is in its files of events yet$"):
        empty.read()
