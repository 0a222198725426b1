"""One contract for every tracker: the calls that the recorder makes, and what stands in the tracker afterwards."""

from __future__ import annotations

import dataclasses
import gc
import math
from contextlib import contextmanager

import mlflow_stores as stores
import places
import pytest

from flopcallback.reporting import LatencySummary, ModelProfile, ModuleRow, OperatorRow, StepFlops, html_page
from flopcallback.trackers import tracker_for

pytestmark = [
    # 2026-11, mlflow 3.17 on SQLAlchemy 2.1: its own tables, when they are first imported.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]


ADAPTERS = [
    pytest.param("tensorboard", marks=pytest.mark.tensorboard),
    pytest.param("wandb", marks=pytest.mark.wandb),
    pytest.param("mlflow-server", marks=pytest.mark.mlflow),
]
KEEPERS = [
    *ADAPTERS,
    pytest.param("tensorboardX", marks=pytest.mark.tensorboard),
    pytest.param("mlflow-sqlite", marks=pytest.mark.mlflow),
    "folder",
]
"""Those that write somewhere, other than to memory."""


@pytest.fixture(scope="module", autouse=True)
def apart(tmp_path_factory):
    """What trackers would write elsewhere stays in a folder of the tests'."""
    folder = tmp_path_factory.mktemp("apart")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
            patch.setenv(name, str(folder / name))
        patch.setenv("WANDB_MODE", "offline")
        patch.chdir(folder)
        yield
    gc.collect()  # Here, and not in a test of another file: W&B leaves folders to the collector.


@contextmanager
def opened(kind, folder, request):
    """A new place of this kind."""
    if kind == "folder":
        yield places.folder(folder)
    elif kind == "memory":
        yield places.memory()
    elif kind == "wandb":
        place = places.wandb(folder)
        yield place
        place.target.finish()
    elif kind.startswith("mlflow"):
        address = request.getfixturevalue(kind.removeprefix("mlflow-"))
        yield places.mlflow(stores.Run(address, folder))
    else:
        writer_of = {"tensorboard": torch_writer, "tensorboardX": x_writer}[kind]
        with writer_of(str(folder)) as writer:
            yield places.tensorboard(folder, writer)


def torch_writer(folder):
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder)


def x_writer(folder):
    from tensorboardX import SummaryWriter

    return SummaryWriter(folder)


def fit(place, profile, timed, *, step=0, others=(), numbers=()):
    """What the recorder does in a training, with a tracker of its own: `step` is the counted one, times come 25 later.

    `others` are profiles of evaluations, `numbers` what is logged as it goes on.
    """
    tracker, scalars = tracker_for(place.target), profile.scalars()
    tracker.log_scalars(scalars, step)
    tracker.log_profile(profile, step)
    place.log_own(step)
    tracker.log_scalars({name: value for name, value in timed.scalars().items() if name not in scalars}, step + 25)
    tracker.log_profile(timed, step + 25)
    place.log_own(step + 25)
    for each in others:
        tracker.log_scalars(each.scalars(), step + 25)
        tracker.log_profile(each, step + 25)
        place.log_own(step + 25)
    for later, values in enumerate(numbers, start=step + 30):
        tracker.log_scalars(values, later)
        place.log_own(later)
    tracker.close()


# One training, with evaluations

AWKWARD = {
    "encoder.layers.0": 2 * 3 * 5,
    "__init__": 3 * 5 * 7,
    "a/b": 5 * 7 * 11,
    "卷积|层": 2**53 + 1,
    "🙂": 2**63 + 1,
    'a"b\\c': 2**70,
    "$x^2$": 7 * 11 * 13,
}
TOTAL = 30 + 105 + 385 + (2**53 + 1) + (2**63 + 1) + 2**70 + 1001

NUMBERS = [
    {"perf/mfu_pct": math.nan, "perf/step_time_ms": math.inf, "perf/samples_per_sec": 10.5},
    {"perf/mfu_pct": 41.5, "perf/step_time_ms": 2.5, "perf/samples_per_sec": 11.5},
]

NOTHING = ModelProfile("Nothing", phase="test")
SINGLE = ModelProfile(
    "Linear",
    phase="predict",
    modules=(ModuleRow("", None, 0, "Linear", calls=1, flops=2 * 30, own_flops=2 * 30, macs=2 * 3 * 5),),
    operators=(OperatorRow("aten::linear", 1, 2 * 30, "matmul", macs=2 * 3 * 5),),
    forward_flops=2 * (2 * 3 * 5),
    forward_macs=2 * 3 * 5,
)


def with_times(profile, forward_ms=0.5):
    """What the profile is when the measuring window has closed: with times, and with a whole step."""
    times = {row.path: forward_ms for row in profile.modules[1:]}
    latency = LatencySummary(forward_ms * len(times), step_ms=9.0, steps=20)
    steps = {row.path: StepFlops(row.flops, 2 * row.flops) for row in profile.modules}
    return profile.with_latency(latency, times).with_step(steps)


@pytest.fixture(scope="module")
def profiles(net):
    """Those of one training: counted, with times, and those of a validation, a test and a prediction."""
    config = {"flops.dtype": "float32", "flops.peak_tflops": None, "flops.input_shapes": [[4, 3]]}
    counted = net(list(AWKWARD.values()), names=list(AWKWARD), config=config)
    validated = dataclasses.replace(net([17, 19], names=["a/b", "__init__"]), phase="validate")
    return counted, with_times(counted), validated, NOTHING, SINGLE


@pytest.fixture(scope="module", params=[*KEEPERS, "memory"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def place_and_found(kind, profiles, tmp_path_factory, request):
    counted, timed, *others = profiles
    with opened(kind, tmp_path_factory.mktemp(kind), request) as place:
        fit(place, counted, timed, others=others, numbers=NUMBERS)
        return place, place.read()


@pytest.fixture
def place(place_and_found):
    return place_and_found[0]


@pytest.fixture
def found(place_and_found):
    return place_and_found[1]


@pytest.fixture
def final(profiles):
    """The profiles that were logged last, by phase."""
    return {profile.phase: profile for profile in profiles[1:]}


def test_the_profile_comes_back_as_it_was_given_of_every_phase(found, final):
    assert found.profiles == final


def test_integers_of_any_size_are_exact(found):
    modules = {row.path: row.flops for row in found.profiles["train"].modules}
    assert modules == {"": TOTAL, **AWKWARD}
    assert found.profiles["train"].forward_flops == TOTAL


def test_the_table_has_a_row_for_each_module_by_its_name(found, place, final):
    for phase, profile in final.items():
        assert found.modules.get(phase, []) == place.shown(profile)


def test_numbers_that_do_not_change_are_kept_once_and_have_no_chart(found, place):
    kept = {"flops/forward": TOTAL, "model/params": TOTAL, "latency/step_ms": 9.0, "flops/backward": 2 * TOTAL}
    assert {name: found.kept[name] for name in kept} == kept
    assert "flops/unknown_calls" not in found.kept  # 0
    if place.draws:
        assert kept.keys().isdisjoint(found.scalars)


def test_evaluations_stand_beside_the_training(found):
    fronts = {"validate": 17 + 19, "test": 0, "predict": 2 * 30}
    assert {phase: found.kept[f"{phase}/flops/forward"] for phase in fronts} == fronts


def test_what_is_no_number_takes_nothing_else_with_it(found):
    (_, mfu), later = found.scalars["perf/mfu_pct"]
    assert math.isnan(mfu)
    assert later == (31, 41.5)
    (_, step_time), later = found.scalars["perf/step_time_ms"]
    assert not math.isfinite(step_time)
    assert later == (31, 2.5)
    assert found.scalars["perf/samples_per_sec"] == [(30, 10.5), (31, 11.5)]


def test_the_page_is_that_of_the_profile(kind, found, final):
    pages = {} if kind == "memory" else {phase: html_page(profile) for phase, profile in final.items()}
    assert found.pages == pages


def test_charts_are_there_where_there_is_something_to_draw(place, found):
    assert found.charts.get("train", set()) == ({"by_module", "latency"} if place.draws else set())
    assert "latency" not in found.charts.get("validate", set())


# Again


@pytest.mark.parametrize("kind", KEEPERS)
def test_a_second_fit_neither_fails_nor_shows_the_model_twice(kind, net, tmp_path, request):
    counted = net([3, 5], config={"flops.peak_tflops": 1.25})
    again = net([3, 5], config={"flops.peak_tflops": 1.5})  # measured anew
    timed = [with_times(counted), with_times(again, 0.75)]
    with opened(kind, tmp_path / "run", request) as place:
        fit(place, counted, timed[0])
        fit(place, again, timed[1], step=100)
        found = place.read()
    assert found.tables == {"train": 1}
    assert found.modules["train"] == place.shown(timed[0])
    assert found.profiles["train"] in timed
    assert found.kept["flops/forward"] == 3 + 5


@pytest.mark.parametrize("kind", KEEPERS)
def test_a_second_fit_of_another_model_shows_it(kind, net, tmp_path, request):
    with opened(kind, tmp_path / "run", request) as place:
        fit(place, net([3, 5]), with_times(net([3, 5])))
        fit(place, net([3, 7]), with_times(net([3, 7])), step=100)
        found = place.read()
    assert found.modules["train"] == place.shown(net([3, 7]))
    assert found.profiles["train"] == with_times(net([3, 7]))


@pytest.mark.parametrize("kind", KEEPERS)
def test_a_whole_step_that_is_seen_after_the_times_is_kept_with_them(kind, net, timed, tmp_path, request):
    counted = net([3, 5])
    whole = timed(counted).with_step({"": StepFlops(forward=16, backward=32)})
    with opened(kind, tmp_path / "run", request) as place:
        tracker = tracker_for(place.target)
        for step, profile in enumerate([counted, timed(counted), whole]):
            tracker.log_profile(profile, step)
            tracker.log_scalars({"flops/forward": 8}, step)
            place.log_own(step)
        tracker.close()
        found = place.read()
    assert found.profiles == {"train": whole}
    assert found.pages == {"train": html_page(whole)}


# Many modules


MANY = 10_007
"""More than any tracker shows: W&B, which shows most of them, has 10,000 rows."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ADAPTERS)
def test_many_modules_are_kept_and_as_many_shown_as_the_tracker_can(kind, net, tmp_path, request):
    profile = net([(index * 7919) % MANY for index in range(MANY)])
    with opened(kind, tmp_path / "run", request) as place:
        tracker = tracker_for(place.target)
        tracker.log_profile(profile, 0)
        tracker.close()
        found = place.read()
    assert found.profiles == {"train": profile}
    assert found.modules["train"] == place.shown(profile)
    assert found.pages.keys() == {"train"}
    assert found.charts["train"] == {"by_module"}
