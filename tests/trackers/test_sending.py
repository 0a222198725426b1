"""Requests over a network: made in order, in a thread of their own; what is not sent is kept and told."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import known_net
import mlflow_stores as stores
import places
import pytest
import torch

from flopcallback import FlopHook
from flopcallback.reporting import ModelProfile
from flopcallback.trackers import (
    LocalTracker,
    MemoryTracker,
    Sender,
    SendsRequests,
    TooSlowError,
    tracker_for,
    within,
)
from flopcallback.trackers.local import next_number
from flopcallback.training import sinks
from flopcallback.training.failures import Failures, FlopCallbackWarning

SHORT = {"warmup_steps": 0, "latency_steps": 2, "summary": False, "log_every_n_steps": 1}
STEPS = 6


class Remote(MemoryTracker):
    """Keeps what arrives; each request waits for `gate`, and fails while `error` is set."""

    def __init__(self):
        super().__init__()
        self.gate, self.error = threading.Event(), None
        self.threads, self.asked = set(), 0

    def send_by(self, send):
        self.send = send
        return True

    def arrive(self, write):
        def request():
            self.asked += 1
            self.gate.wait()
            self.threads.add(threading.current_thread())
            if self.error is not None:
                raise self.error
            write()

        self.send(request)

    def log_scalars(self, values, step):
        self.arrive(lambda: self.scalars.append((step, dict(values))))

    def log_profile(self, profile, step):
        self.arrive(lambda: self.profiles.append((step, profile)))

    def close(self):
        self.arrive(super().close)


@pytest.fixture
def remote():
    tracker = Remote()
    yield tracker
    tracker.gate.set()


@pytest.fixture
def short_end(monkeypatch):
    monkeypatch.setattr(sinks, "END_S", 0.2)


def loop(to, *, during=lambda step: None, **options):
    model = known_net.Whole()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with FlopHook(model, optimizer, to=to, **{**SHORT, **options}) as hook:
        for step in range(STEPS):
            model(known_net.batch()).square().mean().backward()
            optimizer.step()
            during(step)
    return hook


def in_order(scalars):
    return [step for step, _ in scalars]


def kept(folder):
    return [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]


# --- A training and a tracker of this protocol ------------------------------------------------------------------------


def test_it_gets_all_that_a_tracker_without_a_network_gets_in_another_thread(remote):
    remote.gate.set()
    local = MemoryTracker()
    loop([remote, local])
    assert isinstance(remote, SendsRequests)
    assert remote.threads.isdisjoint({threading.main_thread()})
    assert (remote.scalars, remote.profiles, remote.closed) == (local.scalars, local.profiles, True)
    assert not [thread for thread in threading.enumerate() if thread.name == "flopcallback sender"]


@pytest.mark.usefixtures("short_end")
def test_a_server_that_never_answers_stops_no_step_and_everything_is_kept(remote, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    local = MemoryTracker()
    with pytest.warns(FlopCallbackWarning) as told:
        hook = loop([remote, local])  # it ends, though nothing is answered
    (text,) = [str(warning.message) for warning in told]
    assert text.startswith(
        "the tracker Remote failed: TimeoutError: it was not sent within 0.2 s. Not sent: numbers of "
    )
    assert "What it did not get is in flopcallback_report." in text
    assert (remote.asked, remote.scalars) == (1, [])
    folder = tmp_path / "flopcallback_report"
    assert [(line.pop("step"), line) for line in kept(folder)] == local.scalars
    assert places.in_folder(folder).profiles == {"train": hook.profile}


def test_what_was_not_sent_is_told_by_steps_and_profiles(remote, tmp_path, monkeypatch, short_end):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(FlopCallbackWarning, match=r"Not sent: numbers of 6 steps \(0 to 5\), \d profiles\."):
        loop(remote)


@pytest.mark.parametrize("fails_at", [0, 3])
def test_a_failure_is_told_once_and_nothing_is_asked_again(remote, tmp_path, monkeypatch, fails_at):
    monkeypatch.chdir(tmp_path)
    local = MemoryTracker()

    def during(step):
        if step == fails_at:
            remote.error = ConnectionError("no route to host")
            remote.gate.set()

    with pytest.warns(FlopCallbackWarning) as told:
        loop([remote, local], during=during)
    (text,) = [str(warning.message) for warning in told]
    assert "the tracker Remote failed: ConnectionError: no route to host. Not sent: " in text
    assert remote.asked == 1
    # Nothing arrived, so all of it is kept, and in order.
    assert [(line.pop("step"), line) for line in kept(tmp_path / "flopcallback_report")] == local.scalars


def test_a_folder_of_the_users_has_everything_once(remote, tmp_path, short_end):
    local = MemoryTracker()
    with pytest.warns(FlopCallbackWarning, match="What it did not get is in"):
        loop([remote, tmp_path / "report", local])
    assert [(line.pop("step"), line) for line in kept(tmp_path / "report")] == local.scalars


def test_strict_raises_what_a_request_raised(remote, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    remote.error = ConnectionError("no route to host")
    remote.gate.set()
    with pytest.raises(ConnectionError, match="no route"):
        loop(remote, strict=True)


def test_a_missing_package_costs_no_numbers(remote):
    class Drawing(Remote):
        def log_profile(self, profile, step):
            super().log_profile(profile, step)
            raise ModuleNotFoundError("no matplotlib", name="matplotlib")

    tracker, local = Drawing(), MemoryTracker()
    tracker.gate.set()
    with pytest.warns(FlopCallbackWarning, match="no matplotlib"):
        loop([tracker, local])
    assert (tracker.scalars, tracker.profiles) == (local.scalars, local.profiles)


def test_a_failure_in_the_training_thread_ends_numbers_and_profiles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Failing(MemoryTracker):
        asked = 0

        def log_scalars(self, values, step):
            self.asked += 1
            raise OSError("no space left")

        def log_profile(self, profile, step):
            self.asked += 1

    tracker = Failing()
    with pytest.warns(FlopCallbackWarning, match=r"no space left\. It is not asked again\. What it did not get is in"):
        loop(tracker)
    assert tracker.asked == 1


# --- The order of what is kept ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_end")
@pytest.mark.parametrize("has_folder", [True, False], ids=["a folder of the user's", "the fallback"])
def test_of_two_that_fail_one_after_the_other_all_is_kept_in_order(remote, tmp_path, monkeypatch, has_folder):
    monkeypatch.chdir(tmp_path)
    local, gone = MemoryTracker(), Remote()
    gone.gate.set()

    def during(step):
        if step == 3:
            gone.error = OSError("gone")

    options = {"report_dir": tmp_path / "flopcallback_report"} if has_folder else {}
    with pytest.warns(FlopCallbackWarning) as told:
        hook = loop([gone, remote, local], during=during, **options)
    assert [str(each.message).partition(":")[0] for each in told] == [
        "the tracker Remote failed",
        "the tracker Remote #2 failed",
    ]
    folder = tmp_path / "flopcallback_report"
    assert [(line.pop("step"), line) for line in kept(folder)] == local.scalars
    assert places.in_folder(folder).profiles == {"train": hook.profile}
    assert hook.profile.latency is not None


@pytest.mark.usefixtures("short_end")
def test_more_than_may_wait_is_kept_in_order_and_told_twice(remote, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(Sender.__init__.__kwdefaults__, "most_waiting", 4)
    local = MemoryTracker()
    with pytest.warns(FlopCallbackWarning) as told:
        hook = loop([remote, local])
    slow, failed = [str(each.message) for each in told]
    assert slow.startswith(
        "the tracker Remote is slow: TooSlowError: 4 entries wait to be sent, and no more are taken. "
    )
    assert failed.startswith(
        "the tracker Remote failed: TimeoutError: it was not sent within 0.2 s. Not sent: numbers of"
    )
    assert [(line.pop("step"), line) for line in kept(tmp_path / "flopcallback_report")] == local.scalars
    assert places.in_folder(tmp_path / "flopcallback_report").profiles == {"train": hook.profile}


def test_a_line_is_written_where_it_was_logged_unless_others_write_there_too(tmp_path):
    tracker = LocalTracker(tmp_path)
    early = [next_number() for _ in range(3)]
    tracker.log_scalars({"a": 7}, 7)
    tracker.insert_scalars([(early[2], 3, {"a": 3}), (early[0], 1, {"a": 1})])
    tracker.insert_scalars([(early[1], 2, {"a": 2})])
    tracker.log_scalars({"a": 8}, 8)
    assert [line["step"] for line in kept(tmp_path)] == [1, 2, 3, 7, 8]
    (tmp_path / "scalars.jsonl").write_text('{"step":5}\n')
    tracker.insert_scalars([(early[0], 1, {"a": 1})])
    assert [line["step"] for line in kept(tmp_path)] == [5, 1]


def test_a_profile_is_not_replaced_by_an_earlier_one(tmp_path, net):
    tracker, early = LocalTracker(tmp_path), next_number()
    tracker.log_profile(net((5, 3)), 2)
    tracker.insert_profile(early, 1, net((5, 7)))
    assert ModelProfile.from_json((tmp_path / "flopcallback.json").read_bytes()) == net((5, 3))
    tracker.insert_profile(next_number(), 3, net((5, 7)))
    assert ModelProfile.from_json((tmp_path / "flopcallback.json").read_bytes()) == net((5, 7))


def gone(*_):
    raise OSError("gone")


class Gone(MemoryTracker):
    """Takes nothing."""

    log_scalars = gone
    log_profile = gone


def test_trainings_of_one_process_keep_what_they_keep_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flopcallback_report").mkdir()
    (tmp_path / "flopcallback_report" / "scalars.jsonl").write_text('{"step":99}\n')  # of an earlier process
    locals_ = [MemoryTracker() for _ in range(3)]

    def another(step):
        if step == 0:
            loop([Gone(), locals_[1]])

    with pytest.warns(FlopCallbackWarning) as simultaneous:
        loop([Gone(), locals_[0]], during=another)
    with pytest.warns(FlopCallbackWarning) as later:
        loop([Gone(), locals_[2]])
    told = [*simultaneous, *later]
    folders = ["flopcallback_report", "flopcallback_report-2", "flopcallback_report-3"]
    said = [str(each.message).partition("What it did not get is in ")[2].partition(". ")[0] for each in told]
    assert sorted(said) == folders == sorted(path.name for path in tmp_path.iterdir())
    for folder, local in zip(folders, locals_, strict=True):
        assert [(line.pop("step"), line) for line in kept(tmp_path / folder)] == local.scalars


def test_a_folder_that_cannot_be_written_is_told_beside_the_tracker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flopcallback_report").write_text("a file")
    with pytest.warns(FlopCallbackWarning) as told:
        loop(Gone())
    assert [str(each.message).partition(": ")[0] for each in told] == [
        "the tracker flopcallback_report failed",
        "the tracker Gone failed",
    ]


# --- What is told at the end ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_end")
def test_each_of_two_that_hang_is_told_with_the_whole_wait(remote, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = Remote()
    with pytest.warns(FlopCallbackWarning) as told:
        loop([remote, other])
    other.gate.set()
    said = " failed: TimeoutError: it was not sent within 0.2 s. Not sent: numbers of 6 steps (0 to 5), "
    assert [said in str(each.message) for each in told] == [True, True]
    names = [str(each.message).partition(" failed")[0] for each in told]
    assert names == ["the tracker Remote", "the tracker Remote #2"]


def test_a_failure_between_the_last_numbers_and_the_end_is_told_with_what_is_missing(remote, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def during(step):
        if step == STEPS - 1:
            remote.error = OSError("gone")
            remote.gate.set()
            (thread,) = [each for each in threading.enumerate() if each.name == "flopcallback sender"]
            thread.join()

    with pytest.warns(FlopCallbackWarning) as told:
        loop(remote, during=during)
    (text,) = [str(each.message) for each in told]
    assert "the tracker Remote failed: OSError: gone. Not sent: numbers of 6 steps (0 to 5), " in text
    assert "What it did not get is in flopcallback_report." in text


class Unclosable(MemoryTracker):
    """Takes all and cannot be closed."""

    def close(self):
        raise OSError("cannot be closed")


def test_strict_closes_and_keeps_all_before_it_raises_the_first(remote, tmp_path, monkeypatch, short_end):
    monkeypatch.chdir(tmp_path)
    local = MemoryTracker()
    with (
        pytest.warns(FlopCallbackWarning, match="the tracker Remote failed: TimeoutError") as told,
        pytest.raises(OSError, match="cannot be closed"),
    ):
        loop([Unclosable(), remote, local], strict=True)
    assert len(told) == 1
    assert local.closed
    assert [(line.pop("step"), line) for line in kept(tmp_path / "flopcallback_report")] == local.scalars


def test_strict_gives_all_others_an_entry_that_one_failed_to_take(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    local = MemoryTracker()
    with pytest.raises(OSError, match="gone"):
        loop([Gone(), local], strict=True)
    assert [(line.pop("step"), line) for line in kept(tmp_path / "flopcallback_report")] == local.scalars
    assert local.closed


def test_ctrl_c_in_the_wait_keeps_at_once_what_was_not_sent(remote, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    waits = []

    def interrupted(sender, seconds, late=""):
        waits.append(seconds)
        if len(waits) == 1:
            raise KeyboardInterrupt
        assert seconds == 0.0
        raise TimeoutError(late)

    monkeypatch.setattr(Sender, "wait", interrupted)
    local, other = MemoryTracker(), Remote()
    with pytest.warns(FlopCallbackWarning) as told, pytest.raises(KeyboardInterrupt):
        loop([remote, other, local])
    other.gate.set()
    for each, name in zip(told, ("Remote", "Remote #2"), strict=True):
        start = f"the tracker {name} failed: TimeoutError: it was not sent when the wait was interrupted. Not sent: "
        assert str(each.message).startswith(start)
    assert [(line.pop("step"), line) for line in kept(tmp_path / "flopcallback_report")] == local.scalars


def test_a_forked_child_closes_nothing(tmp_path):
    local = MemoryTracker()
    model = known_net.Whole()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with FlopHook(model, optimizer, to=local, **{**SHORT, "log_every_n_steps": 100}) as hook:
        model(known_net.batch()).square().mean().backward()
        optimizer.step()
        child = os.fork()
        if child == 0:
            before = len(local.scalars)
            hook.close()
            os._exit(local.closed or len(local.scalars) != before)
        assert os.waitpid(child, 0)[1] == 0
        assert not local.closed
    assert local.closed


def test_what_a_server_says_commands_no_terminal():
    with pytest.warns(FlopCallbackWarning) as told:
        Failures().report("the tracker \x1b[2J failed", OSError("no \x1b[31m\u202e"), "It is in \x9b.")
    assert str(told[0].message).startswith(r"the tracker \x1b[2J failed: OSError: no \x1b[31m\u202e. It is in \x9b.")


# --- The sender -------------------------------------------------------------------------------------------------------


def nothing():
    """At exit."""


def test_requests_are_made_in_order_and_the_thread_ends():
    sender, made = Sender(nothing), []
    for number in range(200):
        sender.add(number, [lambda n=number: made.append((n, 0)), lambda n=number: made.append((n, 1))])
    sender.wait(60)
    assert made == [(number, part) for number in range(200) for part in range(2)]
    sender.add(200, [lambda: made.append((200, 0))])  # a new thread
    sender.wait(60)
    assert made[-1] == (200, 0)
    assert sender.take() == []


def test_no_more_wait_than_may_and_the_next_is_refused():
    sender, gate, made = Sender(nothing, most_waiting=2), threading.Event(), []
    sender.add("first", [gate.wait, lambda: made.append("first")])
    sender.add("second", [lambda: made.append("second")])
    with pytest.raises(TooSlowError, match="2 entries wait to be sent"):
        sender.add("third", [lambda: made.append("third")])
    gate.set()
    sender.wait(60)
    assert made == ["first", "second"]


def test_after_a_failure_nothing_is_sent_and_all_of_it_is_given_back():
    sender, gate, made = Sender(nothing), threading.Event(), []

    def fail():
        gate.wait()
        raise OSError("gone")

    sender.add("first", [lambda: made.append("first")])
    sender.add("second", [fail, lambda: made.append("never")])
    sender.add("third", [lambda: made.append("never")])
    gate.set()
    with pytest.raises(OSError, match="gone"):
        sender.wait(60)
    with pytest.raises(OSError, match="gone"):
        sender.check()
    assert made == ["first"]
    assert sender.take() == ["second", "third"]


def test_taking_stops_it_behind_the_request_that_is_being_made():
    sender, begun, gate, made = Sender(nothing), threading.Event(), threading.Event(), []

    def hang():
        begun.set()
        gate.wait()
        made.append("hung")

    sender.add("first", [hang, lambda: made.append("never")])
    sender.add("second", [lambda: made.append("never")])
    begun.wait()
    with pytest.raises(TimeoutError, match=r"not sent within 0\.05 s"):
        sender.wait(0.05)
    assert sender.take() == ["first", "second"]
    gate.set()
    sender.wait(60)
    assert made == ["hung"]


def test_a_forked_child_has_nothing_to_send():
    sender, gate, ended = Sender(lambda: os._exit(3)), threading.Event(), []
    sender.add("first", [gate.wait])
    child = os.fork()
    if child == 0:
        sender._exit()  # what its `atexit` calls
        os._exit(0)
    ended.append(os.waitpid(child, 0)[1])
    gate.set()
    sender.wait(60)
    sender.take()
    assert ended == [0]


def test_an_answer_is_waited_for_and_no_longer_than_given():
    gate = threading.Event()
    assert within(60, lambda: 3) == 3
    with pytest.raises(TimeoutError, match=r"no answer after 0\.05 s"):
        within(0.05, gate.wait)
    gate.set()
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 / 0)


# --- MLflow -----------------------------------------------------------------------------------------------------------


class Proxy(BaseHTTPRequestHandler):
    """Hands requests on to a real server, each after `delay_s`; or answers none while `gate` is closed."""

    protocol_version = "HTTP/1.1"
    target, delay_s, gate = "", 0.0, threading.Event()

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        self.gate.wait()
        threading.Event().wait(self.delay_s)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        try:
            with urlopen(Request(self.target + self.path, body, headers, method=self.command)) as answer:
                status, kind, content = answer.status, answer.headers.get("Content-Type"), answer.read()
        except HTTPError as error:
            status, kind, content = error.code, error.headers.get("Content-Type"), error.read()
        self.send_response(status)
        self.send_header("Content-Type", kind or "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_PATCH = do_GET

    def log_message(self, *_):
        """Print nothing."""


@contextmanager
def proxied(target):
    kind = type("Proxied", (Proxy,), {"target": target, "gate": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", kind
        finally:
            kind.gate.set()
            server.shutdown()


mlflow = [
    pytest.mark.mlflow,
    # 2026-11, mlflow 3.17 on SQLAlchemy 2.1: its own tables, when they are first imported.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]


def marked(test):
    for mark in mlflow:
        test = mark(test)
    return test


@pytest.fixture
def served(empty_database, tmp_path):
    import shutil

    database = tmp_path / "served.db"
    shutil.copy(empty_database, database)
    with stores.serving(tmp_path, database) as address:
        yield address


@marked
def test_a_slow_server_has_it_all_in_order_at_the_end(served, tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "END_S", 300.0)
    local = MemoryTracker()
    with proxied(served) as (address, proxy):
        proxy.gate.set()
        run = stores.Run(address, tmp_path / "artifacts")
        proxy.delay_s = 0.05
        hook = loop([(run.client, run.id), local])
        proxy.delay_s = 0.0
        found = places.in_mlflow(run.client, run.id)
        logged = [row["compute/flops_total"] for _, row in local.scalars if "compute/flops_total" in row]
        assert [value for _, value in run.points("workload/flops_total")] == logged
        assert len(logged) == STEPS
    last = {name: value for _, row in local.scalars for name, value in row.items()}
    kept = {name: value for name, value in last.items() if name not in found.scalars and value}
    assert {name: found.kept.get(name) for name in kept} == places.in_six_digits(kept)
    assert kept.keys() >= hook.profile.scalars().keys()
    assert found.profiles == {"train": hook.profile}


@marked
def test_a_server_that_hangs_in_the_middle_stops_no_step(served, tmp_path, monkeypatch, short_end):
    monkeypatch.chdir(tmp_path)
    with proxied(served) as (address, proxy):
        proxy.gate.set()
        run = stores.Run(address, tmp_path / "artifacts")

        def during(step):
            if step == 2:
                proxy.gate.clear()

        local = MemoryTracker()
        with pytest.warns(FlopCallbackWarning, match="TimeoutError: it was not sent within") as told:
            loop([(run.client, run.id), local], during=during)
        assert len(told) == 1
    rows = [(line.pop("step"), line) for line in kept(tmp_path / "flopcallback_report")]
    assert rows == local.scalars[-len(rows) :]  # the last ones, without a gap


@marked
def test_a_run_of_a_server_that_hangs_is_taken_as_it_is(served, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setattr("flopcallback_mlflow.target.ANSWER_S", 0.2)
    with stores.fluent_state_put_back(), proxied(served) as (address, proxy):
        proxy.gate.set()
        mlflow.set_tracking_uri(address)
        with mlflow.start_run() as run:
            proxy.gate.clear()
            tracker = tracker_for(run)
            proxy.gate.set()
    assert tracker.run_id == run.info.run_id


@marked
def test_a_store_of_files_is_written_at_once(sqlite, tmp_path):
    run = stores.Run(sqlite, tmp_path / "artifacts")
    tracker = run.tracker()
    assert not tracker.send_by(pytest.fail)
    tracker.log_scalars({"flops/forward": 7, "compute/flops_total": 21}, 0)
    assert run.points("workload/flops_total") == [(0, 21.0)]
    assert run.tags()["flops.forward"] == "7"


@marked
def test_a_server_and_files_elsewhere_are_a_network(sqlite, tmp_path):
    from mlflow import MlflowClient

    client = MlflowClient(sqlite)
    bucket = client.create_experiment(f"{tmp_path} in a bucket", artifact_location="s3://bucket/folder")
    assert tracker_for((client, client.create_run(bucket).info.run_id)).send_by(lambda _: None)
    assert tracker_for((MlflowClient("http://127.0.0.1:1"), "a-run")).send_by(lambda _: None)


# --- The end of the process, and a full disk --------------------------------------------------------------------------

FORGOTTEN = """
import sys, threading, torch
from flopcallback import FlopHook
from flopcallback.trackers import MemoryTracker
from flopcallback.training import sinks

sinks.END_S = float(sys.argv[1])
gate, arrived = threading.Event(), []

class Remote(MemoryTracker):
    def send_by(self, send):
        self.send = send
        return True
    def log_scalars(self, values, step):
        self.send(lambda: (gate.wait(0.2 if sys.argv[2] == "slow" else None), sys.stderr.write(f"arrived {step}\\n")))
    def log_profile(self, profile, step):
        pass

model = torch.nn.Linear(5, 3)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
options = {"summary": False, "latency_steps": 0, "log_every_n_steps": 1, "strict": bool(sys.argv[3:] and sys.argv[3])}
hook = FlopHook(model, optimizer, to=Remote(), **options)
for _ in range(3):
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
"""

WAITS = """
from flopcallback.trackers import Sender

wait = Sender.wait
def told(sender, seconds, late=""):
    print("waits" if seconds else "at-once")
    wait(sender, seconds, late)
Sender.wait = told

model = torch.nn.Linear(5, 3)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
other = FlopHook(model, optimizer, to=Remote(), **options)
for _ in range(3):
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
"""


def forgotten(tmp_path, *args):
    command = [sys.executable, "-c", FORGOTTEN, *args]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_process_that_ends_without_close_sends_what_waits(tmp_path):
    text = forgotten(tmp_path, "60", "slow")
    assert [line for line in text.splitlines() if line.startswith("arrived")][-1] == "arrived 2"
    assert "Warning" not in text


def test_a_strict_process_that_ends_without_close_keeps_what_was_not_sent(tmp_path):
    text = forgotten(tmp_path, "0.2", "never", "strict")
    assert text.count("the tracker Remote failed: TimeoutError: it was not sent within 0.2 s. Not sent: ") == 1
    assert "Traceback" not in text
    assert kept(tmp_path / "flopcallback_report")[-1]["step"] == 2


def test_all_that_is_not_closed_shares_one_wait(tmp_path):
    command = [sys.executable, "-c", FORGOTTEN + WAITS, "0.2", "never", ""]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the tracker Remote failed: TimeoutError: it was not sent within 0.2 s. Not sent: ") == 2
    assert "Traceback" not in done.stderr
    assert done.stdout.split() == ["waits", "at-once"]
    assert kept(tmp_path / "flopcallback_report")[-1]["step"] == 2
    assert kept(tmp_path / "flopcallback_report-2")[-1]["step"] == 2


FULL = """
import resource, sys, warnings, torch
from flopcallback import FlopHook
from flopcallback.training.failures import FlopCallbackWarning

model = torch.nn.Linear(5, 3)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    with FlopHook(model, optimizer, report_dir=sys.argv[1], summary=False, warmup_steps=0, latency_steps=2) as hook:
        for step in range(6):
            model(torch.ones(2, 5)).sum().backward()
            optimizer.step()
            if step == 0:  # from here on no file may be longer, as on a disk that is full
                resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
print([str(each.message) for each in told if each.category is FlopCallbackWarning])
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="files cannot be limited here")
def test_a_full_disk_leaves_the_files_that_were_whole(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the tracker") == 1
    assert "File too large" in done.stdout
    profile = ModelProfile.from_json((tmp_path / "flopcallback.json").read_text())
    assert profile.latency is None  # the first one, from before
    assert (tmp_path / "flopcallback.html").read_text().endswith("</html>\n")
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".html", ".txt", ".md", ".jsonl"}
