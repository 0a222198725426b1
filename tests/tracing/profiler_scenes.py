"""Scenes in which the user's profiler and recordings of ours meet; one line of JSON for each name on the command line.

A scene's own products say who saw what: each call of `work` makes `PRODUCTS` of them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.autograd import profiler as autograd_profiler
from torch.autograd import profiler_legacy
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from flopcallback.tracing import profiler_broker
from flopcallback.tracing.profiler_broker import (
    Recording,
    abandon_here,
    begin_recording,
    end_recording,
    install,
    uninstall,
    why_no_recording,
)

PRODUCTS = 3
A = torch.ones(2, 3)
B = torch.ones(3, 5)
SCENES: dict[str, Callable[[], Any]] = {}


def scene(function: Callable[[], Any]) -> Callable[[], Any]:
    SCENES[function.__name__] = function
    return function


def work() -> None:
    for _ in range(PRODUCTS):
        A @ B


def products(events: Iterable[Any]) -> int:
    """How many products are among events of any kind."""
    names = [event.name() if callable(event.name) else event.name for event in events]
    return names.count("aten::mm")


def theirs(**options: Any) -> profile:
    return profile(activities=[ProfilerActivity.CPU], **options)


def begun(**options: Any) -> Recording:
    recording = begin_recording(**options)
    assert recording is not None, why_no_recording()
    return recording


def ours(recording: Recording) -> Any:
    """Ends a recording: how many products it saw, or why it was lost."""
    result = end_recording(recording)
    if result is None:
        return recording.why
    return products(result.events())


def a_recording() -> Any:
    """A recording of some work, from begin to end: what came of it."""
    recording = begin_recording()
    work()
    return why_no_recording() if recording is None else ours(recording)


def in_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@contextlib.contextmanager
def installed() -> Iterator[None]:
    install()
    try:
        yield
    finally:
        uninstall()


# --- Recordings alone -------------------------------------------------------------------------------------------------


@scene
def alone() -> Any:
    return [a_recording(), a_recording()]


@scene
def what_a_record_holds() -> Any:
    recording = begun()
    A @ B
    result = end_recording(recording)
    (event,) = [each for each in result.events() if each.name() == "aten::mm"]
    tree = [each.name for each in result.experimental_event_tree()]
    return [event.shapes(), event.dtypes(), tree]


@scene
def backward_is_recorded_too() -> Any:
    recording = begun()
    x = A.clone().requires_grad_()
    (x @ B).sum().backward()
    return ours(recording)


@scene
def none_begins_within_a_backward() -> Any:
    """Records of the backward are open there, that a session before may have seen begin."""
    seen: list[Any] = []
    x = A.clone().requires_grad_()
    x.register_hook(lambda grad: seen.append(a_recording()))
    (x @ B).sum().backward()
    return [*seen, a_recording()]


@scene
def one_at_a_time() -> Any:
    first = begun()
    second = begin_recording(), why_no_recording()
    work()
    seen = ours(first)
    ended_twice = ours(first)
    abandoned = begun()
    abandon_here("another one is wanted")
    return [*second, seen, ended_twice, a_recording(), ours(abandoned)]


@scene
def two_threads() -> Any:
    recording = begun()
    others = in_thread(a_recording)
    work()
    return [others, ours(recording)]


@scene
def others_at_work() -> Any:
    """Threads with operators under way whenever a session begins and ends."""
    is_over = threading.Event()

    def others() -> None:
        while not is_over.is_set():
            (A.clone().requires_grad_() @ B).sum().backward()

    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            pool.submit(others)
        found = {a_recording() for _ in range(30)}
        is_over.set()
    return [*found]


@scene
def ended_in_another_thread() -> Any:
    recording = begun()
    work()
    seen = in_thread(lambda: ours(recording))
    return [seen, torch.autograd._profiler_enabled(), a_recording(), torch.autograd._profiler_enabled()]


@scene
def errors() -> Any:
    """Whatever leaves a step, a recording that nobody holds has ended."""

    def step(error: BaseException) -> None:
        recording = begun()
        work()
        assert recording.check()
        raise error

    left = []
    for error in (ValueError("of the step"), KeyboardInterrupt(), SystemExit(1)):
        with contextlib.suppress(type(error)):
            step(error)
        error.__traceback__ = None
        gc.collect()
        left.append(torch.autograd._profiler_enabled())
    return [left, a_recording()]


@scene
def interrupted_while_it_begins() -> Any:
    def interrupt() -> None:
        raise KeyboardInterrupt

    before = profiler_broker.nodes_so_far
    profiler_broker.nodes_so_far = interrupt
    try:
        begin_recording()
    except KeyboardInterrupt:
        return torch.autograd._profiler_enabled()
    finally:
        profiler_broker.nodes_so_far = before


@scene
def too_many_records() -> Any:
    """Abandoned in the forward, when there are a tenth of the step's records."""
    model = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(100)])
    recording = begun(max_records=1000)
    x = torch.ones(2, 4)
    done = 0
    while recording.check():
        x = model[done](x)
        done += 1
    is_on = torch.autograd._profiler_enabled()
    x.sum().backward()
    without_grad = begun(max_records=1000)
    checks = next(count for count in range(1, 1000) if not without_grad.check())
    return [done, is_on, ours(recording), checks, ours(without_grad), a_recording()]


@scene
def marks() -> Any:
    recording = begun()
    with recording.mark("outer"), recording.mark("inner"):
        work()
    result = end_recording(recording)
    with recording.mark("late"):
        work()
    outer, _ = result.experimental_event_tree()
    (inner,) = outer.children
    return [outer.name, inner.name, len(inner.children)]


@scene
def nothing_stays() -> Any:
    owners = (torch.autograd, autograd_profiler, profiler_legacy)
    before = [dict(vars(owner)) for owner in owners]
    with installed():
        is_replaced = [vars(owner) != was for owner, was in zip(owners, before, strict=True)]
        seen = a_recording()
    return [is_replaced, seen, [vars(owner) == was for owner, was in zip(owners, before, strict=True)]]


# --- And the user's profiler ------------------------------------------------------------------------------------------


@scene
def theirs_before_ours() -> Any:
    with theirs() as profiler:
        seen = a_recording(), in_thread(a_recording)
    return [products(profiler.events()), *seen, a_recording()]


@scene
def theirs_begins_during_ours() -> Any:
    recording = begun()
    work()
    with theirs() as profiler:
        work()
        seen = ours(recording)
    work()
    return [products(profiler.events()), seen, a_recording()]


@scene
def theirs_inside_a_mark_of_ours() -> Any:
    recording = begun()
    profiler = theirs()
    with recording.mark("step"):
        work()
        profiler.start()
        work()
    work()
    profiler.stop()
    return [products(profiler.events()), ours(recording)]


@scene
def theirs_begins_in_ranges_that_ours_saw_begin() -> Any:
    """As a training step of Lightning's, which runs within `Optimizer.step`, may begin it, and a later one end it."""
    found = []
    for _ in range(9):
        recording = begun()
        ranges = [record_function(str(depth)) for depth in range(10)]
        for each in ranges:
            each.__enter__()
        work()
        profiler = theirs()
        profiler.start()
        memory = [bytearray(64 + size) for size in range(1000)]
        for each in reversed(ranges):
            each.__exit__(None, None, None)
        work()
        profiler.stop()
        found.append([products(profiler.events()), ours(recording), any(map(any, memory))])
    assert all(each == found[0] for each in found)
    return found[0]


@scene
def a_range_from_recording_to_recording() -> Any:
    found = []
    for _ in range(8):
        recording = begun()
        ranges = [record_function(str(depth)) for depth in range(10)]
        for each in ranges:
            each.__enter__()
        work()
        seen = ours(recording)
        recording = begun()
        memory = [bytearray(64 + size) for size in range(1000)]
        for each in reversed(ranges):
            each.__exit__(None, None, None)
        work()
        found.append([seen, ours(recording), any(map(any, memory))])
    assert all(each == found[0] for each in found)
    return found[0]


@scene
def theirs_is_asked_for_all_threads() -> Any:
    options = torch.profiler._ExperimentalConfig(profile_all_threads=True)
    recording = begun()
    with theirs(experimental_config=options) as profiler:
        work()
        in_thread(work)
        seen = a_recording(), in_thread(a_recording)
    return [products(profiler.events()), *seen, ours(recording), a_recording()]


PHASES = {"wait": 0, "warmup": 1, "active": 2, "save": 3, "wait again": 4, "warmup again": 5, "active again": 6}


def scheduled(around: Callable[[int, profile], Any], steps: int = 8, warmup: int = 1) -> list[Any]:
    """A loop under a schedule: products of each cycle, and what `around` gave in each step."""
    cycles: list[int] = []
    given = []
    with theirs(
        schedule=schedule(wait=1, warmup=warmup, active=2, repeat=2),
        on_trace_ready=lambda profiler: cycles.append(products(profiler.events())),
    ) as profiler:
        for step in range(steps):
            given.append(around(step, profiler))
            profiler.step()
    return [cycles, given]


@scene
def a_recording_in_each_phase_of_a_schedule() -> Any:
    with installed():
        return scheduled(lambda step, profiler: a_recording())


@scene
def a_recording_in_each_phase_without_install() -> Any:
    """The search finds a profiler that warms up."""
    return scheduled(lambda step, profiler: a_recording())


@scene
def recordings_that_last_from_phase_to_phase() -> Any:
    """Begun in each step, ended in the next."""
    open_recordings: list[Recording | None] = []

    def around(step: int, profiler: profile) -> Any:
        seen = ours(open_recordings.pop()) if open_recordings and open_recordings[-1] else None
        open_recordings[:] = [begin_recording()]
        work()
        return seen

    with installed():
        found = scheduled(around)
    return [*found, ours(open_recordings[0]) if open_recordings[0] else None]


@scene
def a_schedule_without_warmup() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: it may skew results
        return scheduled(lambda step, profiler: a_recording(), steps=6, warmup=0)


@scene
def warmed_up_where_nobody_looks() -> Any:
    """A profiler of the lower level, which no search finds, was prepared before us."""
    profiler = torch.profiler.profiler._KinetoProfile(activities=[ProfilerActivity.CPU])
    profiler.prepare_trace()
    seen = a_recording()
    install()
    profiler.start_trace()
    work()
    profiler.stop_trace()
    uninstall()
    return [seen, products(profiler.profiler.function_events)]


@scene
def left_while_it_warms_up() -> Any:
    with installed():
        with theirs(schedule=schedule(wait=0, warmup=5, active=1)):
            seen = a_recording()
        return [seen, a_recording()]


@scene
def autograd_profiler_of_old() -> Any:
    recording = begun()
    with autograd_profiler.profile(use_kineto=True) as profiler:
        seen = a_recording()
    return [products(profiler.function_events), seen, ours(recording), a_recording()]


@scene
def legacy_profiler() -> Any:
    recording = begun()
    with installed(), profiler_legacy.profile() as profiler:
        seen = a_recording()
    return [products(profiler.function_events), seen, ours(recording), a_recording()]


@scene
def emit_itt() -> Any:
    recording = begun()
    with autograd_profiler.emit_itt():
        seen = a_recording()
    return [seen, ours(recording), a_recording()]


@scene
def emit_nvtx() -> Any:
    def how_it_ends() -> str:
        try:
            with autograd_profiler.emit_nvtx():
                return "as it should"
        except Exception as error:  # noqa: BLE001 - in a build without CUDA, whatever it is
            return f"{type(error).__name__}: {error}"

    alone = how_it_ends()
    recording = begun()
    work()
    return [alone == how_it_ends(), alone == "as it should" or ours(recording), a_recording()]


@scene
def an_itt_range() -> Any:
    if not torch.profiler.itt.is_available():
        return PRODUCTS
    recording = begun()
    with torch.profiler.itt.range("step"):
        work()
    return ours(recording)


@scene
def ended_by_who_ends_whatever_is_on() -> Any:
    """As Lightning's profiler does before it begins."""
    recording = begun()
    work()
    if torch.autograd._profiler_enabled():
        torch.autograd._disable_profiler()
    return [torch.autograd._profiler_enabled(), ours(recording), a_recording()]


@scene
def theirs_from_another_thread() -> Any:
    """Ours ends in its own thread, which looks often."""
    recording = begun()

    def profiled() -> int:
        with theirs() as profiler:
            work()
        return products(profiler.events())

    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(profiled)
        while recording.check():
            time.sleep(0.001)
        found = seen.result()
    return [found, ours(recording), a_recording()]


@scene
def theirs_from_another_thread_that_ours_waits_for() -> Any:
    profiler_broker.PATIENCE_S = 0.1
    recording = begun()
    work()
    is_on, is_over = threading.Event(), threading.Event()

    def profiled() -> int:
        with theirs() as profiler:
            is_on.set()
            is_over.wait()
            work()
        return products(profiler.events())

    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(profiled)
        is_on.wait()
        lost, meanwhile = ours(recording), a_recording()
        is_over.set()
        found = seen.result()
    recording = begun()
    in_thread(lambda: theirs().__enter__().__exit__(None, None, None))
    with theirs() as here:  # in the thread that has still to end its own
        work()
    profiler_broker.PATIENCE_S = 5
    return [found, lost, meanwhile, products(here.events()), a_recording()]


@scene
def a_thread_that_is_gone() -> Any:
    """Its session goes with it, and the next one begins as ever."""
    kept: list[Recording] = []
    thread = threading.Thread(target=lambda: kept.append(begun()))
    thread.start()
    thread.join()
    return [a_recording(), ours(kept[0]), a_recording()]


@scene
def compiled_once() -> Any:
    """Neither the replacements nor a session are seen by the compiler."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda a, b: (a @ b).relu(), backend="eager", fullgraph=True)
    counters = torch._dynamo.utils.counters
    compiled(A, B)
    before = json.dumps(counters["stats"])
    for _ in range(12):
        install()
        recording = begun()
        compiled(A, B)
        seen = ours(recording)
        compiled(A, B)
        uninstall()
        compiled(A, B)
    return [json.dumps(counters["stats"]) == before, seen]


# --- And the process --------------------------------------------------------------------------------------------------


def status_of(child: int) -> int:
    """How a child ends; one that hangs is ended by a signal after half a minute."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def child_of(recording: Recording, end: Callable[[], Any]) -> int:
    """Forks a child that works and records; how it ends."""
    if (child := os.fork()) == 0:
        work()
        found = [recording.why, torch.autograd._profiler_enabled(), ours(recording), a_recording()]
        if found != [profiler_broker.FORKED, False, profiler_broker.FORKED, PRODUCTS]:
            sys.stderr.write(f"{found}\n")
            os._exit(9)
        end()
    return status_of(child)


@scene
def forked() -> Any:
    found = []
    for end in (lambda: os._exit(0), lambda: sys.exit(0)):
        recording = begun()
        work()
        found.append([child_of(recording, end), ours(recording)])
    if (child := os.fork()) == 0:  # nothing is recorded, but libkineto was in use
        sys.exit(3)
    return [found, os.waitstatus_to_exitcode(status_of(child))]


@scene
def forked_by_another_thread() -> Any:
    recording = begun()
    work()

    def fork() -> int:
        if (child := os.fork()) == 0:
            work()
            ok = recording.why == profiler_broker.FORKED and "forked" in a_recording()
            os._exit(0 if ok else 9)
        return status_of(child)

    return [in_thread(fork), ours(recording)]


def in_child() -> None:
    work()
    assert not torch.autograd._profiler_enabled()
    assert a_recording() == PRODUCTS


@scene
def multiprocessing_kinds() -> Any:
    found = []
    for kind in ("fork", "spawn", "forkserver"):
        recording = begun()
        work()
        child = multiprocessing.get_context(kind).Process(target=in_child)
        child.start()
        child.join()
        found.append([child.exitcode, ours(recording)])
    return found


class Rows(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        work()
        return torch.tensor([index, torch.autograd._profiler_enabled()])


@scene
def data_loader_workers() -> Any:
    recording = begun()
    rows = [batch.tolist() for batch in torch.utils.data.DataLoader(Rows(), num_workers=2)]
    work()
    return [rows, ours(recording)]


@scene
def open_at_the_end() -> Any:
    KEPT.append(begun())
    work()
    return PRODUCTS


@scene
def open_at_the_end_in_a_daemon() -> Any:
    """It looks, as a training does at each call of a module."""
    alone()  # libkineto says an error where it is first used in another thread than torch was imported in
    is_on = threading.Event()

    def train() -> None:
        recording = begun()
        KEPT.append(recording)
        is_on.set()
        while recording.check():
            time.sleep(0.01)
        time.sleep(60)

    threading.Thread(target=train, daemon=True).start()
    is_on.wait()
    return PRODUCTS


@scene
def open_at_the_end_in_a_daemon_that_hangs() -> Any:
    alone()
    is_on = threading.Event()

    def train() -> None:
        KEPT.append(begun())
        is_on.set()
        time.sleep(60)

    threading.Thread(target=train, daemon=True).start()
    is_on.wait()
    return PRODUCTS


@scene
def theirs_outlives_ours() -> Any:
    """An error leaves both open."""
    KEPT.append(begun())
    profiler = theirs()
    profiler.start()
    work()
    profiler.stop()
    return products(profiler.events())


KEPT: list[Any] = []


@scene
def lightning() -> Any:
    """A training under Lightning's profiler: products of each of its cycles, with recordings of ours and without."""
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.profilers import PyTorchProfiler

    class Net(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 5)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Recorder(Callback):
        def __init__(self) -> None:
            self.found: list[Any] = []
            self.recording: Recording | None = None

        def setup(self, *args: Any, **kwargs: Any) -> None:
            install()

        def teardown(self, *args: Any, **kwargs: Any) -> None:
            uninstall()

        def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
            self.recording = begin_recording()

        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            seen = "" if self.recording is None else ours(self.recording)
            self.found.append(seen if isinstance(seen, str) else "products" if seen else "nothing")

    def trained(callbacks: list[Any], **options: Any) -> list[int]:
        cycles: list[int] = []
        profiler = PyTorchProfiler(
            on_trace_ready=lambda each: cycles.append([e.name for e in each.events()].count("aten::addmm")), **options
        )
        trainer = Trainer(
            max_epochs=2,
            accelerator="cpu",
            profiler=profiler,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Net(), torch.utils.data.DataLoader([torch.ones(3)] * 8, batch_size=1))
        return cycles

    found = []
    default, cycles, always = {}, {"schedule": schedule(wait=2, warmup=2, active=2, repeat=2)}, {"schedule": None}
    for is_under_way, options in ((False, default), (True, default), (False, cycles), (True, always)):
        recorder = Recorder()
        before = begun() if is_under_way else None  # when the profiler begins
        with_ours = trained([recorder], **options)
        found.append([with_ours, trained([], **options), recorder.found, ours(before) if before else ""])
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        answer = SCENES[name]()
        sys.stdout.write(f"scene {json.dumps([name, answer])}\n")
        sys.stdout.flush()
