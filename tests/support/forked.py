"""Scripts in processes of their own that need not import torch and Lightning again: they are forked where both are.

Nothing else is shared: whatever a script leaves behind ends with its process.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

__all__ = ["of_ranks", "printed", "run", "start", "wait_for_all"]

# What is not installed is passed over.
_IMPORTED = ["torch", "torch.distributed", "torch.nn.parallel", "lightning.pytorch", "flopcallback"]


def start(
    file: Path,
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    output: Path | None = None,
) -> BaseProcess:
    """Starts a script. What it prints goes to `OUTPUT.PID.out`, and its errors to `OUTPUT.PID.err`.

    Args:
        file: the script; it finds itself as `__main__`.
        arguments: of the command line.
        environment: in place of this process's.
        folder: where it runs; by default in this process's working directory.
        output: by default the path of the script.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    given = dict(os.environ if environment is None else environment)
    command = [str(file), *map(str, arguments)]
    process = context.Process(target=_run, args=(command, given, str(folder or Path.cwd()), str(output or file)))
    process.start()
    return process


def run(
    file: Path, *arguments: object, folder: Path, timeout_s: float = 600.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script in a folder to its end, as `subprocess.run` does."""
    output = folder.parent / f"{folder.name}-printed"
    given = {**os.environ, **environment}
    process = start(file, *arguments, environment=given, folder=folder, output=output)
    (code,) = wait_for_all([process], timeout_s)
    assert code is not None, f"{file} has not ended for {timeout_s} s"
    return subprocess.CompletedProcess(
        [file, *arguments], code, printed(output, process), printed(output, process, "err")
    )


def wait_for_all(processes: Sequence[BaseProcess], timeout_s: float) -> list[int | None]:
    """The exit codes; None of a process that went on for too long. None of them is there afterwards."""
    try:
        for process in processes:
            process.join(timeout_s)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def printed(output: Path, process: BaseProcess, stream: str = "out") -> str:
    """What a script wrote to a stream, `out` or `err`."""
    return Path(f"{output}.{process.pid}.{stream}").read_text(encoding="utf-8")


def of_ranks(world: int = 2) -> list[dict[str, str]]:
    """The environment of each rank of one machine, as `torchrun` makes it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "NODE_RANK": "0"}
    return [{**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def _run(command: list[str], environment: dict[str, str], folder: str, output: str) -> None:
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{os.getpid()}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    file = command[0]
    sys.argv, sys.path = command, [str(Path(file).parent), *sys.path]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__ = file
    exec(compile(Path(file).read_text(encoding="utf-8"), file, "exec"), vars(main))
