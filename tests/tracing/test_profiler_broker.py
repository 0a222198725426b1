"""Recordings of ours end in every case, and whatever the user's profiler does, it has all its events."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flopcallback.tracing import profiler_broker
from flopcallback.tracing.profiler_broker import ELSEWHERE, THEIRS

pytestmark = pytest.mark.slow

SCENES = Path(__file__).with_name("profiler_scenes.py")
PRODUCTS = 3  # of some work
TOO_MANY = "the step has more than 1000 records"

# Each scene with what it gives, in the order in which one process plays them.
ALONE = {
    "alone": [PRODUCTS] * 2,
    "what_a_record_holds": [[[2, 3], [3, 5]], ["float", "float"], ["aten::matmul", profiler_broker.END]],
    "backward_is_recorded_too": 2,  # the gradient of one of two factors
    "none_begins_within_a_backward": ["a backward is running", PRODUCTS],
    "one_at_a_time": [None, "another recording is under way", PRODUCTS, "", PRODUCTS, "another one is wanted"],
    "two_threads": ["another thread records", PRODUCTS],
    "others_at_work": [PRODUCTS],
    "ended_in_another_thread": [ELSEWHERE, True, PRODUCTS, False],
    "errors": [[False] * 3, PRODUCTS],
    "interrupted_while_it_begins": False,
    # A layer makes two nodes, so that 28 of them let 18 records for each expect more than 1,000.
    "too_many_records": [28, False, TOO_MANY, 101, TOO_MANY, PRODUCTS],
    "marks": ["outer", "inner", PRODUCTS],
    "nothing_stays": [[True] * 3, PRODUCTS, [True] * 3],
    "compiled_once": [True, 1],
}

WITH_THEIRS = {
    "theirs_before_ours": [PRODUCTS, THEIRS, THEIRS, PRODUCTS],
    "theirs_begins_during_ours": [PRODUCTS, THEIRS, PRODUCTS],
    "theirs_inside_a_mark_of_ours": [2 * PRODUCTS, THEIRS],
    "theirs_begins_in_ranges_that_ours_saw_begin": [PRODUCTS, THEIRS, False],
    "a_range_from_recording_to_recording": [PRODUCTS, PRODUCTS, False],
    "theirs_is_asked_for_all_threads": [4 * PRODUCTS, THEIRS, THEIRS, THEIRS, PRODUCTS],
    # Two steps are active in each of two cycles; ours has its products while theirs waits.
    "a_recording_in_each_phase_of_a_schedule": [[2 * PRODUCTS] * 2, [PRODUCTS, *[THEIRS] * 3] * 2],
    "a_recording_in_each_phase_without_install": [[2 * PRODUCTS] * 2, [PRODUCTS, *[THEIRS] * 3] * 2],
    "recordings_that_last_from_phase_to_phase": [[2 * PRODUCTS] * 2, [None, THEIRS, None, None] * 2, None],
    "a_schedule_without_warmup": [[2 * PRODUCTS] * 2, [PRODUCTS, THEIRS, THEIRS] * 2],
    "left_while_it_warms_up": [THEIRS, PRODUCTS],
    "autograd_profiler_of_old": [PRODUCTS, THEIRS, THEIRS, PRODUCTS],
    "legacy_profiler": [PRODUCTS, THEIRS, THEIRS, PRODUCTS],
    "emit_itt": [THEIRS, THEIRS, PRODUCTS],
    "emit_nvtx": [True, PRODUCTS, PRODUCTS],
    "an_itt_range": PRODUCTS,
    "ended_by_who_ends_whatever_is_on": [False, THEIRS, PRODUCTS],
    "theirs_from_another_thread": [PRODUCTS, THEIRS, PRODUCTS],
}

# In each of them torch logs that a session was cancelled, or gone with its thread.
LOGGED = {
    "warmed_up_where_nobody_looks": [PRODUCTS, PRODUCTS],
    "theirs_from_another_thread_that_ours_waits_for": [PRODUCTS, THEIRS, THEIRS, PRODUCTS, PRODUCTS],
    "a_thread_that_is_gone": [PRODUCTS, ELSEWHERE, PRODUCTS],
}

CHILDREN = {
    "forked": [[[0, PRODUCTS]] * 2, 3],
    "forked_by_another_thread": [0, PRODUCTS],
    "multiprocessing_kinds": [[0, PRODUCTS]] * 3,
    "data_loader_workers": [[[[row, 0]] for row in range(4)], PRODUCTS],
}

AT_THE_END = [
    "open_at_the_end",
    "open_at_the_end_in_a_daemon",
    "theirs_outlives_ours",
]


def played(*names: str) -> tuple[dict[str, object], str]:
    """What the scenes gave in one process, which ended well, and what torch logged."""
    # Freed memory is filled, so that who writes to it or reads it is noticed.
    environment = {**os.environ, "MALLOC_PERTURB_": "165"}
    environment.pop("KINETO_LOG_LEVEL", None)
    process = subprocess.run(
        [sys.executable, str(SCENES), *names], capture_output=True, text=True, timeout=600, env=environment, check=False
    )
    assert process.returncode == 0, f"{process.returncode}\n{process.stdout}\n{process.stderr}"
    lines = [line.removeprefix("scene ") for line in process.stdout.splitlines() if line.startswith("scene ")]
    return dict(map(json.loads, lines)), process.stderr


def is_quiet(logged: str) -> bool:
    """Whether libkineto and torch's profiler were silent; Python's warnings are others' affair."""
    return not any(line.startswith(("USDT:", "ERROR:", "[W")) for line in logged.splitlines())


@pytest.fixture(scope="module")
def seen_alone():
    return played(*ALONE)


@pytest.fixture(scope="module")
def seen_with_theirs():
    return played("alone", *WITH_THEIRS)  # libkineto looks once how much to print, at its first use: ours


@pytest.fixture(scope="module")
def seen_logged():
    return played(*LOGGED)


@pytest.fixture(scope="module")
def seen_with_children():
    return played(*CHILDREN)


@pytest.mark.parametrize("name", ALONE)
def test_recordings_take_turns_and_end(seen_alone, name):
    assert seen_alone[0][name] == ALONE[name]


@pytest.mark.parametrize("name", WITH_THEIRS)
def test_the_users_profiler_wins(seen_with_theirs, name):
    assert seen_with_theirs[0][name] == WITH_THEIRS[name]


@pytest.mark.parametrize("name", LOGGED)
def test_it_wins_where_it_could_not_be_foreseen_too(seen_logged, name):
    assert seen_logged[0][name] == LOGGED[name]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
@pytest.mark.parametrize("name", CHILDREN)
def test_children_end_as_ever_and_do_not_go_on_recording(seen_with_children, name):
    assert seen_with_children[0][name] == CHILDREN[name]


def test_nothing_is_printed(seen_alone, seen_with_theirs, seen_with_children):
    for _, logged in (seen_alone, seen_with_theirs, seen_with_children):
        assert is_quiet(logged), logged


@pytest.mark.parametrize("name", AT_THE_END)
def test_a_process_ends_well_with_a_recording_under_way(name):
    found, logged = played(name)
    assert found[name] == PRODUCTS
    assert is_quiet(logged), logged


def test_it_ends_well_where_only_libkineto_can_end_the_recording():
    name = "open_at_the_end_in_a_daemon_that_hangs"
    found, _ = played(name)
    assert found[name] == PRODUCTS


@pytest.mark.lightning
def test_lightnings_profiler_has_all_its_events():
    found, logged = played("lightning")
    assert not any(line.startswith(("USDT:", "ERROR:")) for line in logged.splitlines()), logged
    for theirs, without_ours, ours, before in found["lightning"]:
        assert theirs == without_ours != []
        assert before in ("", THEIRS)
        assert len(ours) == 16
        # Ours is lost where theirs begins, within `Optimizer.step`, is not begun while it is on, and goes on after it.
        assert set(ours) <= {THEIRS, "", "products"}
    assert [found["lightning"][index][2][0] for index in (0, 1)] == [THEIRS, THEIRS]
    assert found["lightning"][2][2][-1] == "products"
    assert set(found["lightning"][3][2]) == {""}  # theirs is on from begin to end
