from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from flopcallback import trackers
from flopcallback.reporting import ModelProfile, html_page
from flopcallback.trackers import LocalTracker, MemoryTracker, NoTrackerError, Tracker, tracker_for


class Made(MemoryTracker):
    """What the entries of these tests load to: remembers what it was made from."""

    def __init__(self, target, *, prefix=""):
        super().__init__()
        self.target, self.prefix = target, prefix


class MadeElsewhere(Made):
    pass


@pytest.fixture
def announce(monkeypatch):
    """Announces trackers under these names, as installed distributions would."""

    def announced(**factories):
        entries = EntryPoints(
            EntryPoint(name.replace("__", "."), f"{factory.__module__}:{factory.__qualname__}", trackers.GROUP)
            for name, factory in factories.items()
        )
        monkeypatch.setattr("flopcallback.trackers.discovery.entry_points", lambda group: entries.select(group=group))
        monkeypatch.setitem(sys.modules, Made.__module__, sys.modules[__name__])

    return announced


def instance_of(module, *bases, **attributes):
    """An object whose class is defined in `module`."""
    return type("Thing", bases, {"__module__": module, **attributes})()


def test_an_object_finds_the_tracker_named_after_its_package(announce):
    announce(acme=Made)
    run = instance_of("acme.sdk.run")
    tracker = tracker_for(run, prefix="student/")
    assert isinstance(tracker, Made)
    assert tracker.target is run
    assert tracker.prefix == "student/"


def test_a_subclass_finds_the_tracker_of_its_base(announce):
    announce(acme=Made)
    own = type(instance_of("my_project.logging", type(instance_of("acme.sdk.run"))))()
    assert isinstance(tracker_for(own), Made)


def test_the_innermost_package_that_is_announced_wins(announce):
    announce(big=Made, big__utils__board=MadeElsewhere)
    assert type(tracker_for(instance_of("big.utils.board.writer"))) is MadeElsewhere
    assert type(tracker_for(instance_of("big.utils.other"))) is Made


def test_a_package_is_matched_by_its_whole_name(announce):
    announce(acme=Made)
    with pytest.raises(NoTrackerError):
        tracker_for(instance_of("acme_fork.run"))
    with pytest.raises(NoTrackerError):
        tracker_for(instance_of("my.acme.run"))


def test_a_logger_is_taken_by_its_experiment_and_handed_over_itself(announce):
    announce(acme=Made)
    logger = instance_of("lightning.pytorch.loggers.acme", experiment=instance_of("acme.run"))
    assert tracker_for(logger).target is logger


def test_a_package_can_be_asked_for_by_name(announce):
    announce(acme=Made)
    assert tracker_for("acme").target == "acme"


def test_a_tracker_is_given_back_as_it_is():
    tracker = MemoryTracker()
    assert tracker_for(tracker) is tracker


def test_any_object_with_the_three_methods_is_a_tracker():
    class Own:
        def log_scalars(self, values, step): ...
        def log_profile(self, profile, step): ...
        def close(self): ...

    own = Own()
    assert tracker_for(own) is own


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_gets_files(tmp_path, kind):
    tracker = tracker_for(kind(tmp_path / "report"))
    assert isinstance(tracker, LocalTracker)
    assert tracker.folder == tmp_path / "report"


def test_what_nothing_takes_is_named_with_the_way_out(announce):
    announce(acme=Made, zenith=Made)
    with pytest.raises(NoTrackerError, match=r"no tracker takes a builtins\.float \(3\.5\)") as error:
        tracker_for(3.5)
    assert "these packages: acme, zenith" in str(error.value)
    assert "Or give a folder (a Path, or a string such as './runs'), or an object with log_scalars" in str(error.value)


@pytest.mark.parametrize("name", ["zenith", "acmee", "torch.utils.board"])
def test_a_name_that_nobody_announces_is_no_folder(announce, tmp_path, monkeypatch, name):
    announce(acme=Made)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoTrackerError, match=rf"no tracker takes a builtins\.str \('{name}'\)") as error:
        tracker_for(name)
    assert "these packages: acme." in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["./runs", "runs/", Path("runs")])
def test_a_path_without_parents_is_a_folder_where_it_says_so(announce, folder):
    announce(acme=Made)
    assert tracker_for(folder).folder == Path("runs")


def test_a_tracker_that_cannot_be_loaded_is_no_unknown_object(announce):
    announce(acme=Made)
    trackers_found = EntryPoints([EntryPoint("acme", "no_such_package_at_all:Tracker", trackers.GROUP)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flopcallback.trackers.discovery.entry_points", lambda group: trackers_found.select(group=group))
        with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
            tracker_for(instance_of("acme.run"))


def test_both_built_in_trackers_keep_the_protocol(tmp_path):
    assert isinstance(MemoryTracker(), Tracker)
    assert isinstance(LocalTracker(tmp_path), Tracker)
    assert not isinstance(object(), Tracker)


def test_the_memory_tracker_keeps_what_it_is_given(net):
    tracker, values, profile = MemoryTracker(), {"a/b": 1}, net([3, 5])
    tracker.log_scalars(values, 7)
    values["a/b"] = 2
    tracker.log_profile(profile, 8)
    tracker.close()
    assert tracker.scalars == [(7, {"a/b": 1})]
    assert tracker.profiles == [(8, profile)]
    assert tracker.closed


def scalars_in(folder):
    return [json.loads(line) for line in (folder / "scalars.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_folder_keeps_scalars_line_by_line_and_exactly(tmp_path):
    tracker = LocalTracker(tmp_path / "deep" / "report")
    tracker.log_scalars({"flops/forward": 2**80 + 1, "perf/mfu_pct": 41.5}, 3)
    tracker.log_scalars({"bad": float("nan"), "worse": float("-inf")}, 4)
    tracker.close()
    assert scalars_in(tracker.folder) == [
        {"step": 3, "flops/forward": 2**80 + 1, "perf/mfu_pct": 41.5},
        {"step": 4, "bad": None, "worse": None},
    ]


def test_a_second_run_into_the_same_folder_replaces_the_numbers_of_the_first(tmp_path):
    for run in ("first", "second"):
        tracker = LocalTracker(tmp_path)
        for step in (0, 25):
            tracker.log_scalars({run: step}, step)
    assert scalars_in(tmp_path) == [{"step": 0, "second": 0}, {"step": 25, "second": 25}]


def test_numbers_that_json_cannot_hold_leave_an_earlier_file_alone(tmp_path):
    LocalTracker(tmp_path).log_scalars({"a": 1}, 0)
    with pytest.raises(TypeError):
        LocalTracker(tmp_path).log_scalars({"a": 1}, object())
    assert scalars_in(tmp_path) == [{"step": 0, "a": 1}]


@pytest.mark.parametrize("count", [0, 1, 2000])
def test_a_folder_keeps_a_profile_as_json_page_text_and_markdown(tmp_path, net, count):
    profile = net(range(1, count + 1))
    LocalTracker(tmp_path).log_profile(profile, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "flopcallback.html",
        "flopcallback.json",
        "flopcallback.md",
        "flopcallback.txt",
    ]
    assert ModelProfile.from_json((tmp_path / "flopcallback.json").read_bytes()) == profile
    assert "Net, one train step" in (tmp_path / "flopcallback.txt").read_text(encoding="utf-8")
    assert (tmp_path / "flopcallback.html").read_text(encoding="utf-8") == html_page(profile) + "\n"
    markdown = (tmp_path / "flopcallback.md").read_text(encoding="utf-8")
    assert markdown.startswith("# Net at step 5")
    assert markdown.count("| Linear |") == count
    assert "aten::linear" in markdown


def test_each_phase_has_files_of_its_own(tmp_path, net):
    tracker = LocalTracker(tmp_path)
    tracker.log_profile(net([3]), 0)
    tracker.log_profile(dataclasses.replace(net([5]), phase="validate"), 0)
    read = {path.stem: ModelProfile.from_json(path.read_bytes()) for path in tmp_path.glob("*.json")}
    assert {stem: profile.forward_flops for stem, profile in read.items()} == {
        "flopcallback": 3,
        "flopcallback-validate": 5,
    }


def test_a_profile_that_was_measured_later_replaces_the_first(tmp_path, net, timed):
    tracker = LocalTracker(tmp_path)
    tracker.log_profile(net([3, 5]), 1)
    tracker.log_profile(timed(net([3, 5])), 25)
    assert ModelProfile.from_json((tmp_path / "flopcallback.json").read_bytes()).forward_ms == 1.0
    assert "1.00 ms" in (tmp_path / "flopcallback.html").read_text(encoding="utf-8")


def test_no_folder_is_made_before_there_is_something_to_write(tmp_path):
    LocalTracker(tmp_path / "later").close()
    assert list(tmp_path.iterdir()) == []


def test_entry_points_are_read_when_a_tracker_is_looked_for_and_not_before():
    script = (
        "import importlib.metadata\n"
        "read = []\n"
        "importlib.metadata.entry_points = lambda **select: read.append(select.get('group')) or ()\n"
        "import flopcallback.trackers\n"
        "assert 'flopcallback.trackers' not in read\n"
        "flopcallback.trackers.tracker_for('./folder')\n"
        "assert 'flopcallback.trackers' in read\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
