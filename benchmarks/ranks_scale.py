"""Time that rank 0 spends in one gather of all ranks, by their number: `python benchmarks/ranks_scale.py`.

The ranks are simulated: one process answers for all of them, through a `TCPStore` on the loopback interface, which it
serves: as with torchrun, the store is not in the process of rank 0. Rank 0 finds all answers in the store, so no
waiting for others is in its time; reading and adding up the books is. One rank is then left silent, to see that it is
named.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from dataclasses import astuple
from datetime import timedelta
from typing import Any
from unittest import mock

import torch.distributed as dist

from flopcallback.training import ranks as module
from flopcallback.training.kinds import StepCost
from flopcallback.training.ledger import ComputeLedger
from flopcallback.training.meter import merged_ledger
from flopcallback.training.ranks import Ranks
from flopcallback.training.throughput import Work

ROUNDS = 7
FLOPS = 2**62 + 1
"""FLOPs of a step: those of two ranks are beyond an int64."""


def message() -> dict[str, Any]:
    """Return what a rank tells at a log step."""
    ledger = ComputeLedger()
    ledger.add_observed(None, StepCost(FLOPS, FLOPS // 3))
    work = astuple(Work(12.345678901, 0.123456789, 50.0, FLOPS, 0, 3200, 6553600))
    return {"ledger": ledger.summary(), "samples": 64, "tokens": 131072, "work": work}


def rank_of(number: int, world: int, store: Any, *, patience_s: float = 60.0) -> Ranks:
    """Return the `Ranks` of a simulated process."""
    with (
        mock.patch.object(module, "is_initialized", return_value=True),
        mock.patch.object(module, "default_store", return_value=store),
        mock.patch.object(module, "_made", module.Counter()),
        mock.patch.object(dist, "get_rank", return_value=number),
        mock.patch.object(dist, "get_world_size", return_value=world),
    ):
        return Ranks("scale", patience_s=patience_s, join_s=0.0)


def answer(world: int, port: Any, rounds: int, ready: Any, go_on: Any) -> None:
    """Serve the store, and answer for all ranks but the first; in the last round rank 1 is silent."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    port.value = store.port
    ranks = [rank_of(number, world, store) for number in range(1, world)]
    own = message()
    for step in range(rounds):
        for rank in ranks[step == rounds - 1 :]:
            rank.gather(f"log/{step}", own)
        ready.release()
        go_on.acquire()  # the last time, rank 0 has done with the store


def measure(world: int) -> tuple[list[float], list[float], list[float]]:
    """Return milliseconds of each gather, of its CPU time, and of each sum over the ranks."""
    context = multiprocessing.get_context("spawn")
    port, ready, go_on = context.Value("i", 0), context.Semaphore(0), context.Semaphore(0)
    others = context.Process(target=answer, args=(world, port, ROUNDS + 1, ready, go_on))
    others.start()
    ready.acquire()
    store = dist.TCPStore("127.0.0.1", port.value, is_master=False, timeout=timedelta(seconds=60))
    first, own = rank_of(0, world, store), message()
    gathering, of_cpu, adding = [], [], []
    for step in range(ROUNDS):
        began, cpu = time.perf_counter(), time.thread_time()
        gathered = first.gather(f"log/{step}", own)
        gathering.append(1e3 * (time.perf_counter() - began))
        of_cpu.append(1e3 * (time.thread_time() - cpu))
        assert gathered is not None
        assert gathered.is_whole
        began = time.perf_counter()
        flops = merged_ledger(gathered).flops
        adding.append(1e3 * (time.perf_counter() - began))
        assert flops == world * FLOPS
        go_on.release()
        ready.acquire()
    first._patience_s = first._present_patience_s = 0.05
    late = first.gather(f"log/{ROUNDS}", own)
    assert late is not None
    assert late.late == (1,)
    assert merged_ledger(late).flops == world * FLOPS  # its last message counts
    go_on.release()
    others.join()
    return gathering[1:], of_cpu[1:], adding[1:]  # the first also finds out who takes part


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("worlds", type=int, nargs="*", default=[64, 512, 4096])
    print("ranks   gather ms       CPU ms       sum ms     (median, least)")
    for world in parser.parse_args().worlds:
        pairs = (f"{statistics.median(times):6.1f} {min(times):5.1f}" for times in measure(world))
        print(f"{world:5} ", " ".join(pairs))


if __name__ == "__main__":
    main()
