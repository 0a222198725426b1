"""The TensorBoard adapter, read back from the event files that it writes."""

from __future__ import annotations

import dataclasses
import io
import math
import struct
import sys

import pytest

from flopcallback.reporting import ModelProfile, OperatorRow, StepFlops, html_page, plain_table
from flopcallback.trackers import Tracker, tracker_for

pytestmark = pytest.mark.tensorboard


def as_float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


class Read:
    """What TensorBoard would find in a folder."""

    def __init__(self, folder):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        self.events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0, "scalars": 0}).Reload()

    def scalars(self):
        return {
            tag: [(event.step, event.value) for event in self.events.Scalars(tag)]
            for tag in self.events.Tags()["scalars"]
        }

    def texts(self, tag):
        tensors = self.events.Tensors(f"{tag}/text_summary")
        return [(event.step, event.tensor_proto.string_val[0].decode()) for event in tensors]

    def text_tags(self):
        return {tag.removesuffix("/text_summary") for tag in self.events.Tags()["tensors"]}

    def images(self):
        from PIL import Image

        return {
            tag: [Image.open(io.BytesIO(event.encoded_image_string)) for event in self.events.Images(tag)]
            for tag in self.events.Tags()["images"]
        }

    def image_steps(self):
        return {tag: [event.step for event in self.events.Images(tag)] for tag in self.events.Tags()["images"]}


@pytest.fixture
def writer(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "run")) as made:
        yield made


def logged(writer, profile, step=0, prefix=""):
    """The profile written and read back."""
    tracker = tracker_for(writer, prefix=prefix)
    tracker.log_profile(profile, step)
    tracker.close()
    return Read(getattr(writer, "log_dir", None) or writer.logdir)


def test_a_summary_writer_finds_its_tracker(writer):
    from flopcallback_tensorboard import TensorBoardTracker

    assert isinstance(tracker_for(writer), TensorBoardTracker)
    assert isinstance(tracker_for(writer), Tracker)


@pytest.mark.lightning
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_lightnings_logger_of_either_name_writes_into_its_own_run(tmp_path, net, package):
    loggers = pytest.importorskip(f"{package}.loggers")
    logger = loggers.TensorBoardLogger(str(tmp_path))
    tracker = tracker_for(logger)
    tracker.log_profile(net([3, 5]), 2)
    tracker.log_scalars({"flops/forward": 8}, 2)
    tracker.close()
    assert Read(logger.log_dir).scalars() == {"flops/forward": [(2, 8.0)]}
    assert (tmp_path / "lightning_logs" / "version_0" / "flopcallback.json").is_file()


def test_a_tensorboardx_writer_is_written_to_as_well(tmp_path, net):
    import tensorboardX

    writer = tensorboardX.SummaryWriter(str(tmp_path))
    read = logged(writer, net([3, 5]))
    writer.close()
    assert read.text_tags() == {"flops/tree", "flops/modules", "flops/operators"}
    assert ModelProfile.from_json((tmp_path / "flopcallback.json").read_bytes()) == net([3, 5])


def test_scalars_are_the_float32_of_their_integers(writer):
    values = {"flops/forward": 1_234_567_891, "compute/flops_total": 2**70 + 1, "perf/mfu_pct": 41.7}
    tracker = tracker_for(writer)
    tracker.log_scalars(values, 3)
    tracker.log_scalars({"perf/mfu_pct": math.nan}, 4)
    tracker.close()
    read = Read(writer.get_logdir()).scalars()
    assert {tag: points[0] for tag, points in read.items()} == {
        tag: (3, as_float32(value)) for tag, value in values.items()
    }
    assert math.isnan(read["perf/mfu_pct"][1][1])


def test_integers_are_exact_in_text_and_file(writer, net):
    profile = net([2**70 + 1, 2**69 + 7])
    read = logged(writer, profile)
    total = f"{2**70 + 2**69 + 8:,}"
    assert total in read.texts("flops/tree")[0][1]
    assert total in read.texts("flops/operators")[0][1]
    with open(f"{writer.get_logdir()}/flopcallback.json", "rb") as file:
        assert ModelProfile.from_json(file.read()) == profile


def test_the_tree_is_the_plain_table_in_a_fenced_block(writer, net):
    ((step, text),) = logged(writer, net([3, 5]), step=7).texts("flops/tree")
    assert step == 7
    assert text == f"```\n{plain_table(net([3, 5]), width=120)}\n```"


def test_backticks_in_a_name_cannot_end_the_block(writer, net):
    ((_, text),) = logged(writer, net([3], names=["```"])).texts("flops/tree")
    assert text.startswith("````\n")
    assert text.endswith("\n````")


def test_figures_are_images_of_a_readable_size_and_the_scatter_waits_for_times(writer, net, timed):
    before = logged(writer, net([3, 5])).images()
    assert set(before) == {"flops/by_module"}
    after = logged(writer, timed(net([3, 5])), step=25).images()
    assert set(after) == {"flops/by_module", "flops/latency"}
    assert all(image.width > 950 for images in after.values() for image in images)


def test_the_picture_is_not_blank(writer, net):
    (image,) = logged(writer, net([3, 5])).images()["flops/by_module"]
    assert len(image.convert("RGB").getcolors(maxcolors=1 << 24)) > 50


def test_times_reach_the_texts(writer, net, timed):
    read = logged(writer, timed(net([3, 5])))
    assert "forward ms" in read.texts("flops/tree")[0][1]
    assert "forward ms" in read.texts("flops/modules")[0][1]


@pytest.mark.parametrize("count", [0, 1, 2000])
def test_any_number_of_modules_makes_texts_of_bounded_length(writer, net, count):
    read = logged(writer, net(range(1, count + 1)))
    assert read.texts("flops/modules")[0][1].count(": Linear |") == min(count, 20)
    assert len(read.texts("flops/tree")[0][1].splitlines()) < 80
    assert set(read.images()) == {"flops/by_module"}


def test_a_profile_without_any_module_is_logged(writer):
    read = logged(writer, ModelProfile("Nothing"))
    assert "0 FLOPs" in read.texts("flops/tree")[0][1]


def test_any_name_can_be_logged(writer, net, timed):
    names = ["a/b", "卷积|层", "x.y", "$\\alpha$", "__init__", "🙂"]
    read = logged(writer, timed(net([3, 5, 7, 11, 13, 17], names=names)))
    top = read.texts("flops/modules")[0][1]
    assert "卷积\\|层" in top
    assert "\\_\\_init\\_\\_" in top
    rows = [line for line in top.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1


def test_unknown_operators_are_told_with_their_reason(writer, net):
    operators = (OperatorRow("my::op", 3, 0, status="unknown"),)
    read = logged(writer, net([5], operators=operators, unknown={"my::op": "no formula"}))
    assert "| my::op |  | 3 | ? | ? | unknown: no formula |" in read.texts("flops/operators")[0][1]
    assert "forward: >= 5 FLOPs" in read.texts("flops/tree")[0][1]


def test_prefix_and_phase_stand_in_front_of_tags_and_files(writer, net):
    profile = dataclasses.replace(net([3, 5]), phase="validate")
    read = logged(writer, profile, prefix="student/")
    assert read.text_tags() == {f"student/validate/flops/{name}" for name in ("tree", "modules", "operators")}
    assert set(read.images()) == {"student/validate/flops/by_module"}
    with open(f"{writer.get_logdir()}/student-flopcallback-validate.json", "rb") as file:
        assert ModelProfile.from_json(file.read()) == profile
    with open(f"{writer.get_logdir()}/student-flopcallback-validate.html", encoding="utf-8") as file:
        assert "one validate step" in file.read()


def test_scalars_keep_the_names_that_they_are_given(writer, net):
    tracker = tracker_for(writer, prefix="student/")
    tracker.log_scalars({"student/flops/forward": 5}, 0)
    tracker.close()
    assert set(Read(writer.get_logdir()).scalars()) == {"student/flops/forward"}


def test_closing_leaves_the_writer_open_for_its_owner(writer, net):
    tracker_for(writer).close()
    writer.add_scalar("train/loss", 0.5, 1)
    writer.flush()
    assert Read(writer.get_logdir()).scalars() == {"train/loss": [(1, 0.5)]}


def test_the_page_stands_beside_the_events_and_gets_the_times_later(writer, net, timed):
    from pathlib import Path

    page = Path(writer.get_logdir()) / "flopcallback.html"
    logged(writer, net([3, 5]))
    assert page.read_text(encoding="utf-8") == html_page(net([3, 5])) + "\n"
    logged(writer, timed(net([3, 5])), step=25)
    assert page.read_text(encoding="utf-8") == html_page(timed(net([3, 5]))) + "\n"


def test_what_the_folder_shows_is_not_shown_again_and_more_of_it_is(writer, net, timed):
    counted = net([3, 5], config={"flops.peak_tflops": 1.25})
    again = net([3, 5], config={"flops.peak_tflops": 1.5})
    whole = timed(again).with_step({"": StepFlops(forward=16, backward=32)})
    for step, profile in enumerate([counted, again, timed(counted), timed(again), counted, whole, timed(again), whole]):
        read = logged(writer, profile, step)
    assert [step for step, _ in read.texts("flops/tree")] == [0, 2, 5]
    assert [step for step, _ in logged(writer, net([3, 7]), 9).texts("flops/tree")] == [0, 2, 5, 9]


def test_figures_wait_for_the_times_so_that_the_first_step_does_not_wait_for_figures(writer, net, timed):
    tracker = tracker_for(writer)
    tracker.log_profile(net([3, 5]), 0)
    assert Read(writer.get_logdir()).images() == {}
    assert Read(writer.get_logdir()).text_tags() == {"flops/tree", "flops/modules", "flops/operators"}
    tracker.log_scalars({"latency/forward_ms": 1.5}, 25)
    tracker.log_profile(timed(net([3, 5])), 25)
    assert Read(writer.get_logdir()).image_steps() == {"flops/by_module": [25], "flops/latency": [25]}
    tracker.log_scalars({"compute/flops_total": 7}, 50)
    tracker.close()
    assert Read(writer.get_logdir()).image_steps() == {"flops/by_module": [25], "flops/latency": [25]}


def test_figures_that_get_no_times_come_with_the_numbers_of_a_later_step(writer, net):
    tracker = tracker_for(writer)
    tracker.log_profile(net([3, 5]), 0)
    tracker.log_scalars({"compute/flops_total": 7}, 0)
    assert Read(writer.get_logdir()).images() == {}
    tracker.log_scalars({"compute/flops_total": 8}, 1)
    assert Read(writer.get_logdir()).image_steps() == {"flops/by_module": [0]}


def test_a_profile_whose_page_was_never_written_is_not_taken_for_shown(writer, net):
    tracker_for(writer).log_profile(net([3, 5]), 0)  # and the process is killed
    assert set(logged(writer, net([3, 5]), 1).images()) == {"flops/by_module"}


def test_operators_are_not_written_again_when_times_come(writer, net, timed):
    for step, profile in enumerate([net([3, 5]), timed(net([3, 5])), net([3, 7])]):
        read = logged(writer, profile, step)
    assert [step for step, _ in read.texts("flops/operators")] == [0, 2]
    assert [step for step, _ in read.texts("flops/modules")] == [0, 1, 2]


def test_a_line_of_the_tree_fits_on_the_page(writer, net, timed):
    profile = timed(net([3, 5], names=["encoder" * 12, "head"]))
    ((_, text),) = logged(writer, profile).texts("flops/tree")
    assert max(map(len, text.splitlines())) <= 120
    assert "█" in text


def test_where_there_is_no_file_of_ours_all_is_shown(writer, net):
    from pathlib import Path

    logged(writer, net([3, 5]), 0)
    file = Path(writer.get_logdir()) / "flopcallback.json"
    file.write_text("{}")
    logged(writer, net([3, 5]), 1)
    file.unlink()
    assert [step for step, _ in logged(writer, net([3, 5]), 2).texts("flops/tree")] == [0, 1, 2]


def test_nothing_is_written_beside_events_in_a_bucket(writer, net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writer, "log_dir", "gs://bucket/run")
    tracker_for(writer).log_profile(net([3]), 0)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_no_writer_is_refused_with_the_way_out(tmp_path, monkeypatch):
    from flopcallback_tensorboard import TensorBoardTracker

    with pytest.raises(TypeError, match=r"'tensorboardX' is no SummaryWriter .*SummaryWriter\(folder\); 'tensorboard'"):
        TensorBoardTracker("tensorboardX")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match="is no SummaryWriter"):
        tracker_for("tensorboardX")
    assert not list(tmp_path.iterdir())


def test_texts_and_files_are_there_even_where_figures_cannot_be_drawn(writer, net, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    tracker = tracker_for(writer)
    tracker.log_profile(net([3, 5]), 0)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        tracker.close()
    read = Read(writer.get_logdir())
    assert read.text_tags() == {"flops/tree", "flops/modules", "flops/operators"}
    assert read.images() == {}
    with open(f"{writer.get_logdir()}/flopcallback.html", encoding="utf-8") as file:
        assert "Where the compute goes" in file.read()


def test_the_string_tensorboard_makes_a_writer_as_tensorboard_does_and_closes_it(tmp_path, monkeypatch, net):
    monkeypatch.chdir(tmp_path)
    tracker = tracker_for("tensorboard", prefix="x/")
    tracker.log_scalars({"flops/forward": 30}, 2)
    tracker.log_profile(net([30]), 2)
    tracker.close()
    assert tracker.writer.all_writers is None  # closed
    (folder,) = (tmp_path / "runs").iterdir()
    assert Read(folder).scalars() == {"flops/forward": [(2, 30.0)]}
    assert (folder / "x-flopcallback.json").exists()


def test_a_writer_that_was_given_stays_open(writer):
    tracker_for(writer).close()
    assert writer.all_writers is not None


def test_without_tensorboard_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match="pip install tensorboard"):
        tracker_for("tensorboard")
