"""The TensorBoard adapter, read back from the event files that it writes."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import struct
import sys
from pathlib import Path

import places
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

        self.folder = Path(folder)
        self.events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0, "scalars": 0}).Reload()

    def scalars(self):
        return {
            tag: [(event.step, event.value) for event in self.events.Scalars(tag)]
            for tag in self.events.Tags()["scalars"]
        }

    def notes(self):
        """What only readers of the file see, by step."""
        events = self.events.Tensors("flopcallback") if "flopcallback" in self.events.Tags()["tensors"] else []
        return [(event.step, json.loads(event.tensor_proto.string_val[0])) for event in events]

    def hyperparameters(self):
        return places.hyperparameters_in_tensorboard(self.folder)

    def texts(self, tag):
        tensors = self.events.Tensors(f"{tag}/text_summary")
        return [(event.step, event.tensor_proto.string_val[0].decode()) for event in tensors]

    def text_tags(self):
        return {name.removesuffix("/text_summary") for name in self.events.Tags()["tensors"] if "/text_summary" in name}

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
    tracker.log_scalars({"compute/flops_total": 8}, 2)
    tracker.close()
    assert Read(logger.log_dir).scalars() == {"workload/flops_total": [(2, 8.0)]}
    assert (tmp_path / "lightning_logs" / "version_0" / "flopcallback.json").is_file()


def test_a_tensorboardx_writer_is_written_to_as_well(tmp_path, net):
    import tensorboardX

    writer = tensorboardX.SummaryWriter(str(tmp_path))
    read = logged(writer, net([3, 5]))
    writer.close()
    assert read.text_tags() == {"workload/tree", "workload/modules", "workload/operators"}
    assert ModelProfile.from_json((tmp_path / "flopcallback.json").read_bytes()) == net([3, 5])


def test_charts_are_the_float32_of_their_numbers_and_notes_have_them_exactly(writer):
    tracker = tracker_for(writer)
    tracker.log_scalars({"compute/flops_total": 2**70 + 1, "perf/mfu_pct": 41.7}, 3)
    tracker.log_scalars({"perf/mfu_pct": math.nan, "flops/forward": 1_234_567_891}, 4)
    tracker.close()
    read = Read(writer.get_logdir())
    (mfu, nan) = read.scalars()["workload/mfu_pct"]
    assert read.scalars().keys() == {"workload/mfu_pct", "workload/flops_total"}
    assert read.scalars()["workload/flops_total"] == [(3, as_float32(2**70 + 1))]
    assert mfu == (3, as_float32(41.7))
    assert math.isnan(nan[1])
    assert read.notes() == [
        (3, {"compute/flops_total": 2**70 + 1, "perf/mfu_pct": 41.7}),
        (4, {"perf/mfu_pct": None, "flops/forward": 1_234_567_891}),
    ]


def test_numbers_that_do_not_change_are_hyperparameters_of_the_run_when_it_ends(writer):
    tracker = tracker_for(writer)
    tracker.log_scalars({"flops/forward": 2**70, "latency/step_ms": 2.5, "compute/samples_total": 7}, 0)
    tracker.log_scalars({"compute/estimated_pct": 0.0, "compute/flops_total": 9}, 5)
    assert Read(writer.get_logdir()).hyperparameters() == []
    tracker.close()
    tracker_for(writer).close()
    assert Read(writer.get_logdir()).hyperparameters() == [
        {"flops/forward": float(2**70), "latency/step_ms": 2.5, "compute/estimated_pct": 0.0}
    ]


@pytest.mark.slow
def test_hyperparameters_of_the_users_other_runs_keep_their_columns(tmp_path):
    """As TensorBoard's own backend answers: it takes one run's list of columns, where there is any, for that of all."""
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "ours")) as writer:
        tracker = tracker_for(writer)
        tracker.log_scalars({"flops/forward": 8}, 0)
        tracker.close()
    with SummaryWriter(str(tmp_path / "theirs")) as writer:
        writer.add_hparams({"lr": 0.5}, {}, run_name=".")
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(tmp_path))
    context = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    request = api_pb2.GetExperimentRequest()
    experiment = get_experiment.Handler(RequestContext(), context, "", request).run()
    assert "lr" in {info.name for info in experiment.hparam_infos}


@pytest.mark.lightning
def test_a_logger_that_has_hyperparameters_gets_none_of_ours(tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(str(tmp_path))
    logger.log_hyperparams({"lr": 0.5})
    tracker = tracker_for(logger)
    tracker.log_scalars({"flops/forward": 8}, 0)
    tracker.close()
    assert Read(logger.log_dir).hyperparameters() == [{"lr": 0.5}]


def test_integers_are_exact_in_text_and_file(writer, net):
    profile = net([2**70 + 1, 2**69 + 7])
    read = logged(writer, profile)
    total = f"{2**70 + 2**69 + 8:,}"
    assert total in read.texts("workload/tree")[0][1]
    assert total in read.texts("workload/operators")[0][1]
    with open(f"{writer.get_logdir()}/flopcallback.json", "rb") as file:
        assert ModelProfile.from_json(file.read()) == profile


def test_the_tree_is_the_plain_table_in_a_fenced_block(writer, net):
    ((step, text),) = logged(writer, net([3, 5]), step=7).texts("workload/tree")
    assert step == 7
    assert text == f"```\n{plain_table(net([3, 5]), width=120)}\n```"


def test_backticks_in_a_name_cannot_end_the_block(writer, net):
    ((_, text),) = logged(writer, net([3], names=["```"])).texts("workload/tree")
    assert text.startswith("````\n")
    assert text.endswith("\n````")


def test_figures_are_images_of_a_readable_size_and_the_scatter_waits_for_times(writer, net, timed):
    before = logged(writer, net([3, 5])).images()
    assert set(before) == {"workload/by_module"}
    after = logged(writer, timed(net([3, 5])), step=25).images()
    assert set(after) == {"workload/by_module", "workload/latency"}
    assert all(image.width >= 950 for images in after.values() for image in images)


def test_the_picture_is_not_blank(writer, net):
    (image,) = logged(writer, net([3, 5])).images()["workload/by_module"]
    assert len(image.convert("RGB").getcolors(maxcolors=1 << 24)) > 50


def test_times_reach_the_texts(writer, net, timed):
    read = logged(writer, timed(net([3, 5])))
    assert "forward ms" in read.texts("workload/tree")[0][1]
    assert "forward ms" in read.texts("workload/modules")[0][1]


@pytest.mark.parametrize("count", [0, 1, 2000])
def test_any_number_of_modules_makes_texts_of_bounded_length(writer, net, count):
    read = logged(writer, net(range(1, count + 1)))
    assert read.texts("workload/modules")[0][1].count(": Linear |") == min(count, 20)
    assert len(read.texts("workload/tree")[0][1].splitlines()) < 80
    assert set(read.images()) == {"workload/by_module"}


def test_a_profile_without_any_module_is_logged(writer):
    read = logged(writer, ModelProfile("Nothing"))
    assert "0 FLOPs" in read.texts("workload/tree")[0][1]


def test_any_name_can_be_logged(writer, net, timed):
    names = ["a/b", "卷积|层", "x.y", "$\\alpha$", "__init__", "🙂"]
    read = logged(writer, timed(net([3, 5, 7, 11, 13, 17], names=names)))
    top = read.texts("workload/modules")[0][1]
    assert "卷积\\|层" in top
    assert "\\_\\_init\\_\\_" in top
    rows = [line for line in top.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1


def test_unknown_operators_are_told_with_their_reason(writer, net):
    operators = (OperatorRow("my::op", 3, 0, status="unknown"),)
    read = logged(writer, net([5], operators=operators, unknown={"my::op": "no formula"}))
    assert "| my::op |  | 3 | ? | ? | unknown: no formula |" in read.texts("workload/operators")[0][1]
    assert "forward: >= 5 FLOPs" in read.texts("workload/tree")[0][1]


def test_prefix_and_phase_stand_in_front_of_tags_and_files(writer, net):
    profile = dataclasses.replace(net([3, 5]), phase="validate")
    read = logged(writer, profile, prefix="student/")
    assert read.text_tags() == {f"student/validate/workload/{name}" for name in ("tree", "modules", "operators")}
    assert set(read.images()) == {"student/validate/workload/by_module"}
    with open(f"{writer.get_logdir()}/student-flopcallback-validate.json", "rb") as file:
        assert ModelProfile.from_json(file.read()) == profile
    with open(f"{writer.get_logdir()}/student-flopcallback-validate.html", encoding="utf-8") as file:
        assert "one validate step" in file.read()


def test_a_prefix_stands_before_the_section_and_other_names_are_kept(writer, net):
    tracker = tracker_for(writer, prefix="student/")
    tracker.log_scalars({"student/compute/flops_total": 5, "student/val/loss_by_compute": 0.5}, 0)
    tracker.close()
    assert set(Read(writer.get_logdir()).scalars()) == {"student/workload/flops_total", "student/val/loss_by_compute"}


def test_closing_leaves_the_writer_open_for_its_owner(writer, net):
    tracker_for(writer).close()
    writer.add_scalar("train/loss", 0.5, 1)
    writer.flush()
    assert Read(writer.get_logdir()).scalars() == {"train/loss": [(1, 0.5)]}


def test_the_page_stands_beside_the_events_and_gets_the_times_later(writer, net, timed):
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
    assert [step for step, _ in read.texts("workload/tree")] == [0, 2, 5]
    assert [step for step, _ in logged(writer, net([3, 7]), 9).texts("workload/tree")] == [0, 2, 5, 9]


def test_figures_wait_for_the_times_so_that_the_first_step_does_not_wait_for_figures(writer, net, timed):
    tracker = tracker_for(writer)
    tracker.log_profile(net([3, 5]), 0)
    assert Read(writer.get_logdir()).images() == {}
    assert Read(writer.get_logdir()).text_tags() == {"workload/tree", "workload/modules", "workload/operators"}
    tracker.log_scalars({"latency/forward_ms": 1.5}, 25)
    tracker.log_profile(timed(net([3, 5])), 25)
    assert Read(writer.get_logdir()).image_steps() == {"workload/by_module": [25], "workload/latency": [25]}
    tracker.log_scalars({"compute/flops_total": 7}, 50)
    tracker.close()
    assert Read(writer.get_logdir()).image_steps() == {"workload/by_module": [25], "workload/latency": [25]}


def test_figures_that_get_no_times_come_with_the_numbers_of_a_later_step(writer, net):
    tracker = tracker_for(writer)
    tracker.log_profile(net([3, 5]), 0)
    tracker.log_scalars({"compute/flops_total": 7}, 0)
    assert Read(writer.get_logdir()).images() == {}
    tracker.log_scalars({"compute/flops_total": 8}, 1)
    assert Read(writer.get_logdir()).image_steps() == {"workload/by_module": [0]}


def test_a_profile_whose_page_was_never_written_is_not_taken_for_shown(writer, net):
    tracker_for(writer).log_profile(net([3, 5]), 0)  # and the process is killed
    assert set(logged(writer, net([3, 5]), 1).images()) == {"workload/by_module"}


def test_operators_are_not_written_again_when_times_come(writer, net, timed):
    for step, profile in enumerate([net([3, 5]), timed(net([3, 5])), net([3, 7])]):
        read = logged(writer, profile, step)
    assert [step for step, _ in read.texts("workload/operators")] == [0, 2]
    assert [step for step, _ in read.texts("workload/modules")] == [0, 1, 2]


def test_a_line_of_the_tree_fits_on_the_page(writer, net, timed):
    profile = timed(net([3, 5], names=["encoder" * 12, "head"]))
    ((_, text),) = logged(writer, profile).texts("workload/tree")
    assert max(map(len, text.splitlines())) <= 120
    assert "█" in text


def test_where_there_is_no_file_of_ours_all_is_shown(writer, net):
    logged(writer, net([3, 5]), 0)
    file = Path(writer.get_logdir()) / "flopcallback.json"
    file.write_text("{}")
    logged(writer, net([3, 5]), 1)
    file.unlink()
    assert [step for step, _ in logged(writer, net([3, 5]), 2).texts("workload/tree")] == [0, 1, 2]


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
    assert read.text_tags() == {"workload/tree", "workload/modules", "workload/operators"}
    assert read.images() == {}
    with open(f"{writer.get_logdir()}/flopcallback.html", encoding="utf-8") as file:
        assert "Where the compute goes" in file.read()


def test_the_string_tensorboard_makes_a_writer_as_tensorboard_does_and_closes_it(tmp_path, monkeypatch, net):
    monkeypatch.chdir(tmp_path)
    tracker = tracker_for("tensorboard", prefix="x/")
    tracker.log_scalars({"compute/flops_total": 30}, 2)
    tracker.log_profile(net([30]), 2)
    tracker.close()
    assert tracker.writer.all_writers is None  # closed
    (folder,) = (tmp_path / "runs").iterdir()
    assert Read(folder).scalars() == {"workload/flops_total": [(2, 30.0)]}
    assert (folder / "x-flopcallback.json").exists()


def test_a_writer_that_was_given_stays_open(writer):
    tracker_for(writer).close()
    assert writer.all_writers is not None


def test_without_tensorboard_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match="pip install tensorboard"):
        tracker_for("tensorboard")
