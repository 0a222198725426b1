"""Measure how long a training waits for a tracker that is gone, and what is kept.

An MLflow server is killed, hangs, is slow or was never there; a disk is full. Each training has 80 steps of 0.1 s, and
logs every 5. Steps in which figures are drawn take longer, with or without an outage.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

STEPS, STEP_S, EVERY, OUTAGE_AT = 80, 0.1, 5, 32
SLOW_S = 2.0


class Proxy(BaseHTTPRequestHandler):
    """Hands requests on to a server: at once, after `delay_s`, or never while `gate` is closed."""

    protocol_version = "HTTP/1.1"
    target, delay_s, gate = "", 0.0, threading.Event()

    def do_GET(self) -> None:
        """Answer with what the server answers."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        self.gate.wait()
        time.sleep(type(self).delay_s)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        request = urllib.request.Request(self.target + self.path, body, headers, method=self.command)
        try:
            with urllib.request.urlopen(request) as answer:
                status, content = answer.status, answer.read()
        except HTTPError as error:
            status, content = error.code, error.read()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815 - names of http.server's

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run an MLflow server; give its address and process."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/m.db", "--artifacts-destination", str(folder / "artifacts")]
    quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=folder, env=quiet, stdout=nowhere, stderr=nowhere, start_new_session=True)
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def proxied(target: str) -> Iterator[tuple[str, type[Proxy]]]:
    """Run a proxy in front of a server; give its address and its handler."""
    kind = type("Proxied", (Proxy,), {"target": target, "gate": threading.Event()})
    kind.gate.set()
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{running.server_address[1]}", kind
        finally:
            kind.gate.set()
            running.shutdown()


def measure(case: str) -> dict[str, object]:
    """Run one training, and return its times and what became of its numbers."""
    import torch

    from flopcallback import FlopHook

    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    os.chdir(folder)
    with ExitStack() as stack:
        to, outage = target_of(case, folder, stack)
        model = torch.nn.Linear(5, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        longest = 0.0
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            hook = FlopHook(model, optimizer, to=to, summary=False, log_every_n_steps=EVERY)
            for step in range(STEPS):
                began = time.perf_counter()
                model(torch.ones(2, 5)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                time.sleep(STEP_S)
                if step > OUTAGE_AT:
                    longest = max(longest, time.perf_counter() - began)
                if step == OUTAGE_AT:
                    outage()
            began = time.perf_counter()
            hook.close()
            end = time.perf_counter() - began
    kept = [path for path in (folder / "flopcallback_report", folder / "report") if path.exists()]
    numbers = [path / "scalars.jsonl" for path in kept if (path / "scalars.jsonl").exists()]
    rows = sum(len(path.read_text().splitlines()) for path in numbers)
    return {
        "case": case,
        "longest step": longest,
        "end": end,
        "warnings": len(told),
        "kept rows": rows,
        "files": sorted(path.name for folder_ in kept for path in folder_.iterdir()),
        "said": str(told[0].message).partition(" Training is not")[0] if told else "",
    }


def target_of(case: str, folder: Path, stack: ExitStack) -> tuple[object, Callable[[], object]]:
    """Return the target of a training, and a function that begins the outage."""

    def nothing() -> None:
        """Begin no outage."""

    if case == "full disk":
        return folder / "report", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    from mlflow import MlflowClient

    if case == "refused":
        return (MlflowClient(f"http://127.0.0.1:{free_port()}"), "a-run"), nothing
    address, process = stack.enter_context(server(folder))
    outage: Callable[[], object] = nothing
    if case == "killed":
        outage = functools.partial(os.killpg, process.pid, signal.SIGKILL)
    if case in ("hangs", "slow"):
        address, proxy = stack.enter_context(proxied(address))
        outage = proxy.gate.clear if case == "hangs" else lambda: setattr(proxy, "delay_s", SLOW_S)
    client = MlflowClient(address)
    run_id = client.create_run("0").info.run_id
    return (client, run_id), outage


def main() -> None:
    """Measure each case in a process of its own, and print the table."""
    print("| server | longest step after it, s | wait at the end, s | warnings | rows and files that are kept |")
    print("|---|---|---|---|---|")
    said = []
    for case in ("no outage", "killed", "hangs", "slow", "refused", "full disk"):
        done = subprocess.run([sys.executable, __file__, case], capture_output=True, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        kept = f"{row['kept rows']} rows; {', '.join(row['files'])}" if row["files"] else "-"
        print(f"| {case} | {row['longest step']:.3f} | {row['end']:.1f} | {row['warnings']} | {kept} |", flush=True)
        said += [f"{case}: {row['said']}"] if row["said"] else []
    print("\n" + "\n".join(said))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        sys.stdout.flush()
        os._exit(0)  # a thread may still ask a server that is gone
    main()
